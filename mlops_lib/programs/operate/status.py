"""The page to look at first: is production well, since when, why, and what has happened to it.

Records that somebody else fills from the store, and what they look like: a page, a text for a terminal, JSON. Nothing
is read here, and the verdict is derived in one place, :attr:`Status.outcome`.

>>> print(status)  # doctest: +SKIP
✓ flight-delays: Production is well: version 4, ROC AUC 0.712 [0.690, 0.734] in 2013-08, limit 0.680
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from mlops_lib import data, report
from mlops_lib.programs.operate.chart import draw_quality, load_template
from mlops_lib.report import MARKS, Row, format_value, table_lines
from mlops_lib.wording import listed, visible

_CAPITALS = {"auc", "mae", "mape", "mse", "rmse", "roc"}


@dataclass(frozen=True)
class Quality:
    """How good the predictions of one period in production turned out to be.

    ``value`` is None while there are no labels, and ``held`` while nothing was judged; ``limit_is_low`` says that the
    value must stay above ``limit``, as that of an error must stay below. ``estimated`` is what was expected of the
    period before its labels came.
    """

    period: str
    version: int
    metric: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    limit_is_low: bool
    n_labelled: int
    estimated: float | None = None
    held: bool | None = None

    @property
    def text(self) -> str:
        """The metric in words: its value with the interval, or what is known instead."""
        name = " ".join(word.upper() if word in _CAPITALS else word for word in self.metric.split("_"))
        if not format_number(self.value):
            estimate = format_number(self.estimated)
            return f"{name} estimated as {estimate}" if estimate else f"{name} not known"
        interval = f" [{format_number(self.low)}, {format_number(self.high)}]" if format_number(self.low) else ""
        return f"{name} {format_number(self.value)}{interval}"

    @property
    def status(self) -> report.Status:
        """Whether the period has held its limit; ``not_applicable`` where it was not judged."""
        return "not_applicable" if self.held is None else "passed" if self.held else "failed"


@dataclass(frozen=True)
class Event:
    """A move in the ledger; ``period`` is the one of production in which it fell, for its mark in the chart."""

    at: datetime
    action: str
    stage: str
    version: int
    actor: str
    reason: str
    period: str = ""


@dataclass(frozen=True)
class TickSeen:
    """What the tick of a period did, in one sentence; ``run_url`` leads to its executed notebook or its run."""

    at: datetime
    period: str
    outcome: report.Status
    text: str
    run_url: str = ""


@dataclass(frozen=True, repr=False, eq=False)
class Status:
    """All that a team wants to know of its model in production.

    Parameters
    ----------
    version : int or None
        None where nothing is in production; ``description`` says in a few words what it is, ``since`` and ``why`` how
        it came there.
    qualities : tuple of Quality
        Oldest period first.
    drift : DataFrame
        Of the newest period, ``drift_period``: by feature ``psi``, ``limit``, ``importance`` (0 to 1), ``largest_move``
        (a text) and ``failed``; may be empty.
    alarms : tuple of Row
        Those that are open.
    probation, costs : str
        A sentence, or nothing.
    links : mapping of str to str
        Addresses by name.
    made_at : datetime
        Such as ``datetime.now().astimezone()``: times are shown in its time zone, those of another year with the year.
    """

    project: str
    stage: str
    version: int | None
    description: str
    since: datetime | None
    why: str
    qualities: tuple[Quality, ...]
    drift: pd.DataFrame
    drift_period: str
    alarms: tuple[Row, ...]
    probation: str
    ticks: tuple[TickSeen, ...]
    events: tuple[Event, ...]
    links: Mapping[str, str]
    made_at: datetime
    costs: str = ""

    @property
    def judged(self) -> Quality | None:
        """The newest period that was judged."""
        return next((quality for quality in reversed(self.qualities) if quality.held is not None), None)

    @property
    def outcome(self) -> report.Status:
        """``failed`` with an open alarm or when the newest judged period has not held its limit."""
        if self.alarms or (self.judged and not self.judged.held):
            return "failed"
        return "passed" if self.judged and self.version is not None else "not_applicable"

    @property
    def headline(self) -> str:
        """The outcome as one sentence."""
        if self.outcome == "passed":
            return f"Production is well: {self.last_judged}"
        if self.outcome == "failed":
            names, n_alarms = listed((row.name for row in self.alarms), limit=3), len(self.alarms)
            facts = [f"{n_alarms} alarm{'s' * (n_alarms > 1)} ({names})"] if n_alarms else []
            facts += [self.last_judged] if self.judged and not self.judged.held else []
            return "Production needs a look: " + "; ".join(facts)
        return "Nothing is in production yet" if self.version is None else f"Version {self.version} is not judged yet"

    @property
    def last_judged(self) -> str:
        """How good the newest period that was judged has been, and of which version; empty where none was."""
        quality = self.judged
        if quality is None:
            return ""
        whose = "" if quality.version == self.version or self.version is None else f"version {self.version}; before it "
        limit = f", limit {format_number(quality.limit)}" if format_number(quality.limit) else ""
        return f"{whose}version {quality.version}, {quality.text} in {quality.period}{limit}"

    @property
    def details(self) -> list[str]:
        """What belongs to the headline: the quality, should it not tell of it, and the period that has no labels."""
        quality = "" if self.last_judged in self.headline else f"Last judged: {self.last_judged}"
        waiting = [f"{q.period}: no labels yet, {q.text}" for q in self.qualities[-1:] if not format_number(q.value)]
        return [*filter(None, [quality]), *waiting]

    def rank_drift(self, n_features: int = 8) -> list[dict[str, Any]]:
        """Return the features that failed, then those that moved furthest and matter most, as texts."""
        table = self.drift.reindex(columns=["psi", "limit", "importance", "largest_move", "failed"])
        numbers = table[["psi", "limit", "importance"]].apply(pd.to_numeric, errors="coerce").astype(float)
        weight = numbers["psi"].fillna(0) * numbers["importance"].fillna(1)  # what nobody measured may matter
        table = table.assign(**numbers, failed=table["failed"].isin([True]), weight=weight)
        table = table.sort_values(["failed", "weight"], ascending=False, kind="stable")
        return [
            {
                "feature": str(feature),
                "status": "failed" if row["failed"] else "passed",
                "psi": format_number(row["psi"]) or "not measured",
                "limit": format_number(row["limit"]),
                "share": _share(row["psi"], row["limit"], table["psi"].max()),
                "importance": f"{100 * row['importance']:.0f}\N{NO-BREAK SPACE}%"
                if pd.notna(row["importance"])
                else "",
                "move": row["largest_move"] if isinstance(row["largest_move"], str) else "",
            }
            for feature, row in table.head(n_features).iterrows()
        ]

    def format_time(self, at: datetime) -> str:
        """Return a time as people say it: short, in the time zone of the page, with the year when it is another."""
        at = at.astimezone(self.made_at.tzinfo)
        year = f" {at.year}" if at.year != self.made_at.year else ""
        return f"{at.day} {at:%b}{year} {at:%H:%M}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, with the outcome and the headline; numbers that are missing are null."""
        values = {field.name: _json_value(getattr(self, field.name)) for field in fields(self)}
        return {"outcome": self.outcome, "headline": self.headline, **values}

    def __str__(self) -> str:
        """Return what a terminal shows: the page in about 25 lines."""
        lines = [f"{MARKS[self.outcome]} {visible(self.project)}: {visible(self.headline)}"]
        sentences = [*self.details, self.describe(), self.probation, self.costs]
        lines += [f"  {visible(text)}" for text in sentences if text]
        qualities = [
            [MARKS[q.status], q.period, f"v{q.version}", q.text, f"limit {format_number(q.limit) or 'none'}"]
            for q in self.qualities[:-6:-1]
        ]
        alarms = [["✗", row.name, text_of(row), row.limit, row.reason] for row in self.alarms[:3]]
        drift = [
            [MARKS[row["status"]], row["feature"], row["psi"], row["limit"] or "no limit", row["move"]]
            for row in self.rank_drift(3)
        ]
        ticks = [[MARKS[t.outcome], self.format_time(t.at), t.period, t.text] for t in newest(self.ticks, 2)]
        moves = [
            [" ", self.format_time(e.at), e.action, e.stage, f"v{e.version}", e.actor, e.reason]
            for e in newest(self.events, 3)
        ]
        shown = {
            "Quality": qualities,
            f"Alarms, {len(self.alarms)} open": alarms,
            f"Drift in {self.drift_period}" if self.drift_period else "Drift": drift,
            "Ticks": ticks,
            "Moves": moves,
        }
        for title, cells in shown.items():
            table = [f"  {line}" for line in table_lines(cells)]
            lines += [visible(title), *table] if table else [f"{visible(title)}: none"]
        return "\n".join(lines)

    __repr__ = __str__

    def describe(self) -> str:
        """Return what is in production, since when, and why."""
        if self.version is None:
            return f"No version is in {self.stage}."
        what = f"version {self.version}" + (f", {self.description}" if self.description else "")
        since = f" since {self.format_time(self.since)}" if self.since else ""
        return f"{self.stage}: {what}{since}; {self.why or 'no reason was given'}"

    def _repr_html_(self) -> str:
        """Return the page as JupyterLab shows it, with its style."""
        return f"<style>{_read_css()}</style>{self._render('page')}"

    def _render(self, block: str) -> str:
        chart = draw_quality(self.qualities, self.events, self.stage) if self.qualities else None
        shown = {"s": self, "block": block, "chart": chart, "css": _read_css(), "MARKS": MARKS}
        words = {"number": format_number, "newest": newest, "link": _link, "text_of": text_of}
        return str(load_template("status.html").render(**shown, **words))


