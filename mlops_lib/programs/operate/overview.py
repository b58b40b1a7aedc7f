"""The status of production, read together: ledger, ticks and their tables, and what doctor says.

>>> print(operate.read_status(project))  # doctest: +SKIP
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_lib import registry
from mlops_lib.programs.operate import tables
from mlops_lib.programs.operate.record import Tick, read_ticks
from mlops_lib.programs.operate.status import Event, Quality, Status, TickSeen
from mlops_lib.project import Project
from mlops_lib.registry import Entry

N_TICKS, N_EVENTS = 6, 8


def read_status(project: Project, *, page: Path | None = None, n_events: int = N_EVENTS) -> Status:
    """Return what is in production, how it came there, how good it is and what is open.

    Parameters
    ----------
    page : path, optional
        Where the page will be: links to executed notebooks are relative to its folder. By default none are given.
    n_events : int
        How many of the latest moves.

    Raises
    ------
    StoreError, LedgerError, OperateError
    """
    ticks = read_ticks(project)
    moves = [entry for entry in registry.history(project) if not entry.is_registration]
    standing = registry.standing(project).get(project.production)
    version = registry.get_version(project, standing.version) if standing else None
    drift, drift_period = _read_drift(project, ticks)
    return Status(
        project=project.name,
        stage=project.production,
        version=standing.version if standing else None,
        description=version.description if version else "",
        since=standing.time if standing else None,
        why=f"{standing.action}: {standing.reason}" if standing else "",
        qualities=_read_qualities(project, ticks),
        drift=drift,
        drift_period=drift_period,
        alarms=ticks[-1].alarms if ticks else (),
        probation=ticks[-1].on_probation if ticks else "",
        ticks=tuple(_describe(tick) for tick in ticks[-N_TICKS:]),
        events=tuple(_place(entry, ticks) for entry in moves[-n_events:]),
        links=_list_links(project, page),
        made_at=project.clock.astimezone(),
        costs=_read_costs(project, ticks),
    )


def _read_qualities(project: Project, ticks: list[Tick]) -> tuple[Quality, ...]:
    """Return the leading metric of each period, of the version that production scored it with."""
    if not ticks:
        return ()
    rows = tables.read_table(project, "quality", list(ticks[-1].scored))
    if rows.empty:
        return ()
    rows = rows[rows["metric"] == project.task.metrics[0]]
    found = []
    for period in [period for period in project.periods() if period in ticks[-1].scored]:
        version = int(ticks[-1].scored[period]["version"])
        mine = rows[(rows["period"] == period) & (rows["version"] == version)].to_dict("records")
        if not mine:
            continue
        values: dict[str, Any] = {str(name): None if pd.isna(value) else value for name, value in mine[0].items()}
        low, high = values["limit_low"], values["limit_high"]
        found.append(
            Quality(
                period=period,
                version=version,
                limit=high if low is None else low,
                limit_is_low=low is not None,
                held=None if values["held"] is None else bool(values["held"]),
                **{name: values[name] for name in ("metric", "value", "low", "high", "n_labelled", "estimated")},
            )
        )
    return tuple(found)


def _read_drift(project: Project, ticks: list[Tick]) -> tuple[pd.DataFrame, str]:
    """Return the drift of the newest period that has been measured."""
    for period in reversed(project.periods()):
        rows = tables.read_table(project, "drift", [period]) if ticks else pd.DataFrame()
        if len(rows):
            rows = rows[rows["kind"] == "feature"].set_index("column")
            return rows.assign(limit=project.monitoring.max_psi), period
    return pd.DataFrame(columns=["psi", "limit", "importance", "largest_move", "failed"]), ""


def _describe(tick: Tick) -> TickSeen:
    """Return a tick in a sentence."""
    n_scored = sum(tick.scored.get(period, {}).get("n_scored", 0) for period in tick.periods)
    said = [f"scored {n_scored:,} rows" if tick.periods else "nothing new to score"]
    if tick.sent_back:
        said.append(f"sent version {tick.sent_back} back")
    if tick.trained:
        went = f"now in {tick.promoted[-1].partition('-')[0]}" if tick.promoted else "it did not pass"
        said.append(f"trained version {tick.trained} ({'; '.join(tick.reasons or ())}): {went}")
    elif tick.decision.reasons:
        said.append(str(tick.decision))
    outcome = tick.report.outcome if tick.status == "done" else "not_applicable"
    return TickSeen(tick.time, ", ".join(tick.periods), outcome, "; ".join(said))


def _place(entry: Entry, ticks: list[Tick]) -> Event:
    """Return a move with the period that comes after it: its version's first one, where the move is to production."""
    operation = entry.operation.split("-")
    by_tick = int(operation[1]) if operation[0] == "tick" and operation[1].isdigit() else None
    at = next((tick.time for tick in ticks if tick.number == by_tick), entry.time)
    later = [period for tick in ticks if tick.time > at for period in tick.periods]
    return Event(at, entry.action, entry.stage, entry.version, entry.actor, entry.reason, later[0] if later else "")


def _list_links(project: Project, page: Path | None) -> dict[str, str]:
    """Return addresses of the latest executed notebooks, and of MLflow where it is a server."""
    links = {}
    if page is not None:
        newest = sorted(project.runs_path.glob("*/*.html"), key=lambda path: path.stat().st_mtime)
        for path in newest:
            links[path.stem] = os.path.relpath(path, page.parent)
    if project.tracking_uri.startswith("http"):
        links["MLflow"] = project.tracking_uri
    return links


def _read_costs(project: Project, ticks: list[Tick]) -> str:
    """Return what the predictions of the newest labelled period cost, where the project states costs."""
    if not project.costs or not ticks:
        return ""
    rows = tables.read_table(project, "quality")
    rows = rows[(rows["metric"] == "mean_cost") & rows["value"].notna()] if len(rows) else rows
    if rows.empty:
        return ""
    last = rows.iloc[-1]
    return f"a prediction of {last['period']} cost {last['value']:.4g} {project.costs.unit}".strip()
