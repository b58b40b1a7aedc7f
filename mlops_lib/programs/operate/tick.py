"""One tick of operating a project: what arrived is scored, what became known is judged, what the policy says is done.

ingest → score with what is in production → join labels → monitor → probation → decide → train, validate, promote →
status page → hooks. Each tick has a number and a record that is written after every step, so that a tick which was
killed is gone on with where it was: what is scored already is not scored again, what was decided stays decided, and a
promotion is made once. One tick runs at a time.

>>> print(operate.run_tick(project).report)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from mlops_lib import data, registry, tracking
from mlops_lib.errors import (
    BatchError,
    ContractError,
    NotebookError,
    NotFoundError,
    OperateError,
    QualityError,
    RefusedError,
    TableError,
)
from mlops_lib.programs import batch
from mlops_lib.programs.notebooks import run_notebook
from mlops_lib.programs.operate import monitor, tables
from mlops_lib.programs.operate.decide import Situation, decide
from mlops_lib.programs.operate.hooks import tell
from mlops_lib.programs.operate.probation import examine_probation, find_promotion
from mlops_lib.programs.operate.record import Tick, follow, lock, read_ticks
from mlops_lib.programs.operate.training import latest_arrival, promote_version, train_and_validate
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row

CLOCK_MIN = 10  # by how many minutes clocks may differ
OF_ROWS = (BatchError, ContractError, QualityError, TableError)  # a table's own faults; all others stop a tick


def run_tick(
    project: Project, *, dry_run: bool = False, progress: Callable[[int, int, str], None] | None = None
) -> Tick:
    """Do everything that is due now, and return what came of it.

    A tick that was interrupted is gone on with. Where nothing has changed since the last one, that one is returned.

    Parameters
    ----------
    dry_run : bool
        Say what would be done; nothing is written.
    progress : callable, optional
        Called with steps done, steps in all and the step's name.

    Raises
    ------
    OperateError
        Another tick is running, or the clock is behind the last tick. Nothing was changed.
    StoreError, WriteError
        The tick is gone on with when it is called again.
    """
    with contextlib.nullcontext() if dry_run else lock(project):
        ticks = read_ticks(project)
        last = ticks[-1] if ticks else None
        if last is not None and project.clock < last.time - timedelta(minutes=CLOCK_MIN):
            raise OperateError("clock", now=project.clock.isoformat(), last=last.at)
        tick = last if last is not None and last.status == "running" else follow(last, project.clock)
        environ = {**project.environ, "MLOPS_NOW": tick.at}  # for notebooks: what they know is what this tick knows
        is_real, project = project.now is None, replace(project, now=tick.time, environ=environ)
        steps = _Steps(project, tick, last, is_real=is_real, dry_run=dry_run, progress=progress or (lambda *_: None))
        return steps.run()


class _Steps:
    """The steps of one tick, in order; each writes the record when it is done."""

    def __init__(
        self,
        project: Project,
        tick: Tick,
        last: Tick | None,
        *,
        is_real: bool,
        dry_run: bool,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.project, self.tick, self.last, self.policy = project, tick, last, project.policy
        self.is_real, self.dry_run, self.progress = is_real, dry_run, progress
        self.releases: dict[int, Release] = {}

    def run(self) -> Tick:
        """Do all steps; return the record."""
        started, tick = time.monotonic(), self.tick
        if self.is_real and self.project.ingest and not self.dry_run:
            self.project.ingest()
        if tick is not self.last:
            tick.periods = self.find_periods()
            if self.last is not None and not (tick.periods or self.find_changed_labels() or self.is_due()):
                return self.last
            if not self.dry_run:
                tick.write(self.project)
        steps = (self.score, self.judge, self.watch, self.decide, self.train, self.promote)
        if self.dry_run:
            for step in (self.say_what_to_score, self.judge, self.decide):
                step()
            tick.status = "dry run"
            return tick
        with tracking.start_run(self.project, run_name=f"tick {tick.number}") as run:
            tick.run_id = run.info.run_id
            for number, step in enumerate(steps):
                self.progress(number, len(steps), step.__name__)
                if step.__name__ not in tick.done:
                    step()
                    tick.done.append(step.__name__)
                    tick.write(self.project)
            self.finish(started)
        tell(self.project, asdict(tick), tick.notes)
        if tick.notes:
            tick.write(self.project)
        return tick

    def note(self, name: str, value: Any, limit: str, status: Any, reason: str = "") -> None:
        """Add a row to the report."""
        self.tick.rows.append(asdict(Row(name, value, limit, status, reason)))

    # --- what is there -----------------------------------------------------------------------------------------------

    def find_periods(self) -> list[str]:
        """Return the periods that are to be scored, in order: those that came since, and those that failed."""
        tick, known = self.tick, self.project.periods()
        if self.last is None:
            tick.skipped = self._find_judged(known)
        done = {period for period, each in tick.scored.items() if "error" not in each}
        return [period for period in known if period not in {*done, *tick.skipped} and self._has_come(period)]

    def _find_judged(self, known: tuple[str, ...]) -> list[str]:
        """Return the periods up to those that the version in production was judged on: operating begins after them."""
        entry = find_promotion(self.project)
        verdict = registry.load_verdict(self.project, entry.version) if entry else None
        judged = [p for p in (verdict.facts["rows"]["periods"] if verdict else ()) if p in known]
        return list(known[: max(map(known.index, judged)) + 1]) if judged else []

    def _has_come(self, period: str) -> bool:
        """Whether all rows of a period had come at the tick's moment; without a clock of its own all that is there."""
        if self.is_real or not self.project.time:
            return True
        return latest_arrival(self.project, period) <= self.tick.time

    def find_changed_labels(self) -> list[str]:
        """Return the scored periods whose labels are others than those that their quality was computed from."""
        changed = []
        for period in self.tick.scored:
            settled = self._settle(period)
            if settled is not None and data.fingerprint_frame(settled.labels) != self.tick.judged.get(period):
                changed.append(period)
        return changed

    def _settle(self, period: str) -> data.Settled | None:
        try:
            return data.settle_labels(self.project, data.read_sightings(self.project, period))
        except NotFoundError:
            return None

    def is_due(self) -> bool:
        """Whether production was moved by somebody since the last tick."""
        return self.last is not None and self.tick.in_production != self.current

    @property
    def current(self) -> int | None:
        """The version in production."""
        return registry.current(self.project, self.project.production)

    def load(self, version: int) -> Release:
        """Return a version, loaded and verified once in a tick however many periods it has scored."""
        if version not in self.releases:
            self.releases[version] = registry.load_model(self.project, version)
        return self.releases[version]

    # --- steps -------------------------------------------------------------------------------------------------------

    def say_what_to_score(self) -> None:
        """Name what a tick would score."""
        for period in self.tick.periods:
            self.note(f"score {period}", f"with version {self.current}", "scored once", "not_applicable", "dry run")

    def score(self) -> None:
        """Score every new period with what is in production."""
        project, tick = self.project, self.tick
        version = self.current
        if version is None:
            self.note(
                "production", None, f"a version in {project.production}", "not_applicable", "nothing is there yet"
            )
            return
        for period in tick.periods:
            order = [p for p in project.periods() if p in tick.scored or p == period]
            late = "" if order[-1] == period else "it came after later ones"
            path, output = project.path("arrivals", period), project.predictions_path(period, version)
            if tick.scored.get(period, {}).get("version") == version and "error" not in tick.scored[period]:
                continue
            try:
                done = batch.score_table(project, version, path, output)
            except OF_ROWS as error:
                empty = isinstance(error, TableError) and error.case == "no_rows"
                tick.scored[period] = {"version": version, "error": str(error), "empty": empty}
            else:
                counts = {"n_rows": done.n_rows, "n_scored": done.n_scored, "n_quarantined": done.n_quarantined}
                tick.scored[period] = {"version": version, **counts, "late": late, "file": _stamp(path)}
            tick.write(project)
        for period in tick.periods:
            self._report_scoring(period)
        for period, each in tick.scored.items():
            if period not in tick.periods and each.get("file", "") != self._stamp_now(period, each):
                reason = "its arrivals are others now than those that were scored"
                self.note(f"arrivals of {period}", None, "unchanged since they were scored", "failed", reason)

    def _stamp_now(self, period: str, each: Mapping[str, Any]) -> str:
        with contextlib.suppress(NotFoundError, OSError):
            return _stamp(self.project.path("arrivals", period))
        return str(each.get("file", ""))

    def _report_scoring(self, period: str) -> None:
        each = self.tick.scored.get(period, {})
        limit = "scored once"
        if each.get("empty"):
            self.note(f"score {period}", None, limit, "not_applicable", "the period has no rows")
        elif "error" in each:
            self.note(f"score {period}", None, limit, "failed", each["error"])
        elif each:
            aside = f"{each['n_quarantined']:,} of {each['n_rows']:,} set aside" if each["n_quarantined"] else ""
            reason = "; ".join(filter(None, (f"by version {each['version']}", aside, each.get("late"))))
            self.note(f"score {period}", each["n_scored"], limit, "passed", reason)

    def judge(self) -> None:
        """Judge every version that ever predicted by the labels known by now, and the newest period's drift."""
        project, tick = self.project, self.tick
        judged: dict[str, Report] = {}
        known = project.periods()
        for period in [p for p in tick.scored if p not in known]:
            self.note(f"arrivals of {period}", None, "where they were", "failed", "they are gone")
        for period in [p for p in known if p in tick.scored]:
            if "error" in tick.scored[period] and period in tick.periods:
                continue
            settled = self._settle(period)
            fingerprint = data.fingerprint_frame(settled.labels) if settled is not None else ""
            if period not in tick.periods and fingerprint == tick.judged.get(period):
                continue
            self._judge_period(period, settled, judged)
            tick.judged[period] = fingerprint
            tick.labelled[period] = len(settled.labels) if settled is not None else 0
        ours = [period for period in judged if tick.scored[period]["version"] == self.current]
        verdicts = [row for period in ours for row in judged[period].rows if row.status != "not_applicable"]
        if verdicts:  # else it stands as it did
            tick.quality_failed = verdicts[-1].status == "failed"
        newest = [period for period in tick.periods if "error" not in tick.scored.get(period, {"error": ""})]
        if newest:
            self._judge_drift(newest[-1])
        if not tick.periods:  # what was an alarm of the newest period still is, unless it was looked at again
            again = {row["name"] for row in tick.rows}
            tick.rows += [row for row in tick.still_open if " of " in row["name"] and row["name"] not in again]

    def _judge_period(self, period: str, settled: data.Settled | None, judged: dict[str, Report]) -> None:
        project, found = self.project, []
        for version, path in tables.list_predictions(project, period).items():
            release = self.load(version)
            predictions = data.read_table(path)
            estimated = monitor.estimate(project, release.task, predictions)
            labels = (
                settled.labels
                if settled is not None
                else predictions[list(project.keys)].iloc[:0].assign(**{project.target: None})
            )
            table = monitor.measure_quality(project, release.task, period, predictions, labels)
            limits, report = monitor.find_limits(project, release), monitor.judge_quality(project, release, table)
            found.append(tables.describe_quality(table, report, limits, estimated, self.tick.at))
            if version == self.tick.scored[period].get("version"):
                judged[period] = report
                for row in report.rows:
                    name = f"{row.name.rpartition(': ')[2]} of {period}, version {version}"
                    self.tick.rows.append(asdict(replace(row, name=name)))
        if settled is not None and len(settled.contradicting):
            n_rows = len(settled.contradicting.drop_duplicates(list(project.keys)))
            reason = f"{n_rows} rows have two labels of one time: none of them counts"
            self.note(f"labels of {period}", n_rows, "no contradictions", "failed", reason)
        if self.dry_run:
            return
        if found:
            tables.write_partition(project, "quality", period, pd.concat(found))
        if settled is not None:
            tables.write_partition(project, "labels", period, tables.describe_labels(settled))

    def _judge_drift(self, period: str) -> None:
        project, version = self.project, self.tick.scored[period]["version"]
        release = self.load(version)
        scored = None if self.dry_run else data.read_table(tables.list_predictions(project, period)[version])
        drift = monitor.measure_drift(project, release, period, scored)
        report = monitor.judge_drift(project, drift)
        failed = {row.name for row in report.failures}
        fair_share = 1 / max(len(release.features), 1)
        matters = drift["importance"].isna() | (drift["importance"] >= fair_share / 2)
        moving = [name for name in drift.index[matters & (drift["kind"] == "feature")] if name in failed]
        self.tick.n_drifting = len(moving)
        named = ", ".join(moving[:4]) + (", …" if len(moving) > 4 else "")
        silent = [row.name for row in report.failures if row.name not in moving]
        most = self.policy.drifting  # where drift is no reason to act, it is told, and is no alarm
        limit = "told only" if most is None else f"at most {most} features that matter"
        also = f"; besides {', '.join(silent[:4])}{', …' if len(silent) > 4 else ''}" if silent else ""
        status = "passed" if report.rows else "not_applicable"
        if moving:
            status = "not_applicable" if most is None else "failed" if len(moving) > most else "passed"
        self.note(f"drift of {period}", len(moving), limit, status, (named + also).strip("; "))
        if not self.dry_run:
            rows = drift.assign(version=version, failed=drift.index.isin(failed), as_of=self.tick.at)
            tables.write_partition(project, "drift", period, rows.reset_index())

    def watch(self) -> None:
        """Send a version on probation back if it has shown to be worse than what it replaced."""
        outcome = examine_probation(self.project, self.tick)
        if outcome is None:
            return
        self.tick.rows.append(asdict(outcome.row))
        self.tick.on_probation = outcome.text
        if outcome.is_worse:
            reason = f"probation: {outcome.row.reason}"[:400]
            try:
                entry = registry.rollback(
                    self.project, self.project.production, reason=reason, operation=f"probation-{outcome.entry[:16]}"
                )
            except RefusedError as error:
                self.tick.notes.append(str(error))
            else:
                self.tick.sent_back, self.tick.on_probation = outcome.version, ""
                self.note("sent back", entry.version, "the version before", "failed", reason)
                mlflow.log_text(json.dumps(asdict(outcome.row), indent=1), "probation.json")

    def decide(self) -> None:
        """Decide by the policy whether to train, once: what was decided stays so."""
        tick = self.tick
        current = self.current
        release = self.load(current) if current else None
        until = release.files.metadata["mlops"].get("trained_until") if release else None
        window, why_not = self.choose_window()
        unseen = [p for p, each in tick.scored.items() if each.get("version") == current]
        situation = Situation(
            n_drifting=tick.n_drifting,
            quality_failed=tick.quality_failed,
            age_days=(tick.time - datetime.fromisoformat(until)) / timedelta(days=1) if until else None,
            n_unseen=sum(tick.labelled.get(period, 0) for period in unseen),
            trained_at=[datetime.fromisoformat(at) for at in tick.trained_at],
            now=tick.time,
            on_probation=bool(tick.on_probation),
            can_train="a version was just sent back"
            if tick.sent_back
            else why_not or ("" if release else "nothing is in production"),
        )
        decided = decide(self.policy, situation)
        tick.reasons, tick.brakes, tick.window = list(decided.reasons), list(decided.brakes), window
        status = "passed" if decided.retrain else "not_applicable"
        self.note("decision", "train" if decided.retrain else "keep", "by the policy", status, str(decided))

    def choose_window(self) -> tuple[list[str], str]:
        """Return the periods to train on and, as the last one, that to validate on; or why there are none."""
        known = self.project.periods()
        enough = self.project.min_evaluation_rows
        labelled = [p for p in known if p in self.tick.scored and self.tick.labelled.get(p, 0) >= enough]
        if not labelled:
            return [], "no period that was scored has labels yet"
        last = known.index(labelled[-1])
        first = 0 if self.policy.window is None else max(0, last - self.policy.window)
        window = [p for p in known[first : last + 1] if p in self.project.periods("labels")]
        return (window, "") if len(window) > 1 else ([], "there is no labelled period before the newest")

    def train(self) -> None:
        """Have a version trained and judged, where that was decided."""
        tick = self.tick
        if not tick.decision.retrain:
            return
        try:
            version, passed = train_and_validate(self.project, tick.window, tick.run_id)
        except (NotebookError, NotFoundError, *OF_ROWS) as error:
            self.note("training", None, "a version", "failed", str(error))
            return
        tick.trained, tick.passed = version, passed
        tick.trained_at = [*tick.trained_at, tick.at]

    def promote(self) -> None:
        """Bring a version that has passed as far up as the policy lets it."""
        project, tick = self.project, self.tick
        if tick.trained is None:
            return
        text = f"trained on {tick.window[0]} to {tick.window[-2]}, judged on {tick.window[-1]}"
        if not tick.passed:
            why = f"{text}: it did not, nothing moves"
            self.note("candidate", tick.trained, "passes its gates", "not_applicable", why)
            return
        try:
            tick.promoted = promote_version(project, tick.trained, tick.decision, f"tick-{tick.number}")
        except (RefusedError, *OF_ROWS) as error:
            self.note("promotion", tick.trained, "moved up", "failed", str(error))
            return
        after = "" if self.policy.to_production else f"; to {project.production} a person promotes it"
        self.note("candidate", tick.trained, "passes its gates", "passed", f"{text}: now in {tick.promoted[-1]}{after}")

    def finish(self, started: float) -> None:
        """Close the record, write its row, log both, and make the page."""
        project, tick = self.project, self.tick
        tick.in_production, tick.status = self.current, "done"
        tick.duration_s = round(time.monotonic() - started, 1)
        row = {
            "number": tick.number,
            "at": pd.Timestamp(tick.at),
            "outcome": tick.report.outcome,
            "in_production": tick.in_production,
            "decision": str(tick.decision),
            "trained": tick.trained,
            "passed": tick.passed,
            "sent_back": tick.sent_back,
            "run_id": tick.run_id,
            "duration_s": tick.duration_s,
        }
        tables.write_partition(project, "ticks", f"{tick.number:06d}", pd.DataFrame([row]))
        tick.write(project)
        mlflow.log_dict(asdict(tick), "tick.json")
        mlflow.log_text(f'<meta charset="utf-8">{tick.report._repr_html_()}', "tick.html")
        page = project.root / project.notebooks / f"{self.policy.status}.ipynb"
        if self.policy.status and page.exists():
            try:
                run_notebook(project, self.policy.status, parent=tick.run_id)
            except NotebookError as error:
                tick.notes.append(str(error))


def _stamp(path: Path) -> str:
    return f"{path.stat().st_size} bytes, {data.fingerprint_file(path)[:24]}"
