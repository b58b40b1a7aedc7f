import numpy as np
import pandas as pd
import pytest
from refusals import raises
from samples import classes, numbers
from sklearn.metrics import roc_auc_score

from mlops_lib import errors, quality
from mlops_lib.quality import Limit


def predictions_and_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    score = np.clip(0.5 + 0.2 * (y - 0.5) + rng.normal(0, 0.2, 2000), 0, 1)
    predictions = pd.DataFrame({"id": range(2000), "score": score, "model_version": np.repeat([6, 7], 1000)})
    labels = pd.DataFrame({"id": range(2000), "is_late": y.astype(float)})
    return predictions, labels


def quality_of(predictions, labels, **settings):
    arguments = {"key": "id", "target": "is_late"} | settings
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
    assert live.loc[6, "roc_auc"] == pytest.approx(roc_auc_score(y, score))
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


def test_several_classes_are_measured_on_the_columns_that_were_written():
    task, y, score, _ = classes(600)
    predictions = pd.DataFrame({"id": range(600), "model_version": 3, **task.to_columns(score)})
    labels = pd.DataFrame({"id": range(600), "species": pd.Series(y, dtype="str")}).iloc[:500]
    live = quality_of(predictions, labels, target="species", task=task, metrics=["balanced_accuracy_score"])
    expected = quality.compute_metrics(y[:500], score[:500], task=task, metrics=["balanced_accuracy_score"])
    assert live.loc[3, list(expected)].to_dict() == pytest.approx(expected)
    right = (predictions["prediction"] == y)[:500].mean()
    found = live.loc[3, ["n_labelled", "mean_score", "right_share", "calibration_gap"]].tolist()
    assert found == pytest.approx([500, predictions["score"].mean(), right, predictions["score"][:500].mean() - right])
    with pytest.raises(errors.QualityError, match="Labels hold d, but only b and c and a are known"):
        quality_of(predictions, labels.assign(species="d"), target="species", task=task)
    with pytest.raises(errors.QualityError, match="The predictions lack score_c"):
        quality_of(predictions.drop(columns="score_c"), labels, target="species", task=task)


def test_numbers_are_measured_on_their_predictions_and_what_has_no_value_is_left_open():
    task, y, predicted, _ = numbers(600)
    versions = np.repeat([1, 2, 3], 200)
    y[200:400] = 7
    predictions = pd.DataFrame({"id": range(600), "model_version": versions, **task.to_columns(predicted)})
    labels = pd.DataFrame({"id": range(400), "price": y[:400]})
    live = quality_of(predictions, labels, target="price", task=task)
    expected = quality.compute_metrics(y[:200], predicted[:200], task=task)
    assert live.loc[1, list(expected)].to_dict() == pytest.approx(expected)
    assert live.loc[1, ["mean_prediction", "mean_target"]].tolist() == pytest.approx(
        [predicted[:200].mean(), y[:200].mean()]
    )
    assert live.loc[1, "calibration_gap"] == pytest.approx(expected["mean_error"])
    assert live.loc[2, "mae"] == pytest.approx(np.abs(predicted[200:400] - 7).mean())
    assert np.isnan(live.loc[2, "r2"])
    assert live.loc[3, "n_labelled"] == 0
    assert live.loc[3, [*expected, "mean_target", "calibration_gap"]].isna().all()


def test_check_fails_what_leaves_its_limits_and_waits_for_enough_labels():
    live = pd.DataFrame(
        {"n_labelled": [500, 500, 500, 50, 500, 500], "roc_auc": [0.71, 0.66, 0.6, 0.4, np.nan, 0.4]},
        index=pd.Index([3, 4, 5, 6, 7, 8], name="month"),
    )
    live["roc_auc_low"] = live["roc_auc"] - 0.03
    live["roc_auc_high"] = live["roc_auc"].where(live.index < 8) + 0.03
    report = quality.check_live_quality(live, limits={"roc_auc": Limit(low=0.68)})
    no_interval = "fewer than 10 clusters or 30 rows of a class, or none is known for it"
    assert [(row.name, row.status, row.reason) for row in report.rows] == [
        ("month 3: roc_auc", "passed", ""),
        ("month 4: roc_auc", "passed", ""),
        ("month 5: roc_auc", "failed", "its interval is 0.570 to 0.630 on 500 labels"),
        ("month 6: roc_auc", "not_applicable", "50 labels, needs 200"),
        ("month 7: roc_auc", "failed", "it has no value on 500 labels, such as where all are of one class"),
        ("month 8: roc_auc", "not_applicable", f"it has no interval on 500 labels: {no_interval}"),
    ]
    assert not report.passed
    assert quality.check_live_quality(live[:1], limits={"roc_auc": Limit(low=0.68)}).passed
    points = live.drop(columns=["roc_auc_low", "roc_auc_high"])
    statuses = {row.status for row in quality.check_live_quality(points[:3], limits={"roc_auc": Limit(0.68)}).rows}
    assert statuses == {"not_applicable"}


