"""Drive one kernel through a notebook's cells, and keep the notebook's account of itself true.

The driver knows nothing of projects or MLflow: it is given a file, deadlines, secrets and a callback. Cells run in
order; one that never ran stays ``pending``; the copy on disk is whole at every moment and holds no secret; no process
is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psutil

from mlops_lib import data
from mlops_lib.engines import warm
from mlops_lib.engines.warm import without_grammar
from mlops_lib.errors import NotebookError, NotebookStoppedError
from mlops_lib.programs.notebooks import formats
from mlops_lib.redaction import redact

with without_grammar():
    import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

SAVE_EVERY_S = 5.0
LOOK_EVERY_S = 1.0  # at the kernel's memory
STDERR_LINES = 50
MARK = "MLOPS_RUN_MARK"  # in the environment of all that a kernel starts
END = "NotebookEnd"  # name of what ``tracking.stop`` raises in a cell
Progress = Callable[[int, int, str], None]
_SILENT = logging.Logger("mlops.driver", logging.CRITICAL + 1)  # what nbclient would say is raised


class _Client(NotebookClient):
    """nbclient's, with a limit to what one cell may put out; the rest is read, counted and dropped."""

    limit_bytes: float = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept: dict[int, int] = {}  # bytes by cell
        self.dropped: dict[int, int] = {}

    def output(self, outs: list[Any], msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        """Take one output of a cell, unless it has had its share; an exception is always taken."""
        content = msg["content"]
        size = len(content.get("text", "")) + sum(len(str(value)) for value in content.get("data", {}).values())
        room = max(0, int(self.limit_bytes) - self.kept.get(cell_index, 0))
        if size > room and msg["msg_type"] != "error":
            text = content.get("text", "")[:room]
            self.dropped[cell_index] = self.dropped.get(cell_index, 0) + size - len(text)
            if not text:
                return None
            content["text"], size = text, len(text)
        self.kept[cell_index] = self.kept.get(cell_index, 0) + size
        return super().output(outs, msg, display_id, cell_index)


class _LeftError(Exception):
    """A cell has called ``exit()``."""


@dataclass(eq=False)
class Driver:
    """Drives one notebook, once.

    Parameters
    ----------
    path : Path
        The notebook's file; its cells run in its folder.
    timeout_s, cell_timeout_s : float, optional
        For the whole notebook and for each cell, in seconds.
    secrets : sequence of str
        Starred in whatever is saved or raised.
    must_raise : bool
        Whether a cell with the tag ``raises-exception`` that raises nothing is a failure.
    output_limit_mb : float
        How much one cell may put out; what is beyond it is counted and dropped.
    progress : callable, optional
        Called with cell number, number of cells and the cell's title before each code cell.
    """

    path: Path
    timeout_s: float | None = None
    cell_timeout_s: float | None = None
    secrets: Sequence[str] = ()
    must_raise: bool = True
    output_limit_mb: float = 20
    progress: Progress | None = None
    cell: int = field(default=0, init=False)  # that is running, or was the last to run; from 1
    has_left: bool = field(default=False, init=False)  # whether that one has called exit()
    stopped_because: str = field(default="", init=False)  # what that one said to ``tracking.stop``
    _stopped: str = field(default="", init=False)  # by whom
    _is_in_cell: bool = field(default=False, init=False)
    _peak_bytes: int = field(default=0, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _kernel: Any = field(default=None, init=False)  # its provisioner, once it has started

    def drive(
        self,
        nb: nbformat.NotebookNode,
        kernel_name: str,
        executed: Path,
        *,
        begin: str,
        environ: Mapping[str, str] | None = None,
        variables: Mapping[str, str],
    ) -> None:
        """Run all cells of ``nb``, in place.

        Parameters
        ----------
        nb : NotebookNode
        kernel_name : str
            A kernelspec; where it is one that warm kernels are forked for, a warm kernel.
        executed : Path
            Where the copy is kept; beside it stays ``kernel.log`` if the kernel process itself has written anything.
        begin : str
            Python that the kernel runs before the first cell.
        environ, variables : mapping of str to str
            The kernel's environment, by default this process's, and what is set in it besides.

        Raises
        ------
        NotebookError, NotebookStoppedError
            Some cell did not run to its end. The copy is saved and says so too.
        """
        self.nb, self.executed, self._started_at = nb, executed, time.monotonic()
        for cell in self._code_cells():
            cell.metadata["papermill"] = {"status": "pending", "exception": None}
            cell["outputs"], cell["execution_count"] = [], None
        self._save()
        log = executed.with_name("kernel.log")
        try:
            with log.open("wb") as stdio:
                _run(self._drive(kernel_name, begin, environ, variables, stdio))
        except CellExecutionError as error:
            if error.ename != END:
                self._mark("failed")
                raise self._describe_exception(error) from error
            self._end_on_purpose(str(error.evalue))
        except (DeadKernelError, asyncio.CancelledError) as error:
            raise self._describe_end(log) from error
        except _LeftError:
            self.has_left = True
        finally:
            self._tidy(log)
            self._save()
        numbered = enumerate(nb.cells, start=1)
        skipped = [n for n, cell in numbered if cell.metadata.get("papermill", {}).get("status") == "pending"]
        if skipped:
            raise NotebookError(
                "ended_early",
                notebook=self.path,
                cell=skipped[0],
                n_cells=len(nb.cells),
                n_skipped=len(skipped),
                executed_path=executed,
            )

    def _end_on_purpose(self, reason: str) -> None:
        """Say in the cell that stopped why it did, and mark those after it."""
        self.stopped_because = redact(reason, self.secrets) or "no reason given"
        cell = self.nb.cells[self.cell - 1]
        cell.outputs = [output for output in cell.outputs if output.output_type != "error"]
        text = {"text/plain": f"Stopped on purpose: {self.stopped_because}"}
        cell.outputs.append(nbformat.v4.new_output("display_data", text))
        self._mark("completed")
        for each in self._code_cells():
            if each.metadata.get("papermill", {}).get("status") == "pending":
                each.metadata["papermill"]["status"] = "skipped"

    def stop(self, reason: str) -> None:
        """End the notebook from any thread, now or as soon as its next cell would run."""
        self._stopped = self._stopped or reason
        if self._loop:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._kill)

    async def _drive(
        self,
        kernel_name: str,
        begin: str,
        environ: Mapping[str, str] | None,
        variables: Mapping[str, str],
        stdio: IO[bytes],
    ) -> None:
        # A crash of the interpreter then names the line that it happened in.
        crash = f"import faulthandler; faulthandler.enable(open({stdio.name!r}, 'a'), all_threads=False)"
        self._client: Any = _Client(
            self.nb,
            extra_arguments=[f"--IPKernelApp.exec_lines={crash}; {begin}"],
            kernel_name=kernel_name,
            timeout=None,
            resources={"metadata": {"path": str(self.path.parent)}},
            record_timing=False,
            on_notebook_start=self._begin,
            on_cell_execute=self._begin_cell,
            on_cell_executed=self._end_cell,
            log=_SILENT,
        )
        self._client.limit_bytes = self.output_limit_mb * 2**20
        spec, mark = self._client.create_kernel_manager().kernel_spec, uuid.uuid4().hex
        if spec is not None:  # the provisioner takes what it can fork from and starts anything else as ever
            spec.metadata = {"kernel_provisioner": {"provisioner_name": warm.PROVISIONER_NAME}, **spec.metadata}
            given = {**variables, MARK: mark}
            spec.env = spec.env | {name: value.replace("$", "$$") for name, value in given.items()}
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        deadline = self._end_after(self.timeout_s)
        try:
            options: dict[str, Any] = {} if environ is None else {"env": dict(environ)}
            await self._client.async_execute(stdout=stdio, stderr=stdio, **options)
        finally:
            deadline.cancel()
            self._kill_group()
            _kill_marked(mark)
            self._say_what_was_dropped()

    def _begin(self, **_: Any) -> None:
        """Take the signal handlers over from nbclient, whose own would let the notebook look finished."""
        self._kernel = self._client.km.provisioner
        self._watcher = asyncio.ensure_future(self._watch_memory())
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError):  # outside the main thread, or (NotImplementedError) on Windows
                asyncio.get_running_loop().add_signal_handler(number, self.stop, signal.Signals(number).name)

    async def _watch_memory(self) -> None:
        while True:
            self._look_at_memory()
            await asyncio.sleep(LOOK_EVERY_S)

    def _look_at_memory(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._peak_bytes = max(self._peak_bytes, psutil.Process(self._kernel.pid).memory_info().rss)

    def _end_after(self, timeout_s: float | None) -> asyncio.TimerHandle:
        """Begin a deadline; without a limit it never comes."""
        delay = math.inf if timeout_s is None else timeout_s
        return asyncio.get_running_loop().call_later(delay, self.stop, "deadline")

    def _kill(self) -> None:
        """Kill the kernel and stop waiting for its reply."""
        if self._is_in_cell and self._task:
            self._is_in_cell = False
            self._client.shutdown_kernel = "immediate"
            self._kill_group()
            self._task.cancel()

    def _kill_group(self) -> None:
        """Kill whatever is left of the kernel's process group."""
        pgid = getattr(self._kernel, "pgid", None)
        if pgid and pgid != os.getpgid(0):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pgid, signal.SIGKILL)

    def _say_what_was_dropped(self) -> None:
        for index, n_bytes in self._client.dropped.items():
            text = f"{n_bytes / 2**20:.1f} MB of output beyond {self.output_limit_mb:g} MB were dropped\n"
            self.nb.cells[index].outputs.append(nbformat.v4.new_output("stream", name="stderr", text=text))

    def _begin_cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.cell = cell_index + 1
        if self._stopped:
            raise DeadKernelError(self._stopped)
        self._mark("running")
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()
        if self.progress:
            self.progress(self.cell, len(self.nb.cells), self._title(cell_index))
        self._cell_deadline, self._is_in_cell = self._end_after(self.cell_timeout_s), True

    def _end_cell(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        self._is_in_cell = False
        self._cell_deadline.cancel()
        self._look_at_memory()
        reply = execute_reply["content"]
        has_raised, may_raise = reply["status"] != "ok", "raises-exception" in cell.metadata.get("tags", ())
        if may_raise and self.must_raise and not has_raised:
            self._mark("failed")
            n_cells = len(self.nb.cells)
            raise NotebookError(
                "nothing_raised", notebook=self.path, cell=self.cell, n_cells=n_cells, executed_path=self.executed
            )
        self._mark("failed" if has_raised and not may_raise else "completed")
        if any(payload.get("source") == "ask_exit" for payload in reply.get("payload", ())):
            raise _LeftError  # the kernel would still take the next cell, or not: a race

    def _mark(self, status: str) -> None:
        if self.cell:
            stamp = self.nb.cells[self.cell - 1].metadata.setdefault("papermill", {})
            stamp.update({"status": status, "exception": status == "failed"})
            stamp["start_time" if status == "running" else "end_time"] = datetime.now(UTC).isoformat()
        self.nb.metadata.setdefault("papermill", {})["exception"] = True if status == "failed" else None

    def _save(self) -> None:
        for cell in self._code_cells():
            cell["outputs"] = redact(cell["outputs"], self.secrets)
        with data.atomic_write(self.executed, "w") as file:
            nbformat.write(self.nb, file)
        self._saved_at = time.monotonic()

    def _tidy(self, log: Path) -> None:
        """Keep what the kernel process itself has written, without secrets, if it has written anything."""
        text = log.read_text(encoding="utf-8", errors="replace")
        if text:
            log.write_text(redact(text, self.secrets), encoding="utf-8")
        else:
            log.unlink()

    def _describe_exception(self, error: CellExecutionError) -> NotebookError:
        cell = self.nb.cells[self.cell - 1]
        raised = next((output for output in reversed(cell.outputs) if output.output_type == "error"), None)
        number = _find_line_number(raised.traceback) if raised else None
        lines, evalue = cell.source.splitlines(), str(error.evalue)
        if "active experiment ID does not match" in evalue:  # MLflow names options that nobody has given
            evalue = (
                "the notebook's run was opened in the project's experiment, and the notebook names another; take "
                "mlflow.set_experiment(...) out of the notebook"
            )
        return NotebookError(
            "cell",
            notebook=self.path,
            cell=self.cell,
            n_cells=len(self.nb.cells),
            duration_s=round(time.monotonic() - self._started_at, 1),
            ename=str(error.ename),
            evalue=redact(evalue, self.secrets),
            line_number=number,
            line=lines[number - 1].strip() if number and number <= len(lines) else "",
            executed_path=self.executed,
        )

    def _describe_end(self, log: Path) -> NotebookError:
        """Write into the cell that was running what happened to it, since nobody else will; return the error."""
        self._mark("failed")
        words = self._read_last_words(log)
        reason, memory_mb = self._stopped or self._describe_exit(), self._peak_bytes // 2**20
        if self.cell:
            name = "Stopped" if self._stopped else "KernelDied"
            lines = [f"{name}: {reason}", f"peak memory {memory_mb} MB", *words]
            output = nbformat.v4.new_output("error", ename=name, evalue=reason, traceback=lines)
            self.nb.cells[self.cell - 1].outputs.append(output)
        path, cell, n_cells, executed = self.path, self.cell, len(self.nb.cells), self.executed
        if self._stopped == "deadline":
            limit_s = float(self.timeout_s or self.cell_timeout_s or 0)
            return NotebookError(
                "deadline", notebook=path, cell=cell, n_cells=n_cells, timeout_s=limit_s, executed_path=executed
            )
        if self._stopped:
            return NotebookStoppedError(
                notebook=path, cell=cell, n_cells=n_cells, signal=reason, executed_path=executed
            )
        last = next((line for line in words if line.startswith("Fatal")), words[-1] if words else "")
        return NotebookError(
            "kernel_died",
            notebook=path,
            cell=cell,
            n_cells=n_cells,
            ended=reason,
            peak_memory_mb=memory_mb,
            last_line=redact(last, self.secrets),
            executed_path=executed,
        )

    def _read_last_words(self, log: Path) -> list[str]:
        """Return what the interpreter wrote when it crashed, or the end of what the cell wrote to stderr."""
        text = log.read_text(encoding="utf-8", errors="replace")
        if not text and self.cell:
            outputs = self.nb.cells[self.cell - 1].outputs
            text = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
        return text.splitlines()[-STDERR_LINES:]

    def _describe_exit(self) -> str:
        """Return how the kernel process ended, as far as it can be known."""
        process = getattr(self._kernel, "process", None)
        code = process.poll() if process is not None else None
        if code is None:
            return "cause unknown"
        names = {number.value: number.name for number in signal.Signals}  # those of real time have numbers only
        return f"killed by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exit status {code}"

    def _code_cells(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.nb.cells if formats.runs(cell)]

    def _title(self, index: int) -> str:
        """Return the last heading above a cell, or its first line."""
        for cell in reversed(self.nb.cells[:index]):
            if cell.cell_type == "markdown" and cell.source.lstrip().startswith("#"):
                return str(cell.source.lstrip().splitlines()[0].lstrip("# "))
        return str(self.nb.cells[index].source.splitlines()[0])


def _kill_marked(mark: str) -> None:
    """Kill the programs that a kernel has started, also those in sessions of their own; they carry its mark."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                process.kill()


def _find_line_number(traceback: Sequence[str]) -> int | None:
    """Return the line of the cell that a traceback points at."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    match = re.search(r"Cell In\[\d+\], line (\d+)", plain) or re.search(r"-+> (\d+) ", plain)
    return int(match.group(1)) if match else None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end; inside a notebook, whose kernel has a loop of its own, on a thread beside it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as beside:
        beside.submit(asyncio.run, work).result()
