"""How good scores are likely to be while nobody knows the labels, and which features they hang on.

An estimate believes the probabilities: it sees that rows have become harder to tell apart, and does not see that the
world has changed its mind (concept drift), since no label says so. It stands beside live quality, never in its place.

>>> from mlops_lib.task import binary
>>> print(estimate_quality(binary(), [0.1, 0.9] * 500, ["brier"])["brier"])
0.089 [0.074, 0.104]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are first used: a command that looks at gates waits for none
from numpy.typing import ArrayLike

from mlops_lib.errors import QualityError, TooFewRowsError
from mlops_lib.quality.intervals import MIN_CLUSTERS, Interval, read_clusters
from mlops_lib.quality.metrics import Floats, Metric, Truth, find_metric, read_scores
from mlops_lib.quality.profiles import raise_for_columns
from mlops_lib.task import Task

MAX_ROWS = 50_000  # of larger tables as many are taken, evenly spread
MIN_DRAWS = 10  # with fewer draws that have a value a metric is left out


@dataclass(frozen=True)
class Calibration:
    """How often rows of a score turned out positive: a rising line from ``scores`` to ``shares``, flat beyond its ends.

    Without points it changes nothing.
    """

    scores: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def apply(self, y_score: Floats) -> Floats:
        """Return the probability that each score stands for."""
        return np.interp(y_score, self.scores, self.shares) if self.scores else y_score


def fit_calibration(task: Task, y_true: ArrayLike, y_score: ArrayLike) -> Calibration:
    """Learn from rows that have labels what scores stand for, so that estimates do not inherit a wrong calibration.

    Isotonic regression (Zadrozny & Elkan 2002, KDD) of two classes; of other tasks a calibration that changes nothing.

    Parameters
    ----------
    y_true, y_score, task
        As in :func:`mlops_lib.quality.compute_metrics`: rows that the model was not trained on.

    Raises
    ------
    QualityError
        For rows, labels and scores that are none.
    """
    task, y, score = read_scores(task, y_true, y_score)
    if task.kind != "binary":
        return Calibration()
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 - 0.7 s

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, y)
    return Calibration(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def estimate_quality(
    task: Task,
    y_score: ArrayLike,
    metrics: Iterable[str | Metric] | None = None,
    *,
    clusters: ArrayLike | None = None,
    calibration: Calibration = Calibration(),
    n_draws: int = 50,
    random_state: int = 0,
) -> dict[str, Interval]:
    """Estimate metrics without labels: what they would be if each row's label were drawn by its own probabilities.

    Confidence-based performance estimation (Kivimäki, Białek & Kuberski 2025, "Performance Estimation in Binary
    Classification Using Calibrated Confidence", arXiv:2505.05295), by drawing labels, so that it holds for any metric.

    Parameters
    ----------
    task : Task
        With its classes.
    y_score : array-like of shape (n_rows,) or (n_rows, n_classes)
    metrics : iterable of str or Metric, optional
        Those of the task by default; see :func:`mlops_lib.quality.find_metric`.
    clusters : array-like of shape (n_rows,), optional
        Which rows belong together. Each draw then takes as many clusters with replacement, and the interval speaks of
        other clusters like these; without it of the labels of these very rows.
    calibration : Calibration
        What scores stand for; labels are drawn by it, metrics measured on the scores as they are.
    n_draws : int
        At least ``MIN_DRAWS``.
    random_state : int

    Returns
    -------
    dict of str to Interval
        By metric: the mean of the draws, and where the metric lies with a confidence of 95 % once labels have come, if
        the probabilities are right. A metric without a value in ``MIN_DRAWS`` draws, such as where all labels are of
        one class, is left out. Of numbers it is empty: a predicted number does not say how wrong it may be, so nothing
        can be estimated.

    Raises
    ------
    QualityError, TooFewRowsError
        For no rows, scores that are none, and too few clusters.
    """
    score = task.check_scores(y_score, len(np.asarray(y_score)))
    if not task.is_classifier:
        return {}
    rows = _spread(len(score), MAX_ROWS)
    codes = read_clusters(clusters, len(score))
    members = None if codes is None else _group_rows(codes[rows])
    if members is not None and len(members) < MIN_CLUSTERS:
        raise TooFewRowsError(n_rows=len(members), what="clusters of rows", needed=MIN_CLUSTERS)
    score, everything, rng = score[rows], np.arange(len(rows)), np.random.default_rng(random_state)
    probability = calibration.apply(score) if task.kind == "binary" else score
    chosen = [find_metric(task, name) for name in (task.metrics if metrics is None else metrics)]
    values: dict[str, list[float]] = {metric.name: [] for metric in chosen}
    for _ in range(n_draws):
        taken = everything
        if members is not None:
            taken = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        y, drawn = _draw_labels(rng, probability[taken]), score[taken]
        for metric in chosen if y.min() < y.max() else ():
            try:
                values[metric.name].append(metric.measure(task, y, drawn))
            except QualityError:  # it has no value on these labels
                continue
    return {name: _spread_of(found, len(score)) for name, found in values.items() if len(found) >= MIN_DRAWS}


def _spread(n_rows: int, n_most: int) -> Truth:
    """Return the positions of at most so many rows, evenly spread."""
    return np.arange(n_rows) if n_rows <= n_most else np.linspace(0, n_rows - 1, n_most).astype(np.intp)


def _group_rows(codes: Truth) -> list[Truth]:
    """Return the positions of the rows of each cluster."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _draw_labels(rng: np.random.Generator, probability: Floats) -> Truth:
    """Return the code of a class for each row."""
    uniform = rng.random(len(probability))
    if probability.ndim == 1:
        return (uniform < probability).astype(np.int64)
    upper = np.cumsum(probability[:, :-1], axis=1)  # rows may add up to a little less than one
    return np.asarray((uniform[:, None] >= upper).sum(axis=1))


def _spread_of(values: Sequence[float], n_rows: int) -> Interval:
    n_draws, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1) * np.sqrt(1 + 1 / n_draws))  # of one more draw around the mean of these
    half = error * float(scipy.special.stdtrit(n_draws - 1, 0.975))
    return Interval(mean - half, mean, mean + half, 0.95, n_rows, error, n_draws - 1)


