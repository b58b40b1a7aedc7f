"""Train, promote and score on a system without what only Linux has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Hides fcntl, resource and /proc from the library (psutil uses them on Linux, and asks other systems in their own way)
# and os.sched_getaffinity from everybody.
HIDDEN = """
import builtins, os, sys

del os.sched_getaffinity, os.sched_setaffinity
real = builtins.__import__


def is_ours(frame):
    return frame.f_globals.get("__name__", "").startswith("mlops_lib")


def import_without_unix(name, *arguments, **options):
    if name in ("fcntl", "resource") and is_ours(sys._getframe(1)):
        raise ImportError(name)
    return real(name, *arguments, **options)


def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        if is_ours(sys._getframe(1)):
            raise FileNotFoundError(arguments[0])


builtins.__import__ = import_without_unix
sys.addaudithook(refuse)
"""
LOOP = """
from pathlib import Path

from conftest import make_project, register_model
from stages import bring_to_prod

from mlops_lib import data, registry
from mlops_lib.programs import batch

project = make_project(Path(sys.argv[1]), Path(sys.argv[2]))
version = register_model(project)
bring_to_prod(project, version.version)
result = batch.score_table(project, "prod", project.path("arrivals", "p3"), project.root / "scored.parquet")
print(registry.current(project, "prod"), result.n_scored, len(data.read_table(result.output)))
"""


def run(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", HIDDEN + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)


def test_the_way_from_training_to_scores_needs_nothing_that_only_linux_has(
    tmp_path: Path, migrated_store: Path
) -> None:
    done = run(LOOP, tmp_path, migrated_store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 1000 1000"


@pytest.mark.parametrize("code", ["import fcntl", "os.sched_getaffinity(0)", "open('/proc/stat')"])
def test_what_is_hidden_is_missed(code: str) -> None:
    assert run(f"__name__ = 'mlops_lib.x'\n{code}").returncode == 1
    assert run("import fcntl; open('/proc/stat')").returncode == 0, "others still have it"
