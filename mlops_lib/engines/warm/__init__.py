"""Warm kernels: notebooks whose heavy imports are already done.

A process of the user, started on demand, imports MLflow, pandas, scikit-learn and their kin once and forks a kernel
from itself whenever a notebook needs one. It is a standard ``jupyter_client`` kernel provisioner, so JupyterLab,
papermill, nbclient, nbval and nbmake use it unchanged: through the kernelspec ``mlops``, or, for notebooks that name
``python3``, through :func:`environment`.

A server is only ever shared by kernels that would have come out the same. Its key is made of the interpreter, the
installed distributions, the code of this room, the environment variables that libraries read once at import
(``KEYED``: threads, ``PYTHON*``, locale, home and so on), the processors, hard limits and control group of who asks.
Whatever else is in the client's environment reaches the kernel as it is. Known differences from a plain kernel:
warnings that an import gives are not shown again, MLflow's usage telemetry is off, kernels of one server iterate over
sets of strings in the same order, and a library that is edited in place is seen only after :func:`stop`.

The ``mlops`` of a shell runs in a fork of the same server where one is running: :mod:`mlops_lib.engines.warm.client`.

It refuses a directory that others may enter, and clients of other users. Where a fork is not possible or anything
about it fails, a plain kernel is started and one line on stderr says why.

>>> environment()
{'JUPYTER_DEFAULT_PROVISIONER_NAME': 'mlops-warm'}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # Windows has neither; there kernels are plain
    import fcntl
    import resource

from mlops_lib.engines.warm.server import is_readable
from mlops_lib.errors import WarmKernelError

KERNEL_NAME = "mlops"
PROVISIONER_NAME = "mlops-warm"
COMMAND_NAME = "mlops"  # of the script, and so of the process that runs it
IDLE_S = 1800.0
PRELOAD_TIMEOUT_S = 60.0
RETRY_AFTER_S = 60.0
SERVER = Path(__file__).with_name("server.py")

# What the interpreter or a preloaded library reads once, when it is loaded. A server is started with exactly these.
# PySpark's PYTHON_WORKER_… are another secret in each executor, and nobody else reads them.
KEYED = re.compile(
    "PYTHON(?!_WORKER_)|LD_|LANG|LC_|HOME$|USER$|XDG_(CONFIG|CACHE|DATA)_HOME|SSL_|MALLOC_|GIT_PYTHON_|MPLCONFIGDIR|MATPLOTLIB"
    "|OMP_|GOMP_|KMP_(?!DUPLICATE_LIB_OK|INIT_AT_FORK)|OPENBLAS_|GOTO_|MKL_|BLIS_|VECLIB_|NUMEXPR_"  # threads
    "|ARROW_|NUMPY_|NPY_|PANDAS_|SCIPY_|SKLEARN_|JOBLIB_|LOKY_|PILLOW_|TQDM_|OTEL_|MLFLOW_(LOGGING_|CONFIGURE_LOGGING)"
)


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


def status() -> list[dict[str, Any]]:
    """Return a record for each running server: key, pid, python, started_at, idle_s, kernels, commands and so on."""
    if not is_supported():
        return []
    return [{**record, **_list_children(record["pid"])} for record in _list_servers(runtime_directory())]


def stop() -> int:
    """End every server of this user, with its kernels and commands, and return how many there were."""
    if not is_supported():
        return 0
    stopped = 0
    for server in _list_servers(runtime_directory()):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(server["pid"])
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if not is_readable(process, timeout_s=5):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)
            stopped += 1
    return stopped


def is_supported() -> bool:
    """Tell whether this system can fork kernels: Linux; a fork on macOS breaks Apple's own frameworks."""
    return sys.platform == "linux" and hasattr(os, "fork")


