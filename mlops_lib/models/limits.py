"""How large a model may be, asked before anything of it is read into memory.

Each limit is far above what a model that is scored row by row needs and far below what stops a small machine. They are
constants on purpose: who needs a larger one changes it here, in a commit that says why.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from mlops_lib.errors import ModelFileError

MAX_FILES = 1_000  # MLflow writes nine and we add a handful; each is hashed and listed in a tag
MAX_FOLDER_BYTES = 2 << 30  # a folder is copied and hashed before every load: 2 GiB take seconds, not minutes
MAX_TEXT_BYTES = 64 << 20  # a JSON file that we parse grows about tenfold in memory
MAX_MLMODEL_BYTES = 1 << 20  # MLmodel is a page of YAML; a signature of 1,000 columns is 100 kB
MAX_MEMBERS = 65_534  # an archive with more needs zip64, whose second directory would have to be checked as well
MAX_DIRECTORY_BYTES = 128  # for each member: skops names them by an object's number, in about 30 characters
MAX_INFLATED_BYTES = 2 << 30  # everything that the archive and the archives in it say they become
MAX_RATIO = 100  # skops stores, scipy deflates its sparse matrices: numbers shrink to a tenth, seldom to a hundredth
SMALL_BYTES = 16 << 20  # below this any ratio is harmless: a sparse matrix of equal values shrinks a thousandfold


def raise_for_limit(model: str, file: str, what: str, found: int, limit: int) -> None:
    """Raise ``ModelFileError`` if ``found`` is more than ``limit``."""
    if found > limit:
        raise ModelFileError("limit", model=model, file=file, what=what, found=found, limit=limit)


def raise_for_archive(path: Path, *, model: str) -> None:
    """Raise unless a skops file can be read whole into memory that it declares, without inflating it.

    Raises
    ------
    ModelFileError
        For too many members, too many bytes, or bytes that inflate too much; and for what is no archive, is encrypted
        or compressed in a way whose output cannot be bounded, or refers to itself.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        archive = _open(file, size, model, path.name)
        total = _count_inflated(archive, model, path.name)
        if total > SMALL_BYTES:
            raise_for_limit(model, path.name, "inflates by a factor of", total // size, MAX_RATIO)
        schema = _read(archive, "schema.json", model, path.name)
        raise_for_limit(model, path.name, "has a schema of bytes:", len(schema), MAX_TEXT_BYTES)
        _raise_for_schema(schema, model, path.name)


def _open(file: IO[bytes], size: int, model: str, name: str) -> zipfile.ZipFile:
    """Open an archive whose directory was found to be small before Python reads it."""
    file.seek(max(0, size - 42))
    tail = file.read(42)
    end = tail[-22:]
    # Python looks for zip64's directory first wherever its locator stands before the end: there must be none.
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0" or tail[:-22].startswith(b"PK\6\7"):
        raise ModelFileError("unread", model=model, file=name, reason="is not a plain zip archive")
    members, directory = struct.unpack("<H L", end[10:12] + end[12:16])
    raise_for_limit(model, name, "has members:", members, MAX_MEMBERS)
    raise_for_limit(model, name, "has a directory of bytes:", directory, MAX_DIRECTORY_BYTES * max(members, 1))
    try:
        return zipfile.ZipFile(file)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            "unread", model=model, file=name, reason=f"is not a plain zip archive ({error})"
        ) from error


def _count_inflated(archive: zipfile.ZipFile, model: str, name: str, *, is_nested: bool = False) -> int:
    """Return the bytes that every member becomes, those of archives in it (scipy's matrices) included."""
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    raise_for_limit(model, name, "inflates to bytes:", total, MAX_INFLATED_BYTES)
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelFileError(
                "unread",
                model=model,
                file=name,
                reason=f"holds '{member.filename[:80]}' encrypted or in a rare compression",
            )
        ratio = member.file_size // max(member.compress_size, 1)
        if member.file_size > SMALL_BYTES:
            raise_for_limit(model, name, "holds a member that inflates by a factor of", ratio, MAX_RATIO)
    if not is_nested:  # numpy reads one archive in an archive and none in that
        for member in members:
            if member.filename.endswith(".npz"):
                content = _read(archive, member, model, name)
                inner = _open(io.BytesIO(content), len(content), model, name)
                total += _count_inflated(inner, model, name, is_nested=True)
                raise_for_limit(model, name, "inflates to bytes:", total, MAX_INFLATED_BYTES)
    return total


def _read(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, model: str, name: str) -> bytes:
    """Return a member's bytes, of which there were found to be few; one that cannot be inflated is no fault of ours."""
    try:
        return archive.read(member)
    except (KeyError, OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelFileError(
            "unread", model=model, file=name, reason=f"is not a skops file ({type(error).__name__})"
        ) from error


def _raise_for_schema(schema: bytes, model: str, name: str) -> None:
    """Raise for a schema in which a short reference stands for a large part: n of them would double n times.

    skops writes a part that occurs twice in full both times, under one ``__id__``, but reads only the first.
    """
    sizes: dict[Any, int] = {}

    def measure(part: dict[str, Any]) -> dict[str, Any]:
        size = 1 + sum(_size_of(value) for value in part.values())
        if "__id__" in part and sizes.setdefault(part["__id__"], size) != size:
            raise ModelFileError("unread", model=model, file=name, reason="refers from one part of itself to another")
        return {"size": size}

    try:
        json.loads(schema, object_hook=measure)
    except (ValueError, RecursionError, TypeError) as error:
        raise ModelFileError(
            "unread", model=model, file=name, reason=f"is not a skops file ({type(error).__name__})"
        ) from error


def _size_of(value: Any) -> int:
    if isinstance(value, dict):
        return int(value["size"])
    return sum(_size_of(item) for item in value) if isinstance(value, list) else 0
