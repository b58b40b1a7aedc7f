"""What a ledger is made of, as pure records: entries, and the two chains that they stand in.

Nothing here asks the store. Entry *n* of a chain repeats the hash of the entry before it, so that the last hash stands
for all of them.

>>> Chain("toy").extended({"alpha": "0.1"}).strays  # no entry, and no harm
('alpha',)
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, TypeVar

import pandas as pd

from mlops_lib.errors import LedgerError
from mlops_lib.wording import visible

SLOT = 6  # digits of a parameter that holds an entry
MOVES = frozenset({"register", "promote", "force", "rollback"})  # actions that put a version into a stage

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the ledger.

    ``digest`` is the model's, ``verdict`` the evidence's, ``previous`` the hash of the entry before. A move also names
    ``seen``, the hash of the last registration that its writer knew, and ``rules``, what its project allowed. Both are
    empty where a version is registered. ``version`` is 0 where an empty stage was frozen; ``stage`` is empty where a
    version was deleted. Number, actor, time, hashes, rules and signature are filled in when it is written.
    """

    number: int = 0
    operation: str = ""
    previous: str = ""
    seen: str = ""
    rules: str = ""
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
    signature: str = ""

    def to_json(self) -> str:
        """Return the canonical text that is stored and hashed; the signature is of this text without it."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Read back what :meth:`to_json` wrote; raise ``ValueError`` for anything else."""
        try:
            entry = cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error
        wrong = [name for name, kind in _KINDS if not isinstance(getattr(entry, name), kind)]
        if wrong or entry.time.utcoffset() is None:
            raise ValueError(f"'{(*wrong, 'at')[0]}' is of another type")
        return entry

    @property
    def is_registration(self) -> bool:
        """Whether it stands in the chain of registrations, and not in the one of moves."""
        return self.action == "register"

    @property
    def label(self) -> str:
        """Its name for people: ``r3`` for the third registration, ``7`` for the seventh move."""
        return f"r{self.number}" if self.is_registration else str(self.number)

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
        return visible(f"#{self.label} {self.action} {what} by {self.actor} at {self.at}")

    def repeats(self, other: Entry) -> bool:
        """Whether this is the same operation as ``other``, whenever each was written."""
        mine, others = ((e.operation, e.action, e.stage, e.version) for e in (self, other))
        return mine == others


_NUMBERS: dict[str, Any] = {"number": int, "version": int, "from_version": int | None}
_KINDS = tuple((each.name, _NUMBERS.get(each.name, str)) for each in fields(Entry))


@dataclass(frozen=True)
class Chain:
    """Registrations or moves in order, as the parameters of one run hold them.

    A parameter that is no entry takes its slot and is passed over, as long as what comes next follows from what came
    before it: otherwise whoever may write there could stop everything with one stray word.
    """

    name: str
    prefix: str = ""  # of labels: "r" for registrations
    genesis: str = "0" * 64
    run_id: str = ""  # empty before the ledger was founded
    entries: tuple[Entry, ...] = ()
    hashes: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()  # parameters that are no entry
    noted: int = 0  # number of the entry up to which aliases and deletions had followed

    @property
    def head(self) -> str:
        """Hash that the next entry repeats."""
        return self.hashes[-1] if self.hashes else self.genesis

    @property
    def number(self) -> int:
        """Number of the last entry; 0 for none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def free(self) -> int:
        """Number of the next entry."""
        number = self.number + 1
        while slot(number) in self.strays:
            number += 1
        return number

    def hash_of(self, number: int) -> str | None:
        """Return the hash of an entry, or None where there is no such entry."""
        index = bisect.bisect_left(self.entries, number, key=lambda entry: entry.number)
        is_there = index < len(self.entries) and self.entries[index].number == number
        return self.hashes[index] if is_there else None

    def extended(self, params: Mapping[str, str]) -> Chain:
        """Return this chain with the entries that have come since; those that it has are not read again.

        Raises
        ------
        LedgerError
            Naming the first entry that was edited, removed or put out of order.
        """
        entries, hashes = list(self.entries), list(self.hashes)
        strays, past, unread = dict.fromkeys(self.strays), self.number, 0
        for key in sorted(params.keys() - {slot(0)}):
            number = int(key) if len(key) == SLOT and key.isascii() and key.isdigit() else 0
            if 0 < number <= past:
                continue
            try:
                entry = Entry.from_json(params[key] if number else "")
            except ValueError:
                strays[key], unread = None, unread or number
                continue
            if entry.previous != (hashes[-1] if hashes else self.genesis):
                if unread:
                    raise self.broken(unread, "cannot be read")
                if number > past + 1:
                    raise self.broken(past + 1, "is missing or out of order")
                raise self.broken(number, "does not follow from the entry before it")
            if (entry.number, entry.label) != (number, f"{self.prefix}{number}"):
                raise self.broken(number, "is missing or out of order")
            past, unread = number, 0
            entries.append(entry)
            hashes.append(sha256(params[key]))
        if entries and entries[-1].hash != hashes[-1]:  # of the others the entry after them holds the hash
            raise self.broken(past, "is not written as this library writes it")
        return replace(self, entries=tuple(entries), hashes=tuple(hashes), strays=tuple(strays))

    def broken(self, number: int, reason: str) -> LedgerError:
        """Return the error that names one of its entries."""
        return LedgerError("broken", name=self.name, entry=f"{self.prefix}{number}", reason=reason)


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
        """Label and hash of the last registration and of the last move, ``r3:… 7:…``; every entry changes it."""
        last = {entry.is_registration: entry for entry in self}
        return " ".join(f"{last[kind].label}:{last[kind].hash}" for kind in (True, False) if kind in last)

    def __repr__(self) -> str:
        """Return what people ask for, without the hashes that hold it together."""
        return self.frame().loc[:, :"reason"].to_string(max_colwidth=60)

    def frame(self) -> pd.DataFrame:
        """Return the entries, indexed by label, with every field; ``at`` is a UTC time, an absent version is <NA>."""
        first = ["entry", "action", "stage", "version", "from_version", "actor", "at", "reason", "verdict"]
        columns = [*first, *(each.name for each in fields(Entry) if each.name not in (*first, "number"))]
        rows = [{"entry": entry.label, **vars(entry)} for entry in self]
        shown = [{name: visible(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]
        frame = pd.DataFrame(shown, columns=columns).set_index("entry")
        times = pd.to_datetime(frame["at"], format="ISO8601", utc=True)
        return frame.assign(at=times).astype({"from_version": "Int64"})


def slot(number: int) -> str:
    """Return the parameter that holds the entry of this number."""
    return f"{number:0{SLOT}d}"


def sha256(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
