"""How good is a binary classifier, how sure are we, and where does it fail.

Metrics, intervals, slices and figures; arrays and DataFrames in, numbers, DataFrames and Axes out. Labels are 0 and 1,
scores are probabilities of class 1, and both are compared by position. What has no answer (no rows, one class, too few
rows of a class, a score that is no probability) is refused by name instead of returned as NaN.

Intervals come from each row's influence on the metric: what the metric would change if that row weighed a little more
(the infinitesimal jackknife, Jaeckel 1972; for ROC AUC it is DeLong, DeLong & Clarke-Pearson 1988). They agree with the
bootstrap, take one pass over the rows, and have no seed that could be tried again until it fits. Rows that belong
together (flights of one day, visits of one patient) are named with ``clusters``: their influences are added up before
they are compared, as in cluster-robust standard errors. To leave that out makes intervals far too narrow.

>>> compute_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], prefix="test")["test_roc_auc"]
0.75
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mlops_lib.errors import (
    NotFoundError,
    QualityError,
    TooFewRowsError,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Influence = Callable[[Labels, Floats], tuple[float, Floats]]

# Below these an interval of this kind is not to be trusted (benchmarks: gates): rows of either class, and clusters.
MIN_PER_CLASS = 30
MIN_CLUSTERS = 10

# Okabe & Ito (2008), Color Universal Design: told apart with every kind of colour vision.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#7F7F7F"


# --- metrics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric: its name, scikit-learn's function, its direction, and what each row does to it.

    ``influence(y_true, y_score)`` returns the value and, for each row, n_rows times the derivative of the value by that
    row's weight: an array of mean zero whose mean square, divided by n_rows, is the value's variance.
    """

    name: str
    compute: Callable[[ArrayLike, ArrayLike], float]
    greater_is_better: bool
    influence: Influence


def _count_by_score(y: Labels, score: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Return each row's rank among the distinct scores, ascending, and the negatives and positives at each rank."""
    values, rank = np.unique(score, return_inverse=True)
    counts = np.bincount(2 * rank + y, minlength=2 * len(values)).astype(np.float64)
    return rank, counts[0::2], counts[1::2]


def _roc_auc_influence(y: Labels, score: Floats) -> tuple[float, Floats]:
    rank, negative, positive = _count_by_score(y, score)
    n_negative, n_positive = negative.sum(), positive.sum()
    below = (np.cumsum(negative) - negative / 2) / n_negative  # a tie counts half
    above = 1 - (np.cumsum(positive) - positive / 2) / n_positive
    value = positive @ below / n_positive
    is_positive = y == 1
    placement = np.where(is_positive, below[rank], above[rank])
    share = np.where(is_positive, n_positive, n_negative) / len(y)
    return float(value), (placement - value) / share


def _average_precision_influence(y: Labels, score: Floats) -> tuple[float, Floats]:
    rank, negative, positive = _count_by_score(y, -score)
    found = np.cumsum(positive)
    flagged = found + np.cumsum(negative)
    precision = found / flagged
    value = positive @ precision / found[-1]
    # A row changes the precision at its own rank and at every later one: sums from each rank to the last.
    gain, loss = (np.cumsum(each[::-1])[::-1] for each in (positive / flagged, positive * found / flagged**2))
    change = np.where(y == 1, precision[rank] - value + gain[rank], 0.0) - loss[rank]
    return float(value), change * len(y) / found[-1]


def _mean_influence(loss: Callable[[Labels, Floats], Floats]) -> Influence:
    def influence(y: Labels, score: Floats) -> tuple[float, Floats]:
        losses = loss(y, score)
        return float(losses.mean()), losses - losses.mean()

    return influence


def _log_losses(y: Labels, score: Floats) -> Floats:
    eps = np.finfo(np.float64).eps  # as scikit-learn does: a certain and wrong score costs 36, not infinity
    clipped = np.clip(score, eps, 1 - eps)
    return -np.log(np.where(y == 1, clipped, 1 - clipped))


def _from_sklearn(function: str) -> Callable[[ArrayLike, ArrayLike], float]:
    """Return one of scikit-learn's metrics, imported when it is first called: listing versions needs none."""

    def compute(y_true: ArrayLike, y_score: ArrayLike) -> float:
        from sklearn import metrics  # noqa: PLC0415 - 0.7 s

        return float(getattr(metrics, function)(y_true, y_score))

    return compute


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("roc_auc", _from_sklearn("roc_auc_score"), True, _roc_auc_influence),
            Metric("average_precision", _from_sklearn("average_precision_score"), True, _average_precision_influence),
            Metric("log_loss", _from_sklearn("log_loss"), False, _mean_influence(_log_losses)),
            Metric(
                "brier", _from_sklearn("brier_score_loss"), False, _mean_influence(lambda y, score: (score - y) ** 2)
            ),
        )
    }
)


