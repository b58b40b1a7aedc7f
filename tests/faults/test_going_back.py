"""Going back when what is gone back to is not there: refused clearly, and the stage keeps what it has."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import register_model
from mlflow.pyfunc import scoring_server
from mlflow.tracking import MlflowClient
from refusals import raises

from mlops_lib import gates, registry
from mlops_lib.errors import ModelFileError, StoreError
from mlops_lib.project import Project

Record = Callable[..., None]


@pytest.fixture
def moved_on(project: Project) -> Project:
    """Return a project whose prod has version 2 and had version 1."""
    for strength in (1.0, 0.3):
        version = register_model(project, C=strength).version
        for stage in ("staging", "prod"):
            gates.promote(project, version, stage, force=True, reason="for the test")
    return project


def test_going_back_to_files_that_are_gone_is_refused(moved_on: Project, record: Record) -> None:
    model_id = registry.get_version(moved_on, 1).model_id
    shutil.rmtree(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
    client = MlflowClient()
    with pytest.raises(ModelFileError):
        registry.rollback(moved_on, "prod", reason="complaints")
    assert registry.current(moved_on, "prod") == 2
    assert registry.check_store(moved_on).passed
    client.set_registered_model_alias("toy", "other", "1")
    assert client.get_model_version_by_alias("toy", "other").version in {1, "1"}
    record(
        28,
        plain="an alias is moved to a version without files",
        ours="going back to files that are gone is refused; the stage keeps what it has",
    )


def test_going_back_while_the_store_is_away_says_so_and_changes_nothing(
    moved_on: Project, tmp_path: Path, closed_port: int, record: Record
) -> None:
    away = replace(moved_on, tracking_uri=f"http://127.0.0.1:{closed_port}")
    with raises(StoreError, "unreachable"):
        registry.rollback(away, "prod", reason="complaints")
    assert registry.current(moved_on, "prod") == 2
    assert registry.rollback(moved_on, "prod", reason="complaints").version == 1
    record(28, ours="a store that is away is named, and going back works once it is there")


def test_mlflow_alone_writes_nan_as_no_json(record: Record) -> None:
    body = io.StringIO()
    scoring_server.predictions_to_json(np.array([1.0, np.nan]), body)

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    with pytest.raises(ValueError, match="NaN"):
        json.loads(body.getvalue(), parse_constant=refuse)
    record(26, plain="the answer holds NaN, which is no JSON")
