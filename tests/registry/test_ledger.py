"""The ledger is found whatever is edited, belongs to one model for ever, and is compared with what the store says."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import servers
import workers
from conftest import on_postgres, register_model
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from refusals import raises
from stages import aliases, clone, force_to_prod, judge, ledger_of, registrations_of, standing

from mlops_lib import gates, models, registry
from mlops_lib.errors import (
    LedgerError,
    MlopsError,
    NotFoundError,
    RefusedError,
    StoreError,
)
from mlops_lib.project import Project
from mlops_lib.registry import ledger
from mlops_lib.registry.rules import Ledger
from mlops_lib.report import Report
from mlops_lib.tracking import store


def claim_of(project: Project) -> Any:
    model = MlflowClient().get_registered_model(project.name)
    return MlflowClient().get_experiment_by_name(f"{project.name}.ledger.{model.creation_timestamp}")


def failed(report: Report) -> list[str]:
    return [row.name for row in report.failures]


# --- finding it --------------------------------------------------------------------------------------------------


def lose_nothing(project: Project) -> None:
    pass


def lose_the_claim(project: Project) -> None:
    MlflowClient().delete_experiment(claim_of(project).experiment_id)


def lose_the_tags_of_the_model(project: Project) -> None:
    model = MlflowClient().get_registered_model(project.name)
    for tag in model.tags:
        MlflowClient().delete_registered_model_tag(project.name, tag)
    MlflowClient().set_registered_model_tag(project.name, ledger.LEDGER_TAG, "0" * 32)


def lose_the_note_of_the_head(project: Project) -> None:
    MlflowClient().delete_tag(ledger_of(project), ledger.HEAD_TAG)


def rename_the_run(project: Project) -> None:
    MlflowClient().update_run(ledger_of(project), status="FAILED", name="nicer")


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    "edit",
    [
        lose_nothing,
        lose_the_claim,
        lose_the_tags_of_the_model,
        lose_the_note_of_the_head,
        rename_the_run,
    ],
)
def test_nothing_that_is_edited_in_mlflows_pages_loses_the_ledger(
    project: Project, edit: Callable[[Project], None]
) -> None:
    force_to_prod(project, 1)
    before = registry.read_ledger(project)
    edit(project)
    assert registry.history(project) == before
    clone(project, 1)
    assert standing(project) == {"dev": 2, "staging": 1, "prod": 1} == aliases(project)
    assert registry.check_store(project).passed


@pytest.mark.usefixtures("version")
def test_a_forged_run_is_never_looked_at(project: Project) -> None:
    """Found by its id: copies with the same entries, however many and however new, are no ledger."""
    force_to_prod(project, 1)
    before, client = registry.read_ledger(project), store.connect(project.tracking_uri)
    for true in map(client.get_run, (ledger_of(project), registrations_of(project))):
        for _ in range(101):  # more than a page of MLflow's search
            client.create_run(true.info.experiment_id, start_time=2**41)
        false = client.create_run(true.info.experiment_id, start_time=2**41, tags=true.data.tags).info.run_id
        for key, text in true.data.params.items():
            client.log_param(false, key, text.replace("ada", "eve"))
    assert registry.read_ledger(project) == before
    assert registry.check_store(project).passed


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("ids", ["{registrations} {forged}", "{forged} {moves}", "{moves} {registrations}"])
def test_a_claim_that_names_another_run_is_an_error_and_no_choice(project: Project, ids: str) -> None:
    force_to_prod(project, 1)
    client, runs = MlflowClient(), {"moves": ledger_of(project), "registrations": registrations_of(project)}
    forged = client.create_run(client.get_run(runs["moves"]).info.experiment_id).info.run_id
    claim = ids.format(**runs, forged=forged)
    client.set_experiment_tag(claim_of(project).experiment_id, ledger.LEDGER_TAG, claim)
    with pytest.raises(LedgerError, match=r"entry r?1 belongs in run '.*', which is gone or another model's"):
        registry.load_model(project, "prod")
    assert not registry.check_store(project).passed


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("claim", ["0" * 32, "", "a b c"])
def test_a_ledger_of_one_run_is_refused_with_what_to_do_and_left_as_it_is(project: Project, claim: str) -> None:
    """That is how an earlier version of this library wrote one."""
    client = MlflowClient()
    client.set_experiment_tag(claim_of(project).experiment_id, ledger.LEDGER_TAG, claim)
    for ask in (registry.history, registry.read_ledger, registry.list_versions):
        with raises(LedgerError, "old"):
            ask(project)
    with raises(LedgerError, "old"):
        registry.register(project, f"models:/{client.get_model_version('toy', '1').source.removeprefix('models:/')}")
    assert [found.version for found in client.search_model_versions("name = 'toy'")] == [1]
    assert claim_of(project).tags[ledger.LEDGER_TAG] == claim


@pytest.mark.usefixtures("version")
def test_a_deleted_ledger_is_told_and_restored(project: Project) -> None:
    client, run_id, before = MlflowClient(), ledger_of(project), registry.read_ledger(project)
    experiment_id = client.get_run(run_id).info.experiment_id
    for delete, restore in (
        (lambda: client.delete_run(run_id), lambda: client.restore_run(run_id)),
        (lambda: client.delete_experiment(experiment_id), lambda: client.restore_experiment(experiment_id)),
    ):
        delete()
        with pytest.raises(LedgerError, match=rf"is in a deleted run \('mlflow runs restore --run-id {run_id}'"):
            registry.history(project)
        restore()
        assert registry.history(project) == before


@pytest.mark.usefixtures("version")
def test_a_ledger_run_that_is_gone_for_good_is_no_empty_ledger(project: Project) -> None:
    run_id = ledger_of(project)
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        for table in ("params", "tags", "metrics", "latest_metrics", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (run_id,))
    with pytest.raises(LedgerError, match=rf"belongs in run '{run_id}', which is gone or another model's"):
        registry.history(project)


@pytest.mark.usefixtures("version")
def test_a_head_that_is_none_is_told(project: Project) -> None:
    MlflowClient().set_tag(ledger_of(project), ledger.HEAD_TAG, "the last one")
    with pytest.raises(LedgerError, match=r"cannot be compared with the head 'the last one'"):
        registry.history(project)


# --- two at once -------------------------------------------------------------------------------------------------


def test_adopters_of_a_model_that_a_stock_tool_registered_end_with_one_ledger(
    project: Project, version: registry.Version
) -> None:
    client = store.connect(project.tracking_uri)
    client.create_registered_model("stock", tags={"made": "by hand"})
    client.create_model_version("stock", f"models:/{version.model_id}", version.run_id)
    stock = replace(project, name="stock")
    assert registry.read_ledger(stock) == ()
    found = workers.run_at_once(workers.register, [(stock, f"models:/{version.model_id}")] * 6)
    assert sorted(found) == [2, 3, 4, 5, 6, 7]  # type: ignore[type-var]
    assert sorted(entry.version for entry in registry.history(stock)) == [2, 3, 4, 5, 6, 7]
    report = registry.check_store(stock)
    assert report.passed
    (unknown,) = [row for row in report.rows if row.name == "version 1"]
    assert (unknown.status, "registered by another tool" in unknown.reason) == ("not_applicable", True)


def test_of_two_that_found_a_ledger_the_later_one_gives_way(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race of the test above with its worst timing: overtaken when its own run is ready to be agreed upon."""
    stock, create = replace(project, name="stock"), MlflowClient.create_experiment

    def late(client: MlflowClient, name: str, **options: Any) -> str:
        if name.startswith("stock.ledger."):
            monkeypatch.setattr(MlflowClient, "create_experiment", create)
            registry.register(replace(stock, actor="bob"), f"models:/{version.model_id}")
        return create(client, name, **options)

    monkeypatch.setattr(MlflowClient, "create_experiment", late)
    registry.register(stock, f"models:/{version.model_id}")
    assert [(e.version, e.actor) for e in registry.history(stock)] == [(1, "bob"), (2, "ada")]


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("method", ["set_registered_model_alias", "set_tag"])
def test_an_alias_or_tag_that_another_process_makes_at_the_same_moment_is_set_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """SQLite and PostgreSQL then say "UNIQUE constraint failed" to one of two that merge a row that was not there."""
    call, n_calls = getattr(MlflowClient, method), list[int]()

    def collide(client: MlflowClient, *arguments: str) -> None:
        n_calls.append(1)
        if len(n_calls) == 1:
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed")
        call(client, *arguments)

    monkeypatch.setattr(MlflowClient, method, collide)
    gates.promote(project, 1, "staging", force=True, reason="test")
    assert len(n_calls) == 2
    assert registry.check_store(project).passed


