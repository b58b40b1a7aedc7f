"""Model files: ordinary models go out and come back bit-equal; anything else is refused before it is deserialized."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from conftest import make_model
from estimators import COLOR, MODELS, NUMBERS, after, make_training, save_model, task_of, with_columns
from sklearn import compose, ensemble, impute, naive_bayes, pipeline, preprocessing
from sklearn.base import BaseEstimator, ClassifierMixin

from mlops_lib import models, registry
from mlops_lib.errors import ModelError, ModelFileError
from mlops_lib.project import Project
from mlops_lib.task import multiclass


@pytest.mark.filterwarnings("ignore:Number of distinct.*:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_an_ordinary_model_comes_back_bit_equal_without_a_word_from_the_user(name: str, tmp_path: Path) -> None:
    X, y = make_training()
    model = MODELS[name]().fit(X, y)
    needed = models.list_trusted_types(model)
    assert set(needed) <= models.TRUSTED_TYPES
    loaded = models.load_model_files(tmp_path, save_model(model, tmp_path, X.head(20)), name="The model").model
    np.testing.assert_array_equal(task_of(model).predict(loaded, X), task_of(model).predict(model, X))


def test_the_matrix_is_wide_enough() -> None:
    assert len(MODELS) >= 60


def test_every_type_on_the_list_is_needed_by_some_model_of_the_matrix_or_says_why() -> None:
    """The list is an attack surface: what nothing needs goes."""
    assert all("." in name and " " not in name for name in models.TRUSTED_TYPES)
    dangerous = ("os.", "subprocess.", "builtins.", "posix.", "sys.", "pickle.", "importlib.", "operator.")
    assert not [name for name in models.TRUSTED_TYPES if name.startswith(dangerous)]


class Stranger(ClassifierMixin, BaseEstimator):
    """A class that nobody has reviewed."""

    def fit(self, X: pd.DataFrame, y: pd.Series[int]) -> Stranger:
        self.classes_, self.share_ = np.unique(y), float(np.mean(y))
        return self

    def predict_proba(self, X: pd.DataFrame) -> Any:
        return np.tile([1 - self.share_, self.share_], (len(X), 1))


def test_a_class_of_the_users_is_refused_by_name_and_accepted_when_named(tmp_path: Path) -> None:
    X, y = make_training()
    model = after(Stranger()).fit(X, y)
    own = f"{Stranger.__module__}.Stranger"
    with pytest.raises(ModelError, match=own):
        models.list_trusted_types(model)
    assert own in models.list_trusted_types(model, extra=[own])
    manifest = save_model(model, tmp_path, X.head())
    with pytest.raises(ModelError, match=own):
        models.load_model_files(tmp_path, manifest, name="The model")
    loaded = models.load_model_files(tmp_path, manifest, name="The model", extra=[own])
    assert loaded.model.predict_proba(X.head()).shape == (5, 2)


def test_a_model_that_skops_cannot_write_is_refused_with_the_reason() -> None:
    """With a scorer's name scikit-learn 1.9 keeps a reference from the model to itself."""
    X, y = make_training()
    model = ensemble.HistGradientBoostingClassifier(max_iter=2, early_stopping=True, scoring="roc_auc")
    with pytest.raises(ModelError, match=r"it refers to itself"):
        models.list_trusted_types(model.fit(X[NUMBERS], y))


def test_a_lambda_in_a_pipeline_is_refused_before_it_is_saved() -> None:
    X, y = make_training()
    model = with_columns((preprocessing.FunctionTransformer(lambda x: x * 2), NUMBERS)).fit(X, y)
    with pytest.raises(ModelError, check=lambda error: error.case in ("types", "not_savable")):
        models.list_trusted_types(model)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model as MLflow writes it, and its manifest."""
    folder = tmp_path_factory.mktemp("logged") / "model"
    X, y = make_training()
    model = make_model().fit(X, y)
    mlflow.sklearn.save_model(
        model,
        folder,
        serialization_format="skops",
        skops_trusted_types=models.list_trusted_types(model),
        metadata={"mlops": {"task": task_of(model).to_dict()}},
        input_example=X.head(2),
        pyfunc_predict_fn=task_of(model).predict_method,
        pip_requirements=["scikit-learn"],
    )
    (folder / models.WARMUP_FILE).write_text(models.warmup_json(task_of(model), model, X.head()))
    return folder, models.compute_manifest(folder)


@pytest.fixture
def folder(logged: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    return shutil.copytree(logged[0], tmp_path / "model")


@pytest.fixture
def manifest(logged: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return logged[1]


@pytest.fixture
def no_skops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whoever reads a model file."""

    def touch(*_: object, **__: object) -> None:
        raise AssertionError("skops was asked")

    for name in ("load", "loads", "get_untrusted_types"):
        monkeypatch.setattr(skops.io, name, touch)


def test_untouched_files_load(folder: Path, manifest: dict[str, Any]) -> None:
    files = models.load_model_files(folder, manifest, name="The model")
    assert files.digest == models.compute_digest(manifest)
    assert (files.contract, files.profile) == ({}, {})


