"""Committed notebooks: what holds passes twice, and every fault that can be seeded is caught by notebook and cell."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import nbformat
import psutil
import pytest
import servers
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbval import plugin
from nbval.plugin import get_sanitize_patterns
from PIL import Image, ImageDraw
from test_any_notebook import FORMATS, PROJECT_OF_NOTEBOOKS

from mlops_lib import cli, data
from mlops_lib.engines import warm
from mlops_lib.errors import NotFoundError
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks import check as check_module
from mlops_lib.programs.notebooks import outputs, places
from mlops_lib.report import Report, Row

ROOT = Path(__file__).resolve().parents[3]
PROJECT = """
from pathlib import Path

from mlops_lib.project import Project

project = Project(
    name="toy",
    root=Path(__file__).resolve().parent.parent,
    target="broke",
    keys=("thing_id",),
    features=("size",),
    arrivals="data/arrivals/{period}.parquet",
    labels="data/labels/{period}.parquet",
    chain=True,
    notebook_style=True,
)
"""
MAKE = (
    "# Make\n\nA table, a figure and a number:",
    "n: int = 3  # how many rows",
    """\
    import matplotlib.pyplot as plt
    import pandas as pd

    from mlops_lib import data
    from mlops_lib.project import load_project

    project = load_project()""",
    'rows = pd.DataFrame({"a": range(n), "b": [x / 7 for x in range(n)]})\nrows',
    'rows.plot(x="a", title="One line")\nplt.show()',
    'rows["b"].sum()',
    'print(data.write_table(rows, project.outputs / "rows.parquet").name)',
)
READ = (
    "# Read\n\nWhat the other notebook made:",
    "share: float = 0.5  # of what",
    "from mlops_lib import data\nfrom mlops_lib.project import load_project\n\nproject = load_project()",
    'made = data.read_table(project.outputs / "rows.parquet")\nlen(made)',
    'arrivals = data.read_table(project.path("arrivals", "p1"))\nlen(arrivals) * share',
    'print(f"made at {arrivals.shape} on 2020-01-01 10:00:00")',
)


def write_cells(path: Path, cells: tuple[str, ...]) -> None:
    """Write a notebook that was never run: ``# …`` is markdown, the second cell the parameters."""
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}})
    for number, source in enumerate(map(textwrap.dedent, cells), start=1):
        make = new_markdown_cell if source.startswith("# ") else new_code_cell
        notebook.cells.append(make(source, id=f"c{number}", metadata={"tags": ["parameters"]} if number == 2 else {}))
    nbformat.write(notebook, path)


@pytest.fixture(scope="module", autouse=True)
def kernel_server() -> Iterator[None]:
    """Give the tests of this file a kernel server of their own."""
    with servers.own_kernel_server("MLOPS_PROJECT"):
        yield


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with two notebooks whose outputs were made by ``--update``."""
    import pandas as pd

    root = tmp_path_factory.mktemp("committed")
    (root / "notebooks").mkdir()
    (root / "notebooks" / "project.py").write_text(PROJECT)
    for name in ("conftest.py", "sanitize.cfg"):
        shutil.copy(ROOT / "notebooks" / name, root / "notebooks")
    (root / "ruff.toml").write_text("line-length = 100\n[lint]\nselect = ['E', 'F']\nignore = ['E402']\n")
    data.write_table(pd.DataFrame({"thing_id": [1, 2, 3, 4]}), root / "data/arrivals/p1.parquet")
    write_cells(root / "notebooks" / "01_make.ipynb", MAKE)
    write_cells(root / "notebooks" / "02_read.ipynb", READ)
    report = notebooks.update_notebooks(root / "notebooks" / "project.py")
    assert report.passed, report
    return root


@pytest.fixture
def folder(committed: Path, tmp_path: Path) -> Path:
    """Return the notebooks of a copy of that project."""
    shutil.copytree(committed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "notebooks"


@pytest.fixture(scope="module")
def passed(committed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the record that a check of a copy of that project has left, made once."""
    copy = tmp_path_factory.mktemp("passed")
    shutil.copytree(committed, copy, dirs_exist_ok=True)
    report = check(copy / "notebooks")
    assert report.passed, report
    return (copy / "notebooks" / places.RECORD).read_text()


