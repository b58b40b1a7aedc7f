"""Tables whose columns have the types that pandas has, and models that are trained on them as they are."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn import compose, ensemble, impute, linear_model, naive_bayes, neural_network, pipeline, preprocessing, tree

from mlops_lib import contracts, registry, tracking
from mlops_lib.errors import ContractError, ModelError, TaskError
from mlops_lib.project import Project

N_ROWS = 200
FEATURES = ("x", "z")
RANDOM = np.random.default_rng(0)
WHOLE = RANDOM.integers(0, 5, N_ROWS)
FLAG = RANDOM.random(N_ROWS) < 0.5
NUMBER = RANDOM.normal(size=N_ROWS)
LETTER = np.array(list("abcde"))[WHOLE]
GAP = RANDOM.random(N_ROWS) < 0.1
DAY = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(WHOLE, unit="D"))
BROKE = ((WHOLE > 2) ^ (RANDOM.random(N_ROWS) < 0.2)).astype("int64")


def with_gaps(values: Any, dtype: str = "object") -> pd.Series[Any]:
    """Return the values with None here and there."""
    return pd.Series(values, dtype=object).where(~GAP, None).astype(dtype)


COLUMNS: dict[str, pd.Series[Any]] = {
    "int8": pd.Series(WHOLE, dtype="int8"),
    "uint8": pd.Series(WHOLE, dtype="uint8"),
    "int64": pd.Series(WHOLE),
    "Int64": pd.Series(WHOLE, dtype="Int64"),
    "Int64 with gaps": with_gaps(WHOLE, "Int64"),
    "Float64 with gaps": with_gaps(NUMBER, "Float64"),
    "float16": pd.Series(NUMBER, dtype="float16"),
    "float32": pd.Series(NUMBER, dtype="float32"),
    "float64 with gaps": with_gaps(NUMBER, "float64"),
    "bool": pd.Series(FLAG),
    "boolean": pd.Series(FLAG, dtype="boolean"),
    "boolean with gaps": with_gaps(FLAG, "boolean"),
    "booleans and None": with_gaps(FLAG),
    "whole numbers and None": with_gaps(WHOLE),
    "texts and None": with_gaps(LETTER),
    "str": pd.Series(LETTER),
    "string[python]": pd.Series(LETTER, dtype="string[python]"),
    "string[pyarrow]": pd.Series(LETTER, dtype="string[pyarrow]"),
    "category with gaps": with_gaps(LETTER, "category"),
    "category of numbers": pd.Series(WHOLE).astype("category"),
    "datetime64[us]": DAY.astype("datetime64[us]"),
    "datetime64[s]": DAY.astype("datetime64[s]"),
    "time with zone": DAY.dt.tz_localize("UTC"),
    "timedelta": pd.Series(pd.to_timedelta(WHOLE, unit="D")),
    "decimals": pd.Series([decimal.Decimal(int(n)) for n in WHOLE], dtype=object),
    "dates": pd.Series([dt.date(2020, 1, 1 + int(n)) for n in WHOLE], dtype=object),
}
SEEDED: dict[str, Any] = {"random_state": 0}
TEXTS = compose.make_column_selector(dtype_include=["object", "category", "string", "bool", "boolean"])


def encoded(*steps: Any) -> pipeline.Pipeline:
    """Return a pipeline that encodes texts and flags, and fills and scales what is left."""
    numbers = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    letters = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return pipeline.make_pipeline(compose.make_column_transformer((letters, TEXTS), remainder=numbers), *steps)


def ordinal(*steps: Any) -> pipeline.Pipeline:
    """Return a pipeline that numbers the values of every column."""
    encoder = preprocessing.OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
    )
    return pipeline.make_pipeline(encoder, *steps)


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "boosting": lambda: ensemble.HistGradientBoostingClassifier(max_iter=5, **SEEDED),
    "encoded, logistic": lambda: encoded(linear_model.LogisticRegression()),
    "boosting of categories": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=5, categorical_features="from_dtype", **SEEDED
    ),
    "ordinal, forest": lambda: ordinal(ensemble.RandomForestClassifier(5, **SEEDED)),
    "logistic": linear_model.LogisticRegression,
    "one-hot, logistic": lambda: pipeline.make_pipeline(
        preprocessing.OneHotEncoder(handle_unknown="ignore"), linear_model.LogisticRegression()
    ),
    "filled, tree": lambda: pipeline.make_pipeline(impute.SimpleImputer(), tree.DecisionTreeClassifier(**SEEDED)),
    "ordinal, gradient boosting": lambda: ordinal(ensemble.GradientBoostingClassifier(n_estimators=4, **SEEDED)),
    "encoded, Bayes": lambda: encoded(naive_bayes.GaussianNB()),
    "encoded, network": lambda: encoded(
        neural_network.MLPClassifier((4,), solver="sgd", max_iter=50, n_iter_no_change=2, tol=1, **SEEDED)
    ),
    "encoded, extra trees": lambda: encoded(ensemble.ExtraTreesClassifier(4, **SEEDED)),
    "tree": lambda: tree.DecisionTreeClassifier(**SEEDED),
}
TEXT_COLUMNS = {"texts and None", "str", "string[python]", "string[pyarrow]", "dates"}
TIME_COLUMNS = {"datetime64[us]", "datetime64[s]", "time with zone", "timedelta"}


def takes(estimator: str, column: str) -> bool:
    """Whether scikit-learn trains such a model."""
    if estimator.startswith("ordinal") or estimator == "one-hot, logistic":
        return True
    if estimator.startswith("encoded"):
        return column not in TIME_COLUMNS
    has_gaps = "gaps" in column or "None" in column
    refused = has_gaps if estimator == "logistic" else "tree" in estimator and column == "category with gaps"
    return not refused and column not in TEXT_COLUMNS | TIME_COLUMNS


PAIRS = [(column, estimator) for column in COLUMNS for estimator in ESTIMATORS if takes(estimator, column)]


class Trained(NamedTuple):
    """A registered version, the table that it was trained on, and the scores that it gave there."""

    version: int
    rows: pd.DataFrame
    scores: Any


def train(project: Project, column: str, estimator: str) -> Trained | str:
    """Return the registered model, or the text that refused it when it was logged."""
    X = pd.DataFrame({"x": COLUMNS[column], "z": NUMBER})
    model = ESTIMATORS[estimator]().fit(X, BROKE)
    rows = X.assign(thing_id=np.arange(N_ROWS))
    try:
        contract = contracts.infer_contract(rows, features=FEATURES, keys=project.keys)
        with tracking.start_run(project):
            logged = tracking.log_model(project, model, X, contract=contract.to_dict())
    except (ContractError, ModelError, TaskError) as error:
        return str(error)
    return Trained(registry.register(project, logged.model_uri).version, rows, project.task.predict(model, X))


def project_of(project: Project) -> Project:
    """Return the project with the features of these tables."""
    return replace(project, features=FEATURES, slices=())


def train_many(project: Project, pairs: list[tuple[str, str]]) -> Iterator[tuple[str, Trained]]:
    """Yield what was registered of the pairs, with its name."""
    for column, estimator in pairs:
        trained = train(project, column, estimator)
        if isinstance(trained, Trained):
            yield f"{column}, {estimator}", trained
