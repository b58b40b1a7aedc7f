"""The process that holds the heavy imports and forks kernels and commands from them.

It runs as a script (``python server.py DIRECTORY KEY LOCK_FD IDLE_S``), so that nothing of ``mlops_lib`` is in the
memory of the kernels: a notebook always imports the library as it is on disk now. It uses only the standard library
itself and never makes a ZeroMQ context, an event loop or a thread, because none of these survives a fork.

A kernel is asked for by connecting. The server forks at once, without reading a byte, so that no client can hold it up;
the child reads its own request, becomes the kernel, and answers. The connection then stays open: when it closes, or
the client's process ends, the kernel is killed with its whole process group. When the kernel ends first, the server
sends its exit status and keeps it as a zombie until the client has hung up, so that its number cannot be reused
while the client may still send signals to it.

A command is a Python script of the client with its arguments and ``sys.path``. It begins when the client has answered
the answer with its standard files: one that has lost patience runs the script itself, and it must not run twice.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib.util
import io
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

with contextlib.suppress(ImportError):  # Windows has neither; there kernels are plain
    import fcntl
    import resource

# Third-party packages only: project code changes while the server lives. What cannot be imported is skipped.
# Beside what notebooks import, this is what a kernel and a first tracked run import by themselves.
PRELOAD = """
    ipykernel.kernelapp ipykernel.ipkernel ipykernel.debugger tornado.platform.asyncio
    IPython.core.completerlib IPython.core.debugger IPython.core.oinspect IPython.core.logger IPython.core.pylabtools
    IPython.extensions.storemagic
    numpy pandas pandas.io.formats.html pyarrow.parquet pyarrow.dataset pydantic.dataclasses scipy.stats skops.io
    matplotlib.pyplot matplotlib.backends.backend_agg sklearn.ensemble sklearn.linear_model sklearn.pipeline
    sklearn.compose sklearn.preprocessing sklearn.impute sklearn.model_selection sklearn.metrics sklearn.inspection
    sklearn.calibration sklearn.datasets mlflow mlflow.sklearn mlflow.pyfunc.model mlflow.pyfunc.scoring_server
    mlflow.types.responses mlflow.transformers mlflow.tracing.processor.otel sqlalchemy.dialects.sqlite alembic.command
    mlflow.store.tracking.sqlalchemy_workspace_store mlflow.store.model_registry.sqlalchemy_store git
""".split()  # noqa: SIM905 - as a list it would be forty lines
# What commands import beside that. A kernel forgets it, since it was imported ``without_grammar``.
COMMAND_PRELOAD = ("nbformat", "nbclient", "nbconvert.exporters.html")
FORGOTTEN = ("jsonschema", "nbformat", "nbclient", "nbconvert")
BACKEND = "module://matplotlib_inline.backend_inline"  # what a kernel sets when its user has set nothing
# Variables that scikit-learn and the debugger set on import: OpenMP and the debugger read them later on.
ADDED: dict[str, str] = {}


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """Write one message, and copies of open files with it."""
    body = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("!I", len(body))], files)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one message and the files that came with it; EOFError when the other side is gone."""
    head, files, _, _ = socket.recv_fds(connection, 4, 8)
    if len(head) < 4:
        raise EOFError
    body = b""
    while len(body) < struct.unpack("!I", head)[0]:
        part = connection.recv(struct.unpack("!I", head)[0] - len(body))
        if not part:
            raise EOFError
        body += part
    return json.loads(body), files