# --- a name is no identity ---------------------------------------------------------------------------------------


def make_again(project: Project, version: registry.Version) -> None:
    """Delete the model and make it again from the same files, as stock tools do."""
    client = store.connect(project.tracking_uri)
    client.delete_registered_model("toy")
    client.create_registered_model("toy")
    tags = {"mlops.digest": version.digest}
    client.create_model_version("toy", f"models:/{version.model_id}", version.run_id, tags=tags)


def copy_nothing(project: Project, run_id: str) -> None:
    pass


def copy_the_tag(project: Project, run_id: str) -> None:
    MlflowClient().set_registered_model_tag("toy", ledger.LEDGER_TAG, run_id)


def copy_the_alias(project: Project, run_id: str) -> None:
    MlflowClient().set_registered_model_alias("toy", "prod", "1")


def copy_the_entries(project: Project, run_id: str) -> None:
    """Copy the whole ledger into runs that say they belong to the new model."""
    client, model = MlflowClient(), MlflowClient().get_registered_model("toy")
    genesis, made = Ledger.begin("toy", model.creation_timestamp), []
    for old, chain in zip(map(client.get_run, run_id.split()), (genesis.registrations, genesis.moves), strict=True):
        new = client.create_run(old.info.experiment_id, tags=old.data.tags).info.run_id
        for key, text in old.data.params.items():
            client.log_param(new, key, chain.genesis if key == "000000" else text)
        made.append(new)
    claim_the_old_run(project, " ".join(made))


