"""Several notebooks in one process, some at a time: what ``mlops run`` of many and a sweep have in common.

A failure is kept with its execution and stops no other. Ctrl-C and SIGTERM stop all of them, each with true evidence.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from mlops_lib.errors import NotebookError
from mlops_lib.programs.notebooks.run import Execution, NotebookRun, plan
from mlops_lib.project import Project


def run_notebooks(
    project: Project,
    calls: Sequence[tuple[Path | str, Mapping[str, Any]]],
    *,
    n_jobs: int = 2,
    timeout_s: float | None = None,
    cached: bool = False,
    ended: Callable[[int, NotebookRun | Exception], None] | None = None,
) -> list[NotebookRun]:
    """Execute notebooks, each as one MLflow run, ``n_jobs`` at a time; return their runs in the order given.

    Parameters
    ----------
    project : Project
    calls : sequence of (notebook, parameters)
        As for :func:`mlops_lib.programs.notebooks.run_notebook`; all are checked before the first one runs.
    n_jobs : int, at least 1
    timeout_s : float, optional
        For each notebook, in seconds.
    cached : bool
    ended : callable, optional
        Called with a call's index and its run, or the error that has stopped it, as soon as it has ended.

    Raises
    ------
    NotFoundError, NotebookError, ParameterError
        Before anything was run; ``NotebookError`` also after all have ended, if some have failed.
    """
    executions = [plan(project, notebook, [given], timeout_s=timeout_s)[0] for notebook, given in calls]

    def run(execution: Execution) -> NotebookRun:
        return (execution.find_cached() if cached else None) or execution.execute()

    for execution in run_each(executions, run, n_jobs=n_jobs):
        outcome = execution.finished or execution.error
        if ended and outcome:
            ended(executions.index(execution), outcome)
    failed = [execution for execution in executions if execution.error]
    if failed:
        names, n_notebooks = tuple(execution.path.name for execution in failed), len(executions)
        error = NotebookError("several", failed=names, n_failed=len(failed), n_notebooks=n_notebooks)
        raise error from failed[0].error
    return [execution.finished for execution in executions if execution.finished]


def run_each(
    executions: Sequence[Execution],
    run: Callable[[Execution], NotebookRun],
    *,
    n_jobs: int,
    fail_fast: bool = False,
) -> Iterator[Execution]:
    """Run executions, ``n_jobs`` at a time, and yield each when it has ended; whoever stops listening stops them all.

    With ``fail_fast`` none begins after one has failed; it is yielded as it was.
    """
    halt = threading.Event()

    def keep_outcome(execution: Execution) -> Execution:
        if not halt.is_set():
            try:
                execution.finished = run(execution)
            except Exception as error:  # noqa: BLE001 - kept with the execution, whatever it is
                execution.error = error
                if fail_fast:
                    halt.set()
        return execution

    def stop(reason: str) -> None:
        halt.set()
        for execution in executions:
            execution.stop(reason)

    with _call_on_signal(stop) as received, ThreadPoolExecutor(n_jobs) as pool:
        pending = {pool.submit(keep_outcome, execution) for execution in executions}
        try:
            while pending:
                # Woken now and then: a signal that comes as the wait begins would otherwise be noticed after it.
                ended, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        except BaseException:
            stop("the end of its command")
            raise
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _call_on_signal(stop: Callable[[str], None]) -> Iterator[list[str]]:
    """Let Ctrl-C and SIGTERM call ``stop``, in the main thread; yield the list of what has come."""
    received: list[str] = []

    def handle(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)
        stop(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
