"""What a ledger is made of, as pure records: entries, and what follows from all of them.

Nothing here asks the store. Entry *n* repeats the hash of entry *n* - 1, so that the last hash stands for all; what
every stage has is a fold over the entries, and no record of its own that could disagree with them.

>>> Ledger("toy", entries).standing["prod"].version  # doctest: +SKIP
7
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

import pandas as pd

GENESIS = "0" * 64
MOVES = frozenset({"register", "promote", "force", "rollback"})  # actions that put a version into a stage

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the ledger.

    ``digest`` is the model's, ``verdict`` the evidence's, ``previous`` the hash of the entry before. ``version`` is 0
    where an empty stage was frozen; ``stage`` is empty where a version was deleted. Number, actor, time and the hash of
    the entry before are filled in when it is written.
    """

    number: int = 0
    operation: str = ""
    previous: str = ""
    action: str
    stage: str
    version: int
    from_version: int | None = None
    model_id: str = ""
    digest: str = ""
    verdict: str = ""
    actor: str = ""
    at: str = ""
    reason: str

    def to_json(self) -> str:
        """Return the canonical text that is stored and hashed."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the stored text; the next entry repeats it."""
        return sha256(self.to_json())

    @property
    def time(self) -> datetime:
        """When it was written, as an aware datetime."""
        return datetime.fromisoformat(self.at)

    @property
    def files(self) -> dict[str, Any]:
        """Which version it is about, and exactly which model files: what a later entry about them repeats."""
        return {"version": self.version, "model_id": self.model_id, "digest": self.digest}

    def __str__(self) -> str:
        """Return one line for people."""
        origin = f" (from version {self.from_version})" if self.from_version else ""
        version = f"version {self.version}" if self.version else ""
        what = f"{self.stage} → {version}{origin}" if self.action in MOVES else f"{version} {self.stage}".strip()
        return f"#{self.number} {self.action} {what} by {self.actor} at {self.at}"

    def repeats(self, other: Entry) -> bool:
        """Whether this is the same operation as ``other``, whenever each was written."""
        mine, others = ((e.operation, e.action, e.stage, e.version) for e in (self, other))
        return mine == others


@dataclass(frozen=True)
class Ledger:
    """What one reading of the store gave, and what follows from it."""

    name: str
    entries: tuple[Entry, ...] = ()
    run_id: str = ""  # empty before the ledger was founded
    genesis: str = GENESIS
    noted: int = 0  # number of the entry up to which the projection was complete
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """Hash that the next entry repeats."""
        return self.entries[-1].hash if self.entries else self.genesis

    @property
    def standing(self) -> dict[str, Entry]:
        """The entry that put each stage's present version there."""
        return {entry.stage: entry for entry in self.entries if entry.action in MOVES}

    @property
    def frozen(self) -> dict[str, Entry]:
        """The entry that froze each stage that is frozen."""
        last = {entry.stage: entry for entry in self.entries if entry.action in ("freeze", "unfreeze")}
        return {stage: entry for stage, entry in last.items() if entry.action == "freeze"}

    @property
    def deleted(self) -> frozenset[int]:
        """Versions that were deleted with an entry."""
        return frozenset(entry.version for entry in self.entries if entry.action == "delete")

    def current(self, stage: str) -> int | None:
        """Return the version that ``stage`` has, or None where it is empty."""
        entry = self.standing.get(stage)
        return entry.version if entry else None

    def moves(self, stage: str) -> list[Entry]:
        """Return the entries that put a version into ``stage``, oldest first."""
        return [entry for entry in self.entries if entry.stage == stage and entry.action in MOVES]

    def registration(self, version: int) -> Entry | None:
        """Return the entry that registered ``version``: what its model and files are."""
        entries = (entry for entry in self.entries if entry.version == version and entry.action == "register")
        return next(entries, None)

    def files(self, version: int) -> dict[str, Any]:
        """Return which model files ``version`` was registered with; of one that never was, only its number."""
        registration = self.registration(version)
        return registration.files if registration else {"version": version}

    def undo(self, stage: str) -> list[Entry]:
        """Return the moves that a rollback can go back through: each rollback undoes what came after its target."""
        stack: list[Entry] = []
        for entry in self.moves(stage):
            if entry.action == "rollback":
                while stack and stack[-1].version != entry.version:
                    stack.pop()
            elif not stack or stack[-1].version != entry.version:
                stack.append(entry)
        return stack


class Records(tuple[R, ...]):
    """Records in order: a tuple for a program, a table in a notebook."""

    def frame(self) -> pd.DataFrame:
        """Return a DataFrame with a row for each record."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the table as a terminal shows it."""
        return repr(self.frame())

    def _repr_html_(self) -> str:
        """Return the table that JupyterLab shows."""
        return self.frame().to_html(max_rows=60)


class History(Records[Entry]):
    """Entries of the ledger, oldest first."""

    @property
    def head(self) -> str:
        """Hash of the last entry; it changes with every entry."""
        return self[-1].hash if self else GENESIS

    def frame(self) -> pd.DataFrame:
        """Return the entries, indexed by number, with every field; ``at`` is a UTC time, an absent version is <NA>."""
        columns = [field.name for field in fields(Entry)]
        frame = pd.DataFrame([vars(entry) for entry in self], columns=columns).set_index("number")
        times = pd.to_datetime(frame["at"], format="ISO8601", utc=True)
        return frame.assign(at=times).astype({"from_version": "Int64"})


def sha256(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
