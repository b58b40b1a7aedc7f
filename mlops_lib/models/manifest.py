"""A model's manifest: the SHA-256 of each of its files, and of the list itself, which is the model's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlops_lib.errors import ModelFileError
from mlops_lib.models.limits import MAX_FILES, MAX_FOLDER_BYTES, raise_for_limit

# On the logged model and on the version: the manifest's JSON and its digest.
MANIFEST_TAG = "mlops.manifest"
DIGEST_TAG = "mlops.digest"


def compute_manifest(folder: Path, *, model: str = "The model") -> dict[str, dict[str, Any]]:
    """Return ``{relative path: {sha256, size}}`` of every file below ``folder``, sorted; links are refused.

    Raises
    ------
    ModelFileError
        For too many files or bytes. Nothing was read.
        For a symbolic link, since what it points to may change, and for a pipe or device.
    """
    sizes = _list_files(folder, model)
    manifest = {}
    for name, size in sizes.items():
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest[name] = {"sha256": digest, "size": size}
    return manifest


def compute_digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's canonical JSON: the identity of exactly these files."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def raise_for_files(folder: Path, manifest: Mapping[str, Any], *, model: str) -> None:
    """Raise ``ModelFileError`` naming the first file that was changed, removed or added since ``manifest``."""
    found = compute_manifest(folder, model=model)
    raise_for_sizes({name: file["size"] for name, file in found.items()}, manifest, model=model)
    for name, expected in manifest.items():
        if found[name] != expected:
            have, want = found[name]["sha256"][:12], expected["sha256"][:12]
            reason = f"has been changed (SHA-256 {have}…, registered {want}…)"
            raise ModelFileError("unread", model=model, file=name, reason=reason)


def raise_for_sizes(sizes: Mapping[str, int | None], manifest: Mapping[str, Any], *, model: str) -> None:
    """Raise ``ModelFileError`` naming the first file that is missing, new or of another size (bytes) than registered.

    A store lists sizes without giving the files (None where it knows none): nothing is copied that would be refused.
    """
    for name, expected in manifest.items():
        if name not in sizes:
            raise ModelFileError("unread", model=model, file=name, reason="is missing")
        if sizes[name] not in (None, expected["size"]):
            reason = f"has been changed ({sizes[name]:,} bytes, registered {expected['size']:,})"
            raise ModelFileError("unread", model=model, file=name, reason=reason)
    for name in sizes:
        if name not in manifest:
            raise ModelFileError("unread", model=model, file=name, reason="was not there when the model was registered")


def _list_files(folder: Path, model: str) -> dict[str, int]:
    """Return each file's size in bytes, sorted by name, within the limits."""
    sizes: dict[str, int] = {}
    for n, path in enumerate(folder.rglob("*"), start=1):
        raise_for_limit(model, "its folder", "has entries:", n, MAX_FILES)
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelFileError("unread", model=model, file=name, reason="is a symbolic link")
        if path.is_file():
            sizes[name] = path.stat().st_size
        elif not path.is_dir():
            raise ModelFileError("unread", model=model, file=name, reason="is neither a file nor a folder")
    raise_for_limit(model, "its folder", "has bytes:", sum(sizes.values()), MAX_FOLDER_BYTES)
    return dict(sorted(sizes.items()))
