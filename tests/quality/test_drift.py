from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from refusals import raises
from rounds import rounds, soak
from samples import COLUMNS, drift_of, table
from scipy import stats
from scipy.spatial import distance

from mlops_lib import errors, quality
from mlops_lib.quality.drift import compare_counts, compare_shares


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
    assert report.facts == {"n_rows": 2000, "n_rows_reference": 5000, "alarm_level": 1 / 365 / 14}


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


def test_batches_add_up_to_the_table_they_are_parts_of():
    frame = table(3000, seed=1, temp=np.random.default_rng(1).normal(70, 30, 3000))
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    counter = quality.DriftCounter(profile)
    for start in range(0, 3000, 700):
        counter.add(frame[start : start + 700])
    counter.add(frame[:0])
    pd.testing.assert_frame_equal(counter.measure(), quality.compute_drift(profile, frame), rtol=1e-12)
    assert repr(counter) == "DriftCounter(7 columns, 3,000 rows, 0 not compared)"


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (table(10).drop(columns="temp"), "the column is not in the table"),
        (table(10, temp="warm"), "it holds str where numbers were profiled"),
    ],
)
def test_one_batch_that_cannot_be_compared_is_enough_and_the_other_columns_go_on(batch, reason):
    counter = quality.DriftCounter(quality.build_profile(table(5000), columns=COLUMNS))
    for each in (table(2000, seed=1), batch, table(2000, seed=2)):
        counter.add(each)
    drift = counter.measure()
    assert drift.index[0] == "temp"
    assert drift.loc["temp", "largest_move"] == reason
    assert drift["psi"].notna().sum() == len(COLUMNS) - 1
    assert (drift["n_rows"] == 4010).all()


def test_a_batch_without_one_value_is_counted_as_missing_whatever_its_type():
    counter = quality.DriftCounter(quality.build_profile(pd.DataFrame({"x": [1.0, 2.0]}), columns=["x"]))
    counter.add(pd.DataFrame({"x": [1.0, 2.0]}))
    counter.add(pd.DataFrame({"x": [None, None]}, dtype=object))
    assert counter.measure().loc["x", "missing_share"] == 0.5


def test_without_a_batch_nothing_is_compared():
    drift = quality.DriftCounter(quality.build_profile(table(50), columns=COLUMNS)).measure()
    assert (drift["largest_move"] == "there are no rows").all()
    assert drift.index.tolist() == COLUMNS


def test_distances_are_those_of_scipy_on_the_same_values():
    before, now = np.repeat([1.0, 2.0, 5.0], [50, 30, 20]), np.repeat([1.0, 5.0, 9.0, -3.0], [30, 40, 20, 10])
    found = drift_of(before, now)
    assert found["ks"] == pytest.approx(stats.ks_2samp(before, now).statistic)
    assert found["wasserstein"] == pytest.approx(stats.wasserstein_distance(before, now) / 4)  # deciles: 1 and 5
    p, q = [0.5, 0.3, 0.2, 0, 0], [0.3, 0, 0.4, 0.2, 0.1]
    assert found["js"] == pytest.approx(distance.jensenshannon(p, q, base=2))
    gaps = drift_of([*before, np.nan, np.nan], [*now, *[np.nan] * 100])
    assert gaps[["ks", "wasserstein"]].tolist() == pytest.approx(found[["ks", "wasserstein"]].tolist())
    assert drift_of(["a"], ["b"])["js"] == 1


def test_distances_of_fine_numbers_are_near_to_those_of_scipy():
    rng = np.random.default_rng(0)
    before, now = rng.normal(0, 1, 20_000), rng.normal(0.4, 2, 20_000)
    found = drift_of(before, now)
    statistic = stats.ks_2samp(before, now).statistic
    assert statistic - 0.03 < found["ks"] <= statistic
    expected = stats.wasserstein_distance(before, now) / np.diff(np.quantile(before, [0.1, 0.9]))[0]
    assert found["wasserstein"] == pytest.approx(expected, rel=0.1)


