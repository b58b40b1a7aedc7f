"""Run a notebook as one tracked MLflow run whose evidence is true, whatever happens.

The runner opens the run, hands it to the notebook by ``MLFLOW_RUN_ID`` and closes it after the kernel is gone:
FINISHED, FAILED or KILLED as it truly was. The executed notebook and its HTML report are saved first and logged either
way. Cells run in order under papermill's engine interface; a cell that never ran stays ``pending``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cache as once
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Param, Run
from mlflow.tracking import MlflowClient

from mlops_lib import data, tracking
from mlops_lib.data import reads
from mlops_lib.engines import warm
from mlops_lib.engines.warm.server import without_grammar
from mlops_lib.errors import (
    NotebookError,
    NotebookStoppedError,
    NotFoundError,
)
from mlops_lib.programs.notebooks import cache
from mlops_lib.programs.notebooks.signature import check_values, read_signature, to_source
from mlops_lib.project import Project, load_project
from mlops_lib.redaction import redact
from mlops_lib.tracking import find_result, liveness, store

with without_grammar():
    import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

# papermill guesses parameters by regular expressions and warns of those it misses; the signature has checked them all.
logging.getLogger("papermill").setLevel(logging.ERROR)
SAVE_EVERY_S = 5.0
STDERR_LINES = 50
Progress = Callable[[int, int, str], None]


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

    def __str__(self) -> str:
        """Return one line for people."""
        if self.cached:
            return f"{self.notebook.name} had been run already, nothing it depends on has changed: {dict(self.result)}"
        found = ", ".join(f"{name} {value}" for name, value in self.result.items())
        return f"{self.notebook.name} finished in {self.duration_s:.1f} s: {found or 'no result recorded'}"


def run_notebook(
    project: Project,
    notebook: Path | str,
    parameters: Mapping[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    cached: bool = False,
    progress: Progress | None = None,
    kernel_name: str | None = None,
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

    Raises
    ------
    NotFoundError, NotebookError, ParameterError
        Before anything was run.
    NotebookError, of which ``NotebookStoppedError`` is one
        The run is FAILED or KILLED; the executed copy is saved and named.
    """
    given = parameters or {}
    execution, source, kernel = plan(project, notebook, given, timeout_s=timeout_s, kernel_name=kernel_name)
    execution.progress = progress
    found = execution.find_cached(source, kernel) if cached else None
    return found or execute(execution, source, tuple(given), kernel)


def plan(
    project: Project,
    notebook: Path | str,
    parameters: Mapping[str, Any],
    *,
    timeout_s: float | None = None,
    kernel_name: str | None = None,
) -> tuple[_Execution, nbformat.NotebookNode, str]:
    """Check all that can be checked before anything runs; return an execution, its notebook and its kernel."""
    path = find_notebook(project, notebook)
    source = read_notebook(path)
    values = check_values(read_signature(source, path), parameters, path)
    return _Execution(project, path, values, timeout_s), source, _kernel_of(source, path, kernel_name)


def _kernel_of(source: nbformat.NotebookNode, path: Path, kernel_name: str | None) -> str:
    """Return the kernel to use, by default the one that the notebook names, or ``python3`` if it names none."""
    name = kernel_name or str(source.metadata.get("kernelspec", {}).get("name", "python3"))
    installed = KernelSpecManager().find_kernel_specs()
    if name not in installed:
        raise NotFoundError("kernel", notebook=path, kernel=name, kernels=tuple(sorted(installed)))
    return name


def execute(
    execution: _Execution, source: nbformat.NotebookNode, given: tuple[str, ...], kernel_name: str | None = None
) -> NotebookRun:
    """Execute a notebook that was read and checked, with its ``given`` parameters injected; return its run."""
    execution.started = time.monotonic()
    with contextlib.suppress(PapermillExecutionError):  # it knows no cell that is expected to raise; ours are raised
        papermill.execute_notebook(
            source,
            None,
            parameters={name: _plain(execution.values[name]) for name in given},
            engine_name="mlops",
            kernel_name=kernel_name,
            progress_bar=False,
            execution=execution,
        )
    assert execution.finished is not None
    return execution.finished


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
        notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotebookError("file", notebook=path, reason=reason[:200]) from error
    return notebook


def connect(project: Project) -> tuple[MlflowClient, str]:
    """Return a client and the project's experiment."""
    client = store.connect(project.tracking_uri)
    return client, store.get_experiment_id(client, project.tracking_uri, project.name)


