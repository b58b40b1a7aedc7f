"""Gates on labels: is it good enough, no worse, better, for no group worse; do its scores mean what they say.

Every comparison is a test with a stated chance of being wrong, ``alpha``, one-sided: a model exactly at the limit
passes with that probability (``NoSliceWorse``: is stopped with it). All gates must pass, so passing wrongly is no more
likely for many gates than for one. ``clusters`` names the column of rows that belong together; a column of times counts
by day. Rows of one day share what is not in the table, and to count them as independent makes intervals too narrow.

A metric is named: one of the task's, of the project's own, or of scikit-learn's (``quality.find_metric``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mlops_lib import quality
from mlops_lib.errors import TaskError
from mlops_lib.gates.evidence import NO_CHAMPION, Evidence, status_of
from mlops_lib.report import Row

ALPHA = 0.025  # one-sided; the interval shown is then the usual one of 95 %
TITLES = {
    "roc_auc": "ROC AUC",
    "roc_auc_ovr": "one-vs-rest ROC AUC",
    "brier": "Brier score",
    "f1_macro": "macro F1",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
}


@dataclass(frozen=True, kw_only=True)
class LabelGate:
    """What gates on labels have in common.

    Parameters
    ----------
    alpha : float in (0, 0.5)
        The chance that a model exactly at the limit passes.
    clusters : str, optional
        Column of rows that belong together.
    """

    alpha: float = ALPHA
    clusters: str | None = None

    def options(self, evidence: Evidence) -> dict[str, Any]:
        """Return how an interval is made: one of its ends is a one-sided test at the gate's ``alpha``."""
        clusters = evidence.clusters(self.clusters)
        return {"task": evidence.task, "clusters": clusters, "confidence": 1 - 2 * self.alpha}

    def describe(self, interval: quality.Interval) -> str:
        """Return an interval, and how many clusters it rests on, for people."""
        by = f", {interval.degrees + 1:.0f} clusters of {self.clusters}" if self.clusters else ""
        return f"{100 * interval.confidence:g} % interval {interval}{by}"


@dataclass(frozen=True)
class Threshold(LabelGate):
    """The metric reaches a value even at the worse end of its interval.

    Parameters
    ----------
    metric : str
    threshold : float
        A minimum where greater is better, a maximum where less is; where nearest to zero is best (``mean_error``) the
        whole interval lies within ±threshold.
    alpha, clusters
        As for every :class:`LabelGate`.
    """

    metric: str
    threshold: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate alone."""
        metric = evidence.metric(self.metric)
        interval = quality.compute_interval(evidence.y_true, evidence.candidate, metric, **self.options(evidence))
        if metric.greater_is_better is None:
            sign, holds = "within ±", max(-interval.low, interval.high) <= self.threshold
        elif metric.greater_is_better:
            sign, holds = ">= ", interval.low >= self.threshold
        else:
            sign, holds = "<= ", interval.high <= self.threshold
        limit, question = f"interval {sign}{self.threshold:.3f}", f"Is it good enough ({_title(self.metric)})?"
        reason = self.describe(interval)
        yield Row(f"test_{self.metric}", interval.value, limit, status_of(holds), reason, question)


@dataclass(frozen=True)
class NoWorse(LabelGate):
    """The candidate is shown to lose no more than a margin against the champion: non-inferiority on the same rows.

    Few rows show nothing, and do not pass. For a proof that it is better, see :class:`Better`.

    Parameters
    ----------
    metric : str
    margin : float
        The loss that would still be accepted, in the metric's unit; the worse end of the interval of the difference
        must stay within it.
    alpha, clusters
        As for every :class:`LabelGate`: a candidate that is worse by exactly ``margin`` passes with ``alpha``.
    """

    metric: str
    margin: float

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge candidate minus champion."""
        question = f"Is it no worse than the champion ({_title(self.metric)})?"
        yield _compare(self, evidence, -self.margin, f"{self.metric}_minus_champion", question)


