"""Sweeps: what is refused, what is kept when trials fail, and what is run again after a kill (only what is missing)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import workers
from click.testing import CliRunner
from mlflow.entities import Run
from notebook_files import PROJECT_SOURCE, write_notebook
from refusals import raises

from mlops_lib.cli import main
from mlops_lib.errors import (
    MlopsError,
    NotebookError,
    NotFoundError,
    ParameterError,
)
from mlops_lib.programs import notebooks
from mlops_lib.programs.notebooks.page import INERT, _read_css, load_exporter, write_page
from mlops_lib.programs.notebooks.run import connect
from mlops_lib.programs.notebooks.signature import read_signature
from mlops_lib.programs.notebooks.sweeps import PARENT_TAG, SWEEP_TAG, TRIAL_TAG, list_combinations
from mlops_lib.project import Project, load_project
from mlops_lib.tracking import store
from mlops_lib.tracking.liveness import HEARTBEAT_TAG, RUNNER_TAG, describe_runner

PARAMETERS = "alpha: float = 0.5  # strength\nn: int = 1  # how many\nkind: str = 'x'  # a text"
SCORE = "from mlops_lib import tracking\ntracking.record_result(trials=n, score=alpha * n)"
N_KILLS = int(os.environ.get("MLOPS_TEST_KILLS", "5"))  # fifty by hand


@pytest.fixture
def folder(project: Project) -> Path:
    (project.root / "notebooks").mkdir()
    (project.root / "notebooks/project.py").write_text(PROJECT_SOURCE)
    return project.root / "notebooks"


@pytest.fixture
def path(folder: Path) -> Path:
    return write_notebook(folder, SCORE, parameters=PARAMETERS)


def all_runs(project: Project) -> list[Run]:
    client, experiment_id = connect(project)
    return list(client.search_runs([experiment_id], max_results=10_000))


def children(project: Project, parent: str) -> list[Run]:
    return [run for run in all_runs(project) if run.data.tags.get(PARENT_TAG) == parent]


def get_run(project: Project, run_id: str) -> Run:
    return store.connect(project.tracking_uri).get_run(run_id)


# --- the grid ----------------------------------------------------------------------------------------------------


def combinations(path: Path, grid: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return list_combinations(read_signature(nbformat.read(path, as_version=4), path), grid, path, **options)


def test_a_grid_is_every_combination_in_order(path: Path) -> None:
    found = combinations(path, {"alpha": [0.1, 0.2], "n": (1, 2)})
    assert [(c["alpha"], c["n"]) for c in found] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]


def test_a_sample_is_distinct_and_the_same_for_the_same_random_state(path: Path) -> None:
    grid = {"alpha": np.linspace(0, 1, 1000), "n": range(1000)}
    found = combinations(path, grid, sample=20, random_state=3)
    assert len({(c["alpha"], c["n"]) for c in found}) == 20
    assert found == combinations(path, grid, sample=20, random_state=3)
    assert found != combinations(path, grid, sample=20, random_state=4)
    assert len(combinations(path, {"n": [1, 2]}, sample=20)) == 2


def test_numpy_values_become_plain_and_equal_ones_one_trial(path: Path) -> None:
    found = combinations(path, {"alpha": np.array([1.0, 2.0, 1.0]), "n": np.arange(2)})
    assert [(c["alpha"], c["n"]) for c in found] == [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)]
    assert {(type(c["alpha"]), type(c["n"])) for c in found} == {(float, int)}
    assert len(combinations(path, {"alpha": [1, 1.0]})) == 1


@pytest.mark.parametrize(
    ("grid", "options", "error", "message"),
    [
        ({"alpha": [0.1], "nn": [1]}, {}, NotFoundError, "Did you mean 'n'"),
        ({"alpha": [0.1, 0.2, "much"]}, {}, ParameterError, "is 'much', needs float"),
        ({"alpha": [0.1, "much"], "n": [1]}, {"sample": 1}, ParameterError, "is 'much', needs float"),
        ({"kind": ["ghp_" + "a" * 36]}, {}, ParameterError, "environment variable"),
        ({}, {}, NotebookError, "it names no parameter"),
        ({"n": []}, {}, NotebookError, "'n' has no values"),
        ({"kind": "abc"}, {}, NotebookError, "'kind' is 'abc', needs a list of values"),
        ({"n": 3}, {}, NotebookError, "'n' is 3, needs a list of values"),
        ({"n": [3]}, {"sample": 0}, NotebookError, "sample is 0, needs at least 1"),
        ({"n": [3]}, {"n_jobs": 0}, NotebookError, "n_jobs is 0, needs at least 1"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_before_anything_runs(
    project: Project, path: Path, *, grid: Any, options: Any, error: type[MlopsError], message: str
) -> None:
    with pytest.raises(error, match=message):
        notebooks.sweep(project, path, grid, **options)
    assert all_runs(project) == []
    assert not project.runs_path.exists()


def test_a_kernel_that_is_not_installed_is_refused_before_anything_runs(project: Project, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"]["name"] = "julia"
    nbformat.write(notebook, path)
    with raises(NotFoundError, "kernel"):
        notebooks.sweep(project, path, {"n": [1, 2]})
    assert all_runs(project) == []


# --- sweeps that run ---------------------------------------------------------------------------------------------


def test_a_sweep_is_a_parent_run_with_a_nested_run_table_and_figure(project: Project, path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    found = notebooks.sweep(
        project, path, {"alpha": [0.25, 0.5], "n": [1, 2]}, progress=lambda *facts: said.append(facts)
    )
    assert found.passed
    assert found.metric == "score", "the first float; 'trials' is an int"
    assert list(found.trials.columns) == [
        *("alpha", "n", "trials", "score"),
        *("status", "run_id", "duration_s", "error"),
    ]
    assert found.trials["score"].tolist() == [0.25, 0.5, 0.5, 1.0]
    assert found.best == "best score 1 (alpha=0.5, n=2)"
    assert [facts[:2] for facts in said] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert said[-1][2] == found.best
    parent = get_run(project, found.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"score": 1.0}
    assert parent.data.params == {"alpha": "0.25, 0.5", "n": "1, 2"}
    nested = children(project, found.run_id)
    assert {run.info.run_id for run in nested} == set(found.trials["run_id"])
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert {run.data.tags["mlflow.runName"] for run in nested} >= {"nb alpha=0.25, n=1"}
    files = {file.path for file in store.connect(project.tracking_uri).list_artifacts(found.run_id)}
    assert files == {"trials.csv", "sweep.png"}
    table = pd.read_csv(found.folder / "trials.csv")
    assert table["score"].tolist() == found.trials["score"].tolist()
    assert (found.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_has_one_panel_a_swept_parameter_with_title_and_axes(project: Project, path: Path) -> None:
    from mlops_lib.programs.notebooks.sweeps import plot_trials

    grid = {"alpha": [0.01, 0.1, 1.0], "n": [1], "kind": ["a", "b"]}
    found = notebooks.sweep(project, path, grid, metric="score", greater_is_better=False)
    assert found.best == "best score 0.01 (alpha=0.01, n=1, kind='a')"
    figure = plot_trials(found)
    assert [ax.get_xlabel() for ax in figure.axes] == ["alpha", "kind"], "a parameter with one value shows nothing"
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear"]
    assert all(ax.get_title() and ax.get_ylabel() == "score" for ax in figure.axes)
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["a", "b"]
    assert "lower is better" in figure.get_suptitle()


def test_a_failed_trial_is_kept_and_counted_and_stops_nothing(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "assert n != 2, 'two is too many'", SCORE, parameters=PARAMETERS)
    found = notebooks.sweep(project, path, {"n": [1, 2, 3]})
    assert found.trials["status"].tolist() == ["FINISHED", "FAILED", "FINISHED"]
    failed = found.trials.iloc[1]
    assert "AssertionError: two is too many" in failed["error"]
    assert get_run(project, failed["run_id"]).info.status == "FAILED"
    assert failed["duration_s"] > 0
    assert get_run(project, found.run_id).info.status == "FAILED"
    assert "2 finished, 1 failed" in str(found)
    again = notebooks.sweep(project, path, {"n": [1, 2, 3]})
    assert again.run_id == found.run_id, "it goes on under the same parent"
    assert again.n_executed == 1, "the failed one is tried again, the others are not"


def test_fail_fast_cancels_what_has_not_begun(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "assert n != 1", SCORE, parameters=PARAMETERS)
    found = notebooks.sweep(project, path, {"n": [1, 2, 3, 4]}, n_jobs=1, fail_fast=True)
    assert found.trials["status"].tolist() == ["FAILED", *["CANCELLED"] * 3]
    assert len(children(project, found.run_id)) == 1
    assert found.best == "no trial recorded a metric"


def test_results_that_are_called_like_parameters_have_their_own_column(project: Project, folder: Path) -> None:
    cell = "from mlops_lib import tracking\ntracking.record_result(alpha=2 * alpha, status='good')"
    found = notebooks.sweep(project, write_notebook(folder, cell, parameters=PARAMETERS), {"alpha": [1.0, 2.0]})
    assert found.metric == "result.alpha"
    assert found.trials["result.alpha"].tolist() == [2.0, 4.0]
    assert found.trials["alpha"].tolist() == [1.0, 2.0]
    assert found.trials["result.status"].tolist() == ["good", "good"]


def test_a_metric_that_nobody_recorded_is_said_and_loses_nothing(project: Project, path: Path) -> None:
    found = notebooks.sweep(project, path, {"n": [1, 2]}, metric="skore")
    assert found.best == "no trial recorded 'skore'"
    assert found.trials["score"].tolist() == [0.5, 1.0]


def test_a_finished_sweep_is_given_back_and_a_changed_one_is_another(project: Project, path: Path) -> None:
    first = notebooks.sweep(project, path, {"n": [1, 2]})
    again = notebooks.sweep(project, path, {"n": [1, 2]})
    assert (again.run_id, again.n_executed) == (first.run_id, 0)
    pd.testing.assert_frame_equal(again.trials.drop(columns="duration_s"), first.trials.drop(columns="duration_s"))
    wider = notebooks.sweep(project, path, {"n": [1, 2, 3]})
    assert wider.run_id != first.run_id
    assert wider.n_executed == 1, "what was run is reused across sweeps"
    assert len(all_runs(project)) == 2 + 3


# --- the command -------------------------------------------------------------------------------------------------


def invoke(project: Project, *arguments: str) -> Any:
    environment = {
        "MLFLOW_TRACKING_URI": project.tracking_uri,
        "MLOPS_PROJECT": str(project.root / "notebooks/project.py"),
    }
    return CliRunner().invoke(main, ["sweep", *arguments], env=environment)


def test_the_command_prints_a_table_best_first(project: Project, path: Path) -> None:
    done = invoke(project, str(path), "-g", "n=1,3", "-g", "n=2", "-g", "kind=a", "-j", "2")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["3", "2", "1"]
    assert "best score 1.5 (n=3, kind='a')" in done.stdout


def test_the_command_exits_with_3_and_a_table_when_a_trial_failed(project: Project, folder: Path) -> None:
    path = write_notebook(folder, "assert n != 2, 'first line\\nsecond line'", SCORE, parameters=PARAMETERS)
    done = invoke(project, str(path), "-g", "n=1,2", "--json")
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert [trial["status"] for trial in found["trials"]] == ["FINISHED", "FAILED"]
    assert found["passed"] is False
    text = invoke(project, str(path), "-g", "n=1,2")
    assert text.exit_code == 3
    assert "1 finished, 1 failed, 1 run now" in text.stdout
    assert "second line" in found["trials"][1]["error"]
    assert "second line" not in text.stdout, "a table has one line a trial"


def test_commas_inside_brackets_belong_to_a_value(project: Project, folder: Path) -> None:
    cell = "from mlops_lib import tracking\ntracking.record_result(count=len(names))"
    path = write_notebook(folder, cell, parameters="names: list[str] = []  # of things")
    done = invoke(project, str(path), "-g", "names=['a','b'],['c']", "--json")
    assert done.exit_code == 0, done.output
    assert [trial["count"] for trial in json.loads(done.stdout)["trials"]] == [2, 1]


def test_the_command_refuses_what_is_no_grid(project: Project, path: Path) -> None:
    assert invoke(project, str(path), "-g", "n").exit_code == 2
    assert invoke(project, str(path), "-g", "m=1").exit_code == 1
    assert all_runs(project) == []


# --- sweeps that are stopped -------------------------------------------------------------------------------------

SLOW = "import time; time.sleep(0.4)"
# Reads a file behind the library's back: its runs can never be reused by key.
UNSEEN = "open('beside.txt').read()"


def start_sweep(project: Project, path: Path) -> BaseProcess:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": project.tracking_uri,
        "MLOPS_PROJECT": f"{path.parent}/project.py",
    }
    return workers.start(sweep, environment, path)


def sweep(environment: dict[str, str], path: Path) -> None:
    """Run in another process."""
    os.environ.clear()
    os.environ.update(environment)
    notebooks.sweep(load_project(), path, {"n": [1, 2, 3, 4], "alpha": [0.5, 1.0]}, n_jobs=3)


def open_trials(project: Project) -> list[Run]:
    return [run for run in all_runs(project) if TRIAL_TAG in run.data.tags and run.info.status == "RUNNING"]


def runs_of(project: Project, process: BaseProcess) -> list[Run]:
    return [run for run in all_runs(project) if run.data.tags[RUNNER_TAG].split()[2] == str(process.pid)]


def wait_for(condition: Any, *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # each look asks the store for all runs


@pytest.mark.parametrize("cells", [(SLOW, SCORE), (UNSEEN, SLOW, SCORE)], ids=["cacheable", "uncacheable"])
def test_a_sweep_that_is_killed_again_and_again_runs_each_trial_once(
    project: Project, folder: Path, cells: tuple[str, ...]
) -> None:
    (folder / "beside.txt").write_text("x")
    draw = random.Random(len(cells))
    for number in range(max(1, N_KILLS // 5)):  # a sweep stands about five kills before it is done
        path = write_notebook(folder, *cells, f"{number}", SCORE, parameters=PARAMETERS, name=f"nb{number}")
        n_kills, done = 0, False
        while n_kills < 5 and not done:
            process = start_sweep(project, path)
            wait_for(lambda p=process: p.exitcode is not None or runs_of(project, p))
            time.sleep(draw.uniform(0, 2.5))
            ended = process.exitcode
            process.kill()
            process.join()
            assert ended in (None, 0)
            finished = [
                run for run in all_runs(project) if SWEEP_TAG in run.data.tags and run.info.status == "FINISHED"
            ]
            done = ended == 0 or len(finished) > number  # the last kill may fall between its end and its exit
            n_kills += 1
        if done:  # to ask again would begin a new sweep, where the notebook is uncacheable
            check_that_nothing_ran_twice(project, finished[0].info.run_id)
            continue
        found = notebooks.sweep(replace_file(project, folder), path, {"n": [1, 2, 3, 4], "alpha": [0.5, 1.0]}, n_jobs=3)
        print(f"sweep {number}: {n_kills} kills, {found.n_executed} trials left for the last call", file=sys.stderr)
        assert found.passed
        check_that_nothing_ran_twice(project, found.run_id)


def replace_file(project: Project, folder: Path) -> Project:
    """Return the project as load_project gives it in the killed process: of the same key."""
    return replace(project, file=folder / "project.py", environ={**os.environ})


def check_that_nothing_ran_twice(project: Project, run_id: str) -> None:
    runs = all_runs(project)
    assert "RUNNING" not in {run.info.status for run in runs}
    key = get_run(project, run_id).data.tags[SWEEP_TAG]
    assert len([run for run in runs if run.data.tags.get(SWEEP_TAG) == key]) == 1, "one parent, however often killed"
    by_trial = defaultdict(list)
    for run in children(project, run_id):
        by_trial[run.data.tags[TRIAL_TAG]].append(run)
    assert len(by_trial) == 8
    for trial, of in by_trial.items():
        of.sort(key=lambda run: run.info.start_time)
        statuses = [run.info.status for run in of]
        assert statuses == ["KILLED"] * (len(of) - 1) + ["FINISHED"], f"{trial}: finished once, last"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_stop_marks_its_runs_itself(
    project: Project, folder: Path, number: signal.Signals
) -> None:
    path = write_notebook(folder, "import time\nwhile True:\n    time.sleep(0.1)", parameters=PARAMETERS)
    process = start_sweep(project, path)
    wait_for(lambda: len(open_trials(project)) == 3)
    os.kill(process.pid or 0, number)
    process.join(timeout=30)
    assert process.exitcode not in (None, 0)
    assert {run.info.status for run in all_runs(project)} == {"KILLED"}
    assert len(all_runs(project)) == 1 + 3, "what had not begun was not begun"


def test_the_same_sweep_in_two_processes_is_refused(project: Project, folder: Path) -> None:
    path = write_notebook(folder, SLOW, SCORE, parameters=PARAMETERS)
    process = start_sweep(project, path)
    wait_for(lambda: open_trials(project))
    with pytest.raises(NotebookError, match="already running"):
        notebooks.sweep(replace_file(project, folder), path, {"n": [1, 2, 3, 4], "alpha": [0.5, 1.0]})
    process.join(timeout=60)
    assert process.exitcode == 0


# --- runs whose process is gone ----------------------------------------------------------------------------------


def open_run(project: Project, runner: str, status: str = "RUNNING") -> str:
    client, experiment_id = connect(project)
    run_id = str(client.create_run(experiment_id, tags={RUNNER_TAG: runner}).info.run_id)
    client.update_run(run_id, status=status)
    return run_id


def dead_runner(**changes: str) -> str:
    """Return the tag of a process that has ended, with some of its facts changed."""
    names = ("state", "host", "pid", "start", "init")
    facts = dict(zip(names, describe_runner("running").split(" "), strict=True))
    process = subprocess.Popen(["true"])
    process.wait()
    return " ".join((facts | {"pid": str(process.pid), "start": "1"} | changes).values())


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_an_open_run_of_a_dead_process_is_marked_killed_whatever_it_says(project: Project, status: str) -> None:
    run_id = open_run(project, dead_runner(), status)
    assert notebooks.reap_dead_runs(project) == [run_id]
    run = get_run(project, run_id)
    assert run.info.status == "KILLED"
    assert "was found gone" in run.data.tags["mlops.reaped"]
    assert notebooks.reap_dead_runs(project) == []


def test_a_run_whose_process_died_while_it_closed_it_is_closed_as_it_had_ended(project: Project) -> None:
    run_id = open_run(project, dead_runner(state="FINISHED"))
    live = open_run(project, describe_runner("FINISHED"))
    assert notebooks.reap_dead_runs(project) == [run_id]
    assert get_run(project, run_id).info.status == "FINISHED"
    assert get_run(project, live).info.status == "RUNNING"


def test_a_store_that_was_left_in_the_middle_of_a_write_is_used_again(project: Project) -> None:
    code = (
        "import os, sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\ndb.execute('pragma cache_size = 1')\n"
        "db.execute('create table t (x)')\n"
        "db.executemany('insert into t values (?)', [('x' * 1000,)] * 1000)\nos.kill(os.getpid(), 9)"
    )
    path = project.root / "mlflow.db"
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert path.with_name("mlflow.db-journal").stat().st_size
    assert notebooks.reap_dead_runs(project) == []
    assert not path.with_name("mlflow.db-journal").exists()


def test_a_reused_process_number_is_no_sign_of_life(project: Project) -> None:
    run_id = open_run(project, dead_runner(pid=str(os.getpid())))
    assert notebooks.reap_dead_runs(project) == [run_id]


def test_a_process_that_only_waits_to_be_buried_is_dead(project: Project) -> None:
    process = subprocess.Popen(["true"])
    start = psutil.Process(process.pid).create_time()
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    run_id = open_run(project, dead_runner(pid=str(process.pid), start=f"{start:.2f}"))
    assert notebooks.reap_dead_runs(project) == [run_id]
    process.wait()


@pytest.mark.parametrize(
    "runner",
    [
        describe_runner("running"),
        dead_runner(host="elsewhere"),
        dead_runner(init="1.00"),
        dead_runner(init="-"),
        "running",
    ],
    ids=["alive", "other host", "other container", "unknown container", "no facts"],
)
def test_a_run_that_may_be_alive_is_left_alone(project: Project, runner: str) -> None:
    run_id = open_run(project, runner)
    assert notebooks.reap_dead_runs(project) == []
    assert get_run(project, run_id).info.status == "RUNNING"


def test_of_what_ran_before_a_reboot_the_heartbeat_decides(project: Project) -> None:
    run_id, other = (open_run(project, dead_runner(init="1.00")) for _ in range(2))
    client, _ = connect(project)
    client.set_tag(run_id, HEARTBEAT_TAG, (datetime.now(UTC) - timedelta(hours=1)).isoformat())
    client.set_tag(other, HEARTBEAT_TAG, datetime.now(UTC).isoformat())
    assert notebooks.reap_dead_runs(project) == [run_id]


def test_a_live_run_outlives_the_next_command(project: Project, folder: Path) -> None:
    path = write_notebook(
        folder, "from pathlib import Path\nimport time", "while not Path('go').exists():\n    time.sleep(0.05)"
    )
    thread = threading.Thread(target=notebooks.run_notebook, args=(project, path))
    thread.start()
    wait_for(lambda: [run for run in all_runs(project) if run.info.status == "RUNNING"])
    notebooks.run_notebook(project, write_notebook(folder, "1", name="other"))
    (folder / "go").touch()
    thread.join()
    assert {run.info.status for run in all_runs(project)} == {"FINISHED"}


def test_the_next_run_of_any_notebook_marks_what_a_kill_has_left(project: Project, folder: Path) -> None:
    run_id = open_run(project, dead_runner())
    notebooks.run_notebook(project, write_notebook(folder, "1"))
    assert get_run(project, run_id).info.status == "KILLED"


# --- speed that costs no evidence ----------------------------------------------------------------------------------


def test_the_reused_exporter_writes_what_a_new_one_would(folder: Path, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    written = []
    for name in ("one", "two"):
        nb = nbformat.read(write_notebook(folder, f"# Title {name}", SCORE, name=name), as_version=4)
        write_page(nb, tmp_path / f"{name}.html")
        fresh = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
        body, _ = fresh.from_notebook_node(nb, resources={"metadata": {"name": name}})
        ours = (tmp_path / f"{name}.html").read_text().replace(INERT, "").replace(f"<style>{_read_css()}</style>", "")
        written.append(ours == body)
    assert written == [True, True]
    assert load_exporter() is load_exporter()
