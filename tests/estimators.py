"""Estimators and pipelines that ordinary projects use, and the folder that a logged one has.

All are fitted on the toy world's colours, sizes and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
import yaml
from conftest import make_rows
from sklearn import (
    calibration,
    cluster,
    compose,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    gaussian_process,
    impute,
    kernel_approximation,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

from mlops_lib import models
from mlops_lib.task import Task, binary, regression

NUMBERS = ["size", "weight"]


def make_training(n_rows: int = 120) -> tuple[pd.DataFrame, pd.Series[int]]:
    arrivals, labels = make_rows(n_rows, seed=0)
    return arrivals[["color", *NUMBERS]], labels["broke"]


def after(*steps: Any) -> pipeline.Pipeline:
    """Return a pipeline on one-hot colours and scaled numbers."""
    columns = compose.make_column_transformer(
        (preprocessing.OneHotEncoder(sparse_output=False), ["color"]), (preprocessing.StandardScaler(), NUMBERS)
    )
    return pipeline.make_pipeline(columns, *steps)


def with_columns(*transformers: tuple[Any, Any]) -> pipeline.Pipeline:
    """Return a logistic regression on transformed columns."""
    return pipeline.make_pipeline(
        compose.make_column_transformer(*transformers), linear_model.LogisticRegression(max_iter=500)
    )


LOGISTIC = linear_model.LogisticRegression()
COLOR = (preprocessing.OneHotEncoder(), ["color"])
SEEDED: dict[str, Any] = {"random_state": 0}
SMALL: dict[str, Any] = {"n_estimators": 4, **SEEDED}
MODELS: dict[str, Callable[[], Any]] = {
    # linear
    "logistic": lambda: after(LOGISTIC),
    "logistic_cv": lambda: after(
        linear_model.LogisticRegressionCV(Cs=2, cv=2, l1_ratios=(0,), use_legacy_attributes=False, scoring="roc_auc")
    ),
    "elastic_net": lambda: after(linear_model.LogisticRegression(solver="saga", l1_ratio=0.5, max_iter=5000)),
    "sgd": lambda: after(linear_model.SGDClassifier(loss="log_loss", **SEEDED)),
    "ridge_classifier": lambda: after(linear_model.RidgeClassifier()),
    "perceptron": lambda: after(linear_model.Perceptron(**SEEDED)),
    "linear_regression": lambda: after(linear_model.LinearRegression()),
    "ridge": lambda: after(linear_model.Ridge()),
    "lasso": lambda: after(linear_model.Lasso(alpha=0.01)),
    "huber": lambda: after(linear_model.HuberRegressor()),
    "poisson": lambda: after(linear_model.PoissonRegressor()),
    "gamma_of_shifted": lambda: after(
        compose.TransformedTargetRegressor(linear_model.LinearRegression(), func=np.log1p, inverse_func=np.expm1)
    ),
    "lda": lambda: after(discriminant_analysis.LinearDiscriminantAnalysis()),
    "qda": lambda: after(feature_selection.SelectKBest(k=2), discriminant_analysis.QuadraticDiscriminantAnalysis()),
    # trees
    "tree": lambda: after(tree.DecisionTreeClassifier(max_depth=3, **SEEDED)),
    "forest": lambda: after(ensemble.RandomForestClassifier(**SMALL)),
    "extra_trees": lambda: after(ensemble.ExtraTreesClassifier(**SMALL)),
    "forest_regressor": lambda: after(ensemble.RandomForestRegressor(**SMALL)),
    "gradient_boosting": lambda: after(ensemble.GradientBoostingClassifier(**SMALL)),
    "gradient_boosting_exponential": lambda: after(ensemble.GradientBoostingClassifier(loss="exponential", **SMALL)),
    "gradient_boosting_regressor": lambda: after(ensemble.GradientBoostingRegressor(**SMALL)),
    "hist_gradient_boosting": lambda: after(ensemble.HistGradientBoostingClassifier(max_iter=4, **SEEDED)),
    "hist_gradient_boosting_with_categories": lambda: pipeline.make_pipeline(
        compose.make_column_transformer(
            (preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["color"]),
            remainder="passthrough",
        ),
        ensemble.HistGradientBoostingClassifier(max_iter=4, categorical_features=[0], **SEEDED),
    ),
    "hist_gradient_boosting_early_stopping": lambda: after(
        ensemble.HistGradientBoostingClassifier(max_iter=4, early_stopping=True, **SEEDED)
    ),
    "hist_gradient_boosting_regressor": lambda: after(
        ensemble.HistGradientBoostingRegressor(max_iter=4, loss="poisson", **SEEDED)
    ),
    "hist_gradient_boosting_quantile": lambda: after(
        ensemble.HistGradientBoostingRegressor(max_iter=4, loss="quantile", quantile=0.9, **SEEDED)
    ),
    "bagging": lambda: after(ensemble.BaggingClassifier(LOGISTIC, **SMALL)),
    "ada_boost": lambda: after(ensemble.AdaBoostClassifier(**SMALL)),
    # kernels, networks, Bayes
    "nearest_centroid": lambda: after(neighbors.NearestCentroid()),
    "linear_svc": lambda: after(svm.LinearSVC()),
    "nystroem": lambda: after(kernel_approximation.Nystroem(n_components=10, **SEEDED), LOGISTIC),
    "gaussian_process": lambda: after(gaussian_process.GaussianProcessClassifier(**SEEDED)),
    "mlp": lambda: after(neural_network.MLPClassifier((4,), early_stopping=True, n_iter_no_change=2, tol=1, **SEEDED)),
    "mlp_sgd": lambda: after(
        neural_network.MLPClassifier((4,), solver="sgd", max_iter=200, n_iter_no_change=2, tol=1, **SEEDED)
    ),
    "gaussian_nb": lambda: after(naive_bayes.GaussianNB()),
    "bernoulli_nb": lambda: after(naive_bayes.BernoulliNB()),
    "complement_nb": lambda: after(preprocessing.MinMaxScaler(), naive_bayes.ComplementNB()),
    # of several
    "voting": lambda: after(
        ensemble.VotingClassifier(
            [("a", LOGISTIC), ("b", tree.DecisionTreeClassifier(max_depth=2, **SEEDED))], voting="soft"
        )
    ),
    "stacking": lambda: after(
        ensemble.StackingClassifier([("a", LOGISTIC), ("b", naive_bayes.GaussianNB())], LOGISTIC, cv=2)
    ),
    "calibrated_sigmoid": lambda: after(calibration.CalibratedClassifierCV(svm.LinearSVC(), cv=2)),
    "calibrated_isotonic": lambda: after(
        calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), method="isotonic", cv=2)
    ),
    "grid_search": lambda: model_selection.GridSearchCV(
        after(LOGISTIC), {"logisticregression__C": [0.1, 1.0]}, cv=2, scoring="roc_auc"
    ),
    "halving_free_random_search": lambda: model_selection.RandomizedSearchCV(
        after(LOGISTIC), {"logisticregression__C": [0.1, 1.0]}, n_iter=2, cv=2, **SEEDED
    ),
    "tuned_threshold": lambda: model_selection.TunedThresholdClassifierCV(after(LOGISTIC), scoring="f1", cv=2),
    "fixed_threshold": lambda: model_selection.FixedThresholdClassifier(after(LOGISTIC), threshold=0.3),
    # columns
    "column_selector": lambda: with_columns(
        (preprocessing.OneHotEncoder(), compose.make_column_selector(dtype_exclude="number")),
        (preprocessing.StandardScaler(), compose.make_column_selector(dtype_include=np.number)),
    ),
    "kbins": lambda: with_columns(
        COLOR, (preprocessing.KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), NUMBERS)
    ),
    "infrequent_categories": lambda: with_columns(
        (preprocessing.OneHotEncoder(min_frequency=0.4, handle_unknown="infrequent_if_exist"), ["color"])
    ),
    "target_encoder": lambda: with_columns((preprocessing.TargetEncoder(cv=model_selection.KFold(2)), ["color"])),
    "polynomial": lambda: with_columns(COLOR, (preprocessing.PolynomialFeatures(), NUMBERS)),
    "quantiles": lambda: with_columns(COLOR, (preprocessing.QuantileTransformer(n_quantiles=20), NUMBERS)),
    "power": lambda: with_columns(COLOR, (preprocessing.PowerTransformer(), NUMBERS)),
    "robust": lambda: with_columns(COLOR, (preprocessing.RobustScaler(), NUMBERS)),
    "logarithm": lambda: with_columns(COLOR, (preprocessing.FunctionTransformer(np.log1p), ["weight"])),
    "imputers": lambda: with_columns(
        COLOR, (pipeline.make_pipeline(impute.SimpleImputer(add_indicator=True), impute.KNNImputer()), NUMBERS)
    ),
    "pca": lambda: after(decomposition.PCA(2), LOGISTIC),
    "truncated_svd": lambda: after(decomposition.TruncatedSVD(2, **SEEDED), LOGISTIC),
    "union": lambda: after(pipeline.make_union(decomposition.PCA(1), preprocessing.PolynomialFeatures()), LOGISTIC),
    "select_k_best": lambda: after(feature_selection.SelectKBest(k=2), LOGISTIC),
    "select_mutual_information": lambda: after(
        feature_selection.SelectKBest(feature_selection.mutual_info_classif, k=2), LOGISTIC
    ),
    "select_from_model": lambda: after(
        feature_selection.SelectFromModel(tree.DecisionTreeClassifier(**SEEDED)), LOGISTIC
    ),
    "isolation_forest": lambda: after(ensemble.IsolationForest(**SMALL)),
    "mlp_regressor": lambda: after(
        neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=200, n_iter_no_change=2, tol=1, **SEEDED)
    ),
    "hist_gradient_boosting_of_text": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=4, categorical_features=["color"], **SEEDED
    ),
}

# What a project has to name among its trusted types: nobody checks the numbers that their compiled code follows.
UNCHECKED: dict[str, Callable[[], Any]] = {
    "knn": lambda: after(neighbors.KNeighborsClassifier()),
    "knn_ball_tree": lambda: after(neighbors.KNeighborsClassifier(algorithm="ball_tree", metric="manhattan")),
    "knn_weighted": lambda: after(neighbors.KNeighborsClassifier(weights="distance", algorithm="kd_tree")),
    "svc": lambda: after(svm.SVC()),
    "spline": lambda: with_columns(COLOR, (preprocessing.SplineTransformer(n_knots=4), NUMBERS)),
    "svr": lambda: after(svm.SVR()),
    "knn_regressor": lambda: after(neighbors.KNeighborsRegressor()),
    "clusters": lambda: after(cluster.KMeans(3, n_init=1, **SEEDED), LOGISTIC),
}


def task_of(model: Any) -> Task:
    """Return the task of a model of two classes or of numbers; what only predicts classes is one of numbers here."""
    return binary().fit_to(model) if hasattr(model, "predict_proba") else regression()


def save_model(model: Any, folder: Path, rows: pd.DataFrame, *, warmup: str | None = None) -> dict[str, Any]:
    """Write what a logged model's folder holds, as far as the loader looks at it; return its manifest."""
    task = task_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / models.MODEL_FILE).write_bytes(skops.io.dumps(model))
    flavors = {
        "sklearn": {"serialization_format": "skops", "pickled_model": models.MODEL_FILE, "code": None},
        "python_function": {"loader_module": "mlflow.sklearn"},
    }
    (folder / models.MLMODEL_FILE).write_text(
        yaml.safe_dump({"flavors": flavors, "metadata": {"mlops": {"task": task.to_dict()}}})
    )
    (folder / models.WARMUP_FILE).write_text(warmup or models.warmup_json(task, model, rows))
    return models.compute_manifest(folder)
