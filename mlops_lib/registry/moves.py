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
from mlops_lib.registry.entries import Entry, Ledger
from mlops_lib.registry.ledger import append, follow, open_ledger, raise_for_length
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
    raise_for_length(project, reason, operation)
    client, ledger = open_ledger(project)
    model_version = find(project, client, ledger, version)
    number, current = int(model_version.version), ledger.current(stage)
    n_verdicts = read_count(model_version)
    draft = Entry(
        action="promote" if check else "force",
        stage=stage,
        from_version=current,
        reason=reason or f"gates passed{f', on verdict {n_verdicts} of this version' if n_verdicts > 1 else ''}",
        operation=operation or "",
        **ledger.files(number),
    )
    repeated = next((entry for entry in ledger.entries if entry.operation == operation), None)
    if repeated is not None and repeated.repeats(draft):
        follow(client, ledger)
        return repeated
    why = _why_no_way(project, ledger, number, stage)
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
            why = why_not(project, draft, verdict, ledger.standing)
        why = why or _why_not_approved(project, ledger, draft)
    if not why and check and verdict:
        why = check(verdict)
    if why:
        raise RefusedError("promotion", name=project.name, version=number, stage=stage, reason=why, current=current)
    return append(project, client, ledger, draft)


def _why_no_way(project: Project, ledger: Ledger, number: int, stage: str) -> str | None:
    """Return why a version may not go to ``stage`` from where it stands, or None."""
    index, first = project.stages.index(stage), project.stages[0]
    origin = first if project.may_skip_stages else project.stages[index - 1]
    beyond = [s for s in project.stages[index + 1 :] if ledger.current(s) == number]
    if stage in ledger.frozen:
        return _describe_freeze(ledger.frozen[stage])
    if index == 0:
        return f"'{stage}' is where versions are registered; nothing is promoted to it"
    if ledger.current(stage) == number:
        return "it is there already"
    if beyond:
        return f"it is in {beyond[0]} already; a stage goes back only by a rollback"
    if all(entry.version != number for entry in ledger.moves(origin)):
        return f"it has never been in {origin}"
    is_there = origin == first or ledger.current(origin) == number
    return None if is_there else f"{origin} has version {ledger.current(origin)} by now"


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
    raise_for_length(project, reason, operation)
    client, ledger = open_ledger(project)
    current = ledger.current(stage)
    repeated = next((entry for entry in ledger.entries if entry.operation == operation), None)
    is_same = repeated is not None and (repeated.action, repeated.stage) == ("rollback", stage)
    if repeated is not None and is_same and to in (None, repeated.version):
        follow(client, ledger)
        return repeated
    gone = {current, *ledger.deleted}
    earlier = [entry for entry in ledger.undo(stage) if entry.version not in gone]
    had = {entry.version: entry for entry in ledger.moves(stage) if entry.version not in gone}
    known = ", ".join(str(number) for number in sorted(had))
    why = None
    if repeated is not None:
        why = f"its operation id '{operation}' is that of another move ({repeated})"
    elif stage in ledger.frozen:
        why = _describe_freeze(ledger.frozen[stage])
    elif not had:
        why = "it has never had another version"
    elif to is not None and to not in had:
        why = f"it never had version {to}; it had {known}"
    elif to is None and not earlier:
        why = f"that is the oldest it had; name one of {known} (--to)"
    if why:
        raise RefusedError("rollback", name=project.name, stage=stage, reason=why, current=current)
    target = had[to] if to is not None else earlier[-1]
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
    raise_for_length(project, reason)

    def decide(ledger: Ledger) -> Entry:
        freeze, why = ledger.frozen.get(stage), None
        if not reason.strip():
            why = "it takes a reason"
        elif stage == project.stages[0]:
            why = "versions are registered there, and nothing is promoted to it"
        elif action == "freeze" and freeze is not None:
            why = _describe_freeze(freeze)
        elif action == "unfreeze" and freeze is None:
            why = "it is not frozen"
        elif not ledger.entries:
            why = "nothing is registered yet"
        if why:
            raise RefusedError("freeze", name=project.name, stage=stage, action=action, reason=why)
        entry = ledger.standing.get(stage)
        return Entry(action=action, stage=stage, reason=reason, **(entry.files if entry else {"version": 0}))

    return append(project, *open_ledger(project), decide)


def _describe_freeze(entry: Entry) -> str:
    return f"{entry.stage} is frozen by {entry.actor} since {entry.at}: {entry.reason}"


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
    raise_for_length(project, reason)
    client, latest = open_ledger(project)

    def decide(ledger: Ledger) -> Entry:
        model_version = find(project, client, ledger, version)
        number = int(model_version.version)
        registration, why = ledger.registration(number), None
        if not reason.strip():
            why = "it takes a reason"
        elif stage not in project.approvals:
            why = f"{stage} needs no second person (approvals = {project.approvals})"
        elif registration is None:
            why = "it is not in the ledger"
        else:
            tags = client.get_run(str(model_version.run_id)).data.tags
            if project.actor in {registration.actor, tags.get("mlops.actor"), tags.get("mlflow.user")}:
                why = f"{project.actor} is its author"
        if why:
            raise RefusedError("approval", name=project.name, version=number, stage=stage, reason=why)
        digest = verdict_digest(read_verdict(client, model_version))
        return Entry(action="approve", stage=stage, reason=reason, verdict=digest, **ledger.files(number))

    return append(project, client, latest, decide)


def _why_not_approved(project: Project, ledger: Ledger, draft: Entry) -> str | None:
    """Return why a promotion lacks the second person that its stage needs, or None."""
    if draft.stage not in project.approvals:
        return None
    about = [entry for entry in ledger.entries if (entry.stage, entry.version) == (draft.stage, draft.version)]
    used = max((entry.number for entry in about if entry.action in ("promote", "force")), default=0)
    left = [entry for entry in about if entry.action == "approve" and entry.number > used]
    if not left:
        return f"{draft.stage} needs the approval of a second person ('mlops approve {draft.version} {draft.stage}')"
    left = [entry for entry in left if (entry.digest, entry.verdict) == (draft.digest, draft.verdict)]
    if not left:
        return "it was approved on another verdict than this one"
    if all(entry.actor == project.actor for entry in left):
        return f"{project.actor} approved it, so somebody else promotes it"
    return None


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
    raise_for_length(project, reason)
    client, latest = open_ledger(project)

    def decide(ledger: Ledger) -> Entry:
        number = int(find(project, client, ledger, version).version)
        holders = [stage for stage, entry in ledger.standing.items() if entry.version == number]
        needers = [s for s in project.stages[1:] if any(entry.version == number for entry in ledger.undo(s))]
        why = None
        if not reason.strip():
            why = "it takes a reason"
        elif holders:
            why = f"{holders[0]} has it"
        elif needers:
            why = f"{needers[0]} had it and could be rolled back to it"
        if why:
            raise RefusedError("deletion", name=project.name, version=number, reason=why)
        return Entry(action="delete", stage="", reason=reason, **ledger.files(number))

    return append(project, client, latest, decide)
