import numpy as np
import pandas as pd
import pytest
import sklearn
from refusals import raises
from samples import METRICS, classes, numbers, scored
from scipy import stats
from sklearn import metrics

from mlops_lib import errors, quality
from mlops_lib.quality import Interval, Metric
from mlops_lib.task import binary, multiclass, regression


def weighted_metrics(kind):
    """Return scikit-learn's functions for the metrics of a task, of encoded truth, scores and ``sample_weight``."""
    if kind == "binary":
        return {
            "roc_auc": metrics.roc_auc_score,
            "average_precision": metrics.average_precision_score,
            "log_loss": metrics.log_loss,
            "brier": metrics.brier_score_loss,
        }
    if kind == "regression":
        return {
            "mae": metrics.mean_absolute_error,
            "rmse": metrics.root_mean_squared_error,
            "r2": metrics.r2_score,
            "mean_error": lambda y, score, sample_weight=None: np.average(score - y, weights=sample_weight),
        }
    return {
        "accuracy": lambda y, score, **weight: metrics.accuracy_score(y, score.argmax(axis=1), **weight),
        "log_loss": metrics.log_loss,
        "f1_macro": lambda y, score, **weight: metrics.f1_score(y, score.argmax(axis=1), average="macro", **weight),
        "roc_auc_ovr": lambda y, score, **weight: metrics.roc_auc_score(y, score, multi_class="ovr", **weight),
    }


def sample(kind, n_rows, *, decimals=None, **settings):
    """Return a task, labels as tables hold them, and the scores of a champion and a candidate."""
    if kind == "binary":
        y, champion = scored(n_rows, decimals=decimals, **settings)
        candidate = np.clip(champion + np.random.default_rng(3).normal(0, 0.1, n_rows), 0.02, 0.98)
        return binary(), y, champion, candidate
    task, y, champion, candidate = (classes if kind == "multiclass" else numbers)(n_rows, **settings)
    if kind == "multiclass" and decimals is not None:
        champion[:, 1:] = champion[:, 1:].round(decimals)
        champion[:, 0] = np.maximum(0, 1 - champion[:, 1:].sum(axis=1))
    return task, y, champion if kind == "multiclass" or decimals is None else champion.round(decimals), candidate


KINDS = ("binary", "multiclass", "regression")
WEIGHTED = [(kind, name) for kind in KINDS for name in weighted_metrics(kind)]


@pytest.mark.parametrize(("kind", "name"), WEIGHTED)
@pytest.mark.parametrize("decimals", [None, 1], ids=["distinct", "many ties"])
def test_influence_is_what_the_metric_changes_by_when_a_row_weighs_more(kind, name, decimals):
    task, labels, score, _ = sample(kind, 60, decimals=decimals)
    y, weighted = task.encode(labels), weighted_metrics(kind)[name]
    value, influence = quality.find_metric(task, name).influence(y, score)
    assert value == pytest.approx(weighted(y, score))
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    for row in range(60):
        more, less = np.ones(60), np.ones(60)
        more[row] += 1e-4
        less[row] -= 1e-4
        slope = (weighted(y, score, sample_weight=more) - weighted(y, score, sample_weight=less)) / 2e-4
        assert influence[row] == pytest.approx(60 * slope, rel=1e-5, abs=1e-6)


def test_log_loss_of_a_certain_and_wrong_score_is_that_of_scikit_learn():
    y, score = np.array([0, 1, 1]), np.array([1.0, 0.0, 1.0])
    assert METRICS["log_loss"].influence(y, score)[0] == pytest.approx(METRICS["log_loss"].compute(y, score))


@pytest.mark.parametrize(
    ("kind", "name"), [*WEIGHTED, ("regression", "median_absolute_error"), ("multiclass", "balanced_accuracy_score")]
)
def test_intervals_agree_with_the_paired_bootstrap(kind, name):
    """Efron & Tibshirani 1993, chapter 13: the same rows are drawn for both models."""
    task, labels, champion, candidate = sample(kind, 600)
    y, rng = task.encode(labels), np.random.default_rng(4)
    others = {
        "median_absolute_error": metrics.median_absolute_error,
        "balanced_accuracy_score": lambda y, score: metrics.balanced_accuracy_score(y, score.argmax(axis=1)),
    }
    metric = others.get(name) or quality.find_metric(task, name).compute
    drawn = []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(800):
            rows = rng.integers(len(y), size=len(y))
            drawn.append(metric(y[rows], candidate[rows]) - metric(y[rows], champion[rows]))
    found = quality.compute_paired_interval(labels, candidate, champion, name, task=task)
    # A hundred groups of rows know a standard error to 7 %, the sparsity of a median is known less well still.
    tolerance = 0.1 if name not in others else 0.25
    assert found.error == pytest.approx(np.std(drawn), rel=tolerance)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance * (high - low))


def without_influence(metric):
    """Return the same metric as a project would write it: intervals take the way by leaving out rows."""
    return Metric(metric.name, metric.compute, greater_is_better=metric.greater_is_better, uses="score")


