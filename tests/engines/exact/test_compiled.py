"""Generated scorers: the pipeline's own bits, or the pipeline."""

from __future__ import annotations

import functools
import json
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES, make_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlops_lib import data, registry, tracking
from mlops_lib import models as model_files
from mlops_lib.engines import exact
from mlops_lib.engines.exact import models, source, verdict
from mlops_lib.engines.exact.scorer import ask, generate
from mlops_lib.engines.exact.verdict import Comparison, _ask_alone, check_exact
from mlops_lib.errors import NotExactError
from mlops_lib.project import Project

TEXT = ["color", "shape"]
NUMBERS = ["size", "weight", "price"]
WHOLE = ["count", "fragile"]


def make_table(n_rows: int, *, seed: int, unseen: bool = False) -> pd.DataFrame:
    """Return rows of every type, with missing values; ``unseen`` adds categories and sizes that training lacks."""
    rng = np.random.default_rng(seed)
    colors = ["red", "green", "blue", "", *(["pink", "a\x00", "ü"] if unseen else [])]
    shapes = [f"shape {i}" for i in range(25 if unseen else 20)]
    table = pd.DataFrame(
        {
            "color": pd.array(rng.choice(colors, n_rows), dtype="str"),
            "shape": pd.array(
                rng.choice(shapes, n_rows, p=np.arange(1, len(shapes) + 1) / sum(range(len(shapes) + 1)))
            ),
            "size": rng.normal(10, 2, n_rows),
            "weight": rng.normal(5, 1e-3 if seed % 2 else 1e3, n_rows) * (1e6 if unseen else 1),
            "price": rng.choice([0.1, 0.2, 0.3, -0.0], n_rows),
            "count": rng.integers(-3, 9, n_rows),
            "fragile": rng.random(n_rows) < 0.3,
        }
    )
    for name in (*TEXT, "size", "weight"):
        table.loc[rng.random(n_rows) < 0.1, name] = None
    return table.astype({"shape": "str"})


def make_targets(rows: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    signal = rows["size"].fillna(9) + 2 * (rows["color"] == "red") + rng.normal(size=len(rows))
    return {
        "two": (signal > 10).astype("int64"),
        "three": pd.cut(signal, [-99, 9, 11, 99], labels=["l", "m", "h"]).astype(str),
        "number": signal,
    }


# Estimators by family, with the target that they are fitted to.
ESTIMATORS: dict[str, list[tuple[str, Any]]] = {
    "linear": [
        ("number", LinearRegression()),
        ("number", Ridge()),
        ("number", Lasso(0.01)),
        ("number", ElasticNet(0.01)),
    ],
    "logistic": [("two", LogisticRegression(max_iter=2000)), ("three", LogisticRegression(max_iter=2000))],
    "tree": [
        ("two", DecisionTreeClassifier()),
        ("three", DecisionTreeClassifier()),
        ("number", DecisionTreeRegressor()),
    ],
    "forest": [
        ("two", RandomForestClassifier(12)),
        ("three", RandomForestClassifier(9, max_depth=6)),
        ("number", RandomForestRegressor(12, max_depth=7)),
    ],
    "histogram gradient boosting": [
        ("two", HistGradientBoostingClassifier(max_iter=15)),
        ("three", HistGradientBoostingClassifier(max_iter=7)),
        ("number", HistGradientBoostingRegressor(max_iter=15, loss="absolute_error")),
        ("number", HistGradientBoostingRegressor(max_iter=9, loss="gamma")),
    ],
}
ENCODERS = [
    OneHotEncoder(handle_unknown="ignore"),
    OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=20, drop="first"),
    OneHotEncoder(handle_unknown="ignore", drop="if_binary", max_categories=6),
    OneHotEncoder(),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=math.nan, min_frequency=15),
    OrdinalEncoder(),
    TargetEncoder(random_state=0),
    make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
    make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), TargetEncoder(random_state=0)),
]
SCALERS = [
    "passthrough",
    StandardScaler(),
    StandardScaler(with_mean=False),
    make_pipeline(StandardScaler(with_std=False), "passthrough"),
]
IMPUTERS = [SimpleImputer(), SimpleImputer(strategy="median"), SimpleImputer(strategy="constant")]
FAMILIES = [(family, target, estimator) for family, some in ESTIMATORS.items() for target, estimator in some]
TAKES_GAPS = ("tree", "forest", "histogram gradient boosting")


