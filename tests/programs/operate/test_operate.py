"""Production, looked at: drift, late labels, and what ails."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from refusals import raises
from stages import ledger_of

from mlops_lib import data, registry, tracking
from mlops_lib.errors import NotFoundError
from mlops_lib.programs import batch, operate
from mlops_lib.project import Project
from mlops_lib.report import Report
from mlops_lib.tracking import store

PROJECT_FILE = """
from pathlib import Path
from mlops_lib.project import Project
project = Project(
    name="toy", root=Path({root!r}), target="broke", keys=("thing_id",), features=("color", "size", "weight"),
    arrivals="data/arrivals/{{period}}.parquet", labels="data/labels/{{period}}.parquet",
)
"""


@pytest.fixture
def in_prod(project: Project, version: registry.Version) -> Project:
    """Return the project with version 1 in prod."""
    for stage in ("staging", "prod"):
        registry.promote(project, version.version, stage, force=True, reason="test")
    return project


def score(project: Project, period: str) -> None:
    batch.score_table(project, "prod", project.path("arrivals", period), project.predictions_path(period, 1))


def rows_of(report: Report) -> dict[str, str]:
    return {row.name: row.status for row in report.rows}


# --- a period ----------------------------------------------------------------------------------------------------


def test_a_period_like_the_training_data_passes(in_prod: Project) -> None:
    score(in_prod, "p2")
    seen = operate.monitor_period(in_prod, "p2")
    assert seen.passed, (seen.drift, seen.quality)
    assert (seen.period, seen.version) == ("p2", 1)
    assert set(in_prod.features) <= set(seen.drift_table.index) | set(seen.drift_table.get("column", ()))
    assert seen.quality_table.loc[1, "roc_auc"] > 0.6


def test_a_period_that_drifted_is_told_by_column(in_prod: Project) -> None:
    path = in_prod.path("arrivals", "p2")
    frame = data.read_table(path)
    data.write_table(frame.assign(size=frame["size"] * 10), path)
    seen = operate.monitor_period(in_prod, "p2")
    assert not seen.passed
    assert any("size" in row.name for row in seen.drift.failures)


def test_predictions_that_turned_out_badly_are_told(in_prod: Project) -> None:
    score(in_prod, "p2")
    path = in_prod.path("labels", "p2")
    labels = data.read_table(path)
    data.write_table(labels.assign(broke=1 - labels["broke"]), path)
    seen = operate.monitor_period(in_prod, "p2")
    assert seen.quality.failures
    assert not seen.passed


def test_without_predictions_quality_is_not_applicable_and_drift_still_told(in_prod: Project) -> None:
    seen = operate.monitor_period(in_prod, "p2")
    assert set(rows_of(seen.quality).values()) == {"not_applicable"}
    assert seen.quality_table.empty
    assert seen.passed


def test_without_labels_quality_is_not_applicable(in_prod: Project) -> None:
    score(in_prod, "p2")
    in_prod.path("labels", "p2").unlink()
    seen = operate.monitor_period(in_prod, "p2")
    assert set(rows_of(seen.quality).values()) == {"not_applicable"}


def test_only_labels_known_by_then_count(in_prod: Project) -> None:
    score(in_prod, "p2")
    labels = data.read_table(in_prod.path("labels", "p2"))
    middle = labels["labelled_at"].sort_values().iloc[499].to_pydatetime()
    seen = operate.monitor_period(in_prod, "p2", as_of=middle)
    everything = operate.monitor_period(in_prod, "p2")
    assert seen.quality_table.loc[1, "n_labelled"] == 500
    assert everything.quality_table.loc[1, "n_labelled"] == 1000


def test_before_any_label_is_known_nothing_is_judged(in_prod: Project) -> None:
    score(in_prod, "p2")
    seen = operate.monitor_period(in_prod, "p2", as_of=datetime(2000, 1, 1, tzinfo=UTC))
    assert not seen.quality.failures
    assert not any(status == "passed" for status in rows_of(seen.quality).values())


def test_what_cannot_be_monitored_is_told(in_prod: Project) -> None:
    with pytest.raises(NotFoundError, match=r"Ingested: p1, p2, p3"):
        operate.monitor_period(in_prod, "p9")
    store.connect(in_prod.tracking_uri).delete_registered_model("toy")
    with raises(NotFoundError, "version_in_stage"):
        operate.monitor_period(in_prod, "p2")


def test_a_period_is_logged_with_reports_and_metrics(in_prod: Project) -> None:
    score(in_prod, "p2")
    seen = operate.monitor_period(in_prod, "p2")
    with tracking.start_run(in_prod) as run:
        operate.log_period(seen)
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=""))
    assert {"drift.json", "drift.html", "quality.json", "quality.html"} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "drift.json").read_text())["passed"] is seen.drift.passed
    metrics = store.connect(in_prod.tracking_uri).get_run(run.info.run_id).data.metrics
    assert metrics["live_roc_auc"] == seen.quality_table.loc[1, "roc_auc"]


def test_a_period_without_labels_is_logged_too(in_prod: Project) -> None:
    with tracking.start_run(in_prod) as run:
        operate.log_period(operate.monitor_period(in_prod, "p2"))
    assert store.connect(in_prod.tracking_uri).get_run(run.info.run_id).data.metrics == {}


def test_live_quality_may_be_cut_by_another_column(in_prod: Project) -> None:
    score(in_prod, "p2")
    predictions = data.read_table(in_prod.predictions_path("p2", 1)).assign(half=lambda t: np.arange(len(t)) % 2)
    labels = data.read_table(in_prod.path("labels", "p2"))
    table = operate.live_quality(in_prod, predictions, labels, task=in_prod.task, by="half")
    assert table.index.tolist() == [0, 1]


# --- health ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project file for the toy project, and the environment that goes with it."""
    path = project.root / "project.py"
    path.write_text(PROJECT_FILE.format(root=str(project.root)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.tracking_uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return path


def test_a_healthy_project_passes(in_prod: Project, file: Path) -> None:
    report = operate.examine(file)
    assert report.passed, report
    assert rows_of(report) == dict.fromkeys(["project", "data", "store", "ledger", "dev", "staging", "prod"], "passed")
    assert report.facts["store"] == in_prod.tracking_uri


def test_a_fresh_project_has_stages_that_are_not_applicable_yet(file: Path) -> None:
    report = operate.examine(file)
    assert report.passed, report
    assert rows_of(report)["prod"] == "not_applicable"


def test_no_project_is_one_row_and_nothing_else_is_looked_at(tmp_path: Path) -> None:
    report = operate.examine(tmp_path / "gone.py")
    assert rows_of(report) == {"project": "failed"}
    assert "gone.py" in report.rows[0].reason


def test_no_data_is_told(project: Project, file: Path) -> None:
    shutil.rmtree(project.root / "data")
    report = operate.examine(file)
    assert rows_of(report)["data"] == "failed"
    assert "No period was ingested yet" in report.failures[0].reason


def test_a_store_that_does_not_answer_is_told_without_the_password(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:s3cret@127.0.0.1:1")
    report = operate.examine(file)
    assert rows_of(report) == {"project": "passed", "data": "passed", "store": "failed"}
    assert "s3cret" not in report.to_json()


def test_a_changed_model_file_and_a_broken_ledger_are_told(in_prod: Project, file: Path) -> None:
    release = registry.load_model(in_prod, "prod")
    path = Path(mlflow.artifacts.download_artifacts(f"models:/{release.model_id}")) / "model.skops"
    path.write_bytes(path.read_bytes()[:-1])
    report = operate.examine(file)
    assert {name for name, status in rows_of(report).items() if status == "failed"} == {"dev", "staging", "prod"}
    client = store.connect(in_prod.tracking_uri)
    client.log_param(ledger_of(in_prod), "note", "x")
    assert rows_of(operate.examine(file))["ledger"] == "failed"


def test_times_of_labels_without_a_zone_count_as_utc(in_prod: Project) -> None:
    score(in_prod, "p2")
    path = in_prod.path("labels", "p2")
    labels = data.read_table(path)
    data.write_table(labels.assign(labelled_at=labels["labelled_at"].dt.tz_localize(None)), path)
    middle = pd.Timestamp("2020-01-01 08:19", tz="UTC").to_pydatetime()
    seen = operate.monitor_period(replace(in_prod), "p2", as_of=middle)
    assert seen.quality_table.loc[1, "n_labelled"] == 500
