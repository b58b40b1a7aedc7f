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

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Concatenate, NotRequired, ParamSpec, TypedDict, TypeVar, Unpack

from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib.data import reads
from mlops_lib.errors import LedgerError, RefusedError
from mlops_lib.project import Project
from mlops_lib.tracking import store

LEDGER_TAG = "mlops.ledger"  # on the experiment that claims a ledger: the id of its run
HEAD_TAG = "mlops.ledger_head"  # number and hash of the last entry whose projection is complete
GENESIS = "0" * 64
REASON_LIMIT = 4000  # characters as JSON of what people write into an entry
ENTRY_LIMIT = 5000  # bytes of an entry; MLflow's server cuts a parameter at 6000 without a word
MOVES = frozenset({"register", "promote", "force", "rollback"})  # actions that put a version into a stage

P = ParamSpec("P")
R = TypeVar("R")


def answered(function: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
    """Let a store that goes away in the middle of ``function`` be our error, not MLflow's."""

    @functools.wraps(function)
    def call(project: Project, /, *arguments: P.args, **options: P.kwargs) -> R:
        with store.answering(project.tracking_uri):
            return function(project, *arguments, **options)

    return call


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger.

    ``digest`` is the model's, ``verdict`` the evidence's, ``previous`` the hash of the entry before. ``version`` is 0
    where an empty stage was frozen; ``stage`` is empty where a version was deleted.
    """

    number: int
    operation: str
    previous: str
    action: str
    stage: str
    version: int
    from_version: int | None
    model_id: str
    digest: str
    verdict: str
    actor: str
    at: str
    reason: str

    def to_json(self) -> str:
        """Return the canonical text that is stored and hashed."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the stored text; the next entry repeats it."""
        return _sha256(self.to_json())

    @property
    def time(self) -> datetime:
        """When it was written, as an aware datetime."""
        return datetime.fromisoformat(self.at)

    def __str__(self) -> str:
        """Return one line for people."""
        came = f" (from version {self.from_version})" if self.from_version else ""
        what = f"{self.stage} → version {self.version}{came}" if self.action in MOVES else self._subject
        return f"#{self.number} {self.action} {what} by {self.actor} at {self.at}"

    def repeats(self, other: Entry) -> bool:
        """Whether this is the same operation as ``other``, whenever each was written."""
        mine, others = ((e.operation, e.action, e.stage, e.version) for e in (self, other))
        return mine == others

    @property
    def _subject(self) -> str:
        return " ".join([*([f"version {self.version}"] if self.version else []), *([self.stage] if self.stage else [])])


@dataclass(frozen=True)
class Ledger:
    """What one reading of the store found, and what follows from it."""

    name: str
    entries: tuple[Entry, ...] = ()
    run_id: str = ""  # empty before the ledger was founded
    genesis: str = GENESIS
    noted: int = 0  # number of the entry up to which the projection was complete
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """Hash that the next entry repeats."""
        return self.entries[-1].hash if self.entries else self.genesis

    @property
    def standing(self) -> dict[str, Entry]:
        """The entry that put each stage's present version there."""
        return fold(self.entries)

    @property
    def frozen(self) -> dict[str, Entry]:
        """The entry that froze each stage that is frozen."""
        last = {entry.stage: entry for entry in self.entries if entry.action in ("freeze", "unfreeze")}
        return {stage: entry for stage, entry in last.items() if entry.action == "freeze"}

    @property
    def deleted(self) -> frozenset[int]:
        """Versions that were deleted with an entry."""
        return frozenset(entry.version for entry in self.entries if entry.action == "delete")

    def moves(self, stage: str) -> list[Entry]:
        """Return the entries that put a version into ``stage``, oldest first."""
        return [entry for entry in self.entries if entry.stage == stage and entry.action in MOVES]

    def registration(self, version: int) -> Entry | None:
        """Return the entry that registered ``version``: what its model and files are."""
        found = (entry for entry in self.entries if entry.version == version and entry.action == "register")
        return next(found, None)

    def undo(self, stage: str) -> list[Entry]:
        """Return the moves that a rollback can go back through: each rollback undoes what came after its target."""
        stack: list[Entry] = []
        for entry in self.moves(stage):
            if entry.action == "rollback":
                while stack and stack[-1].version != entry.version:
                    stack.pop()
            elif not stack or stack[-1].version != entry.version:
                stack.append(entry)
        return stack


def fold(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    """Return the entry that put each stage's version there, after ``entries``."""
    return {entry.stage: entry for entry in entries if entry.action in MOVES}


# --- reading -----------------------------------------------------------------------------------------------------


@answered
def read_ledger(project: Project) -> tuple[Entry, ...]:
    """Return the ledger's entries in order, their chain of hashes checked.

    Raises
    ------
    LedgerError
        Naming the first entry that was edited, removed or put out of order.
    """
    return open_ledger(project, store.connect(project.tracking_uri)).entries


@answered
def history(project: Project, stage: str | None = None) -> tuple[Entry, ...]:
    """Return what happened to one stage, or everything, oldest first; aliases that do not follow are repaired."""
    if stage is not None:
        project.raise_for_stage(stage)
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    with passing("PERMISSION_DENIED"):  # of a reader of a shared server
        follow(project, client, ledger)
    note(project, ledger)
    return tuple(entry for entry in ledger.entries if stage in (None, entry.stage))


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
    if time.tzinfo is None or time.utcoffset() is None:
        raise LedgerError("naive_time", time=str(time))
    until = tuple(itertools.takewhile(lambda entry: entry.time <= time, read_ledger(project)))
    return {stage: fold(until).get(stage) for stage in project.stages}


@answered
def ledger_run_id(project: Project) -> str | None:
    """Return the id of the run that holds the ledger, or None before the first entry."""
    return open_ledger(project, store.connect(project.tracking_uri)).run_id or None


def ledger_head(entries: tuple[Entry, ...]) -> str:
    """Return the hash of the last entry; it changes with every entry."""
    return entries[-1].hash if entries else GENESIS


def note(project: Project, ledger: Ledger) -> None:
    """Note for cached runs that all of the ledger was read."""
    reads.note("ledger", project.name, ledger_head(ledger.entries))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector out of reading thousands of rows: it would walk through all of MLflow each time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@uncollected()
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


@uncollected()
def _read_run(client: MlflowClient, seen: Ledger, run: Run | None = None) -> Ledger:
    """Return ``seen`` with the entries that have come since; those that it has are not checked again."""
    run = run or client.get_run(seen.run_id)
    entries = _parse(seen, run)
    number, head = _read_note(seen, run)
    if number > len(entries):  # a database may answer with newer tags than entries: look again before saying so
        run = client.get_run(seen.run_id)
        entries = _parse(seen, run)
    if number > len(entries):
        raise LedgerError("broken", name=seen.name, entry=number, reason="is missing")
    if number and entries[number - 1].hash != head:
        raise LedgerError("broken", name=seen.name, entry=number, reason="has been edited")
    return replace(seen, entries=entries, noted=number)


def _read_note(seen: Ledger, run: Run) -> tuple[int, str]:
    number, _, head = run.data.tags.get(HEAD_TAG, "0:").partition(":")
    if not (number.isascii() and number.isdigit()):
        raise LedgerError(
            "broken",
            name=seen.name,
            entry=len(seen.entries),
            reason=f"cannot be compared with the head '{number[:20]}'",
        )
    return int(number), head


def _parse(seen: Ledger, run: Run) -> tuple[Entry, ...]:
    entries, head = list(seen.entries), seen.head
    written = sorted((key, text) for key, text in run.data.params.items() if key != _slot(0))
    for n, (key, text) in enumerate(written[len(entries) :], start=len(entries) + 1):
        if key != _slot(n):
            raise LedgerError("broken", name=seen.name, entry=n, reason="is missing or out of order")
        try:
            entry = Entry(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise LedgerError("broken", name=seen.name, entry=n, reason="cannot be read") from error
        if entry.number != n:
            raise LedgerError("broken", name=seen.name, entry=n, reason="is missing or out of order")
        if n == len(written) and entry.to_json() != text:  # of the others the entry after them holds the hash
            raise LedgerError("broken", name=seen.name, entry=n, reason="is not written as this library writes it")
        if entry.previous != head:
            raise LedgerError("broken", name=seen.name, entry=n, reason="does not follow from the entry before it")
        head = _sha256(text)
        entries.append(entry)
    return tuple(entries)


def _registered_model(project: Project, client: MlflowClient) -> RegisteredModel | None:
    try:
        return client.get_registered_model(project.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _genesis(model: RegisteredModel) -> str:
    """Return what parameter 000000 of this model's ledger holds: a name is no identity, a name and a moment are."""
    return _sha256(f"{model.name}\n{model.creation_timestamp}")


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
        raise LedgerError("broken", name=project.name, entry=1, reason=why)
    if not written:
        agreed = _agreed_run(client, model)
        if agreed:  # asked for by its id: it may have been made and agreed upon after the search
            with passing("RESOURCE_DOES_NOT_EXIST"):
                written = [client.get_run(agreed)]
            if not written or written[0].data.params.get(_slot(0)) != genesis:
                raise LedgerError(
                    "broken",
                    name=project.name,
                    entry=1,
                    reason=f"belongs in run '{agreed}', which is gone or another model's",
                )
    if written and written[0].info.lifecycle_stage != "active":
        run_id = written[0].info.run_id
        why = f"is in a deleted run ('mlflow runs restore --run-id {run_id}' brings it back)"
        raise LedgerError("broken", name=project.name, entry=1, reason=why)
    return written[0] if written else None


def _agreed_run(client: MlflowClient, model: RegisteredModel) -> str | None:
    claim = client.get_experiment_by_name(_claim(model))
    return claim.tags.get(LEDGER_TAG) if claim is not None else None


def _claim(model: RegisteredModel) -> str:
    return f"{model.name}.ledger.{model.creation_timestamp}"


# --- writing -----------------------------------------------------------------------------------------------------


def found(project: Project, client: MlflowClient) -> Ledger:
    """Make the registered model and its ledger where they are missing; read the ledger.

    The run is made first and then agreed upon by making an experiment of a name that only one can make, so that two
    adopters of a model that a stock tool registered end with one ledger.
    """
    seen = open_ledger(project, client)
    if seen.run_id:
        return seen
    with passing("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(project.name)
    model = client.get_registered_model(project.name)
    experiment_id = store.get_experiment_id(client, project.tracking_uri, f"{project.name}.ledger")
    run_id = client.create_run(experiment_id, run_name="ledger", tags={"mlflow.user": project.actor}).info.run_id
    client.log_param(run_id, _slot(0), _genesis(model))
    client.set_terminated(run_id)
    root = store.artifact_root(project.tracking_uri)
    location = f"{root}/{project.name}.ledger" if root else None
    with passing("RESOURCE_ALREADY_EXISTS"):
        client.create_experiment(_claim(model), artifact_location=location, tags={LEDGER_TAG: run_id})
    if _agreed_run(client, model) == run_id:
        return Ledger(project.name, (), run_id, _genesis(model), 0, model.aliases)
    client.delete_run(run_id)  # another process was faster
    return open_ledger(project, client)


class Facts(TypedDict):
    """What a caller says in an entry; number, time, actor and the hash of the entry before follow from the ledger."""

    action: str
    stage: str
    version: int
    reason: str
    from_version: NotRequired[int | None]
    model_id: NotRequired[str]
    digest: NotRequired[str]
    verdict: NotRequired[str]
    operation: NotRequired[str | None]


def append(project: Project, client: MlflowClient, seen: Ledger, **facts: Unpack[Facts]) -> Entry:
    """Write the entry that follows ``seen``, if nobody else has written one since; then let the aliases follow.

    Raises
    ------
    RefusedError, LedgerError
        Nothing was changed by this call.
    """
    return _complete(project, client, *_write(project, client, seen, **facts))


def append_latest(
    project: Project, client: MlflowClient, decide: Callable[[Ledger], Facts], seen: Ledger | None = None
) -> Entry:
    """Append what ``decide`` makes of the ledger, deciding again whenever somebody was faster.

    For what depends on no champion: registering, freezing, approving, deleting. A model that was made again meanwhile
    is another model, for which nothing was decided.
    """
    seen = seen or open_ledger(project, client)
    while True:
        entry, after = _write(project, client, seen, **decide(seen))
        if after.entries[entry.number - 1].repeats(entry):
            return _complete(project, client, entry, after)
        seen = after


def _write(project: Project, client: MlflowClient, seen: Ledger, **facts: Unpack[Facts]) -> tuple[Entry, Ledger]:
    """Write the entry that follows ``seen``, if nobody else has written one since; return it and the ledger by now."""
    if not seen.run_id:
        seen = found(project, client)
    entry = Entry(
        number=len(seen.entries) + 1,
        operation=facts.get("operation") or uuid.uuid4().hex,
        previous=seen.head,
        action=facts["action"],
        stage=facts["stage"],
        version=facts["version"],
        from_version=facts.get("from_version"),
        model_id=facts.get("model_id", ""),
        digest=facts.get("digest", ""),
        verdict=facts.get("verdict", ""),
        actor=project.actor,
        at=_now(seen),
        reason=facts["reason"],
    )
    text = entry.to_json()
    if len(text) > ENTRY_LIMIT:
        raise LedgerError("long_reason", n_characters=len(text), limit=ENTRY_LIMIT)
    try:
        client.log_param(seen.run_id, _slot(entry.number), text)
    except MlflowException:  # somebody was faster, or the answer was lost: what stands there tells
        after = _read_run(client, seen)
        if len(after.entries) < entry.number:
            raise
    else:
        after = _read_run(client, seen)
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
        raise RefusedError("head_moved", name=project.name, action=move, winner="the model was deleted and made again")
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
            with passing("RESOURCE_DOES_NOT_EXIST"):
                client.delete_model_version(project.name, str(entry.version))
                done.append(f"version {entry.version}")
    for stage, entry in ledger.standing.items():
        if str(aliases.get(stage)) != str(entry.version):
            with passing("RESOURCE_DOES_NOT_EXIST"):  # deleted behind the ledger's back: check_ledger tells
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


@answered
def repair_aliases(project: Project) -> tuple[str, ...]:
    """Make the aliases say what the ledger says, and complete a deletion that was cut off; return what was not so."""
    client = store.connect(project.tracking_uri)
    return follow(project, client, open_ledger(project, client))


def raise_for_length(project: Project, reason: str, operation: str | None = None) -> None:
    """Raise ``LedgerError`` unless what people wrote fits into an entry; the rest of it has a fixed length."""
    n_characters = len(json.dumps(reason)) + len(json.dumps(project.actor)) + len(json.dumps(operation))
    if n_characters > REASON_LIMIT:
        raise LedgerError("long_reason", n_characters=n_characters, limit=REASON_LIMIT)


def _now(seen: Ledger) -> str:
    now = datetime.now(UTC)
    return max(now, seen.entries[-1].time if seen.entries else now).isoformat(timespec="microseconds")


def _slot(number: int) -> str:
    return f"{number:06d}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def passing(*codes: str) -> Iterator[None]:
    """Pass over MLflow's errors of these codes."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise
