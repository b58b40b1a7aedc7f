"""``mlops verify``: each fault is planted, found by name, and repaired where that loses nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner
from conftest import register_model
from mlflow.entities import LoggedModelStatus
from mlflow.tracking import MlflowClient

from mlops_lib import registry
from mlops_lib.cli import main
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.registry.verify import check_store, repair_store
from mlops_lib.report import Row
from mlops_lib.tracking import liveness, store

Record = Callable[..., None]


@pytest.fixture
def client(project: Project) -> MlflowClient:
    return store.connect(project.tracking_uri)


def failures(project: Project, version: int | str | None = None, *, everything: bool = False) -> list[Row]:
    return list(check_store(project, version, everything=everything).failures)


def files_of(client: MlflowClient, version: registry.Version) -> Path:
    """Return the folder of a version's files."""
    return Path(unquote(urlsplit(client.get_logged_model(version.model_id).artifact_location).path))


def change(project: Project, sql: str, *values: object) -> None:
    """Change the database behind everybody's back."""
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        database.execute(sql, values)


def open_dead_run(client: MlflowClient, experiment_id: str) -> str:
    """Open a run whose process is gone."""
    word, host, _, _, *place = liveness.describe_runner("running").split(" ")
    tag = " ".join([word, host, "1", "a start time that nobody has".replace(" ", "-"), *place])
    return str(client.create_run(experiment_id, tags={liveness.RUNNER_TAG: tag}).info.run_id)


# --- a sound store -----------------------------------------------------------------------------------------------


def test_a_sound_store_passes_on_every_kind_of_store(any_store_project: Project) -> None:
    version = register_model(any_store_project)
    report = check_store(any_store_project, everything=True)
    assert report.passed, str(report)
    assert report.facts["versions"] == [version.version]
    assert repair_store(any_store_project) == ()


def test_a_store_in_which_nothing_is_registered_passes(any_store_project: Project) -> None:
    assert check_store(any_store_project).passed
    assert repair_store(any_store_project) == ()


def test_only_versions_in_stages_are_compared_unless_all_are_asked_for(
    project: Project, version: registry.Version, second: registry.Version
) -> None:
    assert check_store(project).facts["versions"] == [second.version]
    assert check_store(project, everything=True).facts["versions"] == [version.version, second.version]
    assert check_store(project, 1).facts["versions"] == [1]
    assert check_store(project, "dev").facts["versions"] == [second.version]


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_version_whose_files_are_gone_is_named(
    project: Project, client: MlflowClient, version: registry.Version, record: Record
) -> None:
    shutil.rmtree(files_of(client, version))
    (row,) = failures(project)
    assert row.name == "version 1 files"
    assert "file 'MLmodel' is missing" in row.reason
    assert client.get_model_version(project.name, "1").status == "READY"
    record(14, plain="the version stays READY", ours="`mlops verify` names the version")


def test_a_changed_file_is_named(project: Project, client: MlflowClient, version: registry.Version) -> None:
    with (files_of(client, version) / "model.skops").open("ab") as file:
        file.write(b"x")
    (row,) = failures(project, "dev")
    assert row.name == "version 1 files"
    assert "file 'model.skops' has been changed" in row.reason


def test_a_manifest_that_was_replaced_together_with_the_files_is_named(
    project: Project, client: MlflowClient, version: registry.Version
) -> None:
    manifest = {"MLmodel": {"sha256": "0" * 64, "size": 1}}
    client.set_model_version_tag(project.name, "1", "mlops.manifest", json.dumps(manifest))
    (row,) = failures(project)
    assert "'manifest' is not the one of its registration" in row.reason
    client.set_model_version_tag(project.name, "1", "mlops.manifest", "{")
    assert "'manifest' cannot be read" in failures(project)[0].reason
    client.delete_model_version_tag(project.name, "1", "mlops.manifest")
    assert "'manifest' was never recorded" in failures(project)[0].reason


def test_a_manifest_that_no_trusted_key_has_signed_is_named(
    project: Project, version: registry.Version, tmp_path: Path
) -> None:
    signing.create_keys(tmp_path / "keys")
    public = (tmp_path / "keys" / signing.PUBLIC_FILE).read_text().strip()
    (row,) = failures(replace(project, trusted_keys=(public,)))
    assert row.name == "version 1 files"
    assert "Version 1 of 'toy' has no signature" in row.reason


def test_a_version_that_is_deleted_behind_the_ledgers_back_is_named(
    project: Project, client: MlflowClient, version: registry.Version
) -> None:
    client.delete_model_version(project.name, str(version.version))
    assert "version 1" in [row.name for row in failures(project)]


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_version_whose_run_did_not_finish_is_named(
    project: Project, client: MlflowClient, version: registry.Version, status: str
) -> None:
    client.update_run(version.run_id, status=status)
    found = {row.name: row.reason for row in failures(project)}
    assert f"'its run' is {status}" in found["version 1 run"]


def test_a_version_whose_run_was_deleted_is_named(
    project: Project, client: MlflowClient, version: registry.Version
) -> None:
    client.delete_run(version.run_id)
    assert "'its run' is deleted" in failures(project)[0].reason


