import json

import numpy as np
import pandas as pd
import pytest
from refusals import raises
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from mlops_lib import errors
from mlops_lib.task import METRICS, Task, binary, multiclass, regression

RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.normal(size=(120, 2)), columns=["a", "b"])
IS_LATE = (X["a"] + RNG.normal(size=120)).to_numpy() > 0
LATE = np.where(IS_LATE, "late", "on time")
SPECIES = np.array(["cat", "cow", "dog"])[np.digitize(X["a"], [-0.5, 0.5])]


def fit(estimator=None, y=LATE):
    return (estimator or LogisticRegression()).fit(X, y)


# --- what a task may be


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ranking",), "is none of binary, multiclass, regression"),
        (("binary",), "needs a positive class and a threshold where there are two classes, and only there"),
        (("binary", (), 1, 1.5), "has the threshold 1.5, needs one from 0 to 1"),
        (("binary", (), 1, float("nan")), "has the threshold nan, needs one from 0 to 1"),
        (("binary", ("a", "b", "c"), "a", 0.5), "has the classes ('a', 'b', 'c'), needs 'a' and another one"),
        (("binary", ("a", "b"), "c", 0.5), "has the classes ('a', 'b'), needs 'c' and another one"),
        (("binary", ("a", "a"), "a", 0.5), "has the classes ('a', 'a'), needs 'a' and another one"),
        (
            ("multiclass", (), "a", 0.5),
            "needs a positive class and a threshold where there are two classes, and only there",
        ),
        (
            ("regression", (), 1, 0.5),
            "needs a positive class and a threshold where there are two classes, and only there",
        ),
        (("multiclass", ("a", "b")), "has the classes ('a', 'b'), needs three or more"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(arguments, text):
    with pytest.raises(errors.TaskError) as caught:
        Task(*arguments)
    assert str(caught.value) == f"The task {arguments[0]!r} {text}. Nothing was logged or changed."


def test_a_task_names_its_metrics_and_method():
    assert [task.metrics[0] for task in (binary(), multiclass(), regression())] == ["roc_auc", "accuracy", "mae"]
    assert [task.metrics for task in (binary(), multiclass(), regression())] == list(METRICS.values())
    methods = [task.predict_method for task in (binary(), multiclass(), regression())]
    assert methods == ["predict_proba", "predict_proba", "predict"]


def test_two_classes_know_the_other_one_where_it_is_zero_or_named():
    assert binary().classes == (0, 1)
    assert binary(True).classes == (False, True)
    assert binary("late", negative="on time").negative == "on time"
    assert binary("late").negative is None
    assert binary("late").with_classes(np.array(["on time", "late"])).negative == "on time"


@pytest.mark.parametrize(
    "task", [binary(), binary("late", threshold=0.3), binary(True), multiclass("abc"), multiclass(), regression()]
)
def test_a_task_survives_json_unchanged(task):
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


# --- the model


def test_a_fitted_model_brings_its_classes():
    assert binary("late").fit_to(fit()).classes == ("late", "on time")
    assert binary().fit_to(fit(y=IS_LATE.astype(float))).classes == (0, 1)
    assert multiclass().fit_to(fit(y=SPECIES)).classes == ("cat", "cow", "dog")
    assert multiclass(("dog", "cat", "cow")).fit_to(fit(y=SPECIES)).classes == ("cat", "cow", "dog")
    assert regression().fit_to(fit(LinearRegression(), X["b"])) == regression()


@pytest.mark.parametrize(
    ("task", "model", "text"),
    [
        (binary(), fit(LinearRegression(), IS_LATE), "is no classifier, and the project's task is binary"),
        (regression(), fit(), "is a classifier, and the project's task is regression"),
        (regression(), DecisionTreeClassifier().fit(X, IS_LATE), "is a classifier"),
        (multiclass(), DecisionTreeClassifier().fit(X, np.column_stack([IS_LATE, LATE])), "has several outputs"),
        (binary("late"), fit(RidgeClassifier()), "gives no probabilities; wrap it in sklearn.calibration"),
        (binary("late"), fit(y=SPECIES), r"knows the classes \('cat', 'cow', 'dog'\), and the project's task is bin"),
        (multiclass(), fit(), r"knows the classes \('late', 'on time'\), and the project's task is multiclass"),
        (binary(), DummyClassifier().fit(X, np.ones(120)), r"knows the classes \(1.0,\), and the project's task"),
        (binary(), fit(), r"knows the classes \('late', 'on time'\), and the project's task has \(0, 1\)"),
        (binary("delayed"), fit(), r"knows the classes \('late', 'on time'\), and the positive one is 'delayed'"),
        (multiclass("abc"), fit(y=SPECIES), r"knows the classes .* the project's task has \('a', 'b', 'c'\)"),
    ],
)
def test_a_model_of_another_task_is_refused(task, model, text):
    with pytest.raises(errors.TaskError, match=f"The model {text}"):
        task.fit_to(model)


def test_several_numbers_at_once_are_refused():
    class TwoOutputs(LinearRegression):
        n_outputs_ = 2

    with pytest.raises(errors.TaskError, match="has several outputs; train one model for each"):
        regression().fit_to(fit(TwoOutputs(), X["b"]))


def test_a_models_own_threshold_counts_also_at_the_end_of_a_pipeline():
    fixed = fit(FixedThresholdClassifier(LogisticRegression(), threshold=0.7, pos_label="late"))
    assert binary("late", threshold=0.2).fit_to(fixed).threshold == 0.7
    at_end = fit(make_pipeline(StandardScaler(), FixedThresholdClassifier(LogisticRegression(), pos_label="late")))
    assert binary("late", threshold=0.2).fit_to(at_end).threshold == 0.5
    tuned = fit(TunedThresholdClassifierCV(LogisticRegression(), cv=2), IS_LATE.astype(int))
    assert binary().fit_to(tuned).threshold == pytest.approx(tuned.best_threshold_)
    scorer = make_scorer(f1_score, pos_label="late")
    tuned = fit(TunedThresholdClassifierCV(LogisticRegression(), cv=2, scoring=scorer))
    task = binary("late").fit_to(tuned)
    assert task.threshold == pytest.approx(tuned.best_threshold_)
    assert task.decide(task.predict(tuned, X)).tolist() == tuned.predict(X).tolist()
    with pytest.raises(errors.TaskError, match="not on the probability of 'on time'"):
        binary("on time").fit_to(tuned)
    frozen = FixedThresholdClassifier(FrozenEstimator(fit()), threshold=0.7, pos_label="late")
    assert binary("late").fit_to(fit(frozen)).threshold == 0.7
    assert binary("late", threshold=0.2).fit_to(fit(CalibratedClassifierCV())).threshold == 0.2


@pytest.mark.parametrize(
    "settings", [{"pos_label": "on time"}, {}, {"pos_label": "late", "response_method": "decision_function"}]
)
def test_a_threshold_on_something_else_than_the_positive_probability_is_refused(settings):
    model = fit(FixedThresholdClassifier(LogisticRegression(), threshold=0.1, **settings))
    with pytest.raises(errors.TaskError, match="has a threshold of its own that is not on the probability of 'late'"):
        binary("late").fit_to(model)


def test_scores_are_the_positive_probability_all_probabilities_or_the_number():
    model = fit()
    late, on_time = (binary(name).fit_to(model).predict(model, X) for name in ("late", "on time"))
    assert late.tolist() == model.predict_proba(X)[:, 0].tolist()
    assert on_time.tolist() == model.predict_proba(X)[:, 1].tolist()
    several = fit(y=SPECIES)
    assert multiclass().fit_to(several).predict(several, X).tolist() == several.predict_proba(X).tolist()
    line = fit(LinearRegression(), X["b"])
    assert regression().predict(line, X).tolist() == line.predict(X).tolist()


# --- what it predicts


def test_decisions_are_those_of_the_model_at_half_and_follow_the_threshold():
    model = fit()
    task = binary("late").fit_to(model)
    assert task.decide(task.predict(model, X)).tolist() == model.predict(X).tolist()
    assert binary("late", negative="on time", threshold=0.3).decide([0.3, 0.29]).tolist() == ["late", "on time"]
    several = fit(y=SPECIES)
    task = multiclass().fit_to(several)
    assert task.decide(task.predict(several, X)).tolist() == several.predict(X).tolist()
    assert regression().decide([1, 2.5]).tolist() == [1, 2.5]
    with pytest.raises(errors.TaskError, match="The task 'regression' has no classes to decide between"):
        regression().decide_codes([1, 2.5])


@pytest.mark.parametrize(
    ("task", "scores", "columns"),
    [
        (binary(), [0.2, 0.7], {"score": [0.2, 0.7], "prediction": [0, 1]}),
        (binary(True), [0.2, 0.7], {"score": [0.2, 0.7], "prediction": [False, True]}),
        (
            multiclass("abc"),
            [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]],
            {
                "prediction": ["a", "c"],
                "score": [0.5, 0.8],
                "score_a": [0.5, 0.1],
                "score_b": [0.3, 0.1],
                "score_c": [0.2, 0.8],
            },
        ),
        (regression(), [1.5, 2.0], {"prediction": [1.5, 2.0]}),
    ],
)
def test_columns_hold_what_was_predicted_and_give_the_scores_back(task, scores, columns):
    written = task.to_columns(scores)
    assert {name: values.tolist() for name, values in written.items()} == columns
    assert task.columns() == tuple(columns)
    assert task.from_columns(pd.DataFrame(written)).tolist() == scores
    assert set(task.score_columns) <= set(columns)


