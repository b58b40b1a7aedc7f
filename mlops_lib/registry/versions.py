"""Versions and releases: register a logged model, list, find, load through the one verified way."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import models
from mlops_lib.data import reads
from mlops_lib.errors import ModelError, ModelFileError, NotFoundError, QualityError
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.registry.entries import Draft, Entry, Ledger, Records
from mlops_lib.registry.ledger import append_latest, ensure_ledger, open_ledger, raise_for_length, translate_errors
from mlops_lib.registry.reading import note_ledger, read_ledger
from mlops_lib.task import Task
from mlops_lib.tracking import store

if TYPE_CHECKING:
    import numpy.typing as npt

METRIC_TAG = "mlops.metric."
PAGE = 1000  # versions that the store is asked for at once
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


# --- registering and finding -------------------------------------------------------------------------------------


@translate_errors
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
    raise_for_length(project, description)
    for metric, value in (metrics or {}).items():
        if not math.isfinite(float(value)):
            raise QualityError("metric", name=metric, value=value)
    client = store.connect(project.tracking_uri)
    model = _find_finished(client, model_uri)
    model_id, stage = model.model_id, project.stages[0]
    manifest = json.loads(model.tags[models.MANIFEST_TAG])
    with tempfile.TemporaryDirectory() as folder:
        _download(model_id, folder)
        models.raise_for_files(Path(folder), manifest, model=f"Model '{model_id}'")
    digest = models.compute_digest(manifest)
    _raise_for_signature(project, digest, model.tags, f"Model '{model_id}'")
    ledger = ensure_ledger(project, client)  # before the version is made: a broken ledger leaves none behind
    kept = (models.MANIFEST_TAG, signing.MANIFEST_SIGNATURE_TAG)
    operation = uuid.uuid4().hex
    registered = client.create_model_version(
        project.name,
        source=f"models:/{model_id}",
        run_id=model.source_run_id,
        tags={
            models.DIGEST_TAG: digest,
            OPERATION_TAG: operation,
            **{tag: model.tags[tag] for tag in kept if tag in model.tags},
            **{f"{METRIC_TAG}{name}": f"{value:.6g}" for name, value in (metrics or {}).items()},
        },
        description=description,
        model_id=model_id,
    )
    number = int(registered.version)
    _delete_twins(project, client, number, operation)

    def enter(ledger: Ledger) -> Draft:  # another registration only moves the stage on: follow it
        return Draft(
            action="register",
            stage=stage,
            version=number,
            from_version=ledger.current(stage),
            model_id=model_id,
            digest=digest,
            reason=description or "registered",
            operation=operation,
        )

    return _version(project, registered, {stage: append_latest(project, client, enter, ledger)})


def _find_finished(client: MlflowClient, model_uri: str) -> LoggedModel:
    """Return the logged model at ``models:/m-…``; raise unless it is complete and its run has not failed."""
    model_id = model_uri.removeprefix("models:/")
    try:
        model = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code not in store.MISSING:
            raise
        raise ModelError("run", model_id=model_uri, reason="the store has no such model") from error
    if str(model.status) not in ("READY", "LoggedModelStatus.READY"):
        raise ModelError("run", model_id=model_id, reason=f"it is {model.status}, not READY")
    if models.MANIFEST_TAG not in model.tags:
        raise ModelError("run", model_id=model_id, reason="it has no manifest; log it with tracking.log_model")
    run = client.get_run(str(model.source_run_id)).info
    if run.status in ("FAILED", "KILLED") or run.lifecycle_stage != "active":
        state = run.status if run.lifecycle_stage == "active" else "deleted"
        raise ModelError("run", model_id=model_id, reason=f"its run '{model.source_run_id}' is {state}")
    return model


def _delete_twins(project: Project, client: MlflowClient, number: int, operation: str) -> None:
    """Delete what a retry has left: MLflow's client asks again when an answer is lost, and makes a second version."""
    twins = client.search_model_versions(f"name = '{project.name}' and tags.`{OPERATION_TAG}` = '{operation}'")
    for twin in twins:
        if int(twin.version) != number:
            client.delete_model_version(project.name, twin.version)


@translate_errors
def list_versions(project: Project) -> Versions:
    """Return every version, newest first, with the stages it is in."""
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    note_ledger(project, ledger)
    standing = ledger.standing
    versions = (_version(project, model_version, standing) for model_version in search_versions(project, client))
    return Versions(sorted(versions, key=lambda version: -version.version))


def search_versions(project: Project, client: MlflowClient) -> list[ModelVersion]:
    """Return every version that the store has, asked for page by page."""
    order = ["version_number ASC"]  # no update between two pages can change it
    versions: list[ModelVersion] = []
    token = None
    while token is None or token:
        page = client.search_model_versions(f"name = '{project.name}'", PAGE, order, token)
        versions += page
        token = page.token or ""
    return versions


@translate_errors
def get_version(project: Project, version: int | str) -> Version:
    """Return one version by its number, or by the stage it is in.

    Raises
    ------
    NotFoundError
    """
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    return _version(project, find(project, client, ledger, version), ledger.standing)


def find(project: Project, client: MlflowClient, ledger: Ledger, version: int | str) -> ModelVersion:
    """Return what the store has of a version; one that the ledger has deleted is not there, even if its end was cut."""
    number = _number(project, ledger, version)
    if number not in ledger.deleted:
        with store.ignore_codes(*store.MISSING):
            return client.get_model_version(project.name, str(number))
    known = sorted({int(model_version.version) for model_version in search_versions(project, client)} - ledger.deleted)
    raise NotFoundError("version", name=project.name, version=str(version), versions=tuple(known))


