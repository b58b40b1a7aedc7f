"""Runs that say what was run: on which code, data and environment.

A run is an ordinary MLflow run: inside ``with start_run(project)`` plain ``mlflow.log_*`` works. Added to it are the
commit and whether the tree was dirty (with the difference as an artifact), the notebook and its hash, the lock's hash
and the full-content fingerprint of every input. Refused: a metric that is not a finite number.

>>> with start_run(project, inputs={"arrivals": path}) as run:  # doctest: +SKIP
...     mlflow.log_metric("val_roc_auc", 0.71)
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import data
from mlops_lib.errors import QualityError
from mlops_lib.project import Project
from mlops_lib.redaction import redact
from mlops_lib.tracking import liveness, store
from mlops_lib.tracking.code import describe_code, log_difference


class NotebookEnd(Exception):  # noqa: N818 - no error: a notebook that has nothing more to do
    """What :func:`stop` raises; the runner ends the run FINISHED."""

    def _render_traceback_(self) -> list[str]:
        """Return what Jupyter shows of it."""
        return [f"Stopped on purpose: {self}"]


def stop(reason: str) -> NoReturn:
    """End a notebook early on purpose, such as ``tracking.stop("no new data")``.

    The run is FINISHED and says why; the cells after this one are marked as skipped. In JupyterLab "Run All" stops
    here; stock papermill and nbval see an exception of this name.
    """
    raise NotebookEnd(reason)


@contextlib.contextmanager
def start_run(
    project: Project,
    *,
    run_name: str | None = None,
    inputs: Mapping[str, Path | Sequence[Path] | pd.DataFrame] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """Open the project's run, or come back to the one that a runner has opened for this notebook.

    Parameters
    ----------
    project : Project
    run_name : str, optional
    inputs : mapping of name to path, paths or DataFrame
        Every table that the run reads; each is fingerprinted in full and shown as an MLflow dataset.
    params, tags : mapping, optional

    Yields
    ------
    mlflow.ActiveRun
        The active run. An exception inside leaves it FAILED; one that is killed is found dead (see
        :mod:`mlops_lib.tracking.liveness`). A run that a runner owns stays open: the runner ends it.
    """
    client = store.connect(project.tracking_uri)
    opened = mlflow.active_run()
    alive: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if project.run_id and opened is not None and opened.info.run_id == project.run_id:
        run = opened  # by a plain call of MLflow before
    elif project.run_id:
        run = mlflow.start_run(run_id=project.run_id)
    else:
        mlflow.set_experiment(experiment_id=store.get_experiment_id(client, project.tracking_uri, project.name))
        tags_of_run = describe_code(project) | liveness.open_tags()
        run = mlflow.start_run(run_name=run_name, tags=tags_of_run, nested=opened is not None)  # of a tick, say
        alive = _alive(client, run.info.run_id)
    with alive, run:
        if not project.run_id:
            log_difference(project, client, run.info.run_id)
        if tags:
            mlflow.set_tags({name: redact(str(value), project.secrets) for name, value in tags.items()})
        if params:
            mlflow.log_params({name: redact(str(value), project.secrets) for name, value in params.items()})
        for name, table in (inputs or {}).items():
            log_input(name, table)
        yield run
    if project.run_id:
        client.update_run(project.run_id, status="RUNNING")
        os.environ["MLFLOW_RUN_ID"] = project.run_id  # MLflow took it; a plain call that comes next finds it again


@contextlib.contextmanager
def _alive(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Keep a run's heartbeat and, after MLflow has closed it, note that it was closed by its own process."""
    status = "FAILED"
    try:
        with liveness.heartbeat(client, run_id):  # nobody can stop a script; a run that was marked dead stays KILLED
            yield
        status = "FINISHED"
    finally:
        liveness.close_run(client, run_id, status)


def log_input(name: str, table: Path | Sequence[Path] | pd.DataFrame) -> dict[str, str]:
    """Log an input's full-content fingerprint to the active run; return ``{tag: fingerprint}``."""
    from mlflow.data.meta_dataset import MetaDataset  # noqa: PLC0415 - 0.4 s that a command that lists does not need
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # noqa: PLC0415

    if isinstance(table, pd.DataFrame):
        parts = {name: data.fingerprint_frame(table)}
        where = "memory"
    else:
        paths = [Path(table)] if isinstance(table, str | Path) else [Path(path) for path in table]
        parts = {f"{name}/{path.stem}": data.fingerprint_file(path) for path in paths}
        where = str(paths[0].parent) if paths else ""
    for label, fingerprint in parts.items():
        digest = fingerprint.partition(":")[2][:32]  # MLflow keeps 36 characters; the tag below keeps all 64
        dataset = MetaDataset(LocalArtifactDatasetSource(where), label, digest)  # type: ignore[abstract] # as MLflow does
        try:
            mlflow.log_input(dataset, context=name)
        except MlflowException as error:  # another run has just logged the same dataset for the first time
            if "UNIQUE" not in str(error).upper():
                raise
            mlflow.log_input(dataset, context=name)
    tags = {f"mlops.input.{label}": fingerprint for label, fingerprint in parts.items()}
    mlflow.set_tags(tags)
    return tags


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics to the active run, all or none.

    Raises
    ------
    QualityError
        For NaN, infinity or anything that is no number. No metric was logged.
    """
    for name, value in metrics.items():
        if not _is_finite(value):
            raise QualityError("metric", name=name, value=value)
    mlflow.log_metrics({name: float(value) for name, value in metrics.items()})


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
