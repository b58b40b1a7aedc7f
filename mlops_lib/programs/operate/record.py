"""The record of a tick, written after every step, so that a killed one is gone on with; and the lock on ticks."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from mlops_lib import data
from mlops_lib.errors import OperateError
from mlops_lib.programs.operate.decide import Decision
from mlops_lib.project import Project
from mlops_lib.report import Report, Row


@dataclass
class Tick:
    """One tick, as its record holds it.

    Parameters
    ----------
    at : str
        Its moment: no label that became known later counts.
    skipped : list of str
        Periods before operating began.
    scored : dict of str to dict
        By period: version, rows, rows set aside and the file's fingerprint, or the error.
    judged : dict of str to str
        By period: fingerprint of the labels that its quality was computed from.
    labelled : dict of str to int
        By period: how many labels are known.
    rows, still_open : list of dict
        Of its report; alarms of the tick before.
    trained_at : list of str
        When it or an earlier tick had a version trained.
    seen : dict of str to str
        By hash of an entry that put a version into production: when a tick saw it first, or that its probation is over.
    """

    number: int
    at: str
    status: str = "running"
    run_id: str = ""
    periods: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    scored: dict[str, dict[str, Any]] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    still_open: list[dict[str, Any]] = field(default_factory=list)
    trained_at: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    in_production: int | None = None
    reasons: list[str] | None = None
    brakes: list[str] = field(default_factory=list)
    trained: int | None = None
    window: list[str] = field(default_factory=list)
    passed: bool | None = None
    promoted: list[str] = field(default_factory=list)
    sent_back: int | None = None
    notes: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    quality_failed: bool = False
    n_drifting: int = 0
    on_probation: str = ""
    duration_s: float = 0.0

    @property
    def time(self) -> datetime:
        """Its moment."""
        return datetime.fromisoformat(self.at)

    @property
    def report(self) -> Report:
        """What it did and saw; it has failed where something needs a person."""
        rows = tuple(Row(**row) for row in self.rows)
        return Report(f"Tick {self.number} at {self.time:%Y-%m-%d %H:%M}", rows, {"run_id": self.run_id})

    @property
    def decision(self) -> Decision:
        """Whether it had a version trained, and why."""
        return Decision(tuple(self.reasons or ()), tuple(self.brakes))

    @property
    def alarms(self) -> tuple[Row, ...]:
        """What needs a person."""
        return self.report.failures

    def write(self, project: Project) -> None:
        """Write the record, whole or not at all."""
        with data.atomic_write(_folder(project) / f"{self.number:06d}.json", "w") as file:
            json.dump(asdict(self), file, indent=1)


def read_ticks(project: Project) -> list[Tick]:
    """Return all ticks, oldest first.

    Raises
    ------
    OperateError
        A record cannot be read.
    """
    found, known = [], {each.name for each in fields(Tick)}
    for path in sorted(_folder(project).glob("[0-9]*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append(Tick(**{name: value for name, value in values.items() if name in known}))
        except (ValueError, TypeError) as error:
            raise OperateError("record", path=path, reason=str(error)) from error
    return found


def follow(last: Tick | None, now: datetime) -> Tick:
    """Return a new tick with what is known from the last one."""
    if last is None:
        return Tick(1, now.isoformat())
    is_same = not (last.promoted or last.sent_back)  # what was said of production is of that version
    carried = ["skipped", "scored", "judged", "labelled", "trained_at", "seen", "in_production"]
    kept = {name: copy.deepcopy(getattr(last, name)) for name in carried}
    kept |= {"quality_failed": last.quality_failed and is_same, "n_drifting": last.n_drifting * is_same}
    return Tick(last.number + 1, now.isoformat(), still_open=[asdict(row) for row in last.alarms], **kept)


@contextlib.contextmanager
def lock(project: Project) -> Iterator[None]:
    """Keep other ticks of this machine out; the system opens the lock when its holder dies."""
    path = project.operated_path / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise OperateError("running", holder=file.read().strip() or "another process", path=path) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {datetime.now().astimezone():%Y-%m-%d %H:%M}")
        file.flush()
        yield


def _folder(project: Project) -> Path:
    return project.operated_path / "records"
