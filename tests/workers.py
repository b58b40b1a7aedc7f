"""Functions that tests run in other processes, all starting at once.

The processes are forked from a server that has done the imports, not from pytest: none inherits a connection, and a
race is a race of what is tested, not of who imports MLflow first.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from conftest import collect_rarely, register_model
from mlflow.tracking import MlflowClient

from mlops_lib import gates, registry
from mlops_lib.project import Project
from mlops_lib.registry import moves
from mlops_lib.tracking import store

_barrier: list[Any] = []
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])


@functools.cache
def start_server() -> None:
    """Start the server that forks, with a path on which it finds this module: each process would import it instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process and return it."""
    start_server()
    process = CONTEXT.Process(target=_begin, args=(function, arguments))
    process.start()
    return process


def _begin(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    collect_rarely()  # what the server imported is shared: a look at it would copy it
    os.environ.pop("PYTHONPATH", None)
    function(*arguments)


def barrier() -> Any:
    """Return the barrier of the processes that were started together with this one."""
    return _barrier[0]


def run_at_once(
    function: Callable[..., object], calls: list[tuple[object, ...]], *, timeout_s: float = 800
) -> list[object]:
    """Run ``function`` in one process per call, all past a barrier at once; return results or exceptions, in order."""
    barrier, answers = CONTEXT.Barrier(len(calls)), CONTEXT.Queue()
    processes = [start(_answer, barrier, answers, n, function, call) for n, call in enumerate(calls)]
    found = dict(answers.get(timeout=timeout_s) for _ in processes)
    for process in processes:
        process.join()
    return [found[n] for n in range(len(calls))]


def _answer(
    barrier: Any, answers: Queue[Any], n: int, function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    _barrier.append(barrier)
    barrier.wait(timeout=800)
    try:
        answers.put((n, function(*arguments)))
    except Exception as error:  # noqa: BLE001 - the test looks at it
        answers.put((n, error))


def use_store(uri: str) -> int:
    """Connect and count experiments, as a first command does."""
    return len(store.connect(uri).search_experiments())


def use_plain_store(uri: str) -> int:
    """Do the same with MLflow alone."""
    return len(MlflowClient(uri, uri).search_experiments())


def promote(project: Project, version: int, stage: str) -> registry.Entry:
    """Promote by force, so that only the ledger decides; all write their entries at once, having seen one head."""
    append = moves.append

    def append_together(*arguments: Any, **facts: Any) -> registry.Entry:
        _barrier[0].wait(timeout=800)
        return append(*arguments, **facts)

    moves.append = append_together
    return gates.promote(project, version, stage, force=True, reason=f"race of version {version}")


def train_and_die(project: Project, name: str, after: bool = False) -> None:
    """Train, log and register, and be killed where the named function is called, or where it returns."""
    die_at(name, after=after)
    register_model(project)


def use_plain_store_and_die(uri: str, name: str) -> None:
    """Do what :func:`use_plain_store` does, and be killed where the named function is called."""
    die_at(name)
    use_plain_store(uri)


def die_at(name: str, *, after: bool = False) -> None:
    """Kill this process where the named function will be called, or where it returns."""
    module, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(module)
    function = getattr(owner, attribute)

    def die(*arguments: Any, **options: Any) -> None:
        if after:
            function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, attribute, die)


def register_many(project: Project, model_uri: str, n_versions: int) -> list[int]:
    """Register a logged model several times; return the versions."""
    return [registry.register(project, model_uri).version for _ in range(n_versions)]


def register(project: Project, model_uri: str) -> int:
    """Register a logged model and return its version."""
    return registry.register(project, model_uri).version
