"""Servers as their user sees them: offered to Jupyter, started one at a time, listed, ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # Windows has none; there kernels are plain
    import fcntl

from mlops_lib.engines.warm.keys import SERVER, compute_key, is_held, runtime_directory, select_keyed
from mlops_lib.engines.warm.server import is_readable
from mlops_lib.errors import WarmKernelError

KERNEL_NAME = "mlops"
PROVISIONER_NAME = "mlops-warm"
COMMAND_NAME = "mlops"  # of the script, and so of the process that runs it
IDLE_S = 1800.0
PRELOAD_TIMEOUT_S = 60.0
RETRY_AFTER_S = 60.0
MAX_SERVERS = 4  # of one user: each holds some 400 MB, and environments seldom take turns among more

_has_prepared = False  # this process has said that kernels follow


def is_supported() -> bool:
    """Tell whether this system can fork kernels: Linux; a fork on macOS breaks Apple's own frameworks."""
    return sys.platform == "linux" and hasattr(os, "fork")


def environment() -> dict[str, str]:
    """Return the variables that make Jupyter programs use warm kernels for ordinary Python kernelspecs."""
    return {"JUPYTER_DEFAULT_PROVISIONER_NAME": PROVISIONER_NAME}


def install(prefix: Path | None = None) -> Path:
    """Write the kernelspec ``mlops`` into the environment (``prefix``, by default this one) and return its folder."""
    from ipykernel.kernelspec import write_kernel_spec  # noqa: PLC0415 - heavy

    folder = Path(prefix or sys.prefix) / "share" / "jupyter" / "kernels" / KERNEL_NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "debugger": True,
        "supported_encryption": ["curve"],
        "kernel_provisioner": {"provisioner_name": PROVISIONER_NAME},
    }
    write_kernel_spec(folder, overrides={"display_name": "Python 3 (warm)", "metadata": metadata})
    return folder


def find_python(kernel_name: str = "python3") -> list[str] | None:
    """Return the command that a kernelspec of this environment starts Python with; None without it, or without fork."""
    spec = Path(sys.prefix) / "share" / "jupyter" / "kernels" / kernel_name / "kernel.json"
    if not is_supported() or not spec.is_file():
        return None
    argv = json.loads(spec.read_text(encoding="utf-8"))["argv"]
    return [sys.executable, *argv[1 : argv.index("-m")]]


def prepare(kernel_name: str = "python3") -> threading.Thread | None:
    """Begin to start this environment's server in the background, so that its imports overlap with the caller's own.

    Call it before importing anything heavy, where many kernels follow. It never fails: whoever starts a kernel in this
    process later waits for the same server, or is told why there is none.

    Returns
    -------
    threading.Thread or None
        What waits for the server, for who wants to wait too; None where kernels cannot be forked.
    """
    global _has_prepared  # noqa: PLW0603 - a fact of this process
    python, env = find_python(kernel_name), dict(os.environ)
    if python is None:
        return None
    _has_prepared = True
    return _start_beside(python, env)


def _start_beside(python: Sequence[str], env: Mapping[str, str]) -> threading.Thread:
    def start() -> None:
        with contextlib.suppress(WarmKernelError, OSError):
            directory, key = runtime_directory(), compute_key(python, env)
            if not is_held(directory / f"{key}.json"):
                start_server(directory, key, python, env)

    thread = threading.Thread(target=start, name="prepare warm kernels", daemon=True)
    thread.start()
    return thread


def start_for_later(directory: Path, key: str, python: Sequence[str], env: Mapping[str, str]) -> None:
    """Begin to start the server of ``key`` for the kernels to come; this one need not wait longer than for a plain one.

    Who has said that many follow waits for it: by :func:`prepare`, or with ``MLOPS_WARM=wait`` in the kernel's
    environment.

    Raises
    ------
    WarmKernelError
        Always, unless the caller has waited for the server and it answers.
    """
    if _has_prepared or env.get("MLOPS_WARM") == "wait":
        start_server(directory, key, python, env)
        return
    _raise_for_failed(directory, key)
    _start_beside(python, env)
    raise WarmKernelError("later")


def _raise_for_failed(directory: Path, key: str) -> None:
    failed = directory / f"{key}.failed"
    if failed.exists() and time.time() - failed.stat().st_mtime <= RETRY_AFTER_S:
        raise WarmKernelError("fork", reason=failed.read_text())


