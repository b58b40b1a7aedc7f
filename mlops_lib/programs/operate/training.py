"""A version trained, judged and promoted without anybody looking: what a tick and the beginning of a replay share."""

from __future__ import annotations

from datetime import datetime

from mlops_lib import data, gates, registry
from mlops_lib.programs import batch
from mlops_lib.programs.notebooks import run_notebook
from mlops_lib.programs.operate.decide import Decision
from mlops_lib.project import Project

SMOKE_ROWS = 1000


def train_and_validate(project: Project, window: list[str], parent: str | None = None) -> tuple[int, bool]:
    """Have a version trained on the periods of a window but the last, and judged on that, by the policy's notebooks.

    Returns
    -------
    version : int
    passed : bool

    Raises
    ------
    NotebookError, NotFoundError, ParameterError
    """
    policy, (*periods, last) = project.policy, window
    if callable(policy.train):
        version = int(policy.train(project, periods))
    else:
        given = {**policy.parameters, "train_from": periods[0], "train_until": periods[-1]}
        trained = run_notebook(project, policy.train, given, cached=True, parent=parent)
        version = int(trained.result["version"])
    if callable(policy.validate):
        policy.validate(project, version, last)
    else:
        run_notebook(project, policy.validate, {"version": version, "period": last}, cached=True, parent=parent)
    verdict = registry.load_verdict(project, version)
    return version, bool(verdict and verdict.passed)


def promote_version(project: Project, version: int, decision: Decision, operation: str) -> list[str]:
    """Promote a version stage by stage, each move once; before production it scores some rows from the stage below."""
    reason, policy = f"policy: {'; '.join(decision.reasons) or 'first version'}"[:300], project.policy
    stages = project.stages[1:] if policy.to_production else project.stages[1:-1]
    for stage in stages:
        if stage == project.production:
            newest = project.path("arrivals", project.periods()[-1])
            below = project.stages[-2]
            batch.score_table(project, below, newest, project.runs_path / f"smoke-{version}.parquet", rows=SMOKE_ROWS)
        gates.promote(project, version, stage, reason=reason, operation=f"{operation}-{stage}")
    return list(stages)


def latest_arrival(project: Project, period: str) -> datetime:
    """Return when the last row of a period arrived."""
    times = data.read_table(project.path("arrivals", period), columns=[project.time])[project.time]
    latest: datetime = data.read_times(times).max().to_pydatetime()
    return latest
