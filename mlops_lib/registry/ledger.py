"""The append-only ledger: who moved what, when, why, on which evidence; and what every stage had at any time.

Entry *n* is the parameter ``000001``, ``000002``, … of one MLflow run that belongs to the registered model. MLflow
parameters are write-once under a unique key and cannot be deleted, so writing an entry is an atomic put-if-absent: of
two that saw the same head, one wins and the other is told. Every entry repeats the hash of the one before, and the
first one the hash of what the ledger belongs to (parameter ``000000``): this name, made at this moment. A model deleted
and made again under its name therefore has another ledger, whatever is copied.

**Which run** is agreed upon by the name of an experiment, ``NAME.ledger.<moment of the model's creation>``: MLflow
makes a name once, so of two that found a ledger at once one wins. Once a run has entries, it alone is the ledger;
nothing that can be edited or deleted in MLflow's pages is needed to find it, and two such runs are an error, never a
choice.

Aliases, deletions and the note of the head are a *projection*: written after the entry, completed by the next look.

>>> history(project, "prod")  # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib.data import reads
from mlops_lib.errors import LedgerError, RefusedError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Entry, History, Ledger, sha256
from mlops_lib.tracking import store

LEDGER_TAG = "mlops.ledger"  # on the experiment that claims a ledger: the id of its run
HEAD_TAG = "mlops.ledger_head"  # number and hash of the last entry whose projection is complete
REASON_LIMIT = 4000  # characters as JSON of what people write into an entry
ENTRY_LIMIT = 5000  # bytes of an entry; MLflow's server cuts a parameter at 6000 without a word

# --- reading -----------------------------------------------------------------------------------------------------


@store.translate_errors
def read_ledger(project: Project) -> History:
    """Return the ledger's entries in order, their chain of hashes checked.

    Raises
    ------
    LedgerError
        Naming the first entry that was edited, removed or put out of order.
    """
    return History(open_ledger(project)[1].entries)


@store.translate_errors
def history(project: Project, stage: str | None = None) -> History:
    """Return what happened to one stage, or everything, oldest first; aliases that do not follow are repaired."""
    if stage is not None:
        project.raise_for_stage(stage)
    client, ledger = open_ledger(project)
    with store.ignore_codes("PERMISSION_DENIED"):  # of a reader of a shared server
        follow(client, ledger)
    note_ledger(ledger)
    return History(entry for entry in ledger.entries if stage in (None, entry.stage))


def as_of(project: Project, time: datetime) -> dict[str, Entry | None]:
    """Return what every stage had at a time: the entry that had put its version there, or None while it was empty.

    Times in the ledger never go back: a clock that is behind writes the time of the entry before.

    Parameters
    ----------
    time : datetime
        With a time zone.

    Raises
    ------
    LedgerError
    """
    if time.utcoffset() is None:
        raise LedgerError("naive_time", time=str(time))
    until = itertools.takewhile(lambda entry: entry.time <= time, read_ledger(project))
    standing = Ledger(project.name, tuple(until)).standing
    return {stage: standing.get(stage) for stage in project.stages}


def note_ledger(ledger: Ledger) -> None:
    """Note for cached runs that all of the ledger was read."""
    reads.note("ledger", ledger.name, History(ledger.entries).head)


def open_ledger(project: Project) -> tuple[MlflowClient, Ledger]:
    """Connect, and read the ledger once for all that an operation wants to know."""
    client = store.connect(project.tracking_uri)
    return client, find_ledger(project, client)


def find_ledger(project: Project, client: MlflowClient) -> Ledger:
    """Return the ledger as the store has it now; an empty one before anything was registered."""
    model = None
    with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
        model = client.get_registered_model(project.name)
    if model is None:
        return Ledger(project.name)
    ledger = Ledger(project.name, genesis=_genesis(model), aliases=model.aliases)
    run = _find_run(client, model)
    return _read_run(client, replace(ledger, run_id=run.info.run_id), run) if run else ledger


def _read_run(client: MlflowClient, ledger: Ledger, run: Run | None = None) -> Ledger:
    """Return ``ledger`` with the entries that have come since; those that it has are not checked again."""
    run = run or client.get_run(ledger.run_id)
    noted, _, head = run.data.tags.get(HEAD_TAG, "0:").partition(":")
    if not (noted.isascii() and noted.isdigit()):
        raise _broken(ledger, len(ledger.entries), f"cannot be compared with the head '{noted[:20]}'")
    number, entries = int(noted), _parse(ledger, run)
    if number > len(entries):  # a database may answer with newer tags than entries: look again before saying so
        entries = _parse(ledger, client.get_run(ledger.run_id))
    if number > len(entries):
        raise _broken(ledger, number, "is missing")
    if number and entries[number - 1].hash != head:
        raise _broken(ledger, number, "has been edited")
    return replace(ledger, entries=entries, noted=number)


def _parse(ledger: Ledger, run: Run) -> tuple[Entry, ...]:
    entries, head = list(ledger.entries), ledger.head
    written = sorted((key, text) for key, text in run.data.params.items() if key != _slot(0))
    for n, (key, text) in enumerate(written[len(entries) :], start=len(entries) + 1):
        if key != _slot(n):
            raise _broken(ledger, n, "is missing or out of order")
        try:
            entry = Entry(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise _broken(ledger, n, "cannot be read") from error
        if entry.number != n:
            raise _broken(ledger, n, "is missing or out of order")
        if n == len(written) and entry.to_json() != text:  # of the others the entry after them holds the hash
            raise _broken(ledger, n, "is not written as this library writes it")
        if entry.previous != head:
            raise _broken(ledger, n, "does not follow from the entry before it")
        head = sha256(text)
        entries.append(entry)
    return tuple(entries)


def _broken(ledger: Ledger | RegisteredModel, entry: int, reason: str) -> LedgerError:
    return LedgerError("broken", name=ledger.name, entry=entry, reason=reason)


def _genesis(model: RegisteredModel) -> str:
    """Return what parameter 000000 of this model's ledger holds: a name is no identity, a name and a moment are."""
    return sha256(f"{model.name}\n{model.creation_timestamp}")