def runtime_directory() -> Path:
    """Return the user's private folder for sockets (``MLOPS_RUNTIME_DIR``, else the system's place), made if missing.

    Raises
    ------
    WarmKernelError
        When it belongs to somebody else, others may enter it, or its path is too long for a socket.
    """
    given, session = os.environ.get("MLOPS_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    if given:
        directory = Path(given).absolute()
    elif session and Path(session).is_dir() and Path(session).stat().st_uid == os.getuid():
        directory = Path(session, "mlops")
    else:
        directory = Path(tempfile.gettempdir(), f"mlops-{os.getuid()}")
    if len(os.fsencode(directory)) > 80:
        reason = "has more than the 80 characters that leave room for a socket"
        raise WarmKernelError("folder", path=directory, reason=reason)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
    except OSError as error:
        raise WarmKernelError("folder", path=directory, reason=f"cannot be made ({error.strerror})") from None
    if not stat.S_ISDIR(facts.st_mode):
        raise WarmKernelError("folder", path=directory, reason="is not a folder")
    if facts.st_uid != os.getuid():
        raise WarmKernelError("folder", path=directory, reason=f"belongs to user {facts.st_uid}, not to {os.getuid()}")
    if facts.st_mode & 0o077:
        raise WarmKernelError("folder", path=directory, reason=f"has mode {facts.st_mode & 0o777:o}, needs 700")
    return directory


def read_limits() -> dict[int, tuple[int, int]]:
    """Return this process's resource limits, soft and hard."""
    limits = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {limit: resource.getrlimit(limit) for limit in sorted(limits)}


def compute_key(python: Sequence[str], env: Mapping[str, str]) -> str:
    """Hash everything that a server has to share with a kernel; about 2 ms."""
    installed: list[tuple[str, int]] = []
    for folder in sys.path:
        if folder.endswith(("site-packages", "dist-packages")) and Path(folder).is_dir():
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
                installed += [(entry.path, entry.stat().st_mtime_ns) for entry in found]
    facts = [
        list(python),
        sys.version,
        sorted(installed),
        SERVER.read_text(),
        sorted(_keyed(env).items()),
        sorted(os.sched_getaffinity(0)),
        [hard for _, hard in read_limits().values()],
        Path("/proc/self/cgroup").read_text(),  # a kernel must count, and be stopped, where its client is
        Path("/proc/self/ns/pid").readlink().name,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def start_server(directory: Path, key: str, python: Sequence[str], env: Mapping[str, str]) -> None:
    """Start the server of ``key`` unless it answers already; of many who ask at once one starts it and all wait.

    Raises
    ------
    WarmKernelError
        When its preload fails or takes too long. For a minute nobody tries again.
    """
    failed, log = directory / f"{key}.failed", directory / f"{key}.log"
    with (directory / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_held(directory / f"{key}.json"):
            return
        if failed.exists() and time.time() - failed.stat().st_mtime <= RETRY_AFTER_S:
            raise WarmKernelError("fork", reason=failed.read_text())
        for record in directory.glob("*.json"):
            if not is_held(record):  # its server was killed
                record.with_suffix(".sock").unlink(missing_ok=True)
                record.unlink(missing_ok=True)
        for old in directory.glob("*.failed"):
            if time.time() - old.stat().st_mtime > RETRY_AFTER_S:
                old.with_suffix(".log").unlink(missing_ok=True)
                old.unlink()
        idle_s = env.get("MLOPS_KERNEL_IDLE_S", str(IDLE_S))
        command = [*python, str(SERVER), str(directory), key, str(lock.fileno()), idle_s]
        with log.open("wb") as stderr, subprocess.Popen(
            command, env=_keyed(env) | {"PATH": env.get("PATH", os.defpath)}, cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr, pass_fds=[lock.fileno()], start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout
            answered = is_readable(process.stdout, PRELOAD_TIMEOUT_S)
            answer = json.loads(process.stdout.read() or b"{}") if answered else {}
            if not answered:
                os.killpg(process.pid, signal.SIGKILL)
        if "pid" not in answer:
            silent = "it ended without a word" if answered else f"it was not done after {PRELOAD_TIMEOUT_S:.0f} s"
            failed.write_text(f"the preload failed: {answer.get('error', silent)}; see '{log}'")
            raise WarmKernelError("fork", reason=failed.read_text())


def prepare(kernel_name: str = "python3") -> threading.Thread | None:
    """Begin to start this environment's server in the background, so that its imports overlap with the caller's own.

    Call it before importing anything heavy. It never fails: whoever starts a kernel later waits for the same server, or
    is told why there is none.

    Returns
    -------
    threading.Thread or None
        What waits for the server, for who wants to wait too; None where kernels cannot be forked.
    """
    python, env = find_python(kernel_name), dict(os.environ)
    if python is None:
        return None

    def start() -> None:
        with contextlib.suppress(WarmKernelError, OSError):
            directory, key = runtime_directory(), compute_key(python, env)
            if not is_held(directory / f"{key}.json"):
                start_server(directory, key, python, env)

    thread = threading.Thread(target=start, name="prepare warm kernels", daemon=True)
    thread.start()
    return thread


def find_python(kernel_name: str = "python3") -> list[str] | None:
    """Return the command that a kernelspec of this environment starts Python with; None without it, or without fork."""
    spec = Path(sys.prefix) / "share" / "jupyter" / "kernels" / kernel_name / "kernel.json"
    if not is_supported() or not spec.is_file():
        return None
    argv = json.loads(spec.read_text(encoding="utf-8"))["argv"]
    return [sys.executable, *argv[1 : argv.index("-m")]]


def make_kernel_directory() -> tuple[Path, int]:
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


def is_held(path: Path) -> bool:
    """Tell whether a living process holds the lock on this file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _keyed(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if KEYED.match(name)}


def _list_servers(directory: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(directory.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):  # one that is just starting or ending
            if is_held(file):
                yield json.loads(file.read_text())


def _list_children(server_pid: int) -> dict[str, list[dict[str, Any]]]:
    """Return the kernels and the commands that a server has forked, and that live."""
    import psutil  # noqa: PLC0415 - only those who look need it

    found: dict[str, list[dict[str, Any]]] = {"kernels": [], "commands": []}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(server_pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                facts = {"pid": process.pid, "cwd": process.cwd(), "started_at": process.create_time()}
                facts["rss_mb"] = round(process.memory_info().rss / 2**20)
                found["commands" if process.name() == COMMAND_NAME else "kernels"].append(facts)
    return found
