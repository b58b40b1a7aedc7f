"""Several notebooks in one process, some at a time: what ``mlops run`` of many and a sweep have in common.

A failure is kept with its job and stops no other. Ctrl-C and SIGTERM stop all of them, each with true evidence.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_lib.errors import NotebookError
from mlops_lib.programs.notebooks.run import NotebookRun, _Execution, execute, plan
from mlops_lib.project import Project

if TYPE_CHECKING:
    import nbformat


@dataclass(eq=False)
class Job:
    """One execution among several, and what has become of it."""

    execution: _Execution
    source: nbformat.NotebookNode
    given: Mapping[str, Any] = field(default_factory=dict)
    kernel_name: str = ""
    cached: bool = False
    run: NotebookRun | None = None
    error: Exception | None = None


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
    jobs = []
    for notebook, parameters in calls:
        execution, source, kernel_name = plan(project, notebook, parameters, timeout_s=timeout_s)
        jobs.append(Job(execution, source, parameters, kernel_name, cached))
    for job in run_jobs(jobs, n_jobs=n_jobs):
        outcome = job.run or job.error
        if ended and outcome:
            ended(jobs.index(job), outcome)
    failed = [job for job in jobs if job.error]
    if failed:
        names = tuple(job.execution.path.name for job in failed)
        raise NotebookError("several", failed=names, n_failed=len(failed), n_notebooks=len(jobs)) from failed[0].error
    return [job.run for job in jobs if job.run]


def execute_here(job: Job) -> NotebookRun:
    """Execute a job in a kernel of this machine."""
    return execute(job.execution, copy.deepcopy(job.source), tuple(job.given), job.kernel_name)


def run_jobs(
    jobs: Sequence[Job], *, n_jobs: int, fail_fast: bool = False, run_one: Callable[[Job], NotebookRun] = execute_here
) -> Iterator[Job]:
    """Run jobs, ``n_jobs`` at a time, and yield each when it has ended; whoever stops listening stops them all."""
    halt = threading.Event()

    def run(job: Job) -> None:
        if halt.is_set():
            return
        try:
            found = job.execution.find_cached(job.source, job.kernel_name) if job.cached else None
            job.run = found or run_one(job)
        except Exception as error:  # noqa: BLE001 - kept with the job, whatever it is
            job.error = error
            if fail_fast:
                halt.set()

    def stop(reason: str) -> None:
        halt.set()
        for job in jobs:
            job.execution.stop(reason)

    with _signals(stop) as received, ThreadPoolExecutor(n_jobs) as pool:
        of: dict[Future[None], Job] = {pool.submit(run, job): job for job in jobs}
        pending = set(of)
        try:
            while pending:
                # Woken now and then: a signal that comes as the wait begins would otherwise be noticed after it.
                ended, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                yield from (of[future] for future in ended)
        except BaseException:
            stop("the end of its command")
            raise
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _signals(stop: Callable[[str], None]) -> Iterator[list[str]]:
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