@pytest.fixture
def checked(folder: Path, passed: str) -> None:
    """Give the copy that record: it has passed a check, and the next one would run nothing."""
    (folder / places.RECORD).parent.mkdir()
    (folder / places.RECORD).write_text(passed)
    assert check(folder).facts == {"executed": 0}


def check(folder: Path, *names: str, **options: Any) -> Report:
    return notebooks.check_notebooks(folder / "project.py", names, **options)


def update(folder: Path, *names: str, **options: Any) -> Report:
    return notebooks.update_notebooks(folder / "project.py", names, **options)


def invoke(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["--project", str(folder / "project.py"), "check", *arguments])


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a notebook's JSON in place."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def failures(report: Report) -> dict[str, str]:
    return {row.name: row.reason for row in report.failures}


def picture(text: str = "One line", height: float = 0.8, **settings: Any) -> str:
    """Return a base64 PNG of a small figure."""
    with mpl.rc_context(settings):
        figure = Figure(figsize=(5, 3))
        axes = figure.subplots()
        axes.bar([0, 1, 2], [0.3, height, 0.5])
        axes.set(title=text, xlabel="planned hour (local)", ylabel="share late")
        file = io.BytesIO()
        figure.savefig(file, bbox_inches="tight", dpi=72)
    return base64.b64encode(file.getvalue()).decode()


# --- what holds ----------------------------------------------------------------------------------------------------


def test_untouched_notebooks_pass_and_the_second_time_no_kernel_is_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(folder)
    assert first.passed, first
    assert [row.name for row in first.rows if row.name.startswith("02_read")] == [
        f"02_read: {name}" for name in ("format", "executed", "signature", "ruff", "runs", "outputs", "figures")
    ]
    before = warm.status()
    monkeypatch.setattr(check_module, "_run", None)
    again = check(folder)
    assert again.passed
    assert again.facts["executed"] == 0
    assert [row.name for row in again.rows] == ["01_make: unchanged", "02_read: unchanged"]
    assert [(s["pid"], s["kernels"]) for s in warm.status()] == [(s["pid"], []) for s in before]


