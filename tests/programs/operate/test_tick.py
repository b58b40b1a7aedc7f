"""One tick after another: what came is scored, what became known is judged, and the policy does the rest."""

from __future__ import annotations

import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import close_databases
from refusals import raises
from rounds import rounds
from world import at_end_of, begin, in_world, make_world, train

from mlops_lib import data, gates, registry
from mlops_lib.errors import OperateError
from mlops_lib.programs import operate
from mlops_lib.programs.operate import hooks, record, tables
from mlops_lib.programs.operate.tick import _Steps
from mlops_lib.project import Project


@pytest.fixture
def world(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with nine weeks of rows and a version in production that was made of the first five."""
    return remember(project, tmp_path_factory, "world")


def remember(project: Project, factory: pytest.TempPathFactory, name: str, **policy: Any) -> Project:
    """Return such a project; made once in a process, since every test's folder has the same path."""
    kept = factory.getbasetemp() / f"{name}-kept"
    if kept.exists():
        shutil.rmtree(project.root)
        shutil.copytree(kept, project.root)
        return in_world(project, **policy)
    made = make_world(project, 9, **policy)
    begin(made)
    close_databases()
    shutil.copytree(project.root, kept)
    return made


def rows_of(tick: operate.Tick) -> dict[str, str]:
    return {row.name: row.status for row in tick.report.rows}


OF_THE_MOMENT = ("scored_at", "as_of", "run_id", "duration_s", "model_digest", "trained", "in_production")


def files_of(project: Project) -> dict[str, str]:
    """Return tables and predictions with the fingerprints of their rows, without when and by which run they were made.

    Nor with the number of a version that was trained: a training that is killed leaves one that nobody promotes.
    """
    found = {}
    for path in sorted(
        [*project.operated_path.rglob("part.parquet"), *(project.root / "data/predictions").rglob("*.parquet")]
    ):
        rows = data.read_table(path)
        kept = rows.drop(columns=[*OF_THE_MOMENT], errors="ignore")
        found[str(path.relative_to(project.root))] = data.fingerprint_frame(kept)
    return found


# --- what a tick does ----------------------------------------------------------------------------------------------


def test_a_tick_scores_what_came_since_the_first_version_was_judged(world: Project) -> None:
    tick = operate.run_tick(at_end_of(world, "w005"))
    assert tick.report.passed, str(tick.report)
    assert tick.periods == ["w005"], "w000 to w004 are those that the version was trained and judged on"
    assert list(rows_of(tick)) == ["score w005", "roc_auc of w005, version 1", "drift of w005", "decision"]
    assert len(data.read_table(world.predictions_path("w005", 1))) == 300


def test_a_second_call_finds_nothing_to_do(world: Project) -> None:
    first = operate.run_tick(at_end_of(world, "w005"))
    before = files_of(world)
    again = operate.run_tick(at_end_of(world, "w005"))
    assert again.number == first.number == 1
    assert files_of(world) == before


def test_missed_periods_are_caught_up_in_order(world: Project) -> None:
    tick = operate.run_tick(at_end_of(world, "w007"))
    assert tick.periods == ["w005", "w006", "w007"]
    assert tick.report.passed, str(tick.report)


def test_labels_that_come_later_are_joined_by_a_later_tick_once(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    early = operate.read_table(world, "quality", ["w005"]).set_index("metric").loc["roc_auc"]
    operate.run_tick(at_end_of(world, "w007", days=30))
    late = operate.read_table(world, "quality", ["w005"]).set_index("metric").loc["roc_auc"]
    assert early["n_labelled"] < late["n_labelled"] == 300
    labels = operate.read_table(world, "labels", ["w005"])
    assert labels["state"].value_counts().to_dict() == {"current": 300, "corrected": 3}
    assert not labels[labels["state"] == "current"]["thing_id"].duplicated().any()


def test_every_version_that_predicted_is_judged_also_one_that_was_replaced(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    at = at_end_of(world, "w006")
    for stage in world.stages[1:]:
        gates.promote(
            at,
            train(at, ["w001", "w002", "w003", "w004"]) if stage == "staging" else 2,
            stage,
            force=True,
            reason="test",
        )
    operate.run_tick(at)
    operate.run_tick(at_end_of(world, "w007", days=30))
    quality = operate.read_table(world, "quality")
    seen = quality[quality["metric"] == "roc_auc"].set_index(["period", "version"])["n_labelled"]
    assert seen.to_dict() == {("w005", 1): 300, ("w006", 2): 300, ("w007", 2): 300, ("w008", 2): 300}


def test_drift_and_quality_have_a_new_version_trained_judged_and_promoted(project: Project) -> None:
    world = make_world(project, 12, drift_at=6, drifting=0, window=2)
    begin(world)
    ticks = [operate.run_tick(at_end_of(world, f"w{number:03d}", days=1)) for number in range(5, 12)]
    assert ticks[0].decision.reasons == ()
    first = next(tick for tick in ticks if tick.decision.reasons)
    assert first.periods == ["w006"], "the drift is seen in the first week that has it"
    released = [tick for tick in ticks if tick.promoted]
    assert released, [str(tick.report) for tick in ticks]
    assert released[0].time <= ticks[4].time, "rows of the new kind are needed to train and to judge on"
    assert ticks[-1].in_production == registry.current(world, "prod") != 1
    assert sum(tick.trained is not None for tick in ticks) <= 4, "no storm of trainings"
    assert rows_of(ticks[-1])["drift of w011"] == "passed", "the new version knows such rows"


def test_the_policy_stops_below_production_unless_the_project_lets_it(project: Project) -> None:
    world = make_world(project, 9, max_age_days=1, quality=False, to_production=False)
    begin(world)
    tick = operate.run_tick(at_end_of(world, "w006", days=1))
    assert (tick.trained, tick.passed, tick.promoted) == (2, True, ["staging"]), str(tick.report)
    assert (registry.current(world, "staging"), registry.current(world, "prod")) == (2, 1)
    assert "a person promotes it" in tick.report.rows[-1].reason


def test_a_worse_version_that_was_forced_in_is_sent_back_with_its_evidence(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    at = at_end_of(world, "w006")
    version = _train_backwards(at)
    for stage in world.stages[1:]:
        gates.promote(at, version, stage, force=True, reason="somebody was sure")
    operate.run_tick(at)
    sent = operate.run_tick(at_end_of(world, "w007", days=1))
    assert sent.sent_back == version, str(sent.report)
    assert registry.current(world, "prod") == 1
    last = registry.history(world, "prod")[-1]
    assert last.action == "rollback"
    assert "less that of version 1 is -0." in last.reason


def _train_backwards(project: Project) -> int:
    """Register a version that believes the opposite of what is true."""
    paths = [project.path("labels", period) for period in ("w000", "w001")]
    kept = {path: path.read_bytes() for path in paths}
    try:
        for path in paths:
            labels = data.read_table(path)
            data.write_table(labels.assign(broke=1 - labels["broke"]), path)
        return train(project, ["w000", "w001"])
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_version_that_is_no_worse_stays_and_its_probation_ends(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    at = at_end_of(world, "w006")
    version = train(at, ["w002", "w003", "w004"])
    for stage in world.stages[1:]:
        gates.promote(at, version, stage, force=True, reason="test")
    watched = operate.run_tick(at)
    assert rows_of(watched)["probation of version 2"] in ("passed", "not_applicable")
    assert watched.on_probation
    ended = operate.run_tick(at_end_of(world, "w008", days=40))
    assert not ended.on_probation
    assert registry.current(world, "prod") == version


# --- what it gets ----------------------------------------------------------------------------------------------------


def test_nothing_in_production_judges_nothing_and_is_no_success(project: Project) -> None:
    world = make_world(project, 3)
    tick = operate.run_tick(at_end_of(world, "w002"))
    assert rows_of(tick)["production"] == "not_applicable"
    assert not tick.report.passed


def test_an_empty_period_is_named_and_neither_alarms_nor_passes(world: Project) -> None:
    path = world.path("arrivals", "w006")
    data.write_table(data.read_table(path).iloc[:0], path)
    tick = operate.run_tick(replace(world, now=at_end_of(world, "w007").now, time=""))
    assert rows_of(tick)["score w006"] == "not_applicable"
    assert rows_of(tick)["score w005"] == "passed"


def test_a_period_that_was_changed_after_it_was_scored_is_an_alarm(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    path = world.path("arrivals", "w005")
    data.write_table(data.read_table(path).assign(weight=5.0), path)
    tick = operate.run_tick(at_end_of(world, "w006"))
    assert rows_of(tick)["arrivals of w005"] == "failed"


def test_a_period_that_is_gone_is_an_alarm(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    world.path("arrivals", "w005").unlink()
    assert rows_of(operate.run_tick(at_end_of(world, "w006")))["arrivals of w005"] == "failed"


def test_a_period_that_comes_out_of_order_is_scored_and_told(world: Project) -> None:
    path = world.path("arrivals", "w005")
    kept = path.read_bytes()
    path.unlink()
    operate.run_tick(at_end_of(world, "w006"))
    path.write_bytes(kept)
    tick = operate.run_tick(at_end_of(world, "w007"))
    assert tick.periods == ["w007"] or "w005" in tick.periods
    if "w005" in tick.periods:
        assert "it came after later ones" in tick.report.rows[0].reason


def test_a_period_that_breaks_the_contract_is_an_alarm_and_is_tried_again(world: Project) -> None:
    path = world.path("arrivals", "w005")
    sound = data.read_table(path)
    data.write_table(sound.assign(size=1e6), path)
    tick = operate.run_tick(at_end_of(world, "w005"))
    assert rows_of(tick)["score w005"] == "failed"
    assert "1,000,000" in str(tick.report) or "size" in str(tick.report)
    data.write_table(sound, path)
    again = operate.run_tick(at_end_of(world, "w005", days=1))
    assert (again.number, rows_of(again)["score w005"]) == (2, "passed")


def test_contradicting_labels_are_told_and_none_of_them_counts(world: Project) -> None:
    path = world.path("labels", "w005")
    labels = data.read_table(path).drop_duplicates("thing_id", keep="first")
    data.write_table(pd.concat([labels, labels.head(7).assign(broke=1 - labels.head(7)["broke"])]), path)
    tick = operate.run_tick(at_end_of(world, "w005", days=30))
    assert rows_of(tick)["labels of w005"] == "failed"
    quality = operate.read_table(world, "quality", ["w005"])
    assert quality["n_labelled"].unique().tolist() == [293]


def test_labels_of_one_class_only_judge_nothing(world: Project) -> None:
    path = world.path("labels", "w005")
    data.write_table(data.read_table(path).drop_duplicates("thing_id").assign(broke=0), path)
    tick = operate.run_tick(at_end_of(world, "w005", days=30))
    row = next(row for row in tick.report.rows if row.name == "roc_auc of w005, version 1")
    assert row.status != "passed"
    assert "one class" in row.reason


def test_a_feature_that_is_all_missing_or_of_another_type_is_no_silent_zero(world: Project) -> None:
    path = world.path("arrivals", "w005")
    data.write_table(data.read_table(path).assign(weight=None), path)
    tick = operate.run_tick(at_end_of(world, "w005"))
    assert not tick.report.passed
    assert "weight" in str(tick.report)


def test_a_clock_that_went_back_is_refused(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w006"))
    before = files_of(world)
    with raises(OperateError, "clock"):
        operate.run_tick(at_end_of(world, "w005"))
    assert files_of(world) == before


def test_a_record_that_cannot_be_read_is_named(world: Project) -> None:
    operate.run_tick(at_end_of(world, "w005"))
    (path,) = (world.operated_path / "records").glob("*.json")
    path.write_text("{", encoding="utf-8")
    with raises(OperateError, "record") as caught:
        operate.run_tick(at_end_of(world, "w006"))
    assert str(path) in str(caught.value)


def test_two_ticks_at_once_are_one(world: Project) -> None:
    with record.lock(world), raises(OperateError, "running") as caught:
        operate.run_tick(at_end_of(world, "w005"))
    assert str(os.getpid()) in str(caught.value)
    assert operate.run_tick(at_end_of(world, "w005")).report.passed, "the lock is open again"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(world: Project) -> None:
    tick = operate.run_tick(at_end_of(world, "w006"), dry_run=True)
    assert [row.name for row in tick.report.rows][:2] == ["score w005", "score w006"]
    assert not world.operated_path.exists()
    assert not (world.root / "data/predictions").exists()


def test_an_alarm_stays_open_while_nothing_new_has_come(project: Project) -> None:
    world = make_world(project, 7, drift_at=6, drifting=0, window=2, min_rows=10**6)
    begin(world)
    first = operate.run_tick(at_end_of(world, "w006"))
    assert rows_of(first)["drift of w006"] == "failed"
    labels = operate.run_tick(at_end_of(world, "w006", days=30))
    assert (labels.number, labels.periods) == (2, [])
    assert rows_of(labels)["drift of w006"] == "failed", "only labels have come"
    assert labels.decision.reasons, "and the reasons to train again are still there"


# --- interrupted -----------------------------------------------------------------------------------------------------

STEPS = ("score", "judge", "watch", "decide", "train", "promote", "finish")


@pytest.fixture
def drifting(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose next tick scores, judges, trains and promotes."""
    return remember(project, tmp_path_factory, "world", max_age_days=1, quality=False)


@pytest.mark.parametrize("step", STEPS)
def test_a_tick_that_stops_at_any_step_is_gone_on_with(
    drifting: Project, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = at_end_of(drifting, "w006", days=1)

    def stop(self: _Steps, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Steps, step, stop)
        with pytest.raises(KeyboardInterrupt):
            operate.run_tick(at)
    (left,) = operate.read_ticks(drifting)
    assert left.status == "running"
    tick = operate.run_tick(replace(at, now=at.clock + timedelta(hours=1)))
    assert (tick.number, tick.status, tick.at) == (1, "done", at.clock.isoformat()), "it is the same tick"
    assert (tick.trained, tick.promoted) == (2, ["staging", "prod"]), str(tick.report)
    assert list(rows_of(tick))[:2] == ["score w005", "score w006"]
    assert [entry.version for entry in registry.history(drifting, "prod")] == [1, 2], "promoted once"


# --- who is told -----------------------------------------------------------------------------------------------------


def test_hooks_are_called_with_the_tick_and_stop_nothing(world: Project) -> None:
    told: list[Mapping[str, Any]] = []

    def broken(tick: Mapping[str, Any]) -> None:
        raise ValueError("no mail today")

    hooked = replace(world, policy=replace(world.policy, hooks=(broken, told.append)))
    tick = operate.run_tick(at_end_of(hooked, "w005"))
    assert told[0]["number"] == 1
    assert tick.notes == ["hook broken: ValueError: no mail today"]
    assert operate.read_ticks(world)[-1].notes == tick.notes


def test_a_webhook_gets_the_tick_signed_and_one_that_does_not_answer_is_noted(world: Project, closed_port: int) -> None:
    got: list[tuple[str, bytes]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers[hooks.SIGNATURE], body))
            self.send_response(500 if len(got) == 1 else 204)  # it is tried again
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = replace(
            world,
            policy=replace(world.policy, webhook="HOOK"),
            environ={**world.environ, "HOOK": f"http://127.0.0.1:{server.server_port}/x", "HOOK_SECRET": "hush-hush"},
        )
        tick = operate.run_tick(at_end_of(told, "w005"))
        server.shutdown()
    assert tick.notes == []
    assert len(got) == 2
    signature, body = got[1]
    assert json.loads(body)["number"] == 1
    assert signature == hooks.sign(body, "hush-hush")
    nobody = replace(told, environ={**told.environ, "HOOK": f"http://127.0.0.1:{closed_port}/"})
    assert "webhook: " in operate.run_tick(at_end_of(nobody, "w006")).notes[0]


# --- what is left behind ---------------------------------------------------------------------------------------------


def test_every_tick_is_a_run_with_its_record_and_its_report(world: Project) -> None:
    import mlflow

    tick = operate.run_tick(at_end_of(world, "w005"))
    run = mlflow.MlflowClient(world.tracking_uri).get_run(tick.run_id)
    assert (run.info.run_name, run.info.status) == ("tick 1", "FINISHED")
    assert json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/tick.json"))["periods"] == ["w005"]


def test_the_tables_are_read_by_pandas_and_by_duckdb(world: Project) -> None:
    duckdb = pytest.importorskip("duckdb", reason="ci/setup installs it")
    operate.run_tick(at_end_of(world, "w006"))
    for name in tables.TABLES:
        pattern = world.operated_path / name / "*" / "*.parquet"
        ours, theirs = (
            operate.read_table(world, name),
            duckdb.read_parquet(str(pattern), hive_partitioning=True).to_arrow_table().to_pandas(),
        )
        assert len(ours) == len(theirs) > 0
        assert sorted(ours) == sorted(theirs)
        assert sorted(pd.read_parquet(world.operated_path / name)) == sorted(ours)


TICK = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from conftest import project_in
from world import at_end_of, in_world
from mlops_lib.programs import operate
world = in_world(project_in(Path({root!r})), max_age_days=1, quality=False)
print("begins", flush=True)
print(operate.run_tick(at_end_of(world, "w006", days=1)).report)
"""


def test_a_tick_that_is_killed_at_random_moments_ends_as_one_that_nobody_disturbed(
    drifting: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    at, begun = at_end_of(drifting, "w006", days=1), tmp_path_factory.getbasetemp() / "before-the-kills"
    shutil.copytree(drifting.root, begun)
    started = time.monotonic()
    operate.run_tick(at)
    takes_s, undisturbed = time.monotonic() - started, files_of(drifting)
    moves = [(entry.action, entry.stage) for entry in registry.history(drifting) if entry.stage != "dev"]
    close_databases()
    shutil.rmtree(drifting.root)
    shutil.copytree(begun, drifting.root)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    script, rng = TICK.format(paths=paths, root=str(drifting.root)), random.Random(0)
    for _ in range(rounds(2, 50)):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            time.sleep(rng.uniform(0, 2 * takes_s))
            process.kill()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_of(drifting) == undisturbed
    assert [(e.action, e.stage) for e in registry.history(drifting) if e.stage != "dev"] == moves
    (tick,) = operate.read_ticks(drifting)
    assert tick.status == "done"
