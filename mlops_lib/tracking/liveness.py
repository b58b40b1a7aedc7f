"""Which open runs are alive: who runs them, when that was last heard of, and how they are closed.

A run names its process in the tag ``mlops.runner``: ``running HOST PID START INIT``, where INIT is the start of the
first process of its machine or container, and its process writes the time into ``mlops.heartbeat`` every 15 s. In the
same place a run is dead when no process of that number and start is left. In another one (another host, another
container of the same name, before a reboot, before the clock was set) it is dead when its heartbeat is older than the
lease of 120 s *and* ten minutes more: the time is the runner's own, so that clocks may differ by that much, and a
runner that cannot write for 120 s has ended its kernel long before anybody judges it. A run that was marked dead stays
so, whatever its process does later.

>>> with heartbeat(client, run_id):  # doctest: +SKIP
...     work()
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil
from mlflow.entities import Run, RunTag
from mlflow.tracking import MlflowClient

RUNNER_TAG = "mlops.runner"
HEARTBEAT_TAG = "mlops.heartbeat"
REAPED_TAG = "mlops.reaped"
HEARTBEAT_S = 15.0
LEASE_S = 120.0
CLOCKS_S = 600.0  # how far the clocks of two machines may differ
GONE = "-"


@dataclass(frozen=True)
class DeadRun:
    """A run that is open and has nobody to close it; ``status`` is what it is closed with."""

    run_id: str
    status: str
    runner: str
    reason: str


# --- by the process that runs ------------------------------------------------------------------------------------


def open_tags() -> dict[str, str]:
    """Return the tags that a run of this process is opened with."""
    return {RUNNER_TAG: describe_runner("running"), HEARTBEAT_TAG: _now()}


def describe_runner(state: str) -> str:
    """Return the tag ``mlops.runner`` of this process; ``state`` is ``running`` or a status."""
    return " ".join((state, _host(), str(os.getpid()), _start_time(os.getpid()), _start_time(1)))


@contextlib.contextmanager
def heartbeat(client: MlflowClient, run_id: str, lost: Callable[[str], None] | None = None) -> Iterator[None]:
    """Write the run's heartbeat while the block runs.

    Parameters
    ----------
    lost : callable, optional
        Called once, from another thread, when the store could not be written for the length of the lease or says that
        the run was marked dead: whoever runs must stop. Its argument completes "was stopped by".
    """
    ended = threading.Event()
    written = [time.monotonic()]

    def lose(why: str) -> None:
        if not ended.is_set():
            ended.set()
            if lost:
                lost(why)

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            begun = time.monotonic()
            with contextlib.suppress(Exception):  # however a store fails: what counts is the time since it did not
                client.set_tag(run_id, HEARTBEAT_TAG, _now())
                runner = client.get_run(run_id).data.tags.get(RUNNER_TAG, "running")
                written[0] = begun
                if not runner.startswith("running"):
                    lose("another process, which found it dead")

    def watch() -> None:  # beside it, since MLflow's client tries a server that is down for minutes
        while not ended.wait(max(0.05, written[0] + LEASE_S - time.monotonic())):
            if time.monotonic() - written[0] >= LEASE_S:
                lose(f"the loss of its store (no heartbeat for {LEASE_S:g} s)")

    threads = [threading.Thread(target=target, daemon=True) for target in (beat, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=5)


def close_run(client: MlflowClient, run_id: str, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Give this process's run its last tags and its status; one that was marked dead meanwhile stays KILLED."""
    runner = client.get_run(run_id).data.tags.get(RUNNER_TAG, "")
    if runner.startswith("KILLED "):
        client.set_terminated(run_id, "KILLED")
    else:
        _close(client, run_id, status, {RUNNER_TAG: describe_runner(status), **(tags or {})})


def _close(client: MlflowClient, run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """Write tags and then the status, so that a kill in between changes nothing; see :func:`reap_runs`."""
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    client.set_terminated(run_id, status)


# --- by anybody else ---------------------------------------------------------------------------------------------


def find_dead_runs(client: MlflowClient, experiment_ids: Sequence[str], *, everywhere: bool = False) -> list[DeadRun]:
    """Return the open runs that nobody will close: of this host, or of every host.

    A run whose tag still says ``running`` was cut off and is KILLED, whatever status it shows: MLflow in a notebook
    says FINISHED at the end of a ``with mlflow.start_run()``. Otherwise the word is the status that its process was
    about to give it.
    """
    host = "%" if everywhere else f"{_host()} %"
    opened = f"tags.`{RUNNER_TAG}` LIKE 'running {host}'"
    closing = f"tags.`{RUNNER_TAG}` LIKE '% {host}' and attributes.status = 'RUNNING'"
    ids = list(experiment_ids)
    runs = [run for query in (opened, closing) for run in client.search_runs(ids, query, max_results=1000)]
    verdicts = (_judge(run) for run in {run.info.run_id: run for run in runs}.values())
    return [dead for dead in verdicts if dead]


def reap_runs(client: MlflowClient, experiment_ids: Sequence[str], *, everywhere: bool = False) -> list[DeadRun]:
    """Close the runs that :func:`find_dead_runs` finds, and return them.

    The first word of a run's tag becomes the status that it is closed with before it is closed.
    """
    reaped = []
    for dead in find_dead_runs(client, experiment_ids, everywhere=everywhere):
        if _judge(client.get_run(dead.run_id)) is None:
            continue  # it has ended properly in between, or was heard of
        place = dead.runner.partition(" ")[2]
        reason = f"{dead.reason} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        _close(client, dead.run_id, dead.status, {RUNNER_TAG: f"{dead.status} {place}", REAPED_TAG: reason})
        reaped.append(dead)
    return reaped


def _judge(run: Run) -> DeadRun | None:
    runner = run.data.tags[RUNNER_TAG]
    state, *facts = runner.split(" ")
    if len(facts) != 4 or not (state == "running" or run.info.status == "RUNNING"):
        return None
    host, pid, start, init = facts
    if host == _host() and init == _start_time(1) != GONE:
        alive, reason = _start_time(int(pid)) == start, f"process {pid} was found gone"
    else:
        heard = _parse(run.data.tags.get(HEARTBEAT_TAG, ""))
        alive = heard is None or (datetime.now(UTC) - heard).total_seconds() <= LEASE_S + CLOCKS_S
        reason = f"process {pid} of host '{host}' was last heard of at {heard}, found dead"
    return None if alive else DeadRun(str(run.info.run_id), "KILLED" if state == "running" else state, runner, reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parse(time_text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time_text).astimezone(UTC)
    except ValueError:
        return None


def _host() -> str:
    return socket.gethostname().replace(" ", "-") or "-"


def _start_time(pid: int) -> str:
    """Return when a process started; ``-`` for one that is gone, hidden, or dead and not yet buried by its parent."""
    try:
        process = psutil.Process(pid)
        return GONE if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return GONE