# --- what is true


@pytest.mark.parametrize(
    ("task", "labels", "codes"),
    [
        (binary(), [0, 1, 1], [0, 1, 1]),
        (binary(), [0.0, 1.0, True], [0, 1, 1]),
        (binary(True), pd.Series([True, False], dtype="boolean"), [1, 0]),
        (binary(), pd.Series([1, 0], dtype="Int64"), [1, 0]),
        (binary("late"), ["late", "on time"], [1, 0]),
        (binary("late", negative="on time"), pd.Series(["late", "late"], dtype="category"), [1, 1]),
        (binary("on time"), pd.Series(["late", "on time"], dtype="string"), [0, 1]),
        (multiclass("bca"), list("abc"), [2, 0, 1]),
        (multiclass(), [3, 1, 2.0, 1], [2, 0, 1, 0]),
        (multiclass(), pd.Series(["b", 10, 9, "a"]), [3, 1, 0, 2]),
        (regression(), pd.Series([1, 2], dtype="Int64"), [1.0, 2.0]),
        (regression(), ["1.5", 2], [1.5, 2.0]),
    ],
)
def test_labels_are_encoded_whatever_holds_them(task, labels, codes):
    assert task.encode(labels).tolist() == codes


@pytest.mark.parametrize(
    ("task", "labels", "text"),
    [
        (binary(), [0, 1, 2], "Labels hold 2, but only 0 and 1 are known."),
        (binary(), ["0", "1"], "Labels hold 0, 1, but only 0 and 1 are known."),
        (binary(), [0, np.nan], "Labels hold nan, but only 0 and 1 are known."),
        (binary("late", negative="on time"), ["late", None], "Labels hold nan, but only on time and late are known."),
        (multiclass("abc"), ["a", "d"], "Labels hold d, but only a and b and c are known."),
        (multiclass(), ["a", "b", "c", None], "Labels hold nan, but only a and b and c are known."),
        (regression(), [1, None], "Labels hold None, but only finite numbers are known."),
        (regression(), ["one", np.inf], "Labels hold one, inf, but only finite numbers are known."),
        (regression(), pd.Series([1, pd.NA], dtype="Int64"), "Labels hold nan, but only finite numbers are known."),
    ],
)
def test_labels_that_are_none_of_the_tasks_are_refused(task, labels, text):
    with raises(errors.QualityError, "labels") as caught:
        task.encode(labels)
    assert str(caught.value).startswith(text)


