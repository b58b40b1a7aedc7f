"""The way up: a version is promoted on a verdict that comes out the same again.

>>> gates.promote(project, 7, "staging")  # doctest: +SKIP
"""

from __future__ import annotations

import math
from datetime import datetime

from mlops_lib import registry
from mlops_lib.errors import NotFoundError, QualityError, TableError
from mlops_lib.gates.checks import check_gates
from mlops_lib.project import Project
from mlops_lib.registry import Entry
from mlops_lib.report import Report

TOLERANCE = 1e-6  # of a value, relative: another machine adds up in another order
CLOCKS = ("ms", "s")  # units of what is never measured twice the same: its status is compared alone


def promote(
    project: Project,
    version: int,
    stage: str,
    *,
    verdict: Report | None = None,
    reason: str = "",
    force: bool = False,
    operation: str | None = None,
) -> Entry:
    """Move a version to the next stage, on a verdict that still holds: the check is done again, and compared.

    Parameters
    ----------
    version : int
    stage : str
        Where to; the version must stand in the stage before it, unless the project may skip stages.
    verdict : Report, optional
        As :func:`check_gates` made it; by default the latest one logged for this version.
    reason : str
        Written in the ledger; required with ``force``.
    force : bool
        Move in spite of a verdict that failed or is missing; nothing is checked again. Recorded as ``force`` for ever.
        A second person whom the stage needs is still needed, and so is a stage that is not frozen.
    operation : str, optional
        Name of this move. The same move under the same name again returns the entry that it made: a retry after a lost
        answer is one move.

    Raises
    ------
    RefusedError, ModelFileError, NotFoundError, LedgerError
        The stage still has the version it had.
    """

    def check_again(verdict: Report) -> str | None:
        """Return what came out differently, or None."""
        asked, champion = verdict.facts["rows"], verdict.facts["champion_version"]
        as_of = datetime.fromisoformat(asked["as_of"]) if asked["as_of"] else None
        releases = [registry.load_model(project, number) if number else None for number in (version, champion)]
        candidate, best = releases
        assert candidate is not None
        try:
            again = check_gates(project, candidate, best, asked["periods"], max_rows=asked["max_rows"], as_of=as_of)
        except (NotFoundError, QualityError, TableError) as error:
            return f"its evaluation rows cannot be read again: {error}"
        return find_difference(verdict, again)

    return registry.move_up(
        project,
        version,
        stage,
        verdict=verdict,
        reason=reason,
        check=None if force else check_again,
        operation=operation,
    )


def find_difference(verdict: Report, again: Report) -> str | None:
    """Return in what a check that was done again differs from its verdict, or None."""
    for fact in ("digest", "champion_digest", "contract", "gates", "rows"):
        if verdict.facts.get(fact) != again.facts[fact]:
            what = "the evaluation rows have" if fact == "rows" else f"its {fact.replace('_', ' ')} has"
            return f"{what} changed since the verdict"
    names = [[row.name for row in report.rows] for report in (verdict, again)]
    if names[0] != names[1]:
        differing = sorted({*names[0]} ^ {*names[1]}) or names[1]
        return f"the verdict has other rows than the check done again: {', '.join(differing)}"
    for row, other in zip(verdict.rows, again.rows, strict=True):
        if row.status != other.status:
            return f"the check was done again, and {row.name} has {other.status} ({other.value}, needs {other.limit})"
        if row.unit not in CLOCKS and not _is_close(row.value, other.value):
            return f"the check was done again, and {row.name} is {other.value}, not {row.value}"
    return None


def _is_close(value: object, other: object) -> bool:
    """Whether two values are one: numbers up to rounding."""
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return str(value) == str(other)
