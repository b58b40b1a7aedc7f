"""Models logged so that they can be trusted, and scored as they were trained.

Refused, before anything is written: types that nobody has reviewed, a model of another task than the project's, and one
that would give rows other scores than in training once they have come through its contract, or back from its own files.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking import MlflowClient

from mlops_lib import contracts, data, models, quality
from mlops_lib.errors import TaskError
from mlops_lib.models import signing
from mlops_lib.project import Project
from mlops_lib.task import Task
from mlops_lib.tracking import store

SIGNATURE_ROWS = 1000
EXAMPLE_ROWS = 5
WARMUP_ROWS = 50
PROFILED_ROWS = 20_000
# What a saved pipeline needs where it is loaded; inferring this list takes 2.3 s per model and finds the same.
REQUIREMENTS = ("mlflow", "scikit-learn", "skops", "pandas", "numpy", "scipy")

READ_ROWS = "contracts.split_rows(contract, rows).good"  # what scoring hands to a model


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


def log_model(
    project: Project,
    model: Any,
    X: pd.DataFrame,
    *,
    keys: pd.DataFrame | None = None,
    times: pd.Series[Any] | None = None,
    contract: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    scores: np.ndarray[Any, Any] | None = None,
) -> LoggedModel:
    """Log a fitted pipeline to the active run with everything that scoring it safely needs.

    A threshold that the model brings (``FixedThresholdClassifier``, ``TunedThresholdClassifierCV``) counts instead of
    the project's.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    X : DataFrame of shape (n_rows, n_features)
        What it was trained on. Signature, example and warm-up rows are taken from it; integers become float64 in the
        signature, since MLflow would refuse whole numbers that arrive as floats. A 64-bit hash of each row is stored
        beside the model, so that a gate can tell whether evaluation rows are among them.
    keys : DataFrame of shape (n_rows, n_keys), optional
        The columns that identify the rows of ``X``, in its order; hashed and stored likewise.
    times : Series of shape (n_rows,), optional
        When each row arrived; the latest is stored, so that a gate can tell whether evaluation rows are later.
    contract, profile : dict, optional
        Of the training data; stored beside the model as contract.json and profile.json.
    scores : ndarray of shape (n_rows,) or (n_rows, n_classes), optional
        Of held-out rows: what the drift of predictions is measured against, kept in profile.json. By default those of
        rows of ``X``, which a model that knows them by heart scores a little more surely than others.

    Raises
    ------
    TaskError
        For a model of another task, or one that scoring would hand other rows than training did.
    ModelError, SignatureError
        Each before anything is written.
    """
    from mlflow.models import infer_signature  # noqa: PLC0415 - as above

    from mlops_lib.engines import exact  # noqa: PLC0415 - loads scikit-learn, which who runs or promotes need not wait for

    task = project.task.fit_to(model)
    trusted = models.list_trusted_types(model, extra=project.trusted_types)
    sign = signing.read_signer(project.signing_key)  # before anything is written
    rows = X.iloc[:: max(1, len(X) // SIGNATURE_ROWS)].head(SIGNATURE_ROWS)
    if contract:
        _raise_for_other_scores(task, model, rows, contract)
    sample = _as_float(rows)
    returned = task.predict_all(model, sample)
    if returned.ndim != 1 + task.is_classifier:
        reason = f"returns scores of shape {returned.shape}; train it on one column of targets"
        raise TaskError(subject="The model", reason=reason)
    warmup = _write_warmup(task, model, sample.head(WARMUP_ROWS))
    info = mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(sample, returned),
        input_example=sample.head(EXAMPLE_ROWS),
        pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in _list_packages(trusted)],
        serialization_format="skops",
        skops_trusted_types=trusted,
        pyfunc_predict_fn=task.predict_method,
        metadata={"mlops": {"features": list(X.columns), "task": task.to_dict(), **_until(times)}},
    )
    if profile:
        known = task.predict(model, _as_float(X.iloc[:: max(1, len(X) // PROFILED_ROWS)])) if scores is None else scores
        held = pd.DataFrame(task.to_columns(np.asarray(known)))
        profile = {**profile, "scores": quality.build_profile(held, columns=list(task.score_columns)).to_dict()}
    beside = {
        models.CONTRACT_FILE: json.dumps(contract, sort_keys=True) if contract else None,
        models.PROFILE_FILE: json.dumps(profile, sort_keys=True) if profile else None,
        models.WARMUP_FILE: warmup,
        models.COMPILED_FILE: json.dumps(exact.prove(model, task.predict_method, sample), sort_keys=True),
    }
    mlflow.set_tag("mlops.task", str(task))
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


def _list_packages(trusted: Iterable[str]) -> Iterator[str]:
    """Yield the distributions that loading a model with these types needs."""
    yield from REQUIREMENTS
    for package in models.find_packages(trusted):  # xgboost is also called xgboost-cpu
        yield importlib.metadata.packages_distributions()[package][0]


def _raise_for_other_scores(task: Task, model: Any, X: pd.DataFrame, contract: Mapping[str, Any]) -> None:
    """Raise ``TaskError`` unless rows that the contract has read get the very scores that they had in training."""
    X = X.reset_index(drop=True)
    good = contracts.split_rows(replace(contracts.Contract.from_dict(contract), keys=()), X).good
    if good.empty:
        reason = f"refuses every one of {len(X)} rows that the model was trained on"
        raise TaskError(subject="The contract", reason=reason)
    given, trained = good[list(X.columns)], X.loc[good.index]
    try:
        is_same = _is_same(task.predict(model, given), task.predict(model, trained))
    except Exception as error:
        reason = f"does not take rows once the contract has read them ({type(error).__name__}: {error})"
        raise TaskError(subject="The model", reason=f"{reason}; train it on {READ_ROWS}") from error
    if not is_same:
        types = [f"'{name}' {X[name].dtype} -> {given[name].dtype}" for name in X if X[name].dtype != given[name].dtype]
        how = f" as other types ({', '.join(types)})" if types else ""
        reason = f"gives rows other scores than in training once its contract has read them{how}"
        raise TaskError(subject="The model", reason=f"{reason}; train it on {READ_ROWS}")


def _write_warmup(task: Task, model: Any, X: pd.DataFrame) -> str:
    """Return what :func:`models.warmup_json` does, or raise ``TaskError`` if rows change on their way through it."""
    try:
        text = models.warmup_json(task, model, X)
        rows, scores = models.read_warmup(json.loads(text))
        is_same = _is_same(task.predict(model, rows).reshape(scores.shape), scores)
    except Exception as error:
        types = ", ".join(f"'{name}' {dtype}" for name, dtype in X.dtypes.items())
        reason = f"has features of types that JSON cannot hold ({types}; {type(error).__name__}: {error})"
        raise TaskError(subject="The model", reason=reason) from error
    if not is_same:
        reason = "gives its own warm-up rows other scores once they were written as JSON"
        raise TaskError(subject="The model", reason=reason)
    return text


def _is_same(scores: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> bool:
    """Whether every bit is the same."""
    return scores.shape == others.shape and scores.astype("float64").tobytes() == others.astype("float64").tobytes()


def _hash_training_rows(X: pd.DataFrame, keys: pd.DataFrame | None) -> np.ndarray[Any, Any]:
    """Return what ``models.ModelFiles.training_rows`` holds."""
    parts = {"content": data.hash_rows(X)} | ({} if keys is None else {"key": data.hash_rows(keys)})
    rows = np.empty(len(X), dtype=[(name, np.uint64) for name in parts])
    for name, hashed in parts.items():
        rows[name] = hashed
    return rows


def _until(times: pd.Series[Any] | None) -> dict[str, str]:
    if times is None:
        return {}
    return {"trained_until": data.read_times(times).max().isoformat()}


def _as_float(frame: pd.DataFrame) -> pd.DataFrame:
    integers = frame.select_dtypes(include="integer").columns
    return frame.astype(dict.fromkeys(integers, "float64"))
