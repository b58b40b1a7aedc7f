"""A model that plain MLflow has logged comes under contract and ledger, or is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlflow
import pandas as pd
import pytest
from conftest import make_model
from refusals import raises

from mlops_lib import data, gates, registry, tracking
from mlops_lib.errors import ModelError, TaskError
from mlops_lib.programs import batch, release
from mlops_lib.project import Project
from mlops_lib.tracking import store


@pytest.fixture
def rows(project: Project) -> pd.DataFrame:
    return data.read_labelled(project, "p1")


def log_plainly(project: Project, rows: pd.DataFrame, **options: Any) -> str:
    """Log a model as somebody does who has never heard of this library; return its URI."""
    X, y = rows[list(project.features)], rows[project.target]
    store.connect(project.tracking_uri)
    mlflow.set_tracking_uri(project.tracking_uri)
    mlflow.set_experiment("theirs")
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(make_model().fit(X, y), name="model", **options)
    return str(info.model_uri)


@pytest.mark.parametrize("form", ["skops", "cloudpickle"])
def test_a_plain_model_is_adopted_scored_and_promoted(form: str, project: Project, rows: pd.DataFrame) -> None:
    trusted = {"skops_trusted_types": []} if form == "skops" else {}
    uri = log_plainly(project, rows, serialization_format=form, **trusted)
    if form != "skops":
        with raises(ModelError, "foreign") as caught:
            release.adopt_model(project, uri, rows)
        assert "--unpickle" in str(caught.value)
        assert not list(registry.list_versions(project))
    version = release.adopt_model(project, uri, rows, unpickle=form != "skops")
    assert version.description.startswith(f"adopted from {uri}")
    assert ("unpickled by ada" in version.description) == (form != "skops")
    loaded = registry.load_model(project, version.version)
    X = rows[list(project.features)]
    theirs = mlflow.sklearn.load_model(uri).predict_proba(X)[:, 1]
    assert (loaded.predict(X) == theirs).all()
    with tracking.start_run(project):
        registry.log_verdict(project, version.version, gates.check_gates(project, loaded, None, "p2"))
    gates.promote(project, version.version, "staging", reason="was in use before")
    result = batch.score_table(project, "staging", project.path("arrivals", "p2"), project.root / "scored.parquet")
    assert result.n_scored == result.n_rows


def test_a_run_that_was_logged_automatically_is_adopted(project: Project, rows: pd.DataFrame) -> None:
    store.connect(project.tracking_uri)
    mlflow.set_tracking_uri(project.tracking_uri)
    mlflow.set_experiment("theirs")
    mlflow.sklearn.autolog(silent=True, log_models=True)
    try:
        with mlflow.start_run() as run:
            make_model().fit(rows[list(project.features)], rows[project.target])
    finally:
        mlflow.sklearn.autolog(disable=True)
    version = release.adopt_model(project, f"runs:/{run.info.run_id}/model", rows, unpickle=True)
    assert registry.load_model(project, version.version).features == list(project.features)


def test_what_is_no_model_of_this_project_is_refused(project: Project, rows: pd.DataFrame) -> None:
    with raises(ModelError, "foreign"):
        release.adopt_model(project, "models:/nothing/3", rows)
    uri = log_plainly(project, rows)
    other = replace(project, task=replace(project.task, classes=("a", "b"), positive="b"))
    with pytest.raises(TaskError):
        release.adopt_model(other, uri, rows, unpickle=True)
    telling = replace(project, target="size", features=("color",))
    with raises(ModelError, "foreign"):
        release.adopt_model(telling, uri, rows, unpickle=True)
    assert not list(registry.list_versions(project))
