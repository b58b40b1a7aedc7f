"""Boosted trees in batches: every row gets the pipeline's own bits, or the pipeline is asked."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from test_compiled import ENCODERS, NUMBERS, TEXT, WHOLE, make_table, make_targets, method_of, perturb_leaf

from mlops_lib.engines import exact
from mlops_lib.engines.exact import batches
from mlops_lib.engines.exact.scorer import generate
from mlops_lib.errors import NotExactError

BOOSTINGS = [
    ("two", HistGradientBoostingClassifier(max_iter=19, min_samples_leaf=3)),
    ("two", HistGradientBoostingClassifier(max_iter=9, min_samples_leaf=1, max_leaf_nodes=64)),
    ("two", HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=2, max_bins=3)),
    ("number", HistGradientBoostingRegressor(max_iter=17, loss="absolute_error")),
    ("number", HistGradientBoostingRegressor(max_iter=8, loss="gamma")),
    ("number", HistGradientBoostingRegressor(max_iter=5, loss="quantile", quantile=0.9, min_samples_leaf=1)),
]


def fit(estimator: Any, target: str, rows: pd.DataFrame, *, encoder: Any = ENCODERS[5], layout: int = 0) -> Any:
    """Return a fitted pipeline."""
    layouts: list[tuple[Any, ...]] = [
        (make_column_transformer((encoder, TEXT), remainder="passthrough", sparse_threshold=0),),
        (make_column_transformer(("passthrough", WHOLE), (encoder, [0]), (StandardScaler(), NUMBERS[::-1])),),
        (make_column_transformer((encoder, TEXT), ("drop", NUMBERS), ("passthrough", WHOLE), sparse_threshold=0), None),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = make_targets(rows, np.random.default_rng(1))
        return make_pipeline(*layouts[layout], estimator).fit(rows, targets[target])


def ask(model: Any, rows: pd.DataFrame) -> Any:
    return getattr(model, method_of(model))(rows)


@pytest.mark.filterwarnings("ignore:Found unknown categories")
@pytest.mark.parametrize("at", range(len(BOOSTINGS)))
@pytest.mark.parametrize("encoder", ENCODERS[4:], ids=lambda encoder: repr(encoder)[:24])
def test_rows_never_seen_get_the_pipelines_bits(monkeypatch: pytest.MonkeyPatch, at: int, encoder: Any) -> None:
    target, estimator = BOOSTINGS[at]
    rows = make_table(400, seed=at)
    model = fit(estimator, target, rows, encoder=encoder, layout=at % 3)
    fast = batches.write_batches(model, method_of(model))
    monkeypatch.setattr(batches, "BLOCK_ROWS", 97)
    later = make_table(500, seed=at + 100, unseen=True)
    later.loc[3:20, "weight"] = [math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e308] * 3
    for table in (rows, later, later.head(1)):
        try:
            expected = ask(model, table)
        except ValueError:
            with pytest.raises(ValueError, match=r"unknown categories|infinity"):
                fast.answer(table)
        else:
            assert fast.answer(table).tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_values_on_a_threshold_and_beside_it_get_the_pipelines_bits() -> None:
    rows = make_table(400, seed=2)[["size", "weight"]]
    model = fit_numbers(rows)
    scorer = generate(model, "predict_proba", {"size": "float64", "weight": "float64"})
    limits = np.array(scorer.thresholds["size"])
    values = np.concatenate([limits, np.nextafter(limits, np.inf), np.nextafter(limits, -np.inf), [np.nan, -0.0]])
    edges = pd.DataFrame({"size": values, "weight": np.resize(rows["weight"], len(values))})
    assert (
        batches.write_batches(model, method_of(model)).predict_proba(edges).tobytes()
        == model.predict_proba(edges).tobytes()
    )


@pytest.mark.parametrize(
    "thresholds",
    [
        [0.5],
        [-1e308, 1e308],
        [1.0, math.nextafter(1.0, 2), 2.0],
        [0.0, 5e-324],
        [1.0, 2.0, math.inf],
        [math.inf],
        [-math.inf, 0.0],
        np.arange(0.5, 255).tolist(),
        np.geomspace(1e-9, 1e9, 200).tolist(),
        np.unique(np.random.default_rng(0).normal(size=150)).tolist(),
    ],
    ids=lambda found: f"{len(found)} from {found[0]:.3g}",
)
def test_a_grid_finds_the_place_that_a_binary_search_finds(thresholds: list[float]) -> None:
    limits = np.array(thresholds)
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [
            *(limits, np.nextafter(limits, np.inf), np.nextafter(limits, -np.inf), rng.choice(limits, 99) + 0.25),
            *(rng.normal(size=1000) * 3, rng.uniform(-1, 1, 99) * 1e308, [0.0, -0.0, math.inf, -math.inf, 5e-324]),
        ]
    )
    assert (batches.Grid(limits).place(values) == np.searchsorted(limits, values)).all()
    assert batches.Grid(limits).place(np.array([math.nan])).tolist() == [len(limits) + 1]


def test_features_share_tables_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_table(400, seed=2)[["size", "weight"]]
    model = fit_numbers(rows)
    expected = model.predict_proba(rows).tobytes()
    for name, value, n_tables in (("TABLE_ROWS", 10**6, 1), ("MAX_TABLE_BYTES", 50_000, 2)):
        monkeypatch.setattr(batches, name, value)
        boosting = batches.Boosting(model)
        assert len(boosting._joins) == n_tables
        assert boosting.predict([rows["size"].to_numpy(), rows["weight"].to_numpy()], len(rows)).tobytes() == expected


def fit_numbers(rows: pd.DataFrame) -> Any:
    target = (rows["size"].fillna(9) + rows["weight"].isna() > 10).astype(int)
    return HistGradientBoostingClassifier(max_iter=15).fit(rows, target)


def test_a_verdict_holds_for_its_versions_and_model() -> None:
    rows = make_table(300, seed=4)
    model = fit(BOOSTINGS[0][1], "two", rows)
    verdict = exact.prove(model, method_of(model), rows)
    assert verdict["batches"]
    fast = exact.batches_for(model, verdict)
    assert fast is not None
    assert fast.answer(rows).tobytes() == ask(model, rows).tobytes()
    assert exact.batches_for(model, {**verdict, "versions": {"numpy": "1.0"}}) is None
    assert exact.batches_for(model, {**verdict, "batches": False}) is None
    assert exact.batches_for(model, {}) is None
    before = fast.answer(rows)
    perturb_leaf(model)
    changed = exact.batches_for(model, verdict)
    assert changed is not None
    assert changed.answer(rows).tobytes() == ask(model, rows).tobytes() != before.tobytes(), (
        "made from the model itself"
    )


def break_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.np, "greater", np.greater_equal)


def break_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.np, "putmask", lambda *_: None)


def break_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the trees of each group among themselves first: other roundings, and nothing else."""

    def add(boosting: Any, columns: Any, raw: Any) -> None:
        other = np.zeros(len(raw))
        _add(boosting, columns, other)
        raw += other

    _add = batches.Boosting._add
    monkeypatch.setattr(batches.Boosting, "_add", add)