def build_pipeline(seed: int, rows: pd.DataFrame) -> Any:
    """Return a fitted pipeline, drawn by ``seed``; every estimator is drawn within 30 seeds."""
    rng = np.random.default_rng(seed)
    family, target, estimator = FAMILIES[seed % len(FAMILIES)]
    numeric: Any = SCALERS[rng.integers(len(SCALERS))]
    encoder = ENCODERS[rng.integers(len(ENCODERS))]
    with_number = [] if "strategy" in repr(encoder) else ["count"]  # an imputer of strings would be given a number
    leaves_gaps = "unknown_value=nan" in repr(encoder) or type(encoder) is OrdinalEncoder
    fills_gaps = family not in TAKES_GAPS or rng.random() < 0.3
    if fills_gaps:
        numeric = make_pipeline(IMPUTERS[rng.integers(len(IMPUTERS))], numeric)
        encoder = make_pipeline(encoder, SimpleImputer()) if leaves_gaps else encoder
    layouts = [
        make_column_transformer((encoder, TEXT), (numeric, NUMBERS), remainder="passthrough"),
        make_column_transformer((numeric, NUMBERS[:2]), (encoder, [0]), ("drop", ["shape"]), ("passthrough", WHOLE)),
        make_column_transformer(
            (encoder, [*TEXT[::-1], *with_number]), (numeric, slice("size", "price")), sparse_threshold=0
        ),
        make_column_transformer(
            (ColumnTransformer([("text", encoder, TEXT)]), TEXT),
            (numeric, [False, False, True, False, True, True, False]),
        ),
    ]
    columns = layouts[rng.integers(len(layouts))]
    if family == "histogram gradient boosting" or not fills_gaps:  # neither they nor gaps go into a sparse matrix
        columns.set_params(sparse_threshold=0)
    pipeline = make_pipeline(columns, "passthrough", estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline.fit(rows, make_targets(rows, rng)[target])


@functools.cache
def built(seed: int) -> tuple[Any, pd.DataFrame]:
    """Return ``build_pipeline``'s pipeline and the rows that it was fitted on; tests leave both as they are."""
    rows = make_table(300, seed=seed)
    return build_pipeline(seed, rows), rows


def method_of(model: Any) -> str:
    return "predict_proba" if hasattr(model, "predict_proba") else "predict"


def dtypes_of(rows: pd.DataFrame) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in rows.dtypes.items()}


# --- equality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_a_generated_pipeline_has_an_equal_scorer(seed: int) -> None:
    model, rows = built(seed)
    verdict = exact.prove(model, method_of(model), rows)
    assert verdict["equal"], (verdict, model)
    assert verdict["n_rows"] > len(rows) * 0.9
    scorer = exact.scorer_for(model, verdict)
    assert scorer is not None
    found = check_exact(scorer, make_table(300, seed=seed + 1000, unseen=True))
    assert found.n_different == 0
    assert found.is_equal or found.n_declined == 300


def test_the_generated_pipelines_cover_every_family_encoder_and_scaler() -> None:
    text = ""
    for seed in range(30):
        text += repr(built(seed)[0])
    estimators = {type(estimator) for _, _, estimator in FAMILIES}
    parts = estimators | {OneHotEncoder, OrdinalEncoder, TargetEncoder, SimpleImputer, StandardScaler}
    assert {part.__name__ for part in parts if f"{part.__name__}(" not in text} == set()


