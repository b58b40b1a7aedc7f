"""How good is a binary classifier, how sure are we, and where does it fail.

Metrics, bootstrap intervals, slices and figures; arrays and DataFrames in, numbers, DataFrames and Axes out. Labels are
0 and 1, scores are probabilities of class 1, and both are compared by position. What has no answer (no rows, one class,
a score that is no probability) is refused by name instead of returned as NaN.

>>> compute_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], prefix="test")["test_roc_auc"]
0.75
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mlops_lib.errors import (
    LabelValuesError,
    NoRowsError,
    ResamplingError,
    ScoreLengthError,
    ScoreValuesError,
    SingleClassError,
    UnknownMetricError,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Weighted = Callable[[Floats], float]

# Okabe & Ito (2008), Color Universal Design: told apart with every kind of colour vision.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#7F7F7F"


# --- metrics -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric: its name, scikit-learn's function, its direction, and a fast form for resampled rows.

    ``prepare(y_true, y_score)`` sorts once and returns a function of row weights; with the counts of a resample as
    weights it gives what ``compute`` gives on the resampled rows.
    """

    name: str
    compute: Callable[[ArrayLike, ArrayLike], float]
    greater_is_better: bool
    prepare: Callable[[Labels, Floats], Weighted]


def _prepare_ranks(y: Labels, score: Floats) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Return a function from row weights to the weight of negatives and positives at each distinct score, ascending."""
    values, rank = np.unique(score, return_inverse=True)
    cell = 2 * rank + y

    def by_score(weights: Floats) -> tuple[Floats, Floats]:
        table: Floats = np.bincount(cell, weights, 2 * len(values)).astype(np.float64, copy=False)
        return table[0::2], table[1::2]

    return by_score


def _prepare_roc_auc(y: Labels, score: Floats) -> Weighted:
    by_score = _prepare_ranks(y, score)

    def roc_auc(weights: Floats) -> float:
        negative, positive = by_score(weights)
        below = np.cumsum(negative) - negative / 2  # a tie counts half
        return float(positive @ below / (positive.sum() * negative.sum()))

    return roc_auc


def _prepare_average_precision(y: Labels, score: Floats) -> Weighted:
    by_score = _prepare_ranks(y, score)

    def average_precision(weights: Floats) -> float:
        negative, positive = (side[::-1] for side in by_score(weights))
        found = np.cumsum(positive)
        flagged = found + np.cumsum(negative)
        precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
        return float(positive @ precision / found[-1])

    return average_precision


def _prepare_mean(loss: Callable[[Labels, Floats], Floats]) -> Callable[[Labels, Floats], Weighted]:
    def prepare(y: Labels, score: Floats) -> Weighted:
        losses = loss(y, score)
        return lambda weights: float(weights @ losses / weights.sum())

    return prepare


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
            Metric("roc_auc", _from_sklearn("roc_auc_score"), True, _prepare_roc_auc),
            Metric("average_precision", _from_sklearn("average_precision_score"), True, _prepare_average_precision),
            Metric("log_loss", _from_sklearn("log_loss"), False, _prepare_mean(_log_losses)),
            Metric("brier", _from_sklearn("brier_score_loss"), False, _prepare_mean(lambda y, score: (score - y) ** 2)),
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
    NoRowsError, ScoreLengthError, ScoreValuesError, LabelValuesError, SingleClassError
        When a metric would be undefined. No metric is ever NaN.
    """
    y, score = _checked(y_true, y_score)
    start = f"{prefix}_" if prefix else ""
    return {f"{start}{name}": float(metric.compute(y, score)) for name, metric in METRICS.items()}


