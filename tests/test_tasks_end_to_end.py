"""The whole loop for each task: a number, three classes and two classes, of which the classes are texts.

scikit-learn's bundled tables are drawn again, with noise, so that every period has rows enough of each class.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import close_databases, copy_store
from fastapi.testclient import TestClient
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_pinball_loss, top_k_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from stages import bring_to_prod, judge, standing

from mlops_lib import cli, contracts, data, gates, quality, registry, tracking
from mlops_lib.errors import RefusedError, TaskError
from mlops_lib.gates import (
    Better,
    Calibrated,
    ContractCompatible,
    Directional,
    Evidence,
    Invariant,
    ModelSize,
    NoLeakage,
    NoSliceWorse,
    NoWorse,
    OneRowLatency,
    Threshold,
)
from mlops_lib.programs import batch, operate, service
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Row
from mlops_lib.task import Task, binary, multiclass, regression

N_ROWS = 600
PERIODS = ("p1", "p2", "p3")


def high_quantile_loss(y_true: Any, y_pred: Any) -> float:
    """Return what errors cost where too little is nine times worse than too much."""
    return float(mean_pinball_loss(y_true, y_pred, alpha=0.9))


def among_two(y_true: Any, y_score: Any) -> float:
    """Return how often the true class is among the two likeliest."""
    return float(top_k_accuracy_score(y_true, y_score, k=2))


def cost(y_true: Any, y_pred: Any) -> float:
    """Return what mistakes cost where a positive that is missed is five times worse than a false alarm."""
    missed, false = np.greater(y_true, y_pred), np.less(y_true, y_pred)
    return float(np.mean(5 * missed + false))


def nudged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with numbers that differ by next to nothing."""
    return rows.assign(first=rows["first"] + 1e-6)


def raised(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with more of what the model goes by most, as far as the contract lets them have it."""
    highest = rows["first"].max()
    return rows.assign(first=np.minimum(rows["first"] + rows["first"].std(), highest))[rows["first"] < highest]


@dataclass(frozen=True)
class Case:
    """One task: its table, its models and what its gates are held to."""

    task: Task
    load: Callable[..., Any]
    columns: tuple[str, str, str]  # of the bundled table; called first, second and third here
    classes: tuple[str, ...]
    estimator: Any
    easy: float  # a threshold of the leading metric that the model keeps
    hard: float
    margin: float
    sklearn_metric: tuple[str, float]
    own_metric: quality.Metric
    tolerance: float  # how much of a move counts, and how far calibration may be off
    direction: Literal[1, -1]
    of: Any = None


CASES = {
    "regression": Case(
        task=regression(),
        load=datasets.load_diabetes,
        columns=("bmi", "s5", "bp"),
        classes=(),
        estimator=Ridge(),
        easy=60.0,
        hard=20.0,
        margin=2.0,
        sklearn_metric=("mean_pinball_loss", 30.0),
        own_metric=quality.Metric("high_quantile_loss", high_quantile_loss, greater_is_better=False),
        tolerance=40.0,
        direction=1,
    ),
    "multiclass": Case(
        task=multiclass(),
        load=datasets.load_wine,
        columns=("flavanoids", "proline", "color_intensity"),
        classes=("barolo", "grignolino", "barbera"),
        estimator=LogisticRegression(),
        easy=0.8,
        hard=0.999,
        margin=0.05,
        sklearn_metric=("balanced_accuracy_score", 0.8),
        own_metric=quality.Metric("among_two", among_two, greater_is_better=True, uses="score"),
        tolerance=0.2,
        direction=-1,
        of="barbera",
    ),
    "binary": Case(
        task=binary(positive="yes", threshold=0.3),
        load=datasets.load_breast_cancer,
        columns=("mean concave points", "mean texture", "worst area"),
        classes=("yes", "no"),  # malignant is 0
        estimator=LogisticRegression(),
        easy=0.9,
        hard=0.9999,
        margin=0.02,
        sklearn_metric=("balanced_accuracy_score", 0.8),
        own_metric=quality.Metric("cost", cost, greater_is_better=False),
        tolerance=0.2,
        direction=1,
    ),
}


def make_tables(case: Case) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return features and labels of all periods, one below the other."""
    bundle = case.load(as_frame=True)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(bundle.data), size=N_ROWS * len(PERIODS))
    numbers = bundle.data[list(case.columns)].iloc[drawn].to_numpy()
    noise = rng.normal(0, 0.1, numbers.shape) * numbers.std(axis=0)
    arrivals = pd.DataFrame(numbers + noise, columns=["first", "second", "third"])
    arrivals.insert(0, "row_id", np.arange(len(arrivals)))
    arrivals["site"] = rng.choice(["north", "south"], len(arrivals))
    arrivals["day"] = pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(arrivals)) // 20, unit="D")
    target = bundle.target.iloc[drawn].to_numpy()
    labels = pd.DataFrame({"row_id": arrivals["row_id"], "outcome": target, "labelled_at": arrivals["day"]})
    if case.classes:
        labels["outcome"] = np.array(case.classes)[target]
    return arrivals, labels


