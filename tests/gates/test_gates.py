"""Gates: closed by default, judged on the same rows, bound to what they were judged on."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES, ROOT, make_model
from refusals import raises
from stages import judge

from mlops_lib import __version__, contracts, data, gates, quality, registry, tracking
from mlops_lib.errors import GateError, NotFoundError, ProjectError, QualityError
from mlops_lib.gates import (
    ALPHA,
    Better,
    Calibrated,
    ContractCompatible,
    Directional,
    Evidence,
    Invariant,
    ModelSize,
    NoLeakage,
    NoSliceWorse,
    NoTellingFeature,
    NoWorse,
    OneRowLatency,
    Threshold,
    check_gates,
    collect_evidence,
    judge_rows,
)
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Report, Row
from mlops_lib.task import multiclass, regression


@pytest.fixture
def candidate(project: Project, version: registry.Version) -> Release:
    """Return version 1, loaded."""
    return registry.load_model(project, version.version)


@pytest.fixture
def frame(project: Project) -> pd.DataFrame:
    """Return labelled rows that the model has not seen."""
    return data.read_labelled(project, "p2")


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
    few = make_evidence(0.0, n_rows=100)
    few = replace(few, candidate=np.random.default_rng(1).permutation(few.candidate))
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
    assert "1 harmed of 2 slices: color = red -0.2" in row.reason
    unspoilt = only(NoSliceWorse(("color",), "roc_auc", margin=0.02), evidence)
    assert (unspoilt.status, unspoilt.reason[:19]) == ("passed", "worst of 2 slices: ")


@pytest.mark.parametrize(
    ("required", "reason"),
    [
        ((("color", "red"),), ""),
        ((("color", "blue"),), "color = blue must be judged but has no rows"),
        ((("color", "red"), ("color", "grey")), "color = grey must be judged but has fewer than 500 rows"),
        ((("size", "red"),), "size = red must be judged but has no rows"),
    ],
)
def test_a_slice_that_the_project_names_and_that_cannot_be_judged_is_a_failure(required: Any, reason: str) -> None:
    evidence = make_evidence(0.5)
    evidence.frame.loc[:50, "color"] = "grey"
    row = only(NoSliceWorse(("color",), "roc_auc", margin=0.02, required=required), evidence)
    assert row.status == ("failed" if reason else "passed")
    assert reason in row.reason
    assert "1 too small to judge" in only(NoSliceWorse(("color",), "roc_auc", margin=0.02), evidence).reason


def test_slices_too_small_to_judge_are_no_pass() -> None:
    row = only(NoSliceWorse(("color",), "roc_auc", margin=0.02, min_rows=5000), make_evidence(0.5))
    assert (row.status, row.reason) == ("failed", "no slice has 5000 rows")


@pytest.mark.parametrize(
    "gate", [NoWorse("roc_auc", 0.0), Better("roc_auc"), NoSliceWorse(("color",), "roc_auc", 0.0), ContractCompatible()]
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


@pytest.mark.parametrize(("shift", "status"), [(0.5, "passed"), (0.0, "failed"), (-0.5, "failed")])
def test_better_asks_for_proof(shift: float, status: str) -> None:
    """The same scores are no worse, and not better either."""
    row = only(Better("roc_auc"), make_evidence(shift))
    assert (row.status, row.limit) == (status, "interval > 0.000")


def test_better_knows_the_metrics_where_less_is_better() -> None:
    evidence = make_evidence(0.0)
    poor = np.full(2000, 0.9)
    assert only(Better("brier"), replace(evidence, champion=poor)).status == "passed"
    assert only(Better("brier"), replace(evidence, candidate=poor)).status == "failed"
    assert only(Better("brier", by=0.01), evidence).limit == "interval < -0.010"


def test_better_by_a_stated_gain_is_more_than_better() -> None:
    gain = float(only(Better("roc_auc"), make_evidence(0.5)).value or 0)
    assert only(Better("roc_auc", by=gain / 2), make_evidence(0.5)).status == "passed"
    assert only(Better("roc_auc", by=gain), make_evidence(0.5)).status == "failed"


def test_a_smaller_alpha_asks_for_more_rows_and_is_shown_in_the_interval() -> None:
    evidence = make_evidence(-0.05)
    assert evidence.champion is not None
    interval = quality.compute_paired_interval(evidence.y_true, evidence.candidate, evidence.champion)
    assert only(NoWorse("roc_auc", -interval.low), evidence).status == "passed"
    strict = only(NoWorse("roc_auc", -interval.low, alpha=0.001), evidence)
    assert strict.status == "failed"
    assert strict.reason.startswith("99.8 % interval")


def test_rows_that_belong_together_are_not_counted_as_so_many_proofs() -> None:
    """Every row ten times: a limit that is just kept is out of reach once the rows are said to belong together."""
    once = make_evidence(-0.05, n_rows=1200)
    assert once.champion is not None
    ten = np.tile(np.arange(1200), 10)
    frame = once.frame.iloc[ten].assign(day=ten).reset_index(drop=True)
    evidence = Evidence(frame, once.y_true[ten], once.candidate[ten], once.champion[ten])
    alone = quality.compute_interval(evidence.y_true, evidence.candidate)
    paired = quality.compute_paired_interval(evidence.y_true, evidence.candidate, evidence.champion)
    groups = quality.compute_score_groups(evidence.y_true, evidence.candidate)
    error = max(max(-group.gap.low, group.gap.high) for group in groups)
    for gate in (Threshold("roc_auc", alone.low), NoWorse("roc_auc", -paired.low), Calibrated(error)):
        assert only(gate, evidence).status == "passed"
        row = only(replace(gate, clusters="day"), evidence)
        assert row.status == "failed"
        assert row.reason.endswith(" clusters of day")
    slices = NoSliceWorse(("color",), "roc_auc", margin=0.0)
    p_worse = [each.measure(evidence)["p_worse"].min() for each in (slices, replace(slices, clusters="day"))]
    assert p_worse[0] < p_worse[1]


def test_times_are_clustered_by_their_day() -> None:
    evidence = make_evidence(0.0)
    evidence.frame["at"] = pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(2000), unit="h")
    assert only(Threshold("roc_auc", 0.5, clusters="at"), evidence).reason.endswith(", 84 clusters of at")


def test_a_column_that_the_evaluation_rows_lack_is_named() -> None:
    with pytest.raises(QualityError, match=r"The evaluation rows lack day. They have color"):
        only(Threshold("roc_auc", 0.5, clusters="day"), make_evidence(0.0))


@pytest.mark.parametrize(("shift", "status"), [(0.0, "passed"), (0.1, "failed"), (-0.1, "failed")])
def test_calibration_is_shown_in_every_group_of_scores(shift: float, status: str) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.15, 0.85, 20_000)
    y = (rng.random(20_000) < true).astype(int)
    row = only(Calibrated(max_error=0.05), Evidence(pd.DataFrame(index=range(20_000)), y, true + shift))
    assert row.status == status
    assert row.value == pytest.approx(shift, abs=0.02)
    assert "worst of 5 groups: mean score" in row.reason
    few = Evidence(pd.DataFrame(index=range(200)), y[:200], true[:200])
    assert only(Calibrated(max_error=0.05), few).status == "failed", "few rows show nothing"


def test_scores_that_are_right_on_average_and_too_bold_at_both_ends_are_not_calibrated() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.35, 0.65, 20_000)
    y = (rng.random(20_000) < true).astype(int)
    bold = 0.5 + 3 * (true - 0.5)
    assert abs(bold.mean() - y.mean()) < 0.01
    assert only(Calibrated(max_error=0.05), Evidence(pd.DataFrame(index=range(20_000)), y, bold)).status == "failed"


# --- simulated pairs, as in ci/bench gates ---


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "ci/benchmarks")
        yield importlib.import_module("bench_gates")


N_PAIRS = 200


def share_of(bench: Any, *gates: Any, **world: Any) -> tuple[float, ...]:
    """Return the exact binomial bounds of the share of simulated pairs that each gate passes: low, high, low, high."""
    rules = [bench.judged_by(gate) for gate in gates]
    counts = bench.count(bench.World(**{"n_rows": 2000, **world}), rules, N_PAIRS, seed=7)
    return tuple(bound for k in counts for bound in bench.bounds(k, N_PAIRS))


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "log_loss", "brier"])
def test_at_the_edge_of_its_null_hypothesis_a_comparison_is_wrong_as_often_as_it_says(bench: Any, metric: str) -> None:
    no_worse, better = NoWorse(metric, bench.loss(metric, 0.69)), Better(metric)
    assert share_of(bench, no_worse, candidate=0.69)[0] <= ALPHA
    assert share_of(bench, better)[0] <= ALPHA
    assert min(share_of(bench, no_worse, better, candidate=0.725)[::2]) > 0.8, "power at a gain of 0.025"


@pytest.mark.parametrize(
    ("kind", "metric", "levels"),
    [
        ("multiclass", "f1_macro", (0.70, 0.68, 0.74)),
        ("regression", "mae", (1.0, 1.03, 0.95)),
        ("regression", "median_absolute_error", (1.0, 1.03, 0.88)),
    ],
)
def test_a_comparison_of_several_classes_or_numbers_is_wrong_as_often_as_it_says(
    bench: Any, kind: str, metric: str, levels: tuple[float, float, float]
) -> None:
    champion, worse, better = levels
    no_worse, is_better = NoWorse(metric, bench.loss(metric, worse, champion)), Better(metric)
    world = {"kind": kind, "champion": champion}
    assert share_of(bench, no_worse, candidate=worse, **world)[0] <= ALPHA
    assert share_of(bench, is_better, candidate=champion, **world)[0] <= ALPHA
    assert min(share_of(bench, no_worse, is_better, candidate=better, **world)[::2]) > 0.8, "power"


def test_of_equally_good_models_a_plain_comparison_promotes_half(bench: Any) -> None:
    counts = bench.count(bench.World(n_rows=2000), [bench.plain, bench.mlflow_rule], N_PAIRS, seed=7)
    assert min(bench.bounds(k, N_PAIRS)[0] for k in counts) > 0.3


def test_a_harm_in_a_twentieth_of_the_rows_is_stopped_although_the_whole_is_better(bench: Any) -> None:
    whole_low, _, _, slices_high = share_of(
        bench, NoWorse("roc_auc", 0.01), bench.SLICES, n_rows=8000, candidate=0.72, in_slice=0.55
    )
    assert (whole_low > 0.95, slices_high < 0.05) == (True, True)


def test_equally_good_models_are_rarely_stopped_for_one_of_twenty_slices(bench: Any) -> None:
    assert share_of(bench, replace(bench.SLICES, margin=0.0, min_rows=200), n_rows=5000)[1] >= 0.95


def test_days_that_differ_deceive_a_gate_that_is_not_told_of_them(bench: Any) -> None:
    told, _, untold, _ = share_of(bench, Better("roc_auc", clusters="day"), Better("roc_auc"), day_spread=0.6)
    assert told <= ALPHA
    assert untold > 2 * ALPHA


# --- behaviour ---------------------------------------------------------------------------------------------------


def heavier(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(weight=frame["weight"] * 1.01)


def larger(frame: pd.DataFrame) -> pd.DataFrame:
    """Change the rows that stay within the contract."""
    return frame[frame["size"] < 12].assign(size=lambda rows: rows["size"] + 1)


def as_it_is(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


def out_of_contract(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(size=np.nan)


def foreign_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis(frame.index + 5)


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame.head(3), frame.head(3)])


def no_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.head(0)


def no_frame(frame: pd.DataFrame) -> Any:
    return frame["size"]


@pytest.fixture
def evidence(project: Project, candidate: Release, frame: pd.DataFrame) -> Evidence:
    return collect_evidence(project, candidate, None, frame)


def test_a_change_that_should_not_matter_may_move_few_scores(evidence: Evidence) -> None:
    row = only(Invariant("a percent more weight", heavier, tolerance=0.02), evidence)
    assert (row.name, row.status, row.value) == ("invariant: a percent more weight", "passed", 0)
    assert only(Invariant("size", larger, tolerance=0.02), evidence).status == "failed"
    assert only(Invariant("size", larger, tolerance=0.02, max_share=1.0), evidence).status == "passed"


def test_a_change_with_a_known_effect_moves_scores_that_way(evidence: Evidence) -> None:
    row = only(Directional("larger breaks more", larger, 1), evidence)
    assert (row.status, row.value) == ("passed", 0)
    assert row.reason.startswith("mean move +0.")
    assert only(Directional("larger breaks less", larger, -1), evidence).status == "failed"
    assert only(Directional("nothing", as_it_is, 1), evidence).status == "failed", "a model that does not care"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (out_of_contract, r"changed rows break the contract"),
        (foreign_rows, r"rows that were not among those it was given"),
        (twice, r"one of them twice"),
        (no_rows, r"it returned no rows"),
        (no_frame, r"it returned <class '.*Series'>"),
    ],
)
def test_changed_rows_that_cannot_be_compared_are_refused(evidence: Evidence, change: Any, reason: str) -> None:
    for gate in (Invariant("x", change, tolerance=1.0), Directional("x", change, 1)):
        with pytest.raises(GateError, match=reason):
            only(gate, evidence)


def test_the_definition_of_a_behaviour_gate_changes_with_the_code_of_its_function(tmp_path: Path) -> None:
    def load(text: str) -> Any:
        file = tmp_path / f"changes_{abs(hash(text))}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.change

    one, same, other = (
        load(f"# {n}\ndef change(frame):\n    return frame + {k}\n") for n, k in ((1, 1), (2, 1), (3, 2))
    )
    definitions = [repr(Invariant("x", change, 0.1)) for change in (one, same, other)]
    assert definitions[0] == definitions[1] != definitions[2]
    assert "sha256:" in definitions[0]
    assert " at 0x" not in definitions[0]


def test_a_function_whose_source_is_not_the_whole_of_it_is_refused() -> None:
    step = 3

    def closes_over(frame: pd.DataFrame) -> pd.DataFrame:
        return frame + step

    for function, reason in (
        (functools.partial(heavier), "it is no plain function"),
        (closes_over, "it depends on variables of the function that made it"),
        (eval("lambda frame: frame"), "its source cannot be read"),
    ):
        with pytest.raises(GateError, match=reason):
            Directional("x", function, 1)


# --- the model itself --------------------------------------------------------------------------------------------


class Slow:
    def __init__(self, model: Any) -> None:
        self.model = model

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        time.sleep(0.02)
        return self.model.predict_proba(rows)


def test_a_model_that_takes_longer_than_its_budget_for_one_row_is_stopped(evidence: Evidence) -> None:
    assert only(OneRowLatency(max_ms=60_000, n_repeats=3), evidence).status == "passed"
    release = evidence.model
    slow = replace(evidence, release=with_model(release, Slow(release.model)))
    row = only(OneRowLatency(max_ms=20, n_repeats=3), slow)
    assert (row.status, row.unit, row.limit) == ("failed", "ms", "<= 20 ms")
    assert isinstance(row.value, int)
    assert row.value > 20


def test_a_model_that_is_larger_than_its_budget_is_stopped(evidence: Evidence) -> None:
    assert only(ModelSize(max_mb=1), evidence).status == "passed"
    assert only(ModelSize(max_mb=0.001), evidence).status == "failed"
    files = replace(evidence.model.files, n_bytes=0)
    nothing = only(ModelSize(max_mb=1), replace(evidence, release=replace(evidence.model, files=files)))
    assert (nothing.status, nothing.reason) == ("failed", "the manifest lists no files")


def leakage(project: Project, candidate: Release, frame: pd.DataFrame) -> dict[str, Row]:
    return {row.name: row for row in NoLeakage().check(collect_evidence(project, candidate, None, frame))}


def test_rows_that_were_trained_on_are_found_by_key_and_by_content(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    fresh = leakage(project, candidate, frame)
    assert {row.status for row in fresh.values()} == {"passed"}
    trained = data.read_labelled(project, "p1")
    one = leakage(project, candidate, pd.concat([frame, trained.head(1)]))
    assert one["training_keys_in_evaluation"].status == "failed"
    assert one["training_keys_in_evaluation"].reason == "1 of 1,001 evaluation rows, 1,000 training rows"
    assert one["training_content_in_evaluation"].status == "passed", "one row in a thousand may be chance"
    other_keys = leakage(project, candidate, trained.assign(thing_id=trained["thing_id"] + 10**6))
    assert other_keys["training_keys_in_evaluation"].status == "passed"
    assert other_keys["training_content_in_evaluation"].status == "failed"
    assert other_keys["training_content_in_evaluation"].value == 1


def test_rows_that_repeat_one_another_by_chance_are_no_leak(project: Project) -> None:
    """Sizes in whole numbers: a tenth of fresh rows or more are found again among the training rows."""

    def coarse(period: str) -> pd.DataFrame:
        rows = data.read_labelled(project, period)
        return rows.assign(size=rows["size"].round(1), weight=rows["weight"].round(1))

    rows = coarse("p1")
    X = rows[list(project.features)]
    with tracking.start_run(project):
        logged = tracking.log_model(project, make_model().fit(X, rows["broke"]), X, keys=rows[["thing_id"]])
    release = registry.load_model(project, registry.register(project, logged.model_uri).version)
    row = leakage(project, release, coarse("p2"))["training_content_in_evaluation"]
    assert row.status == "passed"
    assert float(row.value or 0) > 0.05
    copied = pd.concat([coarse("p2").head(800), rows.tail(200).assign(thing_id=range(10**6, 10**6 + 200))])
    assert leakage(project, release, copied)["training_content_in_evaluation"].status == "failed"


def test_a_model_that_does_not_say_what_it_was_trained_on_is_stopped(evidence: Evidence) -> None:
    files = evidence.model.files
    silent = replace(evidence, release=replace(evidence.model, files=replace(files, training_rows=None)))
    (row,) = NoLeakage().check(silent)
    assert row.status == "failed"
    assert "does not say which rows it was trained on" in row.reason
    assert files.training_rows is not None
    keyless = files.training_rows[["content"]]
    by_key, _ = NoLeakage().check(
        replace(evidence, release=replace(evidence.model, files=replace(files, training_rows=keyless)))
    )
    assert (by_key.status, by_key.reason) == (
        "failed",
        "the model was logged without keys; pass keys= to tracking.log_model",
    )


# --- all of them together ----------------------------------------------------------------------------------------


def test_the_first_model_passes_on_its_own_merits(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    report = judge_rows(project, candidate, None, frame)
    assert report.passed, report
    assert statuses(report) == {
        "evaluation_rows_in_contract": "passed",
        "evaluation_rows": "passed",
        "training_keys_in_evaluation": "passed",
        "training_content_in_evaluation": "passed",
        "telling_feature": "passed",
        "test_roc_auc": "passed",
        "roc_auc_minus_champion": "not_applicable",
        "contract": "not_applicable",
    }
    assert report.title == "Gates of version 1 of 'toy' against no champion"
    assert report.note == (
        "There is no champion yet: this model is judged on absolute gates alone, and compared with nothing."
    )
    assert report.note in report._repr_html_()


def test_the_first_model_does_not_pass_because_nothing_applies_to_it(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    comparing = replace(project, gates=(NoWorse("roc_auc", 0.01), ContractCompatible()))
    report = judge_rows(comparing, candidate, None, frame)
    (failure,) = report.failures
    assert (failure.name, failure.reason) == (
        "absolute_gates",
        "no gate judges a model without a champion; declare a Threshold",
    )
    assert not judge_rows(comparing, candidate, candidate, frame).note


def test_a_candidate_is_judged_against_the_champion_on_the_same_rows(
    project: Project, candidate: Release, second: registry.Version, frame: pd.DataFrame
) -> None:
    other = registry.load_model(project, second.version)
    report = judge_rows(project, other, candidate, frame)
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
        (PassesOn("0.9"), "needs a finite number"),
        (PassesOn(True), "needs a finite number"),
        (Threshold("roc_acu", 0.5), "NotFoundError|KeyError"),
    ],
)
def test_a_gate_that_cannot_be_trusted_is_a_failure_and_the_others_still_run(
    project: Project, candidate: Release, frame: pd.DataFrame, gate: Any, reason: str
) -> None:
    report = judge_rows(replace(project, gates=(gate, Passes())), candidate, None, frame)
    assert not report.passed
    (failure,) = report.failures
    assert any(word in failure.reason for word in reason.split("|"))
    assert statuses(report)["fine"] == "passed"


def test_a_project_without_gates_passes_nothing(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    report = judge_rows(replace(project, gates=()), candidate, None, frame)
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
    report = judge_rows(project, with_model(candidate, GivesNan(candidate.model)), None, frame)
    assert statuses(report)["Threshold"] == "failed"
    assert not report.passed


def test_a_model_that_cannot_score_is_a_failure(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    for pair in ((with_model(candidate, Fails()), None), (candidate, with_model(candidate, Fails()))):
        report = judge_rows(project, *pair, frame)
        (row,) = report.rows
        assert (row.name, row.status, row.reason) == ("evidence", "failed", "RuntimeError: no memory")


# --- evaluation rows ---------------------------------------------------------------------------------------------


def test_evaluation_rows_out_of_contract_are_a_failure(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    frame.loc[: len(frame) // 2, "size"] = np.nan
    report = judge_rows(project, candidate, None, frame)
    assert statuses(report)["evaluation_rows_in_contract"] == "failed"
    assert not report.passed


def test_a_few_bad_evaluation_rows_are_left_out_for_both(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    frame.loc[:3, "color"] = None
    report = judge_rows(project, candidate, candidate, frame)
    assert report.passed, report
    assert report.facts["n_rows"] == len(frame) - 4


@pytest.mark.parametrize("n_missing", [1, 1000])
def test_rows_without_a_label_are_a_failure(
    project: Project, candidate: Release, frame: pd.DataFrame, n_missing: int
) -> None:
    frame["broke"] = frame["broke"].astype("float64").where(frame.index >= n_missing)
    report = judge_rows(project, candidate, None, frame)
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
    report = judge_rows(project, candidate, None, spoilt)
    assert not report.passed
    assert report.failures


def test_rows_in_another_order_give_the_same_verdict(project: Project, candidate: Release, frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1, random_state=0)
    one, other = (judge_rows(project, candidate, None, rows).frame().loc[1, "value"] for rows in (frame, shuffled))
    assert one == pytest.approx(other)


def test_rows_with_a_repeated_index_are_not_counted_twice(
    project: Project, candidate: Release, frame: pd.DataFrame
) -> None:
    """As pd.concat of two periods without ignore_index gives them."""
    half = len(frame) // 2
    repeated = pd.concat([frame.head(half), frame.tail(half).reset_index(drop=True)])
    report = judge_rows(project, candidate, None, repeated)
    assert report.passed, report
    assert report.facts["n_rows"] == len(frame)


# --- bound to ----------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_it_holds_for(
    project: Project, candidate: Release, second: registry.Version, frame: pd.DataFrame
) -> None:
    champion = registry.load_model(project, second.version)
    facts = check_gates(project, candidate, champion, ["p2", "p3"], max_rows=500).facts
    assert (facts["name"], facts["version"], facts["digest"]) == ("toy", 1, candidate.digest)
    assert (facts["champion_version"], facts["champion_digest"]) == (2, champion.digest)
    assert facts["gates"] == registry.gates_digest(project)
    rows = data.read_labelled(project, ["p2", "p3"], max_rows=500)
    asked = {"periods": ["p2", "p3"], "max_rows": 500, "as_of": None}
    assert facts["rows"] == {**asked, "n_rows": 500, "digest": data.fingerprint_frame(rows)}
    assert facts["contract"] == contracts.Contract.from_dict(candidate.files.contract).digest
    assert facts["library"] == __version__
    assert facts["commit"] == ""


def test_rows_that_cannot_be_read_are_an_error_and_no_verdict(project: Project, candidate: Release) -> None:
    with pytest.raises(NotFoundError, match="p9"):
        check_gates(project, candidate, None, "p9")


def test_another_source_of_a_gates_class_is_another_digest(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only what the gate inherits has changed."""
    monkeypatch.syspath_prepend(tmp_path)
    source = """
from dataclasses import dataclass
class Base:
    limit = {limit}
@dataclass(frozen=True)
class Own(Base):
    def check(self, evidence):
        return {result}
"""
    digests = set()
    for number, (limit, result) in enumerate(((1, []), (1, [1]), (2, []))):
        (tmp_path / f"own_gates_{number}.py").write_text(source.format(limit=limit, result=result))
        own = importlib.import_module(f"own_gates_{number}").Own
        digests.add(registry.gates_digest(replace(project, gates=(own(),))))
    assert len(digests) == 3


