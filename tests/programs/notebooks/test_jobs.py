"""Several notebooks in one command: all are checked first, none stops another, and all are stopped together."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from notebook_files import PROJECT_SOURCE, count_runs, write_notebook
from refusals import raises

from mlops_lib.cli import main
from mlops_lib.errors import (
    MlopsError,
    NotebookError,
    NotFoundError,
    ParameterError,
)
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks import NotebookRun
from mlops_lib.project import Project
from mlops_lib.tracking import store

PARAMETERS = "alpha: float = 0.5  # strength\nn: int = 1  # how many"
SCORE = "from mlops_lib import tracking\ntracking.record_result(score=alpha * n)"


@pytest.fixture
def folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the notebooks a, b and c, of which b raises."""
    folder = project.root / "notebooks"
    for name, cell in (("a", SCORE), ("b", "1 / 0"), ("c", SCORE)):
        write_notebook(folder, cell, parameters=PARAMETERS, name=name)
    (folder / "project.py").write_text(PROJECT_SOURCE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.setenv("MLOPS_PROJECT", str(folder / "project.py"))
    return folder


def mlops(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments])


def read_statuses(project: Project) -> dict[str, str]:
    client = store.connect(project.tracking_uri)
    experiment = client.get_experiment_by_name(project.name)
    assert experiment is not None
    return {str(run.info.run_name): run.info.status for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.usefixtures("folder")
def test_runs_come_back_in_the_order_given_whatever_ends_first(project: Project) -> None:
    told: list[tuple[int, NotebookRun | Exception]] = []
    calls = [("a", {"alpha": 2.0}), ("c", {"alpha": 3.0, "n": 2}), ("a", {})]
    runs = notebooks.run_notebooks(project, calls, n_jobs=3, ended=lambda *facts: told.append(facts))
    assert [run.result["score"] for run in runs] == [2.0, 6.0, 0.5]
    assert dict(told) == dict(enumerate(runs))
    assert len({run.run_id for run in runs}) == 3


@pytest.mark.usefixtures("folder")
def test_a_notebook_that_fails_stops_no_other(project: Project) -> None:
    told: dict[int, NotebookRun | Exception] = {}
    with raises(NotebookError, "several") as caught:
        notebooks.run_notebooks(project, [("a", {}), ("b", {}), ("c", {})], n_jobs=1, ended=told.__setitem__)
    assert (caught.value.failed, caught.value.n_notebooks) == (("b.ipynb",), 3)
    assert [type(told[index]) for index in range(3)] == [NotebookRun, NotebookError, NotebookRun]
    assert told[1].case == "cell"
    assert read_statuses(project) == {"a": "FINISHED", "b": "FAILED", "c": "FINISHED"}


@pytest.mark.parametrize(
    ("call", "error", "case"),
    [
        (("c", {"alfa": 1.0}), NotFoundError, "parameter"),
        (("c", {"n": "many"}), ParameterError, "value"),
        (("d", {}), NotFoundError, "notebook"),
        (("julia", {}), NotFoundError, "kernel"),
    ],
)
def test_one_call_that_does_not_fit_is_refused_before_any_runs(
    project: Project, folder: Path, call: tuple[str, dict[str, object]], error: type[MlopsError], case: str
) -> None:
    text = (folder / "a.ipynb").read_text()
    (folder / "julia.ipynb").write_text(text.replace('"name": "python3"', '"name": "julia"'))
    with raises(error, case):
        notebooks.run_notebooks(project, [("a", {}), call])
    assert not project.runs_path.exists()


@pytest.mark.usefixtures("folder")
def test_cached_runs_are_told_as_such(project: Project) -> None:
    first = notebooks.run_notebooks(project, [("a", {}), ("c", {})])
    again = notebooks.run_notebooks(project, [("a", {}), ("c", {"n": 2})], cached=True)
    assert [run.cached for run in again] == [True, False]
    assert again[0].run_id == first[0].run_id
    assert count_runs(project) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_them_and_starts_no_other(project: Project, folder: Path, number: signal.Signals) -> None:
    cell = "import time\nopen('running', 'w').close()\ntime.sleep(600)"
    write_notebook(folder, cell, parameters=None, name="slow")

    def kill_when_running() -> None:
        while not (folder / "running").exists():
            stop.wait(0.05)
        os.kill(os.getpid(), number)

    stop = threading.Event()
    threading.Thread(target=kill_when_running).start()
    with pytest.raises(KeyboardInterrupt):
        notebooks.run_notebooks(project, [("slow", {}), ("a", {})], n_jobs=1)
    assert read_statuses(project) == {"slow": "KILLED"}


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_the_command_prints_a_line_each_and_names_what_failed(project: Project) -> None:
    done = mlops("run", "a", "b", "c", "-p", "alpha=2", "-j", "3")
    assert done.exit_code == 1
    assert sorted(line.split(" finished in ")[0] for line in done.stdout.splitlines()) == ["a.ipynb", "c.ipynb"]
    told, summary = done.stderr.splitlines()
    assert "b.ipynb' failed after" in told
    assert summary.startswith("1 of 3 notebooks failed: b.ipynb.")
    assert set(read_statuses(project)) == {"a", "b", "c"}
    assert mlops("run", "a", "c").exit_code == 0


@pytest.mark.usefixtures("folder")
def test_the_commands_json_is_a_list_in_the_order_given() -> None:
    done = mlops("run", "b", "a", "--json")
    assert done.exit_code == 1
    failed, finished = json.loads(done.stdout)
    assert (failed["notebook"], finished["notebook"]) == ("b.ipynb", "a.ipynb")
    assert "ZeroDivisionError" in failed["error"]
    assert finished["result"] == {"score": 0.5}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-p", "alfa=2"], 1, "'alfa'"),
        (["-p", "m=2"], 1, "c.ipynb' has no parameter 'm'"),
        (["-j", "0"], 2, "0 is not in the range"),
        (["-p", "alpha"], 2, "is not NAME=VALUE"),
    ],
)
def test_the_command_refuses_before_anything_runs(
    project: Project, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    write_notebook(folder, SCORE, parameters=f"{PARAMETERS}\nm: int = 0  # only here", name="a")
    done = mlops("run", "a", "c", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert not project.runs_path.exists()


@pytest.mark.usefixtures("folder")
def test_the_command_shows_the_parameters_of_each() -> None:
    done = mlops("run", "a", "c", "--parameters")
    assert done.exit_code == 0
    assert done.stdout.count("strength") == 2
