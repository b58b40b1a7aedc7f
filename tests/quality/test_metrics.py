import numpy as np
import pandas as pd
import pytest
from refusals import raises
from samples import METRICS, classes, numbers, scored
from sklearn import metrics

from mlops_lib import errors, quality
from mlops_lib.quality import Metric, find_metric
from mlops_lib.task import binary, multiclass, regression


def test_metrics_are_those_of_scikit_learn_under_prefixed_keys():
    y, score = scored(500)
    found = quality.compute_metrics(y, score, prefix="val")
    expected = {
        "val_roc_auc": metrics.roc_auc_score(y, score),
        "val_average_precision": metrics.average_precision_score(y, score),
        "val_log_loss": metrics.log_loss(y, score),
        "val_brier": metrics.brier_score_loss(y, score),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    assert list(quality.compute_metrics(y, score)) == list(METRICS) == list(binary().metrics)
    assert all(metric.compute(y, score) == found[f"val_{name}"] for name, metric in METRICS.items())


def test_metrics_of_several_classes_are_those_of_scikit_learn_whatever_the_order_of_the_classes():
    task, y, score, _ = classes(500)
    names, predicted = np.array(task.classes), np.array(task.classes)[score.argmax(axis=1)]
    expected = {
        "accuracy": metrics.accuracy_score(y, predicted),
        "log_loss": metrics.log_loss(y, score[:, np.argsort(names)]),
        "f1_macro": metrics.f1_score(y, predicted, average="macro"),
        "roc_auc_ovr": metrics.roc_auc_score(y, score[:, np.argsort(names)], multi_class="ovr"),
    }
    assert quality.compute_metrics(y, score, task=task) == pytest.approx(expected, rel=1e-12)
    in_order = quality.compute_metrics(y, score[:, np.argsort(names)], task=multiclass())
    assert in_order == pytest.approx(expected, rel=1e-12)


def test_metrics_of_numbers_are_those_of_scikit_learn_and_the_mean_error_says_the_direction():
    task, y, predicted, _ = numbers(501)
    expected = {
        "mae": metrics.mean_absolute_error(y, predicted),
        "rmse": metrics.root_mean_squared_error(y, predicted),
        "r2": metrics.r2_score(y, predicted),
        "median_absolute_error": metrics.median_absolute_error(y, predicted),
        "mean_error": (predicted - y).mean(),
    }
    assert quality.compute_metrics(y, predicted, task=task) == pytest.approx(expected, rel=1e-12)
    perfect = quality.compute_metrics(y, y, task=task)
    assert perfect == {"mae": 0, "rmse": 0, "r2": 1, "median_absolute_error": 0, "mean_error": 0}


def test_metrics_of_classes_that_are_texts_are_those_of_zero_and_one():
    y, score = scored(500)
    texts = np.where(y == 1, "late", "on time")
    assert quality.compute_metrics(texts, score, task=binary("late")) == quality.compute_metrics(y, score)
    assert quality.compute_metrics(texts, 1 - score, task=binary("on time"))["roc_auc"] == pytest.approx(
        quality.compute_metrics(y, score)["roc_auc"]
    )


def test_a_class_that_no_row_has_counts_in_no_mean_over_classes():
    task, y, score, _ = classes(500)
    is_known = y != task.classes[2]
    found = quality.compute_metrics(y[is_known], score[is_known], task=task)
    areas = [metrics.roc_auc_score(y[is_known] == name, score[is_known, n]) for n, name in enumerate(task.classes[:2])]
    assert found["roc_auc_ovr"] == pytest.approx(np.mean(areas))


def test_each_metric_states_its_direction():
    better = {name: metric.greater_is_better for name, metric in METRICS.items()}
    assert better == {"roc_auc": True, "average_precision": True, "log_loss": False, "brier": False}
    y, poor = scored(2000, signal=0.5)
    _, good = scored(2000, signal=3)
    for metric in METRICS.values():
        assert (metric.compute(y, good) > metric.compute(y, poor)) == metric.greater_is_better


@pytest.mark.parametrize("kind", [list, pd.Series, np.array])
def test_labels_may_be_booleans_in_any_container(kind):
    y, score = scored(300)
    assert quality.compute_metrics(kind(y == 1), kind(score)) == quality.compute_metrics(y, score)
    assert quality.compute_metrics(pd.Series(y, dtype="Int64"), score) == quality.compute_metrics(y, score)


@pytest.mark.parametrize(
    ("y_true", "y_score", "error", "text"),
    [
        (
            [0, 1, 1],
            [0.1, 0.9],
            errors.QualityError,
            "There are 3 labels but 2 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [0, 1],
            [[0.9, 0.1], [0.2, 0.8]],
            errors.QualityError,
            "There are 2 labels but 4 scores. They are compared by position, so both must come from the same rows in "
            "the same order. Nothing was computed.",
        ),
        (
            [],
            [],
            errors.QualityError,
            "There are no rows in the labels and scores. At least one is needed. Nothing was computed.",
        ),
        (
            [0, 1, 1],
            [0.1, np.nan, np.inf],
            errors.QualityError,
            "2 of 3 scores are no probabilities; the first is nan at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1],
            [0.1, 1.2],
            errors.QualityError,
            "1 of 2 scores are no probabilities; the first is 1.2 at row 1. Scores are finite and within [0, 1], such "
            "as model.predict_proba(X)[:, 1]. Nothing was computed.",
        ),
        (
            [0, 1, np.nan, 2],
            [0.1, 0.9, 0.5, 0.5],
            errors.QualityError,
            "Labels hold nan, 2.0, but only 0 and 1 are known. Leave out rows without a label, or "
            "declare the project's task as what it is. Nothing was computed.",
        ),
        (
            ["late", "on time"],
            [0.1, 0.9],
            errors.QualityError,
            "Labels hold late, on time, but only 0 and 1 are known. Leave out rows without a "
            "label, or declare the project's task as what it is. Nothing was computed.",
        ),
        (
            [1, 1],
            [0.1, 0.9],
            errors.QualityError,
            "All 2 rows are of class 1, so ranking metrics have nothing to compare. Use a longer period or a larger "
            "slice. Nothing was computed.",
        ),
    ],
)
def test_what_has_no_answer_is_refused_by_name(y_true, y_score, error, text):
    with pytest.raises(error) as caught:
        quality.compute_metrics(y_true, y_score)
    assert str(caught.value) == text
    assert isinstance(caught.value, errors.MlopsError)
    with pytest.raises(error):
        quality.compute_interval(y_true, y_score)


# --- metrics by name


def test_a_metric_is_found_by_the_name_that_the_task_the_project_or_scikit_learn_gives_it():
    own = Metric("cost", lambda y, predicted: float((y != predicted).mean()), greater_is_better=False)
    assert find_metric(binary()).name == "roc_auc"
    assert find_metric(multiclass()).name == "accuracy"
    assert find_metric(regression()).name == "mae"
    assert find_metric(binary(), "cost", [own]) is own
    assert find_metric(binary(), own) is own
    for name, uses, greater in (
        ("balanced_accuracy_score", "prediction", True),
        ("zero_one_loss", "prediction", False),
        ("d2_brier_score", "score", True),
        ("roc_auc_score", "score", True),
        ("max_error", "prediction", False),
    ):
        found = find_metric(binary(), name)
        assert (found.uses, found.greater_is_better) == (uses, greater)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("matthews_corrcoef", "it does not say what it takes and what is better"),
        ("cohen_kappa_score", "it does not say what it takes and what is better"),
        ("auc", "it does not say what it takes and what is better"),
        ("get_scorer_names", "it does not say what it takes and what is better"),
        ("fbeta_score", "it needs beta"),
    ],
)
def test_a_function_of_scikit_learn_that_does_not_say_how_it_is_used_is_refused(name, text):
    with raises(errors.QualityError, "function") as caught:
        find_metric(binary(), name)
    assert str(caught.value) == (
        f"'{name}' of scikit-learn cannot be used by its name: {text}. Give the project a quality.Metric of it. "
        "Nothing was computed."
    )