def by_day(n_days, *, signal=1.0, move=2.0):
    """Return predictions and labels of days that are more alike within than rows are: bad days and good ones."""
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(n_days), 2000 // n_days)
    y = rng.integers(0, 2, len(days))
    right = signal + rng.normal(0, move, n_days)[days]
    score = 1 / (1 + np.exp(-rng.normal(right * (y - 0.5), 1)))
    at = (
        pd.to_datetime("2013-05-01")
        + pd.to_timedelta(days, "D")
        + pd.to_timedelta(rng.integers(0, 86_400, len(days)), "s")
    )
    predictions = pd.DataFrame({"id": range(len(days)), "score": score, "model_version": 6, "at": at, "day": days})
    return predictions, pd.DataFrame({"id": range(len(days)), "is_late": y})


def test_rows_of_one_day_belong_together_and_make_intervals_as_wide_as_days_differ():
    predictions, labels = by_day(40)
    alone, together = quality_of(predictions, labels), quality_of(predictions, labels, clusters="at")
    pd.testing.assert_frame_equal(together, quality_of(predictions, labels, clusters="day"))
    width = {name: each["roc_auc_high"] - each["roc_auc_low"] for name, each in (("a", alone), ("t", together))}
    assert width["t"][6] > 3 * width["a"][6]
    interval = quality.compute_interval(labels["is_late"], predictions["score"], clusters=predictions["day"])
    assert together.loc[6, ["roc_auc_low", "roc_auc_high"]].tolist() == [interval.low, interval.high]
    narrow = quality_of(predictions, labels, clusters="at", confidence=0.5)
    assert narrow.loc[6, "roc_auc_high"] < together.loc[6, "roc_auc_high"]


def test_a_few_days_are_no_evidence_and_a_point_is_never_judged():
    predictions, labels = by_day(8, signal=-1)
    live = quality_of(predictions, labels, clusters="day")
    assert live.loc[6, "roc_auc"] < 0.5
    assert live[["roc_auc_low", "roc_auc_high"]].isna().all(axis=None)
    (row,) = quality.check_live_quality(live, limits={"roc_auc": Limit(low=0.5)}).rows
    assert row.status == "not_applicable"
    assert row.reason.startswith("it has no interval on 2000 labels: fewer than 10 clusters")


def test_the_calibration_gap_has_an_interval_and_is_held_to_a_limit_by_it():
    predictions, labels = by_day(40)
    wide, narrow = quality_of(predictions, labels, clusters="day"), quality_of(predictions, labels)
    limits = {"calibration_gap": Limit(-0.05, 0.05)}
    assert quality.check_live_quality(narrow, limits=limits).passed
    assert (
        narrow.loc[6, "calibration_gap_low"] < narrow.loc[6, "calibration_gap"] < narrow.loc[6, "calibration_gap_high"]
    )
    assert wide.loc[6, "calibration_gap"] == narrow.loc[6, "calibration_gap"]
    lower = predictions.assign(score=predictions["score"] / 2)
    assert quality.check_live_quality(quality_of(lower, labels), limits=limits).failures
    late = labels.assign(is_late=1)
    assert quality_of(predictions, late).loc[6, "calibration_gap"] == pytest.approx(predictions["score"].mean() - 1)


def test_clusters_and_confidence_that_are_none_are_refused():
    predictions, labels = predictions_and_labels()
    with pytest.raises(errors.QualityError, match="The predictions lack dya"):
        quality_of(predictions.assign(day=1), labels, clusters="dya")
    with raises(errors.QualityError, "confidence"):
        quality_of(predictions, labels, confidence=95)


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
    assert Limit(0.68).holds(0.6, 0.68)
    assert not Limit(0.68).holds(0.6, 0.67)
    assert not Limit(high=0.2).holds(0.21, 0.3)
    assert not Limit().holds(np.nan, np.nan)