@pytest.mark.usefixtures("no_skops")
def test_one_byte_flipped_anywhere_is_refused_by_name_before_anything_is_read(
    folder: Path, manifest: dict[str, Any]
) -> None:
    assert {"MLmodel", "model.skops", "warmup.json", "requirements.txt"} <= set(manifest)
    for name, facts in manifest.items():
        path, content = folder / name, (folder / name).read_bytes()
        for offset in {0, 1, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[offset] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(ModelFileError) as caught:
                models.load_model_files(folder, manifest, name="The model")
            assert caught.value.file == name
            assert facts["sha256"][:12] in caught.value.reason
        path.write_bytes(content)


def add(folder: Path) -> str:
    (folder / "extra.py").write_text("raise SystemExit")
    return "extra.py"


def add_deep(folder: Path) -> str:
    (folder / "code").mkdir()
    (folder / "code/evil.py").touch()
    return "code/evil.py"


def remove(folder: Path) -> str:
    (folder / "model.skops").unlink()
    return "model.skops"


def link(folder: Path) -> str:
    original = folder.parent / "elsewhere"
    (folder / "model.skops").rename(original)
    (folder / "model.skops").symlink_to(original)
    return "model.skops"


def link_folder(folder: Path) -> str:
    (folder / "more").symlink_to(folder.parent)
    return "more"


def link_to_nothing(folder: Path) -> str:
    (folder / "dangling").symlink_to(folder / "nowhere")
    return "dangling"


def make_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def cut(folder: Path) -> str:
    content = (folder / "MLmodel").read_bytes()
    (folder / "MLmodel").write_bytes(content[: len(content) // 2])
    return "MLmodel"


@pytest.mark.usefixtures("no_skops")
@pytest.mark.parametrize("spoil", [add, add_deep, remove, link, link_folder, link_to_nothing, make_pipe, cut])
def test_a_folder_that_is_not_as_registered_is_refused_by_file(
    folder: Path, manifest: dict[str, Any], spoil: Callable[[Path], str]
) -> None:
    name = spoil(folder)
    with pytest.raises(ModelFileError) as caught:
        models.load_model_files(folder, manifest, name="Version 7 of 'toy'")
    assert caught.value.file == name
    assert str(caught.value).startswith(f"Version 7 of 'toy' was not loaded: file '{name}'")


def test_the_digest_is_of_names_and_contents_only(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "MLmodel").touch()
    assert models.compute_digest(models.compute_manifest(folder)) == models.compute_digest(manifest)
    (folder / "MLmodel").rename(folder / "MLmodel2")
    assert models.compute_digest(models.compute_manifest(folder)) != models.compute_digest(manifest)


# --- metadata that would run code --------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Change MLmodel as an attacker with the registry's rights would: the manifest follows."""
    content = yaml.safe_load((folder / "MLmodel").read_text())
    change(content)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return models.compute_manifest(folder)


def plant(folder: Path) -> Path:
    """Put a module into the model's code folder that leaves a trace when it is imported."""
    sentinel = folder.parent / "sentinel"
    (folder / "code").mkdir()
    (folder / "code/evilmod.py").write_text(
        f"open({str(sentinel)!r}, 'w').close()\n"
        "def _load_pyfunc(path): return type('Evil', (), {'predict_proba': lambda self, rows: rows})()\n"
    )
    return sentinel


@pytest.mark.usefixtures("no_skops")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda c: c["flavors"]["python_function"].update(loader_module="evilmod", code="code"),
            "asks for code of its own",
        ),
        (lambda c: c["flavors"]["python_function"].update(loader_module="evilmod"), "asks for code of its own"),
        (lambda c: c["flavors"]["python_function"].update(code="code"), "asks for code of its own"),
        (lambda c: c["flavors"]["sklearn"].update(code="code"), "asks for code of its own"),
        (lambda c: c["flavors"]["sklearn"].update(serialization_format="pickle"), "another format than skops"),
        (lambda c: c["flavors"]["sklearn"].update(serialization_format="cloudpickle"), "another format than skops"),
        (lambda c: c["flavors"]["sklearn"].pop("serialization_format"), "another format than skops"),
        (lambda c: c["flavors"]["sklearn"].update(pickled_model="../model.skops"), "another format than skops"),
        (lambda c: c["flavors"].pop("sklearn"), "is not readable"),
        (lambda c: c.update(flavors="sklearn"), "is not readable"),
        (lambda c: c["flavors"].update(python_function="evilmod"), "is not readable"),
        (lambda c: c["flavors"].update(sklearn="evilmod"), "is not readable"),
        (lambda c: c.update(metadata="evilmod"), "is not readable"),
    ],
)
def test_metadata_that_asks_for_code_is_refused_without_an_import(
    folder: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    sentinel = plant(folder)
    with pytest.raises(ModelFileError, match=reason) as caught:
        models.load_model_files(folder, rewrite(folder, change), name="The model")
    assert caught.value.file == "MLmodel"
    assert not sentinel.exists()
    assert "evilmod" not in sys.modules


def test_the_evil_model_is_one_that_plain_mlflow_runs(folder: Path) -> None:
    """The negative control: without our loader the sentinel appears."""
    sentinel = plant(folder)
    rewrite(folder, lambda c: c["flavors"]["python_function"].update(loader_module="evilmod", code="code"))
    path = list(sys.path)
    try:
        mlflow.pyfunc.load_model(str(folder))
    finally:
        sys.path[:] = path
        sys.modules.pop("evilmod", None)
    assert sentinel.exists()


@pytest.mark.usefixtures("no_skops")
@pytest.mark.parametrize(
    "text", ["", "[]", "flavors:", "a: b: c", "!!python/object/apply:os.system ['touch x']", "\xff"]
)
def test_metadata_that_is_no_mlmodel_is_refused(folder: Path, text: str) -> None:
    (folder / "MLmodel").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError, match=r"is not readable") as caught:
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")
    assert caught.value.file == "MLmodel"


