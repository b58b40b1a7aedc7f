"""What every report of ``ci/bench`` says of the run, and where it is written; standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TODAY = f"{datetime.now(UTC):%Y-%m-%d}"  # the day on which it began


def describe_command(name: str) -> str:
    """Return the command that repeats this run."""
    return f"`ci/bench {' '.join([name, *sys.argv[1:]])}`"


def describe_machine() -> str:
    """Return cores that this process may use, memory, system and Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    n_cores = len(os.sched_getaffinity(0))
    return f"{n_cores} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def describe_versions(packages: Iterable[str]) -> str:
    """Return the installed version of each package."""
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def write_report(name: str, lines: Iterable[str]) -> None:
    """Write ``benchmarks/<date>-<name>.md`` and print it."""
    path = ROOT / "benchmarks" / f"{TODAY}-{name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"), end="")
