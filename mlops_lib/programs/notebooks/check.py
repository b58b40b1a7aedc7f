"""Do the committed notebooks still say what they said? What CI asks on every change, and a person before a commit.

Each notebook is read (valid, executed in order, a typed signature, ruff) and run: in file order against one scratch
store, on warm kernels, its outputs compared with the committed ones (:mod:`mlops_lib.programs.notebooks.outputs`). Tags
that make nbval look away are not honoured. :func:`update_notebooks` writes the outputs anew where they differ, and
nothing else.

One run by our own driver instead of nbval's gives the comparison, the figures and the update, sees a dead kernel within
a second (nbval waits for its cell's deadline), and counts cells as JupyterLab does. What passes here passes stock
``pytest --nbval notebooks``, live displays excepted, which nbval does not know.

A notebook that passed is not run again while nothing that it depends on has changed: itself, the notebooks before it,
library, project file, rules, lock, installed packages, and the files that it read, as far as they were seen.

>>> check_notebooks(names=["02_train"]).passed  # 01_explore is run before it  # doctest: +SKIP
True
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_lib.errors import NotebookError, NotebookStoppedError, NotFoundError, ParameterError, WriteError
from mlops_lib.programs.notebooks import formats, outputs
from mlops_lib.programs.notebooks.keys import LIBRARY, compute_key, digest, fingerprint
from mlops_lib.programs.notebooks.outputs import Patterns, report_faults
from mlops_lib.project import find_project_file, load_project
from mlops_lib.report import Report, Row

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks.driver import Progress

CELL_TIMEOUT_S = 120
SANITIZER, RECORD = "sanitize.cfg", ".mlops/checked.json"
CONFIGURATION = ("requirements.lock", "pyproject.toml", "ruff.toml", ".ruff.toml")


def scratch_environment(folder: Path) -> dict[str, str]:
    """Return the variables under which committed outputs are made: a store and outputs of their own, one actor."""
    from mlops_lib.engines import warm  # noqa: PLC0415 - only who runs something needs it

    return {
        **warm.environment(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLOPS_OUTPUTS": str(folder),
        "MLOPS_STATE_DIR": "",  # this store is gone again in a minute
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
    keys, passed = _compute_keys(place, paths), place.passed
    if paths and not force and all(_holds(place, passed.get(path.name), key) for path, key in keys.items()):
        reason = "nothing it depends on has changed since it passed on {}; --all runs it"
        rows = [report_faults(f"{path.stem}: unchanged", [], reason.format(passed[path.name]["at"])) for path in named]
        return Report("Notebooks", tuple(rows), {"executed": 0})
    rules, patterns = outputs.check_sanitizer(place.sanitizer)
    notebooks = [_read(path) for path in paths]
    _lint(place, notebooks)
    _run(place, notebooks, cell_timeout_s, progress)
    rows, trusted = [rules], rules.status != "failed"
    for notebook in notebooks:
        new_rows = [*notebook.rows, *_compare(notebook, patterns)]
        rows += new_rows
        trusted = trusted and not notebook.unseen and all(row.status != "failed" for row in new_rows)
        passed.pop(notebook.path.name, None)
        if trusted:  # not if one before it failed: it ran on that one's store
            at = datetime.now(UTC).isoformat(timespec="seconds")
            passed[notebook.path.name] = {"key": keys[notebook.path], "inputs": notebook.inputs, "at": at}
    _write_record(place)
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
    rules, patterns = outputs.check_sanitizer(place.sanitizer)
    notebooks = [_read(path) for path in paths]
    rows = [rules, *(notebook.rows[0] for notebook in notebooks if notebook.node is None)]
    if all(row.status != "failed" for row in rows):
        _run(place, notebooks, cell_timeout_s, progress)
        rows += [n.report("runs", [n.fault] if n.fault else []) for n in notebooks if n.executed is not None]
    if not named or any(row.status == "failed" for row in rows):
        rows.append(Row("update", 0, "", "not_applicable" if named else "failed", "nothing was written"))
        return Report("Update of notebooks", tuple(rows))
    for notebook in [notebook for notebook in notebooks if notebook.path in named]:
        is_current = formats.is_current(notebook.text, notebook.node)
        before = notebook.text if is_current else formats.load_nbformat().writes(notebook.node) + "\n"
        text, n_cells = outputs.rewrite(before, notebook.node, notebook.executed, patterns)
        if text != notebook.text:
            _write(notebook.path, text)
        reason = "the file is as it was" if text == notebook.text else f"cells rewritten: {n_cells}"
        rows.append(Row(f"{notebook.path.stem}: update", n_cells, "", "passed", reason))
    return Report("Update of notebooks", tuple(rows))


# --- where, and whether anything has changed: without nbformat, pandas or MLflow ---------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a project's notebooks are; ``passed`` is what is known of each that has passed a check."""

    file: Path
    root: Path
    folder: Path
    passed: dict[str, Any]

    @property
    def sanitizer(self) -> Path:
        return self.folder / SANITIZER


