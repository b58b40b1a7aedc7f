"""Moves between stages: promote, roll back, freeze, approve, delete. Each is one entry of the ledger, or nothing.

Legal moves go one stage on (or further, where the project says ``may_skip_stages``); a stage goes back only by a
rollback to a version that it had. The names of actors are what ``Project.actor`` says: on a store without
authentication a second person is a matter of trust, and of the record.
"""

from __future__ import annotations

from mlops_lib.errors import RefusedError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Draft, Entry, Ledger
from mlops_lib.registry.ledger import append, append_latest, follow, open_ledger, raise_for_length, translate_errors
from mlops_lib.registry.verdicts import read_verdict, verdict_digest, why_not
from mlops_lib.registry.versions import find, load_release, verify_files
from mlops_lib.report import Report
from mlops_lib.tracking import store


@translate_errors
def promote(
    project: Project,
    version: int,
    stage: str,
    *,
    verdict: Report | None = None,
    reason: str = "",
    force: bool = False,
    operation: str | None = None,
) -> Entry:
    """Move a version to the next stage, on a verdict that still holds.

    Parameters
    ----------
    version : int
    stage : str
        Where to; the version must stand in the stage before it, unless the project may skip stages.
    verdict : Report, optional
        As ``gates.check_gates`` made it; by default the latest one logged for this version.
    reason : str
        Written in the ledger; required with ``force``.
    force : bool
        Move in spite of a verdict that failed or is missing. Recorded as ``force`` for ever. A second person whom the
        stage needs is still needed, and so is a stage that is not frozen.
    operation : str, optional
        Name of this move. The same move under the same name again returns the entry that it made: a retry after a lost
        answer is one move.

    Raises
    ------
    RefusedError, ModelFileError, NotFoundError, LedgerError
        The stage still has the version it had.
    """
    project.raise_for_stage(stage)
    raise_for_length(project, reason, operation)
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    model_version = find(project, client, ledger, version)
    number, action, current = int(model_version.version), "force" if force else "promote", ledger.current(stage)

    def refuse(why: str) -> RefusedError:
        return RefusedError("promotion", name=project.name, version=number, stage=stage, reason=why, current=current)

    repeated = _find_operation(ledger, operation)
    if repeated is not None:
        if (repeated.action, repeated.stage, repeated.version) != (action, stage, number):
            raise refuse(f"its operation id '{operation}' is that of another move ({repeated})")
        follow(project, client, ledger)
        return repeated
    registration = ledger.registration(number)
    why = _why_no_way(project, ledger, number, stage)
    if why or registration is None:
        raise refuse(why or f"it has never been in {project.stages[0]}")
    if force and not reason.strip():
        raise refuse("forcing takes a reason")
    status = str(client.get_run(str(model_version.run_id)).info.status)
    if status != "FINISHED":
        raise refuse(f"its run is {status}, not FINISHED")
    verify_files(project, model_version, ledger)
    verdict = verdict or read_verdict(client, model_version)
    why = None if force else why_not(project, registration, verdict, ledger.standing)
    why = why or _why_not_approved(project, ledger, registration, stage, verdict_digest(verdict))
    if why:
        raise refuse(why)
    draft = Draft(
        action=action,
        stage=stage,
        from_version=current,
        verdict=verdict_digest(verdict),
        reason=reason or "gates passed",
        operation=operation,
        **registration.files,
    )
    return append(project, client, ledger, draft)


def _find_operation(ledger: Ledger, operation: str | None) -> Entry | None:
    return next((entry for entry in ledger.entries if entry.operation == operation), None)


def _why_no_way(  # noqa: PLR0911 - one return per reason reads better than a chain
    project: Project, ledger: Ledger, number: int, stage: str
) -> str | None:
    """Return why a version may not go to ``stage`` from where it stands, or None."""
    standing, index = ledger.standing, project.stages.index(stage)
    first, before = project.stages[0], project.stages[index - 1]
    if stage in ledger.frozen:
        return _describe_freeze(ledger.frozen[stage])
    if index == 0:
        return f"'{stage}' is where versions are registered; nothing is promoted to it"
    if stage in standing and standing[stage].version == number:
        return "it is there already"
    beyond = [s for s in project.stages[index + 1 :] if s in standing and standing[s].version == number]
    if beyond:
        return f"it is in {beyond[0]} already; a stage goes back only by a rollback"
    origin = first if project.may_skip_stages else before
    if not any(entry.version == number for entry in ledger.moves(origin)):
        return f"it has never been in {origin}"
    if origin != first and standing[origin].version != number:
        return f"{origin} has version {standing[origin].version} by now"
    return None


