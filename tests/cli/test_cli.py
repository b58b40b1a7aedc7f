"""The ``mlops`` command: one line for people, JSON for machines, an exit code for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
from click.testing import CliRunner, Result
from conftest import close_databases, make_rows, register_model

from mlops_lib import cli, data, registry, tracking
from mlops_lib.errors import NotFoundError
from mlops_lib.gates import Threshold, check_gates
from mlops_lib.programs import batch
from mlops_lib.project import Project, load_project

PROJECT_FILE = """
from pathlib import Path
from mlops_lib.gates import Threshold
from mlops_lib.project import Project
project = Project(
    name="toy", root=Path({root!r}), target="broke", keys=("thing_id",), features=("color", "size", "weight"),
    arrivals="data/arrivals/{{period}}.parquet", labels="data/labels/{{period}}.parquet",
    gates=(Threshold("roc_auc", {threshold}),), ingest={ingest},
)
"""
Mlops = Callable[..., Result]


def write_project(project: Project, threshold: float = 0.6, ingest: str = "None") -> Path:
    file = project.root / "project.py"
    file.write_text(PROJECT_FILE.format(root=str(project.root), threshold=threshold, ingest=ingest))
    return file


@pytest.fixture
def mlops(project: Project, monkeypatch: pytest.MonkeyPatch) -> Mlops:
    """Return what calls the command on the toy project; it has registered nothing yet."""
    for name in ("MLFLOW_RUN_ID", "MLOPS_OUTPUTS", "MLOPS_NOTEBOOK", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.setenv("MLOPS_ACTOR", "ada")
    monkeypatch.setenv("MLOPS_PROJECT", str(write_project(project)))
    monkeypatch.chdir(project.root)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], color=True)

    return call


def judge(version: int = 1) -> None:
    """Log a verdict for a version, as 03_validate does."""
    project = load_project()
    verdict = check_gates(project, registry.load_model(project, version), None, "p2")
    with tracking.start_run(project):
        registry.log_verdict(project, version, verdict)


def raise_for_error(result: Result, exit_code: int, *words: str) -> None:
    """Expect one red line on stderr that holds ``words``, nothing on stdout, and no traceback."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert "\n" not in line
    assert line.startswith("\x1b[31m")
    assert "Traceback" not in line
    for word in words:
        assert word in line


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(cli.main.commands))
def test_every_command_has_help_with_an_example_that_it_would_accept(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: mlops {name}" in " ".join(result.stdout.split())
    command = cli.main.commands[name]
    assert command.help is not None
    assert command.help.splitlines()[0].endswith(".")
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("help", "host", "port"):
            assert option.help, f"--{option.name} of {name} says nothing"


def test_help_lists_the_commands_in_the_order_of_the_loop() -> None:
    result = CliRunner().invoke(cli.main, ["-h"])
    places = [result.stdout.index(f"\n  {name} ") for name in ("ingest", "run", "promote", "score", "monitor")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["promote"], ["rollback", "prod"], ["score", "a"], ["--nonsense"]],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_version_is_told() -> None:
    assert "0.1.0" in CliRunner().invoke(cli.main, ["--version"]).stdout


# --- yes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_the_loop_from_a_version_to_a_rollback(mlops: Mlops, project: Project) -> None:
    judge()
    promoted = mlops("promote", 1, "staging", "--reason", "best of one")
    assert promoted.exit_code == 0, promoted.output
    assert "promote staging → version 1 by ada" in promoted.stdout
    assert mlops("promote", 1, "prod").exit_code == 0
    assert "staging, prod" in mlops("models").stdout
    shown = mlops("show", "prod").stdout
    assert "1 of 'toy', stages: dev, staging, prod" in shown
    assert "test_roc_auc" in shown
    history = mlops("history", "prod").stdout.splitlines()
    assert len(history) == 2
    assert "gates passed" in history[1]
    scored = mlops("score", project.path("arrivals", "p2"), "scored.parquet")
    assert scored.exit_code == 0, scored.output
    assert "1,000 of 1,000 rows scored with version 1 of 'toy', none set aside" in scored.stdout
    assert len(data.read_table(project.root / "scored.parquet")) == 1000
    assert mlops("monitor", "p2").exit_code == 3, "nothing was scored yet"
    assert mlops("score", project.path("arrivals", "p2"), project.predictions_path("p2", 1)).exit_code == 0
    assert mlops("monitor", "p2").exit_code == 0
    assert mlops("doctor").exit_code == 0


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["models", "--json"], 0),
        (["show", "1", "--json"], 0),
        (["contract", "1", "--json"], 0),
        (["contract", "1", "dev", "--json"], 0),
        (["history", "--json"], 0),
        (["promote", "1", "staging", "--force", "--reason", "test", "--json"], 0),
        (["score", "data/arrivals/p2.parquet", "out.parquet", "--version", "1", "--json"], 0),
        (["monitor", "p2", "--stage", "dev", "--json"], 3),
        (["doctor", "--json"], 0),
    ],
)
def test_json_is_all_that_stdout_holds(mlops: Mlops, arguments: list[str], exit_code: int) -> None:
    def refuse(text: str) -> float:
        raise AssertionError(text)

    result = mlops(*arguments)
    assert result.exit_code == exit_code, result.output
    assert json.loads(result.stdout, parse_constant=refuse)


