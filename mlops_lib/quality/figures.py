"""Figures of what was measured, in one style that every figure of a project can have.

>>> import matplotlib.pyplot as plt  # doctest: +SKIP
>>> plt.style.use(quality.FIGURE_STYLE)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mlops_lib.errors import QualityError, TaskError
from mlops_lib.project import Costs
from mlops_lib.quality.costs import compute_costs, cost_metric
from mlops_lib.quality.drift import alarm_level
from mlops_lib.quality.live import Limit
from mlops_lib.quality.metrics import Metric, find_metric, read_scores
from mlops_lib.quality.profiles import raise_for_columns
from mlops_lib.quality.slices import compute_score_groups
from mlops_lib.task import Task, binary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), Color Universal Design: told apart with every kind of colour vision.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#7F7F7F"
# For matplotlib.pyplot.style.use or .context; "C0" to "C3" are then the four colours, in this order.
FIGURE_STYLE: dict[str, Any] = {
    "axes.prop_cycle": f"cycler(color={[BLUE, ORANGE, VERMILLION, GREY]})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.figsize": (7.0, 4.2),
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def new_axes(
    title: str = "", xlabel: str = "", ylabel: str = "", *, height: float = 4.2, ax: Axes | None = None
) -> Axes:
    """Return empty axes in the library's style, ``height`` inches high, or name and dress those that are given."""
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 - half a second that only figures need

        with plt.style.context(FIGURE_STYLE):
            _, ax = plt.subplots(figsize=(7.0, height))
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def plot_calibration(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    task: Task = binary(),
    y_champion: ArrayLike | None = None,
    n_groups: int = 10,
    clusters: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what was observed against the mean score in groups of :func:`compute_score_groups`, with 95 % intervals.

    Parameters and errors are those of that function; of ``y_champion`` the same is drawn beside it.
    """
    names = {
        "binary": ("Do scores mean what they say", "Mean score in the group", "Observed share of positives"),
        "multiclass": ("Do scores mean what they say", "Mean score of what is predicted", "Share that is right"),
        "regression": ("Is it right on average", "Mean prediction in the group", "Mean target"),
    }
    ax = new_axes(*names[task.kind], ax=ax)
    for name, scores, color, line in _roles(y_score, y_champion):
        groups = compute_score_groups(y_true, scores, task=task, n_groups=n_groups, clusters=clusters)
        mean, observed, low, high, n_rows = np.array(
            [(group.mean_score, group.observed, group.gap.low, group.gap.high, group.gap.n_rows) for group in groups]
        ).T
        ax.vlines(mean, mean - high, mean - low, color=color, alpha=0.45)
        label = f"{name}: {n_rows.sum():,.0f} rows in {len(groups)} groups"
        ax.plot(mean, observed, f"o{line}", color=color, ms=5, label=label, zorder=3)
    ax.axline((mean[0], mean[0]), slope=1, ls=":", color=GREY, lw=1, label="perfect")
    ax.legend(loc="upper left", frameon=False)
    return ax


def plot_score_threshold(
    y_true: ArrayLike, y_score: ArrayLike, *, task: Task = binary(), costs: Costs | None = None, ax: Axes | None = None
) -> Axes:
    """Draw precision and recall of the positive class against the threshold, or what it costs; mark the task's own."""
    if costs is not None and costs.function is None:
        return _plot_costs(costs, y_true, y_score, task, ax)
    from sklearn import metrics  # noqa: PLC0415

    task, y, score = read_scores(task, y_true, y_score)
    threshold = task.threshold
    if threshold is None:
        raise TaskError(subject=f"The task '{task.kind}'", reason="has no threshold to draw")
    ax = new_axes("What a threshold buys", "Threshold on the score", "Share", ax=ax)
    precision, recall, thresholds = metrics.precision_recall_curve(y, score)
    ax.plot(thresholds, precision[:-1], color=BLUE, label="precision: flagged rows that are positive")
    ax.plot(thresholds, recall[:-1], "--", color=ORANGE, label="recall: positives that are flagged")
    flagged = task.decide_codes(score) == 1
    if flagged.any():
        at = (float(y[flagged].mean()), float(flagged[y == 1].mean()))
        ax.plot([threshold, threshold], at, "o", color=VERMILLION, zorder=3)
        text = f"precision {at[0]:.2f}, recall {at[1]:.2f}, flags {100 * flagged.mean():.3g} % of rows"
    else:
        text = "flags no row"
    ax.axvline(threshold, color=VERMILLION, lw=1, label=f"at {threshold:g}: {text}")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return ax


def _plot_costs(costs: Costs, y_true: ArrayLike, y_score: ArrayLike, task: Task, ax: Axes | None) -> Axes:
    """Draw the mean cost of a row against the threshold, and mark the task's own."""
    unit = costs.unit or "cost"
    ax = new_axes("What a threshold costs", "Threshold on the score", f"{unit} a row", ax=ax)
    thresholds, cost = compute_costs(costs, y_true, y_score, task=task)
    ax.plot(thresholds, cost, color=BLUE, drawstyle="steps-post")
    task, y, score = read_scores(task, y_true, y_score)
    own = cost_metric(costs, task).measure(task, y, score)
    at = float(task.threshold or 0)
    ax.plot(at, own, "o", color=VERMILLION, zorder=3)
    ax.axvline(at, color=VERMILLION, lw=1, label=f"at {at:.3g}: {own:.3g} {unit} a row")
    ax.set(xlim=(-0.01, 1.01), ylim=(0, None))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return ax


def plot_confusion(y_true: ArrayLike, y_score: ArrayLike, *, task: Task, ax: Axes | None = None) -> Axes:
    """Draw which class is taken for which: of each true class the share that each prediction has."""
    from sklearn.metrics import ConfusionMatrixDisplay  # noqa: PLC0415 - 0.7 s

    task, y, score = read_scores(task, y_true, y_score)
    names = [_shorten(str(name)) for name in task.class_values]
    ax = new_axes(height=2.2 + 0.5 * len(names), ax=ax)
    codes = range(len(names))
    ConfusionMatrixDisplay.from_predictions(
        y, task.decide_codes(score), labels=codes, display_labels=names, normalize="true", values_format=".2f",
        xticks_rotation=0 if max(map(len, names)) <= 10 else 45, cmap="Blues", colorbar=False, ax=ax,
    )  # fmt: skip
    return new_axes("What is taken for what", "Predicted", "True (shares add up to 1 in each row)", ax=ax)


def plot_residuals(y_true: ArrayLike, y_score: ArrayLike, *, task: Task, ax: Axes | None = None) -> Axes:
    """Draw the target minus the prediction against the prediction, at most 2,000 rows of it."""
    from sklearn.metrics import PredictionErrorDisplay  # noqa: PLC0415 - 0.7 s

    _, y, score = read_scores(task, y_true, y_score)
    ax = new_axes(ax=ax)
    PredictionErrorDisplay.from_predictions(
        y, score, kind="residual_vs_predicted", subsample=min(2000, len(y)), random_state=0, ax=ax,
        scatter_kwargs={"color": BLUE, "alpha": 0.35, "s": 12}, line_kwargs={"color": GREY},
    )  # fmt: skip
    return new_axes("How far it is off", "Prediction", "Target minus prediction", ax=ax)


def plot_slices(
    slices: pd.DataFrame,
    *,
    task: Task = binary(),
    metric: str | Metric | None = None,
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
    chosen = find_metric(task, metric)
    greater_is_better = chosen.greater_is_better
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
    more = f" (worst {len(shown)} of {len(measured)})" if len(measured) > len(shown) else ""
    title = ("Where the candidate differs" if is_difference else "Where it fails") + more
    height, xlabel = 1.6 + 0.28 * len(shown), chosen.name + (", candidate minus champion" if is_difference else "")
    ax = new_axes(title, xlabel, "Slice (rows)", height=height, ax=ax)
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
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.65 / height), ncols=2, frameon=False)
    labels = [f"{c}: {_shorten(s)}  ({n:,})" for c, s, n in zip(shown.column, shown.slice, shown.n_rows, strict=True)]
    ax.set_yticks(rows, labels)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    return ax


