"""What this process has read: the evidence that a notebook run may be reused, or why not.

The runner starts the record inside the kernel. Tables read through :mod:`mlops_lib.data` and stages read through
:mod:`mlops_lib.registry` are *noted* with their content; a run can be reused while all of them are unchanged. An audit
hook sees the other ways to read (``open``, SQLite, sockets, processes); what it finds makes a run uncacheable, with the
reason. Folders that were listed are noted with their names. Python sees no reads inside C++: pyarrow's readers are
watched at their Python doors, and other libraries that read files by themselves make a run uncacheable when imported.

>>> note("stage", "prod", 7)  # nothing is recorded unless start() was called
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_ours: ContextVar[bool] = ContextVar("ours", default=False)
_log: list[int] = []
# Programs that libraries ask about the machine and the repository; both are in the run's key or its tags.
_HARMLESS_PROGRAMS = frozenset({"git", "uname", "lscpu", "ldconfig"})
_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"})
_LISTINGS = frozenset({"os.listdir", "os.scandir"})
_EVENTS = _PROGRAMS | _LISTINGS | {"open", "sqlite3.connect", "socket.connect", "import"}
_EVENTS |= {"tempfile.mkdtemp", "tempfile.mkstemp"}
_WRITING = os.O_WRONLY | os.O_RDWR
# What reads files without Python: pyarrow's doors, by module, and libraries that have too many.
_DOORS = {
    "pyarrow": ("memory_map", "input_stream"),
    "pyarrow.parquet": ("read_table", "ParquetFile", "read_metadata", "read_schema"),
    "pyarrow.dataset": ("dataset",),
    "pyarrow.csv": ("read_csv", "open_csv"),
    "pyarrow.feather": ("read_table", "read_feather"),
    "pyarrow.json": ("read_json",),
    "pyarrow.orc": ("read_table", "ORCFile"),
}
_WRITERS = {
    "pyarrow.parquet": ("write_table", "ParquetWriter"),
    "pyarrow.csv": ("write_csv",),
    "pyarrow.feather": ("write_feather",),
}
_BY_THEMSELVES = frozenset({"polars", "duckdb", "fastparquet", "h5py", "netCDF4", "tables", "vaex", "pyspark"})
_UNSEEN = "it uses {}, whose reads cannot be seen"


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
    own = (".ipython", ".jupyter", ".cache/matplotlib", ".cache/fontconfig", ".config", ".local/share/jupyter")
    configuration = [str(Path.home() / name) for name in (*own, ".local/state")]
    found = {os.path.abspath(p) for p in (*libraries, *system, *configuration, *ignored)}  # noqa: PTH100
    places = _Places(found, set())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or _ours.get():
            return
        reason = _describe(event, arguments, places, hosts)
        if reason:
            with ours():
                _write({"unseen": reason})

    sys.addaudithook(hook)
    for doors, describe in ((_DOORS, _describe_path), (_WRITERS, _note_written)):
        for module, names in doors.items():
            for name in names if module in sys.modules else ():
                _watch(sys.modules[module], name, partial(describe, places=places))
    if "pyarrow" in sys.modules:
        _watch_files(sys.modules["pyarrow"], places)


@dataclass
class _Places:
    """Where reads need no note, and what the run has written itself, which is no input of it."""

    known: set[str]
    written: set[str]

    def have(self, name: str) -> bool:
        """Whether a file is one of them, or in one of them."""
        if name.startswith("/dev/shm/"):
            return name in self.written
        parents = {name, *map(str, Path(name).parents)}
        return bool(parents & self.known or parents & self.written)


def _watch(module: Any, name: str, describe: Callable[[Any], str]) -> None:
    """Let a function or class of pyarrow tell which paths it is given."""
    door = getattr(module, name, None)
    if door is None:
        return
    owner, attribute = (door, "__init__") if isinstance(door, type) else (module, name)
    call = getattr(owner, attribute)

    @functools.wraps(call)
    def watched(*arguments: Any, **options: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        if not _ours.get() and not caller.startswith("mlops_lib."):  # which notes what it reads
            for given in (*arguments, *options.values()):
                for path in given if isinstance(given, list | tuple) else [given]:
                    if reason := describe(path):
                        _write({"unseen": reason})
        with ours():
            return call(*arguments, **options)

    with contextlib.suppress(TypeError):  # a type of C's that takes no other methods
        setattr(owner, attribute, watched)


def _watch_files(pyarrow: Any, places: _Places) -> None:
    """Let pyarrow's files tell what they open; pandas writes Parquet into one."""

    class OSFile(pyarrow.OSFile):  # type: ignore[misc] # pyarrow has no types
        def __init__(self, path: Any, mode: str = "r", **_: Any) -> None:
            reason = (_describe_path if "r" in mode else _note_written)(path, places)
            if reason and not _ours.get():
                _write({"unseen": reason})

    pyarrow.OSFile = OSFile


