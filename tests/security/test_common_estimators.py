"""Ordinary estimators are logged and loaded without a word from the user; one's own, once its package is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from estimators import MODELS, make_training, save_model, task_of
from sklearn.pipeline import make_pipeline

from mlops_lib import models, tracking
from mlops_lib.errors import ModelError, ModelFileError
from mlops_lib.project import Project

COMMON = (
    *("logistic", "sgd", "elastic_net", "lda", "gaussian_nb", "qda", "lasso", "mlp", "nystroem", "tree"),
    *("forest", "extra_trees", "gradient_boosting", "hist_gradient_boosting", "ada_boost", "bagging"),
    *("hist_gradient_boosting_with_categories", "voting", "stacking", "calibrated_sigmoid", "grid_search"),
    *("tuned_threshold", "isolation_forest", "linear_regression", "forest_regressor", "ridge", "poisson"),
    *("column_selector", "target_encoder", "imputers"),
)
# Loads each folder of the JSON list in the first argument and prints what it predicts for the rows in the second.
RELOAD = """
import json, sys
from pathlib import Path
import pandas as pd
from mlops_lib import models
rows = pd.read_parquet(sys.argv[2])
for folder, extra in json.loads(Path(sys.argv[1]).read_text()):
    folder = Path(folder)
    files = models.load_model_files(folder, models.compute_manifest(folder), name="The model", extra=extra)
    print(json.dumps(files.task.predict(files.model, rows).tolist()))
"""


def folder_of(logged: tracking.LoggedModel) -> str:
    (model,) = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent.rglob(f"*{logged.model_id}/artifacts")
    return str(model)


def reload(
    folders: list[tuple[str, list[str]]], rows: pd.DataFrame, where: Path, *, path: Path | None = None
) -> list[list[float]]:
    """Return what each folder's model predicts in one fresh process."""
    (where / "folders.json").write_text(json.dumps(folders))
    rows.to_parquet(where / "rows.parquet")
    command = [sys.executable, "-c", RELOAD, str(where / "folders.json"), str(where / "rows.parquet")]
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.filterwarnings("ignore:Number of distinct.*:UserWarning")
def test_thirty_common_estimators_come_back_bit_equal_in_a_fresh_process(
    project: Project, tmp_path: Path, record: Callable[..., None]
) -> None:
    X, y = make_training()
    wanted, folders, refused = [], [], []
    with tracking.start_run(project):
        for name in COMMON:
            model = MODELS[name]().fit(X, y)
            task = task_of(model)
            folders.append((folder_of(tracking.log_model(replace(project, task=task), model, X)), []))
            wanted.append(task.predict(model, X).tolist())
            try:
                mlflow.sklearn.log_model(model, name="plain", pip_requirements=[])
            except mlflow.MlflowException:
                refused.append(name)
    assert len(COMMON) == len(set(COMMON)) == 30
    assert reload(folders, X, tmp_path) == wanted
    assert {"forest", "hist_gradient_boosting", "grid_search"} <= set(refused)
    record(
        18,
        plain=f"MLflow refuses to log {len(refused)} of the 30",
        ours="all 30 are logged and predict the same bits in a fresh process, with nothing to configure",
    )


PACKAGE = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

class Clip(TransformerMixin, BaseEstimator):
    def __init__(self, high=1.0):
        self.high = high

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        return np.clip(X, None, self.high)

def double(X):
    return X * 2
"""


def test_a_transformer_of_an_installed_package_works_once_the_project_names_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "toolbox_of_ours").mkdir(parents=True)
    (site / "toolbox_of_ours/__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(site)
    import toolbox_of_ours  # type: ignore[import-not-found]
    from sklearn.preprocessing import FunctionTransformer

    X, y = make_training()
    X = X[["size", "weight"]]
    steps = (toolbox_of_ours.Clip(11.0), FunctionTransformer(toolbox_of_ours.double))
    model = make_pipeline(*steps, MODELS["logistic"]().steps[-1][1]).fit(X, y)
    own = ["toolbox_of_ours.Clip", "toolbox_of_ours.double"]
    with tracking.start_run(project):
        with pytest.raises(ModelError, match=r"toolbox_of_ours.Clip, toolbox_of_ours.double. If they belong"):
            tracking.log_model(project, model, X)
        with pytest.raises(ModelError, match=r"list: toolbox_of_ours.double. If they belong"):
            tracking.log_model(replace(project, trusted_types=(own[0],)), model, X)
        logged = tracking.log_model(replace(project, trusted_types=tuple(own)), model, X)
    folder = Path(folder_of(logged))
    with pytest.raises(ModelError, match=r"toolbox_of_ours.Clip"):
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")
    (found,) = reload([(str(folder), own)], X, tmp_path, path=site)
    np.testing.assert_array_equal(found, model.predict_proba(X)[:, 1])


def test_a_model_whose_package_is_not_installed_is_refused_by_file(tmp_path: Path) -> None:
    X, y = make_training()
    save_model(MODELS["logistic"]().fit(X, y), tmp_path, X)
    with zipfile.ZipFile(tmp_path / "model.skops") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"sklearn.linear_model._logistic", b"package_of_yesterday"))
    own = ["package_of_yesterday.LogisticRegression"]
    with pytest.raises(ModelFileError, match=r"'model.skops' cannot be read \(ModuleNotFoundError"):
        models.load_model_files(tmp_path, models.compute_manifest(tmp_path), name="The model", extra=own)


# A notebook's own class and a lambda, as in a kernel: their module is __main__.
NOTEBOOK = """
import sys
sys.path.insert(0, sys.argv[1])
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from mlops_lib import models
from mlops_lib.errors import MlopsError

class Clip(TransformerMixin, BaseEstimator):
    pass

for step in (Clip(), FunctionTransformer(lambda X: X)):
    for extra in ([], ["__main__.Clip", "__main__.<lambda>"]):
        try:
            models.list_trusted_types(make_pipeline(step), extra=extra)
        except MlopsError as error:
            print(error)
"""


def test_what_a_notebook_defines_is_told_to_move_into_a_package_even_when_it_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, ""], capture_output=True, text=True, check=True)
    first, second, third, fourth = done.stdout.splitlines()
    assert first == second
    assert third == fourth
    assert "can import __main__.Clip: put what a notebook defines in an installed package" in first
    assert "can import __main__.<lambda>: put" in third
    assert "give a lambda a name there" in third
