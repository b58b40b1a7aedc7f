"""Do the committed notebooks still say what they said? What CI asks on every change, and a person before a commit.

Each notebook of the project's folder and those below it is read (valid, executed in order; a typed signature and ruff
where the project asks for them) and run on a warm kernel against a scratch store: its own, or one for all in the order
of their names where the project declares a chain. Outputs are compared with the committed ones
(:mod:`mlops_lib.programs.notebooks.outputs`). Tags that make nbval look away are not honoured. :func:`update_notebooks`
writes the outputs anew where they differ, and nothing else.

One run by our own driver instead of nbval's gives the comparison, the figures and the update, sees a dead kernel within
a second (nbval waits for its cell's deadline), and counts cells as JupyterLab does. What passes here passes stock
``pytest --nbval notebooks``, live displays excepted, which nbval does not know.

A notebook that passed is not run again while nothing that it depends on has changed: itself, the notebooks before it,
library, project file, rules, lock, installed packages, and the files that it read, as far as they were seen.

>>> check_notebooks(names=["02_train"]).passed  # doctest: +SKIP
True
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_lib.errors import (
    NotebookError,
    NotebookStoppedError,
    ParameterError,
)
from mlops_lib.programs.notebooks import formats, outputs, places
from mlops_lib.programs.notebooks.keys import LIBRARY, fingerprint
from mlops_lib.programs.notebooks.outputs import Patterns, report_faults
from mlops_lib.project import load_project
from mlops_lib.report import Report, Row

if TYPE_CHECKING:
    from mlops_lib.programs.notebooks.driver import Progress
    from mlops_lib.project import Project

CELL_TIMEOUT_S = 120
OF_ANOTHER_STORE = {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"}


def scratch_environment(folder: Path) -> dict[str, str]:
    """Return the variables under which committed outputs are made: a store and outputs of their own, one actor."""
    from mlops_lib.engines import warm  # noqa: PLC0415 - only who runs something needs it

    return {
        **warm.environment(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (folder / "mlartifacts").as_uri(),  # of experiments that plain MLflow makes
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
        The project file; by default found as :func:`mlops_lib.project.find_project_file` does, or else this folder.
    names : sequence of str
        Notebooks, by path, name or stem; by default all. In a chain those before them are checked too.
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
    place = places.find_place(file)
    named, paths = places.select_notebooks(place, names)
    keys, passed = places.compute_keys(place, paths), place.passed
    if (
        paths
        and not force
        and all(places.holds(place, passed.get(place.name(path)), key) for path, key in keys.items())
    ):
        reason = "nothing it depends on has changed since it passed on {}; --all runs it"
        at = {place.name(path): passed[place.name(path)]["at"] for path in named}
        rows = [report_faults(f"{name}: unchanged", [], reason.format(at[name])) for name in at]
        return Report("Notebooks", tuple(rows), {"executed": 0})
    rules, patterns = outputs.check_sanitizer(place.sanitizer)
    notebooks = [_read(place, path) for path in paths]
    if place.has_style:
        _lint(place, notebooks)
    _run(place, notebooks, cell_timeout_s, progress)
    rows, trusted = [rules], rules.status != "failed"
    for notebook in notebooks:
        new_rows = [*notebook.rows, *_compare(notebook, patterns, place.tolerance)]
        rows += new_rows
        holds = not notebook.unseen and all(row.status != "failed" for row in new_rows)
        passed.pop(notebook.name, None)
        if trusted and holds:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            passed[notebook.name] = {"key": keys[notebook.path], "inputs": notebook.inputs, "at": when}
        trusted = trusted and (holds or not place.is_chain)  # in a chain it ran on the store of those before it
    places.write_record(place)
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
    (``metadata.execution``, papermill's, the Python version) go. If a cell fails nothing of its notebook is written,
    and in a chain nothing at all. An update proves nothing: the next check runs.

    Raises
    ------
    NotFoundError, ProjectError, WriteError
    """
    place = places.find_place(file)
    named, paths = places.select_notebooks(place, names)
    rules, patterns = outputs.check_sanitizer(place.sanitizer)
    notebooks = [_read(place, path) for path in paths]
    rows = [rules, *(notebook.rows[0] for notebook in notebooks if notebook.node is None)]
    if rules.status != "failed" and not (place.is_chain and rows[1:]):
        _run(place, notebooks, cell_timeout_s, progress)
        rows += [n.report("runs", [n.fault] if n.fault else []) for n in notebooks if n.executed is not None]
    ran = [each for each in notebooks if each.path in named and each.executed is not None and not each.fault]
    if not ran or (place.is_chain and any(row.status == "failed" for row in rows)):
        rows.append(Row("update", 0, "", "not_applicable" if named else "failed", "nothing was written"))
        return Report("Update of notebooks", tuple(rows))
    for notebook in ran:
        is_current = formats.is_current(notebook.text, notebook.node)
        before = notebook.text if is_current else formats.load_nbformat().writes(notebook.node) + "\n"
        text, n_cells = outputs.rewrite(before, notebook.node, notebook.executed, patterns, place.tolerance)
        if text != notebook.text:
            places.write_text(notebook.path, text)
        reason = "the file is as it was" if text == notebook.text else f"cells rewritten: {n_cells}"
        rows.append(Row(f"{notebook.name}: update", n_cells, "", "passed", reason))
    return Report("Update of notebooks", tuple(rows))


# --- what can be seen without running ----------------------------------------------------------------------------


@dataclass
class _Notebook:
    """A notebook on its way through the check: as read, what was found, and what came of its execution."""

    path: Path
    name: str
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
        return report_faults(f"{self.name}: {check}", faults, reason)


