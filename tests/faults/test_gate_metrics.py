"""A metric that is NaN, infinite, missing, text or judged on nothing: every gate fails, and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import MetricThreshold
from mlflow.models.evaluation.base import EvaluationResult
from mlflow.models.evaluation.validation import ModelValidationFailedException
from mlflow.tracking import MlflowClient

from mlops_lib import data, registry, tracking
from mlops_lib.gates import (
    Better,
    Calibrated,
    ContractCompatible,
    Directional,
    Invariant,
    ModelSize,
    NoLeakage,
    NoSliceWorse,
    NoWorse,
    OneRowLatency,
    Threshold,
    judge_rows,
)
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report


def larger(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["size"] < 12].assign(size=lambda rows: rows["size"] + 1)


def as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


ON_LABELS: tuple[Any, ...] = (
    Threshold("roc_auc", 0.6),
    Threshold("log_loss", 0.9),
    NoWorse("roc_auc", margin=0.02),
    NoWorse("brier", margin=0.02),
    Better("roc_auc", by=-0.1),
    NoSliceWorse(("color",), "roc_auc", margin=0.02, min_rows=200),
    Calibrated(max_error=0.2),
)
ON_SCORES: tuple[Any, ...] = (
    Invariant("nothing changes", as_it_is, tolerance=0.01),
    Directional("larger things break more", larger, 1),
    OneRowLatency(max_ms=60_000, n_repeats=3),
)
ON_FILES: tuple[Any, ...] = (ModelSize(max_mb=10), NoLeakage(), ContractCompatible())
GATES = ON_LABELS + ON_SCORES + ON_FILES


class Spoilt:
    """A model whose scores are changed on the way out."""

    def __init__(self, model: Any, spoil: Callable[[Any], Any]) -> None:
        self.model, self.spoil = model, spoil

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        return self.spoil(self.model.predict_proba(rows))


def with_value(value: float) -> Callable[[Any], Any]:
    def spoil(scores: Any) -> Any:
        scores[:, 1] = np.where(np.arange(len(scores)) % 5 == 0, value, scores[:, 1])
        return scores

    return spoil


def give_up(scores: Any) -> Any:
    raise MemoryError("no memory for these rows")


Judge = Callable[..., Report]


@pytest.fixture(scope="module")
def release(registered: Project) -> Release:
    return registry.load_model(registered, 1)


@pytest.fixture
def frame(registered: Project) -> pd.DataFrame:
    return data.read_labelled(registered, "p2")


@pytest.fixture
def judge(registered: Project, release: Release) -> Judge:
    """Return what judges a candidate, whose scores are spoilt on their way, against the same model as it was."""

    def judge(frame: pd.DataFrame, gate: Any, spoil: Any = None) -> Report:
        files = replace(release.files, model=Spoilt(release.model, spoil)) if spoil else release.files
        return judge_rows(replace(registered, gates=(gate,)), replace(release, files=files), release, frame)

    return judge


def named(gate: Any) -> str:
    return f"{type(gate).__name__}-{getattr(gate, 'metric', getattr(gate, 'name', ''))}"


@pytest.mark.parametrize("gate", GATES, ids=named)
def test_every_gate_passes_when_nothing_is_wrong(judge: Judge, frame: pd.DataFrame, gate: Any) -> None:
    assert judge(frame, gate).passed


@pytest.mark.parametrize("gate", ON_LABELS, ids=named)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (with_value(np.nan), "scores are no probabilities; the first is nan"),
        (with_value(np.inf), "scores are no probabilities; the first is inf"),
        (with_value(1.5), "scores are no probabilities; the first is 1.5"),
        (lambda scores: scores.astype(str), "scores are no probabilities; the first is "),
        (lambda scores: scores[:-1], "There are 1000 labels but 999 scores"),
        (give_up, "no memory for these rows"),
    ],
    ids=["NaN", "infinity", "no probability", "text", "a score missing", "exception"],
)
def test_scores_that_mean_nothing_fail_every_gate_on_labels(
    judge: Judge, frame: pd.DataFrame, gate: Any, spoil: Any, reason: str
) -> None:
    report = judge(frame, gate, spoil)
    assert not report.passed
    assert reason in report.failures[0].reason


@pytest.mark.parametrize("gate", ON_SCORES, ids=named)
def test_a_model_that_cannot_score_fails_every_gate_that_scores(judge: Judge, frame: pd.DataFrame, gate: Any) -> None:
    assert not judge(frame, gate, give_up).passed


@pytest.mark.parametrize("gate", ON_SCORES[:2], ids=named)
def test_a_change_that_makes_scores_nan_is_a_failure(judge: Judge, frame: pd.DataFrame, gate: Any) -> None:
    report = judge(frame, gate, with_value(np.nan))
    assert "scores are no probabilities; the first is nan" in report.failures[0].reason


@pytest.mark.parametrize("gate", GATES, ids=named)
@pytest.mark.parametrize("spoil", ["no rows", "no feature"])
def test_rows_that_are_not_there_fail_every_gate(judge: Judge, frame: pd.DataFrame, gate: Any, spoil: str) -> None:
    report = judge(frame.head(0) if spoil == "no rows" else frame.drop(columns="size"), gate)
    assert not report.passed
    assert all(row.reason for row in report.failures)


@pytest.mark.parametrize("gate", ON_LABELS, ids=named)
@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (0, "of class 0"),
        (1, "of class 1"),
        (2, "Labels hold 2"),
        (0.5, "Labels hold 0.5"),
        ("1", "Labels hold 1"),
        (None, "Labels hold"),
    ],
    ids=["all negative", "all positive", "another class", "half", "text", "missing"],
)
def test_labels_that_mean_nothing_fail_every_gate_on_labels(
    judge: Judge, frame: pd.DataFrame, gate: Any, labels: Any, reason: str
) -> None:
    report = judge(frame.assign(broke=labels), gate)
    assert not report.passed
    assert any(reason in row.reason for row in report.failures)


@pytest.mark.parametrize("gate", ON_LABELS, ids=named)
def test_a_handful_of_rows_fails_every_gate_on_labels(judge: Judge, frame: pd.DataFrame, gate: Any) -> None:
    report = judge(frame.head(25), gate)
    assert not report.passed


@pytest.mark.parametrize("metric", ["", "roc_acu", None])
def test_a_metric_that_does_not_exist_is_a_failure(judge: Judge, frame: pd.DataFrame, metric: Any) -> None:
    for gate in (Threshold(metric, 0.5), NoWorse(metric, 0.1), Better(metric), NoSliceWorse(("color",), metric, 0.1)):
        assert not judge(frame, gate).passed


@pytest.mark.parametrize("limit", [np.nan, np.inf, -np.inf], ids=str)
def test_a_limit_that_is_no_number_lets_nobody_through(judge: Judge, frame: pd.DataFrame, limit: float) -> None:
    gates = (Threshold("roc_auc", limit), NoWorse("roc_auc", -limit), Better("roc_auc", limit))
    for gate in gates if not limit < 0 else (Calibrated(limit), ModelSize(limit), OneRowLatency(limit, n_repeats=1)):
        assert not judge(frame, gate).passed


def test_what_plain_mlflow_makes_of_such_metrics(
    project: Project, judge: Judge, frame: pd.DataFrame, record: Callable[..., None]
) -> None:
    with tracking.start_run(project) as run:
        mlflow.log_metric("test_roc_auc", float("inf"))
    stored = MlflowClient().get_run(run.info.run_id).data.metrics["test_roc_auc"]
    assert stored >= 0.68, "infinity is stored as the largest number, and passes"

    def passes(value: float, **rule: Any) -> bool:
        results = [EvaluationResult(metrics={"roc_auc": each}, artifacts={}) for each in (value, 0.7)]
        threshold = {"roc_auc": MetricThreshold(greater_is_better=True, **rule)}
        try:
            mlflow.validate_evaluation_results(
                validation_thresholds=threshold, candidate_result=results[0], baseline_result=results[1]
            )
        except ModelValidationFailedException:
            return False
        return True

    assert passes(stored, threshold=0.68)
    assert passes(float("nan"), min_relative_change=0.01)
    assert not any(judge(frame, gate, with_value(np.inf)).passed for gate in ON_LABELS)
    record(
        20,
        plain="infinity is stored as a finite number and passes a threshold; NaN passes a rule on relative change",
        ours="every gate fails and names the reason",
    )
