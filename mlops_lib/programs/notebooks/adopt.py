"""What stands between somebody's notebook and one that is tracked, parameterized and checked; and the least change.

Nothing is run: the cells are read as Python, with magics as IPython translates them. :func:`write_parameters` tags the
cell that holds nothing but literals, or puts a new one in its place, and touches no other cell and no byte around them.

>>> print(examine_notebook(Path("analysis.ipynb")))  # doctest: +SKIP
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlops_lib import data, redaction
from mlops_lib.errors import ParameterError
from mlops_lib.programs.notebooks import formats
from mlops_lib.programs.notebooks.run import read_notebook
from mlops_lib.programs.notebooks.signature import read_signature
from mlops_lib.report import Report, Row

# By name of a check: the sentence that says what to do.
ADVICE = {
    "readable": "make each cell Python that a kernel can run",
    "kernel": "choose a Python kernel in JupyterLab and save: other programs ask for its name and language",
    "order": "restart and run all, so that the outputs are those of this code",
    "imports": "install what is missing, and put it into the lock",
    "installs": "put packages into the lock: an installation in a cell changes with the day",
    "paths": "use paths below the project's folder: this one is on no other machine",
    "secrets": "take it from os.environ: a notebook is shown to everybody",
    "network": "read the data once into a file, or a run tomorrow sees other data",
    "input": "nobody answers when it runs on schedule: make it a parameter",
    "end": "end early with notebooks.stop('reason'), which does not count as a failure",
    "printed": "ids, times and addresses differ in each run: do not print them",
    "parameters": "move literals that somebody may want to change into the cell with the tag 'parameters'",
}
_ABSOLUTE = re.compile(r"(/(home|Users|root|mnt|data|tmp|var|opt|srv|content|kaggle)/|[A-Za-z]:[\\/]|~/)")
# Also `pip install` alone, which IPython takes for a magic, and in a cell of bash.
_INSTALL = re.compile(
    r"^([ \t]*)[!%]?[ \t]*(?:\S+ -m )?(?:pip3?|conda|mamba|uv|apt|apt-get)\b.*\b(?:install|add)\b.*$", re.MULTILINE
)
_NETWORK = {"requests", "urllib", "urllib3", "httpx", "aiohttp", "socket", "ftplib", "boto3", "gdown", "kagglehub"}
_CHANGING = {"time", "now", "today", "utcnow", "uuid1", "uuid4", "getpid", "id", "perf_counter", "monotonic"}
_CHANGING |= {"gethostname", "process_time"}  # what is called, and what is asked of an object:
_IDS = {"run_id", "experiment_id", "artifact_uri"}
_SHELL = {"system", "getoutput", "run_cell_magic", "run_line_magic"}  # what IPython makes of `!` and magics
_TAG = "parameters"


def examine_notebook(path: Path) -> Report:
    """Say what stands between a notebook and one that is tracked, parameterized and checked; nothing is run.

    Returns
    -------
    Report
        One row a check, with the cells in question (from 1, as people count them) and what to do.

    Raises
    ------
    NotebookError
        It is no notebook.
    """
    text, notebook = _read(path)
    faults: dict[str, list[str]] = {name: [] for name in ADVICE}
    trees, faults["readable"] = _read_trees(notebook)
    run = {number: cell for number, cell in enumerate(notebook.cells, start=1) if formats.runs(cell)}
    faults["installs"] += [f"cell {number}" for number, cell in run.items() if _INSTALL.search(cell.source)]
    counts = [cell.execution_count for cell in run.values()]
    if counts != list(range(1, len(counts) + 1)):
        order = f"cells were run as {', '.join(map(str, counts))}" if any(counts) else "it was never run"
        faults["order"].append(order)
    for number, tree in trees.items():
        for name, found in _look(tree, path.parent):
            faults[name].append(f"cell {number}: {found}")
    faults["kernel"] += _find_kernel_faults(json.loads(text).get("metadata", {}))
    faults["parameters"] += _find_parameter_faults(notebook, path, trees)
    rows = tuple(_row(name, list(dict.fromkeys(each))) for name, each in faults.items())
    return Report(f"'{path.name}' as a tracked, parameterized, checked notebook", rows)


def _row(name: str, found: Sequence[str]) -> Row:
    shown = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
    return Row(name, len(found), "0", "failed" if found else "passed", f"{shown}. {ADVICE[name]}" if found else "")


def _read(path: Path) -> tuple[str, Any]:
    """Return a notebook file's text, with the ends of lines that it has, and the notebook."""
    notebook = read_notebook(path)
    return path.read_bytes().decode("utf-8"), notebook