def _checked(y_true: ArrayLike, y_score: ArrayLike) -> tuple[Labels, Floats]:
    """Return labels as 0 and 1 and scores as floats, or raise the error that names what is wrong."""
    labels, score = np.asarray(y_true), np.asarray(y_score, dtype=np.float64).ravel()  # both columns: twice too many
    if len(labels) != len(score):
        raise ScoreLengthError(len(labels), len(score))
    if not len(labels):
        raise NoRowsError("the labels and scores")
    bad = np.flatnonzero(~((score >= 0) & (score <= 1)))  # NaN compares false
    if len(bad):
        raise ScoreValuesError(len(bad), len(score), int(bad[0]), float(score[bad[0]]))
    known = pd.Series(labels).isin([0, 1])
    if not known.all():
        raise LabelValuesError(tuple(str(value) for value in pd.Series(labels)[~known].unique()))
    y = labels.astype(np.int64)
    if y.min() == y.max():
        raise SingleClassError(int(y[0]), len(y))
    return y, score


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise UnknownMetricError(name, tuple(METRICS))
    return METRICS[name]


# --- intervals ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value and the range that resampling gives it.

    >>> print(Interval(low=0.704, value=0.712, high=0.72, confidence=0.95, n_rows=28000))
    0.712 [0.704, 0.720]
    """

    low: float
    value: float
    high: float
    confidence: float
    n_rows: int

    def __str__(self) -> str:
        """Return ``value [low, high]`` with three decimals."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compute_interval(
    y_true: ArrayLike,
    y_score: ArrayLike,
    metric: str = "roc_auc",
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Compute a metric with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Rows are drawn with replacement; a resample that holds one class only is drawn again. Scores are sorted once: each
    resample is a vector of counts that weighs the rows, which is exact, ties included.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), 0 or 1
    y_score : array-like of shape (n_samples,), in [0, 1]
    metric : str
        A name in ``METRICS``.
    n_resamples : int
    confidence : float in (0, 1)
    random_state : int
        The same state on as many rows draws the same rows.

    Raises
    ------
    UnknownMetricError, ResamplingError
        And the errors of :func:`compute_metrics`.
    """
    chosen = _metric(metric)
    y, score = _checked(y_true, y_score)
    return _bootstrap(y, [chosen.prepare(y, score)], n_resamples, confidence, random_state)[0]


def compute_paired_interval(
    y_true: ArrayLike,
    y_candidate: ArrayLike,
    y_champion: ArrayLike,
    metric: str = "roc_auc",
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> Interval:
    """Compute candidate minus champion with its paired percentile bootstrap interval (Efron & Tibshirani 1993).

    Both are measured on the same resampled rows, so what is hard for both cancels out. The sign is that of the plain
    difference: for ``log_loss`` and ``brier`` a better candidate has a negative one.

    Parameters and errors are those of :func:`compute_interval`, with two scores for the same rows.
    """
    chosen = _metric(metric)
    y, candidate = _checked(y_true, y_candidate)
    _, champion = _checked(y_true, y_champion)
    models = [chosen.prepare(y, candidate), chosen.prepare(y, champion)]
    return _bootstrap(y, models, n_resamples, confidence, random_state)[1]


def _bootstrap(
    y: Labels, models: Sequence[Weighted], n_resamples: int, confidence: float, random_state: int
) -> list[Interval]:
    """Return the interval of the first model, then that of its difference to each further one."""
    if n_resamples < 1 or not 0 < confidence < 1:
        raise ResamplingError(n_resamples, confidence)
    rng = np.random.default_rng(random_state)
    resamples = itertools.chain([np.ones(len(y))], (_draw_weights(rng, y) for _ in range(n_resamples)))
    table = np.array([[model(weights) for model in models] for weights in resamples])
    table[:, 1:] = table[:, :1] - table[:, 1:]
    lows, highs = np.quantile(table[1:], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [
        Interval(float(low), float(value), float(high), confidence, len(y))
        for low, value, high in zip(lows, table[0], highs, strict=True)
    ]


def _draw_weights(rng: np.random.Generator, y: Labels) -> Floats:
    """Draw rows with replacement, again until both classes are among them; return how often each row was drawn."""
    n = len(y)
    while True:
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        if 0 < weights @ y < n:
            return weights


# --- slices ------------------------------------------------------------------------------------------------------


def compute_slices(
    y_true: ArrayLike,
    y_score: ArrayLike,
    by: pd.DataFrame,
    *,
    metric: str = "roc_auc",
    y_champion: ArrayLike | None = None,
    min_rows: int = 200,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> pd.DataFrame:
    """Compute a metric with its interval for each value of each column of ``by``, worst first.

    Parameters
    ----------
    y_true, y_score : array-like of shape (n_samples,)
    by : DataFrame of n_samples rows, in the order of ``y_true``
        Columns of few values; cut numbers into ranges first. Missing values are a slice of their own.
    y_champion : array-like of shape (n_samples,), optional
        Scores to compare with: adds ``difference`` (candidate minus champion), ``difference_low`` and
        ``difference_high``, and sorts by the difference.
    min_rows : int
        Smaller slices are listed with NaN and a note, as are slices of one class.

    Returns
    -------
    DataFrame
        Columns ``column, slice, n_rows, positive_share, value, low, high``, the differences, and ``note``.
    """
    chosen = _metric(metric)
    y, score = _checked(y_true, y_score)
    if len(by) != len(y):
        raise ScoreLengthError(len(y), len(by), "rows to slice by")
    scores = [score] if y_champion is None else [score, _checked(y_true, y_champion)[1]]
    kinds = [("low", "value", "high"), ("difference_low", "difference", "difference_high")][: len(scores)]

    def measured(rows: NDArray[np.intp]) -> dict[str, object]:
        if len(rows) < min_rows:
            return {"note": f"fewer than {min_rows} rows"}
        if y[rows].min() == y[rows].max():
            return {"note": f"every label is {y[rows[0]]}"}
        models = [chosen.prepare(y[rows], each[rows]) for each in scores]
        intervals = _bootstrap(y[rows], models, n_resamples, confidence, random_state)
        found: dict[str, object] = {"note": ""}
        for (low, value, high), interval in zip(kinds, intervals, strict=True):
            found |= {value: interval.value, low: interval.low, high: interval.high}
        return found

    slices = [
        {"column": column, "slice": text, "n_rows": len(rows), "positive_share": y[rows].mean(), **measured(rows)}
        for column, text, rows in _slices(by)
    ]
    numbers = [name for low, value, high in kinds for name in (value, low, high)]
    frame = pd.DataFrame(slices, columns=["column", "slice", "n_rows", "positive_share", *numbers, "note"])
    frame[numbers] = frame[numbers].astype(float)
    worst = kinds[-1][1]
    return frame.sort_values(worst, ascending=chosen.greater_is_better, kind="stable", ignore_index=True)


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
    max_slices: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw what :func:`compute_slices` measured as a forest plot, worst on top.

    The difference to the champion is drawn against zero where there is one, else the value against ``overall``. Slices
    whose interval lies wholly on the wrong side of the line are marked by colour and shape.
    """
    greater_is_better = _metric(metric).greater_is_better
    is_difference = "difference" in slices
    names = ("difference", "difference_low", "difference_high") if is_difference else ("value", "low", "high")
    measured = slices.dropna(subset=[names[0]])
    if measured.empty:
        raise NoRowsError("the measured slices")
    shown = measured.head(max_slices)
    line = 0.0 if is_difference else overall
    value, low, high = (shown[name].to_numpy(dtype=float) for name in names)
    is_worse = np.zeros(len(shown), bool) if line is None else (high < line if greater_is_better else low > line)
    ax = _axes(ax, height=1.6 + 0.28 * len(shown))
    rows = np.arange(len(shown))
    for of, color, marker, label in (
        (~is_worse, BLUE, "o", None),
        (is_worse, VERMILLION, "D", "worse, beyond chance"),
    ):
        if of.any():
            ax.hlines(rows[of], low[of], high[of], color=color, lw=2, alpha=0.6)
            ax.plot(value[of], rows[of], marker, color=color, ms=6, label=label)
    if line is not None:
        ax.axvline(line, color=GREY, ls="--", lw=1, label="no difference" if is_difference else f"all rows {line:.3f}")
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