@pytest.mark.usefixtures("checked")
def test_where_nothing_has_changed_no_framework_is_loaded(folder: Path) -> None:
    heavy = {"mlflow", "pandas", "numpy", "nbval", "pytest", "nbformat", "nbclient", "jupyter_client", "papermill"}
    code = f"""
import sys
from mlops_lib.cli import main
code = main(["--project", {str(folder / "project.py")!r}, "check"], standalone_mode=False)
sys.exit(code or " ".join({heavy!r} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "\n") or done.returncode == 0, done.stderr
    assert "01_make: unchanged" in done.stdout


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    "change", ["notebook", "earlier notebook", "data", "new data", "project file", "sanitizer", "lock", "ruff", "force"]
)
def test_what_a_notebook_depends_on_makes_it_run_again(folder: Path, change: str) -> None:
    if change.endswith("notebook"):
        name = "01_make" if change == "earlier notebook" else "02_read"
        edit(folder / f"{name}.ipynb", lambda nb: nb["cells"][0].update(source=["# Another title"]))
    elif change.endswith("data"):
        name = "p2" if change == "new data" else "p1"
        table = data.read_table(folder.parent / "data/arrivals/p1.parquet")
        data.write_table(table.assign(thing_id=[5, 6, 7, 8]), folder.parent / f"data/arrivals/{name}.parquet")
    elif change == "project file":
        (folder / "project.py").write_text(PROJECT + "# a comment\n")
    elif change == "sanitizer":
        (folder / "sanitize.cfg").write_text((folder / "sanitize.cfg").read_text() + "# a comment\n")
    elif change == "lock":
        (folder.parent / "requirements.lock").write_text("a==1\n")
    elif change == "ruff":
        (folder / "ruff.toml").write_text("extend = '../ruff.toml'\n")
    report = check(folder, "02_read", force=change == "force")
    assert report.facts["executed"] == 2
    assert report.passed, report


def test_a_named_notebook_is_checked_after_those_before_it(folder: Path) -> None:
    assert check(folder, "01_make").facts == {"executed": 1}
    assert check(folder, str(folder / "02_read.ipynb")).facts == {"executed": 2}
    assert check(folder, "01_make.ipynb").facts == {"executed": 0}
    with pytest.raises(NotFoundError, match=r"Did you mean '02_read\.ipynb'"):
        check(folder, "02_reed.ipynb")


@pytest.mark.usefixtures("checked")
def test_a_failure_is_not_remembered(folder: Path) -> None:
    edit(folder / "02_read.ipynb", lambda nb: nb["cells"][3]["outputs"][0]["data"].update({"text/plain": ["4"]}))
    assert not check(folder).passed
    assert not check(folder).passed


def test_a_notebook_that_reads_unseen_is_run_each_time(folder: Path) -> None:
    (folder / "note.txt").write_text("x")
    edit(folder / "01_make.ipynb", lambda nb: nb["cells"][5].update(source=['open("note.txt").read()']))
    assert update(folder).passed
    for _ in range(2):
        report = check(folder)
        assert report.passed, report
        assert report.facts["executed"] == 2
    assert "run each time: it read" in next(row.reason for row in report.rows if row.name == "01_make: runs")


def test_an_empty_folder_has_not_passed(folder: Path) -> None:
    for path in folder.glob("*.ipynb"):
        path.unlink()
    assert "there is none in" in failures(check(folder))["notebooks"]
    assert not update(folder).passed


# --- the canary: every seeded fault is caught --------------------------------------------------------------------


def set_source(number: int, source: str) -> Callable[[Any], object]:
    return lambda nb: nb["cells"][number - 1].update(source=source.splitlines(keepends=True))


def replace_output(number: int, old: str, new: str) -> Callable[[Any], object]:
    def change(nb: Any) -> None:
        text = json.dumps(nb["cells"][number - 1]["outputs"])
        assert old in text
        nb["cells"][number - 1]["outputs"] = json.loads(text.replace(old, new))

    return change


def strip(nb: Any) -> None:
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)


def swap(nb: Any) -> None:
    nb["cells"][4], nb["cells"][5] = nb["cells"][5], nb["cells"][4]


def set_figure(value: str | None) -> Callable[[Any], object]:
    def change(nb: Any) -> None:
        found = nb["cells"][4]["outputs"][0]["data"]
        found.update({"image/png": value}) if value else found.pop("image/png")

    return change


def add_error(nb: Any) -> None:
    nb["cells"][5]["outputs"] = [nbformat.v4.new_output("error", ename="KeyError", evalue="'b'", traceback=[])]


ENDLESS = "while True:\n    pass"
PARAMETERS = "n: int = 3  # how many rows"
FAULTS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "number": (replace_output(6, "0.428", "0.429"), "outputs", "cell 6: text/plain line 1 is '"),
    "table": (replace_output(4, "<td>1</td>", "<td>7</td>"), "outputs", "cell 4: text/html line "),
    "stream": (replace_output(7, "rows.parquet", "rose.parquet"), "outputs", "cell 7: stdout line 1 is 'rows"),
    "output removed": (lambda nb: nb["cells"][5].update(outputs=[]), "outputs", "cell 6: text/plain is produced, not"),
    "output added": (
        lambda nb: nb["cells"][2].update(outputs=nb["cells"][6]["outputs"]), "outputs", "cell 3: stdout is committed"
    ),
    "cell removed": (lambda nb: nb["cells"].pop(3), "executed", "cell 4 has execution count 4, needs 3"),
    "cell removed, run": (lambda nb: nb["cells"].pop(3), "runs", "cell 4 raised NameError: name 'rows' is not"),
    "cells reordered": (swap, "executed", "cell 5 has execution count 5, needs 4"),
    "exception": (set_source(6, "rows['c']"), "runs", "cell 6 raised KeyError: 'c'"),
    "dead kernel": (set_source(6, "import os\n\nos._exit(1)"), "runs", "cell 6: the kernel died"),
    "killed kernel": (set_source(6, "import os\n\nos.kill(os.getpid(), 9)"), "runs", "cell 6: the kernel died"),
    "exit": (set_source(6, "exit()"), "runs", "cell 6: it called exit()"),
    "endless loop": (set_source(6, ENDLESS), "runs", "cell 6 was not done after 15 s"),
    "stripped": (strip, "executed", "stripped: none of its 6 code cells was run, from cell 2 on"),
    "one cell stripped": (
        lambda nb: nb["cells"][5].update(outputs=[], execution_count=None), "executed", "cell 6 has execution count"
    ),
    "committed error": (add_error, "executed", "cell 6 holds an error: KeyError: 'b'"),
    "changed figure": (set_figure(picture()), "figures", "cell 5: the figure "),
    "missing figure": (set_figure(None), "figures", "cell 5: image/png is produced, not committed"),
    "broken figure": (set_figure("iVBORw0KGgo="), "figures", "cell 5: image/png cannot be read"),
    "figure lost": (
        set_source(5, 'print("<Figure size 640x480 with 1 Axes>")'), "figures", "cell 5: image/png is committed, not"
    ),
    "no parameters": (lambda nb: nb["cells"][1]["metadata"].clear(), "signature", "no cell has the tag 'parameters'"),
    "two parameters cells": (
        lambda nb: nb["cells"][2]["metadata"].update(tags=["parameters"]), "signature", "cell 2, 3: 2 cells have"
    ),
    "unknown type": (set_source(2, "n: Frame = 3  # rows"), "signature", "cell 2: 'n: Frame' has the default 3"),
    "no assignment": (set_source(2, "print(3)  # rows"), "signature", "cell 2: line 1 is `print(3)`"),
    "no help": (set_source(2, "n: int = 3"), "signature", "cell 2: parameter 'n' has no comment"),
    "ruff check": (set_source(6, "import os\n\nrows['b'].sum()"), "ruff", "cell 6 line 1: F401"),
    "ruff format": (set_source(6, "rows['b'] .sum()"), "ruff", "cell 6 is not as ruff format writes it"),
    "no notebook": (lambda nb: nb.pop("cells"), "format", "not a valid notebook: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_caught_with_notebook_and_cell(folder: Path, fault: str) -> None:
    change, row, reason = FAULTS[fault]
    edit(folder / "01_make.ipynb", change)
    # Only the loop waits for its deadline, and no other cell may meet it on a busy machine.
    report = check(folder, "01_make", cell_timeout_s=15 if fault == "endless loop" else 120)
    assert not report.passed
    assert reason in failures(report).get(f"01_make: {row}", ""), report
    assert list(folder.parent.glob("**/*.tmp")) == []


def test_the_notebook_after_a_dead_one_is_not_run_and_does_not_pass(folder: Path) -> None:
    edit(folder / "01_make.ipynb", set_source(6, "1 / 0"))
    report = check(folder)
    row = next(row for row in report.rows if row.name == "02_read: runs")
    assert (row.status, row.reason) == ("not_applicable", "not run: a notebook before it did not run to its end")
    assert "02_read.ipynb" not in (folder / ".mlops" / "checked.json").read_text()


def test_a_dead_kernel_is_seen_at_once_and_not_at_the_cells_deadline(folder: Path) -> None:
    edit(folder / "01_make.ipynb", set_source(6, "import os\n\nos.kill(os.getpid(), 9)"))
    report = check(folder, "01_make", cell_timeout_s=10_000)  # the test's own limit is shorter
    assert "the kernel died" in failures(report)["01_make: runs"]


def test_an_expected_exception_passes_only_while_it_is_raised(folder: Path) -> None:
    def expect(nb: Any) -> None:
        nb["cells"][5].update(source=["1 / 0"], metadata={"tags": ["raises-exception"]})

    edit(folder / "01_make.ipynb", expect)
    assert update(folder).passed
    assert check(folder).passed
    edit(folder / "01_make.ipynb", set_source(6, "1 / 1"))
    assert "cell 6: " in failures(check(folder))["01_make: outputs"]


def test_ids_and_times_may_differ_and_measurements_may_not(folder: Path) -> None:
    edit(folder / "02_read.ipynb", replace_output(6, "2020-01-01 10:00:00", "2021-02-03 11:12:13"))
    assert check(folder).passed
    edit(folder / "02_read.ipynb", replace_output(6, "(4, 1)", "(4, 2)"))
    assert "cell 6: stdout line 1" in failures(check(folder))["02_read: outputs"]


def test_without_ruff_its_row_is_not_applicable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module.sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(check_module.shutil, "which", lambda _: None)
    row = next(row for row in check(folder).rows if row.name == "01_make: ruff")
    assert (row.status, row.reason) == ("not_applicable", "ruff is not installed")


def test_a_broken_ruff_configuration_is_no_pass(folder: Path) -> None:
    (folder.parent / "ruff.toml").write_text("no-such-option = 1\n")
    assert "ruff failed: " in failures(check(folder))["01_make: ruff"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("regex: \\d{8}\n\nreplace: DAY\n", "line 1: 'replace: …' must stand in the next line"),
        ("regex: \\d{8}\nreplace:\n", "line 2 is no 'regex: …', 'replace: …'"),
        ("replace: DAY\n", "line 1: 'regex: …' must stand in the line before"),
        (" regex: \\d{8}\n", "line 1 is no 'regex: …'"),
        ("regex: (\nreplace: X\n", "line 1: ( is no regular expression"),
        ("regex: \\d+\nreplace: N\n", "line 1: \\d+ would hide what was measured, such as 0.7213"),
        ("regex: \\b\\d\\.\\d{4}\\b\nreplace: N\n", "would hide what was measured"),
        ("regex: .*\nreplace: X\n", "would hide what was measured"),
        ("regex: [a-z]+\nreplace: X\n", "would hide what was measured"),
    ],
)
def test_a_broken_sanitizer_file_is_caught(folder: Path, text: str, fault: str) -> None:
    (folder / "sanitize.cfg").write_text(text)
    row, _ = outputs.check_sanitizer(folder / "sanitize.cfg")
    assert row.status == "failed"
    assert fault in row.reason


@pytest.mark.usefixtures("checked")
def test_with_a_broken_sanitizer_nothing_passes_and_nothing_is_written(folder: Path) -> None:
    (folder / "sanitize.cfg").write_text("regex: \\d+\nreplace: N\nregex: (\nreplace: X\n")
    before = (folder / "01_make.ipynb").read_bytes()
    for _ in range(2):
        assert "sanitize: rules" in failures(check(folder))
    assert "sanitize: rules" in failures(update(folder))
    assert (folder / "01_make.ipynb").read_bytes() == before
    (folder / "sanitize.cfg").unlink()
    assert "sanitize: rules" not in failures(check(folder))


def test_every_line_of_the_committed_sanitizer_file_is_read_by_nbval() -> None:
    path = ROOT / "notebooks" / "sanitize.cfg"
    row, patterns = outputs.check_sanitizer(path)
    assert row.status == "passed"
    assert patterns == [*outputs.ALWAYS, *get_sanitize_patterns(path.read_text())]


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, True),
        ({"text.hinting": "force_autohint"}, True),
        ({"text.antialiased": False}, True),
        ({"height": 0.75}, False),
        ({"text": "Another title"}, False),
        ({"axes.facecolor": "#f0f0f0"}, False),
        ({"savefig.pad_inches": 0.5}, False),
    ],
)
def test_other_edges_of_letters_are_the_same_figure_and_other_data_is_not(settings: dict[str, Any], same: bool) -> None:
    difference = outputs._compare_figures("image/png", picture(), picture(**settings))
    assert (difference == "") == same, difference


def test_a_figure_that_is_a_pixel_wider_is_the_same_figure() -> None:
    image = Image.open(io.BytesIO(base64.b64decode(picture())))
    wider = image.resize((image.width + 1, image.height))
    for pictured, same in ((wider, True), (wider.copy(), False)):
        if not same:
            ImageDraw.Draw(pictured).rectangle((100, 60, 130, 90), fill="black")
        file = io.BytesIO()
        pictured.save(file, "PNG")
        assert (
            outputs._compare_figures("image/png", picture(), base64.b64encode(file.getvalue()).decode()) == ""
        ) == same


# --- update ------------------------------------------------------------------------------------------------------


def test_an_update_changes_only_what_differs_and_nothing_the_second_time(folder: Path) -> None:
    path = folder / "01_make.ipynb"
    before = path.read_bytes()
    edit(path, replace_output(6, "0.428", "0.429"))
    assert path.read_bytes() != before
    assert update(folder).passed
    assert path.read_bytes() == before
    report = update(folder)
    assert path.read_bytes() == before
    assert {row.reason for row in report.rows if row.name.endswith(": update")} == {"the file is as it was"}


def test_an_update_makes_a_stripped_notebook_whole(folder: Path) -> None:
    before = (folder / "02_read.ipynb").read_bytes()
    edit(folder / "02_read.ipynb", strip)
    assert update(folder).passed
    assert (folder / "02_read.ipynb").read_bytes() == before


def test_an_update_keeps_layout_ids_and_equal_outputs_and_strips_records(folder: Path) -> None:
    path = folder / "01_make.ipynb"
    image = Image.open(
        io.BytesIO(base64.b64decode(json.loads(path.read_text())["cells"][4]["outputs"][0]["data"]["image/png"]))
    )
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # the same picture in other bytes

    def change(nb: Any) -> None:
        set_figure(base64.b64encode(file.getvalue()).decode())(nb)
        nb["cells"][4]["outputs"][0]["data"]["text/plain"] = ["something else"]
        nb["cells"][0]["source"] = ["# Größer"]

    edit(path, change)
    expected = json.loads(path.read_text())
    expected["cells"][4]["outputs"][0]["data"]["text/plain"] = ["<Figure size 640x480 with 1 Axes>"]
    notebook = json.loads(path.read_text())
    notebook["cells"][3]["metadata"]["execution"] = {"iopub.execute_input": "2020"}
    notebook["cells"][3]["metadata"]["papermill"] = {"duration": 1}
    notebook["metadata"]["papermill"] = {"duration": 1}
    notebook["metadata"]["language_info"] = {"version": "3.9.9", "name": "python"}
    expected["metadata"]["language_info"] = {"name": "python"}
    expected = {"metadata": expected.pop("metadata"), **expected}
    path.write_text(json.dumps({"metadata": notebook.pop("metadata"), **notebook}, indent=4, ensure_ascii=True))
    assert update(folder).passed
    assert path.read_text() == json.dumps(expected, indent=4, ensure_ascii=True)


def test_an_update_writes_nothing_if_a_cell_fails(folder: Path) -> None:
    edit(folder / "01_make.ipynb", replace_output(6, "0.428", "0.429"))
    edit(folder / "02_read.ipynb", set_source(4, "1 / 0"))
    before = [path.read_bytes() for path in sorted(folder.glob("*.ipynb"))]
    report = update(folder)
    assert "cell 4 raised ZeroDivisionError" in failures(report)["02_read: runs"]
    assert report.rows[-1].reason == "nothing was written"
    assert [path.read_bytes() for path in sorted(folder.glob("*.ipynb"))] == before


def test_an_update_rewrites_only_the_named_notebook_and_proves_nothing(folder: Path) -> None:
    edit(folder / "01_make.ipynb", replace_output(6, "0.428", "0.429"))
    edit(folder / "02_read.ipynb", strip)
    edited = (folder / "01_make.ipynb").read_bytes()
    assert update(folder, "02_read").passed
    assert (folder / "01_make.ipynb").read_bytes() == edited
    assert list(failures(check(folder))) == ["01_make: outputs"]


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_answers_0_and_3(folder: Path) -> None:
    assert invoke(folder).exit_code == 0
    edit(folder / "01_make.ipynb", replace_output(6, "0.428", "0.429"))
    result = invoke(folder, "--json")
    assert result.exit_code == 3
    rows = [Row(**row) for row in json.loads(result.stdout)["rows"]]
    assert [row.name for row in rows if row.status == "failed"] == ["01_make: outputs"]
    assert invoke(folder, "--update").exit_code == 0
    assert invoke(folder, "--all", "01_make", "--cell-timeout", "60").exit_code == 0
    assert invoke(folder, "03_none").exit_code == 1


def test_an_interrupted_check_leaves_no_kernel_and_no_record(folder: Path) -> None:
    marker = folder / "pid"
    edit(
        folder / "01_make.ipynb",
        set_source(
            6, f"import os\nimport time\n\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)"
        ),
    )
    command = [sys.executable, "-m", "mlops_lib.cli", "--project", str(folder / "project.py"), "check"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1
    kernel = int(marker.read_text())
    while psutil.pid_exists(kernel) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(kernel)
    assert not (folder / ".mlops").exists()


# --- the stock way -----------------------------------------------------------------------------------------------


def nbval(folder: Path, *options: str) -> str:
    """Run stock nbval with this repository's conftest."""
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-rA", *options, str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "MLFLOW_"))}
    return subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
    ).stdout


