"""Runs that say what was run: on which code, data and environment; and models logged so that they can be trusted.

A run is an ordinary MLflow run: inside ``with start_run(project)`` plain ``mlflow.log_*`` works. Added to it are the
commit and whether the tree was dirty (with the difference as an artifact), the notebook and its hash, the lock's hash
and the full-content fingerprint of every input. Refused: a metric that is not a finite number, a model with types that
nobody has reviewed.

>>> with start_run(project, inputs={"arrivals": path}) as run:  # doctest: +SKIP
...     mlflow.log_metric("val_roc_auc", 0.71)
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import numbers
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlops_lib import data, models
from mlops_lib.errors import QualityError
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.redaction import redact
from mlops_lib.tracking import liveness, store

SIGNATURE_ROWS = 1000
EXAMPLE_ROWS = 5
WARMUP_ROWS = 50
# What a saved pipeline needs where it is loaded; inferring this list takes 2.3 s per model and finds the same.
REQUIREMENTS = ("mlflow", "scikit-learn", "skops", "pandas", "numpy", "scipy")


@dataclass(frozen=True)
class LoggedModel:
    """A model in the store that is not yet a version.

    Parameters
    ----------
    model_id : str
    run_id : str
    digest : str
        SHA-256 of the manifest of its files.
    """

    model_id: str
    run_id: str
    digest: str

    @property
    def model_uri(self) -> str:
        """What stock MLflow calls it."""
        return f"models:/{self.model_id}"


@contextlib.contextmanager
def start_run(
    project: Project,
    *,
    run_name: str | None = None,
    inputs: Mapping[str, Path | Sequence[Path] | pd.DataFrame] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[mlflow.ActiveRun]:
    """Open the project's run, or come back to the one that a runner has opened for this notebook.

    Parameters
    ----------
    project : Project
    run_name : str, optional
    inputs : mapping of name to path, paths or DataFrame
        Every table that the run reads; each is fingerprinted in full and shown as an MLflow dataset.
    params, tags : mapping, optional

    Yields
    ------
    mlflow.ActiveRun
        The active run. An exception inside leaves it FAILED; one that is killed is found dead (see
        :mod:`mlops_lib.tracking.liveness`). A run that a runner owns stays open: the runner ends it.
    """
    client = store.connect(project.tracking_uri)
    if project.run_id:
        run = mlflow.start_run(run_id=project.run_id)
        alive: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    else:
        mlflow.set_experiment(experiment_id=store.get_experiment_id(client, project.tracking_uri, project.name))
        run = mlflow.start_run(run_name=run_name, tags=describe_code(project) | liveness.open_tags())
        alive = _alive(client, run.info.run_id)
    with alive, run:
        if not project.run_id:
            log_difference(project, client, run.info.run_id)
        if tags:
            mlflow.set_tags(dict(tags))
        if params:
            mlflow.log_params(dict(params))
        for name, table in (inputs or {}).items():
            log_input(name, table)
        yield run
    if project.run_id:
        client.update_run(project.run_id, status="RUNNING")


@contextlib.contextmanager
def _alive(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Keep a run's heartbeat and, after MLflow has closed it, note that it was closed by its own process."""
    status = "FAILED"
    try:
        with liveness.heartbeat(client, run_id):  # nobody can stop a script; a run that was marked dead stays KILLED
            yield
        status = "FINISHED"
    finally:
        liveness.close_run(client, run_id, status)


