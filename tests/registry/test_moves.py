"""What may move: legal ways only, never a frozen stage, with a second person where the project wants one, and once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from conftest import close_databases, copy_store, make_project, register_model
from mlflow.tracking import MlflowClient
from refusals import raises
from stages import aliases, bring_to_prod, clone, force_to_prod, judge, standing

from mlops_lib import cli, gates, registry
from mlops_lib.errors import (
    LedgerError,
    NotFoundError,
    RefusedError,
)
from mlops_lib.project import Project
from mlops_lib.registry import ledger, moves
from mlops_lib.registry.verdicts import verdict_digest

pytestmark = pytest.mark.usefixtures("version")


@pytest.fixture(scope="module")
def made_two(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, registered: Project) -> Project:
    """Return a project with version 1 in every stage and version 2 in dev, made once."""
    made = make_project(tmp_path_factory.mktemp("two"), migrated_store)
    copy_store(registered, made)
    force_to_prod(made, 1)
    clone(made, 1)
    return made


@pytest.fixture
def two(project: Project, made_two: Project) -> Project:
    """Return the toy project with version 1 in every stage and version 2 in dev."""
    close_databases()
    copy_store(made_two, project)
    return project


def promote_by_force(project: Project, version: int, stage: str, **options: str) -> registry.Entry:
    return gates.promote(project, version, stage, force=True, **{"reason": "test", **options})  # type: ignore[arg-type]


# --- legal ways --------------------------------------------------------------------------------------------------


def test_no_stage_is_skipped_unless_the_project_says_so(two: Project) -> None:
    with pytest.raises(RefusedError, match=r"it has never been in staging. prod still has version 1"):
        promote_by_force(two, 2, "prod")
    promote_by_force(replace(two, may_skip_stages=True), 2, "prod")
    assert standing(two) == {"dev": 2, "staging": 1, "prod": 2} == aliases(two)


def test_a_stage_goes_back_only_by_a_rollback(two: Project) -> None:
    for stage in ("staging", "prod"):
        promote_by_force(two, 2, stage)
    registry.rollback(two, "staging", reason="back")
    with pytest.raises(RefusedError, match=r"it is in prod already; a stage goes back only by a rollback"):
        promote_by_force(two, 2, "staging")


@pytest.mark.parametrize("may_skip", [False, True])
def test_nothing_is_promoted_to_the_first_stage(two: Project, may_skip: bool) -> None:
    with pytest.raises(RefusedError, match=r"'dev' is where versions are registered"):
        promote_by_force(replace(two, may_skip_stages=may_skip), 1, "dev")


def test_an_approval_or_a_freeze_is_no_stay_in_a_stage(project: Project) -> None:
    careful = replace(project, approvals=("staging",))
    registry.approve(replace(careful, actor="bob"), 1, "staging", reason="looks good")
    registry.freeze(project, "staging", reason="wait")
    registry.unfreeze(project, "staging", reason="go")
    assert standing(project)["staging"] is None
    with pytest.raises(RefusedError, match=r"it has never been in staging"):
        promote_by_force(project, 1, "prod")


# --- freezing ----------------------------------------------------------------------------------------------------


def test_a_frozen_stage_refuses_everything_until_it_is_unfrozen(two: Project) -> None:
    judge(two, 2)
    promote_by_force(two, 2, "staging")
    entry = registry.freeze(replace(two, actor="bob"), "prod", reason="holiday traffic")
    assert (entry.action, entry.stage, entry.version, entry.actor) == ("freeze", "prod", 1, "bob")
    assert " freeze version 1 prod by bob" in str(entry)
    why = rf"prod is frozen by bob since {entry.at[:10]}.*: holiday traffic"
    for move in (
        lambda: gates.promote(two, 2, "prod"),
        lambda: promote_by_force(two, 2, "prod"),
    ):
        with pytest.raises(RefusedError, match=why):
            move()
    with pytest.raises(RefusedError, match=why):
        registry.rollback(two, "prod", reason="complaints")
    registry.rollback(two, "staging", reason="another stage still moves")
    registry.rollback(two, "staging", to=2, reason="and forward")
    registry.unfreeze(two, "prod", reason="holidays are over")
    promote_by_force(two, 2, "prod")
    assert [e.action for e in registry.history(two, "prod")] == ["force", "freeze", "unfreeze", "force"]


def test_a_freeze_that_changes_nothing_is_refused(two: Project) -> None:
    for call, why in (
        (lambda: registry.unfreeze(two, "prod", reason="x"), r"unfreeze prod of 'toy' was refused: it is not frozen"),
        (lambda: registry.freeze(two, "dev", reason="x"), r"versions are registered there"),
        (lambda: registry.freeze(two, "prod", reason=" "), r"it takes a reason"),
    ):
        with pytest.raises(RefusedError, match=why):
            call()
    registry.freeze(two, "prod", reason="first")
    with pytest.raises(RefusedError, match=r"prod is frozen by ada since .*: first"):
        registry.freeze(two, "prod", reason="second")
    with raises(NotFoundError, "stage"):
        registry.freeze(two, "prd", reason="x")
    with raises(LedgerError, "long_reason"):
        registry.freeze(two, "prod", reason="x" * 5000)


def test_an_empty_stage_can_be_frozen_and_a_project_without_versions_cannot(project: Project) -> None:
    assert registry.freeze(project, "prod", reason="not yet").version == 0
    with pytest.raises(RefusedError, match=r"nothing is registered yet"):
        registry.freeze(replace(project, name="other"), "prod", reason="not yet")


def test_a_freeze_does_not_lose_a_race(two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody promotes between its look and its entry: it looks again."""
    overtaken = be_overtaken(monkeypatch, lambda: promote_by_force(two, 2, "staging"))
    registry.freeze(two, "prod", reason="stop")
    assert overtaken == [True]
    assert [e.action for e in registry.history(two)][-2:] == ["force", "freeze"]