def _find_place(file: Path | str | None) -> _Place:
    """Locate the notebooks; the project file is imported (seconds) only when it has changed since the last check."""
    path = find_project_file(file).resolve()
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
        project, passed, *folders = (record[name] for name in ("project", "passed", "root", "folder"))
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or cut short: everything is checked again
        project, passed, folders = "", {}, []
    if project == fingerprint(path):
        root, folder = (path.parent / each for each in folders)
    else:
        loaded = load_project(path)
        root, folder = loaded.root, loaded.root / loaded.notebooks
    return _Place(path, root.resolve(), folder.resolve(), passed)


def _write_record(place: _Place) -> None:
    record = {"project": fingerprint(place.file), "passed": place.passed}
    record |= {name: os.path.relpath(getattr(place, name), place.file.parent) for name in ("root", "folder")}
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
    """Return for each notebook the key of what is known beforehand, the notebooks before it included."""
    rules = (folder / name for folder in (place.root, place.folder) for name in CONFIGURATION)
    key, by_path = compute_key("check", [place.file, place.sanitizer, *rules]), {}
    for path in paths:
        key = by_path[path] = digest([key, path.name, fingerprint(path)])
    return by_path


def _holds(place: _Place, entry: Mapping[str, Any] | None, key: str) -> bool:
    if not entry or entry["key"] != key:
        return False
    return all(fingerprint(place.root / name) == content for name, content in entry["inputs"].items())


# --- what can be seen without running ----------------------------------------------------------------------------


@dataclass
class _Notebook:
    """A notebook on its way through the check: as read, what was found, and what came of its execution."""

    path: Path
    text: str
    node: Any = None  # None if it is no notebook
    rows: list[Row] = field(default_factory=list)
    executed: Any = None  # None if it was not run
    failed_cell: int = 0  # that it stopped in, from 1
    fault: str = ""  # why it did
    inputs: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)

    def report(self, check: str, faults: Sequence[str] = (), reason: str = "") -> Row:
        """Return the row of one check."""
        return report_faults(f"{self.path.stem}: {check}", faults, reason)


def _read(path: Path) -> _Notebook:
    """Read a notebook and look at how it is written."""
    notebook = _Notebook(path, path.read_text(encoding="utf-8"))
    try:
        node = formats.parse(notebook.text)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file is the answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        notebook.rows = [notebook.report("format", [f"not a valid notebook: {reason}"])]
    else:
        notebook.node = node
        is_old = not formats.is_current(notebook.text, node)
        checks = {
            "format": ["of an older format; --update upgrades it"] if is_old else (),
            "executed": _find_order_faults(node),
            "signature": _find_signature_faults(path, node),
        }
        notebook.rows = [notebook.report(name, list(faults)) for name, faults in checks.items()]
    return notebook


def _code_cells(notebook: Any) -> list[tuple[int, Any]]:
    """Return the code cells that are not empty, with their numbers from 1 as people count them."""
    return [(number, cell) for number, cell in enumerate(notebook.cells, start=1) if formats.runs(cell)]


def _find_order_faults(notebook: Any) -> Iterator[str]:
    cells = _code_cells(notebook)
    if cells and all(cell.execution_count is None for _, cell in cells):
        yield f"stripped: none of its {len(cells)} code cells was run, from cell {cells[0][0]} on"
        return
    for expected, (number, cell) in enumerate(cells, start=1):
        if cell.execution_count != expected:
            yield f"cell {number} has execution count {cell.execution_count}, needs {expected}"
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", ()):
                yield f"cell {number} holds an error: {output.ename}: {output.evalue[:80]}"


def _find_signature_faults(path: Path, notebook: Any) -> Iterator[str]:
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
            notebook.rows.append(notebook.report("ruff", faults[notebook.path.name]))
        else:
            name, reason = f"{notebook.path.stem}: ruff", "ruff is not installed"
            notebook.rows.append(Row(name, None, "", "not_applicable", reason))


# --- running -----------------------------------------------------------------------------------------------------


