"""Run a notebook as one tracked MLflow run whose evidence is true, whatever happens.

The runner opens the run, hands it to the notebook by ``MLFLOW_RUN_ID``, has :mod:`mlops_lib.programs.notebooks.driver`
run the cells, and closes it after the kernel is gone: FINISHED, FAILED or KILLED as it truly was. The executed notebook
and its HTML page are saved first and logged either way.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Param, Run
from mlflow.tracking import MlflowClient

from mlops_lib import tracking
from mlops_lib.data import reads
from mlops_lib.engines.warm import without_grammar
from mlops_lib.errors import NotebookError, NotebookStoppedError, NotFoundError
from mlops_lib.programs.notebooks import cache, formats, keys
from mlops_lib.programs.notebooks.driver import Driver, Progress
from mlops_lib.programs.notebooks.page import load_exporter, write_page
from mlops_lib.programs.notebooks.signature import check_values, read_signature, to_source
from mlops_lib.project import Project, load_project
from mlops_lib.tracking import find_result, liveness, store

with without_grammar():
    import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager

# papermill guesses parameters by regular expressions and warns of those it misses; the signature has checked them all.
logging.getLogger("papermill").setLevel(logging.ERROR)

PARENT_TAG = "mlflow.parentRunId"  # what MLflow's own pages nest runs by
STOPPED_TAG = "mlops.stopped"  # on a run that ended early on purpose: why


@dataclass(frozen=True)
class NotebookRun:
    """A notebook that ran to its end."""

    notebook: Path
    run_id: str
    parameters: Mapping[str, Any]
    result: Mapping[str, Any]
    executed_path: Path
    html_path: Path
    duration_s: float
    cached: bool = False
    stopped: str = ""  # why it ended early on purpose
    uncacheable: str = ""  # why ``cached`` will not find it again

    def __str__(self) -> str:
        """Return one line for people."""
        if self.cached:
            return f"{self.notebook.name} had been run already, nothing it depends on has changed: {dict(self.result)}"
        results = ", ".join(f"{name} {value}" for name, value in self.result.items())
        early = f", stopped on purpose ({self.stopped})" if self.stopped else ""
        return f"{self.notebook.name} finished in {self.duration_s:.1f} s{early}: {results or 'no result recorded'}"


def run_notebook(
    project: Project,
    notebook: Path | str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    cached: bool = False,
    progress: Progress | None = None,
    kernel_name: str | None = None,
    parent: str | None = None,
) -> NotebookRun:
    """Execute a notebook with parameters, as one MLflow run.

    Runs that a killed process has left RUNNING on this machine are marked KILLED on the way.

    Parameters
    ----------
    project : Project
    notebook : path
        Relative to the working folder, the project's root or its notebooks.
    parameters : mapping of str to value, optional
        Of names and types that the notebook's parameters cell declares.
    timeout_s : float, optional
        For the whole notebook, in seconds.
    cached : bool
        Return the finished run with the same key and unchanged inputs, if there is one, instead of running.
    progress : callable, optional
        Called with cell number, number of cells and the cell's title before each code cell.
    kernel_name : str, optional
        A kernelspec; by default the one that the notebook names.
    parent : str, optional
        Id of the run that this one is shown under, as MLflow nests runs.

    Raises
    ------
    NotFoundError, NotebookError, ParameterError
        Before anything was run.
    NotebookError, of which ``NotebookStoppedError`` is one
        The run is FAILED or KILLED; the executed copy is saved and named.
    """
    (execution,) = plan(
        project, notebook, [parameters or {}], timeout_s=timeout_s, kernel_name=kernel_name, progress=progress
    )
    execution.tags = {PARENT_TAG: parent} if parent else {}
    return (execution.find_cached() if cached else None) or execution.execute()


def plan(
    project: Project,
    notebook: Path | str,
    calls: Sequence[Mapping[str, Any]],
    *,
    timeout_s: float | None = None,
    kernel_name: str | None = None,
    progress: Progress | None = None,
) -> list[Execution]:
    """Check all that can be checked before anything runs; return an execution for each set of parameters."""
    path = find_notebook(project, notebook)
    source = read_notebook(path)
    signature = read_signature(source, path)
    values = [check_values(signature, parameters, path) for parameters in calls]
    kernel_name = kernel_name or str(source.metadata.get("kernelspec", {}).get("name", "python3"))
    installed = KernelSpecManager().find_kernel_specs()
    if kernel_name not in installed:
        raise NotFoundError("kernel", notebook=path, kernel=kernel_name, kernels=tuple(sorted(installed)))
    return [
        Execution(
            project,
            path,
            source,
            each,
            {name: each[name] for name in parameters},
            kernel_name,
            Driver(
                path,
                timeout_s=timeout_s,
                secrets=project.secrets,
                output_limit_mb=project.output_limit_mb,
                progress=progress,
            ),
        )
        for parameters, each in zip(calls, values, strict=True)
    ]


def find_notebook(project: Project, notebook: Path | str) -> Path:
    """Return the absolute path of a notebook named relative to here, the project's root or its notebooks."""
    folders = (Path.cwd(), project.root, project.root / project.notebooks)
    for folder in folders:
        for name in (str(notebook), f"{notebook}.ipynb"):
            if (folder / name).is_file():
                return (folder / name).resolve()
    known = sorted(path.name for path in (project.root / project.notebooks).glob("*.ipynb"))
    raise NotFoundError("notebook", notebook=Path(notebook), notebooks=tuple(known))


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read and validate a notebook file."""
    try:
        notebook: nbformat.NotebookNode = formats.parse(path.read_text(encoding="utf-8"))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotebookError("file", notebook=path, reason=reason[:200]) from error
    return notebook


def connect(project: Project) -> tuple[MlflowClient, str]:
    """Return a client and the project's experiment."""
    client = store.connect(project.tracking_uri)
    return client, store.get_experiment_id(client, project.tracking_uri, project.name)


