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

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["passed", "failed", "not_applicable"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "not_applicable")
_MARKS = {"passed": "✓", "failed": "✗", "not_applicable": "–"}
_COLORS = {"passed": "#1b7837", "failed": "#b2182b", "not_applicable": "#666666"}


def format_value(value: object) -> str:
    """Render a value for people: four significant digits for floats, nothing for ``None``."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:,.0f}"


@dataclass(frozen=True)
class Row:
    """One check: its name, the value seen, the limit it was held to, its status and the reason for it."""

    name: str
    value: float | int | str | None
    limit: str
    status: Status
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}, needs one of {STATUSES}")


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
    """

    title: str
    rows: tuple[Row, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows that failed, in order."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed. An empty report has not passed."""
        return not self.failures and any(row.status == "passed" for row in self.rows)

    def frame(self) -> pd.DataFrame:
        """Return the rows as a DataFrame with columns name, value, limit, status, reason."""
        import pandas as pd  # noqa: PLC0415 - `mlops --help` must not load pandas

        return pd.DataFrame([asdict(row) for row in self.rows], columns=["name", "value", "limit", "status", "reason"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; NaN and infinities become text, so that any parser reads them."""
        rows = [_json_value(asdict(row)) for row in self.rows]
        return {"title": self.title, "passed": self.passed, "facts": _json_value(self.facts), "rows": rows}

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no NaN."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False, default=str)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Read back what :meth:`to_dict` wrote."""
        return cls(values["title"], tuple(Row(**row) for row in values["rows"]), values["facts"])

    def raise_for_failures(self) -> None:
        """Raise ``ReportFailedError`` naming what failed, if the report did not pass."""
        if not self.passed:
            reasons = tuple(f"{r.name} is {format_value(r.value)}, needs {r.limit}" for r in self.failures)
            raise ReportFailedError(self.title, len(self.failures), len(self.rows), reasons or ("nothing was checked",))

    def __str__(self) -> str:
        """Return a table for a terminal."""
        head = f"{self.title}: {'passed' if self.passed else 'FAILED'}"
        cells = [[_MARKS[r.status], r.name, format_value(r.value), r.limit, r.reason] for r in self.rows]
        return "\n".join([head, *table_lines(cells)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table that JupyterLab shows."""

        def cell(tag: str, text: str, style: str = "") -> str:
            return f'<{tag} style="text-align:left;{style}">{html.escape(text)}</{tag}>'

        head = "".join(cell("th", text) for text in ("", "check", "value", "limit", "reason"))
        body = ""
        for row in self.rows:
            mark = f"{_MARKS[row.status]} {row.status.replace('_', ' ')}"
            texts = (row.name, format_value(row.value), row.limit, row.reason)
            status = cell("td", mark, f"font-weight:bold;white-space:nowrap;color:{_COLORS[row.status]}")
            body += f"<tr>{status}{''.join(cell('td', text) for text in texts)}</tr>"
        verdict = "passed" if self.passed else "failed"
        caption = f'{html.escape(self.title)}: <span style="color:{_COLORS[verdict]}">{verdict}</span>'
        return (
            f'<table><caption style="text-align:left;font-weight:bold">{caption}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def table_lines(rows: Iterable[Iterable[object]]) -> list[str]:
    """Align rows of cells in columns, two spaces apart; the last column is left ragged."""
    texts = [[format_value(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))] if texts else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