def _run(place: _Place, notebooks: Sequence[_Notebook], timeout_s: int, progress: Progress | None) -> None:
    """Execute the notebooks in order against one scratch store, up to the first that does not run to its end."""
    from mlops_lib.programs.notebooks.driver import Driver  # noqa: PLC0415 - loads pandas and Jupyter

    total, done = sum(len(_code_cells(notebook.node)) for notebook in notebooks if notebook.node), 0
    with tempfile.TemporaryDirectory(prefix="mlops-check-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        variables = {**scratch_environment(scratch), "MLOPS_PROJECT": str(place.file)}
        secrets = load_project(place.file).secrets
        for notebook in notebooks:
            if notebook.node is None:
                return

            def tell(*_: object, name: str = notebook.path.stem) -> None:
                nonlocal done
                done += 1
                if progress:
                    progress(done, total, name)

            notebook.executed = copy.deepcopy(notebook.node)
            kernel_name = notebook.node.metadata.get("kernelspec", {}).get("name", "python3")
            log = scratch / f"{notebook.path.stem}.jsonl"
            ignored = [str(LIBRARY), str(place.file), str(scratch)]
            begin = f"from mlops_lib.data import reads; reads.start({str(log)!r}, {ignored!r})"
            driver = Driver(notebook.path, cell_timeout_s=timeout_s, secrets=secrets, must_raise=False, progress=tell)
            copy_path = scratch / "executed" / notebook.path.name
            try:
                driver.drive(notebook.executed, kernel_name, copy_path, begin=begin, variables=variables)
            except NotebookStoppedError:
                raise KeyboardInterrupt from None
            except NotebookError as error:
                notebook.fault = _explain(error)
            except Exception as error:  # noqa: BLE001 - a kernel that does not start is an answer too
                notebook.fault = f"no kernel: {type(error).__name__}: {str(error)[:200]}"
            if driver.has_left:
                notebook.fault = f"cell {driver.cell}: it called exit()"
            notebook.failed_cell = driver.cell
            _note_inputs(place, notebook, scratch, log)
            if notebook.fault:
                return


def _explain(error: NotebookError) -> str:
    """Return in a few words why a notebook did not run to its end."""
    facts = error.facts
    if error.case == "cell":
        return f"cell {facts['cell']} raised {facts['ename']}: {facts['evalue'][:200]}"
    if error.case == "deadline":
        return f"cell {facts['cell']} was not done after {facts['timeout_s']:g} s"
    if error.case == "kernel_died":
        last_line = f": {facts['last_line'][:120]}" if facts["last_line"] else ""
        return f"cell {facts['cell']}: the kernel died{last_line}"
    return ""  # it ended early: by exit(), of which the driver tells, or because its author wants a cell skipped


def _note_inputs(place: _Place, notebook: _Notebook, scratch: Path, log: Path) -> None:
    """Keep the files that a run has read, and the names beside them; what is in the scratch store follows from them."""
    from mlops_lib.data import reads  # noqa: PLC0415

    entries, notebook.unseen = reads.read_log(log)
    for entry in entries:
        path = Path(entry["name"])
        if entry["kind"] == "file" and not path.is_relative_to(scratch):
            notebook.inputs[os.path.relpath(path, place.root)] = entry["content"]
            if path.suffix != ".py":
                notebook.inputs[os.path.relpath(path.parent, place.root)] = fingerprint(path.parent)


def _compare(notebook: _Notebook, patterns: Patterns) -> list[Row]:
    """Return the rows on how a notebook ran, up to the cell that it stopped in."""
    faults: dict[str, list[str]] = {"runs": [notebook.fault] if notebook.fault else [], "outputs": [], "figures": []}
    if notebook.executed is None:
        reason = "a notebook before it did not run to its end" if notebook.node else "it cannot be read"
        names = [f"{notebook.path.stem}: {name}" for name in faults]
        return [Row(name, None, "0 faults", "not_applicable", f"not run: {reason}") for name in names]
    ran = zip(notebook.node.cells, notebook.executed.cells, strict=True)
    for number, (committed, executed) in enumerate(ran, start=1):
        if committed.cell_type == "code" and not (notebook.fault and number >= notebook.failed_cell):
            differences = outputs.find_differences(committed.outputs, executed.outputs, patterns)
            worst = {"figures" if key in outputs.IMAGES else "outputs": text for key, text in differences[::-1]}
            for name, text in worst.items():
                faults[name].append(f"cell {number}: {text}")
    reason = f"run each time: {notebook.unseen[0]}" if notebook.unseen else ""
    return [notebook.report(name, each, reason if name == "runs" else "") for name, each in faults.items()]