def is_readable(file: Any, timeout_s: float | None) -> bool:
    """Wait until a file can be read or is at its end. Unlike ``select`` this takes any number of open files."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


@contextlib.contextmanager
def without_grammar() -> Iterator[None]:
    """Import nbformat without the grammar that jsonschema builds for it: 0.9 s that notebooks have no use for."""
    absent = "rfc3987_syntax" not in sys.modules
    if absent:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["rfc3987_syntax"]


def preload() -> dict[str, Any]:
    """Import everything and return what is worth knowing about it; raise when a fork would not be safe."""
    started, before = time.monotonic(), {*os.environ}
    # pandas asks once, when it is imported, whether it writes to a terminal or to a notebook.
    builtins.get_ipython = lambda: types.SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    _can_import("pandas")
    del builtins.get_ipython  # type: ignore[attr-defined]
    with without_grammar():
        missing = [name for name in (*PRELOAD, *COMMAND_PRELOAD) if not _can_import(name)]
    new = os.environ.keys() - before
    ADDED.update({name: os.environ[name] for name in new if name.startswith(("KMP_", "PYDEVD_"))})
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        raise RuntimeError(f"an import started Python threads, which a fork would lose: {names}")
    tasks = Path("/proc/self/task").iterdir()
    native = [(task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())]
    return {"preload_s": round(time.monotonic() - started, 3), "native_threads": native, "missing": missing}


def _can_import(name: str) -> bool:
    """Import a module; where that is not possible, a kernel that imports it will say so itself."""
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        return True
    return False


@dataclass(eq=False)
class Child:
    """A forked kernel or command, as its server sees it."""

    pid: int
    pidfd: int
    connection: socket.socket
    client_pidfd: int
    ended: bool = False
    abandoned: bool = False

    def kill_group(self) -> None:
        """Kill it and everything in its process group."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # it may not have made its group yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Server:
    """Forks kernels and commands for clients of the same user until nobody has needed one for ``idle_s`` seconds."""

    def __init__(self, listener: socket.socket, record_fd: int, idle_s: float, files: list[Path]) -> None:
        self.listener, self.record_fd, self.idle_s, self.files = listener, record_fd, idle_s, files
        self.poll = select.poll()
        self.poll.register(listener, select.POLLIN)
        self.children: dict[int, Child] = {}  # by each of its three watched files
        self.spare = os.open(os.devnull, os.O_RDONLY)  # given up to hang up on somebody when all other files are in use

    def serve(self) -> None:
        """Answer until idle. Whoever connects in the last moment is still served."""
        while True:
            events = self.poll.poll(None if self.children else self.idle_s * 1000)
            if not events and not self.files:
                return
            if not events:
                self.hide()
                self.idle_s = 0
            for file, _ in events:
                child = self.children.get(file)
                if file == self.listener.fileno():
                    self.accept()
                elif child and file == child.pidfd:
                    self.note_end(child)
                elif child:
                    self.abandon(child)

    def hide(self) -> None:
        """Remove the server's files, once: the next may be those of its successor."""
        while self.files:
            self.files.pop().unlink(missing_ok=True)

    def accept(self) -> None:
        """Fork a child for a client of the same user; hang up on anybody else."""
        try:
            connection, _ = self.listener.accept()
        except OSError:  # no file is left: whoever asks starts a process of their own
            os.close(self.spare)
            with contextlib.suppress(OSError):
                self.listener.accept()[0].close()
            self.spare = os.open(os.devnull, os.O_RDONLY)
            return
        client_pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            connection.close()
            return
        opened, pid = list[int](), -1
        try:
            client_pidfd = os.pidfd_open(client_pid)
            opened.append(client_pidfd)
            with warnings.catch_warnings():  # Python 3.12 warns of native threads; pyarrow's one survives forks
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    self.forget()
                    os.close(client_pidfd)
                    become(connection)
                finally:
                    os._exit(1)  # whatever happens, only the server may return from here
            opened.append(os.pidfd_open(pid))
        except OSError as error:  # the client has died, or there is no room for another process or file
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            with contextlib.suppress(OSError):
                send(connection, {"error": f"{type(error).__name__}: {error}"})
            connection.close()
            for file in opened:
                os.close(file)
            return
        self.watch(Child(pid, opened[1], connection, client_pidfd))

    def watch(self, child: Child) -> None:
        """Be woken when a child or its client ends, or when the client hangs up: what it says is for the child."""
        self.poll.register(child.connection, select.POLLRDHUP)
        self.poll.register(child.client_pidfd, select.POLLIN)
        self.poll.register(child.pidfd, select.POLLIN)
        self.children |= dict.fromkeys((child.connection.fileno(), child.client_pidfd, child.pidfd), child)

    def forget(self) -> None:
        """Close, in a forked child, everything that is the server's: others learn from it that somebody has gone."""
        for file in (*self.children, self.record_fd, self.spare):
            os.close(file)
        self.listener.close()

    def note_end(self, child: Child) -> None:
        """Kill what a dead child has left behind in its group, and tell its client the exit status."""
        self.poll.unregister(child.pidfd)
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        child.kill_group()
        child.ended = True
        if child.abandoned:
            self.reap(child)
        elif result:
            status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            with contextlib.suppress(OSError):
                send(child.connection, {"returncode": status})

    def abandon(self, child: Child) -> None:
        """Kill a child whose client has hung up or died."""
        child.abandoned = True
        child.kill_group()
        for file in (child.connection.fileno(), child.client_pidfd):
            self.poll.unregister(file)
            del self.children[file]
        child.connection.close()
        os.close(child.client_pidfd)
        if child.ended:
            self.reap(child)

    def reap(self, child: Child) -> None:
        """Give the process number back."""
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)
        del self.children[child.pidfd]


