"""A model file that would fill the memory, or keep a reader busy for ever, is refused before it is inflated."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import skops.io
import yaml
from refusals import raises
from sklearn.linear_model import LogisticRegression

from mlops_lib import models
from mlops_lib.errors import ModelError, ModelFileError
from mlops_lib.models import limits, types

X = np.random.default_rng(0).normal(size=(40, 2))
MODEL = LogisticRegression().fit(X, X[:, 0] > 0)


def read(data: bytes) -> dict[str, bytes]:
    """Return the members of a skops file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_model(path: Path, model: Any = MODEL) -> Path:
    path.write_bytes(skops.io.dumps(model))
    return path


def check(path: Path) -> None:
    limits.raise_for_archive(path, model="The model")


def write_bomb(path: Path, mebibytes: int) -> Path:
    """Write a skops file whose coefficients are so many zeros, deflated."""
    members = read(skops.io.dumps(MODEL))
    found = next(n for n, content in members.items() if content[:6] == b"\x93NUMPY" and b"(1, 2)" in content)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1, mebibytes << 17)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            if name != found:
                archive.writestr(name, members[name])
        with archive.open(found, "w") as member:
            member.write(header.getvalue())
            for _ in range(mebibytes):
                member.write(bytes(1 << 20))
    return path


def test_files_that_skops_writes_pass(tmp_path: Path) -> None:
    shared = LogisticRegression()
    for model in (MODEL, [shared, shared, {"a": [shared]}], scipy.sparse.csr_matrix(np.eye(2000)), np.zeros(10**7)):
        check(write_model(tmp_path / "model.skops", model))


# Loads a folder with no more memory to be had than 128 MiB beyond what the imports took: as MLflow does, then as we do.
LIMITED = """
import resource, sys
from pathlib import Path
import mlflow, skops.io
from mlops_lib import models
from mlops_lib.errors import ModelFileError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20),) * 2)
folder = Path(sys.argv[1])
for load in (
    lambda: mlflow.sklearn.load_model(str(folder)),
    lambda: models.load_model_files(folder, models.compute_manifest(folder), name="The model"),
):
    try:
        load()
        print("loaded")
    except (MemoryError, ModelFileError) as error:
        print(type(error).__name__, error)
"""


def test_a_small_file_that_would_fill_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, record: Callable[..., None]
) -> None:
    bomb = write_bomb(tmp_path / "model.skops", 256)
    assert bomb.stat().st_size < 1 << 20
    sklearn = {"serialization_format": "skops", "pickled_model": "model.skops", "sklearn_version": "1.9.1"}
    flavors = {"sklearn": sklearn, "python_function": {"loader_module": "mlflow.sklearn", "env": {}}}
    (tmp_path / "MLmodel").write_text(
        yaml.safe_dump({"flavors": flavors, "metadata": {"mlops": {"task": {"kind": "regression"}}}})
    )
    (tmp_path / "warmup.json").write_text('{"rows": [[1]]}')

    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    plain, ours = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert plain.startswith("MemoryError")
    assert ours.startswith("ModelFileError The model was not loaded: 'model.skops' ")
    record(
        17,
        plain="MLflow asks for all the memory that the file claims to need",
        ours="refused by the sizes in its directory, before anything is inflated",
    )


def test_a_file_of_many_bytes_in_all_is_refused_whatever_its_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_INFLATED_BYTES", 1 << 20)
    path = write_model(tmp_path / "model.skops", np.zeros(1 << 18))
    with pytest.raises(ModelFileError, match=r"inflates to bytes: 2,\d\d\d,\d\d\d, the limit is 1,048,576"):
        check(path)


def test_an_archive_in_the_archive_is_measured_too(tmp_path: Path) -> None:
    """scipy writes a sparse matrix as a compressed archive, which skops stores as one member."""
    matrix = scipy.sparse.csr_matrix(np.ones((2, 2)))
    matrix.data = np.zeros(1 << 23)
    matrix.indices, matrix.indptr = np.zeros(1 << 23, dtype="int32"), np.array([0, 1 << 22, 1 << 23], dtype="int32")
    path = write_model(tmp_path / "model.skops", {"counts": matrix})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelFileError, match="a member that inflates by a factor of"):
        check(path)


