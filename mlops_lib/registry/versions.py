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
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import models
from mlops_lib.data import reads
from mlops_lib.errors import (
    ModelError,
    ModelFileError,
    NotFoundError,
    QualityError,
)
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.registry.ledger import (
    Entry,
    Facts,
    Ledger,
    answered,
    append_latest,
    found,
    note,
    open_ledger,
    raise_for_length,
    read_ledger,
    uncollected,
)
from mlops_lib.tracking import store

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
    def threshold(self) -> float:
        """Operating point that was stored with the model."""
        return float(self.files.metadata["mlops"]["threshold"])


# --- registering and finding -------------------------------------------------------------------------------------


@answered
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
    model_id = model_uri.removeprefix("models:/")
    try:
        model = client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
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
    manifest = json.loads(model.tags[models.MANIFEST_TAG])
    with tempfile.TemporaryDirectory() as folder:
        _download(model_id, folder)
        models.raise_for_files(Path(folder), manifest, model=f"Model '{model_id}'")
    digest = models.compute_digest(manifest)
    _raise_for_signature(project, digest, model.tags, f"Model '{model_id}'")
    kept = (models.MANIFEST_TAG, signing.MANIFEST_SIGNATURE_TAG)
    tags = {models.DIGEST_TAG: digest, **{tag: model.tags[tag] for tag in kept if tag in model.tags}}
    tags |= {f"{METRIC_TAG}{name}": f"{value:.6g}" for name, value in (metrics or {}).items()}
    seen = found(project, client)  # before the version is made: a broken ledger leaves none behind
    operation = uuid.uuid4().hex
    made = client.create_model_version(
        project.name,
        source=f"models:/{model_id}",
        run_id=model.source_run_id,
        tags={**tags, OPERATION_TAG: operation},
        description=description,
        model_id=model_id,
    )
    number = int(made.version)
    _delete_twins(project, client, number, operation)
    stage = project.stages[0]

    def enter(seen: Ledger) -> Facts:  # another registration only moves the stage on: follow it
        return {
            "action": "register",
            "stage": stage,
            "version": number,
            "from_version": seen.standing[stage].version if stage in seen.standing else None,
            "model_id": model_id,
            "digest": digest,
            "reason": description or "registered",
            "operation": operation,
        }

    return _version(project, made, {stage: append_latest(project, client, enter, seen)})


def _delete_twins(project: Project, client: MlflowClient, number: int, operation: str) -> None:
    """Delete what a retry has left: MLflow's client asks again when an answer is lost, and makes a second version."""
    twins = client.search_model_versions(f"name = '{project.name}' and tags.`{OPERATION_TAG}` = '{operation}'")
    for twin in twins:
        if int(twin.version) != number:
            client.delete_model_version(project.name, twin.version)


@answered
def list_versions(project: Project) -> list[Version]:
    """Return every version, newest first, with the stages it is in."""
    client = store.connect(project.tracking_uri)
    ledger = open_ledger(project, client)
    note(project, ledger)
    standing = ledger.standing
    versions = [_version(project, made, standing) for made in search_versions(project, client)]
    return sorted(versions, key=lambda version: -version.version)


@uncollected()
def search_versions(project: Project, client: MlflowClient) -> list[ModelVersion]:
    """Return every version that the store has, asked for page by page."""
    order = ["version_number ASC"]  # no update between two pages can change it
    found: list[ModelVersion] = []
    token = None
    while token is None or token:
        page = client.search_model_versions(f"name = '{project.name}'", PAGE, order, token)
        found += page
        token = page.token or ""
    return found


@answered
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
        try:
            return client.get_model_version(project.name, str(number))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    known = sorted({int(made.version) for made in search_versions(project, client)} - ledger.deleted)
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
        raise NotFoundError(
            "version_in_stage", name=project.name, stage=stage, filled=tuple(s for s in project.stages if s in standing)
        )
    reads.note("stage", stage, standing[stage].version)
    return standing[stage].version


def _is_number(version: int | str) -> bool:
    return isinstance(version, int) or (version.isascii() and version.isdigit())  # int() reads all digits of Unicode


def current(project: Project, stage: str) -> int | None:
    """Return the version that ``stage`` points to, or None."""
    project.raise_for_stage(stage)
    entry = Ledger(project.name, read_ledger(project)).standing.get(stage)
    version = entry.version if entry else None
    reads.note("stage", stage, version)
    return version