def test_stock_nbval_agrees(folder: Path) -> None:
    for whole, faulty in (("01_make", "03_make"), ("02_read", "04_read")):
        shutil.copy(folder / f"{whole}.ipynb", folder / f"{faulty}.ipynb")
    edit(folder / "03_make.ipynb", replace_output(6, "0.428", "0.429"))
    edit(folder / "04_read.ipynb", set_source(6, ENDLESS))
    told = nbval(folder, "--nbval-cell-timeout", "15")
    assert re.search(r"\b2 failed, 20 passed in", told), told
    failed = re.findall(r"^FAILED \S*?(\w+\.ipynb::Cell \d)", told, re.MULTILINE)
    assert failed == ["03_make.ipynb::Cell 4", "04_read.ipynb::Cell 4"]
    assert "Timeout of 15 seconds exceeded" in told


@pytest.mark.parametrize("key", ["text/plain", "text/html", "text/latex", "application/json", "stdout", "ename"])
def test_outputs_are_compared_as_nbval_compares_them(key: str) -> None:
    def output(value: Any) -> Any:
        if key == "stdout":
            return nbformat.v4.new_output("stream", name="stdout", text=value)
        if key == "ename":
            return nbformat.v4.new_output("error", ename=value, evalue="", traceback=[value])
        found = nbformat.v4.new_output("display_data", data={key: value, "image/png": "x"})
        return nbformat.from_dict(found)

    pairs = [("a", "a"), ("a", "b"), ("a\rb", "b"), ("id 0123", "id 4567")]
    patterns = [(r"id \d+", "ID")]
    stock = SimpleNamespace(
        colors=plugin.nocolors,
        parent=SimpleNamespace(sanitize_patterns=dict(patterns)),
        format_output_compare=lambda *_: None,
    )
    stock.sanitize = lambda value: plugin.IPyNbCell.sanitize(stock, value)
    skipped = (*outputs.NOT_COMPARED, *outputs.IMAGES)
    for was, now in pairs:
        lists = [plugin.coalesce_streams([output(value)]) for value in (now, was)]
        expected = plugin.IPyNbCell.compare_outputs(stock, *lists, skip_compare=skipped)
        assert (outputs.find_differences([output(was)], [output(now)], patterns) == []) == expected, (was, now)


