"""Notebooks as typed functions: what is refused before anything runs, and the evidence that is left when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import papermill.cli
import psutil
import pytest
import workers
from click.testing import CliRunner
from notebook_files import PROJECT_SOURCE, count_runs, last_run, statuses, write_notebook
from refusals import raises

from mlops_lib import tracking
from mlops_lib.errors import (
    NotebookError,
    NotFoundError,
    ParameterError,
)
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks.cache import INPUTS_FILE
from mlops_lib.programs.notebooks.signature import check_values, parse_value, read_signature
from mlops_lib.project import Project, load_project
from mlops_lib.tracking import store


@pytest.fixture
def folder(project: Project) -> Path:
    return project.root / "notebooks"


# --- signature ---------------------------------------------------------------------------------------------------


def signature_of(tmp_path: Path, source: str) -> dict[str, Any]:
    path = write_notebook(tmp_path, parameters=source)
    return read_signature(nbformat.read(path, as_version=4), path)


def test_the_parameters_cell_is_the_signature(tmp_path: Path) -> None:
    found = signature_of(
        tmp_path,
        """\
        from datetime import date
        from pathlib import Path
        from typing import Literal

        n: int = 3  # how many
        share: float = 1e-3
        flag: bool = True  # on or off
        kind: Literal["a", "b"] = "a"
        limit: int | None = None  # none takes all
        day: date = date(2013, 3, 31)  # a day
        where: Path = Path("data")
        names: list[str] = ["x=y"]
        deep: dict[str, list[int]] = {"k": [1]}
        """,
    )
    assert list(found) == ["n", "share", "flag", "kind", "limit", "day", "where", "names", "deep"]
    assert found["n"].help == "how many"
    assert found["day"].default == date(2013, 3, 31)
    assert found["where"].default == Path("data")
    assert str(found["limit"]) == "limit: int | None = None  # none takes all"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a = b = 1", "`name: type = literal  # help`"),
        ("print(1)", "`name: type = literal  # help`"),
        ("a: int", "has no default"),
        ("a: int = 'x'", "a literal of that type"),
        ("a: Frame = 1", "'Frame' is not one of"),
        ("a: int = (", "is no Python"),
        ("print('hello')", "line 1 is `print('hello')`"),
        ("a, b = 1, 2", "`name: type = literal  # help`"),
    ],
)
def test_a_parameters_cell_that_is_no_signature_is_refused(tmp_path: Path, source: str, reason: str) -> None:
    with raises(ParameterError, "cell") as error:
        signature_of(tmp_path, source)
    assert reason in str(error.value)
    assert "Nothing was run." in str(error.value)


def test_two_parameters_cells_are_refused(tmp_path: Path) -> None:
    path = write_notebook(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(notebook.cells[0].copy())
    with pytest.raises(ParameterError, match="2 cells have the tag 'parameters'"):
        read_signature(notebook, path)


TYPED = """\
from datetime import date
from pathlib import Path
from typing import Literal
n: int = 1
x: float = 1.0
flag: bool = False
text: str = ""
kind: Literal["a", "b"] = "a"
limit: int | None = 1
day: date = date(2020, 1, 1)
where: Path = Path("x")
names: list[str] = []
"""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n", 2, 2),
        ("x", 2, 2.0),
        ("x", float("inf"), float("inf")),
        ("x", np.float64(0.25), 0.25),
        ("n", np.int64(3), 3),
        ("limit", None, None),
        ("day", date(2021, 2, 3), date(2021, 2, 3)),
        ("where", Path("y"), Path("y")),
        ("names", ["a", "b"], ["a", "b"]),
        ("text", "quote ' \" and \n newline", "quote ' \" and \n newline"),
    ],
)
def test_values_of_the_declared_type_are_taken(tmp_path: Path, name: str, value: Any, expected: Any) -> None:
    checked = check_values(signature_of(tmp_path, TYPED), {name: value}, tmp_path / "nb.ipynb")
    assert checked[name] == expected
    assert type(checked[name]).__module__ != "numpy", "it is written into a cell"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", "2"),
        ("n", 2.5),
        ("n", True),
        ("n", None),
        ("x", "1.0"),
        ("flag", 1),
        ("flag", "false"),
        ("text", 5),
        ("kind", "c"),
        ("limit", "none"),
        ("day", "2020-01-01"),
        ("where", 3),
        ("names", "a"),
        ("names", [1]),
        ("names", ("a", 2)),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with raises(ParameterError, "value") as error:
        check_values(signature_of(tmp_path, TYPED), {name: value}, tmp_path / "nb.ipynb")
    assert f"Parameter '{name}'" in str(error.value)
    assert "Nothing was run." in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "7", 7),
        ("x", "1e-3", 0.001),
        ("flag", "true", True),
        ("limit", "none", None),
        ("text", "007", "007"),
        ("day", "2013-05-01", date(2013, 5, 1)),
        ("where", "a/b", Path("a/b")),
        ("names", "['a']", ["a"]),
    ],
)
def test_a_command_line_is_read_as_the_declared_type(tmp_path: Path, name: str, text: str, value: Any) -> None:
    assert parse_value(signature_of(tmp_path, TYPED)[name], text) == value


def test_an_unknown_parameter_is_refused_with_the_nearest_name_before_anything_runs(
    project: Project, folder: Path
) -> None:
    path = write_notebook(folder)
    with pytest.raises(NotFoundError, match="Did you mean 'alpha'"):
        notebooks.run_notebook(project, path, {"alfa": 1.0})
    assert count_runs(project) == 0
    assert not project.runs_path.exists()


def test_code_in_a_parameter_name_is_refused(project: Project, folder: Path) -> None:
    path = write_notebook(folder)
    with raises(NotFoundError, "parameter"):
        notebooks.run_notebook(project, path, {f"a; open({str(folder / 'PWN')!r}, 'w')#": 5})
    assert not (folder / "PWN").exists()


def test_a_parameter_without_any_parameters_cell_is_refused(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1", parameters=None)
    with pytest.raises(NotFoundError, match="It declares none"):
        notebooks.run_notebook(project, path, {"alpha": 5})


def test_a_secret_is_refused_as_a_parameter(project: Project, folder: Path) -> None:
    path = write_notebook(folder, parameters="api_token: str = ''  # for the weather")
    with pytest.raises(ParameterError, match="environment variable"):
        notebooks.run_notebook(project, path, {"api_token": "hunter2"})


@pytest.mark.parametrize(
    "value",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "postgresql://ada:hunter2@db/mlflow",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_value_that_looks_like_a_secret_is_refused(project: Project, folder: Path, value: str) -> None:
    path = write_notebook(folder)
    with raises(ParameterError, "secret") as error:
        notebooks.run_notebook(project, path, {"name": value})
    assert value not in str(error.value)


def test_secrets_of_the_environment_are_in_no_file_and_no_row(project: Project, folder: Path) -> None:
    secret = "correct-horse-battery"
    path = write_notebook(
        folder,
        "import os\nprint(os.environ['WEATHER_TOKEN'])",
        "import sys\nprint(os.environ['WEATHER_TOKEN'], file=sys.__stderr__, flush=True)",
        "{'shown': os.environ['WEATHER_TOKEN']}",
        "raise ValueError(f'cannot connect with {os.environ[\"WEATHER_TOKEN\"]}')",
    )
    watched = replace(project, environ={**os.environ, "WEATHER_TOKEN": secret})
    with raises(NotebookError, "cell") as error:
        notebooks.run_notebook(watched, path)
    assert secret not in str(error.value)
    assert "cannot connect with ***" in str(error.value)
    found = [file for file in project.root.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
    assert found == []


def test_a_notebook_that_is_not_there_is_named_with_those_that_are(project: Project, folder: Path) -> None:
    write_notebook(folder, name="02_train")
    with pytest.raises(NotFoundError, match=r"02_train\.ipynb"):
        notebooks.run_notebook(project, "02_trian")


def test_a_file_that_is_no_notebook_is_refused(project: Project, folder: Path) -> None:
    folder.mkdir()
    (folder / "torn.ipynb").write_text('{"cells": [')
    with pytest.raises(NotebookError, match="Nothing was run"):
        notebooks.run_notebook(project, folder / "torn.ipynb")


# --- runs that end well ------------------------------------------------------------------------------------------


def test_a_run_is_a_finished_mlflow_run_with_parameters_result_and_report(project: Project, folder: Path) -> None:
    path = write_notebook(
        folder,
        "# Look\n\nSome words.",
        "import mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('seen', alpha)",
        "from mlops_lib import tracking\ntracking.record_result(doubled=alpha * 2, name=name)",
    )
    done = notebooks.run_notebook(project, path, {"alpha": 4, "name": "it's"})
    assert done.result == {"doubled": 8.0, "name": "it's"}
    run = last_run(project)
    assert run.info.run_id == done.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"alpha": "4.0", "name": "it's"}
    assert run.data.metrics == {"seen": 4.0}, "plain mlflow.start_run() in the notebook is the same run"
    files = {file.path for file in store.connect(project.tracking_uri).list_artifacts(done.run_id)}
    assert {"nb.ipynb", "nb.html", "result.json", "inputs.json"} <= files
    assert set(statuses(done.executed_path)) == {"completed"}
    html = done.html_path.read_text()
    assert "Some words." in html
    assert "import mlflow" not in html.split("<body", 1)[1], "code is hidden"


def test_dates_and_paths_reach_the_notebook_as_such(project: Project, folder: Path) -> None:
    path = write_notebook(
        folder,
        "from mlops_lib import tracking\ntracking.record_result(next=str(day.replace(day=2)), up=str(where.parent))",
        parameters="from datetime import date\nfrom pathlib import Path\n"
        "day: date = date(2020, 1, 1)\nwhere: Path = Path('.')",
    )
    done = notebooks.run_notebook(project, path, {"day": date(2021, 5, 9), "where": Path("a/b")})
    assert done.result == {"next": "2021-05-02", "up": "a"}


def test_a_notebook_runs_in_its_own_folder_and_leaves_its_file_alone(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "import os\nfrom mlops_lib import tracking\ntracking.record_result(at=os.getcwd())")
    before = path.read_bytes()
    assert notebooks.run_notebook(project, path).result == {"at": str(folder)}
    assert path.read_bytes() == before


def test_twelve_at_once_in_threads_run_in_twelve_right_folders(project: Project, folder: Path) -> None:
    cell = "import os\nfrom mlops_lib import tracking\ntracking.record_result(at=os.getcwd(), alpha=alpha)"
    paths = [write_notebook(folder / f"n{i}", cell) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda i: notebooks.run_notebook(project, paths[i], {"alpha": float(i)}), range(12)))
    assert [run.result for run in runs] == [{"at": str(p.parent), "alpha": float(i)} for i, p in enumerate(paths)]


def test_an_expected_exception_is_no_failure(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1 / 0", "2")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(notebook, path)
    notebooks.run_notebook(project, path)
    assert last_run(project).info.status == "FINISHED"


def test_stock_papermill_runs_the_same_engine(project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_notebook(folder, "from mlops_lib import tracking\ntracking.record_result(alpha=alpha)")
    project_file = folder / "project.py"
    project_file.write_text(PROJECT_SOURCE)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": project.tracking_uri, "MLOPS_PROJECT": str(project_file)}
    command = [str(Path(sys.executable).with_name("papermill")), "--engine", "mlops", "--no-progress-bar"]
    out = folder / "out.ipynb"
    done = subprocess.run(
        [*command, "-p", "alpha", "0.25", path, out], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    run = last_run(project)
    assert run.info.status == "FINISHED"
    assert run.data.params["alpha"] == "0.25"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.setenv("MLOPS_PROJECT", str(project_file))
    stock = ["--engine", "mlops", "--no-progress-bar", "-p", "alfa", "0.25", str(path), str(out)]
    refused = CliRunner().invoke(papermill.cli.papermill, stock)  # the same command, its imports done
    assert refused.exit_code != 0
    assert "Did you mean 'alpha'" in str(refused.exception)
    assert count_runs(project) == 1


# --- runs that end badly: in every row the evidence is true -------------------------------------------------------


def test_a_cell_that_raises_leaves_a_failed_run_and_names_cell_line_and_copy(
    project: Project, folder: Path, record: Callable[..., None]
) -> None:
    path = write_notebook(
        folder, "import mlflow\nmlflow.start_run()", "x = 1\ny = x / 0\nz = 2", "print('never')", parameters=None
    )
    with raises(NotebookError, "cell") as error:
        notebooks.run_notebook(project, path)
    failed = error.value
    assert (failed.cell, failed.n_cells, failed.ename, failed.line) == (2, 3, "ZeroDivisionError", "y = x / 0")
    assert str(failed.executed_path) in str(failed)
    assert statuses(failed.executed_path) == ["completed", "failed", "pending"]
    run = last_run(project)
    assert run.info.status == "FAILED", "MLflow's own exit hook would have said FINISHED"
    files = {file.path for file in store.connect(project.tracking_uri).list_artifacts(run.info.run_id)}
    assert {"nb.ipynb", "nb.html"} <= files
    record(8, ours="the run is FAILED, with the executed copy and its report")


@pytest.mark.parametrize(
    ("kill", "ended"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
    ],
)
def test_a_dead_kernel_leaves_later_cells_pending_and_its_last_words(
    project: Project, folder: Path, kill: str, ended: str
) -> None:
    path = write_notebook(folder, "1", kill, "2")
    with raises(NotebookError, "kernel_died") as error:
        notebooks.run_notebook(project, path)
    assert (error.value.cell, error.value.ended) == (3, ended)
    assert error.value.peak_memory_mb > 10
    executed = nbformat.read(error.value.executed_path, as_version=4)
    assert statuses(error.value.executed_path) == ["completed", "completed", "failed", "pending"]
    assert (executed.cells[2].outputs[-1].ename, executed.cells[2].outputs[-1].evalue) == ("KernelDied", ended)
    assert executed.cells[3].execution_count is None
    if "SIGSEGV" in ended:  # what the interpreter said of it
        assert "Segmentation fault" in "\n".join(executed.cells[2].outputs[-1].traceback)
        assert error.value.last_line


def test_a_kernel_that_complains_before_it_dies_is_quoted(project: Project, folder: Path) -> None:
    path = write_notebook(
        folder, "import os, sys, time\nprint('out of paper', file=sys.stderr, flush=True); time.sleep(1); os._exit(1)"
    )
    with pytest.raises(NotebookError, match="Its last words: out of paper"):
        notebooks.run_notebook(project, path)
    assert last_run(project).info.status == "FAILED"


def test_an_expected_exception_that_does_not_come_is_a_failure(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1", "2")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(notebook, path)
    with pytest.raises(NotebookError, match="Cell 2 of 3"):
        notebooks.run_notebook(project, path)
    assert last_run(project).info.status == "FAILED"
    assert statuses(next(project.runs_path.glob("*/nb.ipynb"))) == ["completed", "failed", "pending"]


def test_a_kernel_that_is_not_installed_is_refused_before_anything_runs(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1")
    with pytest.raises(NotFoundError, match="Did you mean 'python3'"):
        notebooks.run_notebook(project, path, kernel_name="pyton3")
    assert count_runs(project) == 0
    assert not project.runs_path.exists()


def test_a_notebook_that_names_no_kernel_runs_on_python3(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "1")
    notebook = nbformat.read(path, as_version=4)
    del notebook.metadata["kernelspec"]
    nbformat.write(notebook, path)
    notebooks.run_notebook(project, path)
    assert last_run(project).info.status == "FINISHED"


def test_a_cell_that_asks_a_person_is_a_failure(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "input('who? ')", "2")
    with raises(NotebookError, "cell") as error:
        notebooks.run_notebook(project, path)
    assert error.value.ename == "StdinNotImplementedError"
    assert last_run(project).info.status == "FAILED"


def test_a_deadline_holds_for_the_whole_notebook(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "import time", "while True:\n    time.sleep(0.1)", "2")
    with raises(NotebookError, "deadline") as error:
        notebooks.run_notebook(project, path, timeout_s=4)
    assert error.value.cell == 3
    assert statuses(error.value.executed_path)[2:] == ["failed", "pending"]
    assert last_run(project).info.status == "FAILED"


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "exit()", "import sys; sys.exit(1)"])
def test_leaving_in_the_middle_is_a_failure(
    project: Project, folder: Path, leave: str, record: Callable[..., None]
) -> None:
    path = write_notebook(folder, "1", leave, "print('never')")
    with pytest.raises(NotebookError, check=lambda error: error.case in ("ended_early", "cell", "kernel_died")):
        notebooks.run_notebook(project, path)
    assert statuses(project.runs_path.glob("*/nb.ipynb").__next__())[-1] == "pending"
    assert last_run(project).info.status == "FAILED"
    record(9, ours="the run is FAILED, and the first cell that never ran is named")


BUSY = """
import subprocess, time
from pathlib import Path
child = subprocess.Popen(["sleep", "1000"])
Path("child").write_text(str(child.pid))
while True:
    time.sleep(0.1)