def project_in(folder: Path, case: Case) -> Project:
    lead = case.task.metrics[0]
    return Project(
        name="loop",
        root=folder,
        target="outcome",
        keys=("row_id",),
        features=("first", "second", "third", "site"),
        arrivals="data/arrivals/{period}.parquet",
        labels="data/labels/{period}.parquet",
        gates=(
            NoLeakage(),
            Threshold(lead, case.easy, clusters="day"),
            Threshold(*case.sklearn_metric, clusters="day"),
            NoWorse(lead, case.margin, clusters="day"),
            NoSliceWorse(("site",), lead, case.margin, min_rows=200),
            ContractCompatible(),
        ),
        slices=("site",),
        task=case.task,
        metrics=(case.own_metric, case.sklearn_metric[0]),
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        actor="ada",
    )


def register(project: Project, case: Case, *, poor: bool = False) -> registry.Version:
    """Train on p1 and register; a poor model was trained on labels of other rows."""
    rows = data.read_labelled(project, "p1")
    X, y = rows[list(project.features)], rows["outcome"].to_numpy()
    columns = make_column_transformer((StandardScaler(), ["first", "second", "third"]), (OneHotEncoder(), ["site"]))
    model = make_pipeline(columns, case.estimator).fit(X, np.random.default_rng(0).permutation(y) if poor else y)
    contract = contracts.infer_contract(rows, features=project.features, keys=project.keys)
    profile = quality.build_profile(rows, columns=project.features)
    with tracking.start_run(project, params={"poor": poor}):
        logged = tracking.log_model(
            project, model, X, keys=rows[["row_id"]], contract=contract.to_dict(), profile=profile.to_dict()
        )
    task = project.task.fit_to(model)
    measured = quality.compute_metrics(y, task.predict(model, X), task=task, prefix="val")
    return registry.register(project, logged.model_uri, metrics=measured)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def made(case: Case, tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Project:
    """Return a project with two good versions and a poor one; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("loop")
    shutil.copy(migrated_store / "mlflow.db", folder / "mlflow.db")
    for table, frame in zip(("arrivals", "labels"), make_tables(case), strict=True):
        for n, period in enumerate(PERIODS):
            data.write_table(frame[n * N_ROWS : (n + 1) * N_ROWS], folder / f"data/{table}/{period}.parquet")
    project = project_in(folder, case)
    for poor in (False, False, True):
        register(project, case, poor=poor)
    close_databases()
    return project


@pytest.fixture
def project(made: Project, case: Case, tmp_path: Path) -> Project:
    """Return a project of a test's own like ``made``."""
    shutil.copytree(made.root / "data", tmp_path / "data")
    project = project_in(tmp_path, case)
    copy_store(made, project)
    return project


def test_a_project_goes_all_the_way_round(project: Project, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(project, 1).counts["not_applicable"] == 3, "nothing to compare the first one with"
    bring_to_prod(project, 1)
    assert judge(project, 2).counts == {"passed": 10, "failed": 0, "not_applicable": 0}
    bring_to_prod(project, 2)
    assert not judge(project, 3).passed
    with pytest.raises(RefusedError, match=f"gates failed. test_{case.task.metrics[0]} is"):
        gates.promote(project, 3, "staging")
    assert standing(project) == {"dev": 3, "staging": 2, "prod": 2}

    release = registry.load_model(project, "prod")
    output = project.predictions_path("p3", 2)
    batch.score_table(project, "prod", project.path("arrivals", "p3"), output)
    predictions = data.read_table(output)
    arrivals = data.read_table(project.path("arrivals", "p3")).set_index("row_id").loc[predictions["row_id"]]
    expected = release.task.to_columns(release.predict(arrivals))
    assert list(predictions)[1 : 1 + len(expected)] == list(expected)
    for name, values in expected.items():
        assert predictions[name].tolist() == values.tolist()
    if case.classes:
        assert set(predictions["prediction"]) == set(case.classes)

    seen = operate.monitor_period(project, "p3")
    assert seen.passed, seen.quality
    measured = [*release.task.metrics, case.own_metric.name, case.sklearn_metric[0]]
    assert set(measured) <= set(seen.quality_table.columns)
    with tracking.start_run(project):
        operate.log_period(seen)
    labels = data.read_table(project.path("labels", "p3"))
    spoilt = labels.assign(outcome=np.random.default_rng(0).permutation(labels["outcome"]))
    data.write_table(spoilt, project.path("labels", "p3"))
    assert [row.name for row in operate.monitor_period(project, "p3").quality.failures] == [
        f"model_version 2: {case.task.metrics[0]}"
    ]

    compared = gates.compare_versions(project, 1, 3, periods=["p2"]).tables["metrics"].set_index("metric")
    assert list(compared.index) == measured
    monkeypatch.setattr("mlops_lib.project.load_project", lambda _, **__: project)
    shown = CliRunner().invoke(cli.main, ["show", "prod"]).output
    assert str(release.task) in shown
    registry.rollback(project, "prod", reason="it drifted")
    assert standing(project)["prod"] == 1


@pytest.fixture(scope="module")
def releases(made: Project) -> list[Release]:
    return [registry.load_model(made, version) for version in (1, 2, 3)]


def test_the_service_answers_as_stock_mlflow_does(made: Project, releases: list[Release]) -> None:
    release = releases[0]
    rows = data.read_table(made.path("arrivals", "p3")).head(5)[release.features]
    with TestClient(service.create_app(release)) as client:
        answer = client.post("/invocations", json={"dataframe_records": rows.to_dict("records")})
    stock = mlflow.pyfunc.load_model(f"models:/{release.model_id}")
    assert answer.json()["predictions"] == stock.predict(rows).tolist()


# --- each gate, passing and failing ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence(made: Project, releases: list[Release]) -> dict[str, Evidence]:
    """Return what gates see: of equal models, of a poor one against a good one and the other way round."""
    rows = data.read_labelled(made, "p2")
    good, same, poor = releases
    pairs = {"equal": (good, same), "worse": (poor, good), "better": (good, poor)}
    found = {name: gates.collect_evidence(made, *pair, rows) for name, pair in pairs.items()}
    seen_before = gates.collect_evidence(made, good, same, data.read_labelled(made, "p1"))
    return {**found, "trained on": seen_before}


def status(gate: Any, evidence: Evidence) -> set[str]:
    return {row.status for row in gate.check(evidence)}


def test_gates_on_labels_pass_what_they_should_and_stop_what_they_should(
    case: Case, evidence: dict[str, Evidence]
) -> None:
    lead, own = case.task.metrics[0], case.own_metric.name
    name, easy = case.sklearn_metric
    for gate, passes, fails in (
        (Threshold(lead, case.easy), "equal", "worse"),
        (Threshold(name, easy), "equal", "worse"),
        (NoWorse(lead, case.margin), "equal", "worse"),
        (NoWorse(own, case.margin), "equal", "worse"),
        (Better(lead), "better", "equal"),
        (Better(own), "better", "equal"),
        (NoSliceWorse(("site",), lead, case.margin, min_rows=100), "equal", "worse"),
        (NoSliceWorse(("site",), own, case.margin, min_rows=100), "equal", "worse"),
    ):
        assert status(gate, evidence[passes]) == {"passed"}, gate
        assert status(gate, evidence[fails]) == {"failed"}, gate
    assert status(Threshold(lead, case.hard), evidence["equal"]) == {"failed"}
    for metric in case.task.metrics:
        if evidence["equal"].metric(metric).greater_is_better is not None:
            assert status(Better(metric), evidence["better"]) == {"passed"}, metric
    assert status(Calibrated(case.tolerance), evidence["equal"]) == {"passed"}
    assert status(Calibrated(case.tolerance / 1000), evidence["equal"]) == {"failed"}


def test_gates_on_behaviour_pass_what_they_should_and_stop_what_they_should(
    case: Case, evidence: dict[str, Evidence]
) -> None:
    equal = evidence["equal"]
    assert status(Invariant("a nudge", nudged, tolerance=case.tolerance / 100), equal) == {"passed"}
    assert status(Invariant("a lot", raised, tolerance=case.tolerance / 100), equal) == {"failed"}
    assert status(Directional("more", raised, case.direction, max_share=0.1, of=case.of), equal) == {"passed"}
    against: Literal[1, -1] = -1 if case.direction == 1 else 1
    assert status(Directional("more", raised, against, of=case.of), equal) == {"failed"}


def test_gates_on_the_model_itself_pass_and_fail(case: Case, evidence: dict[str, Evidence]) -> None:
    equal = evidence["equal"]
    for passes, fails in ((OneRowLatency(60_000, 2), OneRowLatency(0, 2)), (ModelSize(5), ModelSize(0.001))):
        assert (status(passes, equal), status(fails, equal)) == ({"passed"}, {"failed"})
    assert status(NoLeakage(), equal) == {"passed"}
    assert status(NoLeakage(), evidence["trained on"]) == {"failed"}
    assert status(ContractCompatible(), equal) == {"passed"}
    assert status(ContractCompatible(), replace(equal, contract_champion=None)) == {"failed"}


def test_slices_are_measured_with_and_without_a_gate_for_them(
    made: Project, case: Case, evidence: dict[str, Evidence]
) -> None:
    judged, margin = gates.measure_slices(made, evidence["worse"])
    plain, nothing = gates.measure_slices(replace(made, gates=()), evidence["worse"])
    alone, _ = gates.measure_slices(made, replace(evidence["worse"], champion=None))
    assert set(judged["slice"]) == set(plain["slice"]) == set(alone["slice"]) == {"north", "south"}
    assert judged["difference"].tolist() == plain["difference"].tolist()
    assert "difference" not in alone
    assert (margin, nothing) == (case.margin, 0.0)


def only(gate: Any, evidence: Evidence) -> Row:
    (row,) = gate.check(evidence)
    return row


@pytest.mark.parametrize("case", ["regression"], indirect=True)
def test_a_bias_is_held_within_a_limit_and_compares_no_models(evidence: dict[str, Evidence]) -> None:
    row = only(Threshold("mean_error", 15.0), evidence["equal"])
    assert (row.status, row.limit) == ("passed", "interval within ±15.000")
    high = replace(evidence["equal"], candidate=evidence["equal"].candidate + 30)
    low = replace(evidence["equal"], candidate=evidence["equal"].candidate - 30)
    assert (
        only(Threshold("mean_error", 15.0), high).status == only(Threshold("mean_error", 15.0), low).status == "failed"
    )
    for gate in (NoWorse("mean_error", 1.0), Better("mean_error"), NoSliceWorse(("site",), "mean_error", 1.0)):
        with pytest.raises(TaskError, match="is best near zero"):
            only(gate, evidence["equal"])


@pytest.mark.parametrize("case", ["multiclass"], indirect=True)
def test_of_several_classes_a_direction_names_one(evidence: dict[str, Evidence]) -> None:
    with pytest.raises(TaskError, match=r"has of=None, needs one of the classes \('barbera', 'barolo', 'grignolino'\)"):
        only(Directional("more", raised, 1), evidence["equal"])


@pytest.mark.parametrize("case", ["binary"], indirect=True)
def test_of_two_classes_a_direction_may_name_either(evidence: dict[str, Evidence]) -> None:
    assert only(Directional("more", raised, -1, max_share=0.1, of="no"), evidence["equal"]).status == "passed"
    assert only(Directional("more", raised, 1, max_share=0.1, of="yes"), evidence["equal"]).status == "passed"
    with pytest.raises(TaskError, match="has of='maybe'"):
        only(Directional("more", raised, 1, of="maybe"), evidence["equal"])


def test_a_champion_of_another_task_is_compared_with_nothing(made: Project, releases: list[Release]) -> None:
    other = replace(releases[0], files=replace(releases[0].files, task=binary(positive="on", negative="off")))
    report = gates.judge_rows(made, releases[1], other, data.read_labelled(made, "p2"))
    (row,) = report.failures
    assert "nothing compares them" in row.reason