@pytest.mark.usefixtures("version")
def test_contracts_are_shown_and_compared_and_a_breaking_one_is_exit_code_3(mlops: Mlops, project: Project) -> None:
    register_model(replace(project, features=("color", "size")))
    shown = mlops("contract", "dev")
    assert shown.exit_code == 0, shown.output
    assert "learnt from 1,000 rows; keys thing_id (integer); at most 5.0% bad rows" in shown.stdout
    assert "3 known: blue, green, red" in mlops("contract", 1).stdout
    looser = mlops("contract", 1, 2)
    assert (looser.exit_code, looser.stdout.splitlines()[0]) == (0, "2 against 1: compatible")
    breaking = mlops("contract", 2, 1)
    assert (breaking.exit_code, breaking.stdout.splitlines()[0]) == (3, "1 against 2: breaking")
    assert "the champion takes no such column" in breaking.stdout
    assert json.loads(mlops("contract", 2, 1, "--json").stdout)["facts"]["compatibility"] == "breaking"
    raise_for_error(mlops("contract", 9), 1, "no version '9'")


def test_empty_lists_are_said_and_are_json(mlops: Mlops) -> None:
    assert mlops("models").stdout == "none\n"
    assert mlops("history").stdout == "none\n"
    assert json.loads(mlops("models", "--json").stdout) == []


@pytest.mark.usefixtures("version")
def test_several_versions_are_scored_side_by_side(mlops: Mlops, project: Project) -> None:
    register_model(project, C=0.1)
    both = ["score", "data/arrivals/p2.parquet", "out-{version}.parquet", "--stage", "dev", "--version", "1"]
    found = json.loads(mlops(*both, "--json").stdout)
    assert [(result["version"], result["n_scored"]) for result in found] == [(2, 1000), (1, 1000)]
    assert mlops(*both).stdout.count("1,000 of 1,000 rows already scored") == 2
    one_file = mlops("score", "data/arrivals/p2.parquet", "out.parquet", "--stage", "dev", "--version", "1")
    raise_for_error(one_file, 1, "Versions 2, 1 cannot all be scored to 'out.parquet'")


@pytest.mark.usefixtures("version")
def test_only_the_first_rows_are_scored_when_asked(mlops: Mlops) -> None:
    result = mlops("score", "data/arrivals/p2.parquet", "out.parquet", "--stage", "dev", "--rows", 10)
    assert "10 of 10 rows scored" in result.stdout
    assert mlops("score", "data/arrivals/p2.parquet", "x.parquet", "--stage", "dev", "--rows", 0).exit_code == 2


