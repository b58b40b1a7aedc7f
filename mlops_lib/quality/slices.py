"""Where does a model fail: by slice, by class, and by what it predicts.

>>> import numpy as np, pandas as pd
>>> y, score = np.tile([0, 1], 200), np.tile([0.2, 0.8], 200)
>>> compute_slices(y, score, pd.DataFrame({"origin": ["JFK", "JFK", "LGA", "LGA"] * 100}))["value"].tolist()
[1.0, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_lib.errors import QualityError, TooFewRowsError
from mlops_lib.quality.intervals import Interval, add_up, build_interval, estimate, read_clusters
from mlops_lib.quality.metrics import Floats, Metric, compare_scores, find_metric, read_scores
from mlops_lib.task import Task, binary


def compute_slices(
    y_true: ArrayLike,
    y_score: ArrayLike,
    by: pd.DataFrame,
    *,
    task: Task = binary(),
    metric: str | Metric | None = None,
    y_champion: ArrayLike | None = None,
    margin: float = 0.0,
    min_rows: int = 200,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compute a metric with its interval for each value of each column of ``by``, worst first.

    Parameters
    ----------
    y_true, y_score, task, metric, clusters
        As in :func:`mlops_lib.quality.compute_interval`.
    by : DataFrame of n_rows rows, in the order of ``y_true``
        Columns of few values; cut numbers into ranges first. Missing values are a slice of their own.
    y_champion : array-like of the shape of ``y_score``, optional
        Scores to compare with: adds ``difference`` (candidate minus champion), ``difference_low``,
        ``difference_high`` and ``p_worse``, and sorts by the difference.
    margin : float
        The loss against the champion, in the metric's unit, that ``p_worse`` accepts.
    min_rows : int
        Smaller slices are listed with NaN and a note, as are slices with fewer than ``MIN_PER_CLASS`` of a class.

    Returns
    -------
    DataFrame
        Columns ``column, slice, n_rows``, of two classes ``positive_share`` and of numbers ``mean_target``, ``value,
        low, high``, the differences, ``p_worse`` and ``note``.
        Intervals are those of each slice alone. ``p_worse`` is the p-value of "worse than the champion by more than
        ``margin``", corrected for the number of slices by :func:`adjust_holm`.

    Raises
    ------
    QualityError
        When a champion is given and the metric has no direction; and the errors of ``compute_interval``.
    """
    chosen = find_metric(task, metric)
    champion = None if y_champion is None else read_scores(task, y_true, y_champion)[2]
    task, y, score = read_scores(task, y_true, y_score)
    if champion is not None and chosen.greater_is_better is None:
        raise QualityError("no_direction", metric=chosen.name)
    if len(by) != len(y):
        raise QualityError("lengths", n_true=len(y), n_score=len(by), what="rows to slice by")
    codes = read_clusters(clusters, len(y))

    def measure(rows: NDArray[np.intp]) -> dict[str, object]:
        if len(rows) < min_rows:
            return {"note": f"fewer than {min_rows} rows"}
        if task.is_classifier and y[rows].min() == y[rows].max():
            return {"note": f"every label is {task.class_values[y[rows[0]]]}"}
        own = None if codes is None else codes[rows]
        try:
            interval = estimate(chosen, task, y[rows], [score[rows]], codes=own, confidence=confidence)
            values: dict[str, object] = {"value": interval.value, "low": interval.low, "high": interval.high}
            if champion is not None:
                both = [score[rows], champion[rows]]
                paired = estimate(chosen, task, y[rows], both, codes=own, confidence=confidence)
                p_worse = paired.p_below(-margin) if chosen.greater_is_better else paired.p_above(margin)
                values |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
                values |= {"p_worse": p_worse}
        except TooFewRowsError as error:
            return {"note": f"{error.n_rows} {error.what}"}
        except QualityError as error:
            if error.case != "no_value":
                raise
            return {"note": str(error.facts["reason"])}
        return values | {"note": ""}

    target = {"binary": "positive_share", "regression": "mean_target"}.get(task.kind)
    slices = [
        {"column": column, "slice": text, "n_rows": len(rows), target: y[rows].mean(), **measure(rows)}
        for column, text, rows in _split_by_value(by)
    ]
    numbers = ["value", "low", "high"]
    if champion is not None:
        numbers += ["difference", "difference_low", "difference_high", "p_worse"]
    frame = pd.DataFrame(slices, columns=["column", "slice", "n_rows", *([target] if target else []), *numbers, "note"])
    frame[numbers] = frame[numbers].astype(float)
    if champion is not None:
        frame["p_worse"] = adjust_holm(frame["p_worse"])
    worst = "value" if champion is None else "difference"
    by_size = np.abs if chosen.greater_is_better is None else None
    ascending = bool(chosen.greater_is_better)
    return frame.sort_values(worst, ascending=ascending, key=by_size, kind="stable", ignore_index=True)


