"""The project file: found where a person would look, completed from the environment, refused with what is missing."""

from __future__ import annotations

import getpass
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_project, register_model
from refusals import raises

from mlops_lib import gates, registry, tracking
from mlops_lib.errors import (
    NotFoundError,
    ProjectError,
)
from mlops_lib.gates import Threshold
from mlops_lib.programs import batch
from mlops_lib.project import Monitoring, Project, find_project_file, load_project
from mlops_lib.task import binary, regression
from mlops_lib.tracking import store

SOURCE = """
from pathlib import Path
from mlops_lib.project import Project
project = Project(
    name="toy", root=Path(__file__).resolve().parent.parent, target="broke", keys=("thing_id",), features=("size",),
    arrivals="data/arrivals/{period}.parquet", labels="data/labels/{period}.parquet",
)
"""
OURS = ("MLOPS_PROJECT", "MLOPS_ACTOR", "MLOPS_OUTPUTS", "MLOPS_NOTEBOOK")
OTHERS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_RUN_ID", "JPY_SESSION_NAME")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a project file, and an environment that says nothing."""
    for name in (*OURS, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/project.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_project_file_is_found_from_any_folder_below(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = repository / "notebooks/drafts/old"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_project_file() == repository / "notebooks/project.py"
    assert load_project().root == repository


def test_variable_names_a_project_and_an_argument_goes_before_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = repository / "other.py", repository / "third.py"
    other.write_text(SOURCE.replace('"toy"', '"other"'))
    third.write_text(SOURCE.replace('"toy"', '"third"'))
    monkeypatch.setenv("MLOPS_PROJECT", "other.py")
    assert load_project().name == "other"
    assert load_project(third).name == "third"


def test_a_named_project_that_is_not_there_is_not_replaced_by_one_that_is(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_PROJECT", "gone.py")
    with pytest.raises(ProjectError, match=r"gone.py"):
        load_project()


def test_nothing_found_lists_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    with raises(ProjectError, "not_found") as caught:
        load_project()
    assert caught.value.looked_at[0] == tmp_path / "notebooks/project.py"
    assert caught.value.looked_at[-1] == Path("/notebooks/project.py")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1", "it defines no `project`"),
        ("project = {'name': 'toy'}", "`project` is not a Project"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_a_file_that_gives_no_project_is_refused_with_the_reason(repository: Path, source: str, reason: str) -> None:
    (repository / "notebooks/project.py").write_text(source)
    with raises(ProjectError, "file") as caught:
        load_project()
    assert caught.value.reason.startswith(reason)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_python_is_refused(repository: Path) -> None:
    (repository / "project.toml").write_text("")
    with pytest.raises(ProjectError, match=r"not a Python file"):
        load_project("project.toml")


def test_defaults_are_the_store_beside_the_project_and_the_login_name(repository: Path) -> None:
    project = load_project()
    assert project.tracking_uri == f"sqlite:///{repository}/mlflow.db"
    assert project.actor == getpass.getuser()
    assert project.file == repository / "notebooks/project.py"
    assert (project.run_id, project.notebook, project.outputs) == (None, None, None)


def test_a_login_that_has_no_name_still_has_an_actor(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a user id that /etc/passwd does not know."""

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert load_project().actor.startswith("uid-")


def test_environment_fills_in_store_actor_run_and_notebook(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "MLOPS_ACTOR": "ada",
        "MLFLOW_RUN_ID": "abc",
        "JPY_SESSION_NAME": "a.ipynb",
        "MLOPS_OUTPUTS": "out",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    project = load_project()
    assert (project.tracking_uri, project.actor, project.run_id) == ("http://127.0.0.1:5000", "ada", "abc")
    assert project.notebook == "a.ipynb"
    assert project.outputs == repository / "out"
    assert project.runs_path == repository / "out/runs"
    assert project.predictions_path("p1", 7) == repository / "out/data/predictions/p1/version-7.parquet"
    monkeypatch.setenv("MLOPS_NOTEBOOK", "b.ipynb")
    assert load_project().notebook == "b.ipynb"


def test_who_acts_on_a_server_is_who_the_server_knows(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_ACTOR", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    assert load_project().actor == "ada", "a file knows nobody"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://eve:s3cret@127.0.0.1:5000")
    assert load_project().actor == "bob"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert load_project().actor == "eve"
    monkeypatch.setenv("HOME", str(repository))
    (repository / ".mlflow").mkdir()
    (repository / ".mlflow/credentials").write_text("[mlflow]\nmlflow_tracking_username = carol%s\n")
    assert load_project().actor == "carol%s"
    (repository / ".mlflow/credentials").write_text("no ini file")
    assert load_project().actor == "eve"


@pytest.mark.parametrize("name", ["MLFLOW_RUN_ID", "MLOPS_NOTEBOOK", "MLOPS_OUTPUTS", "MLOPS_ACTOR", "MLOPS_PROJECT"])
def test_an_empty_variable_is_no_variable(repository: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = load_project()
    monkeypatch.setenv(name, "")
    assert load_project() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///store/../m.db", "sqlite:///{root}/m.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("postgresql+psycopg://u:p@db/mlflow", "postgresql+psycopg://u:p@db/mlflow"),
    ],
)
def test_a_relative_sqlite_store_does_not_move_with_the_working_folder(
    repository: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert load_project().tracking_uri == expected.format(root=repository)


def test_the_environment_is_not_shown_where_a_project_is_printed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret")
    project = load_project()
    assert project.environ["SOME_TOKEN"] == "s3cret"
    assert "s3cret" not in repr(project)


@pytest.fixture
def with_periods(tmp_path: Path) -> Project:
    """Return a project with arrivals of three periods and labels of one."""
    for name in ("arrivals/2013-02", "arrivals/2013-10", "arrivals/2013-01", "labels/2013-01"):
        file = tmp_path / f"data/{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "data/arrivals/2013-03.csv").touch()
    return Project(
        name="toy",
        root=tmp_path,
        target="broke",
        keys=("id",),
        features=("size",),
        arrivals="data/arrivals/{period}.parquet",
        labels="data/labels/{period}.parquet",
    )


def test_periods_are_what_files_exist_in_order(with_periods: Project) -> None:
    assert with_periods.periods() == ("2013-01", "2013-02", "2013-10")
    assert with_periods.periods("labels") == ("2013-01",)


def test_temporary_files_of_a_writer_are_no_periods(with_periods: Project) -> None:
    (with_periods.root / "data/arrivals/.2013-04.parquet.abc.tmp").touch()
    (with_periods.root / "data/arrivals/.2013-05.parquet").touch()
    assert with_periods.periods() == ("2013-01", "2013-02", "2013-10")


def test_a_period_that_was_never_ingested_is_refused_with_those_that_were(with_periods: Project) -> None:
    with raises(NotFoundError, "period") as caught:
        with_periods.path("arrivals", "2013-03")
    assert caught.value.periods == ("2013-01", "2013-02", "2013-10")
    with pytest.raises(NotFoundError, match=r"labels for period '2013-02'"):
        with_periods.path("labels", "2013-02")


def test_no_period_at_all_says_so(with_periods: Project) -> None:
    for file in (with_periods.root / "data/labels").iterdir():
        file.unlink()
    with pytest.raises(NotFoundError, match=r"No period was ingested yet"):
        with_periods.path("labels", "2013-01")


def test_paths_are_the_periods_from_first_to_last_both_included(with_periods: Project) -> None:
    names = [path.stem for path in with_periods.paths("arrivals", "2013-01", "2013-02")]
    assert names == ["2013-01", "2013-02"]
    with pytest.raises(NotFoundError, match=r"2013-12"):
        with_periods.paths("arrivals", "2013-01", "2013-12")


def test_paths_of_a_span_that_ends_before_it_begins_are_refused(with_periods: Project) -> None:
    with raises(ProjectError, "periods"):
        with_periods.paths("arrivals", "2013-10", "2013-01")


@pytest.mark.parametrize("period", ["../labels/2013-01", "../../secret", "/etc/passwd", ""])
def test_a_period_cannot_lead_out_of_its_folder(with_periods: Project, period: str) -> None:
    (with_periods.root / "secret.parquet").touch()
    (with_periods.root / "data/arrivals/.parquet").touch()
    with raises(NotFoundError, "period"):
        with_periods.path("arrivals", period)


def test_production_is_the_last_stage_and_unknown_stages_are_refused(with_periods: Project) -> None:
    assert with_periods.production == "prod"
    with_periods.raise_for_stage("staging")
    with pytest.raises(NotFoundError, match=r"Did you mean 'prod'"):
        with_periods.raise_for_stage("Prod")


def test_secrets_are_named_ones_and_the_passwords_of_urls(tmp_path: Path) -> None:
    environment = {
        "WEATHER_TOKEN": "from-the-weather",
        "SHORT_TOKEN": "abc",
        "DATABASE_URL": "postgresql://ada:p%3Assword@db/x",
        "BROKEN": "http://[half",
        "HOME": "/home/ada",
    }
    project = Project("toy", tmp_path, tracking_uri="postgresql://ada:pg@db/mlflow", environ=environment)
    assert {"from-the-weather", "p%3Assword", "p:ssword", "pg"} <= set(project.secrets)
    assert not {"abc", "/home/ada"} & set(project.secrets)


# --- what a project file may say ---------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "name": "toy",
    "root": Path("/somewhere"),
    "target": "broke",
    "keys": ("thing_id",),
    "features": ("size", "color"),
    "arrivals": "a/{period}.parquet",
    "labels": "l/{period}.parquet",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", name) for name in ("", ".", "a/b", "a:b", "it's", 'a"b', "a%b", "../evil", "a\\b", "x" * 201)],
        *[("name", name) for name in ("a\nb", " a", "a.", "toy.ledger", "a\u202eb", 7)],
        *[("stages", stages) for stages in (("dev",), ("dev", "dev"), ("dev", "Dev"), ("dev", "7"), ("dev", "v7"))],
        *[("stages", stages) for stages in (("dev", "latest"), ("dev", "none"), ("dev", "a b"), "dev", ["a", "b"])],
        *[("keys", keys) for keys in ("thing_id", (), ["thing_id"], ("a", "a"), ("prediction",), ("score",))],
        *[("features", features) for features in ("size", (), ("size", "size"), ("size", 7), ("size", ""))],
        *[("target", target) for target in ("", 7, "prediction", "scored_at", "size", "thing_id")],
        *[("labelled_at", column) for column in ("broke", "size", "thing_id")],
        *[("slices", slices) for slices in ("color", ["color"])],
        *[("gates", gates) for gates in (Threshold("f", 0.5), [Threshold("f", 0.5)], ("roc_auc",), (Threshold,))],
        *[("task", task) for task in ("binary", binary)],
        *[("ingest", value) for value in ("a function", ("2013-01",))],
        *[("arrivals", path) for path in ("a/{periode}.csv", "a/{period}/{period}.csv", "a/{period.csv", "{}")],
        ("labels", "a/{period}.parquet"),
        ("labels", "l/all.parquet"),
        *[("predictions", path) for path in ("p/{period}.parquet", "p/{version}.parquet", "p.parquet")],
        ("keep_features", "some"),
        ("root", "/somewhere"),
        ("monitoring", 0.03),
        *[("monitoring", Monitoring(alarms_a_year=number)) for number in (0, -1, math.nan, math.inf, "1")],
        ("monitoring", Monitoring(periods_a_year=0)),
        ("may_skip_stages", "no"),
    ],
)
def test_a_field_that_cannot_be_used_is_told_when_the_project_is_made(field: str, value: object) -> None:
    Project(**FIELDS)
    with raises(ProjectError, "field") as refused:
        Project(**{**FIELDS, field: value})
    assert str(refused.value).startswith(f"Project({field}=")


def test_a_slice_is_a_feature_and_the_nearest_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"'colour'.*size, color.*Did you mean 'color'"):
        Project(**FIELDS, slices=("colour",))


@pytest.mark.parametrize("column", ["score", "score_x"])
def test_a_score_is_a_columns_name_where_nothing_is_scored(column: str) -> None:
    Project(**{**FIELDS, "keys": (column,)}, task=regression())
    with raises(ProjectError, "field"):
        Project(**{**FIELDS, "keys": (column,)})


def test_a_project_of_notebooks_alone_names_no_tables(tmp_path: Path) -> None:
    project = Project("toy", tmp_path)
    assert project.periods() == ()


def test_a_table_of_one_file_has_one_period(tmp_path: Path) -> None:
    project = Project(**{**FIELDS, "root": tmp_path, "arrivals": "a.csv", "labels": "l.csv"})
    assert project.periods() == ()
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert project.periods() == ("all",)
    assert project.path("arrivals", "all") == tmp_path / "a.csv"


# --- what a project file may do ----------------------------------------------------------------------------------


def test_a_project_file_that_prints_does_not_answer_for_a_command(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = repository / "notebooks/project.py"
    file.write_text("import os\nprint('one')\nos.system('echo two')\nos.write(1, b'three')\n" + SOURCE)
    load_project()
    print("the answer")
    out, err = capfd.readouterr()
    assert out == "the answer\n"
    assert all(word in err for word in ("one", "two", "three"))


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise SystemExit", "exit()"])
def test_a_project_file_that_ends_the_process_is_an_error(repository: Path, end: str) -> None:
    (repository / "notebooks/project.py").write_text(f"import os, sys\n{end}\n{SOURCE}")
    with raises(ProjectError, "file"):
        load_project()


def test_a_folder_is_named_for_the_file_in_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = repository / "notebooks/project.py"
    monkeypatch.chdir("/")
    for named in (repository, repository / "notebooks", expected):
        assert find_project_file(named) == expected


# --- paths and stores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["100%", "a%20b", "what?", "c#", "two words", "größe", "a&b=c", "a+b", "[x]"])
def test_the_loop_runs_in_a_folder_of_any_name(
    name: str, tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / name
    root.mkdir()
    make_project(root, migrated_store)
    (root / "notebooks").mkdir()
    (root / "notebooks/project.py").write_text(SOURCE.replace('("size",)', '("color", "size", "weight")'))
    project = replace(load_project(root), actor="ada")
    assert register_model(project).version == 1
    gates.promote(project, 1, "staging", force=True, reason="a test")
    result = batch.score_table(project, "staging", project.path("arrivals", "p2"), root / "scored.parquet")
    assert result.n_scored == 1000
    assert (root / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert registry.check_store(project, everything=True).passed


def test_two_projects_in_one_process_never_share_a_store(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    projects = []
    for name in ("one", "two"):
        (tmp_path / name / "notebooks").mkdir(parents=True)
        shutil.copy(migrated_store / "mlflow.db", tmp_path / name / "mlflow.db")
        (tmp_path / name / "notebooks/project.py").write_text(SOURCE)
        projects.append(load_project(tmp_path / name))
        with tracking.start_run(projects[-1]) as run:
            assert store.connect(projects[-1].tracking_uri).get_run(run.info.run_id).info.run_id
    uris = [project.tracking_uri for project in projects]
    assert uris[0] != uris[1]
    assert "MLFLOW_TRACKING_URI" not in os.environ
    for uri in uris:
        assert len(store.connect(uri).search_runs(["1"])) == 1