def translate_magics(source: str) -> str:
    """Return a cell's code as the Python that IPython makes of its magics and ``!`` lines."""
    from IPython.core.inputtransformer2 import TransformerManager  # noqa: PLC0415 - 0.3 s

    return str(TransformerManager().transform_cell(source))  # type: ignore[no-untyped-call]


def _find_kernel_faults(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield what a notebook's metadata, as they are in the file, do not say of its kernel."""
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - only who reads notebooks needs it

    spec = metadata.get("kernelspec", {})
    if "name" not in spec:
        yield "it names no kernel"
    elif spec["name"] not in KernelSpecManager().find_kernel_specs():
        yield f"its kernel '{spec['name']}' is not on this machine"
    if "language" not in spec and "name" not in metadata.get("language_info", {}):
        yield "it names no language"


def _look(tree: ast.Module, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield check and finding of everything in a cell that would not work or not be the same elsewhere."""
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _look_at_import(node, folder, is_optional=id(node) in tried)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _look_at_text(node.value)
        elif isinstance(node, ast.Call):
            yield from _look_at_call(node)
        for name, value in _find_named(node):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
                yield from [("secrets", name)] if redaction.is_secret_name(name) else []
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        yield from _find_changing(last)


def _find_named(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Yield names and what is given to them: variables, attributes, keys, keywords."""
    if isinstance(node, ast.keyword):
        yield node.arg or "", node.value
    elif isinstance(node, ast.Dict):
        yield from ((str(getattr(key, "value", "")), value) for key, value in zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            key = getattr(target.slice, "value", "") if isinstance(target, ast.Subscript) else _name_of(target)
            yield str(key), node.value


def _find_changing(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what differs in each run, of what a cell shows."""
    called = {_name_of(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
    names = {_name_of(inner) for inner in ast.walk(node)}
    yield from (("printed", name) for name in sorted((called & _CHANGING) | (names & _IDS)))


def _look_at_import(node: ast.Import | ast.ImportFrom, folder: Path, *, is_optional: bool) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ImportFrom) and node.level:
        return
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    for library in dict.fromkeys(name.partition(".")[0] for name in names):
        if not is_optional and not _is_there(library, folder):
            yield "imports", library
        if library in _NETWORK:
            yield "network", library


def _look_at_call(node: ast.Call) -> Iterator[tuple[str, str]]:
    called = _name_of(node.func)
    if called in {"input", "getpass"}:
        yield "input", f"{called}()"
    elif called in {"exit", "quit", "_exit"}:
        yield "end", ast.unparse(node)
    elif called in {"print", "display"}:
        yield from _find_changing(node)
    elif called in _SHELL:
        shell = " ".join(str(each.value) for each in node.args if isinstance(each, ast.Constant))
        yield from (
            ("network", address) for address in re.findall(r"\b(?:https?|s3|gs|ftp)://[^\s/@?]+(?=[\s/?]|$)", shell)
        )


def _name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else str(getattr(node, "id", ""))


def _look_at_text(text: str) -> Iterator[tuple[str, str]]:
    if _ABSOLUTE.match(text):
        yield "paths", text[:60]
    if re.match(r"(https?|s3|gs|ftp)://", text):
        yield "network", re.sub(r"//[^/@]*@", "//…@", text).partition("?")[0][:60]
    if redaction.is_secret_value(text):
        yield "secrets", f"{text[:4]}…"


def _is_there(library: str, folder: Path) -> bool:
    """Whether an import would be found: installed, or a file beside the notebook."""
    if library in sys.stdlib_module_names or (folder / f"{library}.py").exists() or (folder / library).is_dir():
        return True
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def _find_parameter_faults(notebook: Any, path: Path, trees: dict[int, ast.Module]) -> Iterator[str]:
    """Yield what is wrong with the parameters cell, or which literals are worth one."""
    try:
        signature = read_signature(notebook, path)
    except ParameterError as error:
        yield f"{error.reason}; expected {error.expected}"
        return
    if any(_TAG in cell.metadata.get("tags", ()) for cell in notebook.cells):
        untyped = [each.name for each in signature.values() if not _is_annotated(each.name, trees)]
        if untyped:
            yield f"without a type: {', '.join(untyped)}"
        if signature:
            return
    literals = find_literals(trees)
    yield from (f"cell {number}: {', '.join(names)}" for number, names in literals.items())
    if not literals and not any(_TAG in cell.metadata.get("tags", ()) for cell in notebook.cells):
        yield "there is no cell with the tag 'parameters'"


def _is_annotated(name: str, trees: dict[int, ast.Module]) -> bool:
    return any(
        isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == name
        for tree in trees.values()
        for statement in tree.body
    )


def find_literals(trees: dict[int, ast.Module]) -> dict[int, list[str]]:
    """Return by cell the names that would be parameters: given a literal, never another value, and used afterwards."""
    given, used = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for number, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else given)[node.id].append(number)
    found: defaultdict[int, list[str]] = defaultdict(list)
    for number, tree in trees.items():
        for name in (name for statement in tree.body for name in _literal_names(statement)):
            is_used = name in used and min(used[name]) >= number  # what is used before has another value then
            if len(given[name]) == 1 and is_used and not name.startswith("_"):
                found[number].append(name)
    return dict(found)


def _literal_names(statement: ast.stmt) -> list[str]:
    """Return the name that a statement gives a plain literal, if it does nothing else."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or len(targets) != 1 or statement.value is None:
        return []
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return []
    return [targets[0].id] if isinstance(targets[0], ast.Name) else []


def write_parameters(path: Path) -> str:
    """Give a notebook its parameters cell, if it has none; return what was done, or nothing.

    A cell of nothing but literals that are used afterwards and never overwritten gets the tag; otherwise a cell without
    parameters is put before the first code cell. Everything else in the file keeps its bytes.

    Raises
    ------
    NotebookError, WriteError
        Nothing was written.
    """
    text, notebook = _read(path)
    raw = json.loads(text)
    if "cells" not in raw or any(_TAG in cell.get("metadata", {}).get("tags", ()) for cell in raw["cells"]):
        return ""
    code = [n for n, cell in enumerate(notebook.cells) if formats.runs(cell)]
    literals = find_literals(_read_trees(notebook)[0])
    chosen = next((n for n in code if _is_parameters(notebook.cells[n].source, literals.get(n + 1, []))), None)
    if chosen is not None:
        metadata = raw["cells"][chosen].setdefault("metadata", {})
        metadata["tags"] = [*metadata.get("tags", ()), _TAG]
        done = f"cell {chosen + 1} has the tag '{_TAG}' now"
    else:
        place = code[0] if code else len(raw["cells"])
        cell: dict[str, Any] = {"cell_type": "code", "execution_count": None}
        if (raw["nbformat"], raw.get("nbformat_minor", 0)) >= (4, 5):
            taken = {each.get("id") for each in raw["cells"]}
            cell["id"] = _TAG if _TAG not in taken else uuid.uuid4().hex[:8]
        cell |= {"metadata": {"tags": [_TAG]}, "outputs": [], "source": ["# name: type = default  # help"]}
        raw["cells"].insert(place, cell)
        done = f"cell {place + 1} is new, for parameters"
    with data.atomic_write(path) as file:
        file.write(formats.write_like(text, raw).encode())
    return done


def _read_trees(notebook: Any) -> tuple[dict[int, ast.Module], list[str]]:
    """Return the code cells that are Python, by number from 1, and what is wrong with the others."""
    trees, faults = {}, []
    for number, cell in enumerate(notebook.cells, start=1):
        if formats.runs(cell):
            try:
                trees[number] = ast.parse(translate_magics(_INSTALL.sub(r"\1pass", cell.source)))
            except SyntaxError as error:
                faults.append(f"cell {number} line {error.lineno} is no Python")
    return trees, faults


def _is_parameters(source: str, names: Sequence[str]) -> bool:
    """Whether a cell is nothing but literals, each of which a run may be given: no secret, none overwritten."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    given = [name for statement in body for name in _literal_names(statement)]
    values = [inner.value for statement in body for inner in ast.walk(statement) if isinstance(inner, ast.Constant)]
    is_secret = any(map(redaction.is_secret_name, given)) or any(
        redaction.is_secret_value(value) for value in values if isinstance(value, str)
    )
    return bool(given) and len(given) == len(body) and set(given) <= set(names) and not is_secret
