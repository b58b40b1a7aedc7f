"""What a model's files are: their manifest, the types they may contain, and the only way to load them.

MLflow keeps no checksum of anything and trusts the list of types that a model file brings along. Here a model is
loaded in one order only: digests first, metadata read as data, then skops with *our* reviewed list, then a warm-up
against stored predictions. A file with one byte changed is refused by name before any of it is deserialized.

The list below was reviewed for skops 0.16.0 and scikit-learn 1.9: types that skops leaves out of its defaults and that
ordinary estimators need. They are records (links, losses, splitters, distributions, requests) and pure functions of
arrays (metrics, feature scores), which read and run nothing outside themselves. Tree types are on it because the
digests are checked before they are read: skops checks types, not content, and a doctored tree can crash the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mlops_lib.errors import ModelFileError, ModelNotSavableError, UntrustedTypesError

TRUSTED_TYPES = frozenset(
    {
        "functools.partial",
        "numpy.dtype",
        "numpy.mean",
        "numpy.number",
        "scipy._lib.array_api_compat.numpy._aliases.asarray",
        "scipy.interpolate._bsplines.BSpline",
        "scipy.sparse._csr.csr_matrix",
        "scipy.stats._continuous_distns.reciprocal_gen",
        "scipy.stats._continuous_distns.uniform_gen",
        "scipy.stats._distn_infrastructure.rv_continuous_frozen",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogLink",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.metrics._classification.accuracy_score",
        "sklearn.metrics._classification.balanced_accuracy_score",
        "sklearn.metrics._classification.brier_score_loss",
        "sklearn.metrics._classification.f1_score",
        "sklearn.metrics._classification.log_loss",
        "sklearn.metrics._classification.precision_score",
        "sklearn.metrics._classification.recall_score",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.metrics._ranking.average_precision_score",
        "sklearn.metrics._ranking.roc_auc_score",
        "sklearn.metrics._scorer._CurveScorer",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.model_selection._split.TimeSeriesSplit",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
        "sklearn.utils.validation.check_array",
    }
)
# On the logged model and on the version: the manifest's JSON and its digest.
MANIFEST_TAG = "mlops.manifest"
DIGEST_TAG = "mlops.digest"
CONTRACT_FILE = "contract.json"
PROFILE_FILE = "profile.json"
WARMUP_FILE = "warmup.json"
MODEL_FILE = "model.skops"
MLMODEL_FILE = "MLmodel"


@dataclass(frozen=True)
class ModelFiles:
    """A verified model, as it came out of its folder.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    metadata : dict
        The ``metadata`` block of MLmodel, read as data.
    contract, profile : dict
        What was stored beside the model; empty where nothing was.
    digest : str
        SHA-256 of the manifest: the model's identity.
    """

    model: Any
    metadata: Mapping[str, Any]
    contract: Mapping[str, Any]
    profile: Mapping[str, Any]
    digest: str


def compute_manifest(folder: Path, *, model: str = "The model") -> dict[str, dict[str, Any]]:
    """Return ``{relative path: {sha256, size}}`` of every file below ``folder``, sorted; links are refused.

    Raises
    ------
    ModelFileError
        For a symbolic link, since what it points to may change, and for a pipe or device.
    """
    manifest = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelFileError(model, name, "is a symbolic link")
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            manifest[name] = {"sha256": digest, "size": path.stat().st_size}
        elif not path.is_dir():
            raise ModelFileError(model, name, "is neither a file nor a folder")
    return manifest


def compute_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's canonical JSON: the identity of exactly these files."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def raise_for_files(folder: Path, manifest: Mapping[str, Any], *, model: str) -> None:
    """Raise ``ModelFileError`` naming the first file that was changed, removed or added since ``manifest``."""
    found = compute_manifest(folder, model=model)
    for name, expected in manifest.items():
        if name not in found:
            raise ModelFileError(model, name, "is missing")
        if found[name] != expected:
            have, want = found[name]["sha256"][:12], expected["sha256"][:12]
            raise ModelFileError(model, name, f"has been changed (SHA-256 {have}…, registered {want}…)")
    for name in found:
        if name not in manifest:
            raise ModelFileError(model, name, "was not there when the model was registered")


def list_trusted_types(model: Any, *, extra: Iterable[str] = (), name: str = "The model") -> list[str]:
    """Return the types of ``model`` that skops wants named, all of them on our list or in ``extra``.

    Raises
    ------
    UntrustedTypesError, ModelNotSavableError
        Naming the types that nobody has reviewed, or why skops cannot save the model at all.
    """
    import skops.io  # noqa: PLC0415 - 1.5 s, and a command that lists versions loads none

    try:
        needed = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    except Exception as error:
        reason = "it refers to itself" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
        raise ModelNotSavableError(name, reason) from error
    _raise_for_types(needed, extra, name)
    return sorted(needed)


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

    Raises
    ------
    ModelFileError, UntrustedTypesError
        Nothing was deserialized, or, for a warm-up that differs, nothing is returned.
    """
    import skops.io  # noqa: PLC0415 - as above

    raise_for_files(folder, manifest, model=name)
    metadata = _read_mlmodel(folder, name)
    file = folder / MODEL_FILE
    try:
        needed = skops.io.get_untrusted_types(file=file)
    except Exception as error:
        raise ModelFileError(name, MODEL_FILE, f"is not a skops file ({type(error).__name__}: {error})") from error
    _raise_for_types(needed, extra, name)
    try:
        model = skops.io.load(file, trusted=needed)
    except Exception as error:  # such as a type of a package that is not installed here
        raise ModelFileError(name, MODEL_FILE, f"cannot be read ({type(error).__name__}: {error})", True) from error
    _raise_for_warmup(folder, model, name)
    return ModelFiles(
        model, metadata, _read_json(folder, CONTRACT_FILE), _read_json(folder, PROFILE_FILE), compute_digest(manifest)
    )


