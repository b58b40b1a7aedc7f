"""Notebooks as people have them, in a folder without a project: run as papermill runs them, checked, and adopted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import papermill
import pytest
import servers
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from mlops_lib.cli.commands import main
from mlops_lib.errors import NotebookError, ProjectError
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks import outputs
from mlops_lib.programs.notebooks.adopt import examine_notebook, write_parameters
from mlops_lib.programs.notebooks.places import Place, select_notebooks
from mlops_lib.project import load_project

# By name: its code cells; "#p " begins a parameters cell, "#x " one that is expected to raise. The last word of the
# name says what becomes of it.
NOTEBOOKS: dict[str, list[str]] = {
    "untyped parameters": ["#p alpha = 0.5\nmsg = None\nnames = ['a', 'b']", "print(alpha, msg, names)"],
    "no parameters": ["x = 3", "x ** 2"],
    "line magics": ["%time total = sum(range(10))\nprint(total)", "%who_ls int", "who = %pwd\nprint(type(who))"],
    "cell magics": ["%%capture held\nprint('hidden')", "held.stdout", "%%time\n1 + 1"],
    "shell": ["%%bash\necho from the shell; ls *.txt"],
    "widgets": ["import ipywidgets\nipywidgets.IntSlider(3)", "print('moved')"],
    "relative file": ["open('beside.txt').read()"],
    "subfolder/deep one": ["'deep'"],
    "plain mlflow": [
        "import mlflow\nmlflow.log_metric('loss', 0.25)",
        "mlflow.set_experiment('of my own')\nwith mlflow.start_run(nested=True):\n    mlflow.log_text('x', 'a.txt')",
    ],
    "warning": ["import warnings\nwarnings.warn('old, at ' + hex(id(warnings)))", "print('went on')"],
    "stderr": ["import sys\nprint('progress', file=sys.stderr)"],
    "progress bar": ["from tqdm import tqdm\nfor _ in tqdm(range(3)):\n    pass", "print('done')"],
    "carriage returns": ["for n in range(3):\n    print(f'\\r{n}', end='')"],
    "expected error": ["#x 1 / 0", "'after it'"],
    "table": ["import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': [0.5, None]})"],
    "figure": ["%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"],
    "display": [
        "from IPython.display import HTML, Markdown, display\nh = display(HTML('<b>1</b>'), display_id='a')",
        "h.update(HTML('<b>2</b>'))",
        "Markdown('*two*')",
    ],
    "await": ["import asyncio\nawait asyncio.sleep(0, 'awaited')"],
    "object address": ["class Thing: pass\nThing()", "import os\nprint(f'pid {os.getpid()} in /tmp/x{os.getpid()}')"],
    "unicode": ["größe = 'ß → ∞'\ngröße"],
    "json": ["from IPython.display import JSON\nJSON({'a': [1, {'b': None}]})"],
    "exit": ["print('before')", "import sys\nsys.exit(0)", "print('after')"],
    "fails": ["print('before')", "undefined_name"],
}
FAIL = {"exit", "fails"}


def write(path: Path, cells: list[str], **metadata: Any) -> Path:
    """Write a notebook that was never run."""
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(metadata={"kernelspec": spec, **metadata})
    notebook.cells.append(new_markdown_cell("# Somebody's"))
    for source in cells:
        tags = {"#p ": ["parameters"], "#x ": ["raises-exception"]}.get(source[:3])
        notebook.cells.append(new_code_cell(source[3 if tags else 0 :], metadata={"tags": tags} if tags else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def kernel_server() -> Iterator[None]:
    """Give the tests of this file a kernel server of their own."""
    with servers.own_kernel_server("MLOPS_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLOPS_OUTPUTS"):
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of notebooks, with no project above it, as the working folder."""
    place = tmp_path / "analysis"
    for name, cells in NOTEBOOKS.items():
        write(place / f"{name}.ipynb", cells)
    (place / "beside.txt").write_text("beside")
    monkeypatch.chdir(place)
    return place