def claim_the_old_run(project: Project, run_id: str) -> None:
    model = MlflowClient().get_registered_model("toy")
    name = f"toy.ledger.{model.creation_timestamp}"
    MlflowClient().create_experiment(name, tags={ledger.LEDGER_TAG: run_id})


@pytest.mark.parametrize(
    ("copy", "error"),
    [
        (copy_nothing, (NotFoundError, "version_in_stage")),
        (copy_the_tag, (NotFoundError, "version_in_stage")),
        (copy_the_alias, (NotFoundError, "version_in_stage")),
        (copy_the_entries, (LedgerError, "broken")),
        (claim_the_old_run, (LedgerError, "broken")),
    ],
)
def test_a_model_made_again_under_the_same_name_inherits_no_right(
    project: Project,
    version: registry.Version,
    copy: Callable[[Project, str], None],
    error: tuple[type[MlopsError], str],
    record: Callable[..., None],
) -> None:
    force_to_prod(project, 1)
    run_id = ledger_of(project)
    both = f"{registrations_of(project)} {run_id}"
    make_again(project, version)
    copy(project, both)
    with raises(*error):
        registry.load_model(project, "prod")
    with pytest.raises((RefusedError, LedgerError), match=r"never been in dev|ledger of 'toy'"):
        gates.promote(project, 1, "staging", force=True, reason="it was there before")
    assert MlflowClient().get_run(run_id).info.lifecycle_stage == "active"
    record(19, ours="a stage's version is not deleted; a model made again under its name has none of its rights")