def measure_importance(
    predict: Callable[[pd.DataFrame], ArrayLike],
    task: Task,
    frame: pd.DataFrame,
    features: Sequence[str],
    *,
    n_rows: int = 2000,
    random_state: int = 0,
) -> pd.Series[float]:
    """Measure how much scores move when one feature's values are shuffled among rows; no labels are needed.

    Permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019, JMLR 20) of the *scores*, not of their quality:
    what the model listens to, whether it does well by it or not, and not what causes the target. Features that say the
    same share what they have or hide each other, and a shuffled row may be one that cannot exist.

    Parameters
    ----------
    predict : function of DataFrame to scores
        As :mod:`mlops_lib.task` describes them.
    task : Task
    frame : DataFrame
        With all that ``predict`` needs.
    features : sequence of str
        Those that are shuffled.
    n_rows : int
        Of larger tables as many rows are taken, evenly spread.
    random_state : int

    Returns
    -------
    Series
        Indexed by feature in the order given: the mean absolute change of the score (of several classes half the sum
        over the classes), scaled to the sum 1; all zero where nothing moves.

    Raises
    ------
    QualityError
        For columns that are missing, no rows, and scores that are none.
    """
    raise_for_columns("rows", frame, features)
    if frame.empty:
        raise QualityError("no_rows", what="the table")
    sample, rng = frame.iloc[_spread(len(frame), n_rows)], np.random.default_rng(random_state)
    score = task.check_scores(predict(sample), len(sample))
    moves = []
    for feature in features:
        shuffled = sample[feature].iloc[rng.permutation(len(sample))].set_axis(sample.index)
        moved = np.abs(task.check_scores(predict(sample.assign(**{feature: shuffled})), len(sample)) - score)
        moves.append(float(moved.mean() if moved.ndim == 1 else moved.sum(axis=1).mean() / 2))
    importance = pd.Series(moves, index=list(features), dtype=np.float64, name="importance")
    return importance / importance.sum() if importance.sum() else importance