def test_a_row_alone_and_the_same_row_among_others_may_differ_and_the_scorer_equals_the_first() -> None:
    rows = make_table(400, seed=1)[NUMBERS].fillna(0.0)
    model = LinearRegression().fit(rows, rows @ [0.1, 0.3, 0.7])
    scorer = generate(model, method_of(model), dtypes_of(rows))
    alone = np.array([model.predict(rows.iloc[[i]])[0] for i in range(len(rows))])
    ours = np.array([scorer.predict_row(row)[0] for row in rows.to_dict("records")])
    np.testing.assert_array_equal(ours, alone)
    assert not scorer.is_rowwise
    assert scorer.max_rows == 1
    # More rows than one are the pipeline's, with whatever bits it gives them together.
    np.testing.assert_array_equal(scorer.predict(rows), model.predict(rows))


@pytest.mark.parametrize("target", ["two", "three", "number"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_many_rows_are_compared_with_the_bits_that_each_has_alone(target: str, order: Any) -> None:
    values = np.random.default_rng(7).normal(size=(300, 37)) * np.geomspace(1e-6, 1e6, 37)
    rows = pd.DataFrame(values, columns=[f"x{i}" for i in range(37)])
    model: Any = LinearRegression() if target == "number" else LogisticRegression()
    model = make_pipeline(StandardScaler(), model).fit(
        rows, make_targets(make_table(300, seed=7), np.random.default_rng(7))[target]
    )
    model[-1].coef_ = np.asarray(model[-1].coef_, order=order)
    scorer = generate(model, method_of(model), dtypes_of(rows))
    assert not scorer.is_rowwise
    method = method_of(model)
    alone = np.concatenate([ask(model, method, rows.iloc[[i]]) for i in range(len(rows))])
    found = _ask_alone(scorer, rows)
    assert found is not None
    assert found.tobytes() == alone.tobytes()


def test_a_scorer_that_adds_in_another_order_is_caught() -> None:
    rows = make_table(400, seed=1)[NUMBERS].fillna(0.0)
    model = LinearRegression().fit(rows, rows @ [0.1, 0.3, 0.7])
    scorer = generate(model, method_of(model), dtypes_of(rows))

    def add(*row: float) -> tuple[float]:
        return (sum(x * c for x, c in zip(row[::-1], model.coef_[::-1].tolist(), strict=True)) + model.intercept_,)

    assert check_exact(scorer, rows).is_equal
    found = check_exact(replace(scorer, function=add), rows, n_single=1)
    assert 0 < found.n_different < found.n_rows, "the last bit of some rows"


@given(st.floats(allow_nan=False))
def test_expit_is_scipys(x: float) -> None:
    scope: dict[str, Any] = {}
    exec(source.PREAMBLE, scope)
    assert scope["expit"](x) == expit(x)


@given(st.floats(-1e38, 1e38).map(np.float32).map(float), st.floats(0, 1), st.integers(-3, 3))
def test_a_threshold_on_a_double_is_the_one_on_its_float32(below: float, share: float, steps: int) -> None:
    above = float(np.nextafter(np.float32(below), np.float32(math.inf)))
    threshold = below + share * (above - below)
    limit = models.float32_threshold(threshold)
    x = limit
    for _ in range(abs(steps)):
        x = math.nextafter(x, math.copysign(math.inf, steps))
    assert (float(np.float32(x)) <= threshold) == (x <= limit)


# --- rows that are left to the pipeline --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> Any:
    """Return a pipeline that refuses categories it has not seen."""
    rows = make_table(300, seed=2)
    columns = make_column_transformer((OneHotEncoder(), TEXT), ("passthrough", NUMBERS))
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5))
    return model.set_params(columntransformer__sparse_threshold=0).fit(
        rows, make_targets(rows, np.random.default_rng(2))["two"]
    )


ROW = {"color": "red", "shape": "shape 3", "size": 9.5, "weight": 4.0, "price": 0.1, "count": 3, "fragile": False}


