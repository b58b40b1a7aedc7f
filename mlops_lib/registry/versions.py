"""Versions and releases: register a logged model, list, find, load through the one verified way."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import models
from mlops_lib.data import reads
from mlops_lib.errors import LedgerError, ModelError, ModelFileError, NotFoundError, QualityError
from mlops_lib.models import signing
from mlops_lib.models.limits import MAX_FILES
from mlops_lib.project import Project
from mlops_lib.registry.entries import Entry, Records
from mlops_lib.registry.ledger import append, ensure_ledger, note_ledger, open_ledger, raise_for_words
from mlops_lib.registry.rules import Ledger
from mlops_lib.task import Task
from mlops_lib.tracking import store

if TYPE_CHECKING:
    import numpy.typing as npt

METRIC_TAG = "mlops.metric."
OPERATION_TAG = "mlops.operation"  # of the registration that made a version


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


class Versions(Records[Version]):
    """Versions, newest first."""

    def frame(self) -> pd.DataFrame:
        """Return the versions, indexed by number, with a column for each metric that one of them has."""
        metrics = list(dict.fromkeys(name for version in self for name in version.metrics))
        columns = ["version", "stages", *metrics, "description", "created_at", "run_id", "model_id", "digest"]
        rows = [{**version.metrics, **vars(version), "stages": ", ".join(version.stages)} for version in self]
        frame = pd.DataFrame(rows, columns=columns).set_index("version")
        return frame.assign(created_at=pd.to_datetime(frame["created_at"], utc=True))


@dataclass(frozen=True)
class Release:
    """A version that was loaded and verified, and is ready to score."""

    name: str
    version: int
    stage: str | None
    model_id: str
    run_id: str
    files: models.ModelFiles

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
    def task(self) -> Task:
        """What the model is asked for, with its classes and its operating point."""
        return self.files.task

    def predict(self, X: pd.DataFrame) -> npt.NDArray[Any]:
        """Return the model's scores for rows that have its features; see :meth:`mlops_lib.task.Task.predict`."""
        return self.task.predict(self.model, X[self.features])


@store.translate_errors
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
    ModelError, ModelFileError, QualityError, LedgerError
        No version was made.
    RefusedError
        The model was deleted and made again meanwhile; the new one is as it was.
    """
    raise_for_words(project, description)
    for metric, value in (metrics or {}).items():
        if not math.isfinite(float(value)):
            raise QualityError("metric", name=metric, value=value)
    client = store.connect(project.tracking_uri, create=False)
    store.raise_for_read_only(project.tracking_uri)
    model = _find_finished(client, model_uri)
    name, stage, manifest = f"Model '{model.model_id}'", project.stages[0], json.loads(model.tags[models.MANIFEST_TAG])
    digest = _raise_for_files(model.model_id, manifest, name)
    _raise_for_signature(project, digest, model.tags, name)
    ledger = ensure_ledger(project, client)  # before the version is made: a broken ledger leaves none behind
    operation = uuid.uuid4().hex
    tags = {tag: model.tags[tag] for tag in (models.MANIFEST_TAG, signing.MANIFEST_SIGNATURE_TAG) if tag in model.tags}
    tags |= {f"{METRIC_TAG}{metric}": f"{value:.6g}" for metric, value in (metrics or {}).items()}
    registered = client.create_model_version(
        project.name,
        source=f"models:/{model.model_id}",
        run_id=model.source_run_id,
        tags={**tags, models.DIGEST_TAG: digest, OPERATION_TAG: operation},
        description=description,
        model_id=model.model_id,
    )
    # MLflow's client asks again when an answer is lost, and so makes a second version: the one that was answered stays.
    for twin in client.search_model_versions(f"name = '{project.name}' and tags.`{OPERATION_TAG}` = '{operation}'"):
        if twin.version != registered.version:
            client.delete_model_version(project.name, twin.version)

    number, reason = int(registered.version), description or "registered"
    files: dict[str, Any] = {"version": number, "model_id": model.model_id, "digest": digest}

    def enter(ledger: Ledger) -> Entry:  # another registration only moves the stage on: follow it
        entry = Entry(action="register", stage=stage, reason=reason, operation=operation, **files)
        return replace(entry, from_version=ledger.state.current(stage))

    made = _version(project, registered, {stage: append(project, client, ledger, enter)})
    reads.note("made version", str(number), digest)
    return made


def _find_finished(client: MlflowClient, model_uri: str) -> LoggedModel:
    """Return the logged model at ``models:/m-…``; raise unless it is complete and its run has not failed."""
    model_id = model_uri.removeprefix("models:/")
    model = None
    with store.ignore_codes(*store.MISSING):
        model = client.get_logged_model(model_id)
    if model is None:
        raise ModelError("run", model_id=model_uri, reason="the store has no such model")
    reason = ""
    if model.status != LoggedModelStatus.READY:
        reason = f"it is {model.status}, not READY"
    elif models.MANIFEST_TAG not in model.tags:
        reason = "it has no manifest; log it with tracking.log_model"
    elif (state := find_run_state(client, model.source_run_id)) in ("FAILED", "KILLED", "deleted"):
        reason = f"its run '{model.source_run_id}' is {state}"
    if reason:
        raise ModelError("run", model_id=model_id, reason=reason)
    return model


def find_run_state(client: MlflowClient, run_id: str | None) -> str:
    """Return a run's status, or ``deleted``."""
    run = client.get_run(str(run_id)).info
    return str(run.status) if run.lifecycle_stage == "active" else "deleted"


