"""Quality without labels: what the estimate sees, what it cannot see, and what a model listens to."""

import numpy as np
import pandas as pd
import pytest
from refusals import raises
from samples import classes, numbers

from mlops_lib import errors, quality
from mlops_lib.quality import Calibration
from mlops_lib.task import binary, multiclass, regression


def drawn(n_rows, *, seed):
    """Return probabilities that are right, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(1, 3, n_rows)
    return probability, (rng.random(n_rows) < probability).astype(int)


def test_the_interval_holds_the_truth_at_its_stated_rate_where_scores_are_calibrated():
    n_held = dict.fromkeys(binary().metrics, 0)
    for seed in range(200):
        score, y = drawn(600, seed=seed)
        truth = quality.compute_metrics(y, score)
        estimated = quality.estimate_quality(binary(), score, random_state=seed)
        for name, interval in estimated.items():
            n_held[name] += interval.low <= truth[name] <= interval.high
    assert all(183 <= n <= 197 for n in n_held.values()), n_held  # of 190 expected: two standard errors


def test_several_classes_in_their_own_order_and_metrics_of_scikit_learn_are_estimated():
    task = multiclass(("b", "c", "a"))
    rng = np.random.default_rng(0)
    score = rng.dirichlet([2, 1, 0.5], 3000)
    y = np.array(task.classes)[[rng.choice(3, p=p) for p in score]]
    names = [*task.metrics, "balanced_accuracy_score"]
    estimated = quality.estimate_quality(task, score, names)
    truth = quality.compute_metrics(y, score, task=task, metrics=["balanced_accuracy_score"])
    assert list(estimated) == names
    for name, interval in estimated.items():
        assert interval.low <= truth[name] <= interval.high


def test_the_same_scores_give_the_same_estimate_and_another_seed_another():
    score, _ = drawn(500, seed=1)
    estimated = quality.estimate_quality(binary(), score)
    assert estimated == quality.estimate_quality(binary(), score)
    assert estimated != quality.estimate_quality(binary(), score, random_state=1)


def test_rows_that_are_harder_to_tell_apart_are_seen():
    score, _ = drawn(2000, seed=1)
    sure, unsure = (quality.estimate_quality(binary(), s, ["roc_auc"])["roc_auc"] for s in (score, 0.2 + 0.1 * score))
    assert unsure.high < sure.low


def test_a_world_that_changed_its_mind_is_not_seen():
    """Concept drift: the same rows have other labels, and nothing in the scores says so."""
    score, y = drawn(2000, seed=2)
    estimated = quality.estimate_quality(binary(), score)["roc_auc"]
    assert estimated.low <= quality.compute_metrics(y, score)["roc_auc"] <= estimated.high
    assert quality.compute_metrics(1 - y, score)["roc_auc"] < 0.5 < estimated.low


@pytest.mark.parametrize("bend", [lambda p: p**3, lambda p: 0.5 + p / 2, np.sqrt])
def test_a_calibration_learnt_from_labelled_rows_mends_scores_that_do_not_mean_what_they_say(bend):
    probability, y = drawn(20_000, seed=1)
    calibration = quality.fit_calibration(binary(), y, bend(probability))
    probability, y = drawn(4000, seed=2)
    score = bend(probability)
    truth = quality.compute_metrics(y, score)
    as_it_is = quality.estimate_quality(binary(), score)
    mended = quality.estimate_quality(binary(), score, calibration=calibration)
    for name in ("roc_auc", "log_loss", "brier"):
        assert not as_it_is[name].low <= truth[name] <= as_it_is[name].high
        assert abs(mended[name].value - truth[name]) < 1.5 * (mended[name].high - mended[name].value)


def test_a_calibration_rises_is_flat_beyond_its_ends_and_changes_nothing_of_other_tasks():
    score, y = drawn(500, seed=1)
    calibration = quality.fit_calibration(binary(), y, score**2)
    shares = calibration.apply(np.linspace(0, 1, 50))
    assert (np.diff(shares) >= 0).all()
    assert 0 <= shares[0] <= shares[-1] <= 1
    task, labels, several, _ = classes(100)
    assert quality.fit_calibration(task, labels, several) == Calibration()
    number, truth, predicted, _ = numbers(100)
    assert quality.fit_calibration(number, truth, predicted) == Calibration()
    assert Calibration().apply(score) is score
    with raises(errors.QualityError, "one_class"):
        quality.fit_calibration(binary(), [1, 1], [0.2, 0.9])


def test_days_that_differ_make_the_estimate_less_sure_and_a_few_days_none():
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(20), 100)
    score = rng.beta(1, rng.uniform(1, 9, 20)[days])
    alone = quality.estimate_quality(binary(), score)["brier"]
    together = quality.estimate_quality(binary(), score, clusters=days)["brier"]
    assert together.error > 1.4 * alone.error
    assert together.value == pytest.approx(alone.value, abs=2 * together.error)
    with raises(errors.TooFewRowsError, ""):
        quality.estimate_quality(binary(), score, clusters=days // 4)
    with raises(errors.QualityError, "lengths"):
        quality.estimate_quality(binary(), score, clusters=days[:-1])


def test_of_a_large_table_rows_are_taken_evenly():
    score = np.linspace(0, 1, 400_000)
    estimated = quality.estimate_quality(binary(), score, ["brier"], n_draws=10)["brier"]
    assert estimated.n_rows == 50_000
    assert estimated.value == pytest.approx((score * (1 - score)).mean(), rel=0.01)


def test_what_cannot_be_estimated_is_left_out():
    assert quality.estimate_quality(regression(), [1.0, 2.0]) == {}
    assert quality.estimate_quality(binary(), np.zeros(50)) == {}
    none = quality.Metric("none", lambda y, score: float("nan"), greater_is_better=True)
    assert list(quality.estimate_quality(binary(), [0.2, 0.8] * 20, ["brier", none])) == ["brier"]


def test_scores_that_are_none_are_refused():
    for score, case in (([0.2, 1.2], "scores"), ([], "no_rows")):
        with raises(errors.QualityError, case):
            quality.estimate_quality(binary(), score)


def listening(frame):
    """Return scores of a model that hears a clear signal, a faint one, and nothing else."""
    return 1 / (1 + np.exp(-(2 * frame["loud"] + 0.5 * frame["faint"])))


def features(n_rows=5000):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n_rows, 3)), columns=["deaf", "faint", "loud"], index=np.arange(n_rows) * 7)
    return frame.assign(text=rng.choice(["a", "b"], n_rows), constant=1)


def test_importance_is_what_the_scores_listen_to():
    names = ["deaf", "faint", "loud", "text", "constant"]
    frame = features()
    kept = frame.copy()
    importance = quality.measure_importance(listening, binary(), frame, names)
    assert importance.index.tolist() == names
    assert importance.sum() == pytest.approx(1)
    assert importance[["deaf", "text", "constant"]].tolist() == [0, 0, 0]
    assert importance["loud"] > 3 * importance["faint"] > 0
    pd.testing.assert_frame_equal(frame, kept)
    pd.testing.assert_series_equal(importance, quality.measure_importance(listening, binary(), frame, names))


def test_importance_of_several_classes_and_of_numbers_is_measured_on_their_scores():
    def two_of_three(frame):
        first = listening(frame).to_numpy()
        return np.column_stack([first, 1 - first, np.zeros(len(first))])

    frame, task = features(), multiclass(("a", "b", "c"))
    expected = quality.measure_importance(listening, binary(), frame, ["faint", "loud"])
    found = quality.measure_importance(two_of_three, task, frame, ["faint", "loud"])
    assert found.to_numpy() == pytest.approx(expected.to_numpy())
    sums = quality.measure_importance(
        lambda rows: 3 * rows["faint"] - rows["loud"], regression(), frame, ["faint", "loud"]
    )
    assert sums["faint"] == pytest.approx(0.75, abs=0.02)


def test_importance_of_what_nothing_moves_is_zero_and_of_nothing_is_refused():
    deaf = quality.measure_importance(lambda rows: np.full(len(rows), 0.5), binary(), features(), ["loud"])
    assert deaf.tolist() == [0]
    with raises(errors.QualityError, "columns"):
        quality.measure_importance(listening, binary(), features(), ["lound"])
    with raises(errors.QualityError, "no_rows"):
        quality.measure_importance(listening, binary(), features()[:0], ["loud"])
    with raises(errors.QualityError, "scores"):
        quality.measure_importance(lambda rows: rows["loud"], binary(), features(), ["loud"])