@pytest.mark.parametrize(
    "change",
    [{"color": "mauve"}, {"size": "9.5 kg"}, {"size": object()}, {"color": 5}],
    ids=lambda change: repr(next(iter(change.values())))[:9],
)
def test_what_the_pipeline_refuses_is_refused_in_its_own_words(fitted: Any, change: dict[str, Any]) -> None:
    scorer = generate(fitted, method_of(fitted), dtypes_of(make_table(3, seed=2)))
    assert scorer.function(*{**ROW, **change}.values()) is None
    with pytest.raises((ValueError, TypeError)):
        scorer.predict_row({**ROW, **change})
    assert scorer.predict_row(ROW) == tuple(fitted.predict_proba(pd.DataFrame([ROW]))[0])


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, 1e31, 2**60, None, math.nan, 3, True, np.float64(9.5), np.int64(3)]
)
def test_any_number_gets_the_pipelines_answer(fitted: Any, value: Any) -> None:
    scorer = generate(fitted, method_of(fitted), dtypes_of(make_table(3, seed=2)))
    row = {**ROW, "size": value}
    frame = pd.DataFrame([row]).astype(dtypes_of(make_table(3, seed=2)))
    assert scorer.predict_row(row) == tuple(fitted.predict_proba(frame)[0])


def test_a_category_that_no_tree_looks_at_is_refused_too() -> None:
    rows = make_table(300, seed=2)
    columns = make_column_transformer((OneHotEncoder(), TEXT), (SimpleImputer(), ["size"]), sparse_threshold=0)
    model = make_pipeline(columns, DecisionTreeClassifier(max_depth=1)).fit(rows, rows["size"] > 10)
    verdict = exact.prove(model, method_of(model), rows)
    assert verdict["equal"], verdict
    scorer = generate(model, method_of(model), dtypes_of(rows))
    assert scorer.function(*ROW.values()) is not None
    with pytest.raises(ValueError, match="unknown categories"):
        scorer.predict_row({**ROW, "shape": "no shape"})


def test_a_batch_with_a_row_that_is_unsure_is_the_pipelines(fitted: Any) -> None:
    rows = make_table(50, seed=2)
    scorer = generate(fitted, method_of(fitted), dtypes_of(rows))
    np.testing.assert_array_equal(scorer.predict_proba(rows), fitted.predict_proba(rows))
    rows.loc[7, "size"] = 1e200
    np.testing.assert_array_equal(scorer.predict_proba(rows), fitted.predict_proba(rows))


def test_many_threads_may_score_at_once(fitted: Any) -> None:
    rows = make_table(300, seed=2)
    scorer = generate(fitted, method_of(fitted), dtypes_of(rows))
    records = rows.to_dict("records") * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(scorer.predict_row, records))
    assert found == [scorer.predict_row(record) for record in records]


# --- what has no scorer ------------------------------------------------------------------------------------------


def refuse(model: Any, rows: pd.DataFrame, target: str = "two") -> str:
    """Fit, and return why there is no scorer."""
    model.fit(rows, make_targets(make_table(300, seed=3), np.random.default_rng(3))[target])
    with pytest.raises(NotExactError) as caught:
        generate(model, method_of(model), dtypes_of(rows))
    verdict = exact.prove(model, method_of(model), rows)
    assert verdict == {"equal": False, "reason": str(caught.value)}
    assert exact.scorer_for(model, verdict) is None
    return caught.value.what


HOSTILE = "a'\"]\n    raise SystemExit  # \u2028{}"


def test_names_and_categories_are_text_in_the_source_and_nothing_else() -> None:
    rows = pd.DataFrame({HOSTILE: pd.array([HOSTILE, "b", "c"] * 50, dtype="str"), "{x}": np.arange(150.0)})
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(handle_unknown="ignore"), [HOSTILE]), remainder="passthrough"),
        DecisionTreeClassifier(),
    ).fit(rows, rows[HOSTILE] == "b")
    verdict = exact.prove(model, method_of(model), rows)
    assert verdict["equal"], verdict
    scorer = exact.scorer_for(model, verdict)
    assert scorer is not None
    assert scorer.predict_row({HOSTILE: "b", "{x}": 1.0}) == (0.0, 1.0)


