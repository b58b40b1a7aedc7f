"""What ``jupyter_client`` sees of a warm kernel: a local kernel that happens to start at once.

Only kernels of this interpreter are warm; a kernelspec of another environment or language is started as ever.
The transport is a Unix socket in a private folder instead of TCP ports, which others could read or grab first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.localinterfaces import localhost
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import ensure_async, run_sync

with contextlib.suppress(ImportError):  # Windows has none; there kernels are plain
    import fcntl

from mlops_lib.engines.warm.client import WarmProcess, fork
from mlops_lib.engines.warm.keys import compute_key, runtime_directory
from mlops_lib.engines.warm.servers import is_supported, start_for_later
from mlops_lib.errors import WarmKernelError

ANSWER_TIMEOUT_S = 30.0


class WarmProvisioner(LocalProvisioner):
    """Launches kernels from a warm server, or plain ones where that is not possible."""

    process: Any = None
    folder: Path | None = None
    lock: int | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose the transport before the connection file is written."""
        manager = self.parent
        if self.folder is None and manager is not None and _is_ours(self.kernel_spec.argv):
            try:
                self.folder, self.lock = make_kernel_folder()
            except (WarmKernelError, OSError) as error:  # the latter of a folder that is full or read-only
                explain(_say(error))
            else:
                manager.client_factory = _quick(manager.client_factory)
                if (manager.transport, manager.ip) == ("tcp", localhost()):  # else it is to be reached from afar
                    manager.transport, manager.ip, manager.cache_ports = "ipc", str(self.folder / "s"), False
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Fork a kernel; where that fails say why and start a plain one."""
        if self.folder is None:
            return await super().launch_kernel(cmd, **kwargs)
        try:
            # In a thread, because a server may have to be started first, which takes seconds; and in one of its own,
            # since the threads of a loop's executor are lost when multiprocessing forks it, and nobody tells the loop.
            start = functools.partial(fork_kernel, cmd, **self._scrub_kwargs(kwargs))
            with ThreadPoolExecutor(1) as executor:
                self.process = await asyncio.get_running_loop().run_in_executor(executor, start)
        except (WarmKernelError, OSError) as error:
            if getattr(error, "case", "") != "later":  # that is no fault: the next kernels are warm
                explain(_say(error))
            return await super().launch_kernel(cmd, **kwargs)
        self.pid, self.pgid = self.process.pid, self.process.pgid
        self.cwd = kwargs.get("cwd") or Path.cwd()
        return self.connection_info

    async def wait(self) -> int | None:
        """Wait for the kernel's end."""
        if isinstance(self.process, WarmProcess):
            await _wait_end(self.process)
        return await super().wait()

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel's process group."""
        if signum == signal.SIGINT and self.parent and self.parent.shutting_down:
            # Managers interrupt a kernel before its shutdown, often while it puts away its last answer, which
            # ipykernel then reports as an error on the terminal. A spawned kernel is seldom that close behind.
            await asyncio.sleep(0.005)
        await super().send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill the kernel and see it gone, so that the manager need not poll for it."""
        await super().kill(restart)
        await self._wait_briefly()

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Give the kernel the time to obey before the manager starts to poll."""
        await self._wait_briefly()

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the sockets and let go of a kernel that has died by itself."""
        if isinstance(self.process, WarmProcess) and self.process.poll() is not None:
            self.process.wait()
        if self.folder and self.lock is not None and not restart:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self.lock)
            self.folder = self.lock = None
        await super().cleanup(restart)

    async def _wait_briefly(self) -> None:
        if isinstance(self.process, WarmProcess):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_wait_end(self.process), timeout=1)


def fork_kernel(
    cmd: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    stdout: Any = None,
    stderr: Any = None,
    **others: Any,
) -> WarmProcess:
    """Ask the server for a kernel, and return when the kernel is ready to answer; a missing server is begun.

    Raises
    ------
    WarmKernelError
        With the reason. No kernel is left behind.
    """
    unusual = [name for name, value in others.items() if value is not None and (name, value) != ("independent", False)]
    if unusual:
        raise WarmKernelError("fork", reason=f"the caller asks for {', '.join(unusual)}, which a fork cannot give")
    module = list(cmd).index("-m")
    python, argv = [sys.executable, *cmd[1:module]], cmd[module + 2 :]
    directory = runtime_directory()
    key = compute_key(python, env)
    request = {"argv": list(argv), "env": dict(env), "cwd": str(Path(cwd or ".").absolute())}
    with contextlib.ExitStack() as stack:
        given = ((subprocess.DEVNULL, 0), (stdout, 1), (stderr, 2))
        files = [_open_stream(stream, default, stack) for stream, default in given]
        start = functools.partial(start_for_later, directory, key, python, env)
        return fork(directory, key, request, files, timeout_s=ANSWER_TIMEOUT_S, start=start)


def make_kernel_folder() -> tuple[Path, int]:
    """Make a folder for one kernel's sockets, and return it with the open lock that says it is in use.

    Folders whose holder has died, and with it the lock, are removed on the way.
    """
    if not is_supported():
        raise WarmKernelError("fork", reason=f"kernels cannot be forked on {sys.platform}")
    directory = runtime_directory()
    for folder in directory.glob("k-*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
    while True:  # until it is locked before somebody else takes it for a dead one and removes it
        folder = Path(tempfile.mkdtemp(prefix="k-", dir=directory))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


async def _wait_end(process: WarmProcess) -> None:
    """Return once a kernel has ended, without polling."""
    loop = asyncio.get_running_loop()
    while process.poll() is None:
        readable = asyncio.Event()
        file = os.dup(process.connection.fileno())  # a loop has one callback a file, and others may wait too
        loop.add_reader(file, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(file)
            os.close(file)


@functools.cache
def explain(reason: str) -> None:
    """Say once on stderr why a kernel is a plain one."""
    print(f"{reason} A plain kernel is used; its imports take their usual time.", file=sys.stderr)


def _say(error: Exception) -> str:
    """Return an error of ours as it is, and one of the system's as one of ours."""
    return str(error if isinstance(error, WarmKernelError) else WarmKernelError("fork", reason=f"{error}"))


