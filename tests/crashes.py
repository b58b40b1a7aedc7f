"""Die in the middle: after any of the writes that the registry makes through MLflow's client."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.tracking import MlflowClient

# Every call of MLflow's client with which the registry writes.
WRITES = (
    "create_experiment",
    "create_model_version",
    "create_registered_model",
    "create_run",
    "delete_model_version",
    "delete_run",
    "log_param",
    "set_registered_model_alias",
    "set_tag",
    "set_terminated",
)


class Died(BaseException):
    """What no handler of errors catches."""


@contextmanager
def dying_after(n_writes: int, die: Callable[[], None]) -> Iterator[None]:
    """Die when that many writes have been made."""
    calls, made = {name: getattr(MlflowClient, name) for name in WRITES}, list[str]()

    def wrap(name: str) -> Callable[..., object]:
        @functools.wraps(calls[name])
        def call(*arguments: object, **options: object) -> object:
            answer = calls[name](*arguments, **options)
            made.append(name)
            if len(made) == n_writes:
                die()
            return answer

        return call

    for name in WRITES:
        setattr(MlflowClient, name, wrap(name))
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(MlflowClient, name, call)


def raise_died() -> None:
    raise Died


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