def test_a_gate_whose_source_cannot_be_read_has_no_digest(project: Project) -> None:
    namespace: dict[str, Any] = {"dataclass": dataclass, "__name__": "nowhere"}
    exec("@dataclass(frozen=True)\nclass Typed:\n    def check(self, evidence): return []", namespace)
    with raises(GateError, "source"):
        registry.gates_digest(replace(project, gates=(namespace["Typed"](),)))


def test_a_gate_that_may_be_changed_is_refused_when_the_project_is_made(project: Project) -> None:
    @dataclass
    class Loose:
        def check(self, evidence: Evidence) -> list[Row]:
            return []

    class Plain:
        def check(self, evidence: Evidence) -> list[Row]:
            return []

    for gate in (Loose(), Plain()):
        with pytest.raises(ProjectError, match=r"@dataclass\(frozen=True\)"):
            replace(project, gates=(gate,))


def test_too_few_rows_fail_and_the_project_says_how_many(project: Project, candidate: Release) -> None:
    for needed, expected in ((51, "failed"), (50, "passed")):
        report = check_gates(replace(project, min_evaluation_rows=needed), candidate, None, "p2", max_rows=50)
        assert statuses(report)["evaluation_rows"] == expected


def test_leaks_are_looked_for_though_no_gate_was_declared(project: Project, candidate: Release) -> None:
    found = statuses(check_gates(project, candidate, None, "p2"))
    assert {found[name] for name in ("training_keys_in_evaluation", "telling_feature")} == {"passed"}
    assert statuses(check_gates(project, candidate, None, "p1"))["training_keys_in_evaluation"] == "failed"
    own = replace(project, gates=(*project.gates, NoTellingFeature(max_score=0.1)))
    assert [row.limit for row in check_gates(own, candidate, None, "p2").failures] == ["roc_auc <= 0.1"]