def plot_drift(
    drift: pd.DataFrame,
    *,
    max_psi: float = 0.25,
    alarms_a_year: float = 1.0,
    periods_a_year: int = 365,
    max_columns: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw the index of each column as a bar, furthest on top, with the limit and the largest move in words.

    Bars end at five times the limit; the number beside them does not. What is beyond it and not explained by chance, as
    :func:`check_drift` asks, has another colour. Columns that could not be compared have no bar but a reason.
    """
    if drift.empty:
        raise QualityError("no_rows", what="the measured drift")
    shown = drift.head(max_columns)
    xlabel, height = "Population stability index (0: as in training)", 1.5 + 0.3 * len(shown)
    ax = new_axes("What has moved since training", xlabel, "Column", height=height, ax=ax)
    psi = shown["psi"].to_numpy()
    rows, ends = np.arange(len(shown)), np.minimum(np.nan_to_num(psi), 5 * max_psi)
    level = alarm_level(drift, alarms_a_year=alarms_a_year, periods_a_year=periods_a_year)
    is_beyond = (psi > max_psi) & (shown["p_value"].to_numpy() < level)
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
    return ax


def plot_live_quality(
    quality: pd.DataFrame,
    *,
    task: Task = binary(),
    metric: str | None = None,
    limit: Limit | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric (the task's leading one by default) by period or version from late labels, and the limit."""
    name = metric or task.metrics[0]
    raise_for_columns("qualities", quality, [name])
    ax = new_axes("Is it still right", str(quality.index.name), name, ax=ax)
    positions = np.arange(len(quality))
    ax.plot(positions, quality[name], "o-", color=BLUE, label="from late labels", zorder=3)
    for end in () if limit is None else (limit.low, limit.high):
        if end is not None:
            ax.axhline(end, color=VERMILLION, ls=":", lw=1.5, label=f"limit {end:g}")
    texts = [str(each.date() if isinstance(each, pd.Timestamp) else each) for each in quality.index]
    step = max(1, int(np.ceil(len(texts) / 12)))
    ax.set_xticks(positions[::step], texts[::step], rotation=30 if max(map(len, texts)) > 6 else 0)
    ax.legend(frameon=False)
    ax.grid(axis="y", alpha=0.25)
    return ax


def plot_policies(periods: pd.DataFrame, *, metric: str, ax: Axes | None = None) -> Axes:
    """Draw what became of each policy of a replay: its quality by period with intervals, releases as diamonds.

    Parameters
    ----------
    periods : DataFrame
        ``operate.Replay.periods``: ``policy``, ``period``, ``value``, ``low``, ``high`` and ``released``.
    """
    raise_for_columns("periods", periods, ["policy", "period", "value", "low", "high", "released"])
    ax = new_axes("What would have been in production", "period", metric, ax=ax)
    names, policies = list(dict.fromkeys(periods["period"])), list(periods.groupby("policy", sort=False))
    for number, (policy, each) in enumerate(policies):
        values = each[["value", "low", "high"]].astype(float)
        positions = np.array([names.index(period) for period in each["period"]]) + 0.14 * (number - len(policies) / 2)
        color = f"C{number}"
        ax.plot(positions, values["value"], "o-", color=color, label=str(policy), ms=4)
        ax.vlines(positions, values["low"], values["high"], color=color, lw=1, alpha=0.6)
        is_new = each["released"].notna().to_numpy()
        ax.plot(positions[is_new], values["value"][is_new], "D", color=color, ms=9, mfc="none")
    ax.set_xticks(range(len(names)), names, rotation=30)
    ax.legend(frameon=False, ncols=2)
    ax.grid(axis="y", alpha=0.25)
    return ax


def _shorten(text: str, width: int = 28) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _roles(y_score: ArrayLike, y_champion: ArrayLike | None) -> list[tuple[str, ArrayLike, str, str]]:
    """Name, scores, colour and line style of each curve to draw."""
    if y_champion is None:
        return [("model", y_score, BLUE, "-")]
    return [("champion", y_champion, ORANGE, "--"), ("candidate", y_score, BLUE, "-")]