def test_what_is_not_covered_is_named() -> None:
    rows = make_table(300, seed=3)[NUMBERS].fillna(0.0)
    for model, what in [
        (KNeighborsClassifier(), "KNeighborsClassifier"),
        (make_pipeline(PCA(2), LogisticRegression()), "PCA"),
        (make_pipeline(FunctionTransformer(np.abs), LogisticRegression()), "FunctionTransformer with a function"),
        (make_pipeline(RobustScaler(), LogisticRegression()), "RobustScaler"),
        (RandomForestClassifier(3, n_jobs=2), "RandomForestClassifier with n_jobs=2"),
        (ExtraTreesClassifier(3), "ExtraTreesClassifier"),
        (GradientBoostingClassifier(n_estimators=2), "GradientBoostingClassifier"),
        (
            HistGradientBoostingClassifier(max_iter=2, categorical_features=["price"]),
            "HistGradientBoostingClassifier with native categories",
        ),
        (make_pipeline(SimpleImputer(missing_values=0.0), LogisticRegression()), "SimpleImputer with missing_values=0"),
        (make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()), "SimpleImputer with add_indicator"),
        (make_pipeline(OneHotEncoder(dtype=np.float32), LogisticRegression()), "OneHotEncoder with dtype float32"),
    ]:
        assert refuse(model, rows).startswith(what)
    assert refuse(LogisticRegression(), rows.astype({"size": "float32"})) == "column 'size' of type float32"
    assert (
        refuse(
            LogisticRegression(),
            rows.to_numpy() * pd.DataFrame(1.0, rows.index, [0, 1, 2]),
        )
        == "columns without names"
    )


@pytest.mark.parametrize(
    ("model", "target", "other"),
    [(RandomForestClassifier(3), "three", "predict"), (RandomForestRegressor(3), "number", "predict_proba")],
)
def test_a_stand_in_has_the_one_method_that_it_was_proven_for(model: Any, target: str, other: str) -> None:
    rows = make_table(300, seed=3)[NUMBERS]
    model.fit(rows, make_targets(make_table(300, seed=3), np.random.default_rng(3))[target])
    verdict = exact.prove(model, method_of(model), rows)
    scorer = exact.scorer_for(model, verdict)
    assert scorer is not None
    assert getattr(scorer, method_of(model))(rows).tobytes() == getattr(model, method_of(model))(rows).tobytes()
    assert not hasattr(scorer, other)
    refused = exact.prove(model, other, rows)
    assert not refused["equal"]
    assert f"{other} of a {'classifier' if other == 'predict' else 'regressor'}" in refused["reason"]


def test_several_targets_weights_and_lone_columns_are_not_covered() -> None:
    rows = make_table(300, seed=3)[NUMBERS].fillna(0.0)
    weighted = ColumnTransformer([("scaled", StandardScaler(), NUMBERS)], transformer_weights={"scaled": 2.0})
    lone = ColumnTransformer(
        [("scaled", StandardScaler(), ["size"]), ("lone", "passthrough", [1]), ("drop", "drop", "price")]
    )
    for model, y, words in [
        (Ridge(), rows[["size", "price"]], "Ridge of several targets"),
        (DecisionTreeRegressor(), rows[["size", "price"]], "DecisionTreeRegressor of several targets"),
        (make_pipeline(weighted, Ridge()), rows["size"], "transformer_weights"),
    ]:
        assert words in exact.prove(model.fit(rows, y), "predict", rows)["reason"]
    assert exact.prove(make_pipeline(lone, Ridge()).fit(rows, rows["size"]), "predict", rows)["equal"]