def test_scoring_prepares_memory_and_skops_before_the_project_file_is_read(
    mlops: Mlops, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project file imports pyarrow, which reads its variable then, and MLflow, which makes skops' import slow."""
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    monkeypatch.delitem(sys.modules, "skops.io", raising=False)
    file = Path(os.environ["MLOPS_PROJECT"])
    seen = (
        "import os, sys\nraise SystemExit(f\"{'skops.io' in sys.modules} {os.getenv('ARROW_DEFAULT_MEMORY_POOL')}\")\n"
    )
    file.write_text(seen + file.read_text())
    assert "True system" in mlops("score", "in.parquet", "out.parquet").output


def test_ingest_calls_the_projects_function(mlops: Mlops, project: Project) -> None:
    assert mlops("ingest").exit_code == 2
    write_project(project, ingest='lambda: ("p1", "p2", "p3")')
    assert mlops("ingest").stdout == "3 periods: p1 to p3\n"
    write_project(project, ingest="lambda: ()")
    assert mlops("ingest").stdout == "0 periods\n"


# --- it worked and the answer is no ------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_a_promotion_whose_gates_failed_is_exit_code_3(mlops: Mlops, project: Project) -> None:
    write_project(project, threshold=0.99)
    judge()
    raise_for_error(
        mlops("promote", 1, "staging"),
        3,
        "Version 1 of 'toy' was not promoted to staging: 1 of 6 gates failed. test_roc_auc is 0.",
        "needs interval >= 0.990. staging is still empty.",
    )


@pytest.mark.usefixtures("version")
def test_a_refused_rollback_is_exit_code_3(mlops: Mlops) -> None:
    raise_for_error(mlops("rollback", "prod", "--reason", "try"), 3, "prod of 'toy' was not rolled back")


@pytest.mark.usefixtures("version")
def test_drift_is_exit_code_3(mlops: Mlops, project: Project) -> None:
    path = project.path("arrivals", "p2")
    frame = data.read_table(path)
    data.write_table(frame.assign(size=frame["size"] * 10), path)
    result = mlops("monitor", "p2", "--stage", "dev")
    assert result.exit_code == 3
    assert "✗" in result.stdout


def test_a_sick_project_is_exit_code_3_with_every_fault(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    result = mlops("doctor")
    assert result.exit_code == 3
    assert "Cannot reach the MLflow store" in result.stdout
    monkeypatch.setenv("MLOPS_PROJECT", "gone.py")
    assert "No project file was found" in mlops("doctor").stdout


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_a_missing_data_file(mlops: Mlops) -> None:
    result = mlops("score", "data/arrivals/p4.parquet", "out.parquet", "--stage", "dev")
    raise_for_error(result, 1, "There is no table 'data/arrivals/p4.parquet'.", "p1.parquet, p2.parquet, p3.parquet")


@pytest.mark.usefixtures("version")
def test_a_table_of_labels_without_the_target(mlops: Mlops, project: Project) -> None:
    path = project.path("labels", "p2")
    data.write_table(data.read_table(path).drop(columns="broke"), path)
    batch.score_table(project, 1, project.path("arrivals", "p2"), project.predictions_path("p2", 1))
    raise_for_error(mlops("monitor", "p2", "--stage", "dev"), 1, "lacks broke. It has thing_id, labelled_at.")


@pytest.mark.usefixtures("version")
def test_an_empty_month(mlops: Mlops, project: Project) -> None:
    data.write_table(make_rows(1, seed=0)[0].head(0), project.root / "data/arrivals/p4.parquet")
    raise_for_error(mlops("monitor", "p4", "--stage", "dev"), 1, "p4.parquet' has no rows.")
    result = mlops("score", "data/arrivals/p4.parquet", "out.parquet", "--stage", "dev")
    raise_for_error(result, 1, "has no rows. At least one is needed. Nothing was written.")
    assert not (project.root / "out.parquet").exists()


@pytest.mark.usefixtures("version")
def test_a_parquet_file_cut_in_half(mlops: Mlops, project: Project) -> None:
    path = project.path("arrivals", "p2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    raise_for_error(mlops("monitor", "p2", "--stage", "dev"), 1, "p2.parquet' cannot be read:")
    result = mlops("score", path, "out.parquet", "--stage", "dev")
    raise_for_error(result, 1, "a file cut short keeps no rows")


@pytest.mark.usefixtures("version")
def test_a_month_that_was_never_ingested(mlops: Mlops) -> None:
    result = mlops("monitor", "p9", "--stage", "dev")
    raise_for_error(result, 1, "There are no arrivals for period 'p9'", "Ingested: p1, p2, p3.")


@pytest.mark.usefixtures("version")
def test_an_unknown_stage(mlops: Mlops) -> None:
    for arguments in (["promote", 1, "prd"], ["history", "prd"], ["show", "prd"], ["monitor", "p2", "--stage", "prd"]):
        raise_for_error(mlops(*arguments), 1, "There is no stage 'prd'.", "Did you mean 'prod'?")


@pytest.mark.usefixtures("version")
def test_an_unknown_version(mlops: Mlops) -> None:
    raise_for_error(mlops("show", 9), 1, "There is no version '9' of 'toy'. Registered versions: 1.")
    raise_for_error(mlops("promote", 9, "staging"), 1, "There is no version '9'")
    raise_for_error(mlops("score", "data/arrivals/p2.parquet", "x.parquet", "--version", 9), 1, "no version '9'")


@pytest.mark.usefixtures("version")
def test_a_stage_that_nothing_is_in(mlops: Mlops) -> None:
    raise_for_error(mlops("score", "data/arrivals/p2.parquet", "out.parquet"), 1, "No version of 'toy' is in prod.")


def test_a_tracking_server_that_is_unreachable(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:s3cret@127.0.0.1:1")
    result = mlops("models")
    raise_for_error(result, 1, "Cannot reach the MLflow store at 'http://ada:***@127.0.0.1:1' (Connection refused).")


def test_one_flipped_byte_in_a_model(mlops: Mlops, version: registry.Version) -> None:
    path = Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}")) / "model.skops"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for arguments in (
        ["score", "data/arrivals/p2.parquet", "out.parquet", "--stage", "dev"],
        ["promote", 1, "staging", "--force", "--reason", "hurry"],
        ["serve", "--stage", "dev"],
    ):
        raise_for_error(mlops(*arguments), 1, "Version 1 of 'toy' was not loaded: file 'model.skops' has been changed")


@pytest.mark.usefixtures("version")
def test_a_read_only_store(mlops: Mlops, project: Project) -> None:
    database = project.root / "mlflow.db"
    commands = (["mount", "--bind", database, database], ["mount", "-o", "remount,ro,bind", database])
    for command in commands:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user cannot mount a file read-only")
    try:
        result = mlops("promote", 1, "staging", "--force", "--reason", "test")
        read = [mlops(*arguments) for arguments in (["models"], ["show", "dev"], ["history"], ["verify"])]
        score = mlops("score", project.path("arrivals", "p1"), project.root / "out.parquet", "--stage", "dev")
    finally:
        close_databases()
        subprocess.run(["umount", database], check=True)
    raise_for_error(result, 1, "is read-only for this user.")
    assert [done.exit_code for done in (*read, score)] == [0] * 5, score.output


def test_no_project(mlops: Mlops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_PROJECT")
    raise_for_error(mlops("models"), 1, "No project file was found.")
    (tmp_path / "bad.py").write_text("1 / 0")
    raise_for_error(mlops("--project", tmp_path / "bad.py", "models"), 1, "ZeroDivisionError: division by zero")


def test_an_unknown_notebook(mlops: Mlops) -> None:
    raise_for_error(mlops("run", "02_tran"), 1, "There is no notebook '02_tran'.")


def test_debug_shows_the_traceback(mlops: Mlops) -> None:
    result = mlops("--debug", "history", "prd")
    assert isinstance(result.exception, NotFoundError)


@pytest.mark.usefixtures("mlops")
@pytest.mark.parametrize(("options", "has_traceback"), [([], False), (["--debug"], True)])
def test_the_installed_command_ends_with_an_exit_code_and_one_line(options: list[str], has_traceback: bool) -> None:
    command = [Path(sys.executable).with_name("mlops"), *options, "history", "prd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stdout == ""
    assert ("Traceback" in done.stderr) is has_traceback
    assert "There is no stage 'prd'." in done.stderr.splitlines()[-1]


def test_a_threshold_of_the_project_file_is_the_gate_that_is_used(mlops: Mlops, project: Project) -> None:
    write_project(project, threshold=0.7)
    gates: tuple[Any, ...] = load_project().gates
    assert gates == (Threshold("roc_auc", 0.7),)
    assert mlops("models").exit_code == 0


# --- errors for machines, and what a command line may say ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "kind", "fact"),
    [
        (["show", "prd", "--json"], 1, "NotFoundError", ("stage", "prd")),
        (["promote", "1", "staging", "--json"], 3, "RefusedError", ("version", 1)),
        (["monitor", "p9", "--stage", "dev", "--json"], 1, "NotFoundError", ("period", "p9")),
    ],
)
@pytest.mark.usefixtures("version")
def test_errors_and_refusals_are_json_too(
    mlops: Mlops, arguments: list[str], exit_code: int, kind: str, fact: tuple[str, object]
) -> None:
    result = mlops(*arguments)
    assert result.exit_code == exit_code
    told = json.loads(result.stdout)["error"]
    assert (told["type"], told[fact[0]]) == (kind, fact[1])
    assert told["message"] in click.unstyle(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["serve", "--port", port] for port in ("80000", "0", "-1", "http")),
        *(["ui", "--port", port] for port in ("80000", "0")),
        *([name, "--host", "0.0.0.0"] for name in ("serve", "ui")),
        *(["run", "01_explore", "--timeout", seconds] for seconds in ("-1", "0", "soon")),
        ["check", "--cell-timeout", "0"],
        ["serve", "--stage", "prod", "--version", "1"],
        ["monitor", "p2", "--stage", "prod", "--version", "1"],
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(mlops: Mlops, arguments: list[str]) -> None:
    result = mlops(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_a_host_that_is_not_this_machines_is_told_as_that(mlops: Mlops, version: registry.Version) -> None:
    result = mlops("serve", "--version", version.version, "--host", "no-such-host.invalid", "--open")
    raise_for_error(result, 1, "Nothing can listen", "no-such-host.invalid")


def test_a_stage_names_its_version_wherever_one_is_asked_for(mlops: Mlops, second: registry.Version) -> None:
    assert mlops("promote", "dev", "staging", "--force", "--reason", "a test").exit_code == 0
    assert json.loads(mlops("show", "staging", "--json").stdout)["version"] == second.version
    assert mlops("promote", 1, "staging", "--force", "--reason", "a test").exit_code == 0
    assert mlops("rollback", "staging", "--to", "dev", "--reason", "a test").exit_code == 0
    raise_for_error(mlops("delete", "staging", "--reason", "a test"), 3, f"ersion {second.version}")


def test_a_projects_folder_names_its_file(mlops: Mlops, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_PROJECT")
    monkeypatch.chdir("/")
    assert mlops("--project", project.root, "models").exit_code == 0


def test_keys_on_a_folder_that_cannot_be_made_are_told(mlops: Mlops, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    raise_for_error(mlops("keys", tmp_path / "file" / "keys"), 1, "Cannot write")


def test_lab_hands_its_options_on(mlops: Mlops, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: started.append(arguments))
    monkeypatch.setattr(os, "chdir", lambda path: None)
    assert mlops("lab", "--no-browser", "--port=8899").exit_code == 0
    assert started[0][-2:] == ["--no-browser", "--port=8899"]