@pytest.mark.parametrize("n_clusters", [None, 60, 500], ids=["rows", "clusters", "joined clusters"])
@pytest.mark.parametrize(("kind", "name"), [each for each in WEIGHTED if each[0] != "multiclass"])
def test_leaving_out_clusters_gives_the_errors_that_influences_give(kind, name, n_clusters):
    ratios = []
    for seed in range(6):
        task, y, champion, candidate = sample(kind, 3000, seed=seed)
        clusters = None if n_clusters is None else np.random.default_rng(seed).integers(n_clusters, size=3000)
        metric = quality.find_metric(task, name)
        fast, slow = (
            quality.compute_paired_interval(y, candidate, champion, each, task=task, clusters=clusters)
            for each in (metric, without_influence(metric))
        )
        assert slow.value == pytest.approx(fast.value, abs=1e-12)
        assert slow.degrees == (99 if n_clusters != 60 else 59)
        ratios.append(slow.error / fast.error)
    # Groups that are dealt at random know a standard error to 7 %, six samples of them to 3 %.
    assert np.mean(ratios) == pytest.approx(1, abs=0.03 if n_clusters == 60 else 0.09)


def test_leaving_out_clusters_serves_metrics_of_scikit_learn_on_classes_that_are_texts():
    task, y, champion, candidate = classes(4000)
    clusters = np.random.default_rng(0).integers(80, size=4000)
    named = Metric("f1", lambda y, predicted: metrics.f1_score(y, predicted, average="macro"), greater_is_better=True)
    fast, slow = (
        quality.compute_paired_interval(y, candidate, champion, metric, task=task, clusters=clusters)
        for metric in ("f1_macro", named)
    )
    assert slow.value == pytest.approx(fast.value)
    assert slow.error == pytest.approx(fast.error, rel=0.02)


@pytest.mark.parametrize("name", ["f1_macro", "f1 by leaving out", "median_absolute_error"])
def test_the_truth_lies_in_as_many_intervals_as_they_say(name):
    """Of clustered rows: what is true is measured on a sample a hundred times as large."""

    def draw(n_clusters, rng):
        of_cluster = rng.normal(0, 0.5, n_clusters)
        clusters = rng.integers(n_clusters, size=20 * n_clusters)
        noise = of_cluster[clusters] + rng.normal(size=len(clusters))
        if name == "median_absolute_error":
            return regression(), noise, np.zeros(len(noise)), clusters
        codes = rng.choice(3, len(clusters), p=[0.5, 0.3, 0.2])
        right = noise < 0.5
        predicted = np.where(right, codes, rng.integers(3, size=len(codes)))
        return multiclass(range(3)), codes, np.eye(3)[predicted], clusters

    metric = name
    if name == "f1 by leaving out":
        metric = without_influence(quality.find_metric(multiclass(), "f1_macro"))
    rng = np.random.default_rng(5)
    task, y, score, _ = draw(4000, rng)
    truth = quality.compute_metrics(y, score, task=task)["f1_macro" if task.is_classifier else name]
    n_rounds, n_covered = 200, 0
    for _ in range(n_rounds):
        task, y, score, clusters = draw(40, rng)
        found = quality.compute_interval(y, score, metric, task=task, clusters=clusters, confidence=0.9)
        n_covered += found.low <= truth <= found.high
    low, high = stats.binomtest(n_covered, n_rounds).proportion_ci(0.99, method="exact")
    assert low <= 0.9 <= high


def test_interval_holds_the_metric_of_all_rows_and_narrows_with_more_of_them():
    few, many = (quality.compute_interval(*scored(n)) for n in (300, 10_000))
    assert few.value == pytest.approx(METRICS["roc_auc"].compute(*scored(300)))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert (few.n_rows, few.confidence) == (300, 0.95)


def test_interval_agrees_with_the_known_standard_error_of_a_mean():
    y, score = scored(5000)
    losses = (y - score) ** 2
    found = quality.compute_interval(y, score, "brier")
    half = 1.96 * losses.std() / np.sqrt(len(y))
    assert (found.low, found.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.1 * half)


def test_rows_that_were_copied_tell_nothing_new_once_their_cluster_is_named():
    y, score = scored(400)
    copied = np.tile(np.arange(400), 5)
    once, naive, honest = (
        quality.compute_interval(y[rows], score[rows], clusters=clusters)
        for rows, clusters in ((np.arange(400), None), (copied, None), (copied, copied))
    )
    assert naive.error == pytest.approx(once.error / 5**0.5, rel=0.01)
    assert honest.error == pytest.approx(once.error, rel=1e-9)
    assert (honest.low, honest.high) == pytest.approx((once.low, once.high))


def test_clusters_of_one_row_each_are_no_clusters_and_few_clusters_widen_the_interval():
    y, score = scored(400)
    assert quality.compute_interval(y, score, clusters=np.arange(400)) == quality.compute_interval(y, score)
    few = quality.compute_interval(y, score, clusters=np.arange(400) % 10)
    assert (few.high - few.low) / few.error == pytest.approx(2 * 2.262, rel=1e-3)  # Student's t with 9 degrees


