"""How sure are we of a metric, and of the difference between two models on the same rows.

Intervals come from each row's influence on the metric: what the metric would change if that row weighed a little more
(the infinitesimal jackknife, Jaeckel 1972; for ROC AUC it is DeLong, DeLong & Clarke-Pearson 1988). They agree with the
bootstrap, take one pass over the rows, and have no seed that could be tried again until it fits. Rows that belong
together (flights of one day, visits of one patient) are named with ``clusters``: their influences are added up before
they are compared, as in cluster-robust standard errors. To leave that out makes intervals far too narrow.

A metric whose influence is not known is computed again without each cluster in turn (the delete-one-cluster jackknife,
Tukey 1958; MacKinnon, Nielsen & Webb 2023), without clusters without each of 100 groups of rows. That is right for
whatever changes smoothly with its rows; of a median or another quantile such intervals are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy  # its parts are loaded when they are first used: a command that looks at gates waits for none
from numpy.typing import ArrayLike, NDArray

from mlops_lib.errors import QualityError, TooFewRowsError
from mlops_lib.quality.metrics import Floats, Metric, Truth, find_metric, read_scores
from mlops_lib.task import MIN_PER_CLASS, MIN_ROWS, Task, binary

Codes = NDArray[np.intp]

MIN_CLUSTERS = 10  # with fewer an interval is not to be trusted (benchmarks: gates)
N_GROUPS = 100  # rows, or clusters where there are more than twice as many, are left out in so many groups


@dataclass(frozen=True)
class Interval:
    """A value, its standard error and the range that it would be found in again.

    Parameters
    ----------
    low, value, high : float
        In the metric's unit; not cut off at its bounds.
    confidence : float in (0, 1)
        Two-sided: each end is crossed with probability ``(1 - confidence) / 2``.
    n_rows : int
    error : float
        Standard error of ``value``.
    degrees : float
        Degrees of freedom of Student's t: independent units (rows, clusters or groups of them) less one.

    >>> print(Interval(low=0.704, value=0.712, high=0.72, confidence=0.95, n_rows=28000))
    0.712 [0.704, 0.720]
    """

    low: float
    value: float
    high: float
    confidence: float
    n_rows: int
    error: float = 0.0
    degrees: float = math.inf

    def __str__(self) -> str:
        """Return ``value [low, high]`` with three decimals."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def p_below(self, limit: float) -> float:
        """Return the one-sided p-value of "the true value is below ``limit``": small when it certainly is."""
        if self.error == 0:
            return float(self.value >= limit)
        return float(scipy.special.stdtr(self.degrees, (self.value - limit) / self.error))

    def p_above(self, limit: float) -> float:
        """Return the one-sided p-value of "the true value is above ``limit``"."""
        return float(self.value <= limit) if self.error == 0 else 1 - self.p_below(limit)


def compute_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    metric: str | Metric | None = None,
    *,
    task: Task = binary(),
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Compute a metric with the interval that follows from what each row does to it.

    Parameters
    ----------
    y_true, y_score, task
        As in :func:`mlops_lib.quality.compute_metrics`.
    metric : str or Metric, optional
        See :func:`mlops_lib.quality.find_metric`; the task's leading metric by default.
    clusters : array-like of shape (n_rows,), optional
        Which rows belong together, such as the day of each flight. Without it every row counts as independent.
    confidence : float in (0, 1)

    Raises
    ------
    NotFoundError, QualityError, TooFewRowsError
        And the errors of :func:`mlops_lib.quality.compute_metrics`.
    """
    chosen = find_metric(task, metric)
    task, y, score = read_scores(task, y_true, y_score)
    return estimate(chosen, task, y, [score], codes=read_clusters(clusters, len(y)), confidence=confidence)


def compute_paired_interval(
    y_true: ArrayLike,
    y_candidate: ArrayLike,
    y_champion: ArrayLike,
    metric: str | Metric | None = None,
    *,
    task: Task = binary(),
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Compute candidate minus champion with its interval.

    Both are measured on the same rows, so what is hard for both cancels out. The sign is that of the plain difference:
    for ``log_loss`` and ``brier`` a better candidate has a negative one.

    Parameters and errors are those of :func:`compute_interval`, with two scores for the same rows.
    """
    chosen = find_metric(task, metric)
    _, _, champion = read_scores(task, y_true, y_champion)
    task, y, candidate = read_scores(task, y_true, y_candidate)
    codes = read_clusters(clusters, len(y))
    return estimate(chosen, task, y, [candidate, champion], codes=codes, confidence=confidence)