def seen(notebook: Any) -> list[Any]:
    """Return the outputs of each code cell, without what no two runs have in common."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "injected" not in str(cell.metadata)]
    return [[] if cell.metadata.get("papermill", {}).get("status") == "pending" else cell.outputs for cell in cells]


def test_twenty_notebooks_end_and_say_what_they_do_under_papermill(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = load_project(or_here=True)
    notebooks.reap_dead_runs(project)  # makes the store, which MLflow would tell of
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    assert (project.name, project.file, project.root) == ("analysis", None, folder)
    for name in NOTEBOOKS:
        theirs = tmp_path / "papermill" / f"{Path(name).name}.ipynb"
        theirs.parent.mkdir(exist_ok=True)
        try:
            papermill.execute_notebook(f"{name}.ipynb", str(theirs), progress_bar=False, kernel_name="python3")
        except PapermillExecutionError:
            assert name in {*FAIL, "expected error"}  # papermill takes no notice of nbclient's tag; we do
        try:
            ours = notebooks.run_notebook(project, name).executed_path
        except NotebookError as error:
            ours = error.executed_path  # type: ignore[attr-defined]
        pairs = zip(seen(nbformat.read(theirs, 4)), seen(nbformat.read(ours, 4)), strict=True)
        for before, after in pairs:
            told = {"error"} | (
                {"stream"} if name == "plain mlflow" else set()
            )  # MLflow tells of a new experiment once
            same = [[each for each in found if each.output_type not in told] for found in (before, after)]
            assert outputs.find_differences(*same, outputs.ALWAYS) == [], name
            errors = [[each.ename for each in found if each.output_type == "error"] for found in (before, after)]
            assert errors[0] == errors[1], name


def test_an_experiment_that_plain_mlflow_makes_keeps_its_files_beside_the_store(folder: Path) -> None:
    notebooks.run_notebook(load_project(or_here=True), "plain mlflow")
    assert not (folder / "mlruns").exists()
    assert list((folder / "mlartifacts").rglob("a.txt"))


def test_check_passes_right_after_an_update_and_leaves_nothing_behind(folder: Path) -> None:
    before = {path.relative_to(folder) for path in folder.rglob("*")}
    report = notebooks.update_notebooks()
    assert {row.name for row in report.failures} == {"exit: runs", "fails: runs"}, str(report)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == before
    for name in FAIL:
        (folder / f"{name}.ipynb").unlink()
    report = notebooks.check_notebooks()
    assert not report.failures, str(report)
    assert "subfolder/deep one: outputs" in {row.name for row in report.rows}
    assert not any("ruff" in row.name or "signature" in row.name for row in report.rows)
    assert not (folder / "mlruns").exists()


def test_one_failing_notebook_stops_no_other_unless_they_are_a_chain(tmp_path: Path) -> None:
    for name in ("a", "b/c", ".ipynb_checkpoints/a", "runs/x", "site-packages/y"):
        write(tmp_path / f"{name}.ipynb", ["1"])
    alone = Place(None, tmp_path, tmp_path, is_chain=False, has_style=False, tolerance=0.0, passed={})
    chain = Place(None, tmp_path, tmp_path, is_chain=True, has_style=False, tolerance=0.0, passed={})
    a, c = tmp_path / "a.ipynb", tmp_path / "b/c.ipynb"
    assert select_notebooks(alone, []) == ([a, c], [a, c])
    assert select_notebooks(alone, ["c"]) == ([c], [c])
    assert select_notebooks(chain, ["b/c"]) == ([c], [a, c])


def test_numbers_may_differ_as_far_as_the_project_says() -> None:
    def differ(was: str, now: str, tolerance: float) -> bool:
        old, new = ([{"output_type": "execute_result", "data": {"text/plain": text}}] for text in (was, now))
        return bool(outputs.find_differences(*map(nbformat.from_dict, (old, new)), [], tolerance))

    assert differ("loss 0.123456", "loss 0.123457", 0.0)
    assert not differ("loss 0.123456", "loss 0.123457", 1e-4)
    assert differ("loss 0.123456", "loss 0.123457", 1e-7)
    assert differ("loss 0.1", "gain 0.1", 0.5)
    assert differ("v1 2", "v2 2", 0.5), "a digit of a word is no number"
    assert not differ("a  9.99\nb  1.0", "a  10.0\nb  1.0", 0.01)


def test_run_without_a_project_says_where_its_runs_go(folder: Path) -> None:
    done = CliRunner().invoke(main, ["run", "no parameters.ipynb"])
    assert done.exit_code == 0
    assert "no project file: runs go into the experiment 'analysis' of sqlite:///" in done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("analysis")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"]
    typed = CliRunner().invoke(main, ["run", "untyped parameters", "-p", "alpha=2", "-p", "msg=hi"])
    assert typed.exit_code == 0, typed.output


def test_a_named_project_that_is_missing_is_not_replaced_by_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProjectError):
        load_project(folder / "gone.py", or_here=True)
    monkeypatch.setenv("MLOPS_PROJECT", "gone.py")
    with pytest.raises(ProjectError):
        load_project(or_here=True)


@pytest.mark.parametrize(
    ("check", "cell", "shown"),
    [
        ("readable", "def (:", "is no Python"),
        ("imports", "import no_such_library_of_ours", "no_such_library_of_ours"),
        ("installs", "!pip install pandas", "cell 2"),
        ("installs", "%conda install -c x pandas", "cell 2"),
        ("paths", "open('/home/ada/data.csv')", "/home/ada/data.csv"),
        ("paths", r"p = 'C:\\data\\x.csv'", r"C:\data"),
        ("secrets", "api_key = 'abcd1234'", "api_key"),
        ("secrets", "connect('ghp_" + "a1B2" * 9 + "')", "ghp_…"),
        ("network", "import requests", "requests"),
        ("network", "read('https://user:pw@example.org/x.csv')", "https://…@example.org/x.csv"),
        ("input", "name = input('who?')", "input()"),
        ("end", "import sys\nsys.exit()", "sys.exit()"),
        ("printed", "import time\nprint(time.time())", "time"),
        ("printed", "print(id(print))", "id"),
        ("parameters", "n_rows = 100\nprint(n_rows)", "n_rows"),
    ],
)
def test_what_stands_between_is_named_with_its_cell(check: str, cell: str, shown: str, tmp_path: Path) -> None:
    report = examine_notebook(write(tmp_path / "nb.ipynb", [cell]))
    row = next(row for row in report.rows if row.name == check)
    assert row.status == "failed"
    assert shown in row.reason
    assert "cell 2" in row.reason


def test_a_clean_notebook_has_nothing_in_its_way(tmp_path: Path) -> None:
    path = write(tmp_path / "nb.ipynb", ["#p n: int = 3  # how many", "%matplotlib inline\nprint(n)"])
    assert [row.name for row in examine_notebook(path).failures] == ["order"]
    notebook = nbformat.read(path, 4)
    for count, cell in enumerate(notebook.cells[1:], start=1):
        cell.execution_count = count
    nbformat.write(notebook, path)
    assert examine_notebook(path).passed
    (tmp_path / "nb.ipynb").write_text("{}")
    with pytest.raises(NotebookError):
        examine_notebook(path)


@pytest.mark.parametrize("indent", [1, 2, 4])
def test_adopting_adds_the_parameters_and_keeps_every_other_byte(indent: int, tmp_path: Path) -> None:
    path = write(tmp_path / "nb.ipynb", ["import os", "n_rows = 100\nname = 'ä'", "print(n_rows, name)"])
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent, ensure_ascii=False) + "\n")
    before = path.read_text().splitlines()
    assert write_parameters(path) == "cell 3 has the tag 'parameters' now"
    after = path.read_text().splitlines()
    added = [line for line in after if line not in before]
    assert any("parameters" in line for line in added)
    assert len(after) - len(before) <= 4
    assert [line for line in before if line not in after and "metadata" not in line] == []
    assert write_parameters(path) == ""


@pytest.mark.parametrize("form", ["tabs", "compact", "escaped", "windows"])
def test_the_form_of_a_file_is_kept_whatever_wrote_it(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "nb.ipynb", ["n_rows = 100", "print(n_rows, 'ä')"])
    raw = json.loads(path.read_text(encoding="utf-8"))
    options: dict[str, Any] = {"indent": 1, "ensure_ascii": form == "escaped"}
    options |= {"tabs": {"indent": "\t"}, "compact": {"indent": None, "separators": (",", ":")}}.get(form, {})
    text = json.dumps(raw, **options) + "\n"
    path.write_bytes((text.replace("\n", "\r\n") if form == "windows" else text).encode())
    assert write_parameters(path) == "cell 2 has the tag 'parameters' now"
    raw["cells"][1]["metadata"] = {"tags": ["parameters"]}
    expected = json.dumps(raw, **options) + "\n"
    assert path.read_bytes() == (expected.replace("\n", "\r\n") if form == "windows" else expected).encode()


def test_a_notebook_without_literals_gets_a_cell_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "nb.ipynb", ["import os", "print(os.sep)"])
    assert write_parameters(path) == "cell 2 is new, for parameters"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.cells[1].metadata.tags == ["parameters"]
    assert [cell.source for cell in notebook.cells[2:]] == ["import os", "print(os.sep)"]


def test_the_command_answers_no_while_something_stands_between(folder: Path) -> None:
    done = CliRunner().invoke(main, ["adopt", "exit", "no parameters", "--json"])
    assert done.exit_code == 3
    assert [report["passed"] for report in json.loads(done.stdout)] == [False, False]
    assert CliRunner().invoke(main, ["adopt", "models:/x/1"]).exit_code == 2
