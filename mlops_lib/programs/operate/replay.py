"""A past operated again under several policies: what would have been in production when, how good, at what effort.

The same ticks as ever run with the clock simulated, in a scratch store below ``runs/replay``: each policy has stages of
its own there, and what one has trained another need not train again. A replay that was stopped goes on where it was,
and one that is finished is read.

>>> print(operate.replay(project, "2013-04", "2013-12", ["never", "monthly"]))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_lib import gates, quality, registry
from mlops_lib.errors import NotFoundError, OperateError, RefusedError
from mlops_lib.programs.notebooks import keys
from mlops_lib.programs.notebooks.run import find_notebook
from mlops_lib.programs.operate import tables
from mlops_lib.programs.operate.decide import Decision
from mlops_lib.programs.operate.record import Tick, read_ticks
from mlops_lib.programs.operate.tick import run_tick
from mlops_lib.programs.operate.training import latest_arrival, promote_version, train_and_validate
from mlops_lib.project import Project, sqlite_uri
from mlops_lib.report import table_lines
from mlops_lib.tracking import store

# Besides "project", the project's own. Each trains with the project's parameters and window.
POLICIES: dict[str, dict[str, Any]] = {
    "never": {"drifting": None, "quality": False, "max_age_days": None},
    "monthly": {"drifting": None, "quality": False, "max_age_days": 45, "cool_down_days": 20},
    "on-drift": {"drifting": 0, "quality": False, "max_age_days": None, "cool_down_days": 20},
    "project": {},
}

KEPT = (
    *("value", "low", "high", "estimated", "estimated_low", "estimated_high", "limit_low", "limit_high"),
    *("n_labelled", "held"),
)


@dataclass(frozen=True)
class Replay:
    """What became of each policy.

    Parameters
    ----------
    table : DataFrame
        Indexed by policy: mean and worst quality; periods with a value beyond the limit, and with the whole interval
        beyond it (``surely``); trainings, releases, seconds of the ticks that trained; drift alarms that were true (the
        value was beyond the limit, as labels showed later) and false, and such periods without an alarm.
    periods : DataFrame
        One row a policy and period: the version that scored it, its quality with interval and estimate, what was done.
    metric : str
    folder : Path
        The scratch store and everything that was made.
    """

    table: pd.DataFrame
    periods: pd.DataFrame
    metric: str
    folder: Path

    def __str__(self) -> str:
        """Return the policies side by side."""
        shown = self.table.reset_index().round(4)
        return "\n".join(table_lines([list(map(str, shown)), *shown.astype(str).to_numpy().tolist()]))

    def _repr_html_(self) -> str:
        return str(self.table.round(4).to_html())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        rows = self.periods.astype(object).where(self.periods.notna(), None)
        return {
            "metric": self.metric,
            "policies": self.table.reset_index().to_dict("records"),
            "periods": rows.to_dict("records"),
            "folder": str(self.folder),
        }


def replay(
    project: Project,
    first: str,
    last: str,
    policies: Sequence[str] = tuple(POLICIES),
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Replay:
    """Operate the periods from ``first`` to ``last`` once under each policy, as if each had just come.

    The first version is trained and judged on periods before ``first``; every policy may promote to production.

    Parameters
    ----------
    policies : sequence of str
        Of ``never``, ``monthly``, ``on-drift`` and ``project``, the project's own.
    progress : callable, optional
        Called with ticks done, ticks in all and a text.

    Raises
    ------
    OperateError
        The project has no time, or there are too few periods before ``first``.
    NotFoundError, NotebookError
    """
    periods, known = project.periods("arrivals", first, last), project.periods()
    for name in policies:
        if name not in POLICIES:
            raise NotFoundError("policy", policy=name, policies=tuple(POLICIES))
    if not project.time:
        raise OperateError("replay", reason="the project names no time column, so nothing says when its rows came")
    before = known[: known.index(first)]
    if len(before) < 2:
        reason = f"there are {len(before)} periods before '{first}', and the first model is trained and judged on two"
        raise OperateError("replay", reason=reason)
    folder = project.runs_path / "replay" / _compute_key(project, known)[:12]
    n_done, n_all = 0, len(policies) * len(periods)
    played = {}
    for name in policies:
        for number, period in enumerate((before[-1], *periods)):
            if progress:
                progress(n_done, n_all, f"{name}, {period}")
            past = _set_clock(project, name, folder, period)
            if number == 0:
                _begin(past, list(before))
                continue
            ticks = read_ticks(past)
            if not any(tick.at == past.clock.isoformat() and tick.status == "done" for tick in ticks):
                run_tick(past)
            n_done += 1
        played[name] = past
    if progress:
        progress(n_all, n_all, "")
    metric = project.task.metrics[0]
    told = pd.concat([_describe(past, name, metric) for name, past in played.items()], ignore_index=True)
    told = told[told["period"].isin(periods)].reset_index(drop=True)
    greater = bool(quality.find_metric(project.task, metric).greater_is_better)
    return Replay(_compare(told, greater_is_better=greater), told, metric, folder)


def _set_clock(project: Project, name: str, folder: Path, period: str) -> Project:
    """Return the project as it was when a period's last row had come, under a policy and in the scratch store."""
    own = {} if name == "project" else POLICIES[name]
    policy = replace(project.policy, **own, to_production=True, status="", hooks=(), webhook="")
    stages = (project.stages[0], *(f"{stage}-{name}" for stage in project.stages[1:]))
    now = latest_arrival(project, period) + timedelta(seconds=1)
    uri = sqlite_uri(folder / "mlflow.db")
    environ = {
        **project.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLOPS_NOW": now.isoformat(),
        "MLOPS_STAGES": ",".join(stages),
        "MLOPS_OUTPUTS": str(folder / name),
        "OMP_NUM_THREADS": project.environ.get("OMP_NUM_THREADS", "1"),  # on shared cores two are many times slower
    }
    for taken in ("MLFLOW_RUN_ID", "MLOPS_RUN_ID"):
        environ.pop(taken, None)
    return replace(
        project,
        stages=stages,
        approvals=(),
        policy=policy,
        now=now,
        tracking_uri=uri,
        outputs=folder / name,
        state=folder / "state",
        run_id=None,
        environ=environ,
    )