def estimate(
    metric: Metric, task: Task, y: Truth, scores: Sequence[Floats], *, codes: Codes | None, confidence: float
) -> Interval:
    """Return the interval of one model, or of the first of two minus the second; too few rows are refused.

    Parameters are those of :func:`compute_interval`, read by ``read_scores`` and :func:`read_clusters`.
    """
    _raise_for_few_rows(metric, task, y)
    (value, moves), *others = (_measure_moves(metric, task, y, score, codes) for score in scores)
    for other, other_moves in others:
        value, moves = value - other, moves - other_moves
    return build_interval(value, moves, codes, confidence, len(y))


def _raise_for_few_rows(metric: Metric, task: Task, y: Truth) -> None:
    needs = [("rows", len(y), MIN_ROWS)]
    if task.is_classifier and metric.needs_each_class:
        counts = np.bincount(y, minlength=len(task.class_values)).tolist()
        classes = zip(task.class_values, counts, strict=True)
        needs = [(f"rows of class {name}", n_class, MIN_PER_CLASS) for name, n_class in classes]
    for what, n_rows, needed in reversed(needs):
        if n_rows < needed:
            raise TooFewRowsError(n_rows=n_rows, what=what, needed=needed)


def _measure_moves(metric: Metric, task: Task, y: Truth, score: Floats, codes: Codes | None) -> tuple[float, Floats]:
    """Return a metric's value, and what each row, cluster or group of them moves it by."""
    if metric.influence is not None:
        value, influence = metric.influence(y, score)
        return value, add_up(influence, codes)
    groups = _deal_groups(len(y), codes)
    n_groups = groups.max() + 1
    without = np.array([metric.measure(task, y[groups != g], score[groups != g]) for g in range(n_groups)])
    return metric.measure(task, y, score), (1 - 1 / n_groups) * (without.mean() - without)


def add_up(influence: Floats, codes: Codes | None) -> Floats:
    """Return what each row moves the value by, added up by cluster where there are clusters."""
    moves: Floats = influence / len(influence)
    return moves if codes is None else np.bincount(codes, moves)[np.bincount(codes) > 0].astype(np.float64)


def _deal_groups(n_rows: int, codes: Codes | None) -> Codes:
    """Return the group that each row is left out with: its cluster, or one of N_GROUPS that are dealt at random.

    At random, since groups dealt in turns from rows in some order would be more alike than chance makes them. The
    shuffle is always the same one.
    """
    units = np.arange(n_rows) if codes is None else np.unique(codes, return_inverse=True)[1]
    n_units = units.max() + 1
    if n_units <= (N_GROUPS if codes is None else 2 * N_GROUPS):
        return units
    return (np.random.default_rng(0).permutation(n_units) % N_GROUPS)[units]


def build_interval(
    value: float, moves: Floats, codes: Codes | None, confidence: float, n_rows: int, *, least_error: float = 0.0
) -> Interval:
    """Return the interval of a value that independent units (rows, clusters or groups of them) move.

    Raises
    ------
    TooFewRowsError, QualityError
    """
    n_units = len(moves)
    if n_units < MIN_CLUSTERS:
        what = "rows" if codes is None else "clusters of rows"
        raise TooFewRowsError(n_rows=n_units, what=what, needed=MIN_CLUSTERS)
    if not 0 < confidence < 1:
        raise QualityError("confidence", confidence=confidence)
    degrees = n_units - 1
    error = max(float(np.sqrt(moves @ moves * n_units / degrees)), least_error)
    half = error * float(scipy.special.stdtrit(degrees, (1 + confidence) / 2))  # Student's t
    return Interval(value - half, value, value + half, confidence, n_rows, error, degrees)


def name_clusters(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return the column that says which rows belong together, times by their day, in their own time zone."""
    return column.dt.normalize() if pd.api.types.is_datetime64_any_dtype(column.dtype) else column


def read_clusters(clusters: ArrayLike | None, n_rows: int) -> Codes | None:
    """Return clusters as whole numbers from zero; a missing one is a cluster of its own kind."""
    if clusters is None:
        return None
    codes, _ = pd.factorize(pd.Series(clusters), use_na_sentinel=False)
    if len(codes) != n_rows:
        raise QualityError("lengths", n_true=n_rows, n_score=len(codes), what="clusters")
    return codes
