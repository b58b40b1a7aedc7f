"""A model whose files are not the registered ones is refused by file, before any of it is deserialized."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import skops.io
import yaml
from conftest import register_model

from mlops_lib import data, models, registry
from mlops_lib.errors import ModelFileError
from mlops_lib.project import Project
from mlops_lib.tracking import store


def folder_of(version: registry.Version) -> Path:
    """Return where the store keeps a version's files."""
    (model,) = Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent.rglob(f"*{version.model_id}/artifacts")
    return model


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the list of what skops was asked to read."""
    asked: list[str] = []
    for name in ("load", "loads", "get_untrusted_types"):
        real = getattr(skops.io, name)

        def note(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            asked.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(skops.io, name, note)
    return asked


def test_a_bit_that_flips_in_any_file_is_found_before_anything_is_read(
    project: Project, version: registry.Version, tmp_path: Path, reads: list[str], record: Callable[..., None]
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}", dst_path=str(tmp_path / "model")))
    manifest = models.compute_manifest(folder)
    assert models.load_model_files(folder, manifest, name="The model").digest == version.digest
    assert reads == ["get_untrusted_types", "load"], "the list notes what it should"
    reads.clear()
    rng = random.Random(0)
    sizes = {name: facts["size"] for name, facts in manifest.items()}
    assert {"MLmodel", "model.skops", "contract.json", "profile.json", "warmup.json", "conda.yaml"} <= set(sizes)
    places = [(name, rng.randrange(sizes[name]), rng.randrange(8)) for name in sizes]
    while len(places) < 200:
        name = rng.choices(list(sizes), [size**0.5 for size in sizes.values()])[0]
        places.append((name, rng.randrange(sizes[name]), rng.randrange(8)))
    unnoticed = 0
    for name, offset, bit in places:
        path, content = folder / name, (folder / name).read_bytes()
        flipped = bytearray(content)
        flipped[offset] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(ModelFileError, match="has been changed") as caught:
            models.load_model_files(folder, manifest, name="The model")
        assert caught.value.file == name
        if name not in (models.MODEL_FILE, models.MLMODEL_FILE) and not unnoticed:
            mlflow.sklearn.load_model(str(folder))
            assert reads
            reads.clear()
            unnoticed += 1
        path.write_bytes(content)
    assert reads == []
    assert unnoticed
    record(
        12,
        plain="no file has a checksum: MLflow loads the model unless the archive's own check stumbles",
        ours="refused at each of 200 places over all files, the file named, before anything is deserialized",
    )


def add(folder: Path, _: Path) -> str:
    (folder / "sitecustomize.py").touch()
    return "sitecustomize.py"


def remove(folder: Path, _: Path) -> str:
    (folder / "contract.json").unlink()
    return "contract.json"


def link(folder: Path, other: Path) -> str:
    (folder / "model.skops").unlink()
    (folder / "model.skops").symlink_to(other / "model.skops")
    return "model.skops"


def swap(folder: Path, other: Path) -> str:
    shutil.copy(other / "model.skops", folder / "model.skops")
    return "model.skops"


def rename(folder: Path, _: Path) -> str:
    (folder / "profile.json").rename(folder / "Profile.json")
    return "profile.json"


def test_a_file_that_was_added_removed_linked_swapped_or_renamed_is_named(
    project: Project, version: registry.Version, tmp_path: Path, record: Callable[..., None]
) -> None:
    other = folder_of(register_model(project, C=1e-4))
    folder = folder_of(version)
    kept = shutil.copytree(folder, tmp_path / "kept")
    manifest = models.compute_manifest(folder)
    rows = data.read_labelled(project, "p1")[list(project.features)]
    honest = registry.load_model(project, 1).model.predict_proba(rows)
    for mutate in (add, remove, link, swap, rename):
        name = mutate(folder, other)
        with pytest.raises(ModelFileError) as caught:
            models.load_model_files(folder, manifest, name="Version 1 of 'toy'")
        assert caught.value.file == name
        with pytest.raises(ModelFileError) as caught:
            registry.load_model(project, 1)
        assert caught.value.file == name or mutate is link  # MLflow follows no link out of the folder either
        if mutate is swap:
            swapped = mlflow.sklearn.load_model("models:/toy/1").predict_proba(rows)
            assert not np.allclose(swapped, honest)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    registry.load_model(project, 1)
    record(
        13,
        plain="MLflow loads another version's model under this one's name",
        ours="refused, the file named, whichever of the five was done",
    )


def test_a_version_whose_files_are_gone_is_refused_where_it_is_loaded(
    project: Project, version: registry.Version, record: Callable[..., None]
) -> None:
    shutil.rmtree(folder_of(version))
    with pytest.raises(ModelFileError, match=r"cannot be read from the artifact store|is missing"):
        registry.load_model(project, 1)
    client = mlflow.MlflowClient(project.tracking_uri)
    assert client.get_model_version("toy", "1").status == "READY"
    record(14, plain="the version still says READY", ours="loading it is refused, and says that its files are gone")


SIZES = {
    "huge": "was not there when the model was registered",
    "MLmodel": "has been changed .1,099,511,627,776 bytes, registered",
    "loop": "cannot be read from the artifact store",  # a link to its own folder has no end
}


@pytest.mark.parametrize("name", SIZES)
def test_nothing_is_copied_of_a_model_whose_files_have_other_sizes(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(store, "download_model", lambda model_id, _: copied.append(model_id))
    if name == "loop":
        (folder_of(version) / name).symlink_to(folder_of(version))
    else:
        with (folder_of(version) / name).open("ab") as file:
            file.truncate(1 << 40)  # no block of the disk
    for use in (registry.load_model, lambda *_: registry.register(project, f"models:/{version.model_id}")):
        with pytest.raises(ModelFileError, match=SIZES[name]):
            use(project, 1)
    assert not copied


def test_a_full_disk_is_not_told_as_a_broken_model(
    project: Project, version: registry.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(model_id: str, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(store, "download_model", fill)
    with pytest.raises(ModelFileError, match="cannot be read from the artifact store"):
        registry.load_model(project, version.version)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ModelFileError, match=r"do not fit into .* whose disk is full"):
        registry.load_model(project, version.version)


# Loads a folder with MLflow, then says what the model predicts; in a process of its own, since code may run.
LOAD = "import sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1]); print('loaded')"


@pytest.mark.parametrize("what", ["loader", "pickle"])
def test_metadata_that_asks_for_code_runs_none_of_it(
    version: registry.Version, tmp_path: Path, record: Callable[..., None], what: str
) -> None:
    """The manifest follows: the attacker may write to the registry."""
    folder, sentinel = shutil.copytree(folder_of(version), tmp_path / "model"), tmp_path / "sentinel"
    content = yaml.safe_load((folder / "MLmodel").read_text())
    if what == "loader":
        (folder / "code").mkdir()
        (folder / "code/planted.py").write_text(
            f"open({str(sentinel)!r}, 'w').close()\ndef _load_pyfunc(path):\n    return object()\n"
        )
        content["flavors"]["python_function"] |= {"loader_module": "planted", "code": "code"}
    else:
        content["flavors"]["sklearn"]["serialization_format"] = "pickle"
        (folder / "model.skops").write_bytes(pickle.dumps({"a": 1}))
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    if what == "loader":
        plain = subprocess.run(
            [sys.executable, "-c", LOAD, folder],
            env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
            capture_output=True,
            check=False,
        )
        assert sentinel.exists(), plain.stderr
        sentinel.unlink()
    with pytest.raises(ModelFileError) as caught:
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")
    assert caught.value.file == "MLmodel"
    assert "planted" not in sys.modules
    assert not sentinel.exists()
    record(
        15,
        plain="the code runs, also with MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false",
        ours="refused without an import, though the manifest matches",
    )