def start_server(directory: Path, key: str, python: Sequence[str], env: Mapping[str, str]) -> None:
    """Start the server of ``key`` unless it answers already; of many who ask at once one starts it and all wait.

    Raises
    ------
    WarmKernelError
        When its preload fails or takes too long; for a minute nobody tries again. When there are ``MAX_SERVERS``, and
        none of them is without kernels and commands, to be ended for this one.
    """
    failed = directory / f"{key}.failed"
    with (directory / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_held(directory / f"{key}.json"):
            return
        _raise_for_failed(directory, key)
        _remove_leftovers(directory)
        _make_room(directory)
        reason = _spawn(directory, key, python, env, lock.fileno())
        if reason:
            failed.write_text(f"the preload failed: {reason}; see '{directory / f'{key}.log'}'")
            raise WarmKernelError("fork", reason=failed.read_text())


def _remove_leftovers(directory: Path) -> None:
    """Remove the files of servers that were killed, and old notes of failed preloads."""
    for record in directory.glob("*.json"):
        if not is_held(record):
            record.with_suffix(".sock").unlink(missing_ok=True)
            record.unlink(missing_ok=True)
    for note in directory.glob("*.failed"):
        if time.time() - note.stat().st_mtime > RETRY_AFTER_S:
            note.with_suffix(".log").unlink(missing_ok=True)
            note.unlink()


def _make_room(directory: Path) -> None:
    """End as many idle servers, oldest first, as are too many once another one has started."""
    servers = sorted(_list_servers(directory), key=lambda server: float(server["started_at"]))
    surplus = len(servers) - MAX_SERVERS + 1
    if surplus <= 0:
        return
    idle = [server["pid"] for server in servers if not any(_list_children(server["pid"]).values())][:surplus]
    for pid in idle:
        _end(pid)
    if len(idle) < surplus:
        raise WarmKernelError(
            "fork", reason=f"{len(servers)} servers of other environments are busy, and no more may run"
        )


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not is_readable(process, timeout_s=5):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def _spawn(directory: Path, key: str, python: Sequence[str], env: Mapping[str, str], lock: int) -> str:
    """Start a server and wait for its preload; return why it failed, or nothing."""
    command = [*python, str(SERVER), str(directory), key, str(lock), env.get("MLOPS_KERNEL_IDLE_S", str(IDLE_S))]
    server_env = select_keyed(env) | {"PATH": env.get("PATH", os.defpath)}
    with (directory / f"{key}.log").open("wb") as stderr, subprocess.Popen(
        command, env=server_env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
        pass_fds=[lock], start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        if not is_readable(process.stdout, PRELOAD_TIMEOUT_S):
            os.killpg(process.pid, signal.SIGKILL)
            return f"it was not done after {PRELOAD_TIMEOUT_S:.0f} s"
        answer = json.loads(process.stdout.read() or b"{}")
    return "" if "pid" in answer else answer.get("error", "it ended without a word")


def status(*, everywhere: bool = True) -> list[dict[str, Any]]:
    """Return a record for each running server: key, pid, python, started_at, idle_s, kernels, commands and so on.

    Parameters
    ----------
    everywhere : bool
        Also those of this user's other interpreters, such as another checkout's.
    """
    if not is_supported():
        return []
    return [{**server, **_list_children(server["pid"])} for server in _select_servers(everywhere=everywhere)]


def stop(*, everywhere: bool = False) -> int:
    """End the servers of this interpreter, with their kernels and commands, and return how many there were.

    Parameters
    ----------
    everywhere : bool
        Also those of this user's other interpreters, such as another checkout's.
    """
    if not is_supported():
        return 0
    servers = _select_servers(everywhere=everywhere)
    for server in servers:
        _end(server["pid"])
    return len(servers)


def _select_servers(*, everywhere: bool) -> list[dict[str, Any]]:
    """Return the records of this interpreter's servers, or of all of this user's."""
    servers = _list_servers(runtime_directory())
    return [server for server in servers if everywhere or Path(server["python"]) == Path(sys.executable)]


def _list_servers(directory: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):  # one that is just starting or ending
            if is_held(file):
                yield json.loads(file.read_text())


def _list_children(server_pid: int) -> dict[str, list[dict[str, Any]]]:
    """Return the kernels and the commands that a server has forked, and that live."""
    import psutil  # noqa: PLC0415 - only those who look need it

    children: dict[str, list[dict[str, Any]]] = {"kernels": [], "commands": []}
    with contextlib.suppress(psutil.Error):
        between = psutil.Process(server_pid).children()  # one process stands between server and each of its forks
        for process in [child for parent in between for child in parent.children()]:
            with contextlib.suppress(psutil.Error):  # it has just ended
                facts = {"pid": process.pid, "cwd": process.cwd(), "started_at": process.create_time()}
                facts["rss_mb"] = round(process.memory_info().rss / 2**20)
                children["commands" if process.name() == COMMAND_NAME else "kernels"].append(facts)
    return children