def test_distances_that_have_no_answer_are_open():
    assert np.isnan(drift_of([0.0] * 95 + [1, 2, 3, 4, 5], [7.0] * 100)["wasserstein"])  # deciles: 0 and 0
    assert drift_of([0.0] * 95 + [1, 2, 3, 4, 5], [7.0] * 100)["ks"] == 1
    for before, now in (([np.nan], [1.0]), ([1.0], [np.nan]), (["a"], ["a"])):
        assert drift_of(before, now)[["ks", "wasserstein"]].isna().all()
    infinite = drift_of(range(100), [*range(99), np.inf])
    assert infinite["wasserstein"] == pytest.approx(0, abs=1e-3)
    assert drift_of([-1e308, 1e308, 0] * 5, [-1.5e308, 1.5e308, 0] * 5)["ks"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("hits", "n_rows", "hits_before", "n_before"),
    [(8, 100, 20, 2000), (0, 50, 2000, 20_000), (50, 50, 50, 50), (10, 100, 10, 100), (0, 50, 50, 50), (0, 9, 0, 9)],
)
def test_shares_are_compared_exactly(hits, n_rows, hits_before, n_before):
    dealt = stats.hypergeom(n_rows + n_before, hits + hits_before, n_rows)
    expected = min(1, 2 * min(dealt.cdf(hits), dealt.sf(hits - 1)))
    assert compare_shares(hits, n_rows, hits_before, n_before) == pytest.approx(expected)


def test_shares_of_millions_of_rows_are_compared_too():
    assert compare_shares(2_990_000, 30_000_000, 3_010_000, 30_000_000) == pytest.approx(7.55e-18, rel=0.01)
    assert compare_shares(3_000_000, 30_000_000, 3_000_000, 30_000_000) == 1


# Shares of the bins of skewed numbers, few categories, rare ones, with missing values, and mostly one value.
KINDS = {
    "skewed": [5e-5, *[0.1] * 9, 0.0999, 5e-5, 0],
    "few": [0.5, 0.3, 0.2, 0, 0],
    "rare": [0.6, 0.2, 0.1, 0.03, 0.02, 0.01, 0.005, 0.005, 0.01, 0.01, 0.01, 0, 0],
    "gaps": [0.2, 0.2, 0.2, 0.2, 0.15, 0.05],
    "mostly": [0, 0.93, *[0.007] * 10],
}


@soak
def test_without_drift_the_alarms_of_a_year_stay_within_the_budget():
    """Of 200 years, with limits of zero: all that stands between chance and an alarm is its level.

    Counts of rows drawn independently are multinomial, so that the counts are drawn instead of the rows.
    """
    periods, n_years, n_alarms, rng = rounds(few=52, many=365), 200, 0, np.random.default_rng(0)
    level = 1 / (periods * 2 * len(KINDS))
    for year in range(n_years):
        n_rows = (50, 100, 200, 300)[year % 4]
        for shares in KINDS.values():
            p = np.array(shares) / sum(shares)
            reference = rng.multinomial(20_000, p).astype(float)
            for counts in rng.multinomial(n_rows, p, periods).astype(float):
                n_alarms += compare_counts(counts, reference) < level
                n_alarms += compare_shares(counts[-1], n_rows, reference[-1], 20_000) < level
    assert 0.1 * n_years < n_alarms < n_years


def test_a_planted_shift_is_found_in_a_small_period_and_noise_is_not():
    profile = quality.build_profile(table(20_000), columns=COLUMNS)
    strict = {"max_psi": 0, "max_missing_change": 0}
    for seed in range(1, 40):
        assert check(profile, table(50, seed=seed), **strict).passed
    shifted = table(50, seed=1, temp=np.random.default_rng(1).normal(65, 10, 50), origin="LGA")
    shifted.loc[:25, "pressure"] = np.nan
    shifted.loc[:12, "dest"] = "Paris"
    report = check(profile, shifted)
    assert {row.name for row in report.failures} == {"temp", "origin", "pressure", "dest"}


def test_what_chance_explains_is_said_and_a_wider_budget_says_otherwise():
    profile = quality.build_profile(pd.DataFrame({"x": ["a", "b"] * 500}), columns=["x"])
    few = pd.DataFrame({"x": ["a"] * 15 + ["b"] * 4})
    report = check(profile, few)
    assert report.passed
    assert report.rows[0].reason == "chance explains it: p = 0.02, an alarm needs less than 0.0014"
    assert not check(profile, few, periods_a_year=12).passed
    assert check(profile, few, periods_a_year=12, alarms_a_year=0.1).passed


@pytest.mark.parametrize("settings", [{"alarms_a_year": 0}, {"alarms_a_year": float("nan")}, {"periods_a_year": 0}])
def test_a_budget_that_leaves_no_level_is_refused(settings):
    drift = quality.compute_drift(quality.build_profile(table(50), columns=COLUMNS), table(50))
    with raises(errors.QualityError, "alarms"):
        quality.check_drift(drift, **settings)


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