def _is_ours(argv: Sequence[str]) -> bool:
    """Tell whether a kernelspec starts ipykernel on this interpreter."""
    names = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2])}
    here = Path(sys.executable).absolute()
    python = Path(argv[0] if argv else "")
    same = str(python) in names or python == here or (python.parent == here.parent and python.name in names)
    return same and "-m" in argv and argv[argv.index("-m") + 1 :][:1] == ["ipykernel_launcher"]


def _open_stream(stream: Any, default: int, stack: contextlib.ExitStack) -> int:
    """Return the file that ``subprocess`` would give a child for its ``stdout`` or ``stderr`` argument."""
    if stream == subprocess.DEVNULL:
        return stack.enter_context(Path(os.devnull).open("r+b", buffering=0)).fileno()
    if stream in (subprocess.PIPE, subprocess.STDOUT):
        raise WarmKernelError(
            "fork", reason="the caller asks for a pipe to the kernel's output, which a fork does not give"
        )
    if stream is not None:
        return stream if isinstance(stream, int) else int(stream.fileno())
    try:
        os.fstat(default)
    except OSError:  # a daemon without standard files
        return _open_stream(subprocess.DEVNULL, default, stack)
    return default


def _quick(factory: type) -> type:
    """Derive a client that takes a first complete answer for readiness, instead of 0.2 s of silence after it."""
    stock = {
        AsyncKernelClient.wait_for_ready: _wait_for_ready,
        BlockingKernelClient.wait_for_ready: run_sync(_wait_for_ready),
    }
    own = stock.get(getattr(factory, "wait_for_ready", None))  # type: ignore[arg-type] # a factory of others' has none
    return type(factory.__name__, (factory,), {"wait_for_ready": own}) if own else factory


async def _wait_for_ready(client: Any, timeout: float | None = None) -> None:
    """Ask for the kernel's info until an answer arrives on both channels: nothing older can then be on its way."""
    deadline = time.monotonic() + (timeout or float("inf"))
    while True:
        question = client.kernel_info()
        try:
            reply = await _read_answer(client.shell_channel, "kernel_info_reply", question, timeout=1)
            state = ""
            while state != "idle":
                status = await _read_answer(client.iopub_channel, "status", question, timeout=0.1)
                state = status["content"]["execution_state"]
        except Empty:
            if not await client._async_is_alive():
                raise RuntimeError("Kernel died before replying to kernel_info") from None
            if time.monotonic() > deadline:
                raise RuntimeError(f"Kernel didn't respond in {timeout:.0f} seconds") from None
        else:
            client._handle_kernel_info_reply(reply)
            return


async def _read_answer(channel: Any, kind: str, question: str, timeout: float) -> dict[str, Any]:
    """Return the next message of a kind that answers a question; Empty when the channel falls silent first."""
    while True:
        message: dict[str, Any] = await ensure_async(channel.get_msg(timeout=timeout))
        if message["msg_type"] == kind and message["parent_header"].get("msg_id") == question:
            return message
