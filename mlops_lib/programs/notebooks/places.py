"""Where a project's notebooks are, which of them are meant, and whether anything has changed since they passed.

Without nbformat, pandas or MLflow: a check that has nothing to do answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_lib.errors import NotFoundError, ProjectError, WriteError
from mlops_lib.programs.notebooks.keys import compute_key, digest, fingerprint
from mlops_lib.project import find_project_file, load_project

SANITIZER, RECORD = "sanitize.cfg", ".mlops/checked.json"
CONFIGURATION = ("requirements.lock", "pyproject.toml", "ruff.toml", ".ruff.toml")
NO_SOURCES = {"runs", "mlruns", "mlartifacts", "site-packages", "node_modules", "__pycache__"}  # nor hidden folders


@dataclass(frozen=True)
class Place:
    """Where a project's notebooks are and what it asks of them; ``passed`` is what is known of those that passed."""

    file: Path | None  # None for a folder without a project
    root: Path
    folder: Path
    is_chain: bool
    has_style: bool
    tolerance: float
    passed: dict[str, Any]

    def name(self, path: Path) -> str:
        """Return a notebook's name: its path below the folder, without the suffix."""
        return path.relative_to(self.folder).with_suffix("").as_posix()

    @property
    def sanitizer(self) -> Path:
        """The file of rules that outputs are compared with."""
        return self.folder / SANITIZER


def find_place(file: Path | str | None) -> Place:
    """Locate the notebooks; the project file is imported (seconds) only when it has changed since the last check."""
    try:
        path = find_project_file(file).resolve()
    except ProjectError:
        here = load_project(file, or_here=True).root
        return Place(None, here, here, is_chain=False, has_style=False, tolerance=0.0, passed={})
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
        project, passed, root, folder, asks = (record[n] for n in ("project", "passed", "root", "folder", "asks"))
    except (OSError, ValueError, LookupError, TypeError):  # none yet, or cut short: everything is checked again
        project, passed = "", {}
    if project != fingerprint(path):
        loaded = load_project(path)
        root, folder = loaded.root, loaded.root / loaded.notebooks
        asks = [loaded.chain, loaded.notebook_style, loaded.output_tolerance]
    is_chain, has_style, tolerance = asks
    folders = (path.parent / root).resolve(), (path.parent / folder).resolve()
    return Place(path, *folders, is_chain, has_style, tolerance, passed)


def write_record(place: Place) -> None:
    """Remember what has passed, beside the project file; a folder without one is left as it was."""
    if place.file is None:
        return
    here = place.file.parent
    record = {
        "project": fingerprint(place.file),
        "passed": place.passed,
        "root": os.path.relpath(place.root, here),
        "folder": os.path.relpath(place.folder, here),
        "asks": [place.is_chain, place.has_style, place.tolerance],
    }
    with contextlib.suppress(WriteError):  # a read-only checkout can be checked, again and again
        write_text(place.file.parent / RECORD, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole."""
    from mlops_lib import data  # noqa: PLC0415 - loads pandas

    with data.atomic_write(path, "w") as file:
        file.write(text)


def select_notebooks(place: Place, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the named notebooks, and these with those that they build on."""
    known = sorted(_list_notebooks(place.folder))
    named = [] if names else known
    for name in names:
        asked = Path(name).resolve() if Path(name).is_file() else None
        given = Path(name).as_posix().removesuffix(".ipynb")
        fits = [path for path in known if (path == asked if asked else given in (place.name(path), path.stem))]
        if not fits:
            files = tuple(f"{place.name(path)}.ipynb" for path in known)
            raise NotFoundError("notebook", notebook=Path(name), notebooks=files)
        named += fits
    named = sorted(set(named))
    return named, [path for path in known if path <= named[-1]] if place.is_chain and named else named


def _list_notebooks(folder: Path) -> Iterator[Path]:
    """Yield the notebooks in a folder and below it, but for hidden folders and those that programs write."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NO_SOURCES]
        yield from (Path(place) / name for name in files if name.endswith(".ipynb") and not name.startswith("."))


def compute_keys(place: Place, paths: Sequence[Path]) -> dict[Path, str]:
    """Return for each notebook the key of what is known beforehand, the notebooks before it included."""
    rules = (folder / name for folder in (place.root, place.folder) for name in CONFIGURATION)
    begin = compute_key("check", [*filter(None, [place.file]), place.sanitizer, *rules])
    key, by_path = begin, {}
    for path in paths:
        key = by_path[path] = digest([key if place.is_chain else begin, path.name, fingerprint(path)])
    return by_path


def holds(place: Place, entry: Mapping[str, Any] | None, key: str) -> bool:
    """Whether a notebook has passed under this key, and the files that it read are unchanged."""
    if not entry or entry["key"] != key:
        return False
    return all(fingerprint(place.root / name) == content for name, content in entry["inputs"].items())
