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

>>> append(project, client, open_ledger(project, client), draft)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Concatenate, ParamSpec, TypeVar

from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib.errors import LedgerError, RefusedError
from mlops_lib.project import Project
from mlops_lib.registry.entries import Draft, Entry, Ledger, sha256
from mlops_lib.tracking import store

LEDGER_TAG = "mlops.ledger"  # on the experiment that claims a ledger: the id of its run
HEAD_TAG = "mlops.ledger_head"  # number and hash of the last entry whose projection is complete
REASON_LIMIT = 4000  # characters as JSON of what people write into an entry
ENTRY_LIMIT = 5000  # bytes of an entry; MLflow's server cuts a parameter at 6000 without a word

P = ParamSpec("P")
R = TypeVar("R")


def translate_errors(function: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
    """Let a store that goes away in the middle of ``function`` be our error, not MLflow's."""

    @functools.wraps(function)
    def call(project: Project, /, *arguments: P.args, **options: P.kwargs) -> R:
        with store.translate_errors(project.tracking_uri):
            return function(project, *arguments, **options)

    return call


# --- reading -----------------------------------------------------------------------------------------------------


def open_ledger(project: Project, client: MlflowClient) -> Ledger:
    """Read the ledger once, for all that an operation wants to know."""
    model = _registered_model(project, client)
    if model is None:
        return Ledger(project.name)
    genesis = _genesis(model)
    run = _find_run(project, client, model, genesis)
    if run is None:
        return Ledger(project.name, genesis=genesis, aliases=model.aliases)
    return _read_run(client, Ledger(project.name, (), run.info.run_id, genesis, 0, model.aliases), run)


def _read_run(client: MlflowClient, ledger: Ledger, run: Run | None = None) -> Ledger:
    """Return ``ledger`` with the entries that have come since; those that it has are not checked again."""
    run = run or client.get_run(ledger.run_id)
    entries = _parse(ledger, run)
    number, head = _read_note(ledger, run)
    if number > len(entries):  # a database may answer with newer tags than entries: look again before saying so
        run = client.get_run(ledger.run_id)
        entries = _parse(ledger, run)
    if number > len(entries):
        raise _broken(ledger, number, "is missing")
    if number and entries[number - 1].hash != head:
        raise _broken(ledger, number, "has been edited")
    return replace(ledger, entries=entries, noted=number)


def _read_note(ledger: Ledger, run: Run) -> tuple[int, str]:
    number, _, head = run.data.tags.get(HEAD_TAG, "0:").partition(":")
    if not (number.isascii() and number.isdigit()):
        raise _broken(ledger, len(ledger.entries), f"cannot be compared with the head '{number[:20]}'")
    return int(number), head


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


def _broken(ledger: Ledger | Project, entry: int, reason: str) -> LedgerError:
    return LedgerError("broken", name=ledger.name, entry=entry, reason=reason)


def _registered_model(project: Project, client: MlflowClient) -> RegisteredModel | None:
    with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
        return client.get_registered_model(project.name)
    return None


def _genesis(model: RegisteredModel) -> str:
    """Return what parameter 000000 of this model's ledger holds: a name is no identity, a name and a moment are."""
    return sha256(f"{model.name}\n{model.creation_timestamp}")


def _find_run(project: Project, client: MlflowClient, model: RegisteredModel, genesis: str) -> Run | None:
    """Return the run that is this model's ledger: the one with entries, or else the one that was agreed upon."""
    experiment = client.get_experiment_by_name(f"{project.name}.ledger")
    runs: list[Run] = []
    if experiment is not None:
        mine = f"params.`{_slot(0)}` = '{genesis}'"
        runs = client.search_runs([experiment.experiment_id], mine, run_view_type=ViewType.ALL, max_results=100)
    written = [run for run in runs if len(run.data.params) > 1]
    if len(written) > 1:
        first, second = sorted(run.info.run_id for run in written)[:2]
        why = f"stands in two runs, '{first}' and '{second}' ('mlflow gc --run-ids' removes a deleted one for good)"
        raise _broken(project, 1, why)
    if not written:
        agreed = _agreed_run(client, model)
        if agreed:  # asked for by its id: it may have been made and agreed upon after the search
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
                written = [client.get_run(agreed)]
            if not written or written[0].data.params.get(_slot(0)) != genesis:
                raise _broken(project, 1, f"belongs in run '{agreed}', which is gone or another model's")
    if written and written[0].info.lifecycle_stage != "active":
        run_id = written[0].info.run_id
        why = f"is in a deleted run ('mlflow runs restore --run-id {run_id}' brings it back)"
        raise _broken(project, 1, why)
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
    ledger = open_ledger(project, client)
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
    return open_ledger(project, client)


def append(project: Project, client: MlflowClient, ledger: Ledger, draft: Draft) -> Entry:
    """Write the entry that follows ``ledger``, if nobody else has written one since; then let the aliases follow.

    Raises
    ------
    RefusedError, LedgerError
        Nothing was changed by this call.
    """
    return _complete(project, client, *_write(project, client, ledger, draft))


def append_latest(
    project: Project, client: MlflowClient, decide: Callable[[Ledger], Draft], ledger: Ledger | None = None
) -> Entry:
    """Append what ``decide`` makes of the ledger, deciding again whenever somebody was faster.

    For what depends on no champion: registering, freezing, approving, deleting. A model that was made again meanwhile
    is another model, for which nothing was decided.
    """
    ledger = ledger or open_ledger(project, client)
    while True:
        entry, after = _write(project, client, ledger, decide(ledger))
        if after.entries[entry.number - 1].repeats(entry):
            return _complete(project, client, entry, after)
        ledger = after


def _write(project: Project, client: MlflowClient, ledger: Ledger, draft: Draft) -> tuple[Entry, Ledger]:
    """Write the entry that follows ``ledger``, if nobody else has written one since; return it and the ledger now."""
    if not ledger.run_id:
        ledger = ensure_ledger(project, client)
    entry = Entry(
        **{**vars(draft), "operation": draft.operation or uuid.uuid4().hex},
        number=len(ledger.entries) + 1,
        previous=ledger.head,
        actor=project.actor,
        at=_now(ledger),
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


def _complete(project: Project, client: MlflowClient, entry: Entry, after: Ledger) -> Entry:
    """Check that an entry stands where it was written, in the ledger of this model; then let the aliases follow.

    An entry that stands there with the same operation id is this one, written before its answer was lost.
    """
    written, move = after.entries[entry.number - 1], f"{entry.action} {entry.stage or entry.version}"
    if not written.repeats(entry):
        raise RefusedError("head_moved", name=project.name, action=move, winner=str(written))
    model = client.get_registered_model(project.name)
    if _genesis(model) != after.genesis:  # what was written stays behind in the ledger of the model that is gone
        winner = "the model was deleted and made again"
        raise RefusedError("head_moved", name=project.name, action=move, winner=winner)
    follow(project, client, after, model.aliases)
    return written


def follow(
    project: Project, client: MlflowClient, ledger: Ledger, aliases: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Complete what follows from the ledger: deletions, aliases, the note of its head. Return what was not so."""
    aliases = ledger.aliases if aliases is None else aliases
    done = []
    for entry in ledger.entries[ledger.noted :]:
        if entry.action == "delete":
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
                client.delete_model_version(project.name, str(entry.version))
                done.append(f"version {entry.version}")
    for stage, entry in ledger.standing.items():
        if str(aliases.get(stage)) != str(entry.version):
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):  # deleted behind the ledger's back: check_ledger tells
                _set(client.set_registered_model_alias, project.name, stage, str(entry.version))
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


def _now(ledger: Ledger) -> str:
    now = datetime.now(UTC)
    return max(now, ledger.entries[-1].time if ledger.entries else now).isoformat(timespec="microseconds")


def _slot(number: int) -> str:
    return f"{number:06d}"