def test_a_broken_ledger_is_named_and_every_version_still_looked_at(
    project: Project, client: MlflowClient, version: registry.Version
) -> None:
    change(project, "update params set value = replace(value, 'ada', 'eve') where key = '000001'")
    report = check_store(project)
    assert not report.passed
    assert report.facts["versions"] == [version.version]
    assert any("entry r1" in row.reason for row in report.failures), str(report)
    assert repair_store(project) == (), "an edited ledger is left as it is"


@pytest.mark.parametrize("wrong", ["moved", "removed"])
def test_an_alias_that_was_moved_is_named_and_repaired(
    project: Project, client: MlflowClient, version: registry.Version, second: registry.Version, wrong: str
) -> None:
    if wrong == "moved":
        client.set_registered_model_alias(project.name, "dev", str(version.version))
    else:
        client.delete_registered_model_alias(project.name, "dev")
    assert any("alias" in row.name for row in failures(project))
    assert len(repair_store(project)) == 1
    assert int(client.get_model_version_by_alias(project.name, "dev").version) == second.version
    assert check_store(project).passed


def test_a_dead_run_is_named_and_killed_and_a_live_one_left_alone(
    project: Project, client: MlflowClient, version: registry.Version
) -> None:
    experiment_id = client.get_run(version.run_id).info.experiment_id
    run_id = open_dead_run(client, experiment_id)
    live = str(client.create_run(experiment_id, tags=liveness.open_tags()).info.run_id)
    foreign = str(client.create_run(experiment_id).info.run_id)
    (row,) = failures(project)
    assert (row.name, row.value) == ("dead runs", 1)
    assert run_id in row.reason
    (said,) = repair_store(project)
    assert said.startswith(f"run '{run_id}' is KILLED")
    statuses = [client.get_run(each).info.status for each in (run_id, live, foreign)]
    assert statuses == ["KILLED", "RUNNING", "RUNNING"]
    report = check_store(project)
    assert report.passed
    assert any("1 open runs of other tools" in row.reason for row in report.rows)


@pytest.mark.parametrize("ended", [True, False])
def test_a_model_that_was_never_logged_to_its_end_is_named_and_failed(
    project: Project, client: MlflowClient, version: registry.Version, ended: bool
) -> None:
    experiment_id = client.get_run(version.run_id).info.experiment_id
    dead = open_dead_run(client, experiment_id)
    live = str(client.create_run(experiment_id, tags=liveness.open_tags()).info.run_id)
    model, working = (client.create_logged_model(experiment_id, source_run_id=run_id) for run_id in (dead, live))
    if ended:
        client.set_terminated(dead, "FAILED")
    row = next(row for row in failures(project) if row.name == "PENDING models")
    assert (row.value, model.model_id in row.reason) == (1, True)
    assert f"model '{model.model_id}' is FAILED: it was never logged to its end" in repair_store(project)
    statuses = [client.get_logged_model(each.model_id).status for each in (model, working)]
    assert statuses == [LoggedModelStatus.FAILED, LoggedModelStatus.PENDING]
    assert check_store(project).passed


def test_a_database_that_is_not_whole_is_named(project: Project, version: registry.Version) -> None:
    """An index that lacks a row, which no question of MLflow's has noticed."""
    path = project.root / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("pragma writable_schema = on")
        database.execute(
            "update sqlite_master set sql = 'CREATE INDEX index_params_run_uuid ON params (value)' "
            "where name = 'index_params_run_uuid'"
        )
    (row,) = (row for row in failures(project) if row.name == "database")
    assert "index_params_run_uuid" in row.reason


def test_a_schema_with_two_versions_is_named(project: Project, version: registry.Version) -> None:
    store.connect(project.tracking_uri)
    change(project, "insert into alembic_version values ('another')")
    (row,) = (row for row in failures(project) if row.name == "database")
    assert "2 schema versions" in row.reason


def test_a_store_that_cannot_be_reached_is_a_failure(project: Project) -> None:
    (row,) = failures(replace(project, tracking_uri="sqlite:///relative.db"))
    assert row.name == "store"


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def at_project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return the project as the command line finds it."""
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file=None, **_: project)
    return project


def test_the_command_says_no_by_its_exit_code_and_repairs(
    at_project: Project, client: MlflowClient, version: registry.Version
) -> None:
    assert CliRunner().invoke(main, ["verify"]).exit_code == 0
    client.delete_registered_model_alias(at_project.name, "dev")
    found = CliRunner().invoke(main, ["verify", "--json"])
    assert found.exit_code == 3
    assert json.loads(found.output)["passed"] is False
    repaired = CliRunner().invoke(main, ["verify", "--all", "--repair"])
    assert repaired.exit_code == 0
    assert "repaired: " in repaired.output
    assert "version 1 files" in repaired.output


def test_a_version_and_all_versions_at_once_is_a_wrong_use(at_project: Project) -> None:
    done = CliRunner().invoke(main, ["verify", "1", "--all"])
    assert done.exit_code == 2
    assert "name a version or --all, not both" in done.output
