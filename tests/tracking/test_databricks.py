"""A Databricks workspace is a store through MLflow's own client; an MLflow server plays its host."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import servers
from conftest import register_model

from mlops_lib import gates, registry
from mlops_lib.errors import StoreError
from mlops_lib.project import Project


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[str]:
    """Return a host that names where artifacts are, as a workspace does, instead of handing them on."""
    folder = tmp_path_factory.mktemp("host")
    shutil.copy(migrated_store / "mlflow.db", folder)
    with servers.run_mlflow(f"sqlite:///{folder / 'mlflow.db'}", folder, is_proxy=False) as address:
        yield address


@pytest.fixture(params=["databricks", "databricks://team"])
def workspace(
    request: pytest.FixtureRequest,
    project: Project,
    host: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Project:
    """Return the project on a workspace that the environment, or a profile, names."""
    file = tmp_path / "databrickscfg"
    file.write_text(f"[team]\nhost = {host}\ntoken = x\n")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(file))
    if request.param == "databricks":
        monkeypatch.setenv("DATABRICKS_HOST", host)
        monkeypatch.setenv("DATABRICKS_TOKEN", "x")
    return replace(project, name=f"toy-{uuid.uuid4().hex[:8]}", tracking_uri=request.param)


def test_a_version_is_registered_promoted_and_loaded_on_a_workspace(workspace: Project) -> None:
    made = register_model(workspace)
    gates.promote(workspace, made.version, "staging", force=True, reason="test")
    assert [entry.label for entry in registry.history(workspace)] == ["r1", "1"]
    assert registry.load_model(workspace, "staging").digest == made.digest
    report = registry.check_store(workspace)
    assert report.passed, report.failures


def test_a_profile_that_is_not_there_is_told(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="Cannot reach the MLflow store at 'databricks://nobody'"):
        registry.history(replace(project, tracking_uri="databricks://nobody"))
