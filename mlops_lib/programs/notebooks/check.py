"""Do the committed notebooks still say what they said? What CI asks on every change, and a person before a commit.

Each notebook is read (valid, executed in order, a typed signature, the style that people can read, ruff) and run: in
file order against one scratch store, on warm kernels, its outputs compared with the committed ones. Text, tables and
streams are compared as nbval does, with its sanitizer file; figures as pictures. Tags that make nbval look away are not
honoured. :func:`update_notebooks` writes the outputs anew where they differ, and nothing else.

One run by nbclient instead of nbval's own gives the comparison, the figures and the update, sees a dead kernel within
a second (nbval waits for its cell's deadline), and counts cells as JupyterLab does. What passes here passes stock
``pytest --nbval notebooks``, live displays excepted, which nbval does not know.

A notebook that passed is not run again while nothing that it depends on has changed: itself, the notebooks before it,
library, project file, rules, lock, installed packages, and the files that it read, as far as they were seen.

>>> check_notebooks(names=["02_train"]).passed  # 01_explore is run before it  # doctest: +SKIP
True
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_lib.engines.warm.server import without_grammar
from mlops_lib.errors import NotFoundError, ParameterError, WriteError
from mlops_lib.project import find_project_file, load_project
from mlops_lib.report import Report, Row

CELL_TIMEOUT_S = 120
CELL_LINES, MEDIAN_LINES, PARAGRAPH_WORDS = 15, 5, 60
FIGURE_SIZE, FIGURE_MEAN, FIGURE_BLOCK = 0.01, 0.005, 0.2  # shares: of width and height, of full contrast
SANITIZER, RECORD = "sanitize.cfg", ".mlops/checked.json"
# What a rule that hides ids and times must leave to be seen.
_MEASURED = ("0.7213", "27", "12,345", "1e-05", "42.9%", "passed")
_NAME = re.compile(r"\d\d_[a-z][a-z0-9_]*\.ipynb")
_UNWANTED = {
    "%run": r"^\s*%run\b",
    "a shell command": r"^\s*(\w[\w\s,]*=\s*)?!|^\s*(\w[\w\s,]*=\s*)?%(sx|system)\b|^%%(bash|sh|script|system|!)",
    "a warnings filter": r"\b(filterwarnings|simplefilter)\b",
    "a class": r"^class\b",
}
_IMAGES = ("image/png", "image/jpeg")
_NOT_COMPARED = {"metadata", "traceback", "prompt_number", "output_type", "name", "execution_count"}
_NOT_COMPARED.add("application/vnd.jupyter.widget-view+json")  # ids of widgets are random
Progress = Callable[[int, int, str], None]
Patterns = Sequence[tuple[str, str]]
_SILENT = logging.Logger("mlops.check", logging.CRITICAL + 1)


def scratch_environment(folder: Path) -> dict[str, str]:
    """Return the variables under which committed outputs are made: a store and outputs of their own, one actor."""
    from mlops_lib.engines import warm  # noqa: PLC0415 - only who runs something needs it

    return {
        **warm.environment(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLOPS_OUTPUTS": str(folder),
        "MLOPS_ACTOR": "data-scientist",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }


def check_notebooks(
    file: Path | str | None = None,
    names: Sequence[str] = (),
    *,
    force: bool = False,
    cell_timeout_s: int = CELL_TIMEOUT_S,
    progress: Progress | None = None,
) -> Report:
    """Check committed notebooks: one row per notebook and check.

    Parameters
    ----------
    file : path, optional
        The project file; by default found as :func:`mlops_lib.project.find_project_file` does.
    names : sequence of str
        Notebooks, by path, name or stem; by default all. Those before them are checked too: they fill the store.
    force : bool
        Run although nothing has changed since they passed.
    cell_timeout_s : int
        Deadline of each cell, in seconds.
    progress : callable, optional
        Called with the number of the code cell, how many there are, and the notebook's name.

    Raises
    ------
    NotFoundError, ProjectError
        Nothing was run.
    """
    place = _find_place(file)
    named, paths = _select(place, names)
    keys, record = _compute_keys(place, paths), _read_record(place.file)
    passed = record.setdefault("passed", {})
    if paths and not force and all(_holds(place, passed.get(path.name), key) for path, key in keys.items()):
        reason = "nothing it depends on has changed since it passed on {}; --all runs it"
        rows = [_row(path, "unchanged", reason=reason.format(passed[path.name]["at"])) for path in named]
        return Report("Notebooks", tuple(rows), {"executed": 0})
    rules, patterns = _check_sanitizer(place.sanitizer)
    notebooks = [_read(path) for path in paths]
    _lint(place, notebooks)
    _run(place, notebooks, cell_timeout_s, progress)
    rows, trusted = [rules], rules.status != "failed"
    for notebook in notebooks:
        found = [*notebook.rows, *_compare(notebook, patterns)]
        rows += found
        trusted = trusted and not notebook.unseen and all(row.status != "failed" for row in found)
        passed.pop(notebook.path.name, None)
        if trusted:  # not if one before it failed: it ran on that one's store
            at = datetime.now(UTC).isoformat(timespec="seconds")
            passed[notebook.path.name] = {"key": keys[notebook.path], "inputs": notebook.inputs, "at": at}
    _write_record(place, record)
    if not paths:
        rows.append(Row("notebooks", 0, ">= 1", "failed", f"there is none in '{place.folder}'"))
    return Report("Notebooks", tuple(rows), {"executed": sum(n.executed is not None for n in notebooks)})


def update_notebooks(
    file: Path | str | None = None,
    names: Sequence[str] = (),
    *,
    cell_timeout_s: int = CELL_TIMEOUT_S,
    progress: Progress | None = None,
) -> Report:
    """Run the notebooks and rewrite, in those named, the outputs that differ; parameters as :func:`check_notebooks`.

    Cell ids, sources, order of keys and outputs that compare equal keep their bytes; records of one execution
    (``metadata.execution``, papermill's, the Python version) go. If a cell fails nothing is written. An update proves
    nothing: the next check runs.

    Raises
    ------
    NotFoundError, ProjectError, WriteError
    """
    place = _find_place(file)
    named, paths = _select(place, names)
    rules, patterns = _check_sanitizer(place.sanitizer)
    notebooks = [_read(path) for path in paths]
    rows = [rules, *(notebook.rows[0] for notebook in notebooks if notebook.node is None)]
    if all(row.status != "failed" for row in rows):
        _run(place, notebooks, cell_timeout_s, progress)
        rows += [_row(n.path, "runs", [n.fault] if n.fault else []) for n in notebooks if n.executed is not None]
    if not named or any(row.status == "failed" for row in rows):
        rows.append(Row("update", 0, "", "not_applicable" if named else "failed", "nothing was written"))
        return Report("Update of notebooks", tuple(rows))
    written = [(n, *_rewrite(n, patterns)) for n in notebooks if n.path in named]
    for notebook, text, n_cells in written:
        if text != notebook.text:
            _write(notebook.path, text)
        reason = "the file is as it was" if text == notebook.text else f"cells rewritten: {n_cells}"
        rows.append(Row(f"{notebook.path.stem}: update", n_cells, "", "passed", reason))
    return Report("Update of notebooks", tuple(rows))


# --- where, and whether anything has changed: without nbformat, pandas or MLflow ---------------------------------


@dataclass(frozen=True)
class _Place:
    file: Path
    root: Path
    folder: Path

    @property
    def sanitizer(self) -> Path:
        return self.folder / SANITIZER


def _find_place(file: Path | str | None) -> _Place:
    """Locate the notebooks; the project file is imported (seconds) only when it has changed since the last check."""
    path = find_project_file(file).resolve()
    record = _read_record(path)
    if record.get("project") == _fingerprint(path):
        return _Place(path, (path.parent / record["root"]).resolve(), (path.parent / record["folder"]).resolve())
    project = load_project(path)
    return _Place(path, project.root.resolve(), (project.root / project.notebooks).resolve())


def _read_record(project_file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((project_file.parent / RECORD).read_text(encoding="utf-8"))
        return record if {"project", "root", "folder"} <= record.keys() else {}
    except (OSError, ValueError, AttributeError):  # none yet, or cut short: everything is checked again
        return {}


def _write_record(place: _Place, record: dict[str, Any]) -> None:
    folders = {name: os.path.relpath(getattr(place, name), place.file.parent) for name in ("root", "folder")}
    record |= {"project": _fingerprint(place.file), **folders}
    with contextlib.suppress(WriteError):  # a read-only checkout can be checked, again and again
        _write(place.file.parent / RECORD, json.dumps(record, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    from mlops_lib import data  # noqa: PLC0415 - loads pandas

    with data.atomic_write(path, "w") as file:
        file.write(text)


def _select(place: _Place, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the named notebooks, and these with all before the last of them."""
    known = {path.stem: path for path in sorted(place.folder.glob("*.ipynb"))}
    named = []
    for name in names or known:
        path = known.get(Path(name).name.removesuffix(".ipynb"))
        if path is None or (Path(name).is_file() and Path(name).resolve() != path):
            raise NotFoundError("notebook", notebook=Path(name), notebooks=tuple(path.name for path in known.values()))
        named.append(path)
    return sorted(set(named)), [path for path in known.values() if path <= max(named)]


def _compute_keys(place: _Place, paths: Sequence[Path]) -> dict[Path, str]:
    """Return for each notebook the SHA-256 of what is known beforehand, the notebooks before it included."""
    library = Path(__file__).parents[2]
    rules = [place.sanitizer, *(folder / name for folder in (place.root, place.folder) for name in _CONFIGURATION)]
    installed = {Path(folder) for folder in sys.path if folder.endswith("-packages")}
    facts: list[Any] = [
        [[str(source.relative_to(library)), _fingerprint(source)] for source in sorted(library.rglob("*.py"))],
        [_fingerprint(path) for path in (place.file, *rules)],
        sorted(entry.name for folder in installed if folder.is_dir() for entry in folder.glob("*.dist-info")),
        [sys.version, platform.machine()],
    ]
    keys = {}
    for path in paths:
        facts.append([path.name, _fingerprint(path)])
        keys[path] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return keys


_CONFIGURATION = ("requirements.lock", "pyproject.toml", "ruff.toml", ".ruff.toml")


def _holds(place: _Place, entry: Mapping[str, Any] | None, key: str) -> bool:
    if not entry or entry["key"] != key:
        return False
    return all(_fingerprint(place.root / name) == content for name, content in entry["inputs"].items())


def _fingerprint(path: Path) -> str:
    """Return the digest of a file's bytes, or of the names in a folder: a month more is another input."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        return f"names:{hashlib.sha256(json.dumps(names).encode()).hexdigest()}"
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else ""


# --- what can be seen without running ----------------------------------------------------------------------------


@dataclass
class _Notebook:
    """A notebook on its way through the check: as read, what was found, and what came of its execution."""

    path: Path
    text: str
    node: Any = None  # None if it is no notebook
    rows: list[Row] = field(default_factory=list)
    executed: Any = None  # None if it was not run
    at: int = -1  # the cell that it stopped in, and why
    fault: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


def _row(path: Path, check: str, faults: Sequence[str] = (), reason: str = "") -> Row:
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    reason = "; ".join(faults[:3]) + more if faults else reason
    return Row(f"{path.stem}: {check}", len(faults), "0 faults", "failed" if faults else "passed", reason)


def _read(path: Path) -> _Notebook:
    """Read a notebook and look at how it is written."""
    nbformat, notebook = _nbformat(), _Notebook(path, path.read_text(encoding="utf-8"))
    try:
        node = nbformat.reads(notebook.text, as_version=4)
        nbformat.validate(node)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file is the answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        notebook.rows = [_row(path, "format", [f"not a valid notebook: {reason}"])]
    else:
        notebook.node = node
        checks = {"executed": _executed, "signature": _signature, "style": _style}
        found = [_row(path, name, list(find(path, node))) for name, find in checks.items()]
        notebook.rows = [_row(path, "format"), *found]
    return notebook


def _cells(notebook: Any, kind: str = "code") -> list[tuple[int, Any]]:
    """Return the cells of a kind that are not empty, with their numbers from 1 as people count them."""
    cells = enumerate(notebook.cells, start=1)
    return [(number, cell) for number, cell in cells if cell.cell_type == kind and cell.source.strip()]


def _executed(path: Path, notebook: Any) -> Iterator[str]:
    cells = _cells(notebook)
    if cells and all(cell.execution_count is None for _, cell in cells):
        yield f"stripped: none of its {len(cells)} code cells was run, from cell {cells[0][0]} on"
        return
    for expected, (number, cell) in enumerate(cells, start=1):
        if cell.execution_count != expected:
            yield f"cell {number} has execution count {cell.execution_count}, needs {expected}"
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", ()):
                yield f"cell {number} holds an error: {output.ename}: {output.evalue[:80]}"


def _signature(path: Path, notebook: Any) -> Iterator[str]:
    from mlops_lib.programs.notebooks.signature import read_signature  # noqa: PLC0415 - loads pydantic

    tagged = [n for n, cell in enumerate(notebook.cells, start=1) if "parameters" in cell.metadata.get("tags", ())]
    where = f"cell {', '.join(map(str, tagged))}"
    if not tagged:
        yield "no cell has the tag 'parameters'"
    try:
        for parameter in read_signature(notebook, path).values():
            if not parameter.help:
                yield f"{where}: parameter '{parameter.name}' has no comment that explains it"
    except ParameterError as error:
        yield f"{where}: {error.reason}; expected {error.expected}"


def _style(path: Path, notebook: Any) -> Iterator[str]:
    if not _NAME.fullmatch(path.name):
        yield f"the name is '{path.name}', needs NN_verb.ipynb"
    lines = {n: sum(bool(line.strip()) for line in cell.source.splitlines()) for n, cell in _cells(notebook)}
    yield from (f"cell {n} has {count} lines, at most {CELL_LINES}" for n, count in lines.items() if count > CELL_LINES)
    if lines and statistics.median(lines.values()) > MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lines.values()):g} lines, at most {MEDIAN_LINES}"
    for number, cell in _cells(notebook):
        for what, pattern in _UNWANTED.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"cell {number} has {what}"
        jupyter = cell.metadata.get("jupyter", {})
        if any([cell.metadata.get("collapsed"), jupyter.get("source_hidden"), jupyter.get("outputs_hidden")]):
            yield f"cell {number} is folded"
    for number, cell in _cells(notebook, "markdown"):
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|>]|\d+\.)\s)", cell.source):
            if len(paragraph.split()) > PARAGRAPH_WORDS:
                yield f"cell {number} has a paragraph of {len(paragraph.split())} words, at most {PARAGRAPH_WORDS}"


def _lint(place: _Place, notebooks: Sequence[_Notebook]) -> None:
    """Add a row for ``ruff check`` and ``ruff format`` to each notebook."""
    readable = [notebook for notebook in notebooks if notebook.node]
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    faults: dict[str, list[str]] = defaultdict(list)
    if ruff and readable:
        names = [str(notebook.path) for notebook in readable]
        calls = (["check", "--output-format", "json"], ["format", "--diff"])
        lint, form = (
            subprocess.run([ruff, *call, *names], cwd=place.root, capture_output=True, text=True, check=False)
            for call in calls
        )
        if 2 in (lint.returncode, form.returncode):
            reason = (lint.stderr.strip() or form.stderr.strip()).splitlines()[0][:200]
            faults = defaultdict(lambda: [f"ruff failed: {reason}"])
        else:
            for fault in json.loads(lint.stdout):
                at = f"cell {fault['cell']} line {fault['location']['row']}"
                faults[Path(fault["filename"]).name].append(f"{at}: {fault['code']} {fault['message']}")
            for name, cell in re.findall(r"^--- (.*\.ipynb):cell (\d+)\n.*\n@@", form.stdout, re.MULTILINE):
                faults[Path(name).name].append(f"cell {cell} is not as ruff format writes it")
    for notebook in readable:
        if ruff:
            notebook.rows.append(_row(notebook.path, "ruff", faults[notebook.path.name]))
        else:
            name, reason = f"{notebook.path.stem}: ruff", "ruff is not installed"
            notebook.rows.append(Row(name, None, "", "not_applicable", reason))


def _check_sanitizer(path: Path) -> tuple[Row, list[tuple[str, str]]]:
    """Hold the sanitizer file to what nbval reads of it, which drops a malformed pair without a word; return the rules.

    A rule that would hide a measurement is a fault too.
    """
    if not path.is_file():
        reason = "there is none: outputs are compared as they are"
        return Row(f"{path.stem}: rules", None, "", "not_applicable", reason), []
    text = path.read_text(encoding="utf-8")
    lines, faults, patterns = ["", *text.splitlines(), ""], [], []
    for number, line in enumerate(lines):
        key, _, value = line.partition(": ")
        after, before = lines[(number + 1) % len(lines)], lines[number - 1]
        if key == "regex" and not after.startswith("replace: "):
            faults.append(f"line {number}: 'replace: …' must stand in the next line")
        elif key == "regex":
            try:
                hidden = [sample for sample in _MEASURED if re.search(value, sample)]
                faults += [f"line {number}: {value} would hide what was measured, such as {s}" for s in hidden[:1]]
                patterns.append((value, after.removeprefix("replace: ")))
            except re.error as error:
                faults.append(f"line {number}: {value} is no regular expression ({error})")
        elif key == "replace" and ": " in line and not before.startswith("regex: "):
            faults.append(f"line {number}: 'regex: …' must stand in the line before")
        elif line.strip() and not line.startswith(("[", "#", "replace: ")):
            faults.append(f"line {number} is no 'regex: …', 'replace: …', '[title]' or comment: {line[:40]}")
    return _row(path, "rules", faults), patterns


# --- running -----------------------------------------------------------------------------------------------------


def _run(place: _Place, notebooks: Sequence[_Notebook], timeout_s: int, progress: Progress | None) -> None:
    """Execute the notebooks in order against one scratch store, up to the first that does not run to its end."""
    total, done = sum(len(_cells(notebook.node)) for notebook in notebooks if notebook.node), 0
    with tempfile.TemporaryDirectory(prefix="mlops-check-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        for notebook in notebooks:
            if notebook.node is None:
                return

            def tell(cell_index: int, *, notebook: _Notebook = notebook) -> None:
                nonlocal done
                notebook.at, done = cell_index, done + 1
                if progress:
                    progress(done, total, notebook.path.stem)

            notebook.executed = copy.deepcopy(notebook.node)
            notebook.fault = asyncio.run(_execute(place, notebook, scratch, timeout_s, tell))
            _note_inputs(place, notebook, scratch)
            if notebook.fault:
                return


async def _execute(
    place: _Place, notebook: _Notebook, scratch: Path, timeout_s: int, tell: Callable[[int], None]
) -> str:
    """Run one notebook on a kernel of its own and return what stopped it, if anything did."""
    _nbformat()
    from nbclient import NotebookClient  # noqa: PLC0415 - heavy
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: PLC0415

    from mlops_lib.engines import warm  # noqa: PLC0415

    log, noted = scratch / "kernel.log", str(scratch / f"{notebook.path.stem}.jsonl")
    ignored = [str(Path(__file__).parents[2]), str(place.file), str(scratch)]
    begin = f"from mlops_lib.data import reads; reads.start({noted!r}, {ignored!r})"

    def take_signals(**_: Any) -> None:  # nbclient's own would make an interrupted notebook look like a dead kernel
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError):  # outside the main thread, or (NotImplementedError) on Windows
                asyncio.get_running_loop().remove_signal_handler(number)

    def look_at_reply(execute_reply: Mapping[str, Any], **_: Any) -> None:
        if any(payload.get("source") == "ask_exit" for payload in execute_reply["content"].get("payload", ())):
            raise DeadKernelError("it called exit()")

    client: NotebookClient = NotebookClient(
        notebook.executed,
        timeout=timeout_s,
        extra_arguments=[f"--IPKernelApp.exec_lines={begin}"],
        resources={"metadata": {"path": str(notebook.path.parent)}},
        record_timing=False,
        shutdown_kernel="immediate",
        on_notebook_start=take_signals,
        on_cell_execute=lambda cell, cell_index: tell(cell_index),
        on_cell_executed=look_at_reply,
        log=_SILENT,  # what it would say there is in the report
    )
    spec = client.create_kernel_manager().kernel_spec
    if spec is not None:
        env = {**scratch_environment(scratch), "MLOPS_PROJECT": str(place.file)}
        spec.env = spec.env | {name: value.replace("$", "$$") for name, value in env.items()}
        spec.metadata = {"kernel_provisioner": {"provisioner_name": warm.PROVISIONER_NAME}, **spec.metadata}
    try:
        with log.open("wb") as stdio:
            await client.async_execute(stdout=stdio, stderr=stdio)
    except CellExecutionError as error:
        return f"cell {notebook.at + 1} raised {error.ename}: {str(error.evalue)[:200]}"
    except CellTimeoutError:
        return f"cell {notebook.at + 1} was not done after {timeout_s} s"
    except DeadKernelError as error:
        words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        reason = str(error) if "exit" in str(error) else "the kernel died" + "".join(f": {w[:120]}" for w in words)
        return f"cell {notebook.at + 1}: {reason}"
    except Exception as error:  # noqa: BLE001 - a kernel that does not start is an answer too
        return f"no kernel: {type(error).__name__}: {str(error)[:200]}"
    return ""


def _note_inputs(place: _Place, notebook: _Notebook, scratch: Path) -> None:
    """Keep the files that a run has read, and the names beside them; what is in the scratch store follows from them."""
    from mlops_lib.data import reads  # noqa: PLC0415

    noted, notebook.unseen = reads.read_log(scratch / f"{notebook.path.stem}.jsonl")
    for entry in noted:
        path = Path(entry["name"])
        if entry["kind"] == "file" and not path.is_relative_to(scratch):
            notebook.inputs[os.path.relpath(path, place.root)] = entry["content"]
            if path.suffix != ".py":
                notebook.inputs[os.path.relpath(path.parent, place.root)] = _fingerprint(path.parent)


# --- comparing ---------------------------------------------------------------------------------------------------


def _compare(notebook: _Notebook, patterns: Patterns) -> list[Row]:
    """Return the rows on how a notebook ran, up to the cell that it stopped in."""
    found: dict[str, list[str]] = {"runs": [notebook.fault] if notebook.fault else [], "outputs": [], "figures": []}
    if notebook.executed is None:
        reason = "a notebook before it did not run to its end" if notebook.node else "it cannot be read"
        names = [f"{notebook.path.stem}: {name}" for name in found]
        return [Row(name, None, "0 faults", "not_applicable", f"not run: {reason}") for name in names]
    ran = zip(notebook.node.cells, notebook.executed.cells, strict=True)
    for number, (committed, executed) in enumerate(ran, start=1):
        if committed.cell_type == "code" and not (notebook.fault and number > notebook.at):
            told = _differences(committed.outputs, executed.outputs, patterns)
            for name, text in {"figures" if key in _IMAGES else "outputs": text for key, text in told[::-1]}.items():
                found[name].append(f"cell {number}: {text}")
    reason = f"run each time: {notebook.unseen[0]}" if notebook.unseen else ""
    return [_row(notebook.path, name, faults, reason if name == "runs" else "") for name, faults in found.items()]


def _differences(old: Sequence[Any], new: Sequence[Any], patterns: Patterns) -> list[tuple[str, str]]:
    """Return MIME type and description of each way in which two lists of outputs differ, plain text first."""
    before, after = _flatten(old), _flatten(new)
    found = []
    for key in sorted(before.keys() | after.keys(), key=lambda key: (key != "text/plain", key)):
        pairs = list(zip(before[key], after[key], strict=False))
        if not after[key] or not before[key]:
            found.append((key, f"{key} is {'committed, not produced' if before[key] else 'produced, not committed'}"))
        elif len(before[key]) != len(after[key]):
            found.append((key, f"{len(before[key])} {key} are committed, {len(after[key])} produced"))
        else:
            told = (_tell(key, _sanitize(was, patterns), _sanitize(now, patterns)) for was, now in pairs)
            found += [(key, text) for text in told if text][:1]
    return found


def _flatten(outputs: Sequence[Any]) -> defaultdict[str, list[Any]]:
    """Return the values of each MIME type or field in order, streams merged and fields left out as nbval does it."""
    from nbval.plugin import coalesce_streams, transform_streams_for_comparison  # noqa: PLC0415 - loads pytest

    found: defaultdict[str, list[Any]] = defaultdict(list)
    for output in transform_streams_for_comparison(coalesce_streams(copy.deepcopy(list(outputs)))):
        for key, value in {**output, **output.get("data", {})}.items():
            if key not in _NOT_COMPARED and key != "data":
                found[key].append(value)
    return found


def _sanitize(value: Any, patterns: Patterns) -> Any:
    for regex, replacement in patterns if isinstance(value, str) else ():
        value = re.sub(regex, replacement, value)
    return value


def _tell(key: str, was: Any, now: Any) -> str:
    """Describe how a value has changed; empty if it has not."""
    if was == now:
        return ""
    if key in _IMAGES:
        return _tell_figure(key, was, now)
    old, new = ([*str(value).splitlines(), ""] for value in (was, now))
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    return f"{key} line {at + 1} is '{new[at].strip()[:80]}', committed '{old[at].strip()[:80]}'"


def _tell_figure(key: str, was: str, now: str) -> str:
    """Compare two pictures in blocks of 8 x 8 pixels, in which other edges of letters average out and data does not."""
    import numpy as np  # noqa: PLC0415 - only where bytes differ
    from PIL import Image  # noqa: PLC0415 - comes with matplotlib

    try:
        old, new = (Image.open(io.BytesIO(base64.b64decode(value))).convert("RGB") for value in (was, now))
    except (OSError, ValueError) as error:
        return f"{key} cannot be read ({error})"
    if any(abs(a - b) > max(1, FIGURE_SIZE * a) for a, b in zip(old.size, new.size, strict=True)):
        return "the figure is {} x {} pixels, committed {} x {}".format(*new.size, *old.size)
    blocks = (np.asarray(image.resize(old.size).reduce(8), dtype=float) / 255 for image in (old, new))
    a, b = blocks
    mean, most = np.abs(a - b).mean(), np.abs(a - b).max()
    if mean <= FIGURE_MEAN and most <= FIGURE_BLOCK:
        return ""
    return f"the figure differs by {mean:.2%} on average, {most:.0%} where it differs most"


# --- rewriting ---------------------------------------------------------------------------------------------------


def _rewrite(notebook: _Notebook, patterns: Patterns) -> tuple[str, int]:
    """Return the notebook file with its outputs brought up to date, and how many cells that has changed."""
    raw, split = json.loads(notebook.text), _nbformat().v4.rwbase.split_lines(copy.deepcopy(notebook.executed))
    disk = json.loads(json.dumps(split, sort_keys=True))
    cells = zip(raw["cells"], notebook.node.cells, notebook.executed.cells, disk["cells"], strict=True)
    count = n_changed = 0
    for cell, before, after, written in cells:
        was = copy.deepcopy(cell)
        for name in ("execution", "papermill"):
            cell["metadata"].pop(name, None)
        if cell["cell_type"] == "code":
            count += bool(before.source.strip())
            cell["execution_count"] = count if before.source.strip() else None
            if _differences(before.outputs, after.outputs, patterns):
                _keep_equal(cell["outputs"], before.outputs, after.outputs, written["outputs"], patterns)
                cell["outputs"] = written["outputs"]
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = cell["execution_count"]
        n_changed += cell != was
    raw["metadata"].pop("papermill", None)
    raw["metadata"].get("language_info", {}).pop("version", None)
    if raw == json.loads(notebook.text):
        return notebook.text, 0
    indent = re.match(r"\{\n( +)", notebook.text)
    is_ascii = notebook.text.isascii() and "\\u" in notebook.text
    text = json.dumps(raw, indent=len(indent[1]) if indent else 1, ensure_ascii=is_ascii)
    return text + "\n" * notebook.text.endswith("\n"), n_changed


def _keep_equal(
    raw: Sequence[Any], old: Sequence[Any], new: Sequence[Any], written: list[Any], patterns: Patterns
) -> None:
    """Put back, in place, the bytes of what compares equal, output by output and MIME type by MIME type."""
    if len(raw) != len(written):
        return
    for index, (stored, before, after) in enumerate(zip(raw, old, new, strict=True)):
        if before.output_type != after.output_type:
            continue
        differing = {key for key, _ in _differences([before], [after], patterns)}
        if not differing:
            written[index] = stored
        for mime in set(stored.get("data", {})) & set(written[index].get("data", {})) - differing:
            written[index]["data"][mime] = stored["data"][mime]


def _nbformat() -> Any:
    with without_grammar():
        import nbformat  # noqa: PLC0415 - heavy
    return nbformat
