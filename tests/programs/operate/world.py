"""A small world that a project operates in: rows come day by day or week by week, labels late, twice and corrected."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from conftest import FEATURES, make_model

from mlops_lib import contracts, data, gates, quality, registry, tracking
from mlops_lib.project import Monitoring, Policy, Project

START = datetime(2024, 1, 1, tzinfo=UTC)


def make_period(project: Project, number: int, *, n_rows: int = 300, days: int = 7, drifted: bool = False) -> str:
    """Write the arrivals and labels of one period: a tenth late, some twice, some corrected; return its name."""
    rng = np.random.default_rng(number)
    begin = START + timedelta(days=days * number)
    arrived = pd.Series(pd.to_datetime(begin) + pd.to_timedelta(np.sort(rng.random(n_rows)) * days, unit="D"))
    size = rng.normal(16 if drifted else 10, 2, n_rows)
    arrivals = pd.DataFrame(
        {
            "thing_id": np.arange(number * 10_000, number * 10_000 + n_rows),
            "arrived_at": arrived.dt.floor("s"),
            "color": pd.array(rng.choice(["red", "green", "blue"], n_rows), dtype="str"),
            "size": size,
            "weight": rng.normal(5, 1, n_rows),
        }
    )
    # What was true of red things and of large ones is turned round: a model of before is worse than chance.
    sign = -1 if drifted else 1
    logit = sign * (1.5 * (arrivals["color"] == "red") + (size - (16 if drifted else 10)) / 2) - sign
    broke = (rng.random(n_rows) < 1 / (1 + np.exp(-logit))).astype("int64")
    delay = np.where(rng.random(n_rows) < 0.1, days * 1.5, 0.01)
    labels = pd.DataFrame(
        {
            "thing_id": arrivals["thing_id"],
            "broke": broke,
            "labelled_at": (arrived + pd.to_timedelta(delay, unit="D")).dt.floor("s"),
        }
    )
    twice = labels.sample(5, random_state=number)
    corrected = labels.sample(3, random_state=number + 1)
    corrected = corrected.assign(
        broke=1 - corrected["broke"], labelled_at=corrected["labelled_at"] + timedelta(days=days)
    )
    name = f"w{number:03d}"
    data.write_table(arrivals, project.root / project.arrivals.format(period=name))
    data.write_table(pd.concat([labels, twice, corrected]), project.root / project.labels.format(period=name))
    return name


def make_world(project: Project, n_periods: int, *, drift_at: int = 10**6, days: int = 7, **policy: Any) -> Project:
    """Write periods instead of those that the toy project has; return the project that operates them."""
    for path in (project.root / "data").glob("*/*.parquet"):
        path.unlink()
    made = in_world(project, **policy)
    for number in range(n_periods):
        make_period(made, number, days=days, drifted=number >= drift_at)
    return made


def in_world(project: Project, **policy: Any) -> Project:
    """Return the toy project with a time, one gate, and functions that train and judge."""
    given: dict[str, Any] = {"train": train, "validate": validate, "min_rows": 300, "window": 4, "status": ""}
    return replace(
        project,
        time="arrived_at",
        gates=(gates.Threshold("roc_auc", 0.6),),
        monitoring=Monitoring(min_labelled=100, max_psi=0.5),
        policy=Policy(**{**given, "to_production": True, "probation_labels": 1500, **policy}),
    )


def train(project: Project, periods: list[str], *, C: float = 1.0) -> int:  # noqa: N803
    """Train on some periods and register: what a training notebook does."""
    rows = data.read_labelled(project, periods)
    X, y = rows[list(FEATURES)], rows["broke"]
    model = make_model(C).fit(X, y)
    contract = contracts.infer_contract(rows, features=FEATURES, keys=project.keys)
    contract = contract.replace_column("size", low=-50.0, high=100.0)
    profile = quality.build_profile(rows, columns=FEATURES)
    known = {"contract": contract.to_dict(), "profile": profile.to_dict()}
    score = quality.compute_metrics(y, model.predict_proba(X)[:, 1], task=project.task, prefix="val")
    with tracking.start_run(project):
        logged = tracking.log_model(project, model, X, keys=rows[["thing_id"]], times=rows["arrived_at"], **known)
    return registry.register(
        project, logged.model_uri, metrics=score, description=f"{periods[0]} to {periods[-1]}"
    ).version


def validate(project: Project, version: int, period: str) -> None:
    """Judge a version on a period: what a validation notebook does."""
    champion = registry.current(project, project.production)
    candidate, best = (registry.load_model(project, n) if n else None for n in (version, champion))
    assert candidate is not None
    with tracking.start_run(project):
        registry.log_verdict(project, version, gates.check_gates(project, candidate, best, period))


def begin(project: Project, n_periods: int = 4) -> int:
    """Train on the first periods, judge on the next one, and bring the version into production."""
    names = list(project.periods())[: n_periods + 1]
    at = at_end_of(project, names[-1], days=30)
    version = train(at, names[:-1])
    validate(at, version, names[-1])
    for stage in project.stages[1:]:
        gates.promote(at, version, stage)
    return version


def at_end_of(project: Project, period: str, *, days: float = 0) -> Project:
    """Return the project with its clock just after a period's last row."""
    times = data.read_table(project.path("arrivals", period))["arrived_at"]
    return replace(project, now=times.max().to_pydatetime() + timedelta(seconds=1, days=days))
