"""A model that plain MLflow has logged, brought under contract and ledger: learnt anew is nothing, proven is all.

>>> version = release.adopt_model(project, "models:/old-churn/3", rows)  # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml

from mlops_lib import contracts, data, models, quality, registry, tracking
from mlops_lib.errors import ModelError
from mlops_lib.project import Project
from mlops_lib.tracking import store

PICKLES = ("pickle", "cloudpickle")


def adopt_model(project: Project, uri: str, rows: pd.DataFrame, *, unpickle: bool = False) -> registry.Version:
    """Log a model of MLflow's scikit-learn flavor anew and register it; contract and profile are learnt from a table.

    Parameters
    ----------
    uri : str
        ``models:/NAME/3``, ``models:/NAME@ALIAS`` or ``runs:/ID/PATH``, also of a run that was logged automatically.
    rows : DataFrame of shape (n_rows, n_columns)
        What it was trained on, with its features and the project's keys. Gates hold evaluation rows against them.
    unpickle : bool
        Read a pickle although reading it runs what it holds; that is written into the version's description.

    Raises
    ------
    ModelError, ModelFileError, TaskError, QualityError
        No version was made.
    """
    store.connect(project.tracking_uri)
    with tempfile.TemporaryDirectory() as place:
        model, is_pickle = _read(project, uri, Path(place), unpickle)
    features = [str(name) for name in getattr(model, "feature_names_in_", project.features)]
    if project.target in features:
        raise ModelError("foreign", uri=uri, reason=f"its features hold the target '{project.target}'")
    data.raise_for_columns("the table", [*features, *project.keys], list(map(str, rows)))
    contract = contracts.infer_contract(rows, features=features, keys=project.keys)
    contract = project.adjust_contract(contract) if project.adjust_contract else contract
    learnt: dict[str, Any] = {
        "contract": contract.to_dict(),
        "profile": quality.build_profile(rows, columns=features).to_dict(),
        "keys": rows[list(project.keys)],
    }
    if project.time in rows:
        learnt["times"] = rows[project.time]
    description = f"adopted from {uri}{f', unpickled by {project.actor}' if is_pickle else ''}"
    with tracking.start_run(project, run_name="adopt"):
        mlflow.set_tags({"mlops.adopted": uri, **({"mlops.unpickled_by": project.actor} if is_pickle else {})})
        logged = tracking.log_model(project, model, rows[features], **learnt)
    return registry.register(project, logged.model_uri, description=description)


def _read(project: Project, uri: str, folder: Path, unpickle: bool) -> tuple[Any, bool]:
    """Return the model, and whether it was a pickle."""
    try:
        path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=project.tracking_uri))
        flavors = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))["flavors"]
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError("foreign", uri=uri, reason=f"it cannot be read ({reason})") from error
    flavor = flavors.get("sklearn")
    if not flavor:
        known = ", ".join(map(str, flavors))
        raise ModelError("foreign", uri=uri, reason=f"it has the flavors {known}, and 'sklearn' is needed")
    form, file = str(flavor.get("serialization_format")), path / str(flavor.get("pickled_model", "model.skops"))
    if form == "skops":
        return models.read_model(file, project.trusted_types, f"'{uri}'"), False
    if form not in PICKLES or not unpickle:
        reason = f"it is a {form} file, which runs what it holds when it is read; --unpickle reads one that you trust"
        raise ModelError("foreign", uri=uri, reason=reason)
    return mlflow.sklearn.load_model(str(path)), True