@pytest.mark.parametrize("name", ["roc", "RocCurveDisplay", "f1_macro"])
def test_a_name_that_nothing_has_is_refused_with_the_names_that_are_known(name):
    own = Metric("cost", lambda y, predicted: 0.0, greater_is_better=False)
    with pytest.raises(errors.NotFoundError, match="Known are roc_auc, average_precision, log_loss, brier, cost"):
        find_metric(binary(), name, [own])


def test_a_function_gets_zero_and_one_of_two_classes_names_of_several_and_numbers():
    """The positive class is decided with the task's threshold; columns are handed over in the order of sorted names."""
    seen = []

    def record(y, given):
        seen.append((np.asarray(y).tolist(), np.asarray(given).tolist()))
        return 0.5

    predicting, scoring = (Metric("own", record, greater_is_better=True, uses=uses) for uses in ("prediction", "score"))
    late = binary("late", threshold=0.3)
    probabilities = [[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]
    for task, y, score in (
        (late, ["late", "on time"], [0.3, 0.2]),
        (multiclass("bca"), ["c", "b"], probabilities),
        (regression(), [1.5, 2], [1, 2.5]),
    ):
        quality.compute_metrics(y, score, task=task, metrics=(predicting, scoring))
    assert seen == [
        ([1, 0], [1, 0]),
        ([1, 0], [0.3, 0.2]),
        (["c", "b"], ["c", "b"]),
        (["c", "b"], [[0.1, 0.2, 0.7], [0.1, 0.6, 0.3]]),
        ([1.5, 2], [1, 2.5]),
        ([1.5, 2], [1, 2.5]),
    ]


def test_named_functions_give_what_scikit_learn_gives():
    task, y, score, _ = classes(300)
    predicted = np.array(task.classes)[score.argmax(axis=1)]
    found = quality.compute_metrics(y, score, task=task, metrics=["balanced_accuracy_score", "top_k_accuracy_score"])
    assert found["balanced_accuracy_score"] == metrics.balanced_accuracy_score(y, predicted)
    sorted_score = score[:, np.argsort(task.classes)]
    assert found["top_k_accuracy_score"] == metrics.top_k_accuracy_score(y, sorted_score)
    task, y, predicted, _ = numbers(300)
    found = quality.compute_metrics(y, predicted, task=task, metrics=["mean_pinball_loss"])
    assert found["mean_pinball_loss"] == metrics.mean_pinball_loss(y, predicted)


def test_a_function_that_has_no_answer_is_refused_with_its_own_reason():
    task, y, score, _ = classes(300)
    with pytest.raises(errors.QualityError, match="Metric 'f1_score' has no value on these 300 rows: Target"):
        quality.compute_metrics(y, score, task=task, metrics=["f1_score"])
    nan = Metric("own", lambda y, predicted: float("nan"), greater_is_better=True)
    with pytest.raises(errors.QualityError, match=r"Metric 'own' has no value on these 300 rows: it is nan\."):
        quality.compute_metrics(y, score, task=task, metrics=[nan])
    with pytest.raises(errors.QualityError, match=r"Metric 'r2' has no value on these 3 rows: every target is 2\."):
        quality.compute_metrics([2, 2, 2], [1, 2, 3], task=regression())


@pytest.mark.parametrize(
    ("task", "y_true", "y_score", "case", "text"),
    [
        (multiclass("abc"), ["a", "b"], [0.5, 0.5], "classes", "Scores have 1 columns, and the task has 3"),
        (multiclass("abc"), ["a", "b"], [[0.5, 0.5]] * 2, "classes", "Scores have 2 columns, and the task has 3"),
        (multiclass("abc"), ["a", "b"], [[0.5, 0.5, 0.5]] * 2, "scores", "2 of 2 scores"),
        (multiclass("abc"), ["a", "d"], [[0.2, 0.3, 0.5]] * 2, "labels", "Labels hold d, but only a and b and c"),
        (multiclass("abc"), ["a", "a"], [[0.2, 0.3, 0.5]] * 2, "one_class", "All 2 rows are of class a"),
        (multiclass("abc"), [], [], "no_rows", "no rows in the labels and scores"),
        (regression(), [1.0, np.nan], [1, 2], "labels", "Labels hold nan, but only finite numbers"),
        (regression(), [1.0, 2.0], [1, np.inf], "numbers", "the first is inf at row 1"),
        (regression(), [1.0, 2.0], [1], "lengths", "2 labels but 1 scores"),
        (binary("late"), ["late", "late"], [0.1, 0.2], "", "has the classes ('late',), needs 'late' and another one"),
        (multiclass(), ["a", "b"], [[0.5, 0.5]] * 2, "", "needs three or more"),
    ],
)
def test_what_has_no_answer_is_refused_for_every_task(task, y_true, y_score, case, text):
    for compute in (quality.compute_metrics, quality.compute_interval):
        with pytest.raises(errors.MlopsError) as caught:
            compute(y_true, y_score, task=task)
        assert caught.value.case == case
        assert text in str(caught.value)