def log_input(name: str, table: Path | Sequence[Path] | pd.DataFrame) -> dict[str, str]:
    """Log an input's full-content fingerprint to the active run; return ``{tag: fingerprint}``."""
    from mlflow.data.meta_dataset import MetaDataset  # noqa: PLC0415 - 0.4 s that a command that lists does not need
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # noqa: PLC0415

    if isinstance(table, pd.DataFrame):
        parts = {name: data.fingerprint_frame(table)}
        where = "memory"
    else:
        paths = [Path(table)] if isinstance(table, str | Path) else [Path(path) for path in table]
        parts = {f"{name}/{path.stem}": data.fingerprint_file(path) for path in paths}
        where = str(paths[0].parent) if paths else ""
    for label, fingerprint in parts.items():
        digest = fingerprint.partition(":")[2][:32]  # MLflow keeps 36 characters; the tag below keeps all 64
        dataset = MetaDataset(LocalArtifactDatasetSource(where), label, digest)  # type: ignore[abstract] # as MLflow does
        try:
            mlflow.log_input(dataset, context=name)
        except MlflowException as error:  # another run has just logged the same dataset for the first time
            if "UNIQUE" not in str(error).upper():
                raise
            mlflow.log_input(dataset, context=name)
    tags = {f"mlops.input.{label}": fingerprint for label, fingerprint in parts.items()}
    mlflow.set_tags(tags)
    return tags


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics to the active run, all or none.

    Raises
    ------
    QualityError
        For NaN, infinity or anything that is no number. No metric was logged.
    """
    for name, value in metrics.items():
        if not _is_finite(value):
            raise QualityError("metric", name=name, value=value)
    mlflow.log_metrics({name: float(value) for name, value in metrics.items()})


def log_model(
    project: Project,
    model: Any,
    X: pd.DataFrame,
    *,
    keys: pd.DataFrame | None = None,
    contract: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> LoggedModel:
    """Log a fitted pipeline to the active run with everything that scoring it safely needs.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    X : DataFrame of shape (n_rows, n_features)
        What it was trained on. Signature, example and warm-up rows are taken from it; integers become float64 in the
        signature, since MLflow would refuse whole numbers that arrive as floats. A 64-bit hash of each row is stored
        beside the model, so that a gate can tell whether evaluation rows are among them.
    keys : DataFrame of shape (n_rows, n_keys), optional
        The columns that identify the rows of ``X``, in its order; hashed and stored likewise.
    contract, profile : dict, optional
        Of the training data; stored beside the model as contract.json and profile.json.

    Raises
    ------
    ModelError, SignatureError
        Before anything is written.
    """
    from mlflow.models import infer_signature  # noqa: PLC0415 - as above

    from mlops_lib.engines import exact  # noqa: PLC0415 - loads scikit-learn, which who runs or promotes need not wait for

    trusted = models.list_trusted_types(model, extra=project.trusted_types)
    sign = signing.read_signer(project.signing_key)  # before anything is written
    sample = _as_float(X.iloc[:: max(1, len(X) // SIGNATURE_ROWS)].head(SIGNATURE_ROWS))
    method = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    info = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(sample, getattr(model, method)(sample)),
        input_example=sample.head(EXAMPLE_ROWS),
        pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
        serialization_format="skops",
        skops_trusted_types=trusted,
        pyfunc_predict_fn=method,
        metadata={"mlops": {"features": list(X.columns), "threshold": project.threshold, **(metadata or {})}},
    )
    beside = {
        models.CONTRACT_FILE: json.dumps(contract, sort_keys=True) if contract else None,
        models.PROFILE_FILE: json.dumps(profile, sort_keys=True) if profile else None,
        models.WARMUP_FILE: models.warmup_json(model, sample.head(WARMUP_ROWS)),
        models.COMPILED_FILE: json.dumps(exact.prove(model, method, sample), sort_keys=True),
    }
    client = MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        for file, text in beside.items():
            if text is not None:
                (Path(folder) / file).write_text(text, encoding="utf-8")
        np.save(Path(folder) / models.TRAINING_FILE, _hash_training_rows(X, keys), allow_pickle=False)
        client.log_model_artifacts(info.model_id, folder)
    with tempfile.TemporaryDirectory() as folder:
        store.download_model(info.model_id, Path(folder))
        manifest = models.compute_manifest(Path(folder))
    digest = models.compute_digest(manifest)
    tags = {
        models.MANIFEST_TAG: json.dumps(manifest, sort_keys=True, separators=(",", ":")),
        models.DIGEST_TAG: digest,
    }
    if sign:
        tags[signing.MANIFEST_SIGNATURE_TAG] = sign(signing.manifest_text(project.name, digest))
    client.set_logged_model_tags(info.model_id, tags)
    return LoggedModel(info.model_id, info.run_id, digest)


def _hash_training_rows(X: pd.DataFrame, keys: pd.DataFrame | None) -> np.ndarray[Any, Any]:
    """Return what ``models.ModelFiles.training_rows`` holds."""
    parts = {"content": data.hash_rows(X)} | ({} if keys is None else {"key": data.hash_rows(keys)})
    rows = np.empty(len(X), dtype=[(name, np.uint64) for name in parts])
    for name, hashed in parts.items():
        rows[name] = hashed
    return rows


def describe_code(project: Project) -> dict[str, str]:
    """Return the tags that say which code ran: commit, dirty or not, notebook and its hash, lock hash, actor."""
    tags = {"mlops.actor": project.actor, "mlflow.user": project.actor}
    commit = ask_git(project.root, "rev-parse", "HEAD")
    if commit:
        dirty = bool(ask_git(project.root, "status", "--porcelain"))
        tags |= {"mlflow.source.git.commit": commit, "mlops.commit": commit, "mlops.dirty": str(dirty).lower()}
    lock = project.root / "requirements.lock"
    if lock.is_file():
        tags["mlops.lock"] = data.fingerprint_file(lock)
    notebook = find_notebook(project)
    if notebook:
        tags |= {
            "mlops.notebook": _relative(notebook, project.root),
            "mlops.notebook_source": notebook_source(notebook),
        }
        tags |= {"mlflow.source.name": tags["mlops.notebook"], "mlflow.source.type": "NOTEBOOK"}
    return tags


def find_notebook(project: Project) -> Path | None:
    """Return the notebook that this process executes, where that is known and the file exists."""
    if not project.notebook:
        return None
    folders = (Path.cwd(), project.root, project.root / project.notebooks)
    found = (folder / project.notebook for folder in folders)
    by_name = (folder / Path(project.notebook).name for folder in folders)
    return next((path for path in (*found, *by_name) if path.is_file() and path.suffix == ".ipynb"), None)


def notebook_source(notebook: Path) -> str:
    """Return the SHA-256 of a notebook's code cells in order: text, outputs and counts do not matter."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return f"sha256:{hashlib.sha256(json.dumps(code).encode()).hexdigest()}"


def log_difference(project: Project, client: MlflowClient, run_id: str) -> None:
    """Log what the working tree has beyond its commit, as ``code/uncommitted.diff``, if it has anything."""
    changed = ask_git(project.root, "status", "--porcelain")
    if changed:
        text = f"{changed}\n\n{ask_git(project.root, 'diff', 'HEAD')}\n"
        client.log_text(run_id, redact(text, project.secrets), "code/uncommitted.diff")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _as_float(frame: pd.DataFrame) -> pd.DataFrame:
    integers = frame.select_dtypes(include="integer").columns
    return frame.astype(dict.fromkeys(integers, "float64"))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def ask_git(root: Path, *arguments: str) -> str:
    """Return what git prints about the repository at ``root``, or nothing where it has no answer."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