def resolve(project: Project, version: int | str) -> int:
    """Return a version's number: of ``7``, ``"7"``, or of a stage such as ``"prod"`` (by the ledger)."""
    if _is_number(version):
        return int(version)
    return _number(project, Ledger(project.name, read_ledger(project)), version)


def _number(project: Project, ledger: Ledger, version: int | str) -> int:
    if _is_number(version):
        return int(version)
    stage = str(version)
    project.raise_for_stage(stage)
    standing = ledger.standing
    if stage not in standing:
        filled = tuple(s for s in project.stages if s in standing)
        raise NotFoundError("version_in_stage", name=project.name, stage=stage, filled=filled)
    reads.note("stage", stage, standing[stage].version)
    return standing[stage].version


def _is_number(version: int | str) -> bool:
    return isinstance(version, int) or (version.isascii() and version.isdigit())  # int() reads all digits of Unicode


def current(project: Project, stage: str) -> int | None:
    """Return the version that ``stage`` points to, or None."""
    project.raise_for_stage(stage)
    version = Ledger(project.name, read_ledger(project)).current(stage)
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


@translate_errors
def read_lineage(project: Project, version: Version) -> dict[str, str]:
    """Return where a version came from: run, task, notebook, commit, lock, inputs with fingerprints, parameters."""
    run = store.connect(project.tracking_uri).get_run(version.run_id)
    ours = ("mlops.task", "mlops.notebook", "mlops.commit", "mlops.dirty", "mlops.lock", "mlops.actor", "mlops.input.")
    tags = {k.removeprefix("mlops."): v for k, v in sorted(run.data.tags.items()) if k.startswith(ours)}
    params = {f"param.{name}": value for name, value in sorted(run.data.params.items())}
    return {"run": f"{version.run_id} {run.info.status}", **tags, **params}


# --- loading -----------------------------------------------------------------------------------------------------


@translate_errors
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
    client = store.connect(project.tracking_uri)
    return load_release(project, client, open_ledger(project, client), version, folder=folder)


def load_release(
    project: Project,
    client: MlflowClient,
    ledger: Ledger,
    version: int | str,
    *,
    digest: str | None = None,
    folder: Path | None = None,
) -> Release:
    """Load a version as :func:`load_model` does, by a ledger that was read already; ``digest`` is what it must have."""
    model_version = find(project, client, ledger, version)
    name = f"Version {model_version.version} of '{project.name}'"
    manifest = _manifest(project, model_version, ledger, name, digest)
    model_id = _model_id(model_version, ledger)
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="mlops-") as place:
        _download(model_id, str(place))
        files = models.load_model_files(Path(place), manifest, name=name, extra=project.trusted_types)
    stage = None if _is_number(version) else str(version)
    return Release(project.name, int(model_version.version), stage, model_id, model_version.run_id or "", files)


def verify_files(project: Project, model_version: ModelVersion, ledger: Ledger) -> str:
    """Return the digest of a version's files, if they are those of its registration and signed as the project asks.

    Raises
    ------
    ModelFileError, SignatureError
    """
    name = f"Version {model_version.version} of '{project.name}'"
    manifest = _manifest(project, model_version, ledger, name)
    with tempfile.TemporaryDirectory() as folder:
        _download(_model_id(model_version, ledger), folder)
        models.raise_for_files(Path(folder), manifest, model=name)
    return models.compute_digest(manifest)


def _raise_for_signature(project: Project, digest: str, tags: Mapping[str, str], subject: str) -> None:
    """Raise ``SignatureError`` unless a key that the project trusts has signed the manifest; none asks for none."""
    text, signature = signing.manifest_text(project.name, digest), tags.get(signing.MANIFEST_SIGNATURE_TAG)
    signing.raise_for_signature(text, signature, project.trusted_keys, subject=subject)


def _manifest(
    project: Project, model_version: ModelVersion, ledger: Ledger, name: str, digest: str | None = None
) -> dict[str, Any]:
    """Return the manifest that stands on a version, after comparing it with ``digest`` or that of its registration."""
    if models.MANIFEST_TAG not in model_version.tags:
        raise ModelFileError("unread", model=name, file="manifest", reason="was never recorded")
    try:
        manifest = dict(json.loads(model_version.tags[models.MANIFEST_TAG]))
    except ValueError as error:
        raise ModelFileError("unread", model=name, file="manifest", reason="cannot be read") from error
    entry = ledger.registration(int(model_version.version))
    registered = entry.digest if entry else model_version.tags.get(models.DIGEST_TAG, "")
    if models.compute_digest(manifest) != (digest or registered):
        raise ModelFileError("unread", model=name, file="manifest", reason="is not the one of its registration")
    _raise_for_signature(project, models.compute_digest(manifest), model_version.tags, name)
    return manifest


def _model_id(model_version: ModelVersion, ledger: Ledger) -> str:
    """Return the model that was registered, whatever the store says by now."""
    entry = ledger.registration(int(model_version.version))
    return entry.model_id if entry else str(model_version.source).removeprefix("models:/")


def _download(model_id: str, folder: str) -> None:
    """Copy a model's files to ``folder``; a missing artifact folder is a missing file, not an empty model."""
    try:
        store.download_model(model_id, Path(folder))
    except (OSError, MlflowException) as error:
        reason = "cannot be read from the artifact store"
        raise ModelFileError("unread", model=f"Model '{model_id}'", file="its folder", reason=reason) from error
