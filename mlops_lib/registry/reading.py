"""The ledger, read: its entries, what happened to a stage, what every stage had at any time.

Reading is where a projection that was cut off is completed: :func:`history` and :func:`repair_aliases` let the aliases
follow the ledger again.

>>> history(project, "prod")  # doctest: +SKIP
"""

from __future__ import annotations

import itertools
from datetime import datetime

from mlops_lib.data import reads
from mlops_lib.errors import LedgerError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Entry, History, Ledger, fold
from mlops_lib.registry.ledger import follow, open_ledger, translate_errors
from mlops_lib.tracking import store


@translate_errors
def read_ledger(project: Project) -> History:
    """Return the ledger's entries in order, their chain of hashes checked.

    Raises
    ------
    LedgerError
        Naming the first entry that was edited, removed or put out of order.
    """
    return History(open_ledger(project, store.connect(project.tracking_uri)).entries)


@translate_errors
def history(project: Project, stage: str | None = None) -> History:
    """Return what happened to one stage, or everything, oldest first; aliases that do not follow are repaired."""
    if stage is not None:
        project.raise_for_stage(stage)
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    with store.ignore_codes("PERMISSION_DENIED"):  # of a reader of a shared server
        follow(project, client, ledger)
    note_ledger(project, ledger)
    return History(entry for entry in ledger.entries if stage in (None, entry.stage))


def as_of(project: Project, time: datetime) -> dict[str, Entry | None]:
    """Return what every stage had at a time: the entry that had put its version there, or None while it was empty.

    Times in the ledger never go back: a clock that is behind writes the time of the entry before.

    Parameters
    ----------
    time : datetime
        With a time zone.

    Raises
    ------
    LedgerError
    """
    if time.tzinfo is None or time.utcoffset() is None:
        raise LedgerError("naive_time", time=str(time))
    until = tuple(itertools.takewhile(lambda entry: entry.time <= time, read_ledger(project)))
    return {stage: fold(until).get(stage) for stage in project.stages}


def note_ledger(project: Project, ledger: Ledger) -> None:
    """Note for cached runs that all of the ledger was read."""
    reads.note("ledger", project.name, History(ledger.entries).head)


@translate_errors
def repair_aliases(project: Project) -> tuple[str, ...]:
    """Make the aliases say what the ledger says, and complete a deletion that was cut off; return what was not so."""
    client = store.connect(project.tracking_uri)
    return follow(project, client, open_ledger(project, client))