def test_many_small_members_that_inflate_together_are_refused(
    tmp_path: Path,
) -> None:
    members = {**read(skops.io.dumps(MODEL)), **{f"{n}.npy": bytes(1 << 20) for n in range(20)}}
    path = write(tmp_path / "model.skops", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelFileError, match=r"'model.skops' inflates by a factor of"):
        check(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_cannot_be_bounded_is_refused(tmp_path: Path, compression: int) -> None:
    path = write(tmp_path / "model.skops", read(skops.io.dumps(MODEL)), compression=compression)
    with pytest.raises(ModelFileError, match="in a rare compression"):
        check(path)


def test_an_archive_of_too_many_members_is_refused_by_its_last_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBERS", 2)
    with pytest.raises(ModelFileError, match=r"'model.skops' has members: \d, the limit is 2"):
        check(write_model(tmp_path / "model.skops"))


def test_an_archive_whose_directory_is_larger_than_its_members_need_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.skops", {**read(skops.io.dumps(MODEL)), "x" * 5000: b""})
    with pytest.raises(ModelFileError, match="has a directory of bytes:"):
        check(path)


def test_a_second_directory_is_refused(tmp_path: Path) -> None:
    """Python would believe zip64's directory, wherever its locator stands; ours looked at the other one."""
    path = write_model(tmp_path / "model.skops")
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"PK\6\7" + bytes(16) + content[-22:])
    with pytest.raises(ModelFileError, match="is not a plain zip archive"):
        check(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6" + bytes(17), b"x" * 100, b"PK\5\6" + b"\xff" * 18])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"is not a (plain zip archive|skops file)|has "):
        check(tmp_path / "model.skops")


@pytest.mark.parametrize("schema", [b"", b"{", b"[" * 100_000, b"\xff\xfe\xfa"])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, schema: bytes) -> None:
    with pytest.raises(ModelFileError, match="is not a skops file"):
        check(write(tmp_path / "model.skops", {"schema.json": schema}))


def test_an_archive_without_a_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is not a skops file \(KeyError\)"):
        check(write(tmp_path / "model.skops", {"a.npy": b""}))


@pytest.mark.parametrize("damaged", ["schema.json", "a.npz"])
@pytest.mark.parametrize(("fill", "error"), [(b"\xff", "error"), (b"\0", "BadZipFile|error|EOFError")])
def test_a_member_that_cannot_be_inflated_is_refused(tmp_path: Path, damaged: str, fill: bytes, error: str) -> None:
    inner = write(tmp_path / "a.npz", {"a.npy": b"x" * 100}).read_bytes()
    members = {"schema.json": b"{}" + b" " * 1000, "a.npz": inner}
    path = write(tmp_path / "model.skops", members, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(damaged)
    begin = member.header_offset + 30 + len(damaged)
    content[begin : begin + member.compress_size] = fill * member.compress_size
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"is not a skops file \(({error})\)"):
        check(path)


def make_list(content: list[Any], number: int) -> dict[str, Any]:
    return {
        "__class__": "list",
        "__module__": "builtins",
        "__loader__": "ListNode",
        "content": content,
        "__id__": number,
    }


@pytest.mark.parametrize("size", [40])
def test_a_schema_that_doubles_with_each_reference_is_refused(tmp_path: Path, size: int) -> None:
    """Forty short lines would be visited a million million times."""
    schema = make_list([], 0)
    for number in range(1, size):
        schema = make_list([schema, {"__id__": number - 1, **make_list([], number - 1)}], number)
    schema |= {"protocol": 2, "_skops_version": "0.16.0"}
    with pytest.raises(ModelFileError, match="refers from one part of itself to another"):
        check(write(tmp_path / "model.skops", {"schema.json": json.dumps(schema).encode()}))


def test_a_schema_that_contains_itself_is_refused(tmp_path: Path) -> None:
    schema = make_list([make_list([], 1)], 1)
    with pytest.raises(ModelFileError, match="refers from one part of itself to another"):
        check(write(tmp_path / "model.skops", {"schema.json": json.dumps(schema).encode()}))


def test_a_schema_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TEXT_BYTES", 100)
    with pytest.raises(ModelFileError, match="has a schema of bytes:"):
        check(write_model(tmp_path / "model.skops"))


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_folder_of_too_many_files_or_bytes_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        (tmp_path / str(n)).write_bytes(bytes(10))
    monkeypatch.setattr(limits.Path, "open", lambda *_: pytest.fail("a file was opened"))
    monkeypatch.setattr("mlops_lib.models.manifest.MAX_FILES", 2)
    with pytest.raises(ModelFileError, match="'its folder' has entries: 3, the limit is 2"):
        models.compute_manifest(tmp_path)
    monkeypatch.setattr("mlops_lib.models.manifest.MAX_FILES", 3)
    monkeypatch.setattr("mlops_lib.models.manifest.MAX_FOLDER_BYTES", 29)
    with pytest.raises(ModelFileError, match="'its folder' has bytes: 30, the limit is 29"):
        models.compute_manifest(tmp_path)


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("package", "version"), [("skops", "0.17.0"), ("scikit-learn", "1.10.0")])
def test_a_version_that_nobody_has_reviewed_saves_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str
) -> None:
    real = types.importlib.metadata.version
    monkeypatch.setattr(types.importlib.metadata, "version", lambda name: version if name == package else real(name))
    with pytest.raises(ModelError, match=f"not reviewed for .*{version}.*but for skops 0.16.0"):
        models.list_trusted_types(MODEL)
    with raises(ModelError, "versions"):
        models.load_model_files(tmp_path, {}, name="The model")


def test_a_patch_of_scikit_learn_needs_no_review(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.importlib.metadata.version
    monkeypatch.setattr(types.importlib.metadata, "version", lambda n: "1.9.7" if n == "scikit-learn" else real(n))
    types.raise_for_versions()
