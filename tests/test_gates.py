"""Gates: closed by default, judged on the same rows, bound to what they were judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import read_labelled, register_model

from mlops_lib import contracts, data, registry
from mlops_lib.gates import ContractCompatible, Evidence, NoSliceWorse, NoWorse, Threshold, bind, check_gates
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row


@pytest.fixture
def candidate(project: Project, version: registry.Version) -> Release:
    """Return version 1, loaded."""
    return registry.load_model(project, version.version)


@pytest.fixture
def frame(project: Project) -> pd.DataFrame:
    """Return labelled rows that the model has not seen."""
    return read_labelled(project, "p2")


def make_evidence(shift: float, *, n_rows: int = 2000) -> Evidence:
    """Return evidence where the candidate is better (shift above 0), equal or worse than the champion."""
    rng = np.random.default_rng(0)
    y_true = (rng.random(n_rows) < 0.4).astype(int)
    noise = rng.normal(0, 1, n_rows)
    champion = 1 / (1 + np.exp(-(y_true * 1.0 + noise)))
    candidate = 1 / (1 + np.exp(-(y_true * (1.0 + shift) + noise)))
    frame = pd.DataFrame({"color": rng.choice(["red", "green"], n_rows)})
    return Evidence(frame, y_true, candidate, champion)


def statuses(report: Report) -> dict[str, str]:
    return {row.name: row.status for row in report.rows}


def only(gate: Any, evidence: Evidence) -> Row:
    (row,) = gate.check(evidence)
    return row


# --- the gates themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "status"), [(0.5, "passed"), (0.0, "passed"), (-0.01, "passed"), (-0.5, "failed")])
def test_no_worse_lets_a_better_and_an_equal_model_through_and_stops_a_worse_one(shift: float, status: str) -> None:
    row = only(NoWorse("roc_auc", margin=0.02), make_evidence(shift))
    assert row.status == status
    assert np.sign(round(float(row.value or 0), 6)) == np.sign(shift)
    assert "95 % interval" in row.reason


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_no_worse_knows_the_metrics_where_less_is_better(metric: str) -> None:
    worse = replace(make_evidence(0.0), candidate=np.full(2000, 0.01))
    assert only(NoWorse(metric, margin=0.02), worse).status == "failed"
    assert only(NoWorse(metric, margin=0.02), make_evidence(0.0)).status == "passed"


def test_no_worse_does_not_let_a_small_sample_through_because_it_shows_nothing() -> None:
    few = make_evidence(-0.3, n_rows=60)
    assert only(NoWorse("roc_auc", margin=0.02), few).status == "failed"


@pytest.mark.parametrize(("threshold", "status"), [(0.6, "passed"), (0.99, "failed")])
def test_threshold_holds_at_the_worse_end_of_the_interval(threshold: float, status: str) -> None:
    row = only(Threshold("roc_auc", threshold), make_evidence(0.0))
    assert (row.status, row.limit) == (status, f"interval >= {threshold:.3f}")


def test_threshold_just_below_the_value_is_not_reached() -> None:
    value = float(only(Threshold("roc_auc", 0.1), make_evidence(0.0)).value or 0)
    assert only(Threshold("roc_auc", value - 0.001), make_evidence(0.0)).status == "failed"


def test_threshold_of_a_loss_is_a_maximum() -> None:
    assert only(Threshold("brier", 0.5), make_evidence(0.0)).limit == "interval <= 0.500"
    assert only(Threshold("brier", 0.5), make_evidence(0.0)).status == "passed"
    assert only(Threshold("brier", 0.01), make_evidence(0.0)).status == "failed"


def test_a_slice_that_is_worse_is_named_although_the_whole_is_better() -> None:
    evidence = make_evidence(0.5)
    red = (evidence.frame["color"] == "red").to_numpy()
    rng = np.random.default_rng(1)
    spoilt = np.where(red, rng.random(len(red)), evidence.candidate)
    row = only(NoSliceWorse(("color",), "roc_auc", margin=0.02), replace(evidence, candidate=spoilt))
    assert row.status == "failed"
    assert "worst of 2 slices: color = red" in row.reason
    assert only(NoSliceWorse(("color",), "roc_auc", margin=0.02), evidence).status == "passed"


def test_slices_too_small_to_judge_are_no_pass() -> None:
    row = only(NoSliceWorse(("color",), "roc_auc", margin=0.02, min_rows=5000), make_evidence(0.5))
    assert (row.status, row.reason) == ("failed", "no slice has 5000 rows")


@pytest.mark.parametrize(
    "gate", [NoWorse("roc_auc", 0.0), NoSliceWorse(("color",), "roc_auc", 0.0), ContractCompatible()]
)
def test_without_a_champion_a_comparison_is_not_applicable_and_says_why(gate: Any) -> None:
    row = only(gate, replace(make_evidence(0.0), champion=None))
    assert (row.status, row.reason) == ("not_applicable", "the first model has no champion to be compared with")


def test_contracts_are_compared_by_what_the_champions_tables_would_break() -> None:
    table = pd.DataFrame({"id": range(100), "size": np.linspace(0, 1, 100), "extra": np.linspace(0, 1, 100)})
    small = contracts.infer_contract(table, features=["size"], keys=["id"])
    large = contracts.infer_contract(table, features=["size", "extra"], keys=["id"])
    evidence = replace(make_evidence(0.0), contract_candidate=small, contract_champion=small)
    assert only(ContractCompatible(), evidence).status == "passed"
    assert only(ContractCompatible(), replace(evidence, contract_candidate=large)).status == "failed"
    assert only(ContractCompatible(), replace(evidence, contract_candidate=None)).status == "failed"


# --- all of them together ----------------------------------------------------------------------------------------


def test_the_first_model_passes_on_its_own_merits(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    report = check_gates(project, candidate, None, frame)
    assert report.passed, report
    assert statuses(report) == {
        "evaluation_rows_in_contract": "passed",
        "test_roc_auc": "passed",
        "roc_auc_minus_champion": "not_applicable",
        "contract": "not_applicable",
    }
    assert report.title == "Gates of version 1 of 'toy' against no champion"


def test_a_candidate_is_judged_against_the_champion_on_the_same_rows(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    other = registry.load_model(project, register_model(project, C=0.8).version)
    report = check_gates(project, other, candidate, frame)
    assert report.passed, report
    assert set(statuses(report).values()) == {"passed"}
    assert report.facts["n_rows"] <= len(frame)


@dataclass(frozen=True)
class Explodes:
    def check(self, evidence: Evidence) -> Iterator[Row]:
        yield Row("half", 1.0, "", "passed")
        raise ZeroDivisionError("nothing to divide")


@dataclass(frozen=True)
class SaysNothing:
    def check(self, evidence: Evidence) -> Iterator[Row]:
        return iter(())


@dataclass(frozen=True)
class PassesOn:
    value: Any

    def check(self, evidence: Evidence) -> Iterator[Row]:
        yield Row("metric", self.value, ">= 0", "passed")


@dataclass(frozen=True)
class Passes:
    def check(self, evidence: Evidence) -> Iterator[Row]:
        yield Row("fine", 1.0, "", "passed")


@dataclass(frozen=True)
class ReturnsNone:
    def check(self, evidence: Evidence) -> Any:
        return None


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Explodes(), "ZeroDivisionError: nothing to divide"),
        (SaysNothing(), "it judged nothing"),
        (ReturnsNone(), "TypeError"),
        (PassesOn(float("nan")), "needs a finite number"),
        (PassesOn(float("inf")), "needs a finite number"),
        (PassesOn(np.float64("nan")), "needs a finite number"),
        (PassesOn(np.float32("inf")), "needs a finite number"),
        (PassesOn(None), "needs a finite number"),
        (Threshold("roc_acu", 0.5), "UnknownMetricError|KeyError"),
        ("not a gate", "AttributeError"),
    ],
)
def test_a_gate_that_cannot_be_trusted_is_a_failure_and_the_others_still_run(
    project: Project, candidate: Release, frame: pd.DataFrame, gate: Any, reason: str
) -> None:
    report = check_gates(replace(project, gates=(gate, Passes())), candidate, None, frame)
    assert not report.passed
    (failure,) = report.failures
    assert any(word in failure.reason for word in reason.split("|"))
    assert statuses(report)["fine"] == "passed"


def test_a_project_without_gates_passes_nothing(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    report = check_gates(replace(project, gates=()), candidate, None, frame)
    assert not report.passed
    assert "the project declares no gates" in str(report)


class GivesNan:
    def __init__(self, model: Any) -> None:
        self.model = model

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        scores = self.model.predict_proba(rows)
        scores[0] = np.nan
        return scores


class Fails:
    def predict_proba(self, rows: pd.DataFrame) -> Any:
        raise RuntimeError("no memory")


def with_model(release: Release, model: Any) -> Release:
    return replace(release, files=replace(release.files, model=model))


def test_scores_that_are_not_finite_are_a_failure(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    report = check_gates(project, with_model(candidate, GivesNan(candidate.model)), None, frame)
    assert statuses(report)["Threshold"] == "failed"
    assert not report.passed


def test_a_model_that_cannot_score_is_a_failure(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    for pair in ((with_model(candidate, Fails()), None), (candidate, with_model(candidate, Fails()))):
        report = check_gates(project, *pair, frame)
        (row,) = report.rows
        assert (row.name, row.status, row.reason) == ("evidence", "failed", "RuntimeError: no memory")


# --- evaluation rows ---------------------------------------------------------------------------------------------


def test_evaluation_rows_out_of_contract_are_a_failure(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    frame.loc[: len(frame) // 2, "size"] = np.nan
    report = check_gates(project, candidate, None, frame)
    assert statuses(report)["evaluation_rows_in_contract"] == "failed"
    assert not report.passed


def test_a_few_bad_evaluation_rows_are_left_out_for_both(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    frame.loc[:3, "color"] = None
    report = check_gates(project, candidate, candidate, frame)
    assert report.passed, report
    assert report.facts["n_rows"] == len(frame) - 4


@pytest.mark.parametrize("n_missing", [1, 1000])
def test_rows_without_a_label_are_a_failure(
    project: Project, candidate: Release, frame: pd.DataFrame, n_missing: int
) -> None:
    frame["broke"] = frame["broke"].astype("float64").where(frame.index >= n_missing)
    report = check_gates(project, candidate, None, frame)
    assert not report.passed
    assert not [row for row in report.rows if row.name == "test_roc_auc" and row.status == "passed"]


@pytest.mark.parametrize("spoil", ["no rows", "no target", "no feature", "one class", "labels of another kind"])
def test_rows_that_cannot_be_evaluated_are_a_failure_and_no_traceback(
    project: Project, candidate: Release, frame: pd.DataFrame, spoil: str
) -> None:
    spoilt = {
        "no rows": frame.head(0),
        "no target": frame.drop(columns="broke"),
        "no feature": frame.drop(columns="size"),
        "one class": frame.assign(broke=0),
        "labels of another kind": frame.assign(broke=2),
    }[spoil]
    report = check_gates(project, candidate, None, spoilt)
    assert not report.passed
    assert report.failures


def test_rows_in_another_order_give_the_same_verdict(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    one, other = (check_gates(project, candidate, None, rows).frame().loc[1, "value"] for rows in (frame, shuffled))
    assert one == pytest.approx(other)


def test_rows_with_a_repeated_index_are_not_counted_twice(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    """As pd.concat of two periods without ignore_index gives them."""
    half = len(frame) // 2
    repeated = pd.concat([frame.head(half), frame.tail(half).reset_index(drop=True)])
    report = check_gates(project, candidate, None, repeated)
    assert report.passed, report
    assert report.facts["n_rows"] == len(frame)


# --- bound to ----------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_it_holds_for(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    paths = [project.path("arrivals", "p2"), project.path("labels", "p2")]
    champion = registry.load_model(project, register_model(project, C=0.8).version)
    facts = check_gates(project, candidate, champion, frame, inputs=paths).facts
    assert (facts["name"], facts["version"], facts["digest"]) == ("toy", 1, candidate.digest)
    assert (facts["champion_version"], facts["champion_digest"]) == (2, champion.digest)
    assert facts["gates"] == registry.gates_digest(project)
    assert facts["inputs"] == {
        "data/arrivals/p2.parquet": data.fingerprint_file(paths[0]),
        "data/labels/p2.parquet": data.fingerprint_file(paths[1]),
    }
    assert facts["commit"] == ""


def test_inputs_outside_the_project_are_bound_by_their_full_path(project: Project, candidate: Release) -> None:
    outside = data.write_table(pd.DataFrame({"x": [1]}), project.root.parent / f"{project.root.name}-outside.parquet")
    assert bind(project, candidate, None, [outside])["inputs"] == {str(outside): data.fingerprint_file(outside)}


def test_another_definition_of_a_gate_is_another_digest(project: Project) -> None:
    digests = {
        registry.gates_digest(replace(project, gates=gates))
        for gates in (
            (),
            (Threshold("roc_auc", 0.6),),
            (Threshold("roc_auc", 0.61),),
            (Threshold("log_loss", 0.6),),
            (NoWorse("roc_auc", 0.6),),
            (Threshold("roc_auc", 0.6), NoWorse("roc_auc", 0.6)),
        )
    }
    assert len(digests) == 6
