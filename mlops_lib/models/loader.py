"""The only way to load a model, from a private copy of its files: everything that can be checked is, in one order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from mlops_lib.errors import ModelFileError, TaskError
from mlops_lib.models.bounds import find_unchecked, raise_for_bounds
from mlops_lib.models.limits import MAX_MLMODEL_BYTES, MAX_TEXT_BYTES, raise_for_archive, raise_for_limit
from mlops_lib.models.manifest import compute_digest, raise_for_files
from mlops_lib.models.rehearsal import raise_for_rehearsal
from mlops_lib.models.types import raise_for_types, raise_for_versions
from mlops_lib.task import Task

CONTRACT_FILE = "contract.json"
PROFILE_FILE = "profile.json"
WARMUP_FILE = "warmup.json"
COMPILED_FILE = "compiled.json"
TRAINING_FILE = "training_rows.npy"
MODEL_FILE = "model.skops"
MLMODEL_FILE = "MLmodel"
# What MLflow writes about a scikit-learn model; of these only the two below may name code, and must name this.
FLAVORS = {
    "sklearn": {"code", "pickled_model", "serialization_format", "sklearn_version", "skops_trusted_types"},
    "python_function": {"code", "env", "loader_module", "model_path", "predict_fn", "python_version"},
}


@dataclass(frozen=True)
class ModelFiles:
    """A verified model, as it came out of its folder.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    task : Task
        What it is asked for, with its classes and its operating point.
    metadata : dict
        The ``metadata`` block of MLmodel, read as data.
    contract, profile : dict
        What was stored beside the model; empty where nothing was.
    digest : str
        SHA-256 of the manifest: the model's identity.
    compiled : dict
        The verdict on the model's exact scorer, for ``exact.scorer_for``; empty for a model logged without one.
    n_bytes : int
        Size of all files together.
    training_rows : structured ndarray of shape (n_rows,), or None
        64-bit hashes of the rows it was trained on: field ``content``, and ``key`` where keys were given.
    manifest : dict
        Digest and size of each file.
    """

    model: Any
    task: Task
    metadata: Mapping[str, Any]
    contract: Mapping[str, Any]
    profile: Mapping[str, Any]
    digest: str
    compiled: Mapping[str, Any] = field(default_factory=dict)
    n_bytes: int = 0
    training_rows: np.ndarray[Any, Any] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


def load_model_files(folder: Path, manifest: Mapping[str, Any], *, name: str, extra: Iterable[str] = ()) -> ModelFiles:
    """Load a model from ``folder``, a private copy, after checking everything that can be checked.

    Parameters
    ----------
    folder : Path
        Nobody else may write to it between the check and the load.
    manifest : dict
        As registered.
    name : str
        For messages, such as ``Version 7 of 'flight-delays'``.
    extra : iterable of str
        Types beyond the reviewed list that the project trusts.

    Raises
    ------
    ModelFileError, ModelError
        Nothing was deserialized, or, for bounds and a warm-up that differs, nothing is returned.
    """
    raise_for_versions()
    raise_for_files(folder, manifest, model=name)
    metadata, task = _read_mlmodel(folder, name)
    contract, profile, warmup = (_read_json(folder, file, name) for file in (CONTRACT_FILE, PROFILE_FILE, WARMUP_FILE))
    if not warmup.get("rows"):
        raise ModelFileError(
            "unread", model=name, file=WARMUP_FILE, reason="holds no stored predictions; tracking.log_model writes them"
        )
    model = read_model(folder / MODEL_FILE, extra, name, warmup=warmup, method=task.predict_method)
    _raise_for_warmup(warmup, task, model, name)
    compiled = _read_json(folder, COMPILED_FILE, name)
    n_bytes = sum(int(file["size"]) for file in manifest.values())
    training_rows = _read_training_rows(folder / TRAINING_FILE, name)
    digest = compute_digest(manifest)
    return ModelFiles(model, task, metadata, contract, profile, digest, compiled, n_bytes, training_rows, manifest)


def warmup_json(task: Task, model: Any, rows: pd.DataFrame) -> str:
    """Return rows and the model's scores of them, as JSON, to compare with after every load.

    Missing values of rows and scores that are NaN are written as null, which any parser reads.
    """
    table = {"columns": list(rows.columns), "dtypes": [str(t) for t in rows.dtypes], "rows": _plain(rows)}
    scores = _plain(pd.DataFrame(task.predict(model, rows)))
    return json.dumps({**table, "predictions": scores}, sort_keys=True)


def read_warmup(stored: Mapping[str, Any]) -> tuple[pd.DataFrame, npt.NDArray[np.float64]]:
    """Return the rows and scores, of shape (n_rows, n_scores), that :func:`warmup_json` wrote."""
    rows = pd.DataFrame(stored["rows"], columns=stored["columns"])
    rows = rows.astype(dict(zip(stored["columns"], stored["dtypes"], strict=True)))
    return rows, np.asarray(stored["predictions"], dtype=np.float64)


def _plain(rows: pd.DataFrame) -> list[list[Any]]:
    return [[None if pd.isna(value) else value for value in row] for row in rows.to_numpy(dtype=object).tolist()]


def _read_task(metadata: Mapping[str, Any], name: str) -> Task:
    try:
        return Task.from_dict(metadata["mlops"]["task"])
    except (KeyError, TypeError, ValueError, AttributeError, TaskError) as error:
        reason = "names no task as tracking.log_model writes it"
        raise ModelFileError("unread", model=name, file=MLMODEL_FILE, reason=reason) from error


class _DataLoader(yaml.SafeLoader):  # type: ignore[misc] # yaml ships no types
    """Plain data only: no tags of Python's, and no aliases, of which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def _read_mlmodel(folder: Path, name: str) -> tuple[dict[str, Any], Task]:
    """Read MLmodel as data; refuse whatever would make a loader, ours or MLflow's, import or run something."""
    path = folder / MLMODEL_FILE
    if path.is_file():
        raise_for_limit(name, MLMODEL_FILE, "has bytes:", path.stat().st_size, MAX_MLMODEL_BYTES)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_DataLoader)
        flavors = {str(flavor): dict(facts) for flavor, facts in dict(content["flavors"]).items()}
        sklearn, pyfunc = flavors["sklearn"], flavors.get("python_function", {})
        metadata = dict(content.get("metadata") or {})
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            "unread", model=name, file=MLMODEL_FILE, reason=f"is not readable ({type(error).__name__})"
        ) from error
    if sklearn.get("serialization_format") != "skops" or sklearn.get("pickled_model") != MODEL_FILE:
        raise ModelFileError("unread", model=name, file=MLMODEL_FILE, reason="names another format than skops")
    if sklearn.get("code") or pyfunc.get("code") or pyfunc.get("loader_module", "mlflow.sklearn") != "mlflow.sklearn":
        raise ModelFileError("unread", model=name, file=MLMODEL_FILE, reason="asks for code of its own to be run")
    task = _read_task(metadata, name)
    asked = (pyfunc.get("predict_fn", task.predict_method), pyfunc.get("model_path", MODEL_FILE))
    if asked != (task.predict_method, MODEL_FILE):
        raise ModelFileError(
            "unread", model=name, file=MLMODEL_FILE, reason="asks for another file or function than the model's"
        )
    for flavor, facts in flavors.items():
        if flavor not in FLAVORS:
            raise ModelFileError(
                "unread", model=name, file=MLMODEL_FILE, reason=f"has a flavor '{flavor[:40]}' beside scikit-learn's"
            )
        if unknown := sorted(set(map(str, facts)) - FLAVORS[flavor]):
            raise ModelFileError(
                "unread",
                model=name,
                file=MLMODEL_FILE,
                reason=f"has '{flavor}.{unknown[0][:40]}', which MLflow does not write",
            )
    return metadata, task


