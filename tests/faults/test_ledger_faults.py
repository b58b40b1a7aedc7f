"""A command dies after any of its writes: the ledger decides, the next look completes the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import workers
from conftest import close_databases, copy_store, make_project
from crashes import Died, dying_after, kill_self, raise_died
from stages import aliases, clone, force_to_prod, standing

from mlops_lib import gates, registry
from mlops_lib.errors import NotFoundError, RefusedError
from mlops_lib.project import Project
from mlops_lib.tracking import store

# --- what is interrupted -----------------------------------------------------------------------------------------


def promote(project: Project) -> object:
    return gates.promote(project, 2, "staging", force=True, reason="test", operation="one")


def rollback(project: Project) -> object:
    return registry.rollback(project, "dev", reason="test")


def register(project: Project) -> object:
    return registry.register(project, f"models:/{registry.get_version(project, 2).model_id}")


def register_first(project: Project) -> object:
    model_id = registry.get_version(project, 1).model_id
    return registry.register(replace(project, name="other"), f"models:/{model_id}")


def freeze(project: Project) -> object:
    return registry.freeze(project, "prod", reason="test")


def approve(project: Project) -> object:
    return registry.approve(replace(project, actor="bob", approvals=("prod",)), 1, "prod", reason="test")


def delete(project: Project) -> object:
    return registry.delete_version(project, 2, reason="test")


REFUSALS = (None, "freeze", "rollback", "version")
OPERATIONS = (promote, rollback, register, register_first, freeze, approve, delete)
N_WRITES = {promote: 3, rollback: 3, register: 4, register_first: 14, freeze: 2, approve: 2, delete: 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, migrated_store: object, registered: Project) -> Project:
    """Version 1 is in every stage; 2 has been in dev, where 3 is now. Made once, and left as it is."""
    made = make_project(tmp_path_factory.mktemp("prepared"), migrated_store)  # type: ignore[arg-type]
    copy_store(registered, made)
    force_to_prod(made, 1)
    clone(made, 2)
    return made


@pytest.fixture
def fresh(project: Project, prepared: Project) -> Callable[[], Project]:
    """Return what gives the project its store back as it was prepared."""

    def renew() -> Project:
        close_databases()
        copy_store(prepared, project)
        store.connect(project.tracking_uri)
        return project

    return renew


def raise_unless_sound(project: Project, before: tuple[registry.Entry, ...]) -> None:
    """Check what a crash must leave: at most one entry more, and after a look everything as the ledger says."""
    entries = registry.history(project)
    assert entries[: len(before)] == before
    assert len(entries) <= len(before) + 1
    assert aliases(project) == {stage: number for stage, number in standing(project).items() if number}
    report = registry.check_store(project)
    assert report.passed, str(report)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_that_dies_after_any_write_leaves_what_the_ledger_says(
    fresh: Callable[[], Project], operation: Callable[[Project], object], record: Callable[..., None]
) -> None:
    for n_writes in range(1, 30):
        project = fresh()
        before = registry.history(project)
        try:
            with dying_after(n_writes, raise_died):
                operation(project)
        except Died:
            pass
        else:
            break
        raise_unless_sound(project, before)
        if operation is register_first:
            raise_unless_first_works(project)
        refusal = None
        try:
            operation(project)  # what was not made is made now
        except (RefusedError, NotFoundError) as error:
            refusal = error.case
        assert refusal in REFUSALS, "what was made already is refused"
        raise_unless_done(operation, project)
    assert n_writes == N_WRITES[operation] + 1, "as many writes as this operation has"
    record(5, ours="the ledger decides, aliases follow with the next command, and the check of the ledger passes")


def raise_unless_first_works(project: Project) -> None:
    """Nothing of a first registration that died stands in the way of the next."""
    other = replace(project, name="other")
    assert len(registry.history(other)) <= 1
    assert registry.check_store(other).passed


def raise_unless_done(operation: Callable[[Project], object], project: Project) -> None:
    """Check that the operation has been made, whether before the crash or by its repetition."""
    last = registry.history(project if operation is not register_first else replace(project, name="other"))[-1]
    assert last.action == {"promote": "force", "register_first": "register"}.get(operation.__name__, operation.__name__)
    assert registry.check_store(project).passed


# --- killed for real ---------------------------------------------------------------------------------------------


def be_killed(project: Project, name: str, n_writes: int) -> None:
    """Run in another process."""
    with dying_after(n_writes, kill_self):
        {operation.__name__: operation for operation in OPERATIONS}[name](project)


@pytest.mark.parametrize("n_writes", [1, 2])
@pytest.mark.parametrize("name", ["promote", "delete", "register_first"])
def test_a_process_that_is_killed_between_its_writes_leaves_what_the_ledger_says(
    fresh: Callable[[], Project], name: str, n_writes: int
) -> None:
    project = fresh()
    before = registry.history(project)
    process = workers.start(be_killed, project, name, n_writes)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    raise_unless_sound(project, before)


# --- plain MLflow ------------------------------------------------------------------------------------------------


def test_plain_aliases_know_nothing_of_a_move_that_died(project: Project, record: Callable[..., None]) -> None:
    """The negative control: a promotion as tutorials show it, dying between its two steps."""
    client = store.connect(project.tracking_uri)
    client.create_registered_model("plain")
    for _ in range(2):
        client.create_model_version("plain", "file:///nowhere")
    client.set_registered_model_alias("plain", "champion", "1")
    with suppress(Died), dying_after(1, raise_died):
        client.set_registered_model_alias("plain", "challenger", "1")
        client.set_registered_model_alias("plain", "champion", "2")
    assert aliases(replace(project, name="plain")) == {"champion": 1, "challenger": 1}
    record(5, plain="half of the aliases are moved and nothing tells that the other half was meant")
