"""Production, looked at: what arrived, how far it has drifted, how good the predictions turned out to be, what ails.

>>> seen = operate.monitor_period(project, "2013-05")  # doctest: +SKIP
>>> seen.drift.passed  # doctest: +SKIP
False
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from mlops_lib import __version__, contracts, data, quality, registry, tracking
from mlops_lib.errors import MlopsError, NotFoundError, StoreError, TableError
from mlops_lib.gates.evidence import read_contract
from mlops_lib.programs.operate.tables import list_predictions
from mlops_lib.project import Project, load_project
from mlops_lib.quality import Interval
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row
from mlops_lib.task import Task
from mlops_lib.tracking import store


@dataclass(frozen=True)
class PeriodSeen:
    """One period in production.

    Parameters
    ----------
    drift, quality : Report
        Inputs and predictions against those of training; predictions against the labels that have come.
    drift_table, quality_table : DataFrame
        The figures behind the reports, by column (``kind`` is ``feature`` or ``prediction``, ``importance`` the share
        of a feature in what moves the predictions) and by model version.
    task : Task
        That of the model.
    estimated : dict of str to Interval
        What its scores say its quality is, before labels; empty where nothing can be said.
    """

    period: str
    version: int
    drift: Report
    quality: Report
    drift_table: pd.DataFrame
    quality_table: pd.DataFrame
    task: Task
    estimated: Mapping[str, Interval]

    @property
    def passed(self) -> bool:
        """Whether neither report has a failure."""
        return not (self.drift.failures or self.quality.failures)


def monitor_period(
    project: Project, period: str, version: int | str | None = None, *, as_of: datetime | None = None
) -> PeriodSeen:
    """Compare a period's arrivals and predictions with those of a model's training, and its predictions with labels.

    Limits are those of ``project.monitoring``. Predictions or labels that are not where the project says are a failure.

    Parameters
    ----------
    period : str
    version : int or str, optional
        A version, also one that was replaced, or a stage; by default the last stage, production.
    as_of : datetime, optional
        Only labels known by then count; by default all that exist.

    Raises
    ------
    NotFoundError
        Nothing was changed.
    """
    release = registry.load_model(project, version or project.production)
    scored = list_predictions(project, period).get(release.version)
    missing = [] if scored else [_missing("predictions", _where_not(project, period, release.version))]
    try:
        labels = data.settle_labels(project, data.read_sightings(project, period, as_of=as_of), as_of=as_of).labels
    except NotFoundError as error:
        missing.append(_missing("labels", str(error)))
    live, table, predictions = Report(f"Live quality of {period}", tuple(missing)), pd.DataFrame(), None
    if scored:
        predictions = data.read_table(scored, required=[*project.keys, *release.task.columns()])
    if predictions is not None and not missing:
        table = measure_quality(project, release.task, period, predictions, labels)
        live = judge_quality(project, release, table)
    drift = measure_drift(project, release, period, predictions)
    estimated = estimate(project, release.task, predictions) if predictions is not None else {}
    return PeriodSeen(period, release.version, judge_drift(project, drift), live, drift, table, release.task, estimated)


def measure_drift(
    project: Project, release: Release, period: str, predictions: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Measure how far a period's features, and a version's predictions for it, have moved from those of its training.

    The table is read batch by batch, in constant memory; importance is measured on rows of the first batch.

    Returns
    -------
    DataFrame
        As :func:`mlops_lib.quality.compute_drift` has it, with ``kind`` and ``importance``.
    """
    counter, importance = quality.DriftCounter(quality.Profile.from_dict(release.files.profile)), pd.Series(dtype=float)
    for frame in _read_frames(project.path("arrivals", period)):
        counter.add(frame)
        if importance.empty:
            contract = read_contract(release)
            good = contracts.split_rows(contract, frame).good if contract else frame
            if len(good):
                importance = quality.measure_importance(release.predict, release.task, good, release.features)
    drift = counter.measure()
    drift = drift.assign(kind="feature", importance=importance.reindex(drift.index))
    scores = release.files.profile.get("scores")
    if predictions is None or not scores:
        return drift
    moved = quality.compute_drift(quality.Profile.from_dict(scores), predictions)
    return pd.concat([drift, moved.assign(kind="prediction", importance=np.nan)])