@pytest.mark.parametrize("leak", ["number", "text", "noisy", "not monotonic", "time", "flag"])
def test_a_feature_that_is_the_answer_in_other_words_fails(frame: pd.DataFrame, candidate: Release, leak: str) -> None:
    y = frame["broke"].to_numpy()
    rng = np.random.default_rng(0)
    told: Any = {
        "number": 3.0 * y - 1,
        "text": np.where(y == 1, "refunded", "kept"),
        "noisy": y + rng.normal(scale=0.15, size=len(y)),
        "not monotonic": np.where(y == 1, rng.uniform(1, 2, len(y)), rng.choice([0.0, 3.0], len(y))),
        "time": pd.Timestamp("2020-01-01") + pd.to_timedelta(y, unit="D"),
        "flag": pd.array(y == 1, dtype="boolean"),
    }[leak]
    metadata = {"mlops": {**candidate.files.metadata["mlops"], "features": ["told", "size"]}}
    release = replace(candidate, files=replace(candidate.files, metadata=metadata))
    evidence = Evidence(frame.assign(told=told), y, y * 1.0, release=release, task=candidate.task)
    (row,) = NoTellingFeature().check(evidence)
    assert (row.status, "'told'" in row.reason) == ("failed", True)
    (row,) = NoTellingFeature(max_score=1.0).check(evidence)
    assert row.status == "passed"


