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
from conftest import register_model
from refusals import raises
from stages import ledger_of

from mlops_lib import data, gates, quality, registry, tracking
from mlops_lib.errors import MlopsError, NotFoundError, QualityError, TableError
from mlops_lib.gates import Threshold
from mlops_lib.programs import batch, operate
from mlops_lib.project import Monitoring, Project
from mlops_lib.report import Report
from mlops_lib.task import binary
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
        gates.promote(project, version.version, stage, force=True, reason="test")
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


def test_without_predictions_it_is_told_where_they_were_looked_for_and_drift_is_told_all_the_same(
    in_prod: Project,
) -> None:
    seen = operate.monitor_period(in_prod, "p2")
    assert rows_of(seen.quality) == {"predictions": "failed"}
    assert "data/predictions/p2/version-1.parquet" in seen.quality.failures[0].reason
    assert seen.quality_table.empty
    assert seen.drift.passed
    assert not seen.passed


def test_without_labels_or_without_both_each_is_told(in_prod: Project) -> None:
    in_prod.path("labels", "p2").unlink()
    assert rows_of(operate.monitor_period(in_prod, "p2").quality) == {"predictions": "failed", "labels": "failed"}
    score(in_prod, "p2")
    seen = operate.monitor_period(in_prod, "p2")
    assert rows_of(seen.quality) == {"labels": "failed"}
    assert "Ingested: p1, p3" in seen.quality.failures[0].reason


def test_a_version_that_was_replaced_is_measured_by_its_number(in_prod: Project) -> None:
    score(in_prod, "p2")
    register_model(in_prod, C=0.1)
    gates.promote(in_prod, 2, "staging", force=True, reason="a test")
    gates.promote(in_prod, 2, "prod", force=True, reason="a test")
    assert rows_of(operate.monitor_period(in_prod, "p2").quality) == {"predictions": "failed"}
    seen = operate.monitor_period(in_prod, "p2", 1)
    assert (seen.version, seen.quality.passed) == (1, True)


def test_limits_are_the_projects(in_prod: Project) -> None:
    score(in_prod, "p2")
    strict = Monitoring(max_psi=-1, max_loss=-1, min_labelled=10)
    seen = operate.monitor_period(replace(in_prod, monitoring=strict), "p2")
    assert seen.quality.failures
    waiting = replace(in_prod, monitoring=Monitoring(max_loss=-1, min_labelled=5000))
    assert not operate.monitor_period(waiting, "p2").quality.failures
    seldom = replace(in_prod, monitoring=Monitoring(alarms_a_year=2, periods_a_year=12))
    seen = operate.monitor_period(seldom, "p2")
    assert seen.drift.facts["alarm_level"] == 2 / 12 / (2 * (len(in_prod.features) + 1)), "the features and the score"


def test_a_loss_that_chance_explains_is_no_alarm_and_one_that_it_does_not_is(in_prod: Project) -> None:
    """Judged at the better end of the interval: evidence for an alarm, as there is for a pass."""
    score(in_prod, "p2")
    seen = operate.monitor_period(in_prod, "p2")
    row = seen.quality_table.loc[1]
    for limit, is_held in ((row["roc_auc_high"] - 1e-6, True), (row["roc_auc_high"] + 1e-6, False)):
        report = quality.check_live_quality(seen.quality_table, limits={"roc_auc": quality.Limit(low=limit)})
        assert report.passed is is_held


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


@pytest.mark.parametrize("experiment", ["toy", "toy.ledger"])
def test_a_deleted_experiment_is_told(in_prod: Project, file: Path, experiment: str) -> None:
    client = mlflow.MlflowClient(in_prod.tracking_uri)
    client.delete_experiment(client.get_experiment_by_name(experiment).experiment_id)
    report = operate.examine(file)
    assert f"Experiment '{experiment}'" in report.failures[0].reason
    assert "mlflow experiments restore --experiment-id" in report.failures[0].reason


def test_no_data_is_told(project: Project, file: Path) -> None:
    shutil.rmtree(project.root / "data")
    report = operate.examine(file)
    assert rows_of(report)["data"] == "failed"
    assert "No period was ingested yet" in report.failures[0].reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("target", "brook", "lacks brook.*Did you mean 'broke'"),
        ("features", ("color", "sise"), "lacks sise.*Did you mean 'size'"),
        ("keys", ("thing",), "lacks thing.*Did you mean 'thing_id'"),
        ("gates", (Threshold("roc_acu", 0.5),), "no metric 'roc_acu'.*roc_auc"),
        ("gates", (Threshold("roc_auc", 0.5, clusters="dai"),), "lacks dai"),
        ("metrics", ("log_los",), "no metric 'log_los'.*log_loss"),
        ("labels", "data/labelz/{period}.parquet", "labelz|No period"),
        ("task", binary(positive="yes"), "yes"),
        ("labelled_at", "thing", ""),
    ],
)
def test_what_would_fail_later_is_told_before_anything_runs(
    project: Project, field: str, value: object, reason: str
) -> None:
    if not reason:  # labels that do not say when they became known are fine
        assert "labelled rows in p3" in operate.examine_data(replace(project, **{field: value}))
        return
    with pytest.raises(MlopsError, match=f"(?s){reason}"):
        operate.examine_data(replace(project, **{field: value}))


@pytest.mark.parametrize("moment", ["2199-01-01", None])
def test_labels_of_the_future_or_of_no_time_are_told(project: Project, moment: str | None) -> None:
    path = project.path("labels", "p3")
    data.write_table(data.read_table(path).assign(labelled_at=pd.Timestamp(moment)), path)
    with raises(TableError, "times"):
        operate.examine_data(project)


def test_a_key_that_comes_twice_is_told(project: Project) -> None:
    path = project.path("arrivals", "p3")
    rows = data.read_table(path)
    data.write_table(pd.concat([rows, rows[:1]]), path)
    with raises(QualityError, "keys"):
        operate.examine_data(project)


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
    client, moves = store.connect(in_prod.tracking_uri), ledger_of(in_prod)
    client.set_tag(moves, "mlops.ledger_head", "99:gone")
    assert rows_of(operate.examine(file))["ledger"] == "failed"


def test_times_of_labels_without_a_zone_count_as_utc(in_prod: Project) -> None:
    score(in_prod, "p2")
    path = in_prod.path("labels", "p2")
    labels = data.read_table(path)
    data.write_table(labels.assign(labelled_at=labels["labelled_at"].dt.tz_localize(None)), path)
    middle = pd.Timestamp("2020-01-01 08:19", tz="UTC").to_pydatetime()
    seen = operate.monitor_period(replace(in_prod), "p2", as_of=middle)
    assert seen.quality_table.loc[1, "n_labelled"] == 500