def compute_metrics(y_true: ArrayLike, y_score: ArrayLike, *, prefix: str = "") -> dict[str, float]:
    """Compute every metric of ``METRICS`` with scikit-learn.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), 0 or 1
    y_score : array-like of shape (n_samples,), in [0, 1]
        Probability of class 1.
    prefix : str
        Name of the split; ``"test"`` gives ``test_roc_auc``.

    Raises
    ------
    QualityError
        For no rows or one class only, for other lengths, and for scores or labels that are none: when a metric would be
        undefined. No metric is ever NaN.
    """
    y, score = _checked(y_true, y_score)
    start = f"{prefix}_" if prefix else ""
    return {f"{start}{name}": float(metric.compute(y, score)) for name, metric in METRICS.items()}


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Labels, Floats]:
    """Return labels as 0 and 1 and scores as floats, or raise the error that names what is wrong."""
    labels, given = np.asarray(y_true), np.asarray(y_score).ravel()  # both columns of predict_proba: twice too many
    if len(given) and given.dtype.kind not in "fiu":  # numpy would read "0.9" as a number
        raise QualityError("scores", n_bad=len(given), n_rows=len(given), first_row=0, first_value=repr(given[0]))
    score = given.astype(np.float64)
    if len(labels) != len(score):
        raise QualityError("lengths", n_true=len(labels), n_score=len(score), what="scores")
    if not len(labels):
        raise QualityError("no_rows", what="the labels and scores")
    bad = np.flatnonzero(~((score >= 0) & (score <= 1)))  # NaN compares false
    if len(bad):
        raise QualityError(
            "scores", n_bad=len(bad), n_rows=len(score), first_row=int(bad[0]), first_value=float(score[bad[0]])
        )
    known = pd.Series(labels).isin([0, 1])
    if not known.all():
        values = tuple(str(value) for value in pd.Series(labels)[~known].unique())
        raise QualityError("labels", values=values, known="0 and 1")
    y = labels.astype(np.int64)
    if y.min() == y.max():
        raise QualityError("one_class", value=int(y[0]), n_rows=len(y))
    return y, score


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise NotFoundError("metric", metric=str(name), metrics=tuple(METRICS))
    return METRICS[name]


# --- intervals ---------------------------------------------------------------------------------------------------


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
        Degrees of freedom of Student's t: independent units (rows, or clusters of rows) less one.

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
        return float(special.stdtr(self.degrees, (self.value - limit) / self.error))

    def p_above(self, limit: float) -> float:
        """Return the one-sided p-value of "the true value is above ``limit``"."""
        return float(self.value <= limit) if self.error == 0 else 1 - self.p_below(limit)


def compute_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    metric: str = "roc_auc",
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Compute a metric with the interval that follows from each row's influence on it.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), 0 or 1
    y_score : array-like of shape (n_samples,), in [0, 1]
    metric : str
        A name in ``METRICS``.
    clusters : array-like of shape (n_samples,), optional
        Which rows belong together, such as the day of each flight. Without it every row counts as independent.
    confidence : float in (0, 1)

    Raises
    ------
    NotFoundError, QualityError, TooFewRowsError
        And the errors of :func:`compute_metrics`.
    """
    chosen = _metric(metric)
    y, score = _checked(y_true, y_score)
    return _interval(y, *chosen.influence(y, score), _codes(clusters, len(y)), confidence)


def compute_paired_interval(
    y_true: ArrayLike,
    y_candidate: ArrayLike,
    y_champion: ArrayLike,
    metric: str = "roc_auc",
    *,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Compute candidate minus champion with its interval.

    Both are measured on the same rows, so what is hard for both cancels out. The sign is that of the plain difference:
    for ``log_loss`` and ``brier`` a better candidate has a negative one.

    Parameters and errors are those of :func:`compute_interval`, with two scores for the same rows.
    """
    chosen = _metric(metric)
    y, candidate = _checked(y_true, y_candidate)
    _, champion = _checked(y_true, y_champion)
    return _paired(chosen, y, (candidate, champion), _codes(clusters, len(y)), confidence)