@pytest.mark.parametrize("break_it", [break_side, break_missing, break_order])
def test_a_fault_is_caught_and_the_pipeline_is_used(monkeypatch: pytest.MonkeyPatch, break_it: Any) -> None:
    rows = make_table(300, seed=4)[["size", "weight"]]
    model = fit_numbers(rows)
    assert exact.prove(model, method_of(model), rows)["batches"]
    break_it(monkeypatch)
    verdict = exact.prove(model, method_of(model), rows)
    assert not verdict["batches"]
    assert exact.batches_for(model, verdict) is None


def test_what_has_no_faster_way_is_named() -> None:
    rows = make_table(600, seed=4)
    numbers, targets = rows[NUMBERS], make_targets(rows, np.random.default_rng(4))
    named = HistGradientBoostingClassifier(max_iter=5, categorical_features=["size"]).fit(
        numbers.assign(size=np.arange(600) % 5), targets["two"]
    )
    large = HistGradientBoostingRegressor(max_iter=5, max_leaf_nodes=None, min_samples_leaf=1).fit(
        numbers, targets["number"]
    )
    several = HistGradientBoostingClassifier(max_iter=2).fit(numbers, targets["three"])
    forest = RandomForestClassifier(2).fit(numbers, targets["two"])
    constant = HistGradientBoostingRegressor().fit(numbers.fillna(0) * 0, targets["number"])
    refused = {"native": named, "leaves": large, "several classes": several, "Forest": forest, "a split": constant}
    for words, model in refused.items():
        with pytest.raises(NotExactError, match=words):
            batches.write_batches(model, method_of(model))
    assert not exact.prove(large, method_of(large), numbers).get("batches")


def test_tables_too_large_for_the_cache_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_table(300, seed=4)[["size", "weight"]]
    monkeypatch.setattr(batches, "MAX_TABLE_BYTES", 1000)
    with pytest.raises(NotExactError, match="tables of"):
        batches.write_batches(fit_numbers(rows), "predict_proba")


def test_an_encoder_of_several_columns_for_a_category_is_asked_for_each_row() -> None:
    rows = make_table(300, seed=4)
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    model = fit(BOOSTINGS[0][1], "two", rows, encoder=encoder)
    assert batches.write_batches(model, method_of(model)).answer(rows).tobytes() == ask(model, rows).tobytes()