def _read_frames(path: Path) -> Iterator[pd.DataFrame]:
    """Yield a table batch by batch; one of text (CSV) whole, since only all of its values tell a column's type."""
    if data.is_parquet(path):
        yield from map(data.to_frame, data.read_batches(path))
    else:
        yield data.read_table(path)


def judge_drift(project: Project, drift: pd.DataFrame) -> Report:
    """Hold drift to the project's limits."""
    limits = project.monitoring
    return quality.check_drift(
        drift,
        max_psi=limits.max_psi,
        max_missing_change=limits.max_missing_change,
        alarms_a_year=limits.alarms_a_year,
        periods_a_year=limits.periods_a_year,
    )


def judge_quality(project: Project, release: Release, table: pd.DataFrame) -> Report:
    """Hold live quality to what was measured of a version before its registration."""
    known = find_limits(project, release)
    if not known:
        return _without_limits(release)
    return quality.check_live_quality(table, limits=known, min_labelled=project.monitoring.min_labelled)


def estimate(project: Project, task: Task, predictions: pd.DataFrame) -> dict[str, Interval]:
    """Estimate the leading metric from scores alone; nothing where numbers are predicted, or one class only."""
    if not task.is_classifier or predictions.empty:
        return {}
    return quality.estimate_quality(task, task.from_columns(predictions), [task.metrics[0]])


def measure_quality(
    project: Project, task: Task, period: str, predictions: pd.DataFrame, labels: pd.DataFrame
) -> pd.DataFrame:
    """Join a period's labels to predictions, with intervals over the days of ``project.time`` where there is one."""
    if not project.time:
        return live_quality(project, predictions, labels, task=task)
    days = data.read_table(project.path("arrivals", period), columns=[*project.keys, project.time])
    dated = predictions.drop(columns=project.time, errors="ignore").merge(days, on=list(project.keys), how="left")
    return live_quality(project, dated, labels, task=task, clusters=project.time)


def log_period(seen: PeriodSeen) -> None:
    """Log both reports (JSON and HTML) and the live metrics to the active run."""
    for name, report in (("drift", seen.drift), ("quality", seen.quality)):
        mlflow.log_text(report.to_json(), f"{name}.json")
        mlflow.log_text(f'<meta charset="utf-8">{report._repr_html_()}', f"{name}.html")
    for version, row in seen.quality_table.iterrows():
        metrics = {f"live_{name}": float(row[name]) for name in seen.task.metrics if pd.notna(row[name])}
        tracking.log_metrics(metrics if version == seen.version else {})
    tracking.log_metrics({f"estimated_{name}": interval.value for name, interval in seen.estimated.items()})


