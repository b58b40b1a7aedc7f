"""Jobs as Spark tasks: each is one notebook, executed by an executor against the tracking server.

An executor needs this library, the project's folder at the same path, and what the server asks for (its password is in
the environment, and is not sent). What comes back is a run's id: everything else is in the store.
"""

from __future__ import annotations

import contextlib
import pickle
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from mlflow.tracking import MlflowClient

from mlops_lib.errors import NotebookError, SparkError
from mlops_lib.programs.batch import cluster
from mlops_lib.programs.notebooks.jobs import Job, execute_here
from mlops_lib.programs.notebooks.run import NotebookRun, connect, plan
from mlops_lib.project import Project, load_project
from mlops_lib.tracking import liveness

TASK_TAG = "mlops.task"


@dataclass(frozen=True)
class Task:
    """What an executor is sent: a notebook's name and values, and where its run belongs."""

    project_file: str
    tracking_uri: str
    actor: str
    path: str
    given: Mapping[str, Any]
    timeout_s: float | None
    tags: Mapping[str, str]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Execute the notebook, on an executor; return what has become of it."""
        for _ in batches:
            yield pa.record_batch({"outcome": [pickle.dumps(self._execute())]})

    def _execute(self) -> tuple[str, float, BaseException | None]:
        """Return the run's id, its seconds, and the error that ended it."""
        project = replace(load_project(self.project_file), tracking_uri=self.tracking_uri, actor=self.actor)
        execution, source, kernel_name = plan(project, self.path, self.given, timeout_s=self.timeout_s)
        execution.tags = self.tags
        error = None
        try:
            execute_here(Job(execution, source, self.given, kernel_name))
        except Exception as raised:  # noqa: BLE001 - told to the driver, whatever it is
            error = _portable(raised)
        return execution.run_id, execution.duration_s, error


class RemoteTrialError(RuntimeError):
    """An error of an executor, in its words, whose own type does not travel."""


def _portable(error: Exception) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any constructor may refuse
        return RemoteTrialError(f"{type(error).__name__}: {error}")
    return error


def raise_for_local_store(project: Project) -> None:
    """Raise ``NotebookError`` if the project's store is a file of this machine."""
    if project.tracking_uri.startswith(("sqlite:", "file:")) or "://" not in project.tracking_uri:
        raise NotebookError("local_store", tracking_uri=project.tracking_uri)


@contextlib.contextmanager
def executors(client: MlflowClient, master: str) -> Iterator[Callable[[Job], NotebookRun]]:
    """Yield what runs a job as a Spark task.

    Raises
    ------
    SparkError
    """
    with cluster.session(master) as spark:
        yield lambda job: _run(spark, master, client, job)


def _run(spark: Any, master: str, client: MlflowClient, job: Job) -> NotebookRun:
    execution, tag = job.execution, f"mlops-{uuid.uuid4().hex}"  # by the tag its task is cancelled, and its run found
    project = execution.project
    task = Task(
        project_file=str(project.file),
        tracking_uri=project.tracking_uri,
        actor=project.actor,
        path=str(execution.path),
        given=job.given,
        timeout_s=execution.timeout_s,
        tags={**execution.tags, TASK_TAG: tag},
    )
    execution.driver = SimpleNamespace(stop_soon=lambda _: spark.interruptTag(tag))  # type: ignore[assignment]
    spark.addTag(tag)  # of what this thread asks for
    try:
        with cluster.explained(master):
            (row,) = spark.range(0, 1, 1, 1).mapInArrow(task, "outcome binary").collect()
    except SparkError:
        _close_lost(client, project, tag)
        raise
    finally:
        spark.removeTag(tag)
    execution.run_id, execution.duration_s, error = pickle.loads(bytes(row["outcome"]))
    if error:
        raise error
    return replace(execution.recall(client.get_run(execution.run_id)), cached=False)


def _close_lost(client: MlflowClient, project: Project, tag: str) -> None:
    """Close the run of a task that will not answer any more."""
    _, experiment_id = connect(project)
    for run in client.search_runs([experiment_id], f"tags.`{TASK_TAG}` = '{tag}' and attributes.status = 'RUNNING'"):
        liveness.close_run(client, run.info.run_id, "KILLED")
