"""The append-only ledger: who moved what, when, why, on which evidence; and what every stage had at any time.

It is two chains of entries (:mod:`mlops_lib.registry.entries`), so that a server's own permissions part those who train
from those who promote: **registrations** stand in a run of the experiment ``NAME``, **moves** between stages in one of
the experiment ``NAME.ledger``. Each move repeats the head of the registrations that its writer had seen, which puts
both into one order.

Entry *n* of a chain is the parameter ``000001``, ``000002``, … of its run. MLflow parameters are write-once under a
unique key and cannot be deleted, so writing an entry is an atomic put-if-absent: of two that saw the same head, one
wins and the other is told. Every entry repeats the hash of the one before, and the first one the hash of what the chain
belongs to (parameter ``000000``): this name, made at this moment. A model deleted and made again under its name
therefore has another ledger, whatever is copied.

**Which runs** is agreed upon by the name of an experiment, ``NAME.ledger.<moment of the model's creation>``: MLflow
makes a name once, so of two that found a ledger at once one wins. Its tag holds both ids; nothing is searched for, and
nothing chosen among several. What this client has seen once is remembered (:mod:`mlops_lib.registry.memory`), so that
what is missing is never taken for empty.

Aliases, deletions and the notes of the heads are a *projection*: written after the entry, completed by the next look.

>>> history(project, "prod")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib.data import reads
from mlops_lib.errors import LedgerError, RefusedError, SignatureError, StoreError
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.registry import memory
from mlops_lib.registry.entries import Chain, Entry, History, slot
from mlops_lib.registry.rules import Ledger, Rules, replay
from mlops_lib.tracking import store
from mlops_lib.wording import visible

LEDGER_TAG = "mlops.ledger"  # on the experiment that claims a ledger: the ids of its runs, registrations first
HEAD_TAG = "mlops.ledger_head"  # on each run: number and hash of the last entry whose projection is complete
REASON_LIMIT = 4000  # characters as JSON of what people write into an entry
ENTRY_LIMIT = 5000  # bytes of an entry; MLflow's server cuts a parameter at 6000 without a word
CLOCK_MIN = 10  # by how many minutes a clock may be ahead of the store's

# --- reading -----------------------------------------------------------------------------------------------------


@store.translate_errors
def read_ledger(project: Project) -> History:
    """Return the ledger's entries in order, their chains of hashes and the rules checked.

    Raises
    ------
    LedgerError
        Naming the first entry that was edited, removed, put out of order or not allowed.
    """
    return History(open_ledger(project)[1].entries)


@store.translate_errors
def history(project: Project, stage: str | None = None) -> History:
    """Return what happened to one stage, or everything, oldest first; aliases that do not follow are repaired."""
    if stage is not None:
        project.raise_for_stage(stage)
    client, ledger = open_ledger(project)
    if store.may_write(project.tracking_uri):
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
    standing = replay(entry for entry in read_ledger(project) if entry.time <= time).standing
    return {stage: standing.get(stage) for stage in project.stages}


def note_ledger(ledger: Ledger) -> None:
    """Note for cached runs that all of the ledger was read."""
    reads.note("ledger", ledger.name, History(ledger.entries).head)


def open_ledger(project: Project, *, with_moves: bool = True) -> tuple[MlflowClient, Ledger]:
    """Connect, and read the ledger once for all that an operation wants to know; see :func:`find_ledger`."""
    try:
        client = store.connect(project.tracking_uri, create=False)
    except StoreError as error:
        if error.case == "missing":
            memory.look(project, Ledger.begin(project.name))
        raise
    return client, find_ledger(project, client, with_moves=with_moves)


def find_ledger(project: Project, client: MlflowClient, *, with_moves: bool = True) -> Ledger:
    """Return the ledger as the store has it now; an empty one before anything was registered.

    Parameters
    ----------
    with_moves : bool
        Without them only the registrations are read: what a version's files are, however broken the moves may be.
    """
    model = None
    with store.ignore_codes("RESOURCE_DOES_NOT_EXIST"):
        model = client.get_registered_model(project.name)
    ledger = Ledger.begin(project.name, model.creation_timestamp if model else None)
    if model and store.has_aliases(project.tracking_uri):
        ledger = replace(ledger, aliases=model.aliases)
    elif model:
        ledger = replace(ledger, aliases=None)
    agreed = _agreed_runs(client, model) if model else None
    if agreed:
        for chain, run_id in zip(ledger.chains, agreed, strict=True):
            ledger = ledger.with_chain(replace(chain, run_id=run_id))
        ledger = _read(project, client, ledger, with_moves=with_moves)
    if with_moves:
        memory.look(project, ledger)
    return ledger


def _agreed_runs(client: MlflowClient, model: RegisteredModel) -> list[str] | None:
    """Return the ids of the two runs that hold this model's ledger, or None before there are any."""
    claim = client.get_experiment_by_name(_claim(model))
    if claim is None:
        return None
    ids = claim.tags.get(LEDGER_TAG, "").split()
    if len(ids) != 2:
        raise LedgerError("old", name=model.name, n_runs=len(ids))
    return ids