def _paired(
    metric: Metric, y: Labels, scores: tuple[Floats, Floats], codes: NDArray[np.intp] | None, confidence: float
) -> Interval:
    (value, influence), (other, other_influence) = (metric.influence(y, score) for score in scores)
    return _interval(y, value - other, influence - other_influence, codes, confidence)


def _interval(
    y: Labels, value: float, influence: Floats, codes: NDArray[np.intp] | None, confidence: float
) -> Interval:
    """Return the interval of a value from the influence of its rows, where there are enough rows of either class."""
    n_positive = int(y.sum())
    for label, n_class in ((1, n_positive), (0, len(y) - n_positive)):
        if n_class < MIN_PER_CLASS:
            raise TooFewRowsError(n_rows=n_class, what=f"rows of class {label}", needed=MIN_PER_CLASS)
    return _spread(value, *_standard_error(influence, codes), confidence, len(y))


def _standard_error(influence: Floats, codes: NDArray[np.intp] | None) -> tuple[float, int]:
    """Return standard error and degrees of freedom; influences are added up by cluster where there are clusters."""
    units = influence if codes is None else np.bincount(codes, influence)[np.bincount(codes) > 0]
    if len(units) < MIN_CLUSTERS:
        raise TooFewRowsError(
            n_rows=len(units), what="rows" if codes is None else "clusters of rows", needed=MIN_CLUSTERS
        )
    degrees = len(units) - 1
    return float(np.sqrt(units @ units * len(units) / degrees) / len(influence)), degrees


def _spread(value: float, error: float, degrees: int, confidence: float, n_rows: int) -> Interval:
    if not 0 < confidence < 1:
        raise QualityError("confidence", confidence=confidence)
    half = error * float(special.stdtrit(degrees, (1 + confidence) / 2))  # Student's t
    return Interval(value - half, value, value + half, confidence, n_rows, error, degrees)


def _codes(clusters: ArrayLike | None, n_rows: int) -> NDArray[np.intp] | None:
    """Return clusters as whole numbers from zero; a missing one is a cluster of its own kind."""
    if clusters is None:
        return None
    codes, _ = pd.factorize(pd.Series(clusters), use_na_sentinel=False)
    if len(codes) != n_rows:
        raise QualityError("lengths", n_true=n_rows, n_score=len(codes), what="clusters")
    return codes


# --- slices ------------------------------------------------------------------------------------------------------


