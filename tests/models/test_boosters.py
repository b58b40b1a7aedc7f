"""Models of LightGBM, XGBoost and CatBoost: the whole way, and what becomes of files that harm their parsers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
from fastapi.testclient import TestClient
from refusals import raises
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from mlops_lib import contracts, data, gates, quality, registry, tracking
from mlops_lib.errors import ModelFileError, TaskError
from mlops_lib.models import rehearsal
from mlops_lib.programs import batch, service
from mlops_lib.project import Project
from mlops_lib.task import multiclass, regression

CATBOOST = {"iterations": 8, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
MODELS: dict[str, Any] = {
    "lightgbm": (lightgbm.LGBMClassifier, lightgbm.LGBMRegressor, {"n_estimators": 8, "verbose": -1, "n_jobs": 1}),
    "xgboost": (xgboost.XGBClassifier, xgboost.XGBRegressor, {"n_estimators": 8, "n_jobs": 1}),
    "catboost": (catboost.CatBoostClassifier, catboost.CatBoostRegressor, CATBOOST),
}
SIZES = ("size", "weight")


@pytest.fixture
def rows(project: Project) -> pd.DataFrame:
    rows = data.read_labelled(project, "p1")
    return rows.assign(weight=rows["weight"].where(rows["thing_id"] % 9 > 0))  # gaps


def log(project: Project, model: Any, rows: pd.DataFrame, y: Any, features: tuple[str, ...]) -> registry.Version:
    X = rows[list(features)]
    contract = contracts.infer_contract(rows, features=features, keys=project.keys)
    profile = quality.build_profile(rows, columns=features)
    learnt = {"contract": contract.to_dict(), "profile": profile.to_dict(), "keys": rows[["thing_id"]]}
    with tracking.start_run(project):
        logged = tracking.log_model(project, model.fit(X, y), X, **learnt)
    return registry.register(project, logged.model_uri, metrics={"val_roc_auc": 0.7})


def score_in_a_fresh_process(project: Project, folder: Path, version: int, X: pd.DataFrame) -> np.ndarray[Any, Any]:
    data.write_table(X, folder / "x.parquet")
    code = f"""
import numpy as np
from mlops_lib import data, registry
from mlops_lib.project import Project
from dataclasses import replace
from pathlib import Path
folder = Path({str(folder)!r})
project = replace(Project(name={project.name!r}, root=folder), tracking_uri={project.tracking_uri!r}, actor="ada")
np.save(folder / "y.npy", registry.load_model(project, {version}).predict(data.read_table(folder / "x.parquet")))
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
    return np.asarray(np.load(folder / "y.npy"))


@pytest.mark.parametrize("package", MODELS)
def test_a_booster_in_a_pipeline_goes_all_the_way(package: str, project: Project, rows: pd.DataFrame) -> None:
    classifier, _, options = MODELS[package]
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = make_pipeline(
        make_column_transformer((codes, ["color"]), ("passthrough", list(SIZES))), classifier(**options)
    )
    version = log(project, model, rows, rows["broke"], project.features)
    X = rows[list(project.features)]
    theirs = model.predict_proba(X)[:, 1]
    assert (registry.load_model(project, version.version).predict(X) == theirs).all()
    assert (score_in_a_fresh_process(project, project.root, version.version, X) == theirs).all()
    candidate = registry.load_model(project, version.version)
    with tracking.start_run(project):
        registry.log_verdict(project, version.version, gates.check_gates(project, candidate, None, "p2"))
    gates.promote(project, version.version, "staging", reason="better")
    scored = project.root / "scored.parquet"
    batch.score_table(project, "staging", project.path("arrivals", "p2"), scored)
    arrivals = data.read_table(project.path("arrivals", "p2"))
    assert (data.read_table(scored)["score"] == model.predict_proba(arrivals[list(project.features)])[:, 1]).all()
    with TestClient(service.create_app(registry.load_model(project, "staging"))) as client:
        records = json.loads(arrivals.head(3)[list(project.features)].to_json(orient="records"))
        answer = client.post("/invocations", json={"dataframe_records": records})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Model-Version"] == str(version.version)