def _claim(model: RegisteredModel) -> str:
    return f"{model.name}.ledger.{model.creation_timestamp}"


def _read(project: Project, client: MlflowClient, ledger: Ledger, *, with_moves: bool = True) -> Ledger:
    """Return ``ledger`` with the entries that have come since; those that it has are not checked again.

    Moves are read first: what they had seen is then among the registrations.
    """
    for chain in (ledger.moves, ledger.registrations) if with_moves else (ledger.registrations,):
        ledger = ledger.with_chain(_read_chain(project, client, chain))
    if with_moves:
        _ = ledger.state  # replays the rules
    return ledger


def _read_chain(project: Project, client: MlflowClient, chain: Chain) -> Chain:
    run = _get_run(client, chain)
    noted, _, head = run.data.tags.get(HEAD_TAG, "0:").partition(":")
    if not (noted.isascii() and noted.isdigit()):
        raise chain.broken(chain.number, f"cannot be compared with the head '{noted[:20]}'")
    number, found = int(noted), chain.extended(run.data.params)
    if number > found.number:  # a database may answer with newer tags than entries: look again before saying so
        found = chain.extended(_get_run(client, chain).data.params)
    if number > found.number:
        raise chain.broken(number, "is missing")
    if number and found.hash_of(number) != head:
        raise chain.broken(number, "has been edited")
    _raise_for_signatures(project, found, since=chain.number)
    return replace(found, noted=number)


def _get_run(client: MlflowClient, chain: Chain) -> Run:
    run, reason = None, ""
    with store.ignore_codes(*store.MISSING):
        run = client.get_run(chain.run_id)
    if run is None or run.data.params.get(slot(0)) != chain.genesis:
        reason = f"belongs in run '{chain.run_id}', which is gone or another model's"
    elif run.info.lifecycle_stage != "active":
        reason = f"is in a deleted run ('mlflow runs restore --run-id {chain.run_id}' brings it back)"
    if reason:
        raise chain.broken(1, reason)
    assert run is not None
    return run


def _raise_for_signatures(project: Project, chain: Chain, *, since: int) -> None:
    """Raise ``LedgerError`` unless all entries from the first signed one on are signed by a key that is trusted.

    What is before it is covered by its hash. A project that trusts no keys asks for none.
    """
    if not project.trusted_keys:
        return
    first = next((entry.number for entry in chain.entries if entry.signature), None)
    for entry in chain.entries:
        if first is not None and entry.number >= max(first, since + 1):
            try:
                signing.raise_for_signature(
                    _signed_text(chain, entry), entry.signature, project.trusted_keys, subject=f"Entry {entry.label}"
                )
            except SignatureError as error:
                raise chain.broken(entry.number, error.facts["reason"]) from error


def _signed_text(chain: Chain, entry: Entry) -> str:
    return f"mlops entry v1\n{chain.name}\n{replace(entry, signature='').to_json()}"


# --- writing -----------------------------------------------------------------------------------------------------


@store.translate_errors
def found(project: Project) -> tuple[str, str]:
    """Make the registered model and its ledger, if there are none; return the ids of its two runs.

    The first registration does so by itself. On a server with accounts whoever founds may do everything with both
    chains, so somebody who promotes does it first and then lets trainers write registrations (docs/team-server.md).

    Raises
    ------
    LedgerError, StoreError
    """
    ledger = ensure_ledger(project, store.connect(project.tracking_uri))
    return ledger.registrations.run_id, ledger.moves.run_id