def test_scores_are_checked_against_the_shape_and_range_of_the_task():
    assert binary().check_scores(np.array([0, 1], dtype="float32"), 2).dtype == np.float64
    assert multiclass("abc").check_scores(pd.DataFrame([[0.2, 0.3, 0.5]]), 1).shape == (1, 3)
    assert regression().check_scores([-5, 1e9], 2).tolist() == [-5, 1e9]
    for task, scores, n_rows, case in (
        (binary(), ["0.9"], 1, "scores"),
        (binary(), [1.1], 1, "scores"),
        (binary(), [[0.1, 0.9]], 1, "lengths"),
        (binary(), [], 0, "no_rows"),
        (multiclass("abc"), [], 0, "no_rows"),
        (multiclass("abc"), [0.2], 1, "classes"),
        (multiclass("abc"), [[0.2, 0.8]], 1, "classes"),
        (multiclass("abc"), [[0.2, 0.2, 0.2]], 1, "scores"),
        (multiclass("abc"), [[0.2, 0.3, np.nan]], 1, "scores"),
        (multiclass("abc"), [["0.2", "0.3", "0.5"]], 1, "scores"),
        (regression(), [np.nan], 1, "numbers"),
        (regression(), ["1"], 1, "numbers"),
        (regression(), [1.0], 2, "lengths"),
    ):
        with raises(errors.QualityError, case):
            task.check_scores(scores, n_rows)
