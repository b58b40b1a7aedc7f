"""Ask the server for a process and be its client: what warm kernels and warm commands have in common.

A warm command is the ``mlops`` of a shell whose imports are already done: :func:`entry` has a fork of the server
run this process's own script, with the same arguments, environment, working directory, umask, limits, module path and
standard files, hands it the signals that come, and returns its exit code. The library itself is imported by the fork
as it is on disk now. Nothing is started for it, and what cannot be done this way is done here: where no server
answers, under interpreter options, and wherever ``MLOPS_WARM`` is 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_lib.engines.warm.keys import compute_key, read_limits, runtime_directory
from mlops_lib.engines.warm.server import is_readable, receive, send
from mlops_lib.engines.warm.servers import find_python
from mlops_lib.errors import WarmKernelError

COMMAND_TIMEOUT_S = 5.0  # a person waits for it


class WarmProcess:
    """A forked process with the methods of ``subprocess.Popen`` that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, connection: socket.socket, pid: int, pgid: int) -> None:
        self.connection, self.pid, self.pgid = connection, pid, pgid
        self.returncode: int | None = None
        self.is_lost = False  # its server has ended before it

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        if self.returncode is None and is_readable(self.connection, timeout_s=0):
            try:
                self.returncode = receive(self.connection)[0]["returncode"]
            except (EOFError, OSError):  # the server is gone, and nobody else would end the process
                self.send_signal(signal.SIGKILL)
                self.returncode, self.is_lost = -signal.SIGKILL, True
        return self.returncode

    def wait(self) -> int:
        """Block until the process has ended, and let its number go."""
        while self.returncode is None:
            is_readable(self.connection, timeout_s=None)
            self.poll()
        self.connection.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Signal the process's group. Its number stays taken until this side hangs up."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pgid, signum)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process."""
        self.send_signal(signal.SIGKILL)


def fork(
    directory: Path,
    key: str,
    request: Mapping[str, Any],
    files: Sequence[int],
    *,
    timeout_s: float,
    start: Callable[[], None] | None = None,
) -> WarmProcess:
    """Ask the server of ``key`` for a process; where there is none call ``start`` first.

    Raises
    ------
    WarmKernelError
        With the reason. No process is left behind.
    """
    limits = {limit: soft for limit, (soft, _) in read_limits().items()}
    connection = socket.socket(socket.AF_UNIX)
    with contextlib.ExitStack() as undo:
        undo.callback(connection.close)
        connection.settimeout(timeout_s)
        try:
            _connect(connection, str(directory / f"{key}.sock"), start)
            send(connection, {**request, "umask": _read_umask(), "limits": limits}, tuple(files))
            answer, _ = receive(connection)
        except (OSError, EOFError) as error:
            what = "did not answer in time" if isinstance(error, TimeoutError) else "ended without an answer"
            raise WarmKernelError("fork", reason=f"its server {what}") from None
        if "pid" not in answer:
            raise WarmKernelError("fork", reason=f"the fork failed: {answer.get('error', answer)}")
        connection.settimeout(None)
        undo.pop_all()
    return WarmProcess(connection, answer["pid"], answer["pgid"])


def _connect(connection: socket.socket, path: str, start: Callable[[], None] | None) -> None:
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        if start is None:
            raise
        start()
        connection.connect(path)


def _read_umask() -> int:
    """Read the umask without setting it, which would be seen by every thread."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


# --- a command ---------------------------------------------------------------------------------------------------


def entry() -> int | None:
    """Run this process's script in a fork of the server that is there, and return its exit code, or minus its signal.

    Returns None, and nothing has been done, where this process has to run it: see the module.

    Raises
    ------
    WarmKernelError
        When the server ended before the command, which was killed with it.
    """
    python = find_python()
    if python is None or not _may_run_elsewhere():
        return None
    env = dict(os.environ)
    request = {"script": sys.argv[0], "argv": sys.argv, "path": sys.path, "env": env, "ignored": _ignored_signals()}
    try:
        request["cwd"] = str(Path.cwd())
        key = compute_key(python, env)
        process = fork(runtime_directory(), key, request, (), timeout_s=COMMAND_TIMEOUT_S)
        _forward_signals(process)
        send(process.connection, {}, (0, 1, 2))  # only now it begins
    except (WarmKernelError, OSError):
        return None
    code = process.wait()
    if process.is_lost:
        raise WarmKernelError("command", command=" ".join(["mlops", *sys.argv[1:]]))
    return code


def _may_run_elsewhere() -> bool:
    """Whether a fork would be given all that this process was: no interpreter options, three standard files."""
    is_fork = hasattr(sys.modules["__main__"], "__warm__")
    is_plain = sys.orig_argv[1:] == sys.argv and None not in {sys.stdin, sys.stdout, sys.stderr}
    return is_plain and not is_fork and os.environ.get("MLOPS_WARM") != "0"


def _ignored_signals() -> list[int]:
    """Return what a caller ignores: by nohup, or in a shell's background."""
    return [number for number in _forwarded_signals() if signal.getsignal(number) == signal.SIG_IGN]


def _forward_signals(process: WarmProcess) -> None:
    """Hand what a terminal, a shell or a supervisor sends on to the process, which they do not see."""

    def forward(number: int, frame: object) -> None:
        process.send_signal(number)

    def pause(number: int, frame: object) -> None:
        process.send_signal(signal.SIGSTOP)  # a group without a terminal does not obey Ctrl-Z
        os.kill(os.getpid(), signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)

    handlers = dict.fromkeys(_forwarded_signals(), forward) | {signal.SIGTSTP: pause}
    for number, handler in handlers.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _forwarded_signals() -> list[signal.Signals]:
    return [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH]  # Windows has not all of them