@dataclass(frozen=True)
class Better(LabelGate):
    """The candidate is shown to be better than the champion: superiority on the same rows.

    Parameters
    ----------
    metric : str
    by : float
        The worse end of the interval of the gain must lie beyond it.
    alpha, clusters
        As for every :class:`LabelGate`: a candidate that is better by exactly ``by``, so equally good for 0, passes
        with ``alpha``.
    """

    metric: str
    by: float = 0.0

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge candidate minus champion."""
        question = f"Is it better than the champion ({_title(self.metric)})?"
        yield _compare(self, evidence, self.by, f"{self.metric}_better_than_champion", question)


def _compare(gate: NoWorse | Better, evidence: Evidence, gain: float, name: str, question: str) -> Row:
    """Judge whether the interval of candidate minus champion, counted so that more is better, is beyond a gain."""
    greater = _direction(evidence, gate.metric)
    bound = gain if greater else -gain
    limit = f"interval {'>' if greater else '<'}{'' if isinstance(gate, Better) else '='} {bound:.3f}"
    if evidence.champion is None:
        return Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
    scores, metric = (evidence.candidate, evidence.champion), evidence.metric(gate.metric)
    interval = quality.compute_paired_interval(evidence.y_true, *scores, metric, **gate.options(evidence))
    worse_end = interval.low if greater else -interval.high
    holds = worse_end > gain or (worse_end == gain and isinstance(gate, NoWorse))
    return Row(name, interval.value, limit, status_of(holds), gate.describe(interval), question)


@dataclass(frozen=True)
class NoSliceWorse(LabelGate):
    """No slice is certainly harmed: in none is the candidate shown to be worse than the champion by more than a margin.

    The hypothesis of each slice is "it loses no more than ``margin``"; a slice whose p-value is at or below ``alpha``
    after Holm's correction over all slices of all columns is harmed, and the gate fails. Slices are small: to demand
    the opposite, proof that none is harmed, would stop every candidate. What was too small to be judged is counted.

    Parameters
    ----------
    columns : tuple of str
        Columns of few values.
    metric : str
    margin : float
        The loss in a slice that would still be accepted.
    min_rows : int
        Smaller slices are not judged.
    required : tuple of (column, value as text)
        Slices that must be judged: where one is empty or too small, the gate fails.
    alpha : float in (0, 1)
        The chance that a candidate that loses no more than ``margin`` in any slice is stopped; larger is stricter.
    clusters
        As for every :class:`LabelGate`.
    """

    columns: tuple[str, ...]
    metric: str
    margin: float
    min_rows: int = 500
    required: tuple[tuple[str, str], ...] = ()
    alpha: float = field(default=0.05, kw_only=True)

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge all slices as one row, which names what is harmed."""
        name = f"worst_slice_{self.metric}_minus_champion"
        greater = _direction(evidence, self.metric)
        limit = f"no slice certainly {'<' if greater else '>'} {-self.margin if greater else self.margin:.3f}"
        question = f"Is no group of rows served worse ({_title(self.metric)})?"
        if evidence.champion is None:
            yield Row(name, None, limit, "not_applicable", NO_CHAMPION, question)
            return
        slices = self.measure(evidence)
        judged = slices[slices["p_worse"].notna()]
        missing = "; ".join(filter(None, (_explain_unjudged(slices, *each) for each in self.required)))
        if judged.empty or missing:
            yield Row(name, None, limit, "failed", missing or f"no slice has {self.min_rows} rows", question)
            return
        harmed = judged[judged["p_worse"] <= self.alpha]
        shown = judged.head(1) if harmed.empty else harmed
        skipped = f", {len(slices) - len(judged)} too small to judge" if len(slices) > len(judged) else ""
        reason = (
            f"{'worst' if harmed.empty else f'{len(harmed)} harmed'} of {len(judged)} slices{skipped}: "
            f"{'; '.join(_describe_slice(row) for _, row in shown.iterrows())}"
        )
        yield Row(name, float(shown["difference"].iloc[0]), limit, status_of(harmed.empty), reason, question)

    def measure(self, evidence: Evidence) -> pd.DataFrame:
        """Return the table of slices that is judged, as ``quality.compute_slices`` makes it and plots show it."""
        return quality.compute_slices(
            evidence.y_true,
            evidence.candidate,
            evidence.columns(self.columns),
            task=evidence.task,
            metric=evidence.metric(self.metric),
            y_champion=evidence.champion,
            margin=self.margin,
            min_rows=self.min_rows,
            clusters=evidence.clusters(self.clusters),
        )


def _describe_slice(row: pd.Series[Any]) -> str:
    interval = f"[{row['difference_low']:.3f}, {row['difference_high']:.3f}]"
    return f"{row['column']} = {row['slice']} {row['difference']:.3f} {interval}"


def _explain_unjudged(slices: pd.DataFrame, column: str, text: str) -> str:
    """Return why a slice that must be judged was not, or nothing."""
    found = slices[(slices["column"] == column) & (slices["slice"] == text)]
    reason = "no rows" if found.empty else str(found["note"].iloc[0])
    return f"{column} = {text} must be judged but has {reason}" if reason else ""


@dataclass(frozen=True)
class Calibrated(LabelGate):
    """Scores mean what they say: in groups of similar scores, the mean score is shown to be near what was observed.

    Rows are ordered by score and cut into equally large groups; in each, the whole interval of mean score minus
    observed share must lie within ``max_error`` (equivalence in every group). That covers the mean of all scores and
    their slope. The expected calibration error would not do: it is biased upwards, the more so the fewer the rows. Of
    several classes the score is that of the predicted one, and observed is whether it was right; a predicted number is
    held against the mean of the target.

    Parameters
    ----------
    max_error : float
        In (0, 1) for classes; in the target's unit for numbers.
    n_groups : int
    alpha, clusters
        As for every :class:`LabelGate`: scores that are off by exactly ``max_error`` in one group pass with ``alpha``.
    """

    max_error: float
    n_groups: int = 5

    def check(self, evidence: Evidence) -> Iterator[Row]:
        """Judge the candidate's group whose interval reaches furthest from zero."""
        groups = quality.compute_score_groups(
            evidence.y_true, evidence.candidate, n_groups=self.n_groups, **self.options(evidence)
        )
        worst = max(groups, key=lambda group: max(-group.gap.low, group.gap.high))
        holds = max(-worst.gap.low, worst.gap.high) <= self.max_error
        names = (
            ("mean score", "observed share") if evidence.task.is_classifier else ("mean prediction", "observed mean")
        )
        reason = (
            f"worst of {len(groups)} groups: {names[0]} {worst.mean_score:.3f}, {names[1]} {worst.observed:.3f}, "
            f"{self.describe(worst.gap)}"
        )
        limit, question = f"interval within ±{self.max_error:.3f}", "Do its scores mean what they say?"
        yield Row("calibration_gap", worst.gap.value, limit, status_of(holds), reason, question)


def _direction(evidence: Evidence, name: str) -> bool:
    """Return whether greater is better; a metric that is best near zero orders no two models."""
    greater = evidence.metric(name).greater_is_better
    if greater is None:
        reason = "is best near zero and shows no model to be worse; name another"
        raise TaskError(subject=f"The metric '{name}'", reason=reason)
    return greater


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))