def test_clusters_are_compared_by_position_and_may_be_missing_dates_or_text():
    y, score = scored(400)
    days = pd.Series(pd.date_range("2020-01-01", periods=40)).repeat(10)
    by_day = quality.compute_interval(y, score, clusters=days)
    assert by_day == quality.compute_interval(y, score, clusters=days.dt.strftime("%d %b"))
    assert quality.compute_interval(y, score, clusters=days.where(days > days.min())) == by_day
    with pytest.raises(errors.QualityError, match="There are 400 labels but 3 clusters"):
        quality.compute_interval(y, score, clusters=[1, 2, 3])


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "n_clusters", "text"),
    [
        (29, 100, None, "There are 29 rows of class 1, and an interval needs 30."),
        (100, 29, None, "There are 29 rows of class 0, and an interval needs 30."),
        (100, 100, 9, "There are 9 clusters of rows, and an interval needs 10."),
    ],
)
def test_an_interval_of_too_few_rows_is_refused(n_positive, n_negative, n_clusters, text):
    """One positive on top of thirty negatives has an area of 1, and a bootstrap that says it is certain."""
    y = np.repeat([1, 0], [n_positive, n_negative])
    clusters = None if n_clusters is None else np.arange(len(y)) % n_clusters
    with pytest.raises(errors.TooFewRowsError, match=text):
        quality.compute_interval(y, np.linspace(0, 1, len(y)), clusters=clusters)


def test_paired_interval_is_narrower_than_either_and_zero_for_the_same_scores():
    y, champion = scored(2000)
    candidate = np.clip(champion + np.random.default_rng(3).normal(0, 0.01, len(y)), 0, 1)
    paired = quality.compute_paired_interval(y, candidate, champion)
    alone = quality.compute_interval(y, candidate)
    assert paired.high - paired.low < (alone.high - alone.low) / 5
    same = quality.compute_paired_interval(y, champion, champion)
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_intervals_need_rows_of_each_class_only_where_the_metric_does():
    task, y, score, _ = classes(200)
    rare = np.flatnonzero(y == "a")[:20]
    rows = np.concatenate([rare, np.flatnonzero(y != "a")])
    assert quality.compute_interval(y[rows], score[rows], task=task).n_rows == len(rows)
    for name in ("f1_macro", "balanced_accuracy_score", "log_loss", "roc_auc_ovr"):
        with pytest.raises(errors.TooFewRowsError, match="There are 20 rows of class a, and an interval needs 30"):
            quality.compute_interval(y[rows], score[rows], name, task=task)
    with pytest.raises(errors.TooFewRowsError, match="There are 29 rows, and an interval needs 30"):
        quality.compute_interval(y[:29], score[:29], task=task)
    with pytest.raises(errors.TooFewRowsError, match="There are 29 rows, and an interval needs 30"):
        quality.compute_interval(*numbers(29)[1:3], task=regression())


@pytest.mark.parametrize("name", METRICS)
def test_paired_interval_is_the_plain_difference_candidate_minus_champion(name):
    y, champion = scored(1000)
    _, candidate = scored(1000, signal=3)
    found = quality.compute_paired_interval(y, candidate, champion, name)
    metric = METRICS[name]
    assert found.value == pytest.approx(metric.compute(y, candidate) - metric.compute(y, champion))
    assert (found.low > 0) == metric.greater_is_better
    assert (found.high < 0) != metric.greater_is_better


def test_p_values_say_on_which_side_of_a_limit_the_value_certainly_is():
    found = Interval(0.60, 0.70, 0.80, 0.95, 1000, error=0.05, degrees=1000)
    assert found.p_below(0.70) == pytest.approx(0.5)
    assert found.p_below(0.80) == pytest.approx(0.023, abs=1e-3)
    assert found.p_above(0.60) == pytest.approx(0.023, abs=1e-3)
    certain = Interval(0.7, 0.7, 0.7, 0.95, 1000)
    assert [certain.p_below(limit) for limit in (0.6, 0.7, 0.8)] == [1, 1, 0]
    assert [certain.p_above(limit) for limit in (0.6, 0.7, 0.8)] == [0, 1, 1]


def test_interval_reads_as_value_and_range():
    assert str(Interval(0.7041, 0.7119, 0.72, 0.95, 28_000)) == "0.712 [0.704, 0.720]"


def test_unknown_metric_is_refused_with_the_nearest_name():
    with raises(errors.NotFoundError, "metric") as caught:
        quality.compute_interval([0, 1], [0.1, 0.9], "roc")
    assert str(caught.value) == (
        "There is no metric 'roc'. Known are roc_auc, average_precision, log_loss, brier. Did you mean 'roc_auc'? "
        "Nothing was computed."
    )


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_without_an_interval_is_refused(confidence):
    with raises(errors.QualityError, "confidence") as caught:
        quality.compute_interval(*scored(300), confidence=confidence)
    assert str(caught.value) == (
        f"No interval follows from confidence={confidence}. It lies between 0 and 1, such as 0.95. "
        "Nothing was computed."
    )