def _read_json(folder: Path, file: str, name: str) -> dict[str, Any]:
    """Return what a file beside the model says; nothing where there is none."""
    path = folder / file
    if not path.is_file():
        return {}
    raise_for_limit(name, file, "has bytes:", path.stat().st_size, MAX_TEXT_BYTES)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(
            "unread", model=name, file=file, reason=f"is not readable ({type(error).__name__})"
        ) from error


def _read_training_rows(path: Path, name: str) -> np.ndarray[Any, Any] | None:
    """Return the hashes beside the model; mapped first, since a header may promise more rows than the file has."""
    if not path.is_file():
        return None
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise ModelFileError(
            "unread", model=name, file=path.name, reason=f"is not readable ({type(error).__name__})"
        ) from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or not {"content"} <= set(rows.dtype.names or ()):
        raise ModelFileError("unread", model=name, file=path.name, reason="holds something else than hashes of rows")
    return np.array(rows)


def read_model(
    path: Path, extra: Iterable[str], name: str, *, warmup: Mapping[str, Any] | None = None, method: str = "predict"
) -> Any:
    """Deserialize a skops file, once its size and the types that it names are known to be harmless; hold it to bounds.

    Raises
    ------
    ModelFileError
    """
    import skops.io  # noqa: PLC0415 - 1.5 s, and a command that lists versions loads none

    if not path.is_file():
        raise ModelFileError("unread", model=name, file=path.name, reason="is missing")
    raise_for_archive(path, model=name)
    try:
        needed = skops.io.get_untrusted_types(file=path)
    except Exception as error:
        raise ModelFileError(
            "unread", model=name, file=path.name, reason=f"is not a skops file ({type(error).__name__}: {error})"
        ) from error
    raise_for_types(needed, extra, name)
    raise_for_rehearsal(path, needed, warmup or {}, method, name=name)
    try:
        model = skops.io.load(path, trusted=needed)
    except Exception as error:  # such as a type of a package that is not installed here
        raise ModelFileError(
            "discarded", model=name, file=path.name, reason=f"cannot be read ({type(error).__name__}: {error})"
        ) from error
    raise_for_types(find_unchecked(model), extra, name)
    raise_for_bounds(model, file=path.name, name=name)
    return model


def _raise_for_warmup(stored: Mapping[str, Any], task: Task, model: Any, name: str) -> None:
    try:
        rows, wanted = read_warmup(stored)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelFileError(
            "discarded", model=name, file=WARMUP_FILE, reason=f"is not readable ({type(error).__name__}: {error})"
        ) from error
    try:
        scores = task.predict(model, rows).reshape(len(rows), -1)
    except Exception as error:
        why = f"does not score its stored rows here ({type(error).__name__}: {error})"
        raise ModelFileError("discarded", model=name, file=MODEL_FILE, reason=why) from error
    if scores.shape != wanted.shape or not np.allclose(scores, wanted, rtol=1e-9, atol=1e-12, equal_nan=True):
        reason = "does not give its stored predictions on this machine"
        raise ModelFileError("discarded", model=name, file=MODEL_FILE, reason=reason)