def _version(project: Project, made: ModelVersion, standing: Mapping[str, Entry]) -> Version:
    number = int(made.version)
    metrics = {k.removeprefix(METRIC_TAG): float(v) for k, v in made.tags.items() if k.startswith(METRIC_TAG)}
    return Version(
        name=made.name,
        version=number,
        model_id=str(made.source).removeprefix("models:/"),
        run_id=made.run_id or "",
        digest=made.tags.get(models.DIGEST_TAG, ""),
        created_at=datetime.fromtimestamp(made.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        stages=tuple(s for s in project.stages if s in standing and standing[s].version == number),
        metrics=metrics,
        description=made.description or "",
    )


@answered
def read_lineage(project: Project, version: Version) -> dict[str, str]:
    """Return where a version came from: run, notebook, commit, lock, inputs with fingerprints, parameters."""
    run = store.connect(project.tracking_uri).get_run(version.run_id)
    ours = ("mlops.notebook", "mlops.commit", "mlops.dirty", "mlops.lock", "mlops.actor", "mlops.input.")
    tags = {k.removeprefix("mlops."): v for k, v in sorted(run.data.tags.items()) if k.startswith(ours)}
    params = {f"param.{name}": value for name, value in sorted(run.data.params.items())}
    return {"run": f"{version.run_id} {run.info.status}", **tags, **params}


# --- loading -----------------------------------------------------------------------------------------------------


@answered
def load_model(
    project: Project, version: int | str, *, digest: str | None = None, folder: Path | None = None
) -> Release:
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
    return load_release(project, client, open_ledger(project, client), version, digest=digest, folder=folder)


def load_release(
    project: Project,
    client: MlflowClient,
    ledger: Ledger,
    version: int | str,
    *,
    digest: str | None = None,
    folder: Path | None = None,
) -> Release:
    """Load a version as :func:`load_model` does, by a ledger that was read already."""
    made = find(project, client, ledger, version)
    name = f"Version {made.version} of '{project.name}'"
    manifest = _manifest(project, made, ledger, name, digest)
    model_id = _model_id(made, ledger)
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="mlops-") as place:
        _download(model_id, str(place))
        files = models.load_model_files(Path(place), manifest, name=name, extra=project.trusted_types)
    stage = None if _is_number(version) else str(version)
    return Release(project.name, int(made.version), stage, model_id, made.run_id or "", files)


def verify_files(project: Project, made: ModelVersion, ledger: Ledger) -> str:
    """Return the digest of a version's files, if they are those of its registration and signed as the project asks.

    Raises
    ------
    ModelFileError, SignatureError
    """
    name = f"Version {made.version} of '{project.name}'"
    manifest = _manifest(project, made, ledger, name)
    with tempfile.TemporaryDirectory() as folder:
        _download(_model_id(made, ledger), folder)
        models.raise_for_files(Path(folder), manifest, model=name)
    return models.compute_digest(manifest)


def _raise_for_signature(project: Project, digest: str, tags: Mapping[str, str], subject: str) -> None:
    """Raise ``SignatureError`` unless a key that the project trusts has signed the manifest; none asks for none."""
    text, signature = signing.manifest_text(project.name, digest), tags.get(signing.MANIFEST_SIGNATURE_TAG)
    signing.raise_for_signature(text, signature, project.trusted_keys, subject=subject)


def _manifest(
    project: Project, made: ModelVersion, ledger: Ledger, name: str, digest: str | None = None
) -> dict[str, Any]:
    """Return the manifest that stands on a version, after comparing it with ``digest`` or that of its registration."""
    if models.MANIFEST_TAG not in made.tags:
        raise ModelFileError("unread", model=name, file="manifest", reason="was never recorded")
    try:
        manifest = dict(json.loads(made.tags[models.MANIFEST_TAG]))
    except ValueError as error:
        raise ModelFileError("unread", model=name, file="manifest", reason="cannot be read") from error
    entry = ledger.registration(int(made.version))
    registered = entry.digest if entry else made.tags.get(models.DIGEST_TAG, "")
    if models.compute_digest(manifest) != (digest or registered):
        raise ModelFileError("unread", model=name, file="manifest", reason="is not the one of its registration")
    _raise_for_signature(project, models.compute_digest(manifest), made.tags, name)
    return manifest


def _model_id(made: ModelVersion, ledger: Ledger) -> str:
    """Return the model that was registered, whatever the store says by now."""
    entry = ledger.registration(int(made.version))
    return entry.model_id if entry else str(made.source).removeprefix("models:/")


def _download(model_id: str, folder: str) -> None:
    """Copy a model's files to ``folder``; a missing artifact folder is a missing file, not an empty model."""
    try:
        store.download_model(model_id, Path(folder))
    except (OSError, MlflowException) as error:
        raise ModelFileError(
            "unread", model=f"Model '{model_id}'", file="its folder", reason="cannot be read from the artifact store"
        ) from error