def compute_slices(
    y_true: ArrayLike,
    y_score: ArrayLike,
    by: pd.DataFrame,
    *,
    metric: str = "roc_auc",
    y_champion: ArrayLike | None = None,
    margin: float = 0.0,
    min_rows: int = 200,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compute a metric with its interval for each value of each column of ``by``, worst first.

    Parameters
    ----------
    y_true, y_score : array-like of shape (n_samples,)
    by : DataFrame of n_samples rows, in the order of ``y_true``
        Columns of few values; cut numbers into ranges first. Missing values are a slice of their own.
    y_champion : array-like of shape (n_samples,), optional
        Scores to compare with: adds ``difference`` (candidate minus champion), ``difference_low``,
        ``difference_high`` and ``p_worse``, and sorts by the difference.
    margin : float
        The loss against the champion, in the metric's unit, that ``p_worse`` accepts.
    min_rows : int
        Smaller slices are listed with NaN and a note, as are slices with fewer than ``MIN_PER_CLASS`` of a class.
    clusters : array-like of shape (n_samples,), optional
        As in :func:`compute_interval`.

    Returns
    -------
    DataFrame
        Columns ``column, slice, n_rows, positive_share, value, low, high``, the differences, ``p_worse`` and ``note``.
        Intervals are those of each slice alone. ``p_worse`` is the p-value of "worse than the champion by more than
        ``margin``", corrected for the number of slices by :func:`adjust_holm`.
    """
    chosen = _metric(metric)
    y, score = _checked(y_true, y_score)
    if len(by) != len(y):
        raise QualityError("lengths", n_true=len(y), n_score=len(by), what="rows to slice by")
    champion = None if y_champion is None else _checked(y_true, y_champion)[1]
    codes = _codes(clusters, len(y))

    def measured(rows: NDArray[np.intp]) -> dict[str, object]:
        if len(rows) < min_rows:
            return {"note": f"fewer than {min_rows} rows"}
        if y[rows].min() == y[rows].max():
            return {"note": f"every label is {y[rows[0]]}"}
        own = None if codes is None else codes[rows]
        try:
            found = _interval(y[rows], *chosen.influence(y[rows], score[rows]), own, confidence)
        except TooFewRowsError as error:
            return {"note": f"{error.n_rows} {error.what}"}
        values: dict[str, object] = {"value": found.value, "low": found.low, "high": found.high, "note": ""}
        if champion is not None:
            paired = _paired(chosen, y[rows], (score[rows], champion[rows]), own, confidence)
            p_worse = paired.p_below(-margin) if chosen.greater_is_better else paired.p_above(margin)
            values |= {"difference": paired.value, "difference_low": paired.low, "difference_high": paired.high}
            values |= {"p_worse": p_worse}
        return values

    slices = [
        {"column": column, "slice": text, "n_rows": len(rows), "positive_share": y[rows].mean(), **measured(rows)}
        for column, text, rows in _slices(by)
    ]
    numbers = ["value", "low", "high"]
    if champion is not None:
        numbers += ["difference", "difference_low", "difference_high", "p_worse"]
    frame = pd.DataFrame(slices, columns=["column", "slice", "n_rows", "positive_share", *numbers, "note"])
    frame[numbers] = frame[numbers].astype(float)
    if champion is not None:
        frame["p_worse"] = adjust_holm(frame["p_worse"])
    worst = "value" if champion is None else "difference"
    return frame.sort_values(worst, ascending=chosen.greater_is_better, kind="stable", ignore_index=True)


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
    """Rows of similar scores, and how far their mean score is from the share of positives among them."""

    low_score: float
    high_score: float
    mean_score: float
    observed: float
    gap: Interval


def compute_score_groups(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    n_groups: int = 5,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
) -> list[ScoreGroup]:
    """Compare mean score and share of positives in groups of equally many rows, from the lowest scores to the highest.

    Groups depend on the scores alone, so each gap is an unbiased mean; their maximum or mean (the expected calibration
    error) would not be. The standard error is never taken below that of labels drawn with the group's mean score, since
    a group without a single positive shows no variance at all.

    Returns
    -------
    list of ScoreGroup
        Fewer than ``n_groups`` where scores are tied. ``gap`` is mean score minus observed share.

    Raises
    ------
    QualityError, TooFewRowsError
        And the errors of :func:`compute_metrics`.
    """
    y, score = _checked(y_true, y_score)
    codes = _codes(clusters, len(y))
    edges = np.unique(np.quantile(score, np.linspace(0, 1, n_groups + 1)[1:-1]))
    which = np.searchsorted(edges, score, side="left")
    groups = []
    for group in np.unique(which):
        rows = np.flatnonzero(which == group)
        mean, observed = float(score[rows].mean()), float(y[rows].mean())
        gap = mean - observed
        error, degrees = _standard_error(score[rows] - y[rows] - gap, None if codes is None else codes[rows])
        error = max(error, math.sqrt(mean * (1 - mean) / len(rows)))
        interval = _spread(gap, error, degrees, confidence, len(rows))
        groups.append(ScoreGroup(float(score[rows].min()), float(score[rows].max()), mean, observed, interval))
    return groups


def _slices(by: pd.DataFrame) -> Iterable[tuple[str, str, NDArray[np.intp]]]:
    """Yield column, value as text and the row positions of each slice."""
    for column in by.columns:
        codes, values = pd.factorize(by[column], sort=False, use_na_sentinel=False)
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(values)))[:-1])
        for value, rows in zip(values, parts, strict=True):
            yield str(column), _slice_text(value), rows


def _slice_text(value: Any) -> str:
    if pd.isna(value):
        return "missing"
    # Whole numbers become floats as soon as one is missing; a reader knows them as whole numbers.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# --- figures -----------------------------------------------------------------------------------------------------


def plot_roc(
    y_true: ArrayLike, y_score: ArrayLike, *, y_champion: ArrayLike | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the ROC curve, beside the champion's when its scores are given."""
    from sklearn import metrics  # noqa: PLC0415

    ax = _axes(ax)
    for name, scores, color, line in _roles(y_score, y_champion):
        y, score = _checked(y_true, scores)
        false_positive, true_positive, _ = metrics.roc_curve(y, score)
        ax.plot(false_positive, true_positive, line, color=color, label=f"{name} {metrics.roc_auc_score(y, score):.3f}")
    ax.plot([0, 1], [0, 1], ":", color=GREY, lw=1, label="chance 0.500")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title="Positives found, and what they cost")
    ax.set(xlabel="False positives (share of negatives)", ylabel="True positives (share of positives)")
    ax.legend(loc="lower right", title="Area under the curve", frameon=False)
    return ax