def test_a_model_that_would_take_long_to_compile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_table(300, seed=3)[NUMBERS].fillna(0.0)
    monkeypatch.setattr(models, "MAX_NODES", 50)
    assert " of " in refuse(RandomForestClassifier(5), rows)
    monkeypatch.setattr(models, "MAX_NODES", 10**6)
    monkeypatch.setattr(models, "MAX_DEPTH", 3)
    assert refuse(RandomForestClassifier(5), rows) == "a tree deeper than 3"


def test_a_tree_as_deep_as_is_allowed_compiles() -> None:
    rows = pd.DataFrame({"x": np.arange(81.0)})
    model = DecisionTreeRegressor().fit(rows, 3.0 ** rows["x"])
    assert model.get_depth() == models.MAX_DEPTH
    assert exact.prove(model, method_of(model), rows)["equal"]


# --- the verdict -------------------------------------------------------------------------------------------------


def perturb_coefficient(model: Any) -> None:
    coef = model[-1].coef_
    coef[0, 1] = np.nextafter(coef[0, 1], 9.0)


def perturb_leaf(model: Any) -> None:
    nodes = model[-1]._predictors[3][0].nodes
    leaf = np.flatnonzero(nodes["is_leaf"])[0]
    nodes["value"][leaf] = np.nextafter(nodes["value"][leaf], 9.0)


@pytest.mark.parametrize(
    ("estimator", "perturb"),
    [(LogisticRegression(), perturb_coefficient), (HistGradientBoostingClassifier(max_iter=9), perturb_leaf)],
)
def test_a_model_that_was_changed_by_one_bit_is_caught(estimator: Any, perturb: Any) -> None:
    rows = make_table(300, seed=4)[NUMBERS].fillna(0.0)
    model = make_pipeline(StandardScaler(), estimator).fit(
        rows, make_targets(make_table(300, seed=4), np.random.default_rng(4))["two"]
    )
    verdict = exact.prove(model, method_of(model), rows)
    scorer = generate(model, method_of(model), dtypes_of(rows))
    assert check_exact(scorer, rows).is_equal
    perturb(model)
    assert check_exact(scorer, rows).n_different > 0
    assert exact.scorer_for(model, verdict) is None, "its source is another one"


def break_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget that scikit-learn's trees compare float32: wrong for neighbours of a threshold only."""
    monkeypatch.setattr(models, "float32_threshold", lambda threshold: threshold)


def break_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "literal", lambda value: f"{float(value):.15g}")


def break_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PREAMBLE", source.PREAMBLE.replace("return nan", "return 0.0"))


@pytest.mark.parametrize("break_it", [break_thresholds, break_numbers, break_missing])
def test_a_fault_of_the_generator_is_caught_and_the_pipeline_is_used(
    monkeypatch: pytest.MonkeyPatch, break_it: Any
) -> None:
    rows = make_table(300, seed=4)[["size", "weight"]]
    targets = make_targets(make_table(300, seed=4), np.random.default_rng(4))
    model = RandomForestClassifier(9).fit(rows, targets["two"])
    assert exact.prove(model, method_of(model), rows)["equal"]
    break_it(monkeypatch)
    verdict = exact.prove(model, method_of(model), rows)
    assert not verdict["equal"]
    assert "rows differ from the pipeline" in verdict["reason"]
    assert exact.scorer_for(model, verdict) is None


def test_a_generator_that_fails_keeps_no_model_from_being_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_table(300, seed=4)[["size", "weight"]].fillna(0.0)
    model = LinearRegression().fit(rows, rows["size"])
    monkeypatch.setattr(models, "_dense_scores", lambda *_: 1 / 0)
    assert exact.prove(model, method_of(model), rows) == {
        "equal": False,
        "reason": "ZeroDivisionError: division by zero",
    }


def test_rows_that_were_all_left_to_the_pipeline_prove_nothing() -> None:
    assert not Comparison(n_rows=0, n_declined=9, n_single=0, n_different=0).is_equal


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"versions": {"numpy": "1.0"}}, {"versions": None}, {"equal": False}]
)
def test_a_verdict_on_something_else_is_no_verdict(change: dict[str, Any]) -> None:
    rows = make_table(300, seed=4)[["size", "weight"]].fillna(0.0)
    model = LinearRegression().fit(rows, rows["size"])
    verdict = exact.prove(model, method_of(model), rows)
    assert exact.scorer_for(model, verdict) is not None
    assert exact.scorer_for(model, {**verdict, **change}) is None
    assert exact.scorer_for(model, {}) is None