def _read(place: places.Place, path: Path) -> _Notebook:
    """Read a notebook and look at how it is written."""
    notebook = _Notebook(path, place.name(path), path.read_text(encoding="utf-8"))
    try:
        node = formats.parse(notebook.text)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the file is the answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        notebook.rows = [notebook.report("format", [f"not a valid notebook: {reason}"])]
    else:
        notebook.node = node
        is_old = not formats.is_current(notebook.text, node)
        checks: dict[str, Iterable[str]] = {
            "format": ["of an older format; --update upgrades it"] if is_old else (),
            "executed": _find_order_faults(node),
        }
        if place.has_style:
            checks["signature"] = _find_signature_faults(path, node)
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


def _lint(place: places.Place, notebooks: Sequence[_Notebook]) -> None:
    """Add a row for ``ruff check`` and ``ruff format`` to each notebook."""
    readable = [notebook for notebook in notebooks if notebook.node]
    beside = Path(sys.executable).with_name("ruff")
    ruff = str(beside) if beside.exists() else shutil.which("ruff")
    faults: dict[Path, list[str]] = defaultdict(list)
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
                faults[place.root / fault["filename"]].append(f"{at}: {fault['code']} {fault['message']}")
            for name, cell in re.findall(r"^--- (.*\.ipynb):cell (\d+)\n.*\n@@", form.stdout, re.MULTILINE):
                faults[place.root / name].append(f"cell {cell} is not as ruff format writes it")
    for notebook in readable:
        if ruff:
            notebook.rows.append(notebook.report("ruff", faults[notebook.path]))
        else:
            name, reason = f"{notebook.name}: ruff", "ruff is not installed"
            notebook.rows.append(Row(name, None, "", "not_applicable", reason))


# --- running -----------------------------------------------------------------------------------------------------


def _run(place: places.Place, notebooks: Sequence[_Notebook], timeout_s: int, progress: Progress | None) -> None:
    """Execute the notebooks, each on a scratch store; a chain on one, up to the first that does not run to its end."""
    total, done = sum(len(_code_cells(notebook.node)) for notebook in notebooks if notebook.node), 0

    def tell(name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, name)

    project = load_project(place.file, or_here=True)
    for group in [notebooks] if place.is_chain else [[notebook] for notebook in notebooks]:
        _run_on_one_store(place, project, group, timeout_s, tell)


def _run_on_one_store(
    place: places.Place,
    project: Project,
    notebooks: Sequence[_Notebook],
    timeout_s: int,
    progress: Callable[[str], None],
) -> None:
    from mlops_lib.programs.notebooks.driver import Driver  # noqa: PLC0415 - loads pandas and Jupyter

    with tempfile.TemporaryDirectory(prefix="mlops-check-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder).resolve()
        variables = {**scratch_environment(scratch), **({"MLOPS_PROJECT": str(place.file)} if place.file else {})}
        environ = {name: value for name, value in project.environ.items() if name not in OF_ANOTHER_STORE}
        secrets = project.secrets
        for notebook in notebooks:
            if notebook.node is None:
                return

            def tell(*_: object, name: str = notebook.name) -> None:
                progress(name)

            notebook.executed = copy.deepcopy(notebook.node)
            kernel_name = notebook.node.metadata.get("kernelspec", {}).get("name", "python3")
            log = scratch / f"{notebook.path.stem}.jsonl"
            ignored = [str(LIBRARY), str(place.file), str(scratch)]
            begin = f"from mlops_lib.data import reads; reads.start({str(log)!r}, {ignored!r})"
            driver = Driver(notebook.path, cell_timeout_s=timeout_s, secrets=secrets, must_raise=False, progress=tell)
            copy_path = scratch / "executed" / notebook.path.name
            try:
                driver.drive(
                    notebook.executed, kernel_name, copy_path, begin=begin, environ=environ, variables=variables
                )
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


def _note_inputs(place: places.Place, notebook: _Notebook, scratch: Path, log: Path) -> None:
    """Keep the files that a run has read, and the names beside them; what is in the scratch store follows from them."""
    from mlops_lib.data import reads  # noqa: PLC0415

    entries, notebook.unseen = reads.read_log(log, "\n".join(cell.source for _, cell in _code_cells(notebook.node)))
    for entry in entries:
        path = Path(entry["name"])
        if entry["kind"] == "file" and not path.is_relative_to(scratch):
            notebook.inputs[os.path.relpath(path, place.root)] = entry["content"]
            if path.suffix != ".py":
                notebook.inputs[os.path.relpath(path.parent, place.root)] = fingerprint(path.parent)


def _compare(notebook: _Notebook, patterns: Patterns, tolerance: float) -> list[Row]:
    """Return the rows on how a notebook ran, up to the cell that it stopped in."""
    faults: dict[str, list[str]] = {"runs": [notebook.fault] if notebook.fault else [], "outputs": [], "figures": []}
    if notebook.executed is None:
        reason = "a notebook before it did not run to its end" if notebook.node else "it cannot be read"
        names = [f"{notebook.name}: {name}" for name in faults]
        return [Row(name, None, "0 faults", "not_applicable", f"not run: {reason}") for name in names]
    ran = zip(notebook.node.cells, notebook.executed.cells, strict=True)
    for number, (committed, executed) in enumerate(ran, start=1):
        if committed.cell_type == "code" and not (notebook.fault and number >= notebook.failed_cell):
            differences = outputs.find_differences(committed.outputs, executed.outputs, patterns, tolerance)
            worst = {"figures" if key in outputs.IMAGES else "outputs": text for key, text in differences[::-1]}
            for name, text in worst.items():
                faults[name].append(f"cell {number}: {text}")
    reason = f"run each time: {notebook.unseen[0]}" if notebook.unseen else ""
    return [notebook.report(name, each, reason if name == "runs" else "") for name, each in faults.items()]