def plot_calibration(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    y_champion: ArrayLike | None = None,
    n_bins: int = 10,
    ax: Axes | None = None,
) -> Axes:
    """Draw observed shares against mean scores in equal bins, with Wilson 95 % intervals and the rows per bin."""
    from scipy import stats  # noqa: PLC0415 - 0.4 s, which a command that looks at gates need not wait for

    ax = _axes(ax)
    for name, scores, color, line in _roles(y_score, y_champion):
        y, score = _checked(y_true, scores)
        which = np.minimum((score * n_bins).astype(int), n_bins - 1)
        n_rows = np.bincount(which, minlength=n_bins)
        used = np.flatnonzero(n_rows)
        predicted = np.bincount(which, score, n_bins)[used] / n_rows[used]
        observed = np.bincount(which, y, n_bins)[used] / n_rows[used]
        wilson = [
            stats.binomtest(int(k), int(n)).proportion_ci(method="wilson")
            for k, n in zip(np.bincount(which, y, n_bins)[used], n_rows[used], strict=True)
        ]
        ax.vlines(predicted, [ci.low for ci in wilson], [ci.high for ci in wilson], color=color, alpha=0.45)
        ax.plot(predicted, observed, f"o{line}", color=color, ms=5, label=name, zorder=3)
        if color == BLUE:
            _draw_counts(ax, (used + 0.5) / n_bins, n_rows[used], 0.92 / n_bins)
    ax.plot([0, 1], [0, 1], ":", color=GREY, lw=1, label="perfect")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.24, 1.01), yticks=np.linspace(0, 1, 6), title="Do scores mean what they say")
    ax.set(xlabel="Mean score in the bin (grey bars: rows in the bin)", ylabel="Observed share of positives")
    ax.legend(loc="upper left", frameon=False)
    return ax


def _draw_counts(ax: Axes, centres: Floats, n_rows: NDArray[np.int64], width: float) -> None:
    """Draw bars with their counts in the band below zero, where no share can be."""
    heights = 0.13 * n_rows / n_rows.max()
    ax.bar(centres, heights, width, bottom=-0.22, color=GREY, alpha=0.3, lw=0)
    for x, y, n in zip(centres, heights - 0.21, n_rows, strict=True):
        ax.text(x, y, f"{n:,}", ha="center", va="bottom", color="#555555", size=7)


