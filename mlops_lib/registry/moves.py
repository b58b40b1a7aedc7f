"""Moves between stages: promote, roll back, freeze, approve, delete. Each is one entry of the ledger, or nothing.

Legal moves go one stage on (or further, where the project says ``may_skip_stages``); a stage goes back only by a
rollback to a version that it had. The names of actors are what ``Project.actor`` says: on a store without
authentication a second person is a matter of trust, and of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mlops_lib.errors import RefusedError
from mlops_lib.project import Project
from mlops_lib.registry import rules
from mlops_lib.registry.entries import Entry
from mlops_lib.registry.ledger import append, follow, open_ledger, raise_for_words
from mlops_lib.registry.rules import Ledger, Rules
from mlops_lib.registry.verdicts import read_count, read_verdict, verdict_digest, why_not
from mlops_lib.registry.versions import find, load_model, verify_files
from mlops_lib.report import Report
from mlops_lib.tracking import store


@store.translate_errors
def move_up(
    project: Project,
    version: int,
    stage: str,
    *,
    check: Callable[[Report], str | None] | None,
    verdict: Report | None = None,
    reason: str = "",
    operation: str | None = None,
) -> Entry:
    """Make the move of ``gates.promote``, which is what people and programs call.

    Parameters
    ----------
    check : function of Report to str, or None
        Asks again what the verdict says, loading and verifying the version's files; returns why it does not hold. None
        forces.
    version, stage, verdict, reason, operation
        As for ``gates.promote``.

    Raises
    ------
    RefusedError, ModelFileError, NotFoundError, LedgerError
        The stage still has the version it had.
    """
    project.raise_for_stage(stage)
    raise_for_words(project, reason, operation)
    client, ledger = open_ledger(project)
    model_version = find(project, client, ledger, version)
    state, number = ledger.state, int(model_version.version)
    current, n_verdicts = state.current(stage), read_count(model_version)
    draft = Entry(
        action="promote" if check else "force",
        stage=stage,
        from_version=current,
        reason=reason or f"gates passed{f', on verdict {n_verdicts} of this version' if n_verdicts > 1 else ''}",
        operation=operation or "",
        actor=project.actor,
        **state.files(number),
    )
    repeated = ledger.find_operation(operation)
    if repeated is not None and repeated.repeats(draft):
        follow(client, ledger)
        return repeated
    why = rules.why_no_way(state, Rules.of(project), number, stage)
    if repeated is not None:
        why = f"its operation id '{operation}' is that of another move ({repeated})"
    elif check is None and not reason.strip():
        why = why or "forcing takes a reason"
    if not why:
        status = client.get_run(str(model_version.run_id)).info.status
        why = None if status == "FINISHED" else f"its run is {status}, not FINISHED"
    if not why:
        verdict = verdict or read_verdict(client, model_version)
        draft = replace(draft, verdict=verdict_digest(verdict))
        if check is None:
            verify_files(project, model_version, ledger)
        else:
            why = why_not(project, draft, verdict, state.standing)
        why = why or rules.why_not_approved(state, Rules.of(project), draft)
    if not why and check and verdict:
        why = check(verdict)
    if why:
        raise RefusedError("promotion", name=project.name, version=number, stage=stage, reason=why, current=current)
    return append(project, client, ledger, draft)


@store.translate_errors
def rollback(
    project: Project, stage: str, *, to: int | None = None, reason: str, operation: str | None = None
) -> Entry:
    """Move a stage back to the version it had before (or to version ``to``, which it must have had).

    The version is verified and loaded before the move counts; gates are not asked again. The same ``operation`` again
    returns the entry that it made.

    Raises
    ------
    RefusedError, ModelFileError, NotFoundError, LedgerError
        The stage still has the version it had.
    """
    project.raise_for_stage(stage)
    raise_for_words(project, reason, operation)
    client, ledger = open_ledger(project)
    state = ledger.state
    current, repeated = state.current(stage), ledger.find_operation(operation)
    is_same = repeated is not None and (repeated.action, repeated.stage) == ("rollback", stage)
    if repeated is not None and is_same and to in (None, repeated.version):
        follow(client, ledger)
        return repeated
    why = rules.why_no_rollback(state, stage, to)
    if repeated is not None:
        why = f"its operation id '{operation}' is that of another move ({repeated})"
    if why:
        raise RefusedError("rollback", name=project.name, stage=stage, reason=why, current=current)
    target = state.left(stage)[to] if to is not None else state.undo(stage)[-1]
    load_model(project, target.version)
    draft = Entry(
        action="rollback",
        stage=stage,
        from_version=current,
        verdict=target.verdict,
        reason=reason,
        operation=operation or "",
        **target.files,
    )
    return append(project, client, ledger, draft)


def freeze(project: Project, stage: str, *, reason: str) -> Entry:
    """Keep a stage as it is: until it is unfrozen it refuses promote, force and rollback.

    Raises
    ------
    RefusedError
        For a stage that is frozen, and for the first one, where versions are registered.
    LedgerError
    """
    return _set_frozen(project, "freeze", stage, reason)


def unfreeze(project: Project, stage: str, *, reason: str) -> Entry:
    """Let a frozen stage move again.

    Raises
    ------
    RefusedError
        For a stage that is not frozen.
    LedgerError
    """
    return _set_frozen(project, "unfreeze", stage, reason)


@store.translate_errors
def _set_frozen(project: Project, action: str, stage: str, reason: str) -> Entry:
    project.raise_for_stage(stage)
    raise_for_words(project, reason)

    def decide(ledger: Ledger) -> Entry:
        entry = ledger.state.standing.get(stage)
        draft = Entry(action=action, stage=stage, reason=reason, **(entry.files if entry else {"version": 0}))
        if why := rules.why_no_freeze(ledger.state, Rules.of(project), draft):
            raise RefusedError("freeze", name=project.name, stage=stage, action=action, reason=why)
        return draft

    return append(project, *open_ledger(project), decide)


@store.translate_errors
def approve(project: Project, version: int, stage: str, *, reason: str) -> Entry:
    """Agree, as a second person, that a version is promoted to a stage which the project names in ``approvals``.

    It holds for exactly these model files and the verdict that is logged for them now, for one promotion, by somebody
    else than the one who approves.

    Raises
    ------
    RefusedError
        For the author of the version (its run's user or who registered it), and where no approval is needed.
    NotFoundError, LedgerError
    """
    project.raise_for_stage(stage)
    raise_for_words(project, reason)
    client, latest = open_ledger(project)

    def decide(ledger: Ledger) -> Entry:
        model_version = find(project, client, ledger, version)
        number = int(model_version.version)
        draft = Entry(action="approve", stage=stage, reason=reason, actor=project.actor, **ledger.state.files(number))
        tags = client.get_run(str(model_version.run_id)).data.tags
        authors = (tags.get("mlops.actor"), tags.get("mlflow.user"))
        if why := rules.why_no_approval(ledger.state, Rules.of(project), draft, authors):
            raise RefusedError("approval", name=project.name, version=number, stage=stage, reason=why)
        return replace(draft, verdict=verdict_digest(read_verdict(client, model_version)))

    return append(project, client, latest, decide)


@store.translate_errors
def delete_version(project: Project, version: int, *, reason: str) -> Entry:
    """Delete a version that no stage has and no rollback could need; its entries stay.

    A rollback could need what each stage can go back through. Of the first stage, where every version begins, only
    the present version counts: a rollback there passes over what was deleted.

    Raises
    ------
    RefusedError, NotFoundError, LedgerError
        The version is still there.
    """
    raise_for_words(project, reason)
    client, latest = open_ledger(project)

    def decide(ledger: Ledger) -> Entry:
        number = int(find(project, client, ledger, version).version)
        why = rules.why_no_deletion(ledger.state, Rules.of(project), number) if reason.strip() else "it takes a reason"
        if why:
            raise RefusedError("deletion", name=project.name, version=number, reason=why)
        return Entry(action="delete", stage="", reason=reason, **ledger.state.files(number))

    return append(project, client, latest, decide)