def become(connection: socket.socket) -> NoReturn:
    """Turn a fork of the server into what the client asks for, as much as possible like a spawned process."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        stand_between(connection)
        run = _answer(connection)
    except BaseException:  # noqa: BLE001 - the client knows, and does without
        os._exit(code)
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends here in any case
        traceback.print_exc()
    finally:
        os._exit(code)  # half a million frozen objects are not taken apart one by one


def stand_between(connection: socket.socket) -> None:
    """Fork once more and return in the child only: what it runs may kill its parent, and that is not the server of all.

    The parent waits and ends as the child does. It leads their group and session, takes no signal but SIGKILL, and is
    what the server watches.
    """
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        return
    connection.close()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os._exit(code if code >= 0 else 1)


def _answer(connection: socket.socket) -> Callable[[], None]:
    """Read the request, say how it went, and return what runs."""
    connection.settimeout(30)
    request, files = receive(connection)
    try:
        take(files)
        prepare(request)
        run = (prepare_command if "script" in request else prepare_kernel)(request)
    except BaseException as error:
        send(connection, {"error": f"{type(error).__name__}: {error}"})
        raise
    send(connection, {"pid": os.getpid(), "pgid": os.getpgid(0)})
    if "script" in request:
        take(receive(connection)[1])
    connection.close()
    return run


def finish() -> None:
    """Do what a Python process does at its end."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more
            stream.flush()


def take(files: list[int]) -> None:
    """Make the client's standard files this process's own."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)


def prepare(request: dict[str, Any]) -> None:
    """Set up the process like a spawned one."""
    os.umask(request["umask"])
    for limit, soft in request["limits"].items():
        resource.setrlimit(int(limit), (soft, resource.getrlimit(int(limit))[1]))
    os.environ.clear()
    os.environ.update(ADDED | request["env"])
    os.chdir(request["cwd"])
    # What was read once in the server is read again, or drawn again, here.
    time.tzset()
    tempfile.tempdir = None
    importlib.invalidate_caches()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # `random` and uuid reseed themselves in a fork, NumPy does not
    if "matplotlib" in sys.modules:
        backend = "agg" if "script" in request else BACKEND
        sys.modules["matplotlib"].rcParams["backend"] = os.environ.get("MPLBACKEND", backend)
        if Path("matplotlibrc").is_file():
            sys.modules["matplotlib"].rc_file("matplotlibrc")
    gc.enable()


def prepare_command(request: dict[str, Any]) -> Callable[[], None]:
    """Return what runs the client's script, as ``python SCRIPT`` would."""
    script = request["script"]
    Path("/proc/self/comm").write_text(Path(script).name)
    sys.argv, sys.path[:] = request["argv"], request["path"]
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    if "pandas" in sys.modules:
        sys.modules["pandas"].set_option("display.max_columns", 0)  # what it is where `preload` has played no notebook
    main = types.ModuleType("__main__")
    vars(main).update(__file__=script, __builtins__=builtins, __warm__=True)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    code = compile(Path(script).read_bytes(), script, "exec")

    def run() -> None:
        interrupted = False
        for name in ("stdin", "stdout", "stderr"):
            vars(sys)[name] = vars(sys)[f"__{name}__"] = _open_again(getattr(sys, name))
        try:
            exec(code, vars(main))
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is printed and the end
            place, interrupted = error.__traceback__, isinstance(error, KeyboardInterrupt)
            traceback.print_exception(error.with_traceback(place.tb_next if place else None))
            raise SystemExit(1) from None
        finally:
            finish()
            if interrupted:  # Python's own end of it
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)

    return run