def write_status(status: Status, path: Path | str) -> None:
    """Write a page that needs nothing else: no script, nothing from elsewhere, whole or not at all."""
    with data.atomic_write(path, "w") as file:
        file.write(status._render("document"))


def newest(records: tuple[Any, ...], n_records: int) -> list[Any]:
    """Return the latest records, the newest first."""
    return sorted(records, key=lambda record: record.at, reverse=True)[:n_records]


def format_number(value: float | None) -> str:
    """Return a metric as people read it, with three decimals below 1; nothing where there is none."""
    if value is None or pd.isna(value):
        return ""
    value = float(value)
    return f"{value:.3f}" if 0.01 <= abs(value) < 1 else format_value(value)


def text_of(row: Row) -> str:
    """Return the value of an alarm for people."""
    return "not known" if pd.isna(row.value) else row.text


def _share(psi: float, limit: float, largest: float) -> int:
    """Return the length of a bar in percent; the limit, or else the half of what moved furthest, is its middle."""
    middle = limit if limit > 0 else largest / 2
    return min(100, round(50 * psi / middle)) if psi > 0 and middle > 0 else 0


def _json_value(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return [{"feature": str(name), **_json_value(row.to_dict())} for name, row in value.iterrows()]
    if is_dataclass(value):
        return {field.name: _json_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    value = value.item() if hasattr(value, "item") else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def _link(address: str) -> str:
    """Return an address that a browser may follow, or nothing: no script in the clothes of one."""
    return address if urlsplit(address.strip()).scheme.lower() in ("", "http", "https", "file") else ""


@functools.cache
def _read_css() -> str:
    return Path(__file__).with_name("status.css").read_text(encoding="utf-8")