def test_the_list_of_types_that_a_model_brings_along_is_not_believed(folder: Path) -> None:
    X, y = make_training()
    (folder / "model.skops").write_bytes(skops.io.dumps(after(Stranger()).fit(X, y)))
    own = f"{Stranger.__module__}.Stranger"
    manifest = rewrite(folder, lambda c: c["flavors"]["sklearn"].update(skops_trusted_types=[own]))
    with pytest.raises(ModelError, match=own):
        models.load_model_files(folder, manifest, name="The model")


def test_a_model_file_that_is_none_is_refused_by_name(folder: Path) -> None:
    (folder / "model.skops").write_bytes(b"PK nothing")
    with pytest.raises(ModelFileError, match=r"file 'model.skops'"):
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")


# --- warm-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': [('content', '<u8')], 'fortran_order': False, 'shape': (1000000000000,)}".ljust(117)
        + b"\n",
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<u8', 'fortran_order': False, 'shape': (1,)}".ljust(117)
        + b"\n"
        + b"8" * 8,
    ],
    ids=["empty", "text", "a header that promises 8 terabytes", "no field"],
)
def test_hashes_of_training_rows_that_are_none_are_refused(folder: Path, content: bytes) -> None:
    (folder / models.TRAINING_FILE).write_bytes(content)
    with pytest.raises(ModelFileError, match=r"training_rows.npy.*(is not readable|something else than hashes)"):
        models.load_model_files(folder, models.compute_manifest(folder), name="It")


def test_a_model_that_predicts_something_else_here_is_discarded(folder: Path) -> None:
    stored = json.loads((folder / "warmup.json").read_text())
    stored["predictions"][0][0] += 1e-6
    (folder / "warmup.json").write_text(json.dumps(stored))
    with pytest.raises(ModelFileError, match=r"does not give its stored predictions.*discarded unused"):
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")


def test_warm_up_rows_keep_missing_values_and_types() -> None:
    X, y = make_training()
    X = X.assign(size=X["size"].where(X.index > 2), flag=X["weight"] > 5, seats=np.arange(len(X), dtype="float64"))
    model = pipeline.make_pipeline(
        compose.make_column_transformer(
            COLOR, (impute.SimpleImputer(), ["size", "seats"]), (preprocessing.OneHotEncoder(), ["flag"])
        ),
        naive_bayes.GaussianNB(),
    ).fit(X, y)
    stored = json.loads(models.warmup_json(task_of(model), model, X.head()))
    assert stored["rows"][0][1] is None
    rows, scores = models.read_warmup(stored)
    pd.testing.assert_frame_equal(rows, X.head())
    np.testing.assert_array_equal(model.predict_proba(rows)[:, [1]], scores)


def test_warm_up_rows_have_a_score_for_each_class_of_several() -> None:
    X, _ = make_training()
    model = after(naive_bayes.GaussianNB()).fit(X, np.resize(["a", "b", "c"], len(X)))
    rows, scores = models.read_warmup(json.loads(models.warmup_json(multiclass().fit_to(model), model, X.head())))
    np.testing.assert_array_equal(model.predict_proba(rows), scores)


@pytest.mark.parametrize(
    "task", [None, {}, {"kind": "triage"}, {"kind": "binary"}, {"kind": "regression", "x": 1}, "binary"]
)
def test_a_model_that_names_no_task_is_refused(folder: Path, task: Any) -> None:
    manifest = rewrite(folder, lambda content: content["metadata"]["mlops"].update(task=task))
    with pytest.raises(ModelFileError, match=r"'MLmodel' names no task as tracking.log_model writes it"):
        models.load_model_files(folder, manifest, name="The model")


def test_the_registrys_own_files_are_verified_the_same_way(project: Project, version: registry.Version) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}"))
    (folder / "MLmodel").write_text((folder / "MLmodel").read_text() + "\n")
    with pytest.raises(ModelFileError, match=r"Version 1 of 'toy' was not loaded: file 'MLmodel' has been changed"):
        registry.load_model(project, 1)
