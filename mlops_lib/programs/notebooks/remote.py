"""Executions as Spark tasks: each is one notebook, executed by an executor against the tracking server.

An executor needs this library, the project's folder at the same path, and what the server asks for (its password is in
the environment, and is not sent). What comes back is a run's id and how it ended: everything else is in the store.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from mlflow.tracking import MlflowClient

from mlops_lib.errors import NotebookError, SparkError
from mlops_lib.programs.batch import cluster
from mlops_lib.programs.notebooks.run import Execution, NotebookRun, connect, plan
from mlops_lib.project import Project, load_project
from mlops_lib.tracking import liveness

TASK_TAG = "mlops.task"
OUTCOME = "run_id string, status string, duration_s double, error string"


class RemoteTrialError(RuntimeError):
    """What has ended a notebook on an executor, in its words."""


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
        project = replace(load_project(self.project_file), tracking_uri=self.tracking_uri, actor=self.actor)
        for _ in batches:
            (execution,) = plan(project, self.path, [self.given], timeout_s=self.timeout_s)
            execution.tags, error = self.tags, ""
            try:
                execution.execute()
            except Exception as raised:  # noqa: BLE001 - told to the driver, whatever it is
                error = str(raised) or type(raised).__name__
            facts = execution.run_id, execution.status, execution.duration_s, error
            yield pa.record_batch([[fact] for fact in facts], names=["run_id", "status", "duration_s", "error"])


def raise_for_local_store(project: Project) -> None:
    """Raise ``NotebookError`` if the project's store is a file of this machine."""
    if project.tracking_uri.startswith(("sqlite:", "file:")) or "://" not in project.tracking_uri:
        raise NotebookError("local_store", tracking_uri=project.tracking_uri)


@contextlib.contextmanager
def open_executors(client: MlflowClient, master: str) -> Iterator[Callable[[Execution], NotebookRun]]:
    """Yield what runs an execution as a Spark task.

    Raises
    ------
    SparkError
    """
    with cluster.session(master) as spark:
        yield lambda execution: _run(spark, master, client, execution)


def _run(spark: Any, master: str, client: MlflowClient, execution: Execution) -> NotebookRun:
    project, tag = execution.project, f"mlops-{uuid.uuid4().hex}"  # by the tag its task is cancelled, and its run found
    task = Task(
        project_file=str(project.file),
        tracking_uri=project.tracking_uri,
        actor=project.actor,
        path=str(execution.path),
        given=execution.given,
        timeout_s=execution.driver.timeout_s,
        tags={**execution.tags, TASK_TAG: tag},
    )
    execution.stop = lambda _: spark.interruptTag(tag)
    spark.addTag(tag)  # of what this thread asks for
    try:
        with cluster.translate_errors(master):
            (outcome,) = spark.range(0, 1, 1, 1).mapInArrow(task, OUTCOME).collect()
    except SparkError:
        _close_lost(client, project, tag)
        raise
    finally:
        spark.removeTag(tag)
    execution.run_id, execution.status, execution.duration_s, error = outcome
    if error:
        raise RemoteTrialError(error)
    return replace(execution.recall(client.get_run(execution.run_id)), cached=False)


def _close_lost(client: MlflowClient, project: Project, tag: str) -> None:
    """Close the run of a task that will not answer any more."""
    _, experiment_id = connect(project)
    for run in client.search_runs([experiment_id], f"tags.`{TASK_TAG}` = '{tag}' and attributes.status = 'RUNNING'"):
        liveness.close_run(client, run.info.run_id, "KILLED")