"""


def start_runner(project: Project, folder: Path, path: Path) -> tuple[BaseProcess, int]:
    """Start a run in a process of its own; return it once its notebook has started a grandchild, with its pid."""
    (folder / "project.py").write_text(PROJECT_SOURCE)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": project.tracking_uri}
    process = workers.start(run_here, environment, folder, path)
    marker = folder / "child"
    deadline = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()):
        assert process.exitcode is None, (folder / "stderr").read_text()
        assert time.monotonic() < deadline, "the notebook never started its child"
        time.sleep(0.05)
    return process, int(marker.read_text())


def run_here(environment: dict[str, str], folder: Path, path: Path) -> None:
    """Run in another process; what it says is in the folder."""
    os.environ.clear()
    os.environ.update(environment)
    sys.stderr = (folder / "stderr").open("w")
    notebooks.run_notebook(load_project(folder / "project.py"), path)


def is_gone(pid: int, *, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_killed_and_leaves_no_process(
    project: Project, folder: Path, number: signal.Signals, record: Callable[..., None]
) -> None:
    path = write_notebook(folder, BUSY, "2", parameters=None)
    process, grandchild = start_runner(project, folder, path)
    os.kill(process.pid or 0, number)
    process.join(timeout=30)
    assert f"stopped by {number.name}" in (folder / "stderr").read_text()
    assert last_run(project).info.status == "KILLED"
    assert is_gone(grandchild)
    executed = next(project.runs_path.glob("*/nb.ipynb"))
    assert statuses(executed) == ["failed", "pending"]
    record(10, ours="the run is FAILED or KILLED, and no process of its session is left")


def test_a_killed_runner_takes_its_kernel_and_grandchildren_along(project: Project, folder: Path) -> None:
    path = write_notebook(folder, BUSY, parameters=None)
    process, grandchild = start_runner(project, folder, path)
    process.kill()
    process.join()
    executed = next(project.runs_path.glob("*/nb.ipynb"))
    assert json.loads(executed.read_text())["cells"], "the copy is whole at every moment"
    assert is_gone(grandchild)


def test_the_executed_copy_is_whole_at_every_moment(project: Project, folder: Path) -> None:
    path = write_notebook(folder, *["print('x' * 200_000)"] * 15)
    torn = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(notebooks.run_notebook, project, path)
        while not running.done():
            for copy in project.runs_path.glob("*/nb.ipynb"):
                try:
                    json.loads(copy.read_text())
                except ValueError:
                    torn.append(copy)
        running.result()
    assert torn == []


# --- results -----------------------------------------------------------------------------------------------------


def test_a_result_that_json_cannot_carry_is_refused() -> None:
    with pytest.raises(NotebookError, match="Result 'x' is a float"):
        tracking.record_result(x=float("nan"))
    with pytest.raises(NotebookError, match="Result 'when' is a date"):
        tracking.record_result(when=date(2020, 1, 1))


# --- cached runs -------------------------------------------------------------------------------------------------

READER = """
from mlops_lib import data, tracking
from mlops_lib.project import load_project
project = load_project()
rows = data.read_table(project.path("arrivals", "p1"))
"""
RESULT = "tracking.record_result(n=len(rows), alpha=alpha)"


@pytest.fixture
def cachable(project: Project, folder: Path) -> Project:
    """Return the project with a project file, so that a notebook can load it."""
    folder.mkdir()
    (folder / "project.py").write_text(PROJECT_SOURCE)
    return replace(project, file=folder / "project.py", environ={**os.environ, "MLOPS_ACTOR": "ada"})


def run_cached(project: Project, path: Path, **parameters: Any) -> notebooks.NotebookRun:
    return notebooks.run_notebook(project, path, parameters, cached=True)


def test_an_unchanged_run_is_returned_instead_of_run_again(cachable: Project, folder: Path) -> None:
    path = write_notebook(folder, READER, RESULT)
    first = run_cached(cachable, path)
    again = run_cached(cachable, path)
    assert (first.cached, again.cached) == (False, True)
    assert (again.run_id, again.result) == (first.run_id, first.result)
    assert count_runs(cachable) == 1
    assert "had been run already" in str(again)


def test_a_cached_run_gives_its_report_back_where_the_local_copy_is_gone(cachable: Project, folder: Path) -> None:
    path = write_notebook(folder, READER, RESULT)
    first = run_cached(cachable, path)
    first.executed_path.unlink()
    first.html_path.unlink()
    again = run_cached(cachable, path)
    assert again.cached
    assert again.html_path.exists()
    assert again.executed_path.exists()


def test_a_run_whose_files_were_deleted_from_the_store_is_not_given_back(cachable: Project, folder: Path) -> None:
    path = write_notebook(folder, READER, RESULT)
    first = run_cached(cachable, path)
    for file in (cachable.root / "mlartifacts").rglob(INPUTS_FILE):
        file.unlink()
    again = run_cached(cachable, path)
    assert (again.cached, again.result) == (False, first.result)


def test_changing_markdown_runs_nothing_again(cachable: Project, folder: Path) -> None:
    run_cached(cachable, write_notebook(folder, "# One", READER, RESULT))
    assert run_cached(cachable, write_notebook(folder, "# Two, quite different", READER, RESULT)).cached


@pytest.mark.parametrize("change", ["cell", "parameter", "input", "project file", "lock", "input gone"])
def test_changing_what_a_run_depends_on_runs_it_again(cachable: Project, folder: Path, change: str) -> None:
    path = write_notebook(folder, READER, RESULT)
    (cachable.root / "requirements.lock").write_text("a==1")
    run_cached(cachable, path)
    table = cachable.path("arrivals", "p1")
    parameters = {}
    if change == "cell":
        path = write_notebook(folder, READER, RESULT + "  # again")
    elif change == "parameter":
        parameters = {"alpha": 0.75}
    elif change == "input":
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 1
        table.write_bytes(cachable.path("arrivals", "p2").read_bytes())
    elif change == "project file":
        (folder / "project.py").write_text(PROJECT_SOURCE + "# a comment\n")
    elif change == "lock":
        (cachable.root / "requirements.lock").write_text("a==2")
    else:
        table.write_bytes(cachable.path("arrivals", "p3").read_bytes())
    assert not run_cached(cachable, path, **parameters).cached


def test_a_failed_run_is_never_returned(cachable: Project, folder: Path) -> None:
    path = write_notebook(folder, "from pathlib import Path", "assert Path('/nonexistent').exists()")
    for _ in range(2):
        with raises(NotebookError, "cell"):
            run_cached(cachable, path)
    assert count_runs(cachable) == 2


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("open('beside.txt').read()", "beside.txt' other than through mlops_lib.data"),
        ("import subprocess; subprocess.run(['sleep', '0'])", "started the program 'sleep'"),
        ("import sqlite3; sqlite3.connect('beside.txt')", "beside.txt' other than"),
        ("import sqlite3; sqlite3.connect('file:beside.txt?mode=ro', uri=True)", "beside.txt' other than"),
        ("import os; os.system('cat beside.txt > /dev/null')", "started the program 'sh -c cat beside.txt"),
        ("import os; os.system('sleep 0')", "started the program 'sleep'"),
        ("import subprocess; subprocess.run('cat beside.txt', shell=True)", "started the program 'cat'"),
        ("import os; os.posix_spawn('/bin/sleep', ['sleep', '0'], {})", "started the program 'sleep'"),
        ("open('beside.txt', 'r+').read()", "changed '"),
        ("open('beside.txt', 'a').write('x')", "changed '"),
        ("import os; os.read(os.open('beside.txt', os.O_RDWR), 1)", "changed '"),
        ("import pyarrow.parquet as pq; pq.read_table('rows.parquet')", "rows.parquet' other than"),
        ("import pyarrow.parquet as pq; pq.ParquetFile('rows.parquet').read()", "rows.parquet' other than"),
        ("import pandas as pd; pd.read_parquet('rows.parquet')", "rows.parquet' other than"),
        ("import pyarrow as pa; pa.memory_map('rows.parquet').read()", "rows.parquet' other than"),
        ("import pyarrow.dataset as ds; ds.dataset('.').to_table()", "the folder '"),
        ("import numpy as np; np.fromfile('beside.txt')", "beside.txt' other than"),
    ],
)
def test_an_undeclared_read_makes_a_run_uncacheable_with_the_reason(
    cachable: Project, folder: Path, cell: str, reason: str
) -> None:
    (folder / "beside.txt").write_text("")
    pd.DataFrame({"x": [1]}).to_parquet(folder / "rows.parquet")
    path = write_notebook(folder, f"try:\n    {cell}\nexcept (OSError, ValueError):\n    pass")
    finished = run_cached(cachable, path)
    assert reason in finished.uncacheable
    assert last_run(cachable).data.tags["mlops.uncacheable"] == finished.uncacheable
    assert not run_cached(cachable, path).cached


@pytest.mark.parametrize(
    "cell",
    [
        "open('new.txt', 'w').write('x'); print(open('new.txt').read())",
        "import os, tempfile; d = tempfile.mkdtemp(); open(d + '/a', 'a').write('x'); print(os.listdir(d))",
        "import pandas as pd; pd.DataFrame({'x': [1]}).to_parquet('new.parquet'); pd.read_parquet('new.parquet')",
        "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()",
        "import sklearn.datasets; sklearn.datasets.load_iris()",
        "import ctypes.util; ctypes.util.find_library('c')",
    ],
)
def test_what_a_run_wrote_itself_and_what_libraries_bring_are_no_inputs(
    cachable: Project, folder: Path, cell: str
) -> None:
    path = write_notebook(folder, cell)
    assert run_cached(cachable, path).uncacheable == ""
    for name in ("new.txt", "new.parquet"):
        (folder / name).unlink(missing_ok=True)
    assert run_cached(cachable, path).cached


def test_a_folder_that_was_listed_is_an_input_by_its_names(cachable: Project, folder: Path) -> None:
    (cachable.root / "more data").mkdir()
    cell = "import glob\nfrom mlops_lib import tracking\ntracking.record_result(n=len(glob.glob('../more data/*')))"
    path = write_notebook(folder, cell)
    assert run_cached(cachable, path).result == {"n": 0}
    assert run_cached(cachable, path).cached
    (cachable.root / "more data" / "a.csv").write_text("")
    assert run_cached(cachable, path).result == {"n": 1}


def test_a_folder_whose_name_only_begins_like_a_known_one_is_no_known_one(cachable: Project, folder: Path) -> None:
    beside = cachable.runs_path.with_name(cachable.runs_path.name + "-of-mine")
    beside.mkdir(parents=True)
    (beside / "x.txt").write_text("")
    path = write_notebook(folder, f"open({str(beside / 'x.txt')!r}).read()")
    assert "x.txt' other than" in run_cached(cachable, path).uncacheable


def test_a_training_run_whose_version_is_gone_is_run_again(cachable: Project, folder: Path) -> None:
    from conftest import register_model

    from mlops_lib import registry

    made = register_model(cachable)
    cell = "from mlops_lib import registry, tracking\nfrom mlops_lib.project import load_project\n"
    cell += f"made = registry.register(load_project(), 'models:/{made.model_id}')\n"
    cell += "tracking.record_result(version=made.version)"
    path = write_notebook(folder, cell)
    assert run_cached(cachable, path).result == {"version": 2}
    assert run_cached(cachable, path).cached
    registry.register(cachable, f"models:/{made.model_id}")
    registry.delete_version(cachable, 2, reason="not wanted")
    assert run_cached(cachable, path).result == {"version": 4}


def test_a_module_beside_the_notebook_is_an_input(cachable: Project, folder: Path) -> None:
    (folder / "beside.py").write_text("x = 1\n")
    path = write_notebook(folder, "from beside import x\nfrom mlops_lib import tracking\ntracking.record_result(x=x)")
    assert run_cached(cachable, path).result == {"x": 1}
    assert run_cached(cachable, path).cached
    (folder / "beside.py").write_text("x = 22\n")
    changed = run_cached(cachable, path)
    assert (changed.cached, changed.result) == (False, {"x": 22})


def test_a_stage_that_moved_runs_again_what_read_it(cachable: Project, folder: Path) -> None:
    from conftest import register_model

    from mlops_lib import registry

    register_model(cachable)
    cell = "from mlops_lib import registry, tracking\nfrom mlops_lib.project import load_project\n"
    cell += "tracking.record_result(prod=registry.current(load_project(), 'dev'))"
    path = write_notebook(folder, cell)
    assert run_cached(cachable, path).result == {"prod": 1}
    assert run_cached(cachable, path).cached
    register_model(cachable, C=2.0)
    assert registry.current(cachable, "dev") == 2
    assert run_cached(cachable, path).result == {"prod": 2}
