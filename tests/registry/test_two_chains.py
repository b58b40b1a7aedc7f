"""A ledger that others may write to: what was seen is remembered, what no rule allows counts for nobody."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import copy_store, register_model
from mlflow.tracking import MlflowClient
from refusals import raises
from stages import bring_to_prod, clone, force_to_prod, standing

from mlops_lib import cli, gates, registry, tracking
from mlops_lib.errors import LedgerError, SignatureError, StoreError
from mlops_lib.models import signing
from mlops_lib.programs import operate
from mlops_lib.project import Project, sqlite_uri
from mlops_lib.registry import ledger
from mlops_lib.registry.entries import Entry, slot
from mlops_lib.registry.ledger import open_ledger
from mlops_lib.registry.rules import Rules, State, replay, why_illegal
from mlops_lib.tracking import store


def forge(project: Project, **changes: Any) -> Entry:
    """Write an entry by other hands: it follows from what is there, and no rule was asked."""
    chain, state = open_ledger(project)[1].moves, open_ledger(project)[1].state
    facts: dict[str, Any] = {
        "number": chain.free,
        "operation": "forged",
        "previous": chain.head,
        "seen": open_ledger(project)[1].registrations.head,
        "rules": Rules.of(project).to_text(),
        "actor": "eve",
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "reason": "because",
        **state.files(changes["version"]),
    }
    entry = Entry(**{**facts, **changes})
    MlflowClient().log_param(chain.run_id, slot(entry.number), entry.to_json())
    return entry


# --- the rules ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"action": "promote", "stage": "prod", "version": 2, "verdict": "0" * 64}, "it has never been in staging"),
        ({"action": "force", "stage": "prod", "version": 1}, "it is there already"),
        ({"action": "promote", "stage": "staging", "version": 2}, "there is no verdict on it"),
        ({"action": "force", "stage": "staging", "version": 2, "reason": " "}, "forcing takes a reason"),
        ({"action": "force", "stage": "staging", "version": 7}, "it has never been in dev"),
        ({"action": "force", "stage": "staging", "version": 2, "digest": "f" * 64}, "its model files are not those"),
        ({"action": "force", "stage": "elsewhere", "version": 2}, "the project has no stage 'elsewhere'"),
        ({"action": "force", "stage": "staging", "version": 2, "rules": ""}, "the project has no stage 'staging'"),
        ({"action": "rollback", "stage": "prod", "version": 2}, "it has never had another version|it never had"),
        ({"action": "unfreeze", "stage": "prod", "version": 1}, "it is not frozen"),
        ({"action": "approve", "stage": "prod", "version": 2}, "prod needs no second person"),
        ({"action": "delete", "stage": "", "version": 1}, "staging has it"),
        ({"action": "bless", "stage": "prod", "version": 2}, "'bless' is none of"),
    ],
)
def test_an_entry_that_no_rule_allows_counts_for_nobody(project: Project, changes: dict[str, Any], why: str) -> None:
    force_to_prod(project, 1)
    clone(project, 1)
    forged = forge(project, **changes)
    for ask in (
        lambda: registry.load_model(project, "prod"),
        lambda: registry.history(project),
        lambda: gates.promote(project, 2, "staging", force=True, reason="next"),
    ):
        with pytest.raises(LedgerError, match=rf"entry {forged.number} was not allowed: .*({why})"):
            ask()
    (failed,) = [row for row in registry.check_store(project).failures if row.name == "chain"]
    assert "was not allowed" in failed.reason
    assert registry.load_model(project, 2).version == 2, "a number needs no more than its registration"


@pytest.mark.usefixtures("version")
def test_a_frozen_stage_and_a_second_person_hold_against_other_hands(project: Project) -> None:
    strict = replace(project, approvals=("prod",))
    registry.freeze(strict, "staging", reason="release")
    forge(strict, action="force", stage="staging", version=1)
    with pytest.raises(LedgerError, match=r"staging is frozen by ada"):
        registry.current(strict, "staging")


@pytest.mark.usefixtures("version")
def test_a_promotion_without_the_second_person_is_found(project: Project) -> None:
    strict = replace(project, approvals=("prod",))
    gates.promote(strict, 1, "staging", force=True, reason="first")
    forge(strict, action="force", stage="prod", version=1)
    with pytest.raises(LedgerError, match=r"prod needs the approval of a second person"):
        registry.current(strict, "prod")


@pytest.mark.usefixtures("version")
def test_a_move_that_names_a_registration_that_is_not_there_is_found(project: Project) -> None:
    forge(project, action="force", stage="staging", version=1, seen="f" * 64)
    with pytest.raises(LedgerError, match=r"entry 1 names a registration that is not there"):
        registry.history(project)


def test_what_a_project_allowed_then_holds_for_then_and_is_told_now(
    project: Project, version: registry.Version
) -> None:
    loose = replace(project, may_skip_stages=True)
    gates.promote(loose, 1, "prod", force=True, reason="in a hurry")
    assert registry.current(project, "prod") == 1
    (row,) = [row for row in registry.check_store(project).rows if row.name == "rules of moves"]
    assert (row.value, row.status, "under other stages or approvals" in row.reason) == (1, "passed", True)
    assert not [row for row in registry.check_store(loose).rows if row.name == "rules of moves"]


def test_registrations_and_moves_are_one_history_in_the_order_that_moves_had_seen(
    project: Project, version: registry.Version
) -> None:
    force_to_prod(project, 1)
    clone(project, 2)
    gates.promote(project, 3, "staging", force=True, reason="next")
    labels = [entry.label for entry in registry.history(project)]
    assert labels == ["r1", "1", "2", "r2", "r3", "3"]
    times = [entry.time for entry in registry.history(project)]
    assert times == sorted(times)
    found = registry.as_of(project, times[3])
    assert {stage: entry.version if entry else None for stage, entry in found.items()} == {
        "dev": 2,
        "staging": 1,
        "prod": 1,
    }


def test_every_rule_that_a_move_asks_is_asked_of_what_was_written(project: Project, version: registry.Version) -> None:
    """The same functions: whatever was made by the library passes, entry by entry."""
    bring_to_prod(project, 1)
    clone(project, 2)
    force_to_prod(project, 3)
    registry.rollback(project, "prod", reason="worse")
    registry.freeze(project, "prod", reason="holidays")
    registry.unfreeze(project, "prod", reason="over")
    clone(project, 1)
    registry.delete_version(project, 2, reason="never used")
    state = State()
    for entry in registry.history(project):
        assert why_illegal(state, entry) is None
        state.add(entry)
    assert state.standing == replay(registry.history(project)).standing


# --- what this client has seen -----------------------------------------------------------------------------------


@pytest.fixture
def seen(project: Project, tmp_path: Path) -> Project:
    """Return a project with one version in prod, by a client that remembers."""
    remembering = replace(project, state=tmp_path / "state")
    register_model(remembering)
    force_to_prod(remembering, 1)
    return remembering


def cut_off_the_last_entry(project: Project) -> None:
    moves = open_ledger(project)[1].moves
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        where = "where run_uuid = ? and key = ?"
        database.execute(f"delete from params {where}", (moves.run_id, slot(moves.number)))
        database.execute(f"update tags set value = ? {where}", (f"1:{moves.hashes[0]}", moves.run_id, ledger.HEAD_TAG))


def rewrite_the_registration(project: Project) -> None:
    """Change the first entry and all hashes that follow from it, in both chains."""
    found = open_ledger(project)[1]
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:

        def write(chain: Any, entry: Entry) -> None:
            database.execute(
                "update params set value = ? where run_uuid = ? and key = ?",
                (entry.to_json(), chain.run_id, slot(entry.number)),
            )
            database.execute(
                "update tags set value = ? where run_uuid = ? and key = ?",
                (f"{entry.number}:{entry.hash}", chain.run_id, ledger.HEAD_TAG),
            )

        first = replace(found.registrations.entries[0], actor="eve")
        write(found.registrations, first)
        previous = found.moves.genesis
        for move in found.moves.entries:
            edited = replace(move, seen=first.hash, previous=previous)
            previous = edited.hash
            write(found.moves, edited)


def remove_the_model(project: Project) -> None:
    store.connect(project.tracking_uri).delete_registered_model("toy")


def make_the_model_again(project: Project) -> None:
    remove_the_model(project)
    register_model(replace(project, state=None))


def remove_the_database(project: Project) -> None:
    (project.root / "mlflow.db").unlink()


@pytest.mark.parametrize(
    ("spoil", "entry"),
    [
        (cut_off_the_last_entry, "2"),
        (rewrite_the_registration, "r1"),
        (remove_the_model, "r1"),
        (make_the_model_again, "r1"),
        (remove_the_database, "r1"),
    ],
)
def test_what_was_seen_before_and_is_missing_is_an_error_and_not_empty(
    seen: Project, spoil: Callable[[Project], None], entry: str
) -> None:
    spoil(seen)
    for ask in (registry.history, registry.list_versions, lambda project: registry.load_model(project, "prod")):
        with pytest.raises(LedgerError, match=rf"lacks entry {entry}, which was seen in this store at 20"):
            ask(seen)
    remembered = next(path for path in (seen.state or Path()).iterdir())
    assert str(remembered) in str(registry.check_store(seen)) or not (seen.root / "mlflow.db").exists()
    stranger = replace(seen, state=None)
    if spoil is not remove_the_database:
        registry.history(stranger)  # fits its own hashes: only who has seen it knows
    remembered.unlink()
    with contextlib.suppress(StoreError):
        assert registry.history(seen) is not None


def test_an_older_database_that_was_put_back_is_found(seen: Project) -> None:
    backup = seen.root / "backup.db"
    shutil.copy(seen.root / "mlflow.db", backup)
    clone(seen, 1)
    shutil.copy(backup, seen.root / "mlflow.db")
    with pytest.raises(LedgerError, match=r"lacks entry r2, which was seen"):
        registry.register(seen, f"models:/{registry.load_model(seen, 1).model_id}")


def test_a_state_folder_that_cannot_be_written_remembers_nothing(seen: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = replace(seen, state=tmp_path / "file" / "below")
    assert registry.history(nowhere) == registry.history(seen)


def test_a_head_that_was_noted_elsewhere_is_held_against_the_store(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_to_prod(project, 1)
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file, **_: project)

    def verify(*heads: str) -> Any:
        return CliRunner().invoke(cli.main, ["verify", *(word for head in heads for word in ("--head", head))])

    noted = registry.history(project).head.split()
    assert f"head: {' '.join(noted)}" in verify().output
    clone(project, 1)
    assert verify(*noted, noted[0][:15]).exit_code == 0, "what came later does not matter"
    for head in ("2:" + "0" * 64, "9:" + "0" * 64, "r1:", "x", "r1:" + noted[0][3:8], "²:" + "0" * 64):
        done = verify(head)
        assert done.exit_code == 3, head
        assert "it is missing" in done.output or "it is another one" in done.output


# --- readers create nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["show", "1"],
        ["history"],
        ["score", "a.parquet", "b.parquet"],
        ["verify"],
        ["verify", "--repair"],
        ["promote", "1", "staging"],
        ["doctor"],
    ],
)
def test_who_only_reads_makes_no_store(project: Project, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = project.root / "new" / "mlflow.db"
    new = replace(project, tracking_uri=sqlite_uri(path))
    for place in ("mlops_lib.project.load_project", "mlops_lib.programs.operate.monitor.load_project"):
        monkeypatch.setattr(place, lambda *_, **__: new)
    done = CliRunner().invoke(cli.main, arguments)
    assert not path.parent.exists()
    if arguments == ["doctor"]:
        assert "there is none yet: the first run makes it" in done.output
    else:
        assert done.exit_code in (1, 3)
        assert "There is no MLflow store at" in done.output + done.stderr


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["gates passed\r\x1b[2K", "\x07", "abc\u202edef", "a\x00b", "half \ud800"])
def test_control_characters_are_refused_before_they_are_written(
    project: Project, version: registry.Version, text: str
) -> None:
    before = registry.history(project)
    for attempt in (
        lambda: gates.promote(project, 1, "staging", force=True, reason=text),
        lambda: registry.freeze(project, "prod", reason=text),
        lambda: registry.freeze(replace(project, actor=text), "prod", reason="ok"),
        lambda: registry.register(project, f"models:/{version.model_id}", description=text),
        lambda: gates.promote(project, 1, "staging", force=True, reason="ok", operation=text),
    ):
        with raises(LedgerError, "unseen") as caught:
            attempt()
        assert "\x1b" not in str(caught.value)
    assert registry.history(project) == before


@pytest.mark.usefixtures("version")
def test_control_characters_that_other_hands_wrote_are_shown_escaped(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_lib.project.load_project", lambda file, **_: project)
    evil = "fine\r\x1b[2K\u202e"
    entry = forge(project, action="force", stage="staging", version=1, reason=evil, actor=evil)
    MlflowClient().update_model_version("toy", "1", description=evil)
    shown = CliRunner().invoke(cli.main, ["history"]).output + CliRunner().invoke(cli.main, ["models"]).output
    shown += str(entry) + repr(registry.history(project)) + registry.history(project)._repr_html_()
    assert not {"\r", "\x1b", "\u202e"} & set(shown)
    assert r"fine\r\x1b[2K\u202e" in shown


# --- clocks ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_a_clock_far_ahead_of_the_stores_writes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = registry.history(project)
    monkeypatch.setattr(store, "read_clock", lambda uri: datetime.now(UTC) - timedelta(minutes=11))
    with pytest.raises(LedgerError, match=r"11 minutes ahead of the store's \(10 are allowed\)"):
        registry.freeze(project, "prod", reason="test")
    assert registry.history(project) == before
    monkeypatch.setattr(store, "read_clock", lambda uri: datetime.now(UTC) - timedelta(minutes=9))
    assert registry.freeze(project, "prod", reason="test").number == 1


@pytest.mark.usefixtures("version")
def test_entries_of_the_future_are_told(project: Project) -> None:
    assert not [row for row in registry.check_store(project).rows if row.name == "times"]
    later = datetime.now(UTC) + timedelta(days=2)
    forge(project, action="freeze", stage="prod", version=0, at=later.isoformat(timespec="microseconds"))
    (row,) = [row for row in registry.check_store(project).rows if row.name == "times"]
    assert (row.value, row.status, "a clock was ahead: 1" in row.reason) == (1, "passed", True)


# --- signatures --------------------------------------------------------------------------------------------------


def test_entries_are_signed_and_from_the_first_one_on_all_must_be(
    project: Project, version: registry.Version, tmp_path: Path
) -> None:
    key, other = signing.create_keys(tmp_path / "keys"), signing.create_keys(tmp_path / "other")
    public = (tmp_path / "keys" / signing.PUBLIC_FILE).read_text()
    signed = replace(project, signing_key=key)
    strict = replace(project, trusted_keys=(public,))
    registry.freeze(project, "prod", reason="unsigned, before")
    assert registry.history(strict), "what is before the first signature is covered by its hash"
    registry.unfreeze(signed, "prod", reason="signed")
    assert registry.history(strict)[-1].signature.startswith(signing.KIND)
    with raises(SignatureError, "untrusted"):
        registry.freeze(strict, "prod", reason="without a key")
    registry.freeze(replace(project, signing_key=other), "prod", reason="by a stranger")
    with pytest.raises(LedgerError, match=r"entry 3 was signed with .*, which is no trusted key"):
        registry.history(strict)
    assert len(registry.history(project)) == 4, "who trusts no keys asks for none"


@pytest.mark.usefixtures("version")
def test_a_signature_of_another_entry_or_model_is_none(project: Project, tmp_path: Path) -> None:
    key = signing.create_keys(tmp_path / "keys")
    public = (tmp_path / "keys" / signing.PUBLIC_FILE).read_text()
    signed = replace(project, signing_key=key, trusted_keys=(public,))
    first = registry.freeze(replace(project, signing_key=key), "prod", reason="signed")
    forge(signed, action="unfreeze", stage="prod", version=0, signature=first.signature)
    with pytest.raises(LedgerError, match=r"entry 2 has a signature that belongs to something else"):
        registry.history(signed)


# --- a folder that was moved -------------------------------------------------------------------------------------


def test_a_store_whose_folder_was_moved_works_again(
    project: Project, version: registry.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_to_prod(project, 1)
    here = tmp_path / "old place %20" / "project"
    here.mkdir(parents=True)
    before = replace(project, root=here, tracking_uri=sqlite_uri(here / "mlflow.db"))
    copy_store(project, before)
    shutil.copytree(project.root / "data", here / "data")
    moved_to = tmp_path / "a new place"
    shutil.move(here, moved_to)
    moved = replace(before, root=moved_to, tracking_uri=sqlite_uri(moved_to / "mlflow.db"))
    with raises(StoreError, "moved"), tracking.start_run(moved):
        pass
    monkeypatch.setattr("mlops_lib.programs.operate.monitor.load_project", lambda *_: moved)
    told = str(operate.examine())
    assert "'mlops verify --repair' finds them beside it" in told
    (said,) = registry.repair_store(moved)
    assert "artifacts are looked for in" in said
    assert registry.load_model(moved, "prod").digest == version.digest
    assert registry.check_store(moved, everything=True).passed
    again = register_model(moved)
    assert again.version == 2
    assert standing(moved) == {"dev": 2, "staging": 1, "prod": 1}
    assert registry.repair_store(moved) == ()