def _open_again(stream: Any) -> io.TextIOWrapper:
    """Return a standard stream as Python makes it from the file that is there now."""
    file, is_unbuffered = stream.fileno(), stream.write_through
    size = 0 if is_unbuffered and file else -1
    binary: Any = open(file, "wb" if file else "rb", size, closefd=False)  # noqa: SIM115 - it is for life
    in_lines = not is_unbuffered and (file == 2 or binary.isatty())
    return io.TextIOWrapper(binary, stream.encoding, stream.errors, "\n", in_lines, is_unbuffered)


def prepare_kernel(request: dict[str, Any]) -> Callable[[], None]:
    """Return what runs an initialized kernel application."""
    Path("/proc/self/comm").write_text("mlops-kernel")
    for name in [name for name in sys.modules if name.partition(".")[0] in FORGOTTEN]:
        del sys.modules[name]
    launcher = importlib.util.find_spec("ipykernel_launcher")
    sys.argv = [launcher.origin if launcher and launcher.origin else "ipykernel_launcher", *request["argv"]]
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415

    app: Any = IPKernelApp.instance()
    # The kernel's own watch over its parent, which is this server: it covers the day when the server is killed.
    app.initialize([*request["argv"], f"--IPKernelApp.parent_handle={os.getppid()}"])
    sys.modules["__mp_main__"] = sys.modules["__main__"]  # multiprocessing's alias, made when __main__ was the server

    def run() -> None:
        app.start()
        # The control thread is still answering the shutdown request. A spawned kernel usually leaves it the time, as
        # libraries imported later clean up first; here they were imported earlier, so the order is made the same.
        app.control_thread.join(timeout=1)
        atexit.unregister(app.close)
        finish()
        app.close()

    return run


def main(directory: Path, key: str, lock_fd: int, idle_s: float) -> None:
    """Preload, say so on stdout, and serve. The lock is held until then, so that nobody starts a second server."""
    if os.fork():
        os._exit(0)  # whoever started the server has no child to wait for
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not sys.flags.safe_path:
        del sys.path[0]  # this file's folder; a kernel looks for modules in its working directory instead
    gc.disable()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the server keeps three files a kernel; a kernel has its own
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ["MPLBACKEND"] = BACKEND
    # MLflow's usage telemetry would be decided once for every kernel, whatever its user has set: it stays off.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        facts = preload()
    except BaseException as error:
        os.write(answer, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        raise
    gc.freeze()
    path, record = directory / f"{key}.sock", directory / f"{key}.json"
    path.unlink(missing_ok=True)
    record_fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    fcntl.flock(record_fd, fcntl.LOCK_EX)  # held for life: who can take it knows that this server is gone
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    facts |= {"key": key, "pid": os.getpid(), "started_at": time.time(), "python": sys.executable, "idle_s": idle_s}
    os.write(record_fd, json.dumps(facts).encode())
    os.write(answer, json.dumps({"pid": os.getpid()}).encode())
    os.close(answer)
    os.close(lock_fd)
    server = Server(listener, record_fd, idle_s, [directory / f"{key}.log", record, path])
    try:
        server.serve()
    finally:
        for child in server.children.values():
            child.kill_group()
        server.hide()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