@pytest.mark.parametrize("name", ["3", "4.4 with the ids of 4.5"])
def test_a_notebook_of_an_older_format_is_told_and_upgraded_on_update(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "project.py").write_text(PROJECT_OF_NOTEBOOKS)
    path = folder / "old.ipynb"
    path.write_text(json.dumps(FORMATS[name]))
    report = notebooks.check_notebooks(folder / "project.py")
    assert "old: format" in [row.name for row in report.failures]
    assert "--update upgrades it" in str(report)
    assert notebooks.update_notebooks(folder / "project.py").passed
    raw = json.loads(path.read_text())
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert "".join(raw["cells"][0]["outputs"][0]["text"]) == "42\n"
    assert "old: format" not in [row.name for row in notebooks.check_notebooks(folder / "project.py").failures]


def test_a_secret_of_the_environment_is_not_written_into_the_committed_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = 'it\'s "8Zr2LxV0pT"'
    monkeypatch.setenv("STRIPE_PAT", secret)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "project.py").write_text(PROJECT_OF_NOTEBOOKS)
    cell = new_code_cell("import os\nprint(os.environ['STRIPE_PAT'])\nprint([os.environ['STRIPE_PAT']])")
    nbformat.write(new_notebook(cells=[cell]), folder / "tells.ipynb")
    assert notebooks.update_notebooks(folder / "project.py").passed
    text = (folder / "tells.ipynb").read_text()
    assert "8Zr2LxV0pT" not in text
    assert text.count("***") == 2
