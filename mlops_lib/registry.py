"""Versions, stages and releases: register, promote on a verdict, roll back, look back, load.

Every move between stages is an entry in one append-only **ledger**: entry *n* is the parameter ``000001``,
``000002``, … of one MLflow run that belongs to the registered model. MLflow parameters are write-once under a unique
key, so writing an entry is an atomic put-if-absent: of two promoters that saw the same head, one wins and the other is
told. The aliases ``NAME@dev|staging|prod`` are a projection of the ledger; stock tools read them.

Refused: a move without a verdict that passed, a verdict on other bytes, data, gates or champion, a version whose files
have changed, a stage skipped.

>>> registry.promote(project, 7, "staging", verdict=verdict, reason="best of four")  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import data, integrity, reads, store
from mlops_lib.errors import (
    EmptyStageError,
    HeadMovedError,
    LedgerBrokenError,
    MetricValueError,
    ModelFileError,
    PromotionRefusedError,
    ReasonTooLongError,
    RollbackRefusedError,
    RunNotFinishedError,
    UnknownVersionError,
)
from mlops_lib.project import Project
from mlops_lib.report import Report

LEDGER_TAG = "mlops.ledger"
HEAD_TAG = "mlops.ledger_head"  # number and hash of the last entry: an end that was cut off or edited is noticed
VERDICT_TAG = "mlops.verdict_run"
METRIC_TAG = "mlops.metric."
VERDICT_FILE = "verdict.json"
GENESIS = "0" * 64
REASON_LIMIT = 4000  # characters as JSON, in an entry; MLflow's server cuts a parameter at 6000 without a word


@dataclass(frozen=True)
class Version:
    """One registered version and where it stands."""

    name: str
    version: int
    model_id: str
    run_id: str
    digest: str
    created_at: str
    stages: tuple[str, ...]
    metrics: Mapping[str, float]
    description: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger. ``digest`` is the model's; ``previous`` the hash of the entry before."""

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
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the stored text; the next entry repeats it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __str__(self) -> str:
        """Return one line for people."""
        came = f" (from version {self.from_version})" if self.from_version else ""
        return f"#{self.number} {self.action} {self.stage} → version {self.version}{came} by {self.actor} at {self.at}"


@dataclass(frozen=True)
class Release:
    """A version that was loaded and verified, and is ready to score."""

    name: str
    version: int
    stage: str | None
    model_id: str
    run_id: str
    files: integrity.ModelFiles

    @property
    def model(self) -> Any:
        """The fitted pipeline."""
        return self.files.model

    @property
    def digest(self) -> str:
        """Identity of exactly these model files."""
        return self.files.digest

    @property
    def features(self) -> list[str]:
        """Columns that the model takes, in order."""
        return list(self.files.metadata["mlops"]["features"])

    @property
    def threshold(self) -> float:
        """Operating point that was stored with the model."""
        return float(self.files.metadata["mlops"]["threshold"])


# --- the ledger --------------------------------------------------------------------------------------------------


def read_ledger(project: Project) -> tuple[Entry, ...]:
    """Return the ledger's entries in order, their chain of hashes checked.

    Raises
    ------
    LedgerBrokenError
        Naming the first entry that was edited, removed or put out of order.
    """
    client = store.connect(project.tracking_uri)
    tags = _model_tags(project, client)
    if LEDGER_TAG not in tags:
        return ()
    noted = tags.get(HEAD_TAG, "")  # read before the entries, which only grow
    entries = _read_entries(project, client, tags[LEDGER_TAG])
    number, _, head = noted.partition(":")
    if noted and int(number) > len(entries):
        raise LedgerBrokenError(project.name, int(number), "is missing")
    if noted and entries[int(number) - 1].hash != head:
        raise LedgerBrokenError(project.name, int(number), "has been edited")
    return entries