def plot_score_threshold(
    y_true: ArrayLike, y_score: ArrayLike, *, threshold: float = 0.5, ax: Axes | None = None
) -> Axes:
    """Draw precision and recall against the threshold, and mark the operating point."""
    from sklearn import metrics  # noqa: PLC0415

    ax = _axes(ax)
    y, score = _checked(y_true, y_score)
    precision, recall, thresholds = metrics.precision_recall_curve(y, score)
    ax.plot(thresholds, precision[:-1], color=BLUE, label="precision: flagged rows that are positive")
    ax.plot(thresholds, recall[:-1], "--", color=ORANGE, label="recall: positives that are flagged")
    flagged = score >= threshold
    if flagged.any():
        at = (float(y[flagged].mean()), float(flagged[y == 1].mean()))
        ax.plot([threshold, threshold], at, "o", color=VERMILLION, zorder=3)
        text = f"precision {at[0]:.2f}, recall {at[1]:.2f}, flags {100 * flagged.mean():.3g} % of rows"
    else:
        text = "flags no row"
    ax.axvline(threshold, color=VERMILLION, lw=1, label=f"at {threshold:g}: {text}")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title="What a threshold buys")
    ax.set(xlabel="Threshold on the score", ylabel="Share")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return ax


def plot_slices(
    slices: pd.DataFrame,
    *,
    metric: str = "roc_auc",
    overall: float | None = None,
    margin: float = 0.0,
    alpha: float = 0.05,
    max_slices: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw what :func:`compute_slices` measured as a forest plot, worst on top.

    The difference to the champion is drawn against zero where there is one, with the ``margin`` that it was computed
    with; slices with ``p_worse`` at or below ``alpha`` are marked by colour and shape, so that of slices that lose no
    more than the margin one is marked with probability ``alpha`` at most. Without a champion the value is drawn against
    ``overall``, and marked are slices whose interval lies wholly on the wrong side.
    """
    greater_is_better = _metric(metric).greater_is_better
    is_difference = "difference" in slices
    names = ("difference", "difference_low", "difference_high") if is_difference else ("value", "low", "high")
    measured = slices.dropna(subset=[names[0]])
    if measured.empty:
        raise QualityError("no_rows", what="the measured slices")
    shown = measured.head(max_slices)
    line = 0.0 if is_difference else overall
    value, low, high = (shown[name].to_numpy(dtype=float) for name in names)
    if is_difference:
        is_worse = shown["p_worse"].to_numpy(dtype=float) <= alpha
    else:
        is_worse = np.zeros(len(shown), bool) if line is None else (high < line if greater_is_better else low > line)
    ax = _axes(ax, height=1.6 + 0.28 * len(shown))
    rows = np.arange(len(shown))
    accepted = f"worse by more than {margin:g}, beyond chance" if is_difference and margin else "worse, beyond chance"
    for of, color, marker, label in ((~is_worse, BLUE, "o", None), (is_worse, VERMILLION, "D", accepted)):
        if of.any():
            ax.hlines(rows[of], low[of], high[of], color=color, lw=2, alpha=0.6)
            ax.plot(value[of], rows[of], marker, color=color, ms=6, label=label)
    if line is not None:
        ax.axvline(line, color=GREY, ls="--", lw=1, label="no difference" if is_difference else f"all rows {line:.3f}")
    if is_difference and margin:
        ax.axvline(-margin if greater_is_better else margin, color=GREY, ls=":", lw=1.5, label="accepted loss")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.65 / (1.6 + 0.28 * len(shown))), ncols=2, frameon=False)
    labels = [f"{c}: {_shortened(s)}  ({n:,})" for c, s, n in zip(shown.column, shown.slice, shown.n_rows, strict=True)]
    ax.set_yticks(rows, labels)
    ax.set(ylim=(len(shown) - 0.4, -0.6), ylabel="Slice (rows)")
    ax.set_xlabel(f"{metric}, candidate minus champion" if is_difference else metric)
    more = f" (worst {len(shown)} of {len(measured)})" if len(measured) > len(shown) else ""
    ax.set_title(("Where the candidate differs" if is_difference else "Where it fails") + more)
    ax.grid(axis="x", alpha=0.25)
    return ax


def _shortened(text: str, width: int = 28) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _roles(y_score: ArrayLike, y_champion: ArrayLike | None) -> list[tuple[str, ArrayLike, str, str]]:
    """Name, scores, colour and line style of each curve to draw."""
    if y_champion is None:
        return [("model", y_score, BLUE, "-")]
    return [("champion", y_champion, ORANGE, "--"), ("candidate", y_score, BLUE, "-")]


def _axes(ax: Axes | None, *, height: float = 4.2) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - half a second that only figures need

        _, ax = plt.subplots(figsize=(6.4, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
