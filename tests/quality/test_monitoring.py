import json

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from refusals import raises
from sklearn.metrics import roc_auc_score

from mlops_lib import errors, quality
from mlops_lib.quality import Calibration, Limit, Profile


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def table(n_rows, *, seed=0, **columns):
    """Return numeric, mostly-zero, few-valued, boolean and text columns, some of them with missing values."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "temp": rng.normal(50, 10, n_rows),
            "rain": np.where(rng.random(n_rows) < 0.93, 0.0, rng.exponential(1, n_rows)),
            "hour": rng.integers(5, 23, n_rows),
            "origin": rng.choice(["JFK", "LGA", "EWR"], n_rows, p=[0.5, 0.3, 0.2]),
            "dest": rng.choice([f"D{i}" for i in range(60)], n_rows),
            "is_weekend": rng.random(n_rows) < 0.3,
            "pressure": np.where(rng.random(n_rows) < 0.1, np.nan, rng.normal(1015, 5, n_rows)),
        }
    )
    return frame.assign(**columns)


COLUMNS = ["temp", "rain", "hour", "origin", "dest", "is_weekend", "pressure"]


def drift_of(reference, current, **settings):
    """Return the drift of one column, given as two lists of values."""
    profile = quality.build_profile(pd.DataFrame({"x": reference}), columns=["x"], **settings)
    return quality.compute_drift(profile, pd.DataFrame({"x": current})).loc["x"]


# --- profiles


def test_profile_survives_json_unchanged():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict(), allow_nan=False))) == profile


def test_shares_of_every_column_add_up_with_the_missing_ones():
    profile = quality.build_profile(table(5000), columns=COLUMNS)
    assert profile.n_rows == 5000
    for column in profile.columns.values():
        assert sum(column.shares) + column.missing_share == pytest.approx(1)
    assert profile.columns["pressure"].missing_share == pytest.approx(0.1, abs=0.02)


def test_numeric_bins_hold_about_equal_shares_and_nothing_is_out_of_range():
    shares = quality.build_profile(table(5000), columns=["temp"]).columns["temp"].shares
    assert (shares[0], shares[-1]) == (0, 0)
    assert shares[1:-1] == pytest.approx([0.1] * 10, abs=0.001)


def test_the_table_it_was_built_from_has_no_drift():
    frame = table(5000, huge=np.r_[np.inf, -np.inf, np.arange(4998.0)], empty=None)
    profile = quality.build_profile(frame, columns=[*COLUMNS, "huge"])
    drift = quality.compute_drift(profile, frame)
    assert (drift["psi"] == 0).all()
    assert (drift["unseen_share"] == 0).all()


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int8", "float32", "boolean", "bool"])
def test_every_numeric_dtype_is_read_the_same(dtype):
    reference, current = pd.Series([0, 1, 1, 0]).astype(dtype), pd.Series([1, 1, 1, 0]).astype(dtype)
    assert drift_of(reference, current)["psi"] == drift_of([0, 1, 1, 0], [1, 1, 1, 0])["psi"]


def test_text_category_and_object_are_read_the_same():
    reference, current = ["a", "b", "b", None], ["a", "a", "c", None]
    expected = drift_of(pd.Series(reference, dtype="str"), pd.Series(current, dtype="str"))
    for dtype in ("object", "category"):
        assert drift_of(pd.Series(reference, dtype=dtype), pd.Series(current, dtype=dtype)).equals(expected)
    assert expected["unseen_share"] == 0.25


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            pd.to_datetime(["2013-01-01"]).as_unit("ns"),
            "Column 'x' cannot be profiled: it holds datetime64[ns], and numbers, booleans, texts and categories are "
            "known; derive one, such as the hour or weekday. No profile was built.",
        ),
        (
            [f"N{i}" for i in range(1001)],
            "Column 'x' cannot be profiled: it has 1001 distinct texts, at most 1000 are known; group them or leave it "
            "out. No profile was built.",
        ),
    ],
)
def test_columns_that_no_profile_can_describe_are_refused(values, text):
    with raises(errors.QualityError, "profile") as caught:
        quality.build_profile(pd.DataFrame({"x": values}), columns=["x"])
    assert str(caught.value) == text


def test_a_profile_needs_rows_and_the_columns_it_names():
    with pytest.raises(errors.QualityError, match="There are no rows in the reference data"):
        quality.build_profile(pd.DataFrame({"x": []}), columns=["x"])
    with raises(errors.QualityError, "columns") as caught:
        quality.build_profile(pd.DataFrame({"temp": [1]}), columns=["tmp"])
    assert str(caught.value) == (
        "The reference data lack tmp. They have temp. Did you mean 'temp'? Nothing was computed."
    )


# --- drift


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
    assert quality.check_drift(profile, table(2000, seed=1)).passed
    report = quality.check_drift(profile, table(2000, seed=1, hour=30))
    assert [row.name for row in report.failures] == ["hour"]
    assert report.failures[0].limit == "psi <= 0.25, missing ± 5 %"
    assert report.failures[0].reason == "above 22: 0 % -> 100 %"
    assert report.facts == {"n_rows": 2000, "n_rows_reference": 5000}


def test_check_fails_a_change_of_missing_values_that_hardly_moves_the_index():
    profile = quality.build_profile(table(5000), columns=["pressure"])
    current = table(5000, seed=1)
    current.loc[:420, "pressure"] = np.nan
    report = quality.check_drift(profile, current)
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
    report = quality.check_drift(profile, current)
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
        quality.check_drift(profile, table(n_rows, seed=seed + 1), max_psi=0, max_missing_change=0)
        for seed in range(n_rounds)
    ]
    n_alarms = sum(len(report.failures) for report in reports)
    assert n_alarms <= 0.01 * n_rounds * len(COLUMNS)


def test_chance_explains_a_large_index_of_a_small_sample_only():
    profile = quality.build_profile(table(20_000), columns=["temp"])
    few = [table(20, seed=seed) for seed in range(1, 11)]
    psi = [quality.compute_drift(profile, frame).loc["temp", "psi"] for frame in few]
    assert max(psi) > 0.25
    assert all(quality.check_drift(profile, frame).passed for frame in few)
    for n_rows in (50, 200, 2000):
        warmer = np.random.default_rng(5).normal(65, 10, n_rows)
        assert not quality.check_drift(profile, pd.DataFrame({"temp": warmer})).passed


# --- quality with late labels


def predictions_and_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    score = np.clip(0.5 + 0.2 * (y - 0.5) + rng.normal(0, 0.2, 2000), 0, 1)
    predictions = pd.DataFrame({"id": range(2000), "score": score, "model_version": np.repeat([6, 7], 1000)})
    labels = pd.DataFrame({"id": range(2000), "is_late": y.astype(float)})
    return predictions, labels


def quality_of(predictions, labels, **settings):
    arguments = {"key": "id", "target": "is_late", "metrics": {"roc_auc": roc_auc_score}} | settings
    return quality.compute_live_quality(predictions, labels, **arguments)


def test_late_labels_are_joined_by_key_whatever_their_order():
    predictions, labels = predictions_and_labels()
    labels.loc[labels["id"] < 100, "is_late"] = np.nan  # known to exist, not known how
    late = labels[labels["id"] < 1900].sample(frac=1, random_state=0)
    live = quality_of(predictions, late)
    assert live["n_scored"].to_dict() == {6: 1000, 7: 1000}
    assert live["n_labelled"].to_dict() == {6: 900, 7: 900}
    assert live["labelled_share"].tolist() == [0.9, 0.9]
    assert live["mean_score"].tolist() == pytest.approx(
        [predictions["score"][:1000].mean(), predictions["score"][1000:].mean()]
    )
    y, score = labels["is_late"][100:1000], predictions["score"][100:1000]
    assert live.loc[6, "positive_share"] == y.mean()
    assert live.loc[6, "calibration_gap"] == pytest.approx(score.mean() - y.mean())
    assert live.loc[6, "roc_auc"] == roc_auc_score(y, score)
    assert live.index.name == "model_version"


def test_quality_can_be_read_by_day_and_by_several_keys():
    predictions, labels = predictions_and_labels()
    predictions["day"] = pd.to_datetime("2013-05-01") + pd.to_timedelta(predictions["id"] % 3, "D")
    predictions["origin"] = labels["origin"] = "JFK"
    live = quality_of(predictions, labels, key=["origin", "id"], by="day")
    assert live.index.tolist() == list(pd.date_range("2013-05-01", periods=3))
    assert live["n_labelled"].sum() == 2000


def test_quality_is_unknown_but_listed_while_labels_are_missing_or_of_one_class():
    predictions, labels = predictions_and_labels()
    labels = labels[labels["id"] < 1000].assign(is_late=1)
    live = quality_of(predictions, labels)
    assert live["n_labelled"].to_dict() == {6: 1000, 7: 0}
    assert live["roc_auc"].isna().all()
    assert np.isnan(live.loc[7, "positive_share"])


def test_predictions_without_a_version_are_not_dropped():
    predictions, labels = predictions_and_labels()
    predictions["model_version"] = predictions["model_version"].astype(float).where(predictions["id"] >= 10)
    assert quality_of(predictions, labels)["n_scored"].sum() == 2000


@pytest.mark.parametrize("table_name", ["predictions", "labels"])
def test_a_key_that_names_two_rows_is_refused(table_name):
    tables = dict(zip(("predictions", "labels"), predictions_and_labels(), strict=True))
    tables[table_name] = pd.concat([tables[table_name], tables[table_name][41:43]])
    with raises(errors.QualityError, "keys") as caught:
        quality_of(**tables)
    assert str(caught.value) == (
        f"2 rows of the {table_name} repeat a key (id); the first is 41. One key must name one row, or rows are "
        "counted twice in the join. Nothing was computed."
    )


def test_tables_that_cannot_be_joined_are_refused():
    predictions, labels = predictions_and_labels()
    with raises(errors.QualityError, "columns") as caught:
        quality_of(predictions, labels, target="late")
    assert str(caught.value) == (
        "The labels lack late. They have id, is_late. Did you mean 'is_late'? Nothing was computed."
    )
    with pytest.raises(errors.QualityError, match="There are no rows in the predictions"):
        quality_of(predictions[:0], labels)
    with pytest.raises(errors.QualityError, match="the first is nan at row 3"):
        quality_of(predictions.assign(score=predictions["score"].where(predictions["id"] != 3)), labels)
    with pytest.raises(errors.QualityError, match=r"Labels hold 0.5, but only 0 and 1"):
        quality_of(predictions, labels.assign(is_late=0.5))


def test_check_fails_what_leaves_its_limits_and_waits_for_enough_labels():
    live = pd.DataFrame(
        {"n_labelled": [500, 500, 50, 500], "roc_auc": [0.71, 0.66, 0.40, np.nan]},
        index=pd.Index([4, 5, 6, 7], name="month"),
    )
    report = quality.check_live_quality(live, limits={"roc_auc": Limit(low=0.68)})
    assert [(row.name, row.status, row.reason) for row in report.rows] == [
        ("month 4: roc_auc", "passed", ""),
        ("month 5: roc_auc", "failed", "on 500 labels"),
        ("month 6: roc_auc", "not_applicable", "50 labels, needs 200"),
        ("month 7: roc_auc", "failed", "every one of 500 labels is of one class"),
    ]
    assert not report.passed
    assert quality.check_live_quality(live[:1], limits={"roc_auc": Limit(low=0.68)}).passed


def test_check_refuses_a_limit_on_what_was_not_computed():
    with pytest.raises(errors.QualityError, match=r"The qualities lack roc\. They have n_labelled, roc_auc"):
        quality.check_live_quality(pd.DataFrame({"n_labelled": [1], "roc_auc": [1]}), limits={"roc": Limit(low=0.5)})


def test_limits_read_as_ranges_and_include_their_ends():
    assert [str(limit) for limit in (Limit(0.68), Limit(high=0.2), Limit(-0.05, 0.05), Limit())] == [
        ">= 0.68",
        "<= 0.2",
        "-0.05 to 0.05",
        "any",
    ]
    assert Limit(0.68).holds(0.68)
    assert not Limit(0.68).holds(0.67)
    assert not Limit(high=0.2).holds(0.21)
    assert not Limit().holds(np.nan)


# --- quality without labels


def calibrated(n_rows, *, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    score = 1 / (1 + np.exp(-rng.normal(-1, spread, n_rows)))
    return (rng.random(n_rows) < score).astype(int), score


def test_estimate_is_right_when_scores_still_mean_what_they_meant():
    calibration = quality.fit_calibration(*calibrated(20_000))
    for spread in (0.5, 2.5):  # easier and harder rows, the same meaning of a score
        y, score = calibrated(20_000, seed=1, spread=spread)
        assert quality.estimate_roc_auc(calibration, score) == pytest.approx(roc_auc_score(y, score), abs=0.02)


def test_estimate_is_blind_to_a_change_of_what_scores_mean():
    calibration = quality.fit_calibration(*calibrated(20_000))
    y, score = calibrated(20_000, seed=1)
    reversed_truth = 1 - roc_auc_score(y, score)
    assert quality.estimate_roc_auc(calibration, score) > reversed_truth + 0.2


def test_calibration_rises_repairs_distorted_scores_and_survives_json():
    y, score = calibrated(20_000)
    calibration = quality.fit_calibration(y, score**3)  # says 0.125 where half are positive
    assert list(calibration.shares) == sorted(calibration.shares)
    assert np.interp(0.125, calibration.scores, calibration.shares) == pytest.approx(0.5, abs=0.06)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_calibration_is_the_isotonic_fit_of_scikit_learn():
    from sklearn.isotonic import IsotonicRegression

    y, score = calibrated(2000)
    score = score.round(2)
    ours = quality.fit_calibration(y, score)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(score, y)
    at = np.linspace(0, 1, 501)
    assert np.interp(at, ours.scores, ours.shares) == pytest.approx(theirs.predict(at))


@pytest.mark.parametrize(
    ("y_true", "y_score", "case"),
    [
        ([0, 1], [0.5], "lengths"),
        ([], [], "no_rows"),
        ([0, 1], [0.5, 2], "scores"),
        ([0, 2], [0.5, 0.6], "labels"),
        ([0, 0], [0.5, 0.6], "one_class"),
    ],
)
def test_calibration_refuses_what_it_cannot_learn_from(y_true, y_score, case):
    with raises(errors.QualityError, case):
        quality.fit_calibration(y_true, y_score)


def test_estimate_refuses_scores_that_promise_one_class_only():
    with pytest.raises(errors.QualityError, match="All 2 rows are of class 0"):
        quality.estimate_roc_auc(Calibration((0.0, 0.5, 1.0), (0.0, 0.0, 1.0)), [0.1, 0.2])
    with pytest.raises(errors.QualityError, match="There are no rows in the scores"):
        quality.estimate_roc_auc(Calibration((0.0, 1.0), (0.0, 1.0)), [])


# --- figures


def test_drift_figure_shows_limit_numbers_and_columns_that_were_not_compared():
    profile = quality.build_profile(table(2000), columns=COLUMNS)
    drift = quality.compute_drift(profile, table(2000, seed=1, hour=30).drop(columns="rain"))
    ax, given = quality.plot_drift(drift), plt.figure().subplots()
    assert quality.plot_drift(drift, ax=given) is given
    assert all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
    shown = [text.get_text() for text in ax.texts]
    assert shown[0] == "not compared: the column is not in the table"
    assert shown[1].startswith("… ")
    assert shown[1].endswith("above 22: 0 % -> 100 %")
    assert ax.get_legend().get_texts()[0].get_text() == "limit 0.25"
    ax.figure.draw_without_rendering()
    with pytest.raises(errors.QualityError, match="no rows in the measured drift"):
        quality.plot_drift(drift[:0])


def test_quality_figure_shows_the_estimate_beside_the_truth():
    live = pd.DataFrame({"roc_auc": [0.7, 0.6]}, index=pd.DatetimeIndex(["2013-05-01", "2013-05-02"], name="day"))
    estimated = pd.Series([0.69], index=live.index[:1])
    ax, given = (
        quality.plot_live_quality(live, estimated=estimated, limit=Limit(0.65, 0.9)),
        plt.figure().subplots(),
    )
    assert quality.plot_live_quality(live, ax=given) is given
    assert all((ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["from late labels", "estimated without labels", "limit 0.65", "limit 0.9"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2013-05-01", "2013-05-02"]
    ax.figure.draw_without_rendering()
    with pytest.raises(errors.QualityError, match=r"The qualities lack auc\. They have roc_auc"):
        quality.plot_live_quality(live, metric="auc")
