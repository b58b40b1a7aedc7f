"""What this process has read: the evidence that a notebook run may be reused, or why not.

The runner starts the record inside the kernel. Tables read through :mod:`mlops_lib.data` and stages read through
:mod:`mlops_lib.registry` are *noted* with their content; a run can be reused while all of them are unchanged. An audit
hook sees the other ways to read (``open``, SQLite, sockets, processes); what it finds makes a run uncacheable, with the
reason. It does not see reads inside C++ libraries such as pyarrow's own: read Parquet through :mod:`mlops_lib.data`.

>>> note("stage", "prod", 7)  # nothing is recorded unless start() was called
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_ours: ContextVar[bool] = ContextVar("ours", default=False)
_log: list[int] = []
# Programs that libraries ask about the machine and the repository; both are in the run's key or its tags.
_HARMLESS_PROGRAMS = frozenset({"git", "uname", "lscpu", "ldconfig", "sh"})
_EVENTS = frozenset(
    {"open", "sqlite3.connect", "socket.connect", "subprocess.Popen", "tempfile.mkdtemp", "tempfile.mkstemp"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def start(log: str, ignored: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
    """Begin to record into the file ``log``, one JSON line per read.

    Parameters
    ----------
    log : str
    ignored : sequence of str
        Files and folders whose reads need no note: the store, the library, the project file.
    hosts : sequence of str
        ``host:port`` of the tracking server.
    """
    _log[:] = [os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]
    libraries = [*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, site.getusersitepackages()]
    system = ["/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/run"]
    configuration = [str(Path.home() / name) for name in (".ipython", ".jupyter", ".cache", ".config", ".local")]
    places = tuple({os.path.abspath(p) for p in (*libraries, *system, *configuration, *ignored)})  # noqa: PTH100
    written: list[str] = []  # what a run has written itself is no input of it

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or _ours.get():
            return
        if event.startswith("tempfile.") or (event == "open" and _is_write(arguments)):
            if isinstance(arguments[0], str | bytes):
                written.append(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100
            return
        found = _describe(event, arguments, (*places, *written), hosts)
        if found:
            with ours():
                _write({"unseen": found})

    sys.addaudithook(hook)


def note(kind: str, name: str, content: object) -> None:
    """Note that something was read: a file with its fingerprint, a stage with its version, a ledger with its head.

    Content that is a function is asked for only if there is a record.
    """
    if _log:
        _write({"kind": kind, "name": name, "content": content() if callable(content) else content})


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Keep reads of the library itself out of the record; it notes them where they matter."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def read_log(log: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what was noted, and the reasons why the run cannot be reused; each once, in order."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    entries = [json.loads(line) for line in dict.fromkeys(lines)]
    return [e for e in entries if "kind" in e], [e["unseen"] for e in entries if "unseen" in e]


def _write(entry: dict[str, Any]) -> None:
    os.write(_log[0], (json.dumps(entry, sort_keys=True) + "\n").encode())


def _describe(event: str, arguments: tuple[Any, ...], places: tuple[str, ...], hosts: Sequence[str]) -> str:
    if event == "subprocess.Popen":
        program = os.path.basename(os.fsdecode(arguments[0]))  # noqa: PTH119 - may be bytes
        return "" if program in _HARMLESS_PROGRAMS else f"it started the program '{program}'"
    if event == "socket.connect":
        address = arguments[1]
        is_elsewhere = isinstance(address, tuple) and f"{address[0]}:{address[1]}" not in hosts
        return f"it connected to {address[0]}:{address[1]}" if is_elsewhere else ""
    return _describe_file(arguments[0], places) if isinstance(arguments[0], str | bytes) else ""


def _describe_file(path: str | bytes, places: tuple[str, ...]) -> str:
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - as the call would resolve it
    if name.endswith(".pyc") and "__pycache__" in name:
        name = importlib.util.source_from_cache(name)
    if name.startswith(places) or "/.git/" in name or not os.path.isfile(name):  # noqa: PTH113
        return ""
    if name.endswith(".py"):  # a module beside the notebook: an input like any other
        with ours():
            note("file", name, f"sha256:{hashlib.sha256(Path(name).read_bytes()).hexdigest()}")
        return ""
    return f"it read '{name}' other than through mlops_lib.data"


def _is_write(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITING)
