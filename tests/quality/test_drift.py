from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from samples import COLUMNS, drift_of, table

from mlops_lib import errors, quality


def check(profile, frame, **limits):
    return quality.check_drift(quality.compute_drift(profile, frame), **limits)


def test_a_constant_column_that_changes_is_seen():
    found = drift_of([1] * 1000, [7] * 1000)
    assert found["psi"] > 1
    assert found["unseen_share"] == 1
    assert found["largest_move"] == "above 1: 0 % -> 100 %"


def test_a_mostly_constant_column_that_changes_is_seen():
    mostly_zero = [0.0] * 930 + list(np.linspace(0.1, 5, 70))
    found = drift_of(mostly_zero, [0.0] * 300 + list(np.linspace(0.1, 5, 700)))
    assert found["psi"] > 1
    assert found["largest_move"] == "0: 93 % -> 30 %"
    below = drift_of([*mostly_zero, -1.0], [-0.5] * 1000)
    assert below["psi"] > 1


def test_values_between_the_few_that_were_known_are_unseen():
    found = drift_of([1, 2, 3] * 100, [1, 2.5, 3] * 100)
    assert found["unseen_share"] == pytest.approx(1 / 3)
    assert found["psi"] > 1


def test_values_below_everything_seen_are_named():
    assert drift_of(np.linspace(0, 1, 1000), np.linspace(-3, -2, 1000))["largest_move"] == "below 0: 0 % -> 100 %"


def test_a_column_without_one_value_drifts_when_values_come():
    found = drift_of([np.nan] * 100, [1.0] * 100)
    assert found["psi"] > 1
    assert found["largest_move"] in ("any value: 0 % -> 100 %", "missing: 100 % -> 0 %")
    assert drift_of([1.0] * 100, [None] * 100)["missing_share"] == 1


def test_index_equals_the_formula_where_every_bin_is_filled():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    found = drift_of(
        np.repeat(["a", "b", "c"], (p * 100).astype(int)), np.repeat(["a", "b", "c"], (q * 100).astype(int))
    )
    assert found["psi"] == pytest.approx(((q - p) * np.log(q / p)).sum())


def test_rare_known_texts_are_no_surprise_but_new_ones_are():
    reference = [f"D{i}" for i in range(50)] * 20
    assert drift_of(reference, ["D0", "D49"] * 50)["unseen_share"] == 0
    found = drift_of(reference, ["Paris"] * 30 + reference[:70])
    assert found["unseen_share"] == pytest.approx(0.3)
    assert found["largest_move"] == "values never seen: 0 % -> 30 %"
    assert drift_of(reference, ["D0"] * 30 + reference[:70])["largest_move"] == "'D0': 2 % -> 32 %"


def test_drift_lists_the_columns_that_moved_furthest_first():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    current = table(2000, seed=1, temp=np.random.default_rng(1).normal(100, 10, 2000), origin="JFK")
    drift = quality.compute_drift(profile, current)
    assert drift["psi"].is_monotonic_decreasing
    assert set(drift.index[:2]) == {"temp", "origin"}
    assert drift.loc["temp", "largest_move"].startswith("above ")
    assert drift.loc["origin", "largest_move"] == "'JFK': 50 % -> 100 %"
    assert (drift["n_rows"] == 2000).all()


def test_check_passes_without_drift_and_fails_the_columns_that_moved():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    assert check(profile, table(2000, seed=1)).passed
    report = check(profile, table(2000, seed=1, hour=30))
    assert [row.name for row in report.failures] == ["hour"]
    assert report.failures[0].limit == "psi <= 0.25, missing ± 5 %"
    assert report.failures[0].reason == "above 22: 0 % -> 100 %"
    assert report.facts == {"n_rows": 2000, "n_rows_reference": 5000}


def test_check_fails_a_change_of_missing_values_that_hardly_moves_the_index():
    profile = quality.build_profile(table(5000), columns=["pressure"])
    current = table(5000, seed=1)
    current.loc[:420, "pressure"] = np.nan
    report = check(profile, current)
    assert report.rows[0].value < 0.25
    assert report.failures[0].reason.startswith("missing: 10 % -> 1")


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (pd.DataFrame({"y": [1]}), "the column is not in the table"),
        (pd.DataFrame({"x": []}), "there are no rows"),
        (pd.DataFrame({"x": ["1", "2"]}, dtype="object"), "it holds object where numbers were profiled"),
        (pd.DataFrame({"x": pd.to_datetime(["2013-01-01"])}), "where numbers were profiled"),
    ],
)
def test_a_column_that_cannot_be_compared_has_failed_with_a_reason(current, reason):
    profile = quality.build_profile(pd.DataFrame({"x": [1, 2, 3]}), columns=["x"])
    report = check(profile, current)
    assert not report.passed
    assert reason in report.failures[0].reason
    with pytest.raises(errors.ReportFailedError, match=r"x is not compared, needs psi <= 0\.25"):
        report.raise_for_failures()
    assert np.isnan(quality.compute_drift(profile, current).loc["x", "psi"])


@pytest.mark.parametrize(("n_rows", "n_rounds"), [(20, 60), (50, 60), (200, 60), (20_000, 10)])
def test_samples_without_drift_raise_no_alarm_however_small(n_rows, n_rounds):
    profile = quality.build_profile(table(20_000), columns=COLUMNS)
    # The strictest limits that may be asked for: all that is left is the allowance for chance.
    reports = [
        check(profile, table(n_rows, seed=seed + 1), max_psi=0, max_missing_change=0) for seed in range(n_rounds)
    ]
    n_alarms = sum(len(report.failures) for report in reports)
    assert n_alarms <= 0.01 * n_rounds * len(COLUMNS)


def test_chance_explains_a_large_index_of_a_small_sample_only():
    profile = quality.build_profile(table(20_000), columns=["temp"])
    few = [table(20, seed=seed) for seed in range(1, 11)]
    psi = [quality.compute_drift(profile, frame).loc["temp", "psi"] for frame in few]
    assert max(psi) > 0.25
    assert all(check(profile, frame).passed for frame in few)
    for n_rows in (50, 200, 2000):
        warmer = np.random.default_rng(5).normal(65, 10, n_rows)
        assert not check(profile, pd.DataFrame({"temp": warmer})).passed


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([True, None, False] * 50, dtype=object),
        pd.Series([Decimal("1.25"), None, Decimal("2.5")] * 50, dtype=object),
        pd.Series([True, None, False] * 50, dtype="boolean"),
        pd.Series([1, None, 2], dtype="Int8").repeat(50),
    ],
)
def test_numbers_and_booleans_with_gaps_are_profiled_and_compared_as_numbers(values):
    frame = pd.DataFrame({"x": values})
    profile = quality.build_profile(frame, columns=["x"])
    assert profile.columns["x"].kind == "numeric"
    assert profile.columns["x"].missing_share == pytest.approx(1 / 3)
    assert check(profile, frame).passed
    assert check(profile, frame.astype(object)).passed