def _split_by_value(by: pd.DataFrame) -> Iterable[tuple[str, str, NDArray[np.intp]]]:
    """Yield column, value as text and the row positions of each slice."""
    for column in by.columns:
        codes, values = pd.factorize(by[column], sort=False, use_na_sentinel=False)
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(values)))[:-1])
        for value, rows in zip(values, parts, strict=True):
            yield str(column), _format_slice(value), rows


def _format_slice(value: Any) -> str:
    if pd.isna(value):
        return "missing"
    # Whole numbers become floats as soon as one is missing; a reader knows them as whole numbers.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def adjust_holm(p_values: ArrayLike) -> Floats:
    """Correct p-values for their number (Holm 1979): all at or below alpha are then right with probability 1 - alpha.

    It holds whatever the slices have in common. NaN stays NaN and does not count.

    >>> adjust_holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted = np.full(len(p), np.nan)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


@dataclass(frozen=True)
class ScoreGroup:
    """Rows of similar scores, and how far the mean of what was predicted for them is from what was observed."""

    low_score: float
    high_score: float
    mean_score: float
    observed: float
    gap: Interval


def compute_score_groups(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    task: Task = binary(),
    n_groups: int = 5,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> list[ScoreGroup]:
    """Compare mean score and observed share in groups of equally many rows, from the lowest scores to the highest.

    Of two classes the score is that of the positive one, and observed is its share; of several, the score of the
    predicted class and how often it was right; of numbers, the mean prediction and the mean target in their own unit.

    Groups depend on the scores alone, so each gap is an unbiased mean; their maximum or mean (the expected calibration
    error) would not be. A probability's standard error is never taken below that of labels drawn with the group's mean
    score, since a group without a single positive shows no variance at all.

    Returns
    -------
    list of ScoreGroup
        Fewer than ``n_groups`` where scores are tied. ``gap`` is mean score minus observed.

    Raises
    ------
    QualityError, TooFewRowsError
        And the errors of :func:`mlops_lib.quality.compute_metrics`.
    """
    task, y, score = read_scores(task, y_true, y_score)
    score, y = compare_scores(task, y, score)
    codes = read_clusters(clusters, len(y))
    edges = np.unique(np.quantile(score, np.linspace(0, 1, n_groups + 1)[1:-1]))
    which = np.searchsorted(edges, score, side="left")
    groups = []
    for group in np.unique(which):
        rows = np.flatnonzero(which == group)
        mean, observed = float(score[rows].mean()), float(y[rows].mean())
        gap, own = mean - observed, None if codes is None else codes[rows]
        least = math.sqrt(mean * (1 - mean) / len(rows)) if task.is_classifier else 0.0
        moves = add_up(score[rows] - y[rows] - gap, own)
        interval = build_interval(gap, moves, own, confidence, len(rows), least_error=least)
        groups.append(ScoreGroup(float(score[rows].min()), float(score[rows].max()), mean, observed, interval))
    return groups


def compute_class_metrics(y_true: ArrayLike, y_score: ArrayLike, *, task: Task) -> pd.DataFrame:
    """Compute how well each class is told from the others.

    Parameters
    ----------
    y_true, y_score, task
        As in :func:`mlops_lib.quality.compute_metrics`, of two classes or several.

    Returns
    -------
    DataFrame
        Indexed by class, in the task's order: ``n_rows``; ``precision`` (NaN where it is never predicted), ``recall``
        and ``f1`` of what is predicted; ``roc_auc`` of its score against all other classes. Classes without rows have
        NaN.
    """
    from sklearn import metrics  # noqa: PLC0415 - 0.7 s

    task, y, score = read_scores(task, y_true, y_score)
    codes = range(len(task.class_values))
    precision, recall, f1, n_rows = metrics.precision_recall_fscore_support(
        y, task.decide_codes(score), labels=codes, zero_division=np.nan
    )
    of_class = score if task.kind == "multiclass" else np.column_stack([1 - score, score])
    areas = [metrics.roc_auc_score(y == code, of_class[:, code]) if n_rows[code] else np.nan for code in codes]
    values = {"n_rows": n_rows, "precision": precision, "recall": recall, "f1": f1, "roc_auc": areas}
    return pd.DataFrame(values, index=pd.Index(task.class_values, name="class"))