@store.translate_errors
def list_versions(project: Project) -> Versions:
    """Return every version, newest first, with the stages it is in."""
    _, ledger = open_ledger(project)
    note_ledger(ledger)
    standing = ledger.state.standing
    versions = (_version(project, stored, standing) for stored in search_versions(project))
    return Versions(sorted(versions, key=lambda version: -version.version))


def search_versions(project: Project) -> list[ModelVersion]:
    """Return every version that the store has."""
    order = ["version_number ASC"]  # no update between two pages can change it
    return list(mlflow.search_model_versions(filter_string=f"name = '{project.name}'", order_by=order))


@store.translate_errors
def get_version(project: Project, version: int | str) -> Version:
    """Return one version by its number, or by the stage it is in.

    Raises
    ------
    NotFoundError
    """
    client, ledger = open_ledger(project)
    return _version(project, find(project, client, ledger, version), ledger.state.standing)


def find(project: Project, client: MlflowClient, ledger: Ledger, version: int | str) -> ModelVersion:
    """Return what the store has of a version; one that the ledger has deleted is not there, even if its end was cut."""
    number = resolve(project, version, ledger)
    if number not in ledger.state.deleted:
        with store.ignore_codes(*store.MISSING):
            return client.get_model_version(project.name, str(number))
    known = sorted({int(stored.version) for stored in search_versions(project)} - ledger.state.deleted)
    raise NotFoundError("version", name=project.name, version=str(version), versions=tuple(known))


def resolve(project: Project, version: int | str, ledger: Ledger | None = None) -> int:
    """Return a version's number: of ``7``, ``"7"``, or of a stage such as ``"prod"`` (by the ledger)."""
    if isinstance(version, int) or (version.isascii() and version.isdigit()):  # int() reads all digits of Unicode
        return int(version)
    stage = str(version)
    project.raise_for_stage(stage)
    standing = (ledger or open_ledger(project)[1]).state.standing
    if stage not in standing:
        filled = tuple(s for s in project.stages if s in standing)
        raise NotFoundError("version_in_stage", name=project.name, stage=stage, filled=filled)
    reads.note("stage", stage, standing[stage].version)
    return standing[stage].version


def standing(project: Project) -> dict[str, Entry | None]:
    """Return for each stage the move that put its present version there, or None where it is empty."""
    found = open_ledger(project)[1].state.standing
    for stage in project.stages:
        reads.note("stage", stage, found[stage].version if stage in found else None)
    return {stage: found.get(stage) for stage in project.stages}


def current(project: Project, stage: str) -> int | None:
    """Return the version that ``stage`` points to, or None."""
    project.raise_for_stage(stage)
    version = open_ledger(project)[1].state.current(stage)
    reads.note("stage", stage, version)
    return version