def reap_dead_runs(project: Project) -> list[str]:
    """Close the runs that a killed process of this host has left open; return their ids."""
    client, experiment_id = connect(project)
    return [dead.run_id for dead in liveness.reap_runs(client, [experiment_id])]


@dataclass(eq=False)
class Execution:
    """One notebook with its values, checked before anything runs, and what has become of it.

    ``status`` is that of its run: FINISHED, FAILED or KILLED; empty while it has none.
    """

    project: Project
    path: Path
    notebook: nbformat.NotebookNode  # as it was read; what runs is a copy
    values: Mapping[str, Any]  # of every parameter
    given: Mapping[str, Any]  # of those that somebody gave
    kernel_name: str
    driver: Driver
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    status: str = ""
    duration_s: float = 0.0
    finished: NotebookRun | None = None
    error: Exception | None = None
    stop: Callable[[str], None] = field(init=False)  # ends it from any thread, wherever it runs

    def __post_init__(self) -> None:
        self.stop = self.driver.stop

    def find_cached(self) -> NotebookRun | None:
        """Return the finished run of the same key whose inputs are unchanged, if there is one."""
        client, experiment_id = connect(self.project)
        run = cache.find_run(self.project, client, experiment_id, self._compute_key(self.kernel_name))
        return self.recall(run) if run else None

    def recall(self, run: Run) -> NotebookRun:
        """Return a finished run of this notebook and these values as it was returned then."""
        folder = self._folder(run.info.run_id)
        executed, html = folder / self.path.name, folder / f"{self.path.stem}.html"
        for file in (executed, html):
            if not file.exists():
                mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{file.name}", dst_path=str(folder))
        result = find_result(read_notebook(executed))
        if result:  # nbformat has sorted its keys
            result = json.loads(store.read_artifact(run.info.artifact_uri, "result.json"))
        duration_s = (run.info.end_time - run.info.start_time) / 1000  # as long as it took then
        stopped = run.data.tags.get(STOPPED_TAG, "")
        return NotebookRun(
            self.path, run.info.run_id, self.values, result, executed, html, duration_s, cached=True, stopped=stopped
        )

    def execute(self) -> NotebookRun:
        """Execute the notebook in a kernel of this machine."""
        nb = papermill.execute_notebook(
            self.notebook,
            None,
            parameters={name: _plain(value) for name, value in self.given.items()},
            engine_name="mlops",
            kernel_name=self.kernel_name,
            prepare_only=True,
        )
        return self.run(nb, self.kernel_name)

    def run(self, nb: nbformat.NotebookNode, kernel_name: str, executed: Path | None = None) -> NotebookRun:
        """Execute what papermill has made of the notebook, as one MLflow run; the copy is kept at ``executed``."""
        started_at = time.monotonic()
        project = replace(self.project, notebook=str(self.path))
        client, experiment_id = connect(project)
        tags = {"mlflow.runName": self.path.stem, **tracking.describe_code(project), **self.tags}
        tags |= liveness.open_tags()
        self.run_id = str(client.create_run(experiment_id, tags=tags, run_name=tags["mlflow.runName"]).info.run_id)
        self.status, last_tags = "FAILED", {}
        try:
            params = [Param(name, str(_plain(value))) for name, value in self.values.items()]
            client.log_batch(self.run_id, params=params)
            key = self._compute_key(kernel_name)
            executed = executed or self._folder(self.run_id) / self.path.name
            html, log = executed.with_suffix(".html"), executed.with_name("reads.jsonl")
            self._write_values(nb)
            variables = {
                "MLFLOW_TRACKING_URI": project.tracking_uri,
                "MLFLOW_RUN_ID": self.run_id,
                "MLOPS_RUN_ID": self.run_id,
                "MLFLOW_EXPERIMENT_ID": experiment_id,
                "MLOPS_NOTEBOOK": str(self.path),
                **({"MLOPS_PROJECT": str(project.file)} if project.file else {}),
                # Experiments that plain MLflow makes keep their files beside the store, not in the working folder.
                "_MLFLOW_SERVER_ARTIFACT_ROOT": store.artifact_root(project.tracking_uri) or "",
            }
            begin = _record_reads(project, log)
            with ThreadPoolExecutor(1) as beside:  # while the kernel starts
                logged = beside.submit(self._log_beside, project, client, experiment_id)
                try:
                    with liveness.heartbeat(client, self.run_id, self.driver.stop):
                        self.driver.drive(
                            nb, kernel_name, executed, begin=begin, environ=project.environ, variables=variables
                        )
                finally:
                    write_page(nb, html, self.path.parent)
                    for file in (executed, html):
                        client.log_artifact(self.run_id, str(file))
                logged.result()
            result = find_result(nb)
            if result:
                client.log_dict(self.run_id, result, "result.json")
            inputs, reasons = reads.read_log(log, "\n".join(c.source for c in nb.cells if c.cell_type == "code"))
            client.log_text(self.run_id, json.dumps(inputs, indent=1), cache.INPUTS_FILE)
            uncacheable = "; ".join(reasons)[:2000]
            last_tags = {cache.UNCACHEABLE_TAG: uncacheable} if uncacheable else {cache.KEY_TAG: key}
            last_tags |= {STOPPED_TAG: stopped[:2000]} if (stopped := self.driver.stopped_because) else {}
            self.status = "FINISHED"
        except (NotebookStoppedError, KeyboardInterrupt):
            self.status = "KILLED"
            raise
        finally:
            liveness.close_run(client, self.run_id, self.status, last_tags)
            self.duration_s = time.monotonic() - started_at
        return NotebookRun(
            self.path,
            self.run_id,
            self.values,
            result,
            executed,
            html,
            self.duration_s,
            stopped=stopped,
            uncacheable=uncacheable,
        )

    def _compute_key(self, kernel_name: str) -> str:
        return cache.compute_key(self.project, self.path, self.notebook, self.values, kernel_name)

    def _folder(self, run_id: str) -> Path:
        return self.project.runs_path / f"{self.path.stem}-{run_id[:8]}"

    def _write_values(self, nb: nbformat.NotebookNode) -> None:
        """Write the values as Python into the cell that papermill injected; its translator knows no dates."""
        for cell in nb.cells:
            if "injected-parameters" in cell.metadata.get("tags", ()):
                lines = [f"{name} = {to_source(self.values[name])}" for name in nb.metadata.papermill.parameters]
                cell.source = "\n".join(["# Parameters", *lines])

    def _log_beside(self, project: Project, client: MlflowClient, experiment_id: str) -> None:
        tracking.log_difference(project, client, self.run_id)
        liveness.reap_runs(client, [experiment_id])
        load_exporter()


def prepare_execution(nb: nbformat.NotebookNode, path: Path, kernel_name: str) -> Execution:
    """Return the execution of a notebook that stock papermill has parameterized; its parameters are checked now."""
    given = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
    (execution,) = plan(load_project(or_here=True), path, [given], kernel_name=kernel_name)
    return execution


def _record_reads(project: Project, log: Path) -> str:
    """Return the Python that makes a kernel note what it reads beside library, project file and store."""
    ignored = [str(keys.LIBRARY), str(project.file), str(project.runs_path)]
    database = store.sqlite_path(project.tracking_uri)
    if database:
        ignored += [str(database), str(database.parent / "mlartifacts")]
    server = urlsplit(project.tracking_uri)
    return (
        "from mlops_lib.data import reads; "
        f"reads.start({str(log)!r}, {ignored!r}, {[f'{server.hostname}:{server.port}']!r})"
    )


def _plain(value: Any) -> Any:
    """Return a value as papermill and MLflow can write it."""
    if isinstance(value, date | Path):
        return str(value)
    return json.loads(json.dumps(value, default=str)) if isinstance(value, dict | list) else value
