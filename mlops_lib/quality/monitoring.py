"""Does production still look like training, and are its scores still right.

Drift of each column against a stored profile (no training data needed), quality by model version or day once late
labels come in, and an estimate of it before they do. DataFrames in; DataFrames, Reports and Axes out. A column that
cannot be compared (missing, another type, no rows) is a failure with a reason, never a quiet zero.

>>> import pandas as pd
>>> profile = build_profile(pd.DataFrame({"month": [1, 2, 3] * 100}), columns=["month"])
>>> compute_drift(profile, pd.DataFrame({"month": [7] * 300})).loc["month", "largest_move"]
'above 3: 0 % -> 100 %'
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.api import types
from scipy import optimize, stats

from mlops_lib.errors import (
    QualityError,
)
from mlops_lib.report import Report, Row, Status, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

FALSE_ALARM_RATE = 0.001  # per column and check: with 15 columns a day, one false alarm in about two months
MAX_CATEGORIES = 1000  # more distinct texts than this are an identifier, not a feature
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#7F7F7F"  # Okabe & Ito (2008)


# --- profiles ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnProfile:
    """How one column was distributed.

    Parameters
    ----------
    kind : {"numeric", "categorical"}
    bins : tuple of float or of str
        Numeric: ascending upper edges; bin ``i`` holds ``bins[i - 1] < x <= bins[i]``, the first bin what is below the
        smallest value seen, one more bin what is above the largest. Categorical: every value seen, most frequent first.
    shares : tuple of float
        Share of all rows in each bin. Categorical: the most frequent values, then the other known values together,
        then values never seen.
    missing_share : float in [0, 1]
    """

    kind: Literal["numeric", "categorical"]
    bins: tuple[float, ...] | tuple[str, ...]
    shares: tuple[float, ...]
    missing_share: float


@dataclass(frozen=True)
class Profile:
    """How the columns of a table were distributed: what drift is measured against.

    ``to_dict`` gives JSON values of a few kilobytes; ``from_dict`` reads them back unchanged.
    """

    n_rows: int
    columns: Mapping[str, ColumnProfile]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"n_rows": self.n_rows, "columns": {name: asdict(column) for name, column in self.columns.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """Read back what :meth:`to_dict` wrote, also after a trip through JSON."""
        return cls(
            values["n_rows"],
            {
                name: ColumnProfile(c["kind"], tuple(c["bins"]), tuple(c["shares"]), c["missing_share"])
                for name, c in values["columns"].items()
            },
        )


def build_profile(frame: pd.DataFrame, *, columns: Sequence[str], max_bins: int = 10) -> Profile:
    """Describe columns of a reference table, so that drift can be measured without it.

    Parameters
    ----------
    frame : DataFrame
    columns : sequence of str
        Numeric and boolean columns get quantile bins, and every value that fills a bin alone gets one of its own, so
        that a constant or mostly constant column can drift too. Text and categories get their most frequent values.
    max_bins : int
        Bins inside the range of the reference; what is below, above, between known values or missing comes on top.

    Raises
    ------
    QualityError
        For columns that are missing, no rows, dates and durations (derive numbers that should stay stable) and texts of
        too many distinct values.
    """
    _raise_for_columns("reference data", frame, columns)
    if frame.empty:
        raise QualityError("no_rows", what="the reference data")
    return Profile(len(frame), {column: _profile_column(frame[column], max_bins) for column in columns})


def _profile_column(series: pd.Series[Any], max_bins: int) -> ColumnProfile:
    kind = _kind(series)
    bins = _edges(_floats(series), max_bins) if kind == "numeric" else _categories(series)
    empty = ColumnProfile(
        kind, bins, (0.0,) * (len(bins) + 1 if kind == "numeric" else min(len(bins), max_bins) + 2), 0.0
    )
    *shares, missing = (_counts(empty, series) / len(series)).tolist()
    return ColumnProfile(kind, bins, tuple(shares), missing)


def _kind(series: pd.Series[Any]) -> Literal["numeric", "categorical"]:
    if types.is_numeric_dtype(series) and not types.is_complex_dtype(series):
        return "numeric"
    if types.is_object_dtype(series) or types.is_string_dtype(series) or isinstance(series.dtype, pd.CategoricalDtype):
        return "categorical"
    hint = "it holds {}, and numbers, booleans, texts and categories are known; derive one, such as the hour or weekday"
    raise QualityError("profile", column=str(series.name), reason=hint.format(series.dtype))


def _edges(values: Floats, max_bins: int) -> tuple[float, ...]:
    """Return upper edges: quantiles, and a bin of its own for each value that holds a bin's share of the rows."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    distinct, counts = np.unique(finite, return_counts=True)
    alone = distinct if len(distinct) <= max_bins else distinct[counts >= len(finite) / max_bins]
    rest = finite[~np.isin(finite, alone)]
    quantiles: Floats = (
        np.quantile(rest, np.linspace(0, 1, max_bins - len(alone) + 1), method="lower") if len(rest) else rest
    )
    # The float just below a value closes the bin before it, so that the value has a bin to itself.
    below = np.nextafter(np.append(alone, distinct[0]), -np.inf)
    return tuple(np.unique(np.concatenate([below, alone, quantiles[1:], distinct[-1:]])).tolist())