def _version(project: Project, model_version: ModelVersion, standing: Mapping[str, Entry]) -> Version:
    number = int(model_version.version)
    metrics = {k.removeprefix(METRIC_TAG): float(v) for k, v in model_version.tags.items() if k.startswith(METRIC_TAG)}
    return Version(
        name=model_version.name,
        version=number,
        model_id=str(model_version.source).removeprefix("models:/"),
        run_id=model_version.run_id or "",
        digest=model_version.tags.get(models.DIGEST_TAG, ""),
        created_at=datetime.fromtimestamp(model_version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        stages=tuple(s for s in project.stages if s in standing and standing[s].version == number),
        metrics=metrics,
        description=model_version.description or "",
    )


@store.translate_errors
def read_lineage(project: Project, version: Version) -> dict[str, str]:
    """Return where a version came from: run, task, notebook, commit, lock, inputs with fingerprints, parameters."""
    run = store.connect(project.tracking_uri, create=False).get_run(version.run_id)
    ours = ("mlops.task", "mlops.notebook", "mlops.commit", "mlops.dirty", "mlops.lock", "mlops.actor", "mlops.input.")
    tags = {k.removeprefix("mlops."): v for k, v in sorted(run.data.tags.items()) if k.startswith(ours)}
    params = {f"param.{name}": value for name, value in sorted(run.data.params.items())}
    return {"run": f"{version.run_id} {run.info.status}", **tags, **params}


@store.translate_errors
def load_model(project: Project, version: int | str, *, folder: Path | None = None) -> Release:
    """Load a version (by number or stage) through the one verified way.

    The files are copied to a private folder, compared with the manifest of the registration, read as data and only
    then deserialized with our list of types; the model must give its stored predictions.

    Parameters
    ----------
    folder : Path, optional
        A private folder in which the files stay; by default they are removed.

    Raises
    ------
    ModelFileError, ModelError, NotFoundError
        Nothing was loaded.
    """
    try:
        client, ledger = open_ledger(project)
    except LedgerError:
        if str(version) in project.stages:
            raise
        client, ledger = open_ledger(project, with_moves=False)  # a number needs no more than its registration
    stored = find(project, client, ledger, version)
    name, model_id, manifest = _read_registered(project, stored, ledger)
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="mlops-") as place:
        _download(model_id, Path(place), manifest, name)
        files = models.load_model_files(Path(place), manifest, name=name, extra=project.trusted_types)
    stage = str(version) if version in project.stages else None
    return Release(project.name, int(stored.version), stage, model_id, stored.run_id or "", files)


def verify_files(project: Project, model_version: ModelVersion, ledger: Ledger) -> str:
    """Return the digest of a version's files, if they are those of its registration and signed as the project asks.

    Raises
    ------
    ModelFileError, SignatureError
    """
    name, model_id, manifest = _read_registered(project, model_version, ledger)
    return _raise_for_files(model_id, manifest, name)


def _raise_for_files(model_id: str, manifest: Mapping[str, Any], name: str) -> str:
    """Raise ``ModelFileError`` unless a model's files are those of its manifest; return the manifest's digest."""
    with tempfile.TemporaryDirectory() as folder:
        _download(model_id, Path(folder), manifest, name)
        models.raise_for_files(Path(folder), manifest, model=name)
    return models.compute_digest(manifest)


def _raise_for_signature(project: Project, digest: str, tags: Mapping[str, str], subject: str) -> None:
    """Raise ``SignatureError`` unless a key that the project trusts has signed the manifest; none asks for none."""
    text, signature = signing.manifest_text(project.name, digest), tags.get(signing.MANIFEST_SIGNATURE_TAG)
    signing.raise_for_signature(text, signature, project.trusted_keys, subject=subject)


def _read_registered(project: Project, model_version: ModelVersion, ledger: Ledger) -> tuple[str, str, dict[str, Any]]:
    """Return a version's name for messages, its model and its manifest, all of them as they were registered."""
    name = f"Version {model_version.version} of '{project.name}'"
    tags, files = model_version.tags, ledger.state.files(int(model_version.version))
    manifest: dict[str, Any] = {}
    reason = ""
    try:
        manifest = json.loads(tags[models.MANIFEST_TAG])
    except KeyError:
        reason = "was never recorded"
    except ValueError:
        reason = "cannot be read"
    if not reason and models.compute_digest(manifest) != files.get("digest", tags.get(models.DIGEST_TAG, "")):
        reason = "is not the one of its registration"
    if reason:
        raise ModelFileError("unread", model=name, file="manifest", reason=reason)
    _raise_for_signature(project, models.compute_digest(manifest), tags, name)
    return name, files.get("model_id", str(model_version.source).removeprefix("models:/")), manifest


def _download(model_id: str, folder: Path, manifest: Mapping[str, Any], name: str) -> None:
    """Copy a model's files to ``folder``, once they have the sizes of their manifest.

    A missing artifact folder is a missing file, not an empty model; a full disk is this machine's fault.
    """
    try:
        models.raise_for_sizes(store.list_model(model_id, limit=MAX_FILES), manifest, model=name)
        store.download_model(model_id, folder)
    except (OSError, MlflowException) as error:
        if shutil.disk_usage(folder).free < (needed := sum(file["size"] for file in manifest.values())):
            raise ModelFileError("no_room", model=name, needed=needed, folder=folder.parent) from error
        reason = "cannot be read from the artifact store"
        raise ModelFileError("unread", model=f"Model '{model_id}'", file="its folder", reason=reason) from error
