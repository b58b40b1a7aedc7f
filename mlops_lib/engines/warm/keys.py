"""Which server a kernel may have, and where it is: kernels of one key, in one folder, would have come out the same.

The key is made of the interpreter, the installed distributions, the code of the server, the environment variables that
libraries read once at import (``KEYED``: threads, ``PYTHON*``, locale, home and so on), the processors, hard limits and
control group of who asks. Whatever else is in the client's environment reaches the kernel as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

with contextlib.suppress(ImportError):  # Windows has neither; there kernels are plain
    import fcntl
    import resource

from mlops_lib.errors import WarmKernelError

SERVER = Path(__file__).with_name("server.py")

# What the interpreter or a preloaded library reads once, when it is loaded. A server is started with exactly these.
# PySpark's PYTHON_WORKER_… are another secret in each executor, and nobody else reads them.
KEYED = re.compile(
    "PYTHON(?!_WORKER_)|LD_|LANG|LC_|HOME$|USER$|XDG_(CONFIG|CACHE|DATA)_HOME|SSL_|MALLOC_|GIT_PYTHON_|MPLCONFIGDIR|MATPLOTLIB"
    "|OMP_|GOMP_|KMP_(?!DUPLICATE_LIB_OK|INIT_AT_FORK)|OPENBLAS_|GOTO_|MKL_|BLIS_|VECLIB_|NUMEXPR_"  # threads
    "|ARROW_|NUMPY_|NPY_|PANDAS_|SCIPY_|SKLEARN_|JOBLIB_|LOKY_|PILLOW_|TQDM_|OTEL_|MLFLOW_(LOGGING_|CONFIGURE_LOGGING)"
)


def compute_key(python: Sequence[str], env: Mapping[str, str]) -> str:
    """Hash everything that a server has to share with a kernel; about 2 ms."""
    installed: list[tuple[str, int]] = []
    for folder in sys.path:
        if folder.endswith(("site-packages", "dist-packages")) and Path(folder).is_dir():
            with os.scandir(folder) as entries:
                distributions = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
                installed += [(entry.path, entry.stat().st_mtime_ns) for entry in distributions]
    facts = [
        list(python),
        sys.version,
        sorted(installed),
        SERVER.read_text(),
        sorted(select_keyed(env).items()),
        sorted(os.sched_getaffinity(0)),
        [hard for _, hard in read_limits().values()],
        Path("/proc/self/cgroup").read_text(),  # a kernel must count, and be stopped, where its client is
        Path("/proc/self/ns/pid").readlink().name,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def select_keyed(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that belong to the key."""
    return {name: value for name, value in env.items() if KEYED.match(name)}


def read_limits() -> dict[int, tuple[int, int]]:
    """Return this process's resource limits, soft and hard."""
    limits = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    return {limit: resource.getrlimit(limit) for limit in sorted(limits)}


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