@pytest.mark.parametrize(("kind", "target"), [("regression", [1.5, 2.5, 9.0]), ("multiclass", ["a", "b", "c"])])
def test_telling_features_are_found_for_numbers_and_several_classes(
    frame: pd.DataFrame, candidate: Release, kind: str, target: list[Any]
) -> None:
    rng = np.random.default_rng(99)
    y = np.asarray(target)[rng.integers(0, 3, len(frame))]
    task = regression() if kind == "regression" else multiclass(["a", "b", "c"])
    files = replace(candidate.files, task=task)
    for told, expected in ((pd.Series(y), "failed"), (pd.Series(rng.permutation(y)), "passed")):
        known = frame.assign(size=told.to_numpy())
        evidence = Evidence(known, y, rng.uniform(size=len(y)), release=replace(candidate, files=files), task=task)
        assert [row.status for row in NoTellingFeature().check(evidence)] == [expected]


def test_evaluation_rows_that_came_before_the_last_training_row_fail(project: Project, frame: pd.DataFrame) -> None:
    timed = replace(project, time="made_at")
    rows = data.read_labelled(project, "p1")
    model = make_model().fit(rows[list(FEATURES)], rows["broke"])
    times = pd.Series(pd.date_range("2020-01-01", periods=len(rows), freq="h", tz="UTC"))
    for given in (times, None):
        with tracking.start_run(project):
            logged = tracking.log_model(project, model, rows[list(FEATURES)], keys=rows[["thing_id"]], times=given)
        release = registry.load_model(project, registry.register(project, logged.model_uri).version)
        for first, expected in ((times.max() + pd.Timedelta("1s"), "passed"), (times.max(), "failed")):
            later = frame.assign(made_at=pd.date_range(first, periods=len(frame), freq="s"))
            found = statuses(judge_rows(timed, release, None, later))
            assert found["evaluation_rows_within_training_time"] == (expected if given is not None else "failed")


def test_every_verdict_of_a_version_is_counted(project: Project, version: registry.Version) -> None:
    assert registry.count_verdicts(project, 1) == 0
    for n in (1, 2, 3):
        judge(project, 1)
        assert registry.count_verdicts(project, 1) == n
    assert gates.promote(project, 1, "staging").reason == "gates passed, on verdict 3 of this version"


def test_another_definition_of_a_gate_is_another_digest(project: Project) -> None:
    digests = {
        registry.gates_digest(replace(project, gates=declared))
        for declared in (
            (),
            (Threshold("roc_auc", 0.6),),
            (Threshold("roc_auc", 0.61),),
            (Threshold("log_loss", 0.6),),
            (NoWorse("roc_auc", 0.6),),
            (Threshold("roc_auc", 0.6), NoWorse("roc_auc", 0.6)),
        )
    }
    assert len(digests) == 6
