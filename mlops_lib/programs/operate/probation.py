"""A version that has just come into production is watched: it may not be worse than what it replaced, on the same rows.

The former champion scores the rows that the new version has scored in production, once their labels are there, and the
paired interval of the difference decides, with rows of one day taken together. A version whose interval lies wholly on
the worse side goes back, and so does one whose scoring fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from mlops_lib import data, gates, quality, registry
from mlops_lib.errors import MlopsError, NotFoundError, QualityError
from mlops_lib.project import Project
from mlops_lib.registry import Entry
from mlops_lib.report import Row

if TYPE_CHECKING:
    from mlops_lib.programs.operate.record import Tick

OVER = "over"


@dataclass(frozen=True)
class Outcome:
    """What watching a version came to; ``entry`` is the hash of the move that brought it, ``text`` how it stands."""

    version: int
    entry: str
    row: Row
    text: str
    is_worse: bool = False


def find_promotion(project: Project) -> Entry | None:
    """Return the move that brought the version in production, or None where there is none or it was a way back."""
    entry = registry.standing(project).get(project.production)
    return entry if entry is not None and entry.action in ("promote", "force") else None


def examine_probation(project: Project, tick: Tick) -> Outcome | None:
    """Compare the version on probation with the former one; None where no version is on probation.

    Parameters
    ----------
    tick : Tick
        Its ``seen`` is completed: probation lasts from when a tick first saw a version in production.
    """
    entry, policy = find_promotion(project), project.policy
    if entry is None or entry.from_version is None or entry.from_version == entry.version:
        return None
    first_seen = tick.seen.setdefault(entry.hash, tick.at)
    if first_seen == OVER:
        return None
    since = datetime.fromisoformat(first_seen)
    scored = {period: each for period, each in tick.scored.items() if each.get("version") == entry.version}
    n_labels = sum(tick.labelled.get(period, 0) for period in scored)
    until = since + timedelta(days=policy.probation_days)
    name, limit = f"probation of version {entry.version}", f"not worse than version {entry.from_version}"
    failed = [each for period, each in scored.items() if period in tick.periods and "error" in each]
    errors = [each["error"] for each in failed if not each["empty"]]
    if errors and tick.time <= until:
        row = Row(name, len(errors), limit, "failed", f"scoring fails: {errors[0]}"[:400])
        return Outcome(entry.version, entry.hash, row, "", is_worse=True)
    sound = [period for period, each in scored.items() if "error" not in each and tick.labelled.get(period)]
    interval, loss, why_not = _compare(project, entry, sound)
    standing = f"until {until:%Y-%m-%d} or {policy.probation_labels:,} labels, {n_labels:,} so far"
    is_over = tick.time > until or n_labels >= policy.probation_labels
    if is_over:
        tick.seen[entry.hash] = OVER  # it is judged once more, now
    if interval is None:
        text = f"version {entry.version} is on probation {standing}: {why_not}"
        return Outcome(entry.version, entry.hash, Row(name, None, limit, "not_applicable", text), text * (not is_over))
    metric = quality.find_metric(project.task, None)
    is_worse = interval.high < -loss if metric.greater_is_better else interval.low > loss
    reason = f"{metric.name} less that of version {entry.from_version} is {interval} on {interval.n_rows:,} same rows"
    row = Row(name, round(interval.value, 4), limit, "failed" if is_worse else "passed", reason)
    text = "" if is_over else f"version {entry.version} is on probation {standing}"
    return Outcome(entry.version, entry.hash, row, text, is_worse)


def _compare(project: Project, entry: Entry, periods: list[str]) -> tuple[quality.Interval | None, float, str]:
    """Return by how much the new version's leading metric exceeds the former one's, and may; or why not."""
    loss = project.policy.probation_loss
    if not periods:
        return None, loss, "none of the rows that it has scored has a label yet"
    try:
        candidate, former = (registry.load_model(project, n) for n in (entry.version, entry.from_version or 0))
        settled = [data.settle_labels(project, data.read_sightings(project, period)).labels for period in periods]
        arrivals = [data.read_table(project.path("arrivals", period)) for period in periods]
        known = pd.concat(arrivals).drop(columns=[project.target, project.labelled_at], errors="ignore")
        rows = known.merge(pd.concat(settled), on=list(project.keys)).dropna(subset=[project.target])
        evidence = gates.collect_evidence(project, candidate, former, rows.reset_index(drop=True))
        if evidence.champion is None:
            return None, loss, "there is nothing to compare it with"
        clusters = evidence.clusters(project.time or None)
        if not evidence.task.is_classifier:
            loss *= quality.compute_metrics(evidence.y_true, evidence.champion, task=evidence.task)[
                evidence.task.metrics[0]
            ]
        return (
            quality.compute_paired_interval(
                evidence.y_true, evidence.candidate, evidence.champion, task=evidence.task, clusters=clusters
            ),
            loss,
            "",
        )
    except (NotFoundError, QualityError) as error:
        return None, loss, str(error)
    except MlopsError as error:
        return None, loss, f"the two cannot be compared: {error}"
