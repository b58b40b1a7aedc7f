"""Production, looked at: what arrived, how far it has drifted, how good the predictions turned out to be, what ails.

>>> seen = operate.monitor_period(project, "2013-05")  # doctest: +SKIP
>>> seen.drift.passed  # doctest: +SKIP
False
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd

from mlops_lib import __version__, data, quality, registry, tracking
from mlops_lib.errors import MlopsError, NotFoundError
from mlops_lib.project import Project, load_project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row
from mlops_lib.task import Task
from mlops_lib.tracking import store

# How far the leading metric may fall behind what was measured before registration: by so much of one from 0 to 1 for
# classes, by this share of the error for numbers.
MAX_QUALITY_LOSS = 0.03
MAX_ERROR_GROWTH = 0.1


@dataclass(frozen=True)
class PeriodSeen:
    """One period in production.

    Parameters
    ----------
    drift, quality : Report
        Inputs against the model's training data; predictions against the labels that have come.
    drift_table, quality_table : DataFrame
        The figures behind the reports, by column and by model version.
    task : Task
        That of the model.
    """

    period: str
    version: int
    drift: Report
    quality: Report
    drift_table: pd.DataFrame
    quality_table: pd.DataFrame
    task: Task

    @property
    def passed(self) -> bool:
        """Whether neither report has a failure."""
        return not (self.drift.failures or self.quality.failures)


def monitor_period(
    project: Project, period: str, stage: str | None = None, *, as_of: datetime | None = None
) -> PeriodSeen:
    """Compare a period's arrivals with the training data of a stage's model, and its predictions with their labels.

    Parameters
    ----------
    period : str
    stage : str, optional
        By default the last one, production.
    as_of : datetime, optional
        Only labels known by then count; by default all that exist.

    Raises
    ------
    NotFoundError
        Nothing was changed.
    """
    release = registry.load_model(project, stage or project.production)
    arrivals = data.read_table(project.path("arrivals", period), required=project.features)
    profile = quality.Profile.from_dict(release.files.profile)
    limits = find_limits(project, release)
    live, table = Report(f"Live quality of {period}", (_no_labels(period),)), pd.DataFrame()
    try:
        scored = project.predictions_path(period, release.version)
        predictions = data.read_table(scored, required=[*project.keys, *release.task.columns()])
        labels = data.read_labels(project, period, as_of=as_of)
    except NotFoundError:
        pass  # nothing scored or nothing labelled yet: the row above says so
    else:
        table = live_quality(project, predictions, labels, task=release.task)
        live = quality.check_live_quality(table, limits=limits) if limits else _without_limits(release)
    drift = quality.compute_drift(profile, arrivals)
    return PeriodSeen(period, release.version, quality.check_drift(drift), live, drift, table, release.task)


def log_period(seen: PeriodSeen) -> None:
    """Log both reports (JSON and HTML) and the live metrics to the active run."""
    for name, report in (("drift", seen.drift), ("quality", seen.quality)):
        mlflow.log_text(report.to_json(), f"{name}.json")
        mlflow.log_text(f'<meta charset="utf-8">{report._repr_html_()}', f"{name}.html")
    for version, row in seen.quality_table.iterrows():
        metrics = {f"live_{name}": float(row[name]) for name in seen.task.metrics if pd.notna(row[name])}
        tracking.log_metrics(metrics if version == seen.version else {})


def live_quality(
    project: Project, predictions: pd.DataFrame, labels: pd.DataFrame, *, task: Task, by: str = "model_version"
) -> pd.DataFrame:
    """Join late labels to predictions on the project's keys and compute every metric, by version or another column.

    Parameters
    ----------
    task : Task
        That of the model which predicted, with its classes.
    """
    return quality.compute_live_quality(
        predictions,
        labels,
        key=list(project.keys),
        target=project.target,
        task=task,
        by=by,
        metrics=project.metrics,
    )


def examine(file: Path | None = None) -> Report:
    """Check project, store, data and registry in turn; each row names a fault and what to do, later rows need earlier.

    Parameters
    ----------
    file : Path, optional
        The project file, where it is not found by itself.
    """
    rows: list[Row] = []
    facts = {"version": __version__}

    def check(name: str, limit: str, look: Callable[[], str]) -> bool:
        try:
            rows.append(Row(name, look(), limit, "passed"))
        except MlopsError as error:
            rows.append(Row(name, None, limit, "failed", str(error)))
        return rows[-1].status == "passed"

    found: list[Project] = []

    def look_at_project() -> str:
        found.append(load_project(file))
        facts["project"] = str(found[0].file)
        return f"'{found[0].name}'"

    if check("project", "one project file", look_at_project):
        project = found[0]

        def look_at_store() -> str:
            store.connect(project.tracking_uri)
            facts["store"] = store.without_password(project.tracking_uri)
            return "SQLite" if store.sqlite_path(project.tracking_uri) else facts["store"]

        def look_at_model(stage: str) -> str:
            return f"version {registry.load_model(project, stage).version}"

        def look_at_data() -> str:
            project.path("arrivals", (project.periods() or ("any",))[0])
            return f"{len(project.periods())} periods of arrivals, {len(project.periods('labels'))} of labels"

        check("data", "some period ingested", look_at_data)
        if check("store", "reachable, writable, schema whole", look_at_store) and check(
            "ledger", "chain of hashes intact", lambda: f"entries: {len(registry.read_ledger(project))}"
        ):
            for stage in project.stages:
                if registry.current(project, stage) is None:
                    rows.append(Row(stage, None, "loads and verifies", "not_applicable", "no version is in it"))
                else:
                    check(stage, "loads and verifies", partial(look_at_model, stage))
    return Report("Health", tuple(rows), facts)


def find_limits(project: Project, release: Release) -> dict[str, quality.Limit]:
    """Return the limit of the leading metric: what was measured before registration, less a margin.

    Without such a measurement it is what chance reaches, and of numbers there is none.
    """
    task, (name, *_) = release.task, release.task.metrics
    expected = registry.get_version(project, release.version).metrics.get(f"val_{name}")
    if task.is_classifier:
        chance = 0.5 if task.kind == "binary" else 1 / len(task.classes)
        return {name: quality.Limit(low=chance if expected is None else expected - MAX_QUALITY_LOSS)}
    return {} if expected is None else {name: quality.Limit(high=expected * (1 + MAX_ERROR_GROWTH))}


def _without_limits(release: Release) -> Report:
    (name, *_) = release.task.metrics
    reason = f"version {release.version} was registered without val_{name}: nothing says what to expect of it"
    return Report("Live quality", (Row(name, None, f"near val_{name}", "not_applicable", reason),))


def _no_labels(period: str) -> Row:
    return Row("labels", None, "some labelled predictions", "not_applicable", f"no predictions or labels for {period}")