# --- logged and loaded -------------------------------------------------------------------------------------------


def test_a_loaded_version_has_the_scorer_that_was_proven(registered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    release = registry.load_model(registered, 1)
    assert release.files.compiled["equal"]
    assert "source" not in release.files.compiled, "text from a store is never executed"
    scorer = exact.scorer_for(release.model, release.files.compiled)
    assert scorer is not None
    rows = data.read_labelled(registered, "p2")[release.features]
    assert check_exact(scorer, rows).n_different == 0
    assert json.loads(json.dumps(release.files.compiled)) == release.files.compiled


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (RandomForestClassifier(3, n_jobs=2), "n_jobs=2"),
        (GradientBoostingClassifier(n_estimators=3), "GradientBoostingClassifier"),
    ],
)
def test_a_model_without_a_scorer_is_logged_with_the_reason(project: Project, estimator: Any, words: str) -> None:
    rows = data.read_labelled(project, "p1")
    X, y = rows[list(FEATURES)], rows["broke"]
    model = make_model().set_params(logisticregression=estimator).fit(X, y)
    with tracking.start_run(project):
        logged = tracking.log_model(project, model, X)
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    verdict = json.loads((folder / model_files.COMPILED_FILE).read_text())
    assert not verdict["equal"]
    assert words in verdict["reason"]


# --- wide tables, and faults of the shortcut ---------------------------------------------------------------------


@pytest.mark.parametrize("n_columns", [10, 400, 1600])
def test_a_proof_looks_at_cells_in_proportion_to_columns(n_columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(1000, n_columns)), columns=[f"c{i}" for i in range(n_columns)])
    model = LogisticRegression().fit(X, X["c0"] > 0)
    seen: list[int] = []
    check = verdict.check_exact
    monkeypatch.setattr(verdict, "check_exact", lambda scorer, rows: (seen.append(rows.size), check(scorer, rows))[1])
    assert exact.prove(model, "predict_proba", X)["equal"]
    assert seen[0] <= 3 * max(verdict.MAX_CELLS, 50 * n_columns)


def test_each_edge_is_tried_in_a_wide_table_too() -> None:
    X = pd.DataFrame(np.ones((100, 800)), columns=[f"c{i}" for i in range(800)])
    model = LogisticRegression().fit(X, np.arange(100) % 2)
    scorer = verdict.generate(model, "predict_proba", dict.fromkeys(X, "float64"))
    cases = verdict.make_edge_cases(scorer, X)
    for column in cases:
        assert {1e29, -1e31 * -1, 5e-324} <= set(cases[column].dropna())
        assert cases[column].isna().any()


@pytest.mark.parametrize("fault", [RuntimeError("no"), MemoryError(), RecursionError(), KeyError("x")])
def test_no_fault_of_the_shortcut_keeps_a_model_from_being_proven_loaded_or_scored(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
    model = LogisticRegression().fit(X, [0, 0, 1, 1])
    proven = exact.prove(model, "predict_proba", X)
    scorer = exact.scorer_for(model, proven)
    assert scorer is not None

    def fail(*_: object, **__: object) -> Any:
        raise fault

    monkeypatch.setattr(type(scorer), "answer", fail)
    np.testing.assert_array_equal(scorer.predict_proba(X), model.predict_proba(X))
    for name in ("generate", "write_batches"):
        monkeypatch.setattr(verdict, name, fail)
        assert exact.prove(model, "predict_proba", X).get("batches", False) is False
        assert exact.batches_for(model, {**proven, "batches": True}) is None or name == "generate"
    assert exact.scorer_for(model, proven) is None