def _note_written(path: Any, places: _Places) -> str:
    """Note what the run writes itself."""
    if isinstance(path, str | os.PathLike):
        places.written.add(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100
    return ""


def _describe_path(path: Any, places: _Places) -> str:
    """Return why what pyarrow reads makes a run uncacheable; of a folder all files are read."""
    if not isinstance(path, str | os.PathLike):
        return ""
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
    if os.path.isdir(name) and not places.have(name):  # noqa: PTH112
        return f"it read the folder '{name}' other than through mlops_lib.data"
    return _describe_file(name, places)


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


def read_log(log: Path, code: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """Return what was noted, and the reasons why the run cannot be reused; each once, in order.

    Of a library that MLflow has loaded no import is seen any more: those in the notebook's ``code`` count too.
    """
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    entries = [json.loads(line) for line in dict.fromkeys(lines)]
    imported = re.findall(r"^\s*(?:import|from)\s+(\w+)", code, re.MULTILINE)
    reasons = [entry["unseen"] for entry in entries if "unseen" in entry]
    reasons += [_UNSEEN.format(library) for library in imported if library in _BY_THEMSELVES]
    return [entry for entry in entries if "kind" in entry], list(dict.fromkeys(reasons))


def _write(entry: dict[str, Any]) -> None:
    os.write(_log[0], (json.dumps(entry, sort_keys=True) + "\n").encode())


def _describe(  # noqa: PLR0911 - one return per event reads better than a chain
    event: str, arguments: tuple[Any, ...], places: _Places, hosts: Sequence[str]
) -> str:
    """Return why an event makes the run uncacheable, or nothing; what can be compared is noted instead."""
    if event in _PROGRAMS:
        return _describe_program(event, arguments)
    if event == "import":
        library = str(arguments[0]).partition(".")[0]
        return _UNSEEN.format(library) if library in _BY_THEMSELVES and not _is_asked_by_mlflow() else ""
    if event in _LISTINGS:
        return _note_folder(arguments[0], places)
    if event.startswith("tempfile."):
        places.written.add(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100
        return ""
    if event == "socket.connect":
        address = arguments[1]
        is_elsewhere = isinstance(address, tuple) and f"{address[0]}:{address[1]}" not in hosts
        return f"it connected to {address[0]}:{address[1]}" if is_elsewhere else ""
    if not isinstance(arguments[0], str | bytes):
        return ""
    name = os.fsdecode(arguments[0])
    if event == "sqlite3.connect" and name.startswith("file:"):
        name = unquote(name.removeprefix("file:").removeprefix("//").partition("?")[0])
    if event == "open" and _is_write(arguments):
        name = os.path.abspath(name)  # noqa: PTH100
        if places.have(name) or _begins_anew(arguments) or not os.path.isfile(name):  # noqa: PTH113
            places.written.add(name)
            return ""
        return f"it changed '{name}', which was there before"
    return _describe_file(name, places)


def _is_asked_by_mlflow() -> bool:
    """Whether an import is one that MLflow tries by itself, to see which libraries there are."""
    frame = sys._getframe()
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("mlflow."):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def _describe_program(event: str, arguments: tuple[Any, ...]) -> str:
    """Return which program was started, of a shell's command its first word; nothing for harmless ones."""
    command = arguments[1] if event != "os.system" else ["sh", "-c", os.fsdecode(arguments[0])]
    words = [command] if isinstance(command, str | bytes) else list(command or ())
    name = os.path.basename(os.fsdecode(arguments[0] or words[0])) if event != "os.system" else "sh"  # noqa: PTH119
    if name in ("sh", "bash", "dash") and len(words) > 2:
        script = os.fsdecode(words[2])
        is_one = not set(script) & set(";|&<>$`\n")
        name = os.path.basename(script.split()[0]) if is_one and script.split() else f"{name} -c {script[:60]}"  # noqa: PTH119
    return "" if name in _HARMLESS_PROGRAMS else f"it started the program '{name}'"


def _note_folder(path: Any, places: _Places) -> str:
    """Note the names in a folder that was listed; Python itself lists those that it imports from."""
    if isinstance(path, int):
        return ""
    name = os.path.abspath(os.fsdecode(path or "."))  # noqa: PTH100
    imported = {os.path.abspath(each or ".") for each in sys.path}  # noqa: PTH100
    if name not in imported and not places.have(name) and "/.git" not in name and "/__pycache__" not in name:
        with ours():
            note("folder", name, fingerprint_folder(name))
    return ""


def fingerprint_folder(name: str) -> str:
    """Return the SHA-256 of the names in a folder; nothing for no folder."""
    with ours(), contextlib.suppress(OSError):
        return f"sha256:{hashlib.sha256(json.dumps(sorted(os.listdir(name))).encode()).hexdigest()}"  # noqa: PTH208
    return ""


def _describe_file(path: str | bytes, places: _Places) -> str:
    name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - as the call would resolve it
    if name.endswith(".pyc") and "__pycache__" in name:
        name = importlib.util.source_from_cache(name)
    if places.have(name) or "/.git/" in name or not os.path.isfile(name):  # noqa: PTH113
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


def _begins_anew(arguments: tuple[Any, ...]) -> bool:
    """Whether a file that is opened for writing loses what it had; what is appended or edited does not."""
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wx")
    return isinstance(flags, int) and bool(flags & (os.O_TRUNC | os.O_EXCL))