def execution_of(nb: nbformat.NotebookNode, path: Path) -> _Execution:
    """Return the execution of a notebook that stock papermill has parameterized; its parameters are checked now."""
    given = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
    original = read_notebook(path)
    values = check_values(read_signature(original, path), given, path)
    return _Execution(load_project(), path.resolve(), values)


@dataclass
class _Execution:
    """One execution: opens the run, drives the cells, leaves the evidence."""

    project: Project
    path: Path
    values: dict[str, Any]
    timeout_s: float | None = None
    progress: Progress | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    driver: _Driver | None = None
    stopped: str = ""
    duration_s: float = 0.0
    finished: NotebookRun | None = None
    started: float = field(default_factory=time.monotonic)

    def find_cached(self, source: nbformat.NotebookNode, kernel_name: str | None) -> NotebookRun | None:
        client, experiment_id = connect(self.project)
        name = kernel_name or source.metadata.get("kernelspec", {}).get("name", "")
        key = cache.compute_key(self.project, self.path, source, self.values, name)
        run = cache.find_run(self.project, client, experiment_id, key)
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
        return NotebookRun(self.path, run.info.run_id, self.values, result, executed, html, duration_s, cached=True)

    def stop(self, reason: str) -> None:
        """Kill the kernel, from any thread; the run ends KILLED."""
        self.stopped = reason
        if self.driver:
            self.driver.stop_soon(reason)

    def _folder(self, run_id: str) -> Path:
        return self.project.runs_path / f"{self.path.stem}-{run_id[:8]}"

    def run(self, nb: nbformat.NotebookNode, kernel_name: str, output: Path | None) -> None:
        project = replace(self.project, notebook=str(self.path))
        client, experiment_id = connect(project)
        tags = {"mlflow.runName": self.path.stem, **tracking.describe_code(project), **self.tags}
        tags |= liveness.open_tags()
        run_id = str(client.create_run(experiment_id, tags=tags, run_name=tags["mlflow.runName"]).info.run_id)
        self.run_id, status, closing = run_id, "FAILED", {}
        try:
            client.log_batch(run_id, params=[Param(name, str(_plain(value))) for name, value in self.values.items()])
            executed = output or self._folder(run_id) / self.path.name
            html = executed.with_suffix(".html")
            key = cache.compute_key(project, self.path, read_notebook(self.path), self.values, kernel_name)
            self._inject(nb)
            env = {
                **project.environ,
                "MLFLOW_TRACKING_URI": project.tracking_uri,
                "MLFLOW_RUN_ID": run_id,
                "MLFLOW_EXPERIMENT_ID": experiment_id,
                "MLOPS_NOTEBOOK": str(self.path),
                **({"MLOPS_PROJECT": str(project.file)} if project.file else {}),
            }
            self.driver = _Driver(self, nb, kernel_name, env, executed, run_id)
            with ThreadPoolExecutor(1) as beside:  # while the kernel starts
                written = beside.submit(self._write_beside, project, client, run_id, experiment_id)
                try:
                    with liveness.heartbeat(client, run_id, self.stop):
                        self.driver.drive()
                finally:
                    self.driver.save()
                    _write_html(nb, html)
                    for file in (executed, html):
                        client.log_artifact(run_id, str(file))
                written.result()
            result = find_result(nb)
            if result:
                client.log_dict(run_id, result, "result.json")
            closing = self._log_inputs(client, run_id, key, self.driver.reads)
            status = "FINISHED"
        except (NotebookStoppedError, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            liveness.close_run(client, run_id, status, closing)
            self.duration_s = time.monotonic() - self.started
        self.finished = NotebookRun(self.path, run_id, self.values, result, executed, html, self.duration_s)

    def _write_beside(self, project: Project, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        tracking.log_difference(project, client, run_id)
        liveness.reap_runs(client, [experiment_id])
        with _exporting:
            _exporter()

    def _log_inputs(self, client: MlflowClient, run_id: str, key: str, log: Path) -> dict[str, str]:
        """Store what the run read; return the tag with its key if all of it was noted, else with the reasons."""
        noted, reasons = reads.read_log(log)
        client.log_text(run_id, json.dumps(noted, indent=1), cache.INPUTS_FILE)
        return {cache.UNCACHEABLE_TAG: "; ".join(reasons)[:2000]} if reasons else {cache.KEY_TAG: key}

    def _inject(self, nb: nbformat.NotebookNode) -> None:
        """Write the values as Python into the cell that papermill injected; its translator knows no dates."""
        for cell in nb.cells:
            if "injected-parameters" in cell.metadata.get("tags", ()):
                given = nb.metadata.papermill.parameters
                lines = [f"{name} = {to_source(self.values[name])}" for name in given]
                cell.source = "\n".join(["# Parameters", *lines])


class _LeftError(Exception):
    """A cell has called ``exit()``."""


@dataclass
class _Driver:
    """Drives one kernel through the cells and keeps the notebook's account of itself true."""

    execution: _Execution
    nb: nbformat.NotebookNode
    kernel_name: str
    env: dict[str, str]
    executed: Path
    run_id: str
    at: int = -1
    stopped: str = ""
    saved: float = 0.0
    peak_kib: int = 0
    pgid: int | None = None
    kernel_pid: int | None = None
    process: Any = None
    client: NotebookClient | None = None
    loop: asyncio.AbstractEventLoop | None = None

    @property
    def reads(self) -> Path:
        """Where the kernel records what it reads."""
        return self.executed.with_name("reads.jsonl")

    def drive(self) -> None:
        for cell in self._code_cells():
            cell.metadata["papermill"] = {"status": "pending", "exception": None}
            cell["outputs"], cell["execution_count"] = [], None
        self.save()
        log = self.executed.with_name("kernel.log")
        try:
            with log.open("wb") as stdio:
                asyncio.run(self._drive(stdio))
        except CellExecutionError as error:
            self._mark("failed")
            raise self._cell_error(error) from error
        except DeadKernelError as error:
            self._fail(log)
            raise self._death(log) from error
        except _LeftError:
            pass  # the cells that are left tell
        finally:
            self._tidy(log)
        skipped = [cell for cell in self._code_cells() if cell.metadata["papermill"]["status"] != "completed"]
        if skipped:
            where = self.nb.cells.index(skipped[0]) + 1
            raise NotebookError(
                "ended_early",
                notebook=self.execution.path,
                cell=where,
                n_cells=len(self.nb.cells),
                n_skipped=len(skipped),
                executed_path=self.executed,
            )

    async def _drive(self, stdio: Any) -> None:
        project = self.execution.project
        ignored = [
            str(Path(reads.__file__).parents[1]),
            str(project.file),
            str(project.runs_path),
            *_store_places(project),
        ]
        # A crash of the interpreter then names the line that it happened in.
        crash = f"import faulthandler; faulthandler.enable(open({stdio.name!r}, 'a'), all_threads=False)"
        start = f"reads.start({str(self.reads)!r}, {ignored!r}, {[_host(project)]!r})"
        begin = f"{crash}; from mlops_lib.data import reads; {start}"
        client: NotebookClient = NotebookClient(
            self.nb,
            extra_arguments=[f"--IPKernelApp.exec_lines={begin}"],
            kernel_name=self.kernel_name,
            timeout=None,
            resources={"metadata": {"path": str(self.execution.path.parent)}},
            record_timing=False,
            on_notebook_start=lambda **_: self._watch(client),
            on_cell_execute=self._on_execute,
            on_cell_executed=self._on_executed,
        )
        self.client, self.loop = client, asyncio.get_running_loop()
        client.km = client.create_kernel_manager()
        spec = client.km.kernel_spec
        if spec is not None:  # the provisioner takes what it can fork from and starts anything else as ever
            spec.metadata = {"kernel_provisioner": {"provisioner_name": warm.PROVISIONER_NAME}, **spec.metadata}
        with self._stopping(client):
            await client.async_execute(env=self.env, stdout=stdio, stderr=stdio)

    @contextlib.contextmanager
    def _stopping(self, client: NotebookClient) -> Iterator[None]:
        """Kill the kernel's whole process group at the deadline, and whatever is left of it at the end."""
        loop = asyncio.get_running_loop()
        timer = None
        if self.execution.timeout_s is not None:
            timer = loop.call_later(self.execution.timeout_s, self._stop, client, "deadline")
        try:
            yield
        finally:
            if timer:
                timer.cancel()
            _kill_group(self.pgid)

    def _watch(self, client: NotebookClient) -> None:
        """Take the signal handlers over from nbclient, whose own would let the notebook look finished."""
        provisioner = client.km.provisioner if client.km else None
        self.pgid, self.kernel_pid = getattr(provisioner, "pgid", None), getattr(provisioner, "pid", None)
        self.process = getattr(provisioner, "process", None)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError):  # outside the main thread, or (NotImplementedError) on Windows
                loop.add_signal_handler(number, self._stop, client, signal.Signals(number).name)

    def stop_soon(self, reason: str) -> None:
        """Stop from another thread, now or as soon as the first cell would run."""
        self.stopped = self.stopped or reason
        if self.loop and self.client:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self.loop.call_soon_threadsafe(self._stop, self.client, reason)

    def _stop(self, client: NotebookClient, reason: str) -> None:
        self.stopped = self.stopped or reason
        client.shutdown_kernel = "immediate"
        _kill_group(self.pgid)
        task = getattr(client, "task_poll_for_reply", None)
        if task is not None:
            task.cancel()

    def _on_execute(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.at = cell_index
        self.stopped = self.stopped or self.execution.stopped
        if self.stopped:
            raise DeadKernelError(self.stopped)
        self._mark("running")
        if time.monotonic() - self.saved > SAVE_EVERY_S:
            self.save()
        if self.execution.progress:
            self.execution.progress(cell_index + 1, len(self.nb.cells), self._title(cell_index))

    def _on_executed(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        self.peak_kib = max(self.peak_kib, _peak_kib(self.kernel_pid))
        failed = execute_reply["content"]["status"] != "ok" and "raises-exception" not in cell.metadata.get("tags", ())
        self._mark("failed" if failed else "completed")
        if "raises-exception" in cell.metadata.get("tags", ()) and execute_reply["content"]["status"] == "ok":
            self._mark("failed")
            raise NotebookError(
                "nothing_raised",
                notebook=self.execution.path,
                cell=cell_index + 1,
                n_cells=len(self.nb.cells),
                executed_path=self.executed,
            )
        if any(payload.get("source") == "ask_exit" for payload in execute_reply["content"].get("payload", ())):
            raise _LeftError  # the kernel would still take the next cell, or not: a race

    def _mark(self, status: str) -> None:
        if 0 <= self.at < len(self.nb.cells):
            stamp = self.nb.cells[self.at].metadata.setdefault("papermill", {})
            now = datetime.now(UTC).isoformat()
            stamp.update({"status": status, "exception": status == "failed"})
            stamp["start_time" if status == "running" else "end_time"] = now
        self.nb.metadata.setdefault("papermill", {})["exception"] = True if status == "failed" else None

    def save(self) -> None:
        secrets = self.execution.project.secrets
        for cell in self._code_cells():
            cell["outputs"] = redact(cell["outputs"], secrets)
        with data.atomic_write(self.executed, "w") as file:
            nbformat.write(self.nb, file)
        self.saved = time.monotonic()

    def _tidy(self, log: Path) -> None:
        """Keep what the kernel process itself has said, without secrets, if it has said anything."""
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if text:
            log.write_text(redact(text, self.execution.project.secrets), encoding="utf-8")
        else:
            log.unlink(missing_ok=True)

    def _fail(self, log: Path) -> None:
        """Write into the cell that was running what happened to it: nobody else will."""
        self._mark("failed")
        self.peak_kib = max(self.peak_kib, _peak_kib(self.kernel_pid))
        if 0 <= self.at < len(self.nb.cells):
            name, value = ("Stopped", self.stopped) if self.stopped else ("KernelDied", self._ended())
            lines = [f"{name}: {value}", f"peak memory {self.peak_kib / 1024:.0f} MB", *self._last_words(log)]
            output = nbformat.v4.new_output("error", ename=name, evalue=value, traceback=lines)
            self.nb.cells[self.at].outputs.append(output)

    def _death(self, log: Path) -> Exception:
        path, cell, n_cells = self.execution.path, self.at + 1, len(self.nb.cells)
        if self.stopped == "deadline":
            return NotebookError(
                "deadline",
                notebook=path,
                cell=cell,
                n_cells=n_cells,
                timeout_s=float(self.execution.timeout_s or 0),
                executed_path=self.executed,
            )
        if self.stopped:
            return NotebookStoppedError(
                notebook=path, cell=cell, n_cells=n_cells, signal=self.stopped, executed_path=self.executed
            )
        last = self._last_words(log)
        word = next((line for line in last if line.startswith("Fatal")), last[-1] if last else "")
        memory, word = self.peak_kib // 1024, redact(word, self.execution.project.secrets)
        return NotebookError(
            "kernel_died",
            notebook=path,
            cell=cell,
            n_cells=n_cells,
            ended=self._ended(),
            peak_memory_mb=memory,
            last_line=word,
            executed_path=self.executed,
        )

    def _last_words(self, log: Path) -> list[str]:
        """Return what the interpreter wrote when it crashed, or the end of what the cell wrote to stderr."""
        said = _tail(log)
        outputs = self.nb.cells[self.at].get("outputs", []) if 0 <= self.at < len(self.nb.cells) else []
        written = [o["text"] for o in outputs if o.get("name") == "stderr"]
        return said or "".join(written).splitlines()[-STDERR_LINES:]

    def _ended(self) -> str:
        """Return how the kernel process ended, as far as it can be known."""
        code = self.process.poll() if self.process is not None else None
        if code is None:
            return "cause unknown"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _cell_error(self, error: CellExecutionError) -> NotebookError:
        cell = self.nb.cells[self.at]
        raised = next((o for o in reversed(cell.outputs) if o.output_type == "error"), None)
        number = _line_number(raised.traceback) if raised else None
        lines = cell.source.splitlines()
        line = lines[number - 1].strip() if number and number <= len(lines) else ""
        return NotebookError(
            "cell",
            notebook=self.execution.path,
            cell=self.at + 1,
            n_cells=len(self.nb.cells),
            duration_s=round(time.monotonic() - self.execution.started, 1),
            ename=str(error.ename),
            evalue=redact(str(error.evalue), self.execution.project.secrets),
            line_number=number,
            line=line,
            executed_path=self.executed,
        )

    def _code_cells(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.nb.cells if cell.cell_type == "code" and cell.source.strip()]

    def _title(self, index: int) -> str:
        """Return the last heading above a cell, or its first line."""
        for cell in reversed(self.nb.cells[:index]):
            if cell.cell_type == "markdown" and cell.source.lstrip().startswith("#"):
                return str(cell.source.lstrip().splitlines()[0].lstrip("# "))
        return str(self.nb.cells[index].source.splitlines()[0])


def _line_number(traceback: list[str]) -> int | None:
    """Return the line of the cell that a traceback points at."""
    import re  # noqa: PLC0415 - only after a failure

    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    found = re.search(r"Cell In\[\d+\], line (\d+)", plain) or re.search(r"-+> (\d+) ", plain)
    return int(found.group(1)) if found else None


def _write_html(nb: nbformat.NotebookNode, path: Path) -> None:
    """Write the report: outputs and text, code hidden, fit to send to someone.

    Outputs are shown as they are, since taking markup away would spoil diagrams and styled tables; instead the page's
    first line tells the browser to run nothing and to load nothing from elsewhere.
    """
    with _exporting:
        body, _ = _exporter().from_notebook_node(nb, resources={"metadata": {"name": path.stem}})
    before, head, after = body.partition("<head>")
    with data.atomic_write(path, "w") as file:
        file.write(f"{before}{head}{INERT}{after}")


# No script, handler, frame, form or foreign picture: what a notebook's output holds came from data and from packages.
INERT = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
    """style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'">"""
)


_exporting = threading.Lock()


@once
def _exporter() -> Any:
    """Return the one exporter of this process, its templates compiled: 0.4 s once, then 0.01 s a report."""
    from nbconvert import HTMLExporter  # noqa: PLC0415 - only where a notebook runs

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("")]))
    return exporter


def reap_dead_runs(project: Project) -> list[str]:
    """Close the runs that a killed process of this host has left open; return their ids."""
    client, experiment_id = connect(project)
    return [dead.run_id for dead in liveness.reap_runs(client, [experiment_id])]


def _store_places(project: Project) -> list[str]:
    path = store.sqlite_path(project.tracking_uri)
    return [str(path), str(path.parent / "mlartifacts")] if path else []


def _host(project: Project) -> str:
    parts = urlsplit(project.tracking_uri)
    return f"{parts.hostname}:{parts.port}"


def _kill_group(pgid: int | None) -> None:
    if pgid and pgid != os.getpgid(0):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, signal.SIGKILL)


def _peak_kib(pid: int | None) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-STDERR_LINES:]
    except OSError:
        return []


def _plain(value: Any) -> Any:
    """Return a value as papermill and MLflow can write it."""
    if isinstance(value, date | Path):
        return str(value)
    return json.loads(json.dumps(value, default=str)) if isinstance(value, dict | list) else value
