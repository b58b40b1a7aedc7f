"""Notebooks as people have them: older formats, skipped cells, cells that print without end, ends on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from notebook_files import count_runs, last_run, statuses, write_notebook
from PIL import Image
from rounds import wait_until

from mlops_lib import cli
from mlops_lib.errors import NotebookError, ParameterError, StoreError
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks import formats, outputs
from mlops_lib.programs.notebooks.page import write_page
from mlops_lib.programs.notebooks.signature import Parameter, check_values, parse_value, read_signature, to_source
from mlops_lib.project import Project, load_project
from mlops_lib.report import Report, Row
from mlops_lib.tracking import store


@pytest.fixture
def folder(project: Project) -> Path:
    return project.root / "notebooks"


# --- values from a command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("Literal['none', 'l2']", "none", "none"),
        ("Literal['1', '2']", "1", "1"),
        ("Literal[1, 2]", "1", 1),
        ("Literal['a', None]", "none", None),
        ("Literal['none'] | None", "none", "none"),
        ("str | None", "none", None),
        ("str | None", "5", "5"),
        ("str", "none", "none"),
        ("Optional[int]", "None", None),
        ("Optional[int]", "5", 5),
        ("date | None", "2013-03-31", date(2013, 3, 31)),
        ("date | None", "null", None),
        ("datetime", "2013-03-31T10:00", datetime(2013, 3, 31, 10)),  # noqa: DTZ001 - as it is written
        ("Path | None", "a/b", Path("a/b")),
        ("float", "inf", float("inf")),
        ("float", "-inf", float("-inf")),
        ("float", "1e3", 1000.0),
        ("bool", "false", False),
        ("list[int]", "[1, 2]", [1, 2]),
        ("list[float | None]", "[1.5, null]", [1.5, None]),
        ("dict[str, list[int]]", '{"a": [1]}', {"a": [1]}),
        ("dict[str, list[int]]", "{'a': [1]}", {"a": [1]}),
        ("dict", '{"a": {"b": [1, null, true]}}', {"a": {"b": [1, None, True]}}),
        ("int | str", "5", 5),
        ("int | str", "five", "five"),
        ("Any", '{"a": 1}', {"a": 1}),
        ("Any", "hello", "hello"),
    ],
)
def test_a_value_is_read_by_its_declared_type(annotation: str, text: str, value: Any) -> None:
    parameter = Parameter("x", annotation, None, "")
    found = check_values({"x": parameter}, {"x": parse_value(parameter, text)}, Path("nb.ipynb"))["x"]
    assert (found, type(found)) == (value, type(value))
    names = {"Path": Path, "date": date, "datetime": datetime}
    assert eval(to_source(found), names) == value


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("Literal['none', 'l2']", "l1"),
        ("Literal[1, 2]", "3"),
        ("Optional[int]", "five"),
        ("date | None", "soon"),
        ("bool", "2"),
        ("int", "1.5"),
        ("list[int]", "[1, 'a']"),
        ("list[int]", "1"),
        ("dict", "[" * 100_000),
    ],
)
def test_a_value_of_another_type_is_refused(annotation: str, text: str) -> None:
    parameter = Parameter("x", annotation, None, "")
    with pytest.raises(ParameterError, match=r"needs .*Nothing was run"):
        check_values({"x": parameter}, {"x": parse_value(parameter, text)}, Path("nb.ipynb"))


def signature_of(source: str) -> Mapping[str, Parameter]:
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    return read_signature(nbformat.v4.new_notebook(cells=[cell]), Path("nb.ipynb"))


def test_a_cell_without_annotations_is_read_by_its_defaults() -> None:
    untyped = "import os\nmsg = None\nn = 3  # how many\nshare = 0.5\nnames = ['a']\nhome = os.environ['HOME']"
    found = {n: (each.annotation, str(each.default)) for n, each in signature_of(f"{untyped}\nm: int = 2 * n").items()}
    assert found == {
        "msg": ("Any", "None"),
        "n": ("int", "3"),
        "share": ("float", "0.5"),
        "names": ("list", "['a']"),
        "home": ("Any", "os.environ['HOME']"),
        "m": ("int", "2 * n"),
    }


def test_a_notebook_of_papermill_runs_with_untyped_parameters(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "print(msg, n, twice)", parameters="msg = None\nn = 3\ntwice = 2 * n")
    finished = notebooks.run_notebook(project, path, {"msg": {"a": [1, None, float("inf")]}})
    assert "{'a': [1, None, inf]} 3 6" in str(nbformat.read(finished.executed_path, as_version=4).cells[-1].outputs)
    assert last_run(project).data.params["twice"] == "2 * n"
    with pytest.raises(ParameterError, match=r"'n' of notebook .* is 'x', needs int"):
        notebooks.run_notebook(project, path, {"n": "x"})


def test_values_with_commas_are_one_value_of_a_sweep(project: Project, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file, **_: project)
    source = "from mlops_lib import tracking\ntracking.record_result(total=float(sum(values)))"
    write_notebook(folder, source, parameters="values: list[int] = [0]  # to add")
    done = CliRunner().invoke(cli.main, ["sweep", "nb", "-g", "values=[1, 2],[3]", "--json"])
    assert done.exit_code == 0, done.output
    assert [trial["total"] for trial in json.loads(done.stdout)["trials"]] == [3.0, 3.0]


# --- formats -----------------------------------------------------------------------------------------------------

CODE = {"cell_type": "code", "source": "print(6 * 7)", "metadata": {}, "outputs": [], "execution_count": None}
OLD_CELL = {"cell_type": "code", "language": "python", "input": ["print(6 * 7)"], "outputs": [], "metadata": {}}
FORMATS: dict[str, dict[str, Any]] = {
    "3": {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "x"}, "worksheets": [{"cells": [OLD_CELL]}]},
    "4.4 with the ids of 4.5": {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [{**CODE, "id": "a"}]},
    "4.5 without ids": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [CODE]},
    "4.5 with an id twice": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{**CODE, "id": "a"}] * 2},
    "4.0 without kernelspec": {"nbformat": 4, "nbformat_minor": 0, "metadata": {}, "cells": [CODE]},
    "a kernelspec without language": {
        "nbformat": 4,
        "nbformat_minor": 2,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "P"}},
        "cells": [CODE],
    },
    "lines, and no outputs": {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{"cell_type": "code", "source": ["print(6", " * 7)"], "id": "a"}],
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_notebook_of_another_format_runs(project: Project, folder: Path, name: str) -> None:
    folder.mkdir()
    path = folder / "old.ipynb"
    path.write_text(json.dumps(FORMATS[name]))
    finished = notebooks.run_notebook(project, path)
    executed = nbformat.read(finished.executed_path, as_version=4)
    assert executed.cells[-1].outputs[0].text == "42\n"
    assert json.loads(path.read_text()) == FORMATS[name], "the file itself is left as it is"


@pytest.mark.parametrize("text", ["[1]", "{}", '{"nbformat": 9, "cells": []}', '{"nbformat": 4}', "x", ""])
def test_what_is_no_notebook_is_refused_by_name(project: Project, folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "no.ipynb").write_text(text)
    with pytest.raises(NotebookError, match=r"no\.ipynb' is not a notebook that can be run"):
        notebooks.run_notebook(project, folder / "no.ipynb")
    assert count_runs(project) == 0


def test_outputs_of_odd_types_are_kept_and_compared() -> None:
    data = {"application/json": {"a": [1]}, "text/plain": ["a\n", "b"], "application/vnd.x+json": [1, 2]}
    output = {"output_type": "display_data", "metadata": {}, "data": data}
    cell = {**CODE, "id": "a", "outputs": [output, {"output_type": "stream", "name": "stdout", "text": []}]}
    node = formats.parse(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    same, other = node.cells[0].outputs, json.loads(json.dumps(node.cells[0].outputs))
    assert outputs.find_differences(same, same, []) == []
    other[0]["data"]["application/json"]["a"] = [2]
    assert [key for key, _ in outputs.find_differences(same, nbformat.from_dict(other), [])] == ["application/json"]


def test_a_skipped_cell_is_no_failure_and_keeps_its_outputs(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1 / 0", "x = 1", parameters=None)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].metadata["tags"] = ["skip-execution"]
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="as it was")]
    nbformat.write(notebook, path)
    finished = notebooks.run_notebook(project, path)
    executed = nbformat.read(finished.executed_path, as_version=4)
    assert executed.cells[0].outputs[0].text == "as it was"
    assert executed.cells[1].metadata.papermill.status == "completed"
    assert last_run(project).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("/tmp/ipykernel_12/34.py:1: UserWarning: careful", "/tmp/ipykernel_5678/99.py:1: UserWarning: careful"),
        ("/tmp/ipykernel_1/2.py:3: DeprecationWarning", "/tmp/ipykernel_9/8.py:3: DeprecationWarning"),
        ("<function f at 0x7f1234567890>", "<function f at 0x7fabcdef0123>"),
    ],
)
def test_what_no_two_runs_have_in_common_is_no_difference(was: str, now: str, tmp_path: Path) -> None:
    _, patterns = outputs.check_sanitizer(tmp_path / "none.cfg")
    old, new = ([nbformat.v4.new_output("stream", name="stderr", text=text)] for text in (was, now))
    assert outputs.find_differences(old, new, patterns) == []
    other = [nbformat.v4.new_output("stream", name="stderr", text=now.replace("careful", "x").replace("Dep", "Rep"))]
    if other != new:
        assert outputs.find_differences(old, other, patterns)


# --- one run -----------------------------------------------------------------------------------------------------


def test_a_plain_call_of_mlflow_before_takes_no_second_run(project: Project, folder: Path) -> None:
    (folder / "project.py").parent.mkdir(exist_ok=True)
    path = write_notebook(
        folder,
        "import mlflow\nmlflow.log_metric('before', 1.0)",
        "from mlops_lib import tracking\nfrom mlops_lib.project import load_project\nproject = load_project()",
        "with tracking.start_run(project, params={'p': 1}):\n    mlflow.log_metric('within', 2.0)",
        "mlflow.log_metric('after', 3.0)",
        parameters=None,
    )
    (folder / "project.py").write_text(PROJECT_OF_NOTEBOOKS)
    own = load_project(folder / "project.py")
    notebooks.run_notebook(own, path)
    assert count_runs(own) == 1
    run = last_run(own)
    assert run.data.metrics == {"before": 1.0, "within": 2.0, "after": 3.0}
    assert (run.info.status, run.data.params["p"]) == ("FINISHED", "1")


PROJECT_OF_NOTEBOOKS = (
    "from pathlib import Path\nfrom mlops_lib.project import Project\n"
    "project = Project(name='toy', root=Path(__file__).parent.parent)\n"
)

# --- an end on purpose -------------------------------------------------------------------------------------------


def test_a_notebook_ends_early_on_purpose(project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_notebook(
        folder,
        "from mlops_lib.programs import notebooks\nn_rows = 0",
        "print('looked')\nif n_rows == 0:\n    notebooks.stop('no new data')",
        "1 / 0",
        parameters=None,
    )
    finished = notebooks.run_notebook(project, path)
    assert finished.stopped == "no new data"
    assert "stopped on purpose (no new data)" in str(finished)
    assert statuses(finished.executed_path) == ["completed", "completed", "skipped"]
    shown = nbformat.read(finished.executed_path, as_version=4).cells[1].outputs
    assert [output.output_type for output in shown] == ["stream", "display_data"]
    assert "Stopped on purpose: no new data" in finished.html_path.read_text()
    run = last_run(project)
    assert (run.info.status, run.data.tags["mlops.stopped"]) == ("FINISHED", "no new data")
    again = notebooks.run_notebook(project, path, cached=True)
    assert (again.cached, again.stopped) == (True, "no new data")
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file, **_: project)
    done = CliRunner().invoke(cli.main, ["run", "nb", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["stopped"]) == (0, "no new data")


def test_stock_nbclient_sees_the_end_as_an_exception_of_its_name(folder: Path) -> None:
    path = write_notebook(folder, "from mlops_lib import tracking\ntracking.stop('no new data')", parameters=None)
    command = [sys.executable, "-m", "jupyter", "execute", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Stopped on purpose: no new data" in done.stderr


# --- without end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "print('first')\nfor _ in range(3000):\n    print('x' * 1000)",
        "print('first')\nprint('x' * 3_000_000)",
        "from IPython.display import display\nprint('first')\nfor _ in range(30):\n    display('x' * 100_000)",
    ],
)
def test_what_a_cell_puts_out_beyond_the_limit_is_counted_and_dropped(
    project: Project, folder: Path, source: str
) -> None:
    path = write_notebook(folder, source, "print('next')", parameters=None)
    finished = notebooks.run_notebook(replace(project, output_limit_mb=1), path)
    assert finished.executed_path.stat().st_size < 2 * 2**20
    first, second = nbformat.read(finished.executed_path, as_version=4).cells
    assert first.outputs[0].text.startswith("first\n")
    assert "MB of output beyond 1 MB were dropped" in first.outputs[-1].text
    assert second.outputs[0].text == "next\n"


def test_an_exception_after_the_limit_is_still_told(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "print('x' * 3_000_000)\n1 / 0", parameters=None)
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        notebooks.run_notebook(replace(project, output_limit_mb=1), path)


@pytest.mark.parametrize("ending", ["", "1 / 0", "import os\nos._exit(1)"])
def test_a_program_in_a_session_of_its_own_does_not_outlive_its_kernel(
    project: Project, folder: Path, ending: str
) -> None:
    note = folder / "pid"
    start = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True)\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))"
    )
    path = write_notebook(folder, start, *[ending] * bool(ending), parameters=None)
    try:
        notebooks.run_notebook(project, path)
    except NotebookError:
        assert ending
    wait_until(lambda: not is_alive(int(note.read_text())))


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_store_whose_experiment_was_deleted_says_how_to_restore_it(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "x = 1", parameters=None)
    notebooks.run_notebook(project, path)
    client = store.connect(project.tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("toy").experiment_id)
    with pytest.raises(StoreError, match="mlflow experiments restore --experiment-id"):
        notebooks.run_notebook(project, path)


def test_a_notebook_that_sets_another_experiment_is_told_what_to_take_out(project: Project, folder: Path) -> None:
    cell = 'import mlflow\nmlflow.set_experiment("other")\nmlflow.start_run()'
    with pytest.raises(NotebookError, match=r"take mlflow.set_experiment\(...\) out of the notebook"):
        notebooks.run_notebook(project, write_notebook(folder, cell, parameters=None))


# --- the page ----------------------------------------------------------------------------------------------------

ACTING = (
    '<meta http-equiv="refresh" content="0;url=http://evil.example"><style>body{display:none}</style>'
    '<base href="http://evil.example/"><script>alert(1)</script><form action="x"><input></form>'
    '<div style="position:fixed;top:0;left:0;width:100%;height:100%;z-index:9;background:red">covers</div>'
    '<iframe src="http://evil.example"></iframe><a href="javascript:alert(1)">link</a><img src=x onerror=alert(1)>'
    "<svg><style>*{display:none}</style></svg><STYLE>p{display:none}"
)


def write_page_of(folder: Path, *cells: Any) -> str:
    folder.mkdir(exist_ok=True)
    write_page(nbformat.v4.new_notebook(cells=list(cells)), folder / "page.html", folder)
    return (folder / "page.html").read_text(encoding="utf-8").partition("<main")[2]


def showing(**data: str) -> Any:
    outputs = [nbformat.v4.new_output("display_data", {mime.replace("_", "/"): text for mime, text in data.items()})]
    return nbformat.v4.new_code_cell("x", outputs=outputs)


@pytest.mark.parametrize("mime", ["text_html", "text_markdown"])
def test_an_output_cannot_act_on_its_page(folder: Path, mime: str) -> None:
    page = write_page_of(folder, showing(**{mime: ACTING}))
    assert "covers" in page
    for word in (
        "<meta",
        "<style",
        "<base",
        "<script",
        "<form",
        "<iframe",
        "javascript:",
        "onerror",
        "position",
        "z-index",
    ):
        assert word not in page.lower(), word
    assert "evil.example" not in page


def test_a_page_keeps_tables_colours_and_figures(folder: Path) -> None:
    table = pd.DataFrame({"a": [1], "b": ["<i>"]})._repr_html_()
    report = Report("Gates", (Row("roc_auc", 0.6, ">= 0.7", "failed"),))._repr_html_()
    page = write_page_of(folder, showing(text_html=table), showing(text_html=report), showing(image_png="aGVsbG8="))
    assert "<th>a</th>" in page
    assert "&lt;i&gt;" in page
    assert 'style="color:#b2182b;"' in page
    assert "data:image/png;base64,aGVsbG8=" in page


def test_styles_that_only_show_stay_whole_and_those_that_move_a_box_go(folder: Path) -> None:
    style = "font-weight:bold;padding-right:4px;right:0;position:absolute;margin-top:-99px"
    page = write_page_of(folder, showing(text_html=f'<div style="{style}">x</div>'))
    assert '<div style="font-weight:bold;padding-right:4px;">x</div>' in page.replace("; ", ";").replace(": ", ":")


def test_formulas_and_pictures_of_markdown_are_in_the_page(folder: Path) -> None:
    folder.mkdir()
    Image.new("RGB", (3, 3), "red").save(folder / "local.png")
    text = (
        "# Rate $a_1 < b$\n\n$$\\sum_i x_i$$\n\n![local](local.png)\n\n`$code$`\n\n![away](http://evil.example/x.png)"
    )
    attached = nbformat.v4.new_markdown_cell("![it](attachment:it.png)")
    attached["attachments"] = {"it.png": {"image/png": "aGVsbG8="}}
    page = write_page_of(folder, nbformat.v4.new_markdown_cell(text), attached, showing(text_latex=r"$\alpha^2$"))
    assert page.count("<math") == 3
    assert "<code>$code$</code>" in page
    assert page.count('src="data:image/png;base64,') == 2
    assert 'src="http' not in page
    assert r"\badformula{" in write_page_of(folder, nbformat.v4.new_markdown_cell(r"$\badformula{$"))