def _read_entries(project: Project, client: MlflowClient, run_id: str) -> tuple[Entry, ...]:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LedgerBrokenError(project.name, 1, f"is gone with its run '{run_id}'") from error
    if run.info.lifecycle_stage != "active":
        why = f"is in a deleted run ('mlflow runs restore --run-id {run_id}' brings it back)"
        raise LedgerBrokenError(project.name, 1, why)
    entries: list[Entry] = []
    head = GENESIS
    for n, (key, text) in enumerate(sorted(run.data.params.items()), start=1):
        try:
            entry = Entry(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise LedgerBrokenError(project.name, n, "cannot be read") from error
        if key != _slot(n) or entry.number != n:
            raise LedgerBrokenError(project.name, n, "is missing or out of order")
        if entry.to_json() != text:
            raise LedgerBrokenError(project.name, n, "is not written as this library writes it")
        if entry.previous != head:
            raise LedgerBrokenError(project.name, n, "does not follow from the entry before it")
        head = hashlib.sha256(text.encode()).hexdigest()
        entries.append(entry)
    return tuple(entries)


def _model_tags(project: Project, client: MlflowClient) -> dict[str, str]:
    """Return the tags of the registered model; none while nothing is registered."""
    try:
        return dict(client.get_registered_model(project.name).tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _ledger_run(project: Project, client: MlflowClient) -> str:
    """Return the id of the model's ledger run; make it where there is none.

    It is named by a tag that the registered model is created with. Creating a name that exists fails, so of two
    processes that register the first version at once one ledger wins; a model deleted and made again has another.
    """
    tags = _model_tags(project, client)
    if LEDGER_TAG in tags:
        return tags[LEDGER_TAG]
    run_id = _new_ledger_run(project, client)
    try:
        client.create_registered_model(project.name, tags={LEDGER_TAG: run_id})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if LEDGER_TAG in _model_tags(project, client):  # another process was faster
            client.delete_run(run_id)
        else:  # registered by a stock tool: adopt it
            client.set_registered_model_tag(project.name, LEDGER_TAG, run_id)
    return _model_tags(project, client)[LEDGER_TAG]


def _new_ledger_run(project: Project, client: MlflowClient) -> str:
    experiment_id = store.get_experiment_id(client, project.tracking_uri, f"{project.name}.ledger")
    run = client.create_run(experiment_id, run_name="ledger", tags={"mlflow.user": project.actor})
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _append(project: Project, client: MlflowClient, seen: tuple[Entry, ...], **facts: Any) -> Entry:
    """Write the entry that follows ``seen``, if nobody else has written one since.

    Raises
    ------
    HeadMovedError
        Nothing was changed by this call.
    """
    run_id = _ledger_run(project, client)
    entry = Entry(
        number=len(seen) + 1,
        operation=uuid.uuid4().hex,
        previous=ledger_head(seen),
        actor=project.actor,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )
    text = entry.to_json()
    try:
        client.log_param(run_id, _slot(entry.number), text)
    except MlflowException:
        written = client.get_run(run_id).data.params.get(_slot(entry.number))
        if written is None:
            raise
    else:
        written = client.get_run(run_id).data.params[_slot(entry.number)]
    if written != text:
        winner = str(Entry(**json.loads(written)))
        raise HeadMovedError(project.name, f"{entry.action} to {entry.stage}", winner)
    client.set_registered_model_tag(project.name, HEAD_TAG, f"{entry.number}:{entry.hash}")
    _project_aliases(project, client, (*seen, entry))
    return entry


def _raise_for_reason(reason: str) -> None:
    if len(json.dumps(reason)) > REASON_LIMIT:
        raise ReasonTooLongError(len(json.dumps(reason)), REASON_LIMIT)


def _slot(number: int) -> str:
    return f"{number:06d}"


def _standing(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    """Fold the ledger: the entry that put each stage's present version there."""
    return {entry.stage: entry for entry in entries}


def _project_aliases(project: Project, client: MlflowClient, entries: tuple[Entry, ...]) -> list[str]:
    """Make the aliases say what the ledger says; return the stages whose alias was wrong."""
    aliases = client.get_registered_model(project.name).aliases
    wrong = [s for s, entry in _standing(entries).items() if str(aliases.get(s)) != str(entry.version)]
    for stage in wrong:
        client.set_registered_model_alias(project.name, stage, str(_standing(entries)[stage].version))
    return wrong


# --- versions ----------------------------------------------------------------------------------------------------


def register(
    project: Project, model_uri: str, *, metrics: Mapping[str, float] | None = None, description: str = ""
) -> Version:
    """Make a logged model a version; it enters the first stage.

    Parameters
    ----------
    model_uri : str
        ``models:/m-…`` as ``tracking.log_model`` returned it.
    metrics : mapping, optional
        Shown in lists of versions.

    Raises
    ------
    RunNotFinishedError, ModelFileError, MetricValueError, ReasonTooLongError, LedgerBrokenError
        No version was made.
    """
    _raise_for_reason(description)
    for metric, value in (metrics or {}).items():
        if not math.isfinite(float(value)):
            raise MetricValueError(metric, value)
    client = store.connect(project.tracking_uri)
    model_id = model_uri.removeprefix("models:/")
    try:
        model = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RunNotFinishedError(model_uri, "the store has no such model") from error
    if str(model.status) not in ("READY", "LoggedModelStatus.READY"):
        raise RunNotFinishedError(model_id, f"it is {model.status}, not READY")
    if integrity.MANIFEST_TAG not in model.tags:
        raise RunNotFinishedError(model_id, "it has no manifest; log it with tracking.log_model")
    run = client.get_run(str(model.source_run_id)).info
    if run.status in ("FAILED", "KILLED") or run.lifecycle_stage != "active":
        state = run.status if run.lifecycle_stage == "active" else "deleted"
        raise RunNotFinishedError(model_id, f"its run '{model.source_run_id}' is {state}")
    manifest = json.loads(model.tags[integrity.MANIFEST_TAG])
    with tempfile.TemporaryDirectory() as folder:
        _download(model_id, folder)
        integrity.raise_for_files(Path(folder), manifest, model=f"Model '{model_id}'")
    digest = integrity.compute_digest(manifest)
    tags = {integrity.MANIFEST_TAG: model.tags[integrity.MANIFEST_TAG], integrity.DIGEST_TAG: digest}
    tags |= {f"{METRIC_TAG}{name}": f"{value:.6g}" for name, value in (metrics or {}).items()}
    _ledger_run(project, client)
    seen = read_ledger(project)  # before the version is made: a broken ledger leaves none behind
    made = client.create_model_version(
        project.name,
        source=f"models:/{model_id}",
        run_id=model.source_run_id,
        tags=tags,
        description=description,
        model_id=model_id,
    )
    while True:  # another registration only moves dev on: follow it
        standing = _standing(seen).get(project.stages[0])
        try:
            _append(
                project,
                client,
                seen,
                action="register",
                stage=project.stages[0],
                version=int(made.version),
                from_version=standing.version if standing else None,
                model_id=model_id,
                digest=digest,
                verdict="",
                reason=description or "registered",
            )
        except HeadMovedError:
            seen = read_ledger(project)
        else:
            return get_version(project, int(made.version))


def list_versions(project: Project) -> list[Version]:
    """Return every version, newest first, with the stages it is in."""
    client = store.connect(project.tracking_uri)
    entries = read_ledger(project)
    _note_ledger(project, entries)
    standing = _standing(entries)
    found = client.search_model_versions(f"name = '{project.name}'", max_results=10_000)
    versions = [_version(project, made, standing) for made in found]
    return sorted(versions, key=lambda version: -version.version)


def get_version(project: Project, version: int | str) -> Version:
    """Return one version by its number, or by the stage it is in.

    Raises
    ------
    UnknownVersionError, EmptyStageError, UnknownStageError
    """
    number = resolve(project, version)
    client = store.connect(project.tracking_uri)
    try:
        made = client.get_model_version(project.name, str(number))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = tuple(sorted(v.version for v in list_versions(project)))
        raise UnknownVersionError(project.name, str(version), known) from None
    return _version(project, made, _standing(read_ledger(project)))


def resolve(project: Project, version: int | str) -> int:
    """Return a version's number: of ``7``, ``"7"``, or of a stage such as ``"prod"`` (by the ledger)."""
    if isinstance(version, int) or _is_number(version):
        return int(version)
    project.raise_for_stage(version)
    standing = _standing(read_ledger(project))
    if version not in standing:
        raise EmptyStageError(project.name, version, tuple(s for s in project.stages if s in standing))
    reads.note("stage", version, standing[version].version)
    return standing[version].version


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()  # int() does not read every digit of Unicode


def current(project: Project, stage: str) -> int | None:
    """Return the version that ``stage`` points to, or None."""
    project.raise_for_stage(stage)
    entry = _standing(read_ledger(project)).get(stage)
    version = entry.version if entry else None
    reads.note("stage", stage, version)
    return version


def history(project: Project, stage: str | None = None) -> tuple[Entry, ...]:
    """Return the moves of one stage, or all of them, oldest first."""
    if stage is not None:
        project.raise_for_stage(stage)
    entries = read_ledger(project)
    _note_ledger(project, entries)
    return tuple(entry for entry in entries if stage in (None, entry.stage))


def ledger_head(entries: tuple[Entry, ...]) -> str:
    """Return the hash of the last entry; it changes with every move."""
    return entries[-1].hash if entries else GENESIS


def _note_ledger(project: Project, entries: tuple[Entry, ...]) -> None:
    reads.note("ledger", project.name, ledger_head(entries))


def _version(project: Project, made: ModelVersion, standing: Mapping[str, Entry]) -> Version:
    number = int(made.version)
    metrics = {k.removeprefix(METRIC_TAG): float(v) for k, v in made.tags.items() if k.startswith(METRIC_TAG)}
    return Version(
        name=made.name,
        version=number,
        model_id=str(made.source).removeprefix("models:/"),
        run_id=made.run_id or "",
        digest=made.tags.get(integrity.DIGEST_TAG, ""),
        created_at=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        stages=tuple(s for s in project.stages if s in standing and standing[s].version == number),
        metrics=metrics,
        description=made.description or "",
    )


# --- moves -------------------------------------------------------------------------------------------------------


def promote(
    project: Project, version: int, stage: str, *, verdict: Report | None = None, reason: str = "", force: bool = False
) -> Entry:
    """Move a version to the next stage, on a verdict that still holds.

    Parameters
    ----------
    version : int
    stage : str
        Where to; the version must stand in the stage before it.
    verdict : Report, optional
        As ``gates.check_gates`` made it; by default the latest one logged for this version.
    reason : str
        Written in the ledger; required with ``force``.
    force : bool
        Move in spite of a verdict that failed or is missing. Recorded as ``force`` for ever.

    Raises
    ------
    PromotionRefusedError, HeadMovedError, ModelFileError, UnknownVersionError, UnknownStageError, ReasonTooLongError
        The stage still has the version it had.
    """
    project.raise_for_stage(stage)
    _raise_for_reason(reason)
    client = store.connect(project.tracking_uri)
    candidate = get_version(project, version)
    seen = read_ledger(project)
    standing = _standing(seen)
    now = standing[stage].version if stage in standing else None

    def refuse(why: str) -> PromotionRefusedError:
        return PromotionRefusedError(project.name, candidate.version, stage, why, now)

    index = project.stages.index(stage)
    if index == 0:
        raise refuse(f"'{stage}' is where versions are registered; nothing is promoted to it")
    if now == candidate.version:
        raise refuse("it is there already")
    before = project.stages[index - 1]
    if not any(entry.stage == before and entry.version == candidate.version for entry in seen):
        raise refuse(f"it has never been in {before}")
    if index > 1 and candidate.version != standing[before].version:
        raise refuse(f"{before} has version {standing[before].version} by now")
    if force and not reason.strip():
        raise refuse("forcing takes a reason")
    status = str(client.get_run(candidate.run_id).info.status)
    if status != "FINISHED":
        raise refuse(f"its run is {status}, not FINISHED")
    _raise_unless_intact(project, candidate)
    verdict = verdict or load_verdict(project, candidate.version)
    if not force:
        why = _why_not(project, candidate, verdict, standing)
        if why:
            raise refuse(why)
    return _append(
        project,
        client,
        seen,
        action="force" if force else "promote",
        stage=stage,
        version=candidate.version,
        from_version=now,
        model_id=candidate.model_id,
        digest=candidate.digest,
        verdict=verdict_digest(verdict) if verdict else "",
        reason=reason or "gates passed",
    )


def rollback(project: Project, stage: str, *, to: int | None = None, reason: str) -> Entry:
    """Move a stage back to the version it had before (or to version ``to``, which it must have had).

    The version is verified and loaded before the move counts; gates are not asked again.

    Raises
    ------
    RollbackRefusedError, HeadMovedError, ModelFileError, ReasonTooLongError
        The stage still has the version it had.
    """
    project.raise_for_stage(stage)
    _raise_for_reason(reason)
    client = store.connect(project.tracking_uri)
    seen = read_ledger(project)
    moves = [entry for entry in seen if entry.stage == stage]
    now = moves[-1].version if moves else None
    earlier = [entry for entry in _undo(moves) if entry.version != now]
    had = {entry.version: entry for entry in moves if entry.version != now}
    if not moves or not had:
        raise RollbackRefusedError(project.name, stage, "it has never had another version", now)
    if to is not None and to not in had:
        known = ", ".join(str(number) for number in sorted(had))
        raise RollbackRefusedError(project.name, stage, f"it never had version {to}; it had {known}", now)
    if to is None and not earlier:
        known = ", ".join(str(number) for number in sorted(had))
        raise RollbackRefusedError(project.name, stage, f"that is the oldest it had; name one of {known} (--to)", now)
    target = had[to] if to is not None else earlier[-1]
    load_model(project, target.version, digest=target.digest)
    return _append(
        project,
        client,
        seen,
        action="rollback",
        stage=stage,
        version=target.version,
        from_version=now,
        model_id=target.model_id,
        digest=target.digest,
        verdict=target.verdict,
        reason=reason,
    )


def _undo(moves: list[Entry]) -> list[Entry]:
    """Return the moves that a rollback can go back through: each rollback undoes what came after its target."""
    stack: list[Entry] = []
    for entry in moves:
        if entry.action == "rollback":
            while stack and stack[-1].version != entry.version:
                stack.pop()
        elif not stack or stack[-1].version != entry.version:
            stack.append(entry)
    return stack


# --- verdicts ----------------------------------------------------------------------------------------------------


def verdict_digest(verdict: Report) -> str:
    """Return the SHA-256 of a verdict's canonical JSON."""
    return hashlib.sha256(verdict.to_json().encode()).hexdigest()


def log_verdict(project: Project, version: int, verdict: Report) -> str:
    """Log a verdict (JSON and HTML) to the active run and point the version at it; return its digest."""
    client = store.connect(project.tracking_uri)
    run = mlflow.active_run()
    if run is None:
        raise ValueError("a verdict is logged inside `with tracking.start_run(project)`")
    client.log_text(run.info.run_id, verdict.to_json(), VERDICT_FILE)
    client.log_text(run.info.run_id, f'<meta charset="utf-8">{verdict._repr_html_()}', "verdict.html")
    client.set_model_version_tag(project.name, str(version), VERDICT_TAG, run.info.run_id)
    return verdict_digest(verdict)


def load_verdict(project: Project, version: int) -> Report | None:
    """Return the verdict that was last logged for a version, or None."""
    client = store.connect(project.tracking_uri)
    run_id = client.get_model_version(project.name, str(version)).tags.get(VERDICT_TAG)
    if not run_id:
        return None
    uri = f"runs:/{run_id}/{VERDICT_FILE}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
            return Report.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, MlflowException, ValueError, KeyError, TypeError):
            return None  # gone or cut short: there is no verdict that could carry anything


def _why_not(  # noqa: PLR0911 - one return per reason reads better than a chain
    project: Project, candidate: Version, verdict: Report | None, standing: Mapping[str, Entry]
) -> str | None:
    """Return why a verdict does not carry this promotion, or None if it does. Everything is recomputed."""
    if verdict is None:
        return "there is no verdict on it; run 03_validate"
    facts = verdict.facts
    if facts.get("digest") != candidate.digest or facts.get("version") != candidate.version:
        return "the verdict is about another version or other model files"
    champion = standing.get(project.production)
    if facts.get("champion_digest") != (champion.digest if champion else None):
        return "the verdict compares it with another champion than the present one"
    if facts.get("gates") != gates_digest(project):
        return "the project's gates have changed since the verdict"
    if not facts.get("inputs"):
        return "the verdict does not say which evaluation data it rests on"
    for name, fingerprint in dict(facts["inputs"]).items():
        path = project.root / name
        if not path.is_file() or data.fingerprint_file(path) != fingerprint:
            return f"the evaluation data '{name}' is gone or has changed since the verdict"
    if not verdict.passed:
        rows = verdict.failures
        text = ". ".join(f"{row.name} is {_short(row.value)}, needs {row.limit}" for row in rows[:3])
        return f"{len(rows)} of {len(verdict.rows)} gates failed. {text}"
    return None


def gates_digest(project: Project) -> str:
    """Return the SHA-256 of the definitions of the project's gates."""
    return hashlib.sha256(repr(project.gates).encode()).hexdigest()


def _short(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def read_lineage(project: Project, version: Version) -> dict[str, str]:
    """Return where a version came from: run, notebook, commit, lock, inputs with fingerprints, parameters."""
    run = store.connect(project.tracking_uri).get_run(version.run_id)
    ours = ("mlops.notebook", "mlops.commit", "mlops.dirty", "mlops.lock", "mlops.actor", "mlops.input.")
    tags = {k.removeprefix("mlops."): v for k, v in sorted(run.data.tags.items()) if k.startswith(ours)}
    params = {f"param.{name}": value for name, value in sorted(run.data.params.items())}
    return {"run": f"{version.run_id} {run.info.status}", **tags, **params}


# --- loading -----------------------------------------------------------------------------------------------------


def load_model(project: Project, version: int | str, *, digest: str | None = None) -> Release:
    """Load a version (by number or stage) through the one verified way.

    The files are copied to a private folder, compared with the manifest of the registration, read as data and only
    then deserialized with our list of types; the model must give its stored predictions.

    Raises
    ------
    ModelFileError, UntrustedTypesError, UnknownVersionError, EmptyStageError
        Nothing was loaded.
    """
    found = get_version(project, version)
    name = f"Version {found.version} of '{project.name}'"
    manifest = _manifest(project, found, digest)
    with tempfile.TemporaryDirectory(prefix="mlops-") as folder:
        _download(found.model_id, folder)
        files = integrity.load_model_files(Path(folder), manifest, name=name, extra=project.trusted_types)
    stage = version if isinstance(version, str) and not _is_number(version) else None
    return Release(project.name, found.version, stage, found.model_id, found.run_id, files)


def _raise_unless_intact(project: Project, version: Version) -> None:
    manifest = _manifest(project, version)
    with tempfile.TemporaryDirectory() as folder:
        _download(version.model_id, folder)
        integrity.raise_for_files(Path(folder), manifest, model=f"Version {version.version} of '{version.name}'")


def _manifest(project: Project, version: Version, digest: str | None = None) -> dict[str, Any]:
    """Return the manifest that stands on a version, after comparing it with ``digest`` or the one in the ledger."""
    name = f"Version {version.version} of '{project.name}'"
    tags = MlflowClient().get_model_version(project.name, str(version.version)).tags
    if integrity.MANIFEST_TAG not in tags:
        raise ModelFileError(name, "manifest", "was never recorded")
    try:
        manifest = dict(json.loads(tags[integrity.MANIFEST_TAG]))
    except ValueError as error:
        raise ModelFileError(name, "manifest", "cannot be read") from error
    if integrity.compute_digest(manifest) != (digest or _registered_digest(project, version)):
        raise ModelFileError(name, "manifest", "is not the one in the ledger")
    return manifest


def _registered_digest(project: Project, version: Version) -> str:
    entries = [e for e in read_ledger(project) if e.version == version.version and e.action == "register"]
    return entries[-1].digest if entries else version.digest


def _download(model_id: str, folder: str) -> None:
    """Copy a model's files to ``folder``; a missing artifact folder is a missing file, not an empty model."""
    try:
        mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=folder)
    except (OSError, MlflowException) as error:
        raise ModelFileError(f"Model '{model_id}'", "its folder", "cannot be read from the artifact store") from error