def _categories(series: pd.Series[Any]) -> tuple[str, ...]:
    counts = series.value_counts()
    values = tuple(str(value) for value in counts.index[counts > 0])
    if len(values) > MAX_CATEGORIES:
        reason = f"it has {len(values)} distinct texts, at most {MAX_CATEGORIES} are known; group them or leave it out"
        raise QualityError("profile", column=str(series.name), reason=reason)
    return tuple(dict.fromkeys(values))


def _floats(series: pd.Series[Any]) -> Floats:
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def _counts(column: ColumnProfile, series: pd.Series[Any]) -> Floats:
    """Count rows in each bin of the column, missing ones last."""
    counts = np.zeros(len(column.shares) + 1)
    if column.kind == "numeric":
        values = _floats(series)
        values = values[~np.isnan(values)]
        counts[:-1] = np.bincount(np.searchsorted(np.array(column.bins), values), minlength=len(column.shares))
    else:
        other, unseen = len(column.shares) - 2, len(column.shares) - 1
        bin_of = {value: min(i, other) for i, value in enumerate(column.bins)}
        for value, n_rows in series.value_counts().items():
            counts[bin_of.get(str(value), unseen)] += n_rows
    counts[-1] = len(series) - counts.sum()
    return counts


def _bin_texts(column: ColumnProfile) -> list[str]:
    """Name each bin of the column in words, missing values last."""
    if column.kind == "categorical":
        named = [f"'{value}'" for value in column.bins[: len(column.shares) - 2]]
        return [*named, "other known values", "values never seen", "missing"]
    edges = [float(edge) for edge in column.bins]
    if not edges:
        return ["any value", "missing"]
    # The float just below zero is 5e-324 away from it; a reader knows it as zero.
    texts = [format_value(0.0 if abs(edge) < np.finfo(float).tiny else edge) for edge in edges]
    inside = [
        high if edges[i] == np.nextafter(edges[i + 1], -np.inf) else f"{low} to {high}"
        for i, (low, high) in enumerate(itertools.pairwise(texts))
    ]
    return [f"below {texts[0]}", *inside, f"above {texts[-1]}", "missing"]


# --- drift -------------------------------------------------------------------------------------------------------