def live_quality(
    project: Project,
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    task: Task,
    by: str = "model_version",
    clusters: str | None = None,
) -> pd.DataFrame:
    """Join late labels to predictions on the project's keys and compute every metric, by version or another column.

    Parameters
    ----------
    task : Task
        That of the model which predicted, with its classes.
    clusters : str, optional
        A column of the predictions that says which rows belong together; times by their day.
    """
    return quality.compute_live_quality(
        predictions,
        labels,
        key=list(project.keys),
        target=project.target,
        task=task,
        by=by,
        metrics=quality.list_metrics(project),
        clusters=clusters,
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
            client = store.connect(project.tracking_uri, create=False)
            for experiment in (project.name, f"{project.name}.ledger"):
                store.find_experiment_id(client, project.tracking_uri, experiment)
            if roots := store.find_moved_roots(project.tracking_uri):
                raise StoreError("moved", uri=project.tracking_uri, location=roots[0])
            facts["store"] = store.without_password(project.tracking_uri)
            return "SQLite" if store.sqlite_path(project.tracking_uri) else facts["store"]

        def look_at_model(stage: str) -> str:
            return f"version {registry.load_model(project, stage).version}"

        check("data", "the newest labelled period has what the project names", lambda: examine_data(project))
        if _is_new(project):
            rows.append(Row("store", None, "reachable", "not_applicable", "there is none yet: the first run makes it"))
        elif check("store", "reachable, writable, schema whole", look_at_store) and check(
            "ledger", "chain of hashes intact", lambda: f"entries: {len(registry.read_ledger(project))}"
        ):
            for stage in project.stages:
                if registry.current(project, stage) is None:
                    rows.append(Row(stage, None, "loads and verifies", "not_applicable", "no version is in it"))
                else:
                    check(stage, "loads and verifies", partial(look_at_model, stage))
    return Report("Health", tuple(rows), facts)


def _is_new(project: Project) -> bool:
    """Whether nothing was ever run: there is no store, and none was seen before."""
    try:
        registry.read_ledger(project)
    except MlopsError as error:
        return isinstance(error, StoreError) and error.case == "missing"
    return False


def examine_data(project: Project) -> str:
    """Read the newest labelled period as a run would, and hold it to what the project names; return what is there.

    Raises
    ------
    MlopsError
        For the first thing that a run would stumble over: files, keys, features, target, times of labels, slices and
        the metrics of gates.
    """
    periods, labelled = project.periods(), project.periods("labels")
    if not project.arrivals:
        return "the project has no tables"
    named = [period for period in periods if period in labelled]
    if not named:
        project.path("labels" if periods else "arrivals", (labelled or periods or ("any",))[-1])
    rows = data.read_labelled(project, named[-1], as_of=None)
    raise_for = partial(data.raise_for_columns, project.path("arrivals", named[-1]), have=list(map(str, rows)))
    raise_for([*project.features, *project.slices])
    task = project.task.learn_classes(rows[project.target])
    task.encode(rows[project.target])
    if project.labelled_at in rows:
        times = pd.to_datetime(rows[project.labelled_at], utc=True, errors="coerce")
        late = int((times > pd.Timestamp.now("UTC")).sum())
        if late or times.isna().any():
            reason = f"{late} of {len(rows)} are in the future, {int(times.isna().sum())} are none"
            raise TableError("times", column=project.labelled_at, reason=reason)
    measured = quality.list_metrics(project)
    own = tuple(each for each in measured if isinstance(each, quality.Metric))
    for name in [*measured, *(gate.metric for gate in project.gates if hasattr(gate, "metric"))]:
        quality.find_metric(task, name, own)
    for gate in project.gates:
        clusters = getattr(gate, "clusters", None)
        raise_for([clusters] if isinstance(clusters, str) else [])
    return f"{len(periods)} periods of arrivals, {len(labelled)} of labels, {len(rows):,} labelled rows in {named[-1]}"


def find_limits(project: Project, release: Release) -> dict[str, quality.Limit]:
    """Return the limit of the leading metric: what was measured before registration, less a margin.

    Without such a measurement it is what chance reaches, and of numbers there is none.
    """
    task, (name, *_) = release.task, release.task.metrics
    expected = registry.get_version(project, release.version).metrics.get(f"val_{name}")
    if task.is_classifier:
        chance = 0.5 if task.kind == "binary" else 1 / len(task.classes)
        return {name: quality.Limit(low=chance if expected is None else expected - project.monitoring.max_loss)}
    return {} if expected is None else {name: quality.Limit(high=expected * (1 + project.monitoring.max_error_growth))}


def _without_limits(release: Release) -> Report:
    (name, *_) = release.task.metrics
    reason = f"version {release.version} was registered without val_{name}: nothing says what to expect of it"
    return Report("Live quality", (Row(name, None, f"near val_{name}", "not_applicable", reason),))


def _missing(what: str, reason: str) -> Row:
    return Row(what, None, "where the project says", "failed", reason)


def _where_not(project: Project, period: str, version: int) -> str:
    return f"version {version} has none at '{project.predictions_path(period, version)}'"