def _find_run(client: MlflowClient, model: RegisteredModel) -> Run | None:
    """Return the run that is this model's ledger: the one with entries, or else the one that was agreed upon."""
    experiment = client.get_experiment_by_name(f"{model.name}.ledger")
    runs: list[Run] = []
    if experiment is not None:
        mine = f"params.`{_slot(0)}` = '{_genesis(model)}'"
        runs = client.search_runs([experiment.experiment_id], mine, run_view_type=ViewType.ALL, max_results=100)
    written = [run for run in runs if len(run.data.params) > 1]
    reason = ""
    if len(written) > 1:
        first, second = sorted(run.info.run_id for run in written)[:2]
        reason = f"stands in two runs, '{first}' and '{second}' ('mlflow gc --run-ids' removes a deleted one for good)"
    elif not written and (agreed := _agreed_run(client, model)):
        with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):  # it may have been made and agreed upon after the search
            written = [client.get_run(agreed)]
        if not written or written[0].data.params.get(_slot(0)) != _genesis(model):
            reason = f"belongs in run '{agreed}', which is gone or another model's"
    if not reason and written and written[0].info.lifecycle_stage != "active":
        reason = f"is in a deleted run ('mlflow runs restore --run-id {written[0].info.run_id}' brings it back)"
    if reason:
        raise _broken(model, 1, reason)
    return written[0] if written else None


def _agreed_run(client: MlflowClient, model: RegisteredModel) -> str | None:
    claim = client.get_experiment_by_name(_claim(model))
    return claim.tags.get(LEDGER_TAG) if claim is not None else None


def _claim(model: RegisteredModel) -> str:
    return f"{model.name}.ledger.{model.creation_timestamp}"


# --- writing -----------------------------------------------------------------------------------------------------


