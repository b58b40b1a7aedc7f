import numpy as np
import pandas as pd
import pytest
from refusals import raises
from samples import METRICS, classes, numbers, scored, sliced
from sklearn import metrics

from mlops_lib import errors, quality
from mlops_lib.task import binary, multiclass, regression


def test_slices_are_listed_worst_first_with_their_rows_and_intervals():
    y, _, poor, by = sliced()
    found = quality.compute_slices(y, poor, by)
    assert found["slice"].iloc[0] == "LGA"
    assert found["value"].is_monotonic_increasing
    assert found["n_rows"].tolist() == [800, 800, 800]
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    rows = (by["airport"] == "LGA").to_numpy()
    assert found.loc[0, "value"] == pytest.approx(METRICS["roc_auc"].compute(y[rows], poor[rows]))
    assert found.loc[0, "positive_share"] == y[rows].mean()


def test_slices_of_a_loss_put_the_largest_first():
    y, _, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, metric="log_loss")
    assert found["value"].is_monotonic_decreasing
    assert found["slice"].iloc[0] == "LGA"


def test_slices_with_a_champion_are_sorted_by_the_difference():
    y, good, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, y_champion=good)
    assert found["slice"].iloc[0] == "LGA"
    assert found.loc[0, "difference_high"] < 0
    assert (found.loc[1:, ["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    rows = (by["airport"] == "LGA").to_numpy()
    paired = quality.compute_paired_interval(y[rows], poor[rows], good[rows])
    assert (found.loc[0, "difference_low"], found.loc[0, "difference_high"]) == (paired.low, paired.high)


def test_slices_that_cannot_be_measured_are_listed_last_with_a_note():
    y, score = scored(900)
    by = pd.DataFrame({"kind": np.where(np.arange(900) < 10, "rare", "common")})
    by.loc[y == 1, "class"] = "only positives"
    found = quality.compute_slices(y, score, by).set_index("slice")
    assert found.index[0] == "common"
    assert found.loc["rare", "note"] == "fewer than 200 rows"
    assert found.loc["only positives", "note"] == "every label is 1"
    assert found.loc["missing", "note"] == "every label is 0"
    mixed = quality.compute_slices(
        y, score, pd.DataFrame({"a": np.where((y == 1).cumsum() > 20, "x", "y")}), min_rows=5
    )
    assert mixed.set_index("slice").loc["y", "note"] == "20 rows of class 1"
    assert found.loc[["rare", "only positives", "missing"], ["value", "low", "high"]].isna().all(axis=None)


def test_a_slice_does_not_depend_on_the_other_slices():
    y, _, poor, by = sliced()
    rows = (by["airport"] == "JFK").to_numpy()
    together = quality.compute_slices(y, poor, by).set_index("slice").loc["JFK"]
    alone = quality.compute_slices(y[rows], poor[rows], by[rows]).set_index("slice").loc["JFK"]
    assert together.equals(alone)


def test_whole_numbers_keep_their_name_when_some_are_missing():
    y, score = scored(600)
    by = pd.DataFrame({"hour": np.tile([7.0, 8.5, np.nan], 200)})
    assert set(quality.compute_slices(y, score, by)["slice"]) == {"7", "8.5", "missing"}


def test_slices_need_as_many_rows_as_labels():
    with pytest.raises(errors.QualityError, match="There are 2 labels but 1 rows to slice by"):
        quality.compute_slices([0, 1], [0.1, 0.9], pd.DataFrame({"a": [1]}))


def test_a_slice_is_called_worse_only_beyond_the_margin_and_after_correction_for_the_number_of_slices():
    y, good, poor, by = sliced()
    found = quality.compute_slices(y, poor, by, y_champion=good).set_index("slice")
    assert found.loc["LGA", "p_worse"] < 0.001
    assert (found.loc[["JFK", "EWR"], "p_worse"] == 1).all()
    loss = -found.loc["LGA", "difference"]
    tolerant = quality.compute_slices(y, poor, by, y_champion=good, margin=loss).set_index("slice")
    assert tolerant.loc["LGA", "p_worse"] == 1  # 0.5, three times
    more = by.assign(everything="all")
    assert quality.compute_slices(y, poor, more, y_champion=good).set_index("slice").loc[
        "LGA", "p_worse"
    ] == pytest.approx(found.loc["LGA", "p_worse"] * 4 / 3)


def test_holm_corrects_by_rank_and_leaves_out_what_was_not_measured():
    found = quality.adjust_holm([0.01, np.nan, 0.04, 0.03, 0.5])
    assert found[[0, 2, 3, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert np.isnan(found[1])
    assert quality.adjust_holm([0.9, 0.8]).tolist() == [1, 1]


# --- for every task


def test_slices_of_several_classes_and_of_numbers_are_worst_first_and_describe_their_target():
    task, y, score, champion = classes(1500)
    by = pd.DataFrame({"shop": np.tile(["x", "y", "z"], 500)})
    is_poor = (by["shop"] == "y").to_numpy()
    score[is_poor] = score[is_poor][::-1]
    found = quality.compute_slices(y, score, by, task=task, y_champion=champion)
    assert list(found.columns[:4]) == ["column", "slice", "n_rows", "value"]
    assert found["slice"].iloc[0] == "y"
    assert found.loc[0, "value"] == pytest.approx((y == np.array(task.classes)[score.argmax(axis=1)])[is_poor].mean())
    assert found["p_worse"].lt(0.05).tolist() == [True, False, False]

    task, y, predicted, champion = numbers(1500)
    predicted[is_poor] *= 1.5
    found = quality.compute_slices(y, predicted, by, task=task, y_champion=champion)
    assert found["slice"].iloc[0] == "y"
    assert found.loc[0, "value"] == pytest.approx(np.abs(predicted - y)[is_poor].mean())
    assert found.loc[0, "mean_target"] == pytest.approx(y[is_poor].mean())
    assert found["p_worse"].lt(0.05).tolist() == [True, False, False]


def test_slices_of_the_mean_error_are_furthest_from_zero_first_and_compare_no_models():
    task, y, predicted, champion = numbers(900)
    by = pd.DataFrame({"shop": np.tile(["low", "near", "high"], 300)})
    predicted = y + by["shop"].map({"low": -5, "near": 0.5, "high": 2}).to_numpy()
    found = quality.compute_slices(y, predicted, by, task=task, metric="mean_error")
    assert found["slice"].tolist() == ["low", "high", "near"]
    with raises(errors.QualityError, "no_direction"):
        quality.compute_slices(y, predicted, by, task=task, metric="mean_error", y_champion=champion)


def test_slices_take_any_metric_and_note_where_it_has_no_value():
    task, y, score, _ = classes(900)
    by = pd.DataFrame({"shop": np.tile(["x", "y", "z"], 300)})
    found = quality.compute_slices(y, score, by, task=task, metric="balanced_accuracy_score")
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    found = quality.compute_slices(y, score, by, task=task, metric="f1_score")
    assert found["value"].isna().all()
    assert found["note"].str.startswith("Target is multiclass").all()
    only = quality.compute_slices(y, score, pd.DataFrame({"class": y}), task=task)
    assert set(only["note"]) == {"every label is b", "every label is c", "fewer than 200 rows"}
    same = quality.compute_slices(np.r_[np.ones(300), np.arange(300.0)], np.ones(600), by[:600].assign(
        shop=np.repeat(["same", "all"], 300)), task=regression(), metric="r2")  # fmt: skip
    assert same.set_index("slice").loc["same", "note"] == "every target is 1"


def test_class_metrics_are_those_of_scikit_learn_one_row_a_class():
    task, y, score, _ = classes(600)
    predicted = np.array(task.classes)[score.argmax(axis=1)]
    found = quality.compute_class_metrics(y, score, task=task)
    assert found.index.tolist() == list(task.classes)
    expected = metrics.classification_report(y, predicted, output_dict=True)
    for name, row in found.iterrows():
        told = [expected[name][key] for key in ("support", "precision", "recall", "f1-score")]
        assert row[["n_rows", "precision", "recall", "f1"]].tolist() == pytest.approx(told)
        area = metrics.roc_auc_score(y == name, score[:, task.classes.index(name)])
        assert row["roc_auc"] == pytest.approx(area)


def test_class_metrics_of_two_classes_follow_the_threshold_and_leave_open_what_is_never_predicted():
    texts, score = np.array(["late"] * 50 + ["on time"] * 50), np.linspace(0.5, 0.1, 100)
    found = quality.compute_class_metrics(texts, score, task=binary("late", negative="on time", threshold=0.6))
    assert found.index.tolist() == ["on time", "late"]
    assert np.isnan(found.loc["late", "precision"])
    assert found.loc["late", ["recall", "roc_auc"]].tolist() == [0, 1]
    with pytest.raises(errors.TaskError, match="The task 'regression' has no classes"):
        quality.compute_class_metrics([1.0, 2.0], [1.0, 2.0], task=regression())


# --- groups of scores


def test_score_groups_of_honest_scores_have_no_gap_and_those_of_inflated_ones_do():
    rng = np.random.default_rng(0)
    score = rng.random(5000)
    y = (rng.random(5000) < score).astype(int)
    honest = quality.compute_score_groups(y, score)
    assert [len(honest), sum(group.gap.n_rows for group in honest)] == [5, 5000]
    assert all(group.gap.low < 0 < group.gap.high for group in honest)
    assert [group.low_score for group in honest] == sorted(group.low_score for group in honest)
    inflated = quality.compute_score_groups(y, np.minimum(score + 0.1, 1))
    assert all(group.gap.low > 0 for group in inflated[:4])
    assert inflated[0].gap.value == pytest.approx(inflated[0].mean_score - inflated[0].observed)


def test_a_group_without_a_positive_is_not_certain_for_that():
    score = np.r_[np.full(200, 0.01), np.full(200, 0.9)]
    y = np.r_[np.zeros(200), np.arange(200) < 180].astype(int)
    first = quality.compute_score_groups(y, score)[0]
    assert first.observed == 0
    assert first.gap.error == pytest.approx((0.01 * 0.99 / 200) ** 0.5)


def test_scores_that_are_all_the_same_are_one_group():
    y = np.arange(400) % 4 == 0
    (group,) = quality.compute_score_groups(y, np.full(400, 0.25))
    assert (group.gap.value, group.gap.n_rows) == (0, 400)


def test_score_groups_of_several_classes_hold_the_predicted_ones_score_against_how_often_it_is_right():
    rng = np.random.default_rng(0)
    score = rng.dirichlet([1, 1, 1], 5000)
    y = np.array(["a", "b", "c"])[(rng.random(5000)[:, None] > score.cumsum(axis=1)).sum(axis=1)]
    honest = quality.compute_score_groups(y, score, task=multiclass("abc"), confidence=0.999)
    assert all(group.gap.low < 0 < group.gap.high for group in honest)
    sharper = score**3 / (score**3).sum(axis=1, keepdims=True)
    boasting = quality.compute_score_groups(y, sharper, task=multiclass("abc"))
    assert all(group.gap.low > 0 for group in boasting)
    assert boasting[0].observed == pytest.approx(boasting[0].mean_score - boasting[0].gap.value)


def test_score_groups_of_numbers_show_the_bias_of_small_and_large_predictions():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, 5000)
    predicted = 50 + 0.8 * (truth - 50) + rng.normal(0, 1, 5000)
    groups = quality.compute_score_groups(truth, predicted, task=regression())
    assert [np.sign(group.gap.low) for group in groups[:2]] == [1, 1]
    assert [np.sign(group.gap.high) for group in groups[-2:]] == [-1, -1]
    assert groups[0].gap.value == pytest.approx(groups[0].mean_score - groups[0].observed)
    clusters = rng.integers(40, size=5000)
    assert quality.compute_score_groups(truth, predicted, task=regression(), clusters=clusters)[0].gap.degrees == 39