def compute_drift(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each column has moved from its profile, furthest first.

    The population stability index is ``sum((q - p) * ln(q / p))`` over the bins, missing values being one of them. A
    share is taken as at least half a row of the smaller sample: what that sample cannot resolve does not count.

    Parameters
    ----------
    profile : Profile
    frame : DataFrame
        Current rows; columns without a profile are ignored.

    Returns
    -------
    DataFrame
        Indexed by column: ``psi``; ``psi_chance``, what chance alone exceeds once in 1,000 times without drift, which
        is ``(1/n + 1/m)`` times a chi-square quantile of one degree less than there are bins (Yurdakul & Naranjo 2020,
        Journal of Risk Model Validation 14(4)); ``missing_share_reference``; ``missing_share``; ``unseen_share``, the
        rows with values outside everything that the reference held; ``n_rows``; ``largest_move`` in words. A column
        that cannot be compared has a psi of NaN, comes first, and says why in ``largest_move``.
    """
    rows = []
    for name, column in profile.columns.items():
        row: dict[str, object] = {"column": name, "missing_share_reference": column.missing_share, "n_rows": len(frame)}
        reason = _why_incomparable(column, name, frame)
        rows.append(row | ({"largest_move": reason} if reason else _drift(column, frame[name], profile.n_rows)))
    numbers = ["psi", "psi_chance", "missing_share_reference", "missing_share", "unseen_share"]
    drift = pd.DataFrame(rows, columns=["column", *numbers, "n_rows", "largest_move"]).set_index("column")
    drift[numbers] = drift[numbers].astype(float)
    return drift.sort_values("psi", ascending=False, kind="stable", na_position="first")


def _why_incomparable(column: ColumnProfile, name: str, frame: pd.DataFrame) -> str:
    if name not in frame:
        return "the column is not in the table"
    if frame.empty:
        return "there are no rows"
    dtype = frame[name].dtype
    is_number = types.is_numeric_dtype(dtype) and not types.is_complex_dtype(dtype)
    if column.kind == "numeric" and not is_number and not frame[name].isna().all():
        return f"it holds {dtype} where numbers were profiled"
    return ""


def _drift(column: ColumnProfile, series: pd.Series[Any], n_reference: int) -> dict[str, object]:
    n_rows = len(series)
    p = np.array([*column.shares, column.missing_share])
    q = _counts(column, series) / n_rows
    floor = 0.5 / min(n_rows, n_reference)
    p_seen, q_seen = np.maximum(p, floor), np.maximum(q, floor)
    n_bins = np.count_nonzero(p + q)
    chance = stats.chi2.ppf(1 - FALSE_ALARM_RATE, n_bins - 1) if n_bins > 1 else 0.0
    moved = max(range(len(p)), key=lambda i: (round(abs(q[i] - p[i]), 9), q[i] - p[i]))  # of two, where the rows went
    return {
        "psi": float((q_seen - p_seen) @ np.log(q_seen / p_seen)),
        "psi_chance": (1 / n_rows + 1 / n_reference) * chance,
        "missing_share": q[-1],
        "unseen_share": q[:-1][p[:-1] == 0].sum(),
        "largest_move": f"{_bin_texts(column)[moved]}: {_percent(p[moved])} -> {_percent(q[moved])}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def check_drift(
    profile: Profile,
    frame: pd.DataFrame,
    *,
    max_psi: float = 0.25,
    max_missing_change: float = 0.05,
    drift: pd.DataFrame | None = None,
) -> Report:
    """Check that no column has moved further than allowed and further than chance explains.

    Both limits are raised to what chance alone reaches once in 1,000 times on so few rows (``psi_chance`` of
    :func:`compute_drift`; two proportions for the missing share), so that small tables raise no false alarms. The
    approximation wants a reference of about a thousand rows or more.

    Parameters
    ----------
    profile : Profile
    frame : DataFrame
    max_psi : float
        0.1 is usually read as a slight and 0.25 as a large shift (Siddiqi 2006, Credit Risk Scorecards).
    max_missing_change : float in [0, 1]
        Largest difference between the missing shares.
    drift : DataFrame, optional
        What :func:`compute_drift` has measured of ``frame``; by default it is measured here.

    Returns
    -------
    Report
        One row a column. A missing column, another type or an empty table has failed.
    """
    drift = compute_drift(profile, frame) if drift is None else drift
    rows = [
        _check_column(str(name), each, profile.n_rows, max_psi, max_missing_change) for name, each in drift.iterrows()
    ]
    facts = {"n_rows": len(frame), "n_rows_reference": profile.n_rows}
    return Report("Drift", tuple(rows), facts)


def _check_column(name: str, drift: pd.Series[Any], n_reference: int, max_psi: float, max_missing: float) -> Row:
    if np.isnan(drift["psi"]):
        return Row(name, "not compared", f"psi <= {max_psi:g}", "failed", str(drift["largest_move"]))
    n_rows, before, now = drift["n_rows"], drift["missing_share_reference"], drift["missing_share"]
    pooled = (before * n_reference + now * n_rows) / (n_reference + n_rows)
    noise = stats.norm.isf(FALSE_ALARM_RATE / 2) * np.sqrt(pooled * (1 - pooled) * (1 / n_rows + 1 / n_reference))
    psi_limit, missing_limit = max(max_psi, drift["psi_chance"]), max(max_missing, noise)
    failures = []
    if drift["psi"] > psi_limit:
        failures.append(str(drift["largest_move"]))
    if abs(now - before) > missing_limit:
        failures.append(f"missing: {_percent(before)} -> {_percent(now)}")
    limit = f"psi <= {psi_limit:.3g}, missing ± {_percent(missing_limit)}"
    status: Status = "failed" if failures else "passed"
    return Row(name, float(drift["psi"]), limit, status, "; ".join(dict.fromkeys(failures)))


# --- quality with late labels ------------------------------------------------------------------------------------


def compute_live_quality(
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    key: str | Sequence[str],
    target: str,
    score: str = "score",
    by: str = "model_version",
    metrics: Mapping[str, Callable[[ArrayLike, ArrayLike], float]],
) -> pd.DataFrame:
    """Measure the predictions whose labels have come in, by model version or by period.

    Parameters
    ----------
    predictions : DataFrame
        With ``key``, ``score`` and ``by``; one row a prediction.
    labels : DataFrame
        With ``key`` and ``target`` (0, 1, or missing while unknown). Labels of rows never scored are left out.
    key : str or sequence of str
        Integers join about eight times faster than texts.
    by : str
        A column of the predictions: the model version, or a day.
    metrics : mapping of str to function of (y_true, y_score)
        Computed where labels of both classes are there, NaN otherwise.

    Returns
    -------
    DataFrame
        Indexed by the sorted values of ``by``: ``n_scored, n_labelled, labelled_share, mean_score`` of all rows,
        ``positive_share`` of the labelled ones, ``calibration_gap`` (mean score minus positive share of the labelled
        ones) and the metrics.

    Raises
    ------
    QualityError
        For columns that are missing, no rows, scores or labels that are none, and a key that names two predictions or
        two labels.
    """
    keys = [key] if isinstance(key, str) else list(key)
    for table, frame, needed in (("predictions", predictions, [*keys, score, by]), ("labels", labels, [*keys, target])):
        _raise_for_columns(table, frame, needed)
        again = frame.duplicated(keys)
        if again.any():
            first = ", ".join(str(value) for value in frame.loc[again, keys].iloc[0])
            raise QualityError("keys", table=table, key=tuple(keys), n_duplicates=int(again.sum()), first=first)
    if predictions.empty:
        raise QualityError("no_rows", what="the predictions")
    _probabilities(predictions[score])
    scored = predictions[list(dict.fromkeys([*keys, score, by]))]
    joined = scored.merge(labels[[*keys, target]], on=keys, how="left")
    rows = {
        name: _quality(group[target], group[score], metrics)
        for name, group in joined.groupby(by, observed=True, dropna=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def _quality(
    target: pd.Series[Any], score: pd.Series[Any], metrics: Mapping[str, Callable[[ArrayLike, ArrayLike], float]]
) -> dict[str, float]:
    known = target.notna()
    y, y_score = _labels(target[known]), score[known].to_numpy(dtype=np.float64)
    has_both = len(y) > 0 and y.min() != y.max()
    positive_share = float(y.mean()) if len(y) else np.nan
    return {
        "n_scored": len(target),
        "n_labelled": len(y),
        "labelled_share": len(y) / len(target),
        "mean_score": float(score.mean()),
        "positive_share": positive_share,
        "calibration_gap": float(y_score.mean()) - positive_share if len(y) else np.nan,
    } | {name: float(compute(y, y_score)) if has_both else np.nan for name, compute in metrics.items()}


@dataclass(frozen=True)
class Limit:
    """The range in which a quality must stay; an end that is ``None`` is open.

    >>> print(Limit(low=0.68), "|", Limit(low=-0.05, high=0.05))
    >= 0.68 | -0.05 to 0.05
    """

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return the range in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}" if self.high is not None else "any"

    def holds(self, value: float) -> bool:
        """Whether the value lies in the range; NaN never does."""
        return (-np.inf if self.low is None else self.low) <= value <= (np.inf if self.high is None else self.high)


def check_live_quality(quality: pd.DataFrame, *, limits: Mapping[str, Limit], min_labelled: int = 200) -> Report:
    """Check every version or period of :func:`compute_live_quality` against limits.

    Parameters
    ----------
    quality : DataFrame
    limits : mapping of str to Limit
        By column, such as ``{"roc_auc": Limit(low=0.68), "calibration_gap": Limit(-0.05, 0.05)}``.
    min_labelled : int
        With fewer labels a row is not applicable. With enough of them a metric of NaN has failed.

    Raises
    ------
    QualityError
        When a limit names a column that was not computed.
    """
    _raise_for_columns("qualities", quality, limits)
    rows = []
    for group, each in quality.iterrows():
        for name, limit in limits.items():
            value, n_labelled = float(each[name]), int(each["n_labelled"])
            status: Status = "passed" if limit.holds(value) else "failed"
            reason = "" if status == "passed" else f"on {n_labelled} labels"
            if n_labelled < min_labelled:
                status, reason = "not_applicable", f"{n_labelled} labels, needs {min_labelled}"
            elif np.isnan(value):
                reason = f"every one of {n_labelled} labels is of one class"
            rows.append(Row(f"{quality.index.name} {group}: {name}", value, str(limit), status, reason))
    return Report("Live quality", tuple(rows), {"min_labelled": min_labelled})


# --- quality without labels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """A rising line through points: from a score to the share of positives among such scores."""

    scores: tuple[float, ...]
    shares: tuple[float, ...]

    def to_dict(self) -> dict[str, list[float]]:
        """Return JSON-ready values."""
        return {"scores": list(self.scores), "shares": list(self.shares)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Calibration:
        """Read back what :meth:`to_dict` wrote."""
        return cls(tuple(values["scores"]), tuple(values["shares"]))


def fit_calibration(y_true: ArrayLike, y_score: ArrayLike) -> Calibration:
    """Fit an isotonic calibration on labelled rows that the model was not trained on.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,), 0 or 1
    y_score : array-like of shape (n_samples,), in [0, 1]

    Raises
    ------
    QualityError
        For no rows or one class only, for other lengths, and for scores or labels that are none.
    """
    y, score = _labels(y_true), _probabilities(y_score)
    if len(y) != len(score):
        raise QualityError("lengths", n_true=len(y), n_score=len(score), what="scores")
    if y.min() == y.max():
        raise QualityError("one_class", value=int(y[0]), n_rows=len(y))
    distinct, rank, n_rows = np.unique(score, return_inverse=True, return_counts=True)
    fit = optimize.isotonic_regression(np.bincount(rank, y) / n_rows, weights=n_rows)
    ends = np.unique(np.concatenate([fit.blocks[:-1], fit.blocks[1:] - 1]))  # first and last score of each level step
    return Calibration(tuple(distinct[ends].tolist()), tuple(fit.x[ends].tolist()))


def estimate_roc_auc(calibration: Calibration, y_score: ArrayLike) -> float:
    """Estimate the ROC AUC that unlabelled rows will turn out to have, if scores still mean what they meant.

    Confidence-based performance estimation (NannyML's CBPE): each row counts as positive with its calibrated
    probability and as negative with the rest. **It is blind to concept drift.** When the world changes what a score
    means, the estimate does not move; it is shown beside the truth from late labels, never instead of it.

    Parameters
    ----------
    calibration : Calibration
    y_score : array-like of shape (n_samples,), in [0, 1]

    Raises
    ------
    QualityError
        For no rows, scores that are none, and when the calibration expects one class only.
    """
    score = _probabilities(y_score)
    positive = np.interp(score, calibration.scores, calibration.shares)
    if positive.max() == 0 or positive.min() == 1:
        raise QualityError("one_class", value=int(positive[0]), n_rows=len(score))
    distinct, rank = np.unique(score, return_inverse=True)
    positives = np.bincount(rank, positive, len(distinct))
    negatives = np.bincount(rank, 1 - positive, len(distinct))
    below = np.cumsum(negatives) - negatives / 2  # a tie counts half
    return float(positives @ below / (positives.sum() * negatives.sum()))


def _raise_for_columns(table: str, frame: pd.DataFrame, needed: Iterable[str]) -> None:
    missing = tuple(column for column in needed if column not in frame)
    if missing:
        raise QualityError("columns", table=table, missing=missing, columns=tuple(map(str, frame.columns)))


def _labels(y_true: ArrayLike) -> NDArray[np.int64]:
    labels = pd.Series(np.asarray(y_true))
    others = labels[~labels.isin([0, 1])].unique()
    if len(others):
        raise QualityError("labels", values=tuple(str(value) for value in others), known="0 and 1")
    return labels.to_numpy(dtype=np.int64)


def _probabilities(y_score: ArrayLike) -> Floats:
    score = np.asarray(y_score, dtype=np.float64)
    if not len(score):
        raise QualityError("no_rows", what="the scores")
    bad = np.flatnonzero(~((score >= 0) & (score <= 1)))  # NaN compares false
    if len(bad):
        raise QualityError(
            "scores", n_bad=len(bad), n_rows=len(score), first_row=int(bad[0]), first_value=float(score[bad[0]])
        )
    return score


# --- figures -----------------------------------------------------------------------------------------------------


def plot_drift(drift: pd.DataFrame, *, max_psi: float = 0.25, max_columns: int = 20, ax: Axes | None = None) -> Axes:
    """Draw the index of each column as a bar, furthest on top, with the limit and the largest move in words.

    Bars end at five times the limit; the number beside them does not. Columns that could not be compared have no bar
    but a reason.
    """
    if drift.empty:
        raise QualityError("no_rows", what="the measured drift")
    shown = drift.head(max_columns)
    ax = _axes(ax, height=1.5 + 0.3 * len(shown))
    psi = shown["psi"].to_numpy()
    rows, ends = np.arange(len(shown)), np.minimum(np.nan_to_num(psi), 5 * max_psi)
    is_beyond = psi > np.maximum(max_psi, shown["psi_chance"].to_numpy())
    ax.barh(rows, ends, 0.62, color=np.where(is_beyond, VERMILLION, BLUE).tolist())
    for row, end, value, move in zip(rows, ends, psi, shown["largest_move"], strict=True):
        text = f"not compared: {move}" if np.isnan(value) else f"{'… ' if value > end else ''}{value:.3f}   {move}"
        color = VERMILLION if np.isnan(value) else "black"
        start = (max(end, max_psi), row)
        ax.annotate(text, start, (5, 0), textcoords="offset points", va="center", size=8, color=color)
    ax.axvline(max_psi, color=GREY, ls="--", lw=1, label=f"limit {max_psi:g}")
    ax.legend(loc="lower right", frameon=False)
    ax.set_yticks(rows, [str(name) for name in shown.index])
    ax.set(xlim=(0, 8.5 * max_psi), ylim=(len(shown) - 0.4, -0.6), xticks=max_psi * np.arange(0, 6))
    ax.set(
        xlabel="Population stability index (0: as in training)", ylabel="Column", title="What has moved since training"
    )
    return ax


def plot_live_quality(
    quality: pd.DataFrame,
    *,
    metric: str = "roc_auc",
    estimated: pd.Series[float] | None = None,
    limit: Limit | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric by period (or version) from late labels, beside its estimate without labels and the limit."""
    _raise_for_columns("qualities", quality, [metric])
    ax = _axes(ax)
    positions = np.arange(len(quality))
    ax.plot(positions, quality[metric], "o-", color=BLUE, label="from late labels", zorder=3)
    if estimated is not None:
        of_rows = estimated.reindex(quality.index)
        ax.plot(positions, of_rows, "s--", color=ORANGE, mfc="white", label="estimated without labels")
    for end in () if limit is None else (limit.low, limit.high):
        if end is not None:
            ax.axhline(end, color=VERMILLION, ls=":", lw=1.5, label=f"limit {end:g}")
    texts = [str(name.date() if isinstance(name, pd.Timestamp) else name) for name in quality.index]
    step = max(1, int(np.ceil(len(texts) / 12)))
    ax.set_xticks(positions[::step], texts[::step], rotation=30 if max(map(len, texts)) > 6 else 0)
    ax.set(xlabel=str(quality.index.name), ylabel=metric, title="Is it still right")
    ax.legend(frameon=False)
    ax.grid(axis="y", alpha=0.25)
    return ax


def _axes(ax: Axes | None, *, height: float = 4.2) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - half a second that only figures need

        _, ax = plt.subplots(figsize=(7.2, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