@pytest.mark.parametrize("package", MODELS)
def test_a_booster_alone_tells_several_classes_apart_or_predicts_a_number(
    package: str, project: Project, rows: pd.DataFrame
) -> None:
    classifier, regressor, options = MODELS[package]
    several = pd.qcut(rows["size"], 3, labels=False)
    of_classes = replace(project, name="classes", task=multiclass(), features=SIZES, slices=())
    version = log(of_classes, classifier(**options), rows, several, SIZES)
    scores = registry.load_model(of_classes, version.version).predict(rows[list(SIZES)])
    assert scores.shape == (len(rows), 3)
    of_numbers = replace(project, name="numbers", task=regression(), features=SIZES, slices=())
    model = regressor(**options)
    version = log(of_numbers, model, rows, rows["size"], SIZES)
    loaded = registry.load_model(of_numbers, version.version).predict(rows[list(SIZES)])
    assert (loaded == model.predict(rows[list(SIZES)])).all()
    with pytest.raises(TaskError):
        log(of_numbers, classifier(**options), rows, several, SIZES)


def rewrite_skops(path: Path, change: Any) -> None:
    """Change the members of a skops file in place."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)
    path.write_bytes(buffer.getvalue())


@pytest.fixture(scope="module")
def booster(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the file of a LightGBM model and its types."""
    X = pd.DataFrame({"size": np.arange(200.0), "weight": np.arange(200.0) % 7})
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, X["size"] > 90)
    path = tmp_path_factory.mktemp("booster") / "model.skops"
    path.write_bytes(skops.io.dumps(model))
    return path, skops.io.get_untrusted_types(file=path)


def test_a_file_that_comes_through_is_rehearsed_once(
    booster: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_passed", set())
    rehearsal.raise_for_rehearsal(*booster, {}, "predict", name="Version 1")
    monkeypatch.setattr(rehearsal.subprocess, "run", None)
    rehearsal.raise_for_rehearsal(*booster, {}, "predict", name="Version 1")


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV"),
        ("import time; time.sleep(60)", "did not load in 3 s"),
        ("b'x' * 2**40", "MemoryError"),
        ("raise ValueError('no model')", "no model"),
    ],
)
def test_what_crashes_hangs_or_fills_memory_does_so_in_the_child(
    code: str, shown: str, booster: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_passed", set())
    monkeypatch.setattr(rehearsal, "MAX_S", 3 if "sleep" in code else 120)
    monkeypatch.setattr(rehearsal, "_CODE", rehearsal._CODE.replace("model = skops", f"{code}\nmodel = skops"))
    with raises(ModelFileError, "discarded") as caught:
        rehearsal.raise_for_rehearsal(*booster, {}, "predict", name="Version 1")
    assert shown in str(caught.value)


@pytest.mark.parametrize("package", MODELS)
def test_native_bytes_that_were_cut_or_changed_never_reach_this_process(package: str, tmp_path: Path) -> None:
    _, regressor, options = MODELS[package]
    X = pd.DataFrame({"size": np.arange(300.0), "weight": np.arange(300.0) % 7})
    path = tmp_path / "model.skops"
    path.write_bytes(skops.io.dumps(regressor(**options).fit(X, X["size"])))
    types = skops.io.get_untrusted_types(file=path)
    rehearsal.raise_for_rehearsal(path, types, {}, "predict", name="Version 1")

    def cut(members: dict[str, bytes]) -> dict[str, bytes]:
        schema, longest = members["schema.json"].decode(), max(members, key=lambda name: len(members[name]))
        if longest == "schema.json":  # LightGBM's model is a text in it
            at = schema.index("num_leaves=")
            return {**members, "schema.json": (schema[:at] + "num_leaves=99999999" + schema[at + 13 :]).encode()}
        return {**members, longest: members[longest][: len(members[longest]) // 2]}

    rewrite_skops(path, cut)
    with raises(ModelFileError, "discarded"):
        rehearsal.raise_for_rehearsal(path, types, {}, "predict", name="Version 1")


def test_a_missing_package_is_named_with_how_to_get_it(
    booster: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal.importlib.util, "find_spec", lambda name: None)
    with raises(ModelFileError, "unread") as caught:
        rehearsal.raise_for_rehearsal(*booster, {}, "predict", name="Version 1")
    assert "pip install 'mlops-lib[boosters]'" in str(caught.value)


def test_other_models_load_without_the_boosters() -> None:
    packages = "('lightgbm', 'xgboost', 'catboost')"
    code = f"import sys; from mlops_lib import models, registry; sys.exit(any(p in sys.modules for p in {packages}))"
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