def ensure_ledger(project: Project, client: MlflowClient) -> Ledger:
    """Make the registered model and its ledger where they are missing; read the ledger.

    The run is made first and then agreed upon by making an experiment of a name that only one can make, so that two
    adopters of a model that a stock tool registered end with one ledger.
    """
    ledger = find_ledger(project, client)
    if ledger.run_id:
        return ledger
    with store.ignore_codes("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(project.name)
    model = client.get_registered_model(project.name)
    experiment_id = store.get_experiment_id(client, project.tracking_uri, f"{project.name}.ledger")
    run_id = client.create_run(experiment_id, run_name="ledger", tags={"mlflow.user": project.actor}).info.run_id
    client.log_param(run_id, _slot(0), _genesis(model))
    client.set_terminated(run_id)
    root = store.artifact_root(project.tracking_uri)
    location = f"{root}/{project.name}.ledger" if root else None
    with store.ignore_codes("RESOURCE_ALREADY_EXISTS"):
        client.create_experiment(_claim(model), artifact_location=location, tags={LEDGER_TAG: run_id})
    if _agreed_run(client, model) == run_id:
        return Ledger(project.name, (), run_id, _genesis(model), 0, model.aliases)
    client.delete_run(run_id)  # another process was faster
    return find_ledger(project, client)


def append(project: Project, client: MlflowClient, ledger: Ledger, draft: Entry | Callable[[Ledger], Entry]) -> Entry:
    """Write the entry that follows ``ledger``; then let the aliases follow.

    Parameters
    ----------
    draft : Entry or callable
        An entry is written only if nobody else has written one since. A function, which makes one of the ledger, is
        asked again whenever somebody was faster: it is for what depends on no champion (registering, freezing,
        approving, deleting). A model that was made again meanwhile is another model, for which nothing was decided.

    Raises
    ------
    RefusedError, LedgerError
        Nothing was changed by this call.
    """
    while True:
        entry, after = _write(project, client, ledger, draft if isinstance(draft, Entry) else draft(ledger))
        written = after.entries[entry.number - 1]  # with the same operation id: this one, though its answer was lost
        if written.repeats(entry) or isinstance(draft, Entry):
            break
        ledger = after
    model = client.get_registered_model(project.name)
    if not written.repeats(entry):
        winner = str(written)
    elif _genesis(model) != after.genesis:  # what was written stays behind in the ledger of the model that is gone
        winner = "the model was deleted and made again"
    else:
        follow(client, replace(after, aliases=model.aliases))
        return written
    action = f"{entry.action} {entry.stage or entry.version}"
    raise RefusedError("head_moved", name=project.name, action=action, winner=winner)


def _write(project: Project, client: MlflowClient, ledger: Ledger, draft: Entry) -> tuple[Entry, Ledger]:
    """Write the entry that follows ``ledger``, if nobody else has written one since; return it and the ledger now."""
    if not ledger.run_id:
        ledger = ensure_ledger(project, client)
    now = max([datetime.now(UTC), *(last.time for last in ledger.entries[-1:])])
    entry = replace(
        draft,
        number=len(ledger.entries) + 1,
        operation=draft.operation or uuid.uuid4().hex,
        previous=ledger.head,
        actor=project.actor,
        at=now.isoformat(timespec="microseconds"),
    )
    text = entry.to_json()
    if len(text) > ENTRY_LIMIT:
        raise LedgerError("long_reason", n_characters=len(text), limit=ENTRY_LIMIT)
    try:
        client.log_param(ledger.run_id, _slot(entry.number), text)
    except MlflowException:  # somebody was faster, or the answer was lost: what stands there tells
        after = _read_run(client, ledger)
        if len(after.entries) < entry.number:
            raise
    else:
        after = _read_run(client, ledger)
    return entry, after


def follow(client: MlflowClient, ledger: Ledger) -> tuple[str, ...]:
    """Complete what follows from the ledger: deletions, aliases, the note of its head. Return what was not so."""
    done = []
    for entry in ledger.entries[ledger.noted :]:
        if entry.action == "delete":
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
                client.delete_model_version(ledger.name, str(entry.version))
                done.append(f"version {entry.version}")
    for stage, entry in ledger.standing.items():
        if str(ledger.aliases.get(stage)) != str(entry.version):
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):  # deleted behind the ledger's back: check_store tells
                _set(client.set_registered_model_alias, ledger.name, stage, str(entry.version))
                done.append(stage)
    if ledger.entries and ledger.noted != len(ledger.entries):
        _set(client.set_tag, ledger.run_id, HEAD_TAG, f"{len(ledger.entries)}:{ledger.head}")
    return tuple(done)


def _set(call: Callable[..., object], *arguments: str) -> None:
    """Set an alias or tag. Of two that set a new one at once MLflow fails one; the second time it is there already."""
    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        call(*arguments)


def raise_for_length(project: Project, reason: str, operation: str | None = None) -> None:
    """Raise ``LedgerError`` unless what people wrote fits into an entry; the rest of it has a fixed length."""
    n_characters = len(json.dumps(reason)) + len(json.dumps(project.actor)) + len(json.dumps(operation))
    if n_characters > REASON_LIMIT:
        raise LedgerError("long_reason", n_characters=n_characters, limit=REASON_LIMIT)


def _slot(number: int) -> str:
    return f"{number:06d}"