def ensure_ledger(project: Project, client: MlflowClient) -> Ledger:
    """Make the registered model and its ledger where they are missing; read the ledger.

    The runs are made first and then agreed upon by making an experiment of a name that only one can make, so that two
    adopters of a model that a stock tool registered end with one ledger.
    """
    ledger = find_ledger(project, client)
    if ledger.moves.run_id:
        return ledger
    with store.ignore_codes("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(project.name)
    model = client.get_registered_model(project.name)
    begun, made = Ledger.begin(project.name, model.creation_timestamp), []
    for chain, experiment in zip(begun.chains, ("", ".ledger"), strict=True):
        experiment_id = store.get_experiment_id(client, project.tracking_uri, f"{project.name}{experiment}")
        name = f"ledger of {'moves' if experiment else 'registrations'}"
        run_id = client.create_run(experiment_id, run_name=name, tags={"mlflow.user": project.actor}).info.run_id
        client.log_param(run_id, slot(0), chain.genesis)
        client.set_terminated(run_id)
        made.append(run_id)
    root = store.artifact_root(project.tracking_uri)
    location = f"{root}/{project.name}.ledger" if root else None
    with store.ignore_codes("RESOURCE_ALREADY_EXISTS"):
        client.create_experiment(_claim(model), artifact_location=location, tags={LEDGER_TAG: " ".join(made)})
    if _agreed_runs(client, model) != made:
        for run_id in made:
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
    store.raise_for_read_only(project.tracking_uri)
    if not ledger.moves.run_id:
        ledger = ensure_ledger(project, client)
    _raise_for_clock(project)
    sign = signing.read_signer(project.signing_key)
    while True:
        entry, after = _write(project, client, ledger, draft if isinstance(draft, Entry) else draft(ledger), sign)
        # What came next; with the same operation id it is this one, though its answer was lost.
        written = next((each for each in after.chain_of(entry).entries if each.number >= entry.number), None)
        if written and (written.repeats(entry) or isinstance(draft, Entry)):
            break
        ledger = after  # somebody was faster, or something that is no entry has taken the place
    model = client.get_registered_model(project.name)
    if not written.repeats(entry):
        winner = str(written)
    elif Ledger.begin(project.name, model.creation_timestamp).moves.genesis != after.moves.genesis:
        winner = "the model was deleted and made again"  # what was written stays in the ledger of the one that is gone
    else:
        memory.look(project, after)
        follow(client, replace(after, aliases=model.aliases if after.aliases is not None else None))
        return written
    action = f"{entry.action} {entry.stage or entry.version}"
    raise RefusedError("head_moved", name=project.name, action=action, winner=winner)


def _raise_for_clock(project: Project) -> None:
    """Raise ``LedgerError`` if this machine's clock is too far ahead of the store's."""
    minutes = (datetime.now(UTC) - store.read_clock(project.tracking_uri)).total_seconds() / 60
    if minutes > CLOCK_MIN:
        raise LedgerError("clock", minutes=round(minutes), limit=CLOCK_MIN)


def _write(
    project: Project, client: MlflowClient, ledger: Ledger, draft: Entry, sign: Callable[[str], str] | None
) -> tuple[Entry, Ledger]:
    """Write the entry that follows ``ledger``, if nobody else has written one since; return it and the ledger now."""
    chain = ledger.chain_of(draft)
    entry = replace(
        draft,
        seen="" if draft.is_registration else ledger.registrations.head,
        rules="" if draft.is_registration else Rules.of(project).to_text(),
        number=chain.free,
        operation=draft.operation or uuid.uuid4().hex,
        previous=chain.head,
        actor=project.actor,
        at=max([datetime.now(UTC), *(last.time for last in ledger.entries[-1:])]).isoformat(timespec="microseconds"),
    )
    if sign:
        entry = replace(entry, signature=sign(_signed_text(chain, entry)))
    elif project.trusted_keys and any(each.signature for each in chain.entries):
        raise SignatureError("untrusted", subject=f"Entry {entry.label}", reason="has no signature")
    text = entry.to_json()
    if len(text) > ENTRY_LIMIT:
        raise LedgerError("long_reason", n_characters=len(text), limit=ENTRY_LIMIT)
    failed = None
    try:
        client.log_param(chain.run_id, slot(entry.number), text)
    except MlflowException as error:  # somebody was faster, or the answer was lost: what stands there tells
        failed = error
    after = _read(project, client, ledger)
    chain = after.chain_of(entry)
    if failed and chain.number < entry.number and slot(entry.number) not in chain.strays:
        raise failed
    return entry, after


def follow(client: MlflowClient, ledger: Ledger) -> tuple[str, ...]:
    """Complete what follows from the ledger: deletions, aliases, the notes of its heads. Return what was not so.

    What this account may not write is left to somebody who may.
    """
    done = []
    for entry in ledger.moves.entries:
        if entry.number > ledger.moves.noted and entry.action == "delete":
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
                client.delete_model_version(ledger.name, str(entry.version))
                done.append(f"version {entry.version}")
    for stage, entry in ledger.state.standing.items():
        if ledger.aliases is not None and str(ledger.aliases.get(stage)) != str(entry.version):
            # One that was deleted behind the ledger's back has no alias: check_store tells.
            with store.ignore_codes("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
                _set(client.set_registered_model_alias, ledger.name, stage, str(entry.version))
                done.append(stage)
    for chain in ledger.chains:
        if chain.entries and chain.noted != chain.number:
            with store.ignore_codes("PERMISSION_DENIED"):
                _set(client.set_tag, chain.run_id, HEAD_TAG, f"{chain.number}:{chain.head}")
    return tuple(done)


def _set(call: Callable[..., object], *arguments: str) -> None:
    """Set an alias or tag. Of two that set a new one at once MLflow fails one; the second time it is there already."""
    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        call(*arguments)


def raise_for_words(project: Project, reason: str, operation: str | None = None) -> None:
    """Raise ``LedgerError`` unless what people wrote can stand in an entry: short enough, and all of it to be seen."""
    for word, text in (("reason", reason), ("actor", project.actor), ("operation", operation or "")):
        if visible(text, keep="\n\t") != text:
            raise LedgerError("unseen", word=word, text=visible(text)[:200])
    n_characters = len(json.dumps(reason)) + len(json.dumps(project.actor)) + len(json.dumps(operation))
    if n_characters > REASON_LIMIT:
        raise LedgerError("long_reason", n_characters=n_characters, limit=REASON_LIMIT)