def test_the_same_bytes_registered_again_begin_in_dev(project: Project, version: registry.Version) -> None:
    judge(project, 1)
    for stage in ("staging", "prod"):
        gates.promote(project, 1, stage)
    store.connect(project.tracking_uri).delete_registered_model("toy")
    again = registry.register(project, f"models:/{version.model_id}")
    assert (again.version, again.digest) == (1, version.digest)
    assert standing(project) == {"dev": 1, "staging": None, "prod": None}
    with pytest.raises(RefusedError, match=r"there is no verdict on it"):
        gates.promote(project, 1, "staging")
    assert len(registry.history(project)) == 1


def test_a_model_made_again_during_a_move_does_not_get_it(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_param = MlflowClient.log_param

    def late(client: MlflowClient, run_id: str, key: str, value: str) -> object:
        monkeypatch.undo()
        make_again(project, version)
        return log_param(client, run_id, key, value)

    monkeypatch.setattr(MlflowClient, "log_param", late)
    with pytest.raises(RefusedError, match=r"the model was deleted and made again"):
        gates.promote(project, 1, "staging", force=True, reason="test")
    assert aliases(project) == {}
    assert registry.history(project) == ()


def test_a_model_made_again_during_a_registration_does_not_get_it(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_model_version

    def late(client: MlflowClient, *arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = create(client, *arguments, **options)
        make_again(project, version)
        return made

    monkeypatch.setattr(MlflowClient, "create_model_version", late)
    with pytest.raises(RefusedError, match=r"the model was deleted and made again"):
        registry.register(project, f"models:/{version.model_id}")
    assert registry.history(project) == ()


def test_plain_mlflow_lets_the_version_in_prod_go_and_gives_its_name_away(
    project: Project, version: registry.Version, record: Callable[..., None]
) -> None:
    """The negative control of the tests above."""
    client = store.connect(project.tracking_uri)
    client.set_registered_model_alias("toy", "prod", "1")
    client.delete_model_version("toy", "1")
    assert aliases(project) == {}
    make_again(project, version)
    assert int(client.get_model_version("toy", "1").version) == 1
    record(19, plain="the alias vanishes without a word; the new model has a version 1 again")


# --- against the store -------------------------------------------------------------------------------------------


def move_alias(project: Project) -> None:
    MlflowClient().set_registered_model_alias("toy", "prod", "2")


def drop_alias(project: Project) -> None:
    MlflowClient().delete_registered_model_alias("toy", "staging")


def note_an_older_head(project: Project) -> None:
    entries = {entry.label: entry for entry in registry.read_ledger(project)}
    MlflowClient().set_tag(ledger_of(project), ledger.HEAD_TAG, f"1:{entries['1'].hash}")


def delete_in_the_store(project: Project) -> None:
    MlflowClient().delete_model_version("toy", "2")


def change_the_digest(project: Project) -> None:
    MlflowClient().set_model_version_tag("toy", "2", models.DIGEST_TAG, "0" * 64)


def point_elsewhere(project: Project) -> None:
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        database.execute("update model_versions set source = 'models:/m-other' where version = 2")


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize(
    ("spoil", "names", "is_repaired"),
    [
        (move_alias, ["alias prod"], True),
        (drop_alias, ["alias staging"], True),
        (note_an_older_head, ["head"], True),
        (delete_in_the_store, ["version 2"], False),
        (change_the_digest, ["version 2"], False),
        (point_elsewhere, ["version 2"], False),
    ],
)
def test_what_happened_behind_the_ledgers_back_is_told(
    project: Project, spoil: Callable[[Project], None], names: list[str], is_repaired: bool
) -> None:
    force_to_prod(project, 1)
    clone(project, 2)
    assert registry.check_store(project).passed
    spoil(project)
    assert failed(registry.check_store(project)) == names
    with contextlib.suppress(LedgerError):
        registry.history(project)
    assert registry.check_store(project).passed is is_repaired


@pytest.mark.usefixtures("version")
def test_an_alias_for_a_stage_that_is_empty_is_told_and_left_alone(project: Project) -> None:
    MlflowClient().set_registered_model_alias("toy", "prod", "1")
    assert registry.repair_store(project) == ()
    assert failed(registry.check_store(project)) == ["alias prod"]


@pytest.mark.usefixtures("version")
def test_repair_says_what_was_not_so(project: Project) -> None:
    force_to_prod(project, 1)
    drop_alias(project)
    assert registry.repair_store(project) == ("staging follows the ledger again",)
    assert registry.repair_store(project) == ()


@pytest.mark.usefixtures("version")
def test_a_version_of_prod_that_was_deleted_behind_our_back_stops_nothing_else(project: Project) -> None:
    force_to_prod(project, 1)
    clone(project, 1)
    MlflowClient().delete_model_version("toy", "1")
    gates.promote(project, 2, "staging", force=True, reason="next")
    assert aliases(project) == {"dev": 2, "staging": 2}
    assert failed(registry.check_store(project)) == [
        "alias prod",
        "version 1",
        "version 1",
    ]  # by the ledger, and its files


def test_nothing_registered_is_nothing_wrong(project: Project) -> None:
    assert registry.check_store(project).passed
    assert registry.repair_store(project) == ()
    assert ledger_of(project) == ""


# --- many versions -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("version")
def test_versions_are_listed_over_several_pages(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    clone(project, 4)
    monkeypatch.setattr("mlflow.tracking._model_registry.fluent.SEARCH_MODEL_VERSION_MAX_RESULTS_DEFAULT", 2)
    assert [v.version for v in registry.list_versions(project)] == [5, 4, 3, 2, 1]


# --- a store that goes away --------------------------------------------------------------------------------------


def lose_the_store_at(monkeypatch: pytest.MonkeyPatch, method: str, lose: Callable[[], object]) -> None:
    """Let the store go away just before a call of MLflow's client."""
    call = getattr(MlflowClient, method)

    def late(client: MlflowClient, *arguments: Any, **options: Any) -> Any:
        lose()
        return call(client, *arguments, **options)

    monkeypatch.setattr(MlflowClient, method, late)


@pytest.mark.usefixtures("version")
@pytest.mark.parametrize("method", ["get_registered_model", "get_run", "log_param", "set_registered_model_alias"])
def test_a_store_that_fails_in_the_middle_is_told_in_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def lose() -> None:
        with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database:
            for table in ("runs", "registered_model_aliases"):
                database.execute(f"drop table if exists {table}")

    lose_the_store_at(monkeypatch, method, lose)
    with pytest.raises(StoreError, match=r"failed in the middle \(.*no such table") as caught:
        gates.promote(project, 1, "staging", force=True, reason="test")
    assert "\n" not in str(caught.value)


def test_a_postgresql_store_that_goes_away_in_the_middle_is_told_and_the_move_is_found_again(
    project: Project,
    postgres: servers.Postgres,
    postgres_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = on_postgres(project, postgres_uri)
    register_model(team)
    name = postgres_uri.partition("@/")[2].partition("?")[0]

    def lose() -> None:
        postgres.execute(f'alter database "{name}" allow_connections false')
        postgres.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")

    lose_the_store_at(monkeypatch, "set_registered_model_alias", lose)
    with pytest.raises(StoreError, match=r"failed in the middle"):
        gates.promote(team, 1, "staging", force=True, reason="test", operation="deploy-1")
    monkeypatch.undo()
    postgres.execute(f'alter database "{name}" allow_connections true')
    again = gates.promote(team, 1, "staging", force=True, reason="test", operation="deploy-1")
    assert [entry.operation for entry in registry.history(team)[1:]] == ["deploy-1"] == [again.operation]
    assert aliases(team) == {"dev": 1, "staging": 1}
    assert registry.check_store(team).passed
