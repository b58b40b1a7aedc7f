"""What mistakes cost: the threshold that costs least, and the mean cost as a metric of gates and monitoring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import log_toy_model, make_model
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import raises

from mlops_lib import contracts, data, gates, quality, registry, tracking
from mlops_lib.errors import ProjectError, QualityError
from mlops_lib.gates import NoWorse, Threshold
from mlops_lib.programs import batch, operate
from mlops_lib.project import Costs, Project
from mlops_lib.task import binary, multiclass, regression

PLAIN = Project(name="toy", root=Path(), costs=Costs(false_alarm=1, miss=5))
SCORES = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])), min_size=1, max_size=40)


@given(rows=SCORES, false_alarm=st.integers(0, 5), miss=st.integers(0, 5), capacity=st.sampled_from([0.1, 0.5, 1.0]))
def test_no_threshold_costs_less_than_the_chosen_one(
    rows: list[tuple[bool, float]], false_alarm: int, miss: int, capacity: float
) -> None:
    assume({label for label, _ in rows} == {False, True})
    y, score = np.array([int(label) for label, _ in rows]), np.array([value for _, value in rows])
    costs = Costs(false_alarm=false_alarm + 1, miss=miss, capacity=capacity)

    def cost_at(threshold: float) -> float:
        flagged = score >= threshold
        if flagged.mean() > capacity:
            return float("inf")
        return float((costs.false_alarm * (flagged & (y == 0)) + costs.miss * (~flagged & (y == 1))).mean())

    chosen = quality.choose_threshold(replace(PLAIN, costs=costs), y, score).threshold
    assert chosen is not None
    least = min(cost_at(threshold) for threshold in np.linspace(0, 1, 401))
    assert cost_at(chosen) == pytest.approx(least)
    fewest = min((score >= t).sum() for t in np.linspace(0, 1, 401) if cost_at(t) == pytest.approx(least))
    assert (score >= chosen).sum() == fewest


def test_a_capacity_that_no_threshold_keeps_is_told() -> None:
    project = replace(PLAIN, costs=Costs(miss=1, capacity=0.1))
    with raises(QualityError, "capacity"):
        quality.choose_threshold(project, [0, 1], [1.0, 1.0])
    with raises(QualityError, "no_rows"):
        quality.choose_threshold(project, [], [])


def test_without_costs_the_threshold_is_the_projects() -> None:
    assert quality.choose_threshold(replace(PLAIN, costs=None), [0, 1], [0.2, 0.9]).threshold == 0.5
    assert "mean_cost" not in map(str, quality.list_metrics(replace(PLAIN, costs=None)))


@pytest.mark.parametrize(
    ("costs", "task"),
    [
        (Costs(), binary()),
        (Costs(false_alarm=-1), binary()),
        (Costs(miss=float("nan")), binary()),
        (Costs(miss=1, capacity=0), binary()),
        (Costs(miss=1, capacity=1.5), binary()),
        (Costs(miss=1), multiclass()),
        (Costs(miss=1), regression()),
        (5, binary()),
    ],
)
def test_costs_that_cannot_be_meant_are_refused_with_the_project(costs: Any, task: Any) -> None:
    with raises(ProjectError, "field"):
        Project(name="toy", root=Path(), costs=costs, task=task)


def by_thirds(y_true: np.ndarray[Any, Any], y_pred: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(y_pred < y_true, 3.0, 1.0) * np.abs(y_pred - y_true)


def test_a_number_costs_what_the_function_says_and_a_function_of_another_shape_is_told() -> None:
    metric = quality.cost_metric(Costs(function=by_thirds), regression())
    assert metric.measure(regression(), np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 2.5
    wrong = quality.cost_metric(Costs(function=lambda y, p: 1.0), regression())
    with raises(QualityError, "no_value"):
        wrong.measure(regression(), np.array([1.0, 2.0]), np.array([0.0, 4.0]))


def test_the_cost_of_a_model_is_a_gate_a_comparison_and_monitored(project: Project) -> None:
    costs = Costs(false_alarm=1, miss=4, unit="EUR")
    project = replace(project, costs=costs, gates=(Threshold("mean_cost", 1.0), NoWorse("mean_cost", margin=0.1)))
    rows = data.read_labelled(project, "p1")
    X = rows[list(project.features)]
    model = make_model().fit(X, rows["broke"])
    task = quality.choose_threshold(project, rows["broke"], project.task.predict(model, X))
    assert task.threshold != 0.5
    contract = contracts.infer_contract(rows, features=project.features, keys=project.keys).to_dict()
    profile = quality.build_profile(rows, columns=project.features).to_dict()
    with tracking.start_run(project):
        logged = tracking.log_model(
            replace(project, task=task), model, X, keys=rows[["thing_id"]], contract=contract, profile=profile
        )
        version = registry.register(project, logged.model_uri).version
        candidate = registry.load_model(project, version)
        assert candidate.task.threshold == task.threshold
        verdict = gates.check_gates(project, candidate, None, "p2")
        registry.log_verdict(project, version, verdict)
    row = next(row for row in verdict.rows if row.name == "test_mean_cost")
    assert row.status == "passed"
    assert "interval" in row.reason
    gates.promote(project, version, "staging", reason="cheaper")  # the check is done again
    strict = replace(project, gates=(Threshold("mean_cost", 0.01),))
    assert not gates.check_gates(strict, candidate, None, "p2").passed
    assert registry.verdicts.gates_digest(project) != registry.verdicts.gates_digest(replace(project, costs=None))
    batch.score_table(project, "staging", project.path("arrivals", "p2"), project.predictions_path("p2", version))
    seen = operate.monitor_period(project, "p2", "staging")
    assert seen.quality_table["mean_cost"].iloc[0] == pytest.approx(float(row.value or 0))
    other = registry.register(project, log_toy_model(project, C=0.001).model_uri).version
    assert "mean_cost" in gates.compare_versions(project, version, other, periods=["p2"]).tables["metrics"].to_string()


def test_what_a_threshold_costs_is_drawn_with_the_models_own() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    score = np.clip(0.3 * y + rng.random(200) * 0.7, 0, 1)
    task = quality.choose_threshold(PLAIN, y, score)
    ax = quality.plot_score_threshold(y, score, task=task, costs=Costs(false_alarm=1, miss=5, unit="EUR"))
    assert ax.get_ylabel() == "EUR a row"
    marked = ax.lines[1].get_xydata()[0]
    drawn = ax.lines[0].get_ydata()
    assert marked[1] == pytest.approx(min(drawn))
    plt.close("all")
