"""One record for everything that is checked: contracts, gates, drift, reproduction.

A :class:`Report` is rows of name, value, limit, status and reason. ``not_applicable`` is a result of its own: it
neither passes nor fails. A report is a table in a notebook, text in a terminal and JSON for a machine.

>>> report = Report("Gates", (Row("test_roc_auc", 0.671, ">= 0.680", "failed", "below the threshold"),))
>>> report.passed
False
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mlops_lib.errors import ReportFailedError
from mlops_lib.wording import visible

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["passed", "failed", "not_applicable"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "not_applicable")
MARKS = {"passed": "✓", "failed": "✗", "not_applicable": "–"}
_OUTCOMES = {"passed": "passed", "failed": "FAILED", "not_applicable": "nothing was judged"}
_COLORS = {"passed": "#1b7837", "failed": "#b2182b", "not_applicable": "#666666"}


def format_value(value: object) -> str:
    """Render a value for people: four significant digits for floats, nothing for ``None``."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.4g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:,.0f}"


@dataclass(frozen=True)
class Row:
    """One check: its name, the value seen, the limit it was held to, its status and the reason for it.

    ``question`` says in plain words what was asked, for readers of the HTML table who do not know the name; ``unit`` is
    that of the value.
    """

    name: str
    value: float | int | str | None
    limit: str
    status: Status
    reason: str = ""
    question: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}, needs one of {STATUSES}")

    @property
    def text(self) -> str:
        """The value for people, with its unit."""
        return f"{format_value(self.value)} {self.unit}".rstrip()


@dataclass(frozen=True, repr=False)
class Report:
    """What was checked and what came of it.

    Parameters
    ----------
    title : str
        What was checked, for a person.
    rows : tuple of Row
    facts : dict of str to JSON values
        What the report is about (digests, versions, counts), for a machine.
    note : str
        A sentence that whoever reads the outcome has to know.
    """

    title: str
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that failed, in order."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def counts(self) -> dict[Status, int]:
        """How many rows passed, failed and were not applicable."""
        return {status: sum(row.status == status for row in self.rows) for status in STATUSES}

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed. An empty report has not passed."""
        return not self.failures and any(row.status == "passed" for row in self.rows)

    @property
    def outcome(self) -> Status:
        """Whether something failed, or else something passed; ``not_applicable`` where nothing was judged."""
        if self.failures:
            return "failed"
        return "passed" if self.passed else "not_applicable"

    def frame(self) -> pd.DataFrame:
        """Return the rows as a DataFrame with columns name, value, limit, status, reason."""
        import pandas as pd  # noqa: PLC0415 - `mlops --help` must not load pandas

        return pd.DataFrame([asdict(row) for row in self.rows], columns=["name", "value", "limit", "status", "reason"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; NaN and infinities become text, so that any parser reads them."""
        rows = [{k: v for k, v in asdict(row).items() if v or k not in ("question", "unit")} for row in self.rows]
        values = {"title": self.title, "passed": self.passed, "facts": self.facts, "rows": rows}
        note = {"note": self.note} if self.note else {}
        return {name: _json_value(value) for name, value in {**values, **note}.items()}

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no NaN."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False, default=str)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Read back what :meth:`to_dict` wrote."""
        rows = tuple(Row(**row) for row in values["rows"])
        return cls(values["title"], rows, values["facts"], values.get("note", ""))

    def raise_for_failures(self) -> None:
        """Raise ``ReportFailedError`` naming what failed, if the report did not pass."""
        if not self.passed:
            reasons = tuple(f"{r.name} is {r.text}, needs {r.limit}" for r in self.failures) or ("nothing was checked",)
            n_failed, n_rows = len(self.failures), len(self.rows)
            raise ReportFailedError(title=self.title, n_failed=n_failed, n_rows=n_rows, failures=reasons)

    def __str__(self) -> str:
        """Return a table for a terminal."""
        head = f"{self.title}: {_OUTCOMES[self.outcome]}"
        cells = [[MARKS[r.status], r.name, r.text, r.limit, r.reason] for r in self.rows]
        return "\n".join([head, *([self.note] if self.note else []), *table_lines(cells)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table that JupyterLab shows, and that can be sent to somebody who has no notebook."""

        def cell(tag: str, content: str, style: str = "") -> str:
            return f'<{tag} style="text-align:left;vertical-align:top;padding:4px 10px;{style}">{content}</{tag}>'

        head = "".join(cell("th", text) for text in ("", "check", "value", "limit", "reason"))
        body = ""
        for row in self.rows:
            mark = f"{MARKS[row.status]} {row.status.replace('_', ' ')}"
            status = cell("td", mark, f"font-weight:bold;white-space:nowrap;color:{_COLORS[row.status]}")
            name, *texts = (html.escape(text) for text in (row.name, row.text, row.limit, row.reason))
            if row.question:
                name = f'{html.escape(row.question)}<br><small style="color:#666666">{name}</small>'
            cells = "".join(cell("td", text) for text in (name, *texts))
            body += f'<tr style="border-top:1px solid #dddddd">{status}{cells}</tr>'
        counts = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in self.counts.items() if n)
        note = f"<br>{html.escape(self.note)}" if self.note else ""
        outcome = f'<span style="color:{_COLORS[self.outcome]}">{_OUTCOMES[self.outcome].lower()}</span>'
        return (
            '<table style="border-collapse:collapse"><caption style="text-align:left;padding:4px 10px">'
            f"<b>{html.escape(self.title)}: {outcome}</b><br>{counts or 'nothing was checked'}{note}"
            f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def table_lines(rows: Iterable[Iterable[object]]) -> list[str]:
    """Align rows of cells in columns, two spaces apart; the last column is left ragged."""
    texts = [[visible(format_value(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))] if texts else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