def warmup_json(model: Any, rows: pd.DataFrame) -> str:
    """Return rows and the model's predictions for them, as JSON, to compare with after every load."""
    table = {"columns": list(rows.columns), "dtypes": [str(t) for t in rows.dtypes], "rows": _plain(rows)}
    return json.dumps({**table, "predictions": scorer(model)(rows).tolist()}, sort_keys=True)


def scorer(model: Any) -> Callable[[pd.DataFrame], Any]:
    """Return what turns rows into an array of shape (n_rows,): the positive class's probability, or the prediction."""
    if hasattr(model, "predict_proba"):
        return lambda rows: model.predict_proba(rows)[:, 1]
    return lambda rows: np.asarray(model.predict(rows), dtype=float)


def _plain(rows: pd.DataFrame) -> list[list[Any]]:
    return [[None if pd.isna(value) else value for value in row] for row in rows.to_numpy(dtype=object).tolist()]


def _raise_for_types(needed: Iterable[str], extra: Iterable[str], name: str) -> None:
    unknown = tuple(sorted(set(needed) - TRUSTED_TYPES - set(extra)))
    if unknown:
        raise UntrustedTypesError(name, unknown)


def _read_mlmodel(folder: Path, name: str) -> dict[str, Any]:
    """Read MLmodel as data; refuse whatever would make a loader import or run something."""
    try:
        content = yaml.safe_load((folder / MLMODEL_FILE).read_text(encoding="utf-8"))
        sklearn = dict(content["flavors"]["sklearn"])
        pyfunc = dict(content["flavors"].get("python_function", {}))
        metadata = dict(content.get("metadata") or {})
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(name, MLMODEL_FILE, f"is not readable ({type(error).__name__})") from error
    if sklearn.get("serialization_format") != "skops" or sklearn.get("pickled_model") != MODEL_FILE:
        raise ModelFileError(name, MLMODEL_FILE, "names another format than skops")
    if sklearn.get("code") or pyfunc.get("code") or pyfunc.get("loader_module", "mlflow.sklearn") != "mlflow.sklearn":
        raise ModelFileError(name, MLMODEL_FILE, "asks for code of its own to be run")
    return metadata


def _read_json(folder: Path, file: str) -> dict[str, Any]:
    path = folder / file
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _raise_for_warmup(folder: Path, model: Any, name: str) -> None:
    stored = _read_json(folder, WARMUP_FILE)
    if not stored:
        return
    rows = pd.DataFrame(stored["rows"], columns=stored["columns"])
    rows = rows.astype(dict(zip(stored["columns"], stored["dtypes"], strict=True)))
    predictions = scorer(model)(rows)
    if not np.allclose(predictions, stored["predictions"], rtol=1e-9, atol=1e-12):
        raise ModelFileError(name, MODEL_FILE, "does not give its stored predictions on this machine", True)