def be_overtaken(monkeypatch: pytest.MonkeyPatch, faster: Callable[[], object]) -> list[bool]:
    """Let ``faster`` happen once, after the next append has been decided and before it is written."""
    log_param, done = MlflowClient.log_param, list[bool]()

    def late(client: MlflowClient, run_id: str, key: str, value: str) -> object:
        if not done:
            done.append(True)
            faster()
        return log_param(client, run_id, key, value)

    monkeypatch.setattr(MlflowClient, "log_param", late)
    return done


def test_a_promotion_that_a_freeze_overtook_is_not_made(two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    be_overtaken(monkeypatch, lambda: registry.freeze(replace(two, actor="bob"), "staging", reason="stop"))
    with pytest.raises(RefusedError, match=r"somebody else moved first \(#3 freeze version 1 staging by bob"):
        promote_by_force(two, 2, "staging")
    assert standing(two)["staging"] == 1


# --- a second person ---------------------------------------------------------------------------------------------


@pytest.fixture
def careful(project: Project) -> Project:
    """Return the toy project with version 1 in staging; prod needs a second person."""
    judge(project, 1)
    gates.promote(project, 1, "staging")
    return replace(project, approvals=("prod",))


def test_a_promotion_needs_the_approval_of_somebody_else_and_uses_it_up(careful: Project) -> None:
    bob = replace(careful, actor="bob")
    with pytest.raises(RefusedError, match=r"approval of a second person \('mlops approve 1 prod'\)"):
        gates.promote(careful, 1, "prod")
    approval = registry.approve(bob, 1, "prod", reason="read the report")
    assert (approval.action, approval.actor, approval.stage) == ("approve", "bob", "prod")
    assert approval.verdict == verdict_digest(registry.load_verdict(careful, 1))
    assert gates.promote(careful, 1, "prod").verdict == approval.verdict
    register_model(careful, C=0.9)
    force_to_prod(careful_without_approvals(careful), 2)
    registry.rollback(careful, "staging", reason="again from the start")
    judge(careful, 1)
    with pytest.raises(RefusedError, match=r"approval of a second person"):
        gates.promote(careful, 1, "prod")


def careful_without_approvals(project: Project) -> Project:
    return replace(project, approvals=())


def test_the_author_does_not_approve_the_own_version_nor_promotes_who_approved(careful: Project) -> None:
    with pytest.raises(RefusedError, match=r"was not approved for prod: ada is its author"):
        registry.approve(careful, 1, "prod", reason="mine is good")
    bob = replace(careful, actor="bob")
    registry.approve(bob, 1, "prod", reason="fine")
    with pytest.raises(RefusedError, match=r"bob approved it, so somebody else promotes it"):
        gates.promote(bob, 1, "prod")
    registry.approve(replace(careful, actor="eve"), 1, "prod", reason="fine too")
    assert gates.promote(bob, 1, "prod").actor == "bob"


def test_who_registered_a_version_of_somebody_elses_run_does_not_approve_it_either(project: Project) -> None:
    model_id = registry.get_version(project, 1).model_id
    bob = replace(project, actor="bob", approvals=("prod",))
    version = registry.register(bob, f"models:/{model_id}").version
    for actor in ("ada", "bob"):
        with pytest.raises(RefusedError, match=rf"{actor} is its author"):
            registry.approve(replace(bob, actor=actor), version, "prod", reason="fine")


def test_an_approval_holds_for_the_verdict_it_was_given_on(careful: Project) -> None:
    registry.approve(replace(careful, actor="bob"), 1, "prod", reason="fine")
    other = replace(careful, gates=careful.gates[:1])
    judge(other, 1)
    with pytest.raises(RefusedError, match=r"it was approved on another verdict than this one"):
        gates.promote(other, 1, "prod")


def test_force_overrides_gates_and_not_the_second_person(careful: Project) -> None:
    with pytest.raises(RefusedError, match=r"approval of a second person"):
        promote_by_force(careful, 1, "prod")
    registry.approve(replace(careful, actor="bob"), 1, "prod", reason="the old one is down")
    assert promote_by_force(careful, 1, "prod").action == "force"


def test_an_approval_that_nobody_needs_or_that_says_nothing_is_refused(careful: Project) -> None:
    bob = replace(careful, actor="bob")
    for stage, reason, why in (("staging", "x", "staging needs no second person"), ("prod", " ", "it takes a reason")):
        with pytest.raises(RefusedError, match=why):
            registry.approve(bob, 1, stage, reason=reason)
    with raises(NotFoundError, "version"):
        registry.approve(bob, 9, "prod", reason="x")
    MlflowClient().create_model_version("toy", f"models:/{registry.get_version(bob, 1).model_id}")
    with pytest.raises(RefusedError, match=r"it is not in the ledger"):
        registry.approve(bob, 2, "prod", reason="x")


def test_a_stage_that_does_not_exist_cannot_need_approval(project: Project) -> None:
    with pytest.raises(NotFoundError, match=r"Did you mean 'prod'"):
        replace(project, approvals=("prd",))


# --- one operation, once -----------------------------------------------------------------------------------------


def test_the_same_operation_again_returns_the_entry_it_made(two: Project) -> None:
    first = promote_by_force(two, 2, "staging", operation="deploy-17")
    assert promote_by_force(two, 2, "staging", operation="deploy-17") == first
    back = registry.rollback(two, "staging", reason="x", operation="deploy-18")
    assert registry.rollback(two, "staging", reason="x", operation="deploy-18") == back
    assert [e.operation for e in registry.history(two)][-2:] == ["deploy-17", "deploy-18"]
    assert standing(two)["staging"] == 1


def test_an_operation_id_names_one_move_only(two: Project) -> None:
    promote_by_force(two, 2, "staging", operation="deploy-17")
    with pytest.raises(RefusedError, match=r"'deploy-17' is that of another move \(#3 force staging"):
        promote_by_force(two, 2, "prod", operation="deploy-17")
    with pytest.raises(RefusedError, match=r"'deploy-17' is that of another move"):
        registry.rollback(two, "staging", reason="x", operation="deploy-17")


def test_an_entry_whose_answer_was_lost_is_found_and_not_written_again(
    two: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store commits and the answer never comes; then the same operation is tried by a second process."""
    n_before = len(registry.history(two))
    be_overtaken(monkeypatch, lambda: promote_by_force(two, 2, "staging", operation="deploy-17"))
    entry = promote_by_force(two, 2, "staging", operation="deploy-17")
    assert registry.history(two)[n_before:] == (entry,)


# --- entries that fit --------------------------------------------------------------------------------------------


def test_an_entry_is_never_longer_than_the_store_keeps(two: Project) -> None:
    for reason in ("x" * 3900, "漢" * 600, '"' * 1900):
        entry = promote_by_force(two, 2, "staging", reason=reason)
        assert len(entry.to_json().encode()) <= ledger.ENTRY_LIMIT
        assert registry.history(two)[-1].reason == reason
        registry.rollback(two, "staging", reason="back")


@pytest.mark.parametrize(("actor", "operation"), [("a" * 5000, "x"), ("ada", "o" * 5000)])
def test_whatever_makes_an_entry_too_long_is_refused_before_anything_moves(
    two: Project, actor: str, operation: str
) -> None:
    before = registry.read_ledger(two)
    with raises(LedgerError, "long_reason"):
        promote_by_force(replace(two, actor=actor), 2, "staging", operation=operation)
    assert registry.read_ledger(two) == before


def test_the_limit_holds_for_the_whole_entry(two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "raise_for_words", lambda *_: None)
    with raises(LedgerError, "long_reason") as caught:
        promote_by_force(two, 2, "staging", reason="x" * 5000)
    assert caught.value.limit == ledger.ENTRY_LIMIT


# --- deleting ----------------------------------------------------------------------------------------------------


def test_what_a_stage_has_or_could_go_back_to_is_not_deleted(two: Project) -> None:
    for stage in ("staging", "prod"):
        promote_by_force(two, 2, stage)
    with pytest.raises(RefusedError, match=r"Version 2 of 'toy' was not deleted: dev has it"):
        registry.delete_version(two, 2, reason="tidy")
    with pytest.raises(RefusedError, match=r"staging had it and could be rolled back to it"):
        registry.delete_version(two, 1, reason="tidy")
    with pytest.raises(RefusedError, match=r"it takes a reason"):
        registry.delete_version(two, 1, reason="")
    with raises(NotFoundError, "version"):
        registry.delete_version(two, 9, reason="tidy")
    assert {v.version for v in registry.list_versions(two)} == {1, 2}


def test_a_version_that_nothing_needs_is_deleted_and_its_entries_stay(two: Project) -> None:
    clone(two, 1)
    entry = registry.delete_version(two, 2, reason="wrong month")
    assert (entry.action, entry.version, entry.stage, entry.reason) == ("delete", 2, "", "wrong month")
    assert str(entry).startswith("#3 delete version 2 by ada at ")
    assert [v.version for v in registry.list_versions(two)] == [3, 1]
    with pytest.raises(NotFoundError, match=r"Registered versions: 1, 3"):
        registry.load_model(two, 2)
    with raises(NotFoundError, "version"):
        promote_by_force(two, 2, "staging")
    assert [e.version for e in registry.history(two) if e.action in ("register", "delete")] == [1, 2, 3, 2]
    assert registry.check_store(two).passed
    assert clone(two, 1) == [4]


def test_a_rollback_passes_over_what_was_deleted(two: Project) -> None:
    clone(two, 1)
    registry.delete_version(two, 2, reason="wrong month")
    with pytest.raises(RefusedError, match=r"it never had version 2; it had 1"):
        registry.rollback(two, "dev", to=2, reason="x")
    assert registry.rollback(two, "dev", reason="x").version == 1


def test_what_a_rollback_left_behind_may_be_deleted(two: Project) -> None:
    promote_by_force(two, 2, "staging")
    registry.rollback(two, "staging", reason="bad")
    clone(two, 1)
    registry.delete_version(two, 2, reason="bad")
    assert standing(two) == {"dev": 3, "staging": 1, "prod": 1} == aliases(two)


# --- as of a time ------------------------------------------------------------------------------------------------


def versions_at(project: Project, time: datetime) -> dict[str, int | None]:
    return {stage: entry.version if entry else None for stage, entry in registry.as_of(project, time).items()}


def test_what_every_stage_had_at_a_time(two: Project) -> None:
    registry.freeze(two, "prod", reason="stop")
    registry.rollback(two, "dev", reason="back")
    register, staging, prod, second, freeze, back = registry.history(two)
    assert versions_at(two, register.time - timedelta(microseconds=1)) == dict.fromkeys(two.stages)
    assert versions_at(two, register.time) == {"dev": 1, "staging": None, "prod": None}
    assert versions_at(two, staging.time) == {"dev": 1, "staging": 1, "prod": None}
    assert versions_at(two, prod.time) == {"dev": 1, "staging": 1, "prod": 1}
    assert versions_at(two, second.time) == {"dev": 2, "staging": 1, "prod": 1} == versions_at(two, freeze.time)
    assert versions_at(two, back.time.astimezone(timezone(timedelta(hours=5)))) == standing(two)
    assert versions_at(two, datetime.now(UTC) + timedelta(days=1)) == standing(two)
    found = registry.as_of(two, prod.time)["prod"]
    assert found == prod


def test_a_time_without_a_zone_is_refused(two: Project) -> None:
    with pytest.raises(LedgerError, match=r"has no zone"):
        registry.as_of(two, datetime(2026, 11, 1))  # noqa: DTZ001 - that is the point


def test_a_clock_that_is_behind_does_not_turn_time_back(two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    last = registry.history(two)[-1]

    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return last.time - timedelta(days=1)

    monkeypatch.setattr(ledger, "datetime", Behind)
    entry = promote_by_force(two, 2, "staging")
    assert entry.at == last.at
    assert versions_at(two, last.time)["staging"] == 2


# --- the command -------------------------------------------------------------------------------------------------


Mlops = Callable[..., Result]


@pytest.fixture
def mlops(project: Project, monkeypatch: pytest.MonkeyPatch) -> Mlops:
    """Return what calls the command on the toy project, as somebody."""

    def call(*arguments: object, actor: str = "ada", **changes: object) -> Result:
        monkeypatch.setattr("mlops_lib.project.load_project", lambda _, **__: replace(project, actor=actor, **changes))  # type: ignore[arg-type]
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], color=True)

    return call


def test_freeze_approve_delete_and_unfreeze_at_the_command_line(mlops: Mlops, project: Project) -> None:
    force_to_prod(project, 1)
    clone(project, 2)
    assert "#3 freeze version 1 prod by ada" in mlops("freeze", "prod", "--reason", "stop").stdout
    refused = mlops("freeze", "prod", "--reason", "stop")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert mlops("promote", 3, "staging", "--force", "--reason", "x").exit_code == 0
    assert mlops("promote", 3, "prod", "--force", "--reason", "x").exit_code == 3
    assert mlops("unfreeze", "prod", "--reason", "go").exit_code == 0
    assert mlops("delete", 1, "--reason", "tidy").exit_code == 3
    assert "delete version 2 by ada" in mlops("delete", 2, "--reason", "tidy").stdout
    assert mlops("delete", 9, "--reason", "tidy").exit_code == 1
    assert mlops("approve", 3, "prod", "--reason", "x").exit_code == 3
    approved = mlops("approve", 3, "prod", "--reason", "x", "--json", actor="bob", approvals=("prod",))
    assert json.loads(approved.stdout)["action"] == "approve"
    assert mlops("promote", 3, "prod", "--force", "--reason", "x", approvals=("prod",)).exit_code == 0


def test_who_lost_a_race_is_told_by_exit_code_3(mlops: Mlops, two: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    be_overtaken(monkeypatch, lambda: promote_by_force(replace(two, actor="bob"), 2, "staging"))
    lost = mlops("promote", 2, "staging", "--force", "--reason", "slower")
    assert (lost.exit_code, lost.stdout) == (3, "")
    assert "somebody else moved first (#3 force staging → version 2 (from version 1) by bob" in lost.stderr


def test_history_at_a_time_at_the_command_line(mlops: Mlops, project: Project) -> None:
    force_to_prod(project, 1)
    at = registry.history(project)[1].at
    shown = json.loads(mlops("history", "--at", at, "--json").stdout)
    assert {stage: entry and entry["version"] for stage, entry in shown["stages"].items()} == {
        "dev": 1,
        "staging": 1,
        "prod": None,
    }
    assert "empty" in mlops("history", "prod", "--at", at).stdout
    assert mlops("history", "--at", "2026-11-01T12:00Z").stdout.count("empty") == 3
    assert mlops("history", "--at", "2026-11-01T12:00").exit_code == 1
    assert mlops("history", "--at", "yesterday").exit_code == 2
    assert mlops("history", "prd", "--at", at).exit_code == 1


def test_forced_moves_stay_red_in_the_history(mlops: Mlops, project: Project) -> None:
    bring_to_prod(project, 1)
    clone(project, 1)
    promote_by_force(project, 2, "staging")
    registry.rollback(project, "staging", reason="back")
    lines = mlops("history").stdout.splitlines()[1:]
    assert [line.startswith(click.style("", fg="red", reset=False)) for line in lines] == [False] * 4 + [True, False]
    at = registry.history(project)[4].at
    red = [line for line in mlops("history", "--at", at).stdout.splitlines() if "\x1b[31m" in line]
    assert [line.split()[1] for line in red] == ["2"]
    plain = CliRunner().invoke(cli.main, ["history"])  # no terminal
    assert "\x1b" not in plain.stdout


@pytest.mark.parametrize(
    ("call", "case"),
    [
        (lambda p: registry.resolve(replace(p, name="other"), "prod"), "version_in_stage"),
        (lambda p: gates.promote(p, 9, "staging"), "version"),
        (lambda p: gates.promote(p, 1, "prd"), "stage"),
        (lambda p: registry.rollback(p, "prd", reason="x"), "stage"),
        (lambda p: registry.delete_version(p, 9, reason="x"), "version"),
    ],
)
def test_what_does_not_exist_is_an_error_and_no_refusal(
    project: Project, call: Callable[[Project], object], case: str
) -> None:
    with raises(NotFoundError, case):
        call(project)