def _begin(past: Project, before: list[str]) -> None:
    """Have the first version trained on the periods before, and bring it into production, once."""
    store.connect(past.tracking_uri)  # which makes it
    if registry.current(past, past.production) is not None:
        return
    window = before if past.policy.window is None else before[-past.policy.window - 1 :]
    version, _ = train_and_validate(past, window)
    try:
        promote_version(past, version, Decision(("the first version",), ()), "begin")
    except RefusedError as error:  # a past begins with what there was
        for stage in past.stages[1:]:
            gates.promote(past, version, stage, force=True, reason=f"the replay begins with it: {error}"[:300])


def _describe(past: Project, name: str, metric: str) -> pd.DataFrame:
    """Return a policy's periods: what scored them, how well, and what the tick of each did."""
    qualities = tables.read_table(past, "quality")
    costs = qualities[qualities["metric"] == "mean_cost"].set_index(["period", "version"])["value"]
    qualities = qualities[qualities["metric"] == metric].set_index(["period", "version"])
    rows = []
    for tick in read_ticks(past):
        for period in tick.periods:
            version = tick.scored[period]["version"]
            seen = qualities.loc[(period, version)].to_dict() if (period, version) in qualities.index else {}
            row = {"policy": name, "period": period, "version": version, **{key: seen.get(key) for key in KEPT}}
            row |= {"mean_cost": costs.get((period, version)), "drift_alarm": tick.n_drifting > 0}
            rows.append({**row, **_describe_tick(tick)})
    return pd.DataFrame(rows)


def _describe_tick(tick: Tick) -> dict[str, Any]:
    trained = tick.trained is not None
    return {
        "retrained": trained,
        "why": "; ".join(tick.reasons or ()) if trained else "",
        "released": tick.trained if tick.promoted else None,
        "sent_back": tick.sent_back,
        "seconds": tick.duration_s if trained else 0.0,
    }


def _compare(periods: pd.DataFrame, *, greater_is_better: bool) -> pd.DataFrame:
    rows = {}
    for name, each in periods.groupby("policy", sort=False):
        judged = each[each["value"].notna()]
        limits = each[["limit_low", "limit_high"]].astype(float)
        values = each["value"].astype(float)
        bad = (values < limits["limit_low"]) | (values > limits["limit_high"])
        weights = judged["n_labelled"].astype(float)
        values = values[judged.index]
        row = {
            "mean quality": (values * weights).sum() / weights.sum() if len(judged) else None,
            "worst": (values.min() if greater_is_better else values.max()) if len(judged) else None,
            "beyond limit": int(bad.sum()),
            "surely": int(each["held"].eq(False).fillna(False).sum()),
            "trainings": int(each["retrained"].sum()),
            "releases": int(each["released"].notna().sum()),
            "seconds": round(float(each["seconds"].sum()), 1),
            "true alarms": int((each["drift_alarm"] & bad).sum()),
            "false alarms": int((each["drift_alarm"] & ~bad).sum()),
            "missed": int((~each["drift_alarm"] & bad).sum()),
        }
        if each["mean_cost"].notna().any():
            row["mean cost"] = (each["mean_cost"].astype(float) * each["n_labelled"]).sum() / each["n_labelled"].sum()
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _compute_key(project: Project, known: Sequence[str]) -> str:
    """Return the key of everything that a replay depends on; another one is played in another folder."""
    notebooks = [each for each in (project.policy.train, project.policy.validate) if isinstance(each, str)]
    paths = [project.path(table, period) for table in ("arrivals", "labels") for period in known]
    tables_seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()]
    facts = {"tables": tables_seen, "policies": repr(sorted(POLICIES.items()))}
    files = [find_notebook(project, each) for each in notebooks]
    lock = project.root / "requirements.lock"
    return keys.compute_key(facts, [*files, *([project.file] if project.file else []), lock])