@translate_errors
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
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    current = ledger.current(stage)

    def refuse(why: str) -> RefusedError:
        return RefusedError("rollback", name=project.name, stage=stage, reason=why, current=current)

    repeated = _find_operation(ledger, operation)
    if repeated is not None:
        if (repeated.action, repeated.stage) != ("rollback", stage) or to not in (None, repeated.version):
            raise refuse(f"its operation id '{operation}' is that of another move ({repeated})")
        follow(project, client, ledger)
        return repeated
    if stage in ledger.frozen:
        raise refuse(_describe_freeze(ledger.frozen[stage]))
    gone = {current, *ledger.deleted}
    earlier = [entry for entry in ledger.undo(stage) if entry.version not in gone]
    had = {entry.version: entry for entry in ledger.moves(stage) if entry.version not in gone}
    known = ", ".join(str(number) for number in sorted(had))
    if not had:
        raise refuse("it has never had another version")
    if to is not None and to not in had:
        raise refuse(f"it never had version {to}; it had {known}")
    if to is None and not earlier:
        raise refuse(f"that is the oldest it had; name one of {known} (--to)")
    target = had[to] if to is not None else earlier[-1]
    load_release(project, client, ledger, target.version, digest=target.digest)
    draft = Draft(
        action="rollback",
        stage=stage,
        from_version=current,
        verdict=target.verdict,
        reason=reason,
        operation=operation,
        **target.files,
    )
    return append(project, client, ledger, draft)


# --- freezing ----------------------------------------------------------------------------------------------------


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


@translate_errors
def _set_frozen(project: Project, action: str, stage: str, reason: str) -> Entry:
    project.raise_for_stage(stage)
    raise_for_length(project, reason)
    client = store.connect(project.tracking_uri)

    def decide(ledger: Ledger) -> Draft:
        why = "it takes a reason" if not reason.strip() else _why_not_set(project, ledger, action, stage)
        if why:
            raise RefusedError("freeze", name=project.name, stage=stage, action=action, reason=why)
        entry = ledger.standing.get(stage)
        return Draft(action=action, stage=stage, reason=reason, **(entry.files if entry else {"version": 0}))

    return append_latest(project, client, decide)


def _why_not_set(project: Project, ledger: Ledger, action: str, stage: str) -> str | None:
    """Return why a stage may not be frozen or unfrozen, or None."""
    if stage == project.stages[0]:
        return "versions are registered there, and nothing is promoted to it"
    if action == "freeze" and stage in ledger.frozen:
        return _describe_freeze(ledger.frozen[stage])
    if action == "unfreeze" and stage not in ledger.frozen:
        return "it is not frozen"
    return None if ledger.entries else "nothing is registered yet"


def _describe_freeze(entry: Entry) -> str:
    return f"{entry.stage} is frozen by {entry.actor} since {entry.at}: {entry.reason}"


# --- a second person ---------------------------------------------------------------------------------------------


@translate_errors
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
    client = store.connect(project.tracking_uri)

    def decide(ledger: Ledger) -> Draft:
        def refuse(why: str) -> RefusedError:
            return RefusedError("approval", name=project.name, version=number, stage=stage, reason=why)

        model_version = find(project, client, ledger, version)
        number = int(model_version.version)
        registration = ledger.registration(number)
        if not reason.strip():
            raise refuse("it takes a reason")
        if stage not in project.approvals:
            raise refuse(f"{stage} needs no second person (approvals = {project.approvals})")
        if registration is None:
            raise refuse("it is not in the ledger")
        tags = client.get_run(str(model_version.run_id)).data.tags
        if project.actor in {registration.actor, tags.get("mlops.actor"), tags.get("mlflow.user")}:
            raise refuse(f"{project.actor} is its author")
        digest = verdict_digest(read_verdict(client, model_version))
        return Draft(action="approve", stage=stage, reason=reason, verdict=digest, **registration.files)

    return append_latest(project, client, decide)


def _why_not_approved(project: Project, ledger: Ledger, registration: Entry, stage: str, verdict: str) -> str | None:
    """Return why a promotion lacks the second person that its stage needs, or None."""
    if stage not in project.approvals:
        return None
    about = [entry for entry in ledger.entries if (entry.stage, entry.version) == (stage, registration.version)]
    used = max((entry.number for entry in about if entry.action in ("promote", "force")), default=0)
    left = [entry for entry in about if entry.action == "approve" and entry.number > used]
    if not left:
        return f"{stage} needs the approval of a second person ('mlops approve {registration.version} {stage}')"
    left = [entry for entry in left if (entry.digest, entry.verdict) == (registration.digest, verdict)]
    if not left:
        return "it was approved on another verdict than this one"
    if all(entry.actor == project.actor for entry in left):
        return f"{project.actor} approved it, so somebody else promotes it"
    return None


# --- deleting ----------------------------------------------------------------------------------------------------


@translate_errors
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
    client = store.connect(project.tracking_uri)

    def decide(ledger: Ledger) -> Draft:
        number = int(find(project, client, ledger, version).version)
        why = "it takes a reason" if not reason.strip() else _why_needed(project, ledger, number)
        if why:
            raise RefusedError("deletion", name=project.name, version=number, reason=why)
        registration = ledger.registration(number)
        files = registration.files if registration else {"version": number}
        return Draft(action="delete", stage="", reason=reason, **files)

    return append_latest(project, client, decide)


def _why_needed(project: Project, ledger: Ledger, number: int) -> str | None:
    for stage, entry in ledger.standing.items():
        if entry.version == number:
            return f"{stage} has it"
    for stage in project.stages[1:]:
        if any(entry.version == number for entry in ledger.undo(stage)):
            return f"{stage} had it and could be rolled back to it"
    return None
