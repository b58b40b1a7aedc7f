"""The one key of what need not be done again: of a run, of a sweep, and of a notebook that has passed its check.

It covers what can be known beforehand besides the facts of each: files, this library, installed packages, Python. Light
enough for a command that finds that nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops_lib.data import reads

LIBRARY = Path(__file__).parents[2]


def compute_key(facts: Any, files: Iterable[Path]) -> str:
    """Return the SHA-256 of ``facts`` (JSON values), of files and of everything that any notebook depends on."""
    packages = {Path(folder) for folder in sys.path if folder.endswith("-packages")}
    return digest(
        {
            "facts": facts,
            "files": [fingerprint(path) for path in files],
            "library": [[str(path.relative_to(LIBRARY)), fingerprint(path)] for path in sorted(LIBRARY.rglob("*.py"))],
            "installed": sorted(entry.name for folder in packages for entry in folder.glob("*.dist-info")),
            "python": [sys.version, platform.machine()],
        }
    )


def digest(facts: Any) -> str:
    """Return the SHA-256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """Return the digest of a file's bytes, or of the names in a folder; empty where there is neither."""
    with reads.ours():
        if path.is_dir():
            names = (entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
            return f"names:{digest(sorted(names))}"
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else ""
