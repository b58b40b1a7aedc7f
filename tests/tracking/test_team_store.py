"""The same registry on every store: SQLite, PostgreSQL directly, and a server with two workers."""

from __future__ import annotations

import pytest
import servers
from conftest import register_model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlops_lib import data, gates, registry, tracking
from mlops_lib.errors import RefusedError
from mlops_lib.gates import check_gates
from mlops_lib.project import Project
from mlops_lib.registry.verdicts import VERDICT_FILE, VERDICT_TAG, verdict_digest
from mlops_lib.report import Report
from mlops_lib.tracking import store


def judge(project: Project, version: int) -> Report:
    """Run the project's gates on period p2 and log the verdict, as 03_validate does."""
    verdict = check_gates(project, registry.load_model(project, version), None, "p2")
    with tracking.start_run(project):
        registry.log_verdict(project, version, verdict)
    return verdict


def test_a_version_is_promoted_on_its_verdict_and_refused_without_one(any_store_project: Project) -> None:
    project = any_store_project
    version = register_model(project).version
    with pytest.raises(RefusedError, match=r"there is no verdict on it"):
        gates.promote(project, version, "staging")
    judge(project, version)
    client = store.connect(project.tracking_uri)
    run_id = client.get_model_version(project.name, str(version)).tags[VERDICT_TAG]
    get_artifact_repository(client.get_run(run_id).info.artifact_uri).delete_artifacts(VERDICT_FILE)
    with pytest.raises(RefusedError, match=r"there is no verdict on it"):
        gates.promote(project, version, "staging")
    verdict = judge(project, version)
    assert gates.promote(project, version, "staging").verdict == verdict_digest(verdict)
    assert registry.get_version(project, version).stages == ("dev", "staging")
    assert int(client.get_model_version_by_alias(project.name, "staging").version) == version


def test_a_missing_server_program_skips_a_test_but_fails_it_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"not there"):
        servers.absent("not there")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"not there"):
        servers.absent("not there")


def test_a_version_goes_through_every_stage_and_back(any_store_project: Project) -> None:
    project = any_store_project
    first, second = register_model(project), register_model(project, C=0.5)
    for stage in project.stages[1:]:
        gates.promote(project, first.version, stage, force=True, reason="first ever")
    for stage in project.stages[1:]:
        gates.promote(project, second.version, stage, force=True, reason="second")
    assert registry.current(project, "prod") == second.version
    registry.rollback(project, "prod", reason="complaints")
    assert registry.current(project, "prod") == first.version
    moves = [(entry.action, entry.stage, entry.version) for entry in registry.history(project)]
    assert moves == [
        ("register", "dev", 1),
        ("register", "dev", 2),
        *(("force", stage, 1) for stage in ("staging", "prod")),
        *(("force", stage, 2) for stage in ("staging", "prod")),
        ("rollback", "prod", 1),
    ]


def test_a_loaded_version_predicts_and_is_verified(any_store_project: Project) -> None:
    made = register_model(any_store_project)
    release = registry.load_model(any_store_project, "dev")
    assert (release.version, release.digest) == (made.version, made.digest)
    rows = data.read_labelled(any_store_project, "p2")
    assert len(release.model.predict(rows[release.features])) == len(rows)
