"""The disk is full while a model is logged or promoted: told, nothing half done, and over once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import register_model

from mlops_lib import gates, registry
from mlops_lib.project import Project
from mlops_lib.registry.verify import check_store, repair_store

Record = Callable[..., None]
SIZE = 6_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of six megabytes; only root may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("this user cannot mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def cramped(project: Project, small_disk: Path) -> Project:
    """Return the toy project with its store on a small disk, one version registered."""
    (small_disk / "mlflow.db").write_bytes((project.root / "mlflow.db").read_bytes())
    found = replace(project, tracking_uri=f"sqlite:///{small_disk / 'mlflow.db'}")
    register_model(found)
    return found


def fill(folder: Path, *, left: int) -> Path:
    """Fill a file system up to a few bytes."""
    path = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    path.write_bytes(b"x" * max(0, free - left))
    return path


@pytest.mark.parametrize("left", [0, 8_192, 40_960])
def test_a_registration_on_a_full_disk_is_told_and_leaves_no_version(
    cramped: Project, small_disk: Path, record: Record, left: int
) -> None:
    filler = fill(small_disk, left=left)
    with pytest.raises(Exception, match=r"(?i)disk|space|full|i/o"):
        register_model(cramped, C=0.5)
    filler.unlink()
    assert [version.version for version in registry.list_versions(cramped)] == [1]
    assert registry.current(cramped, "dev") == 1
    repair_store(cramped)
    assert check_store(cramped, everything=True).passed
    assert register_model(cramped, C=0.5).version == 2
    record(11, ours="told; no half version; the next attempt succeeds")


def test_a_promotion_on_a_full_disk_is_told_and_moves_nothing(
    cramped: Project, small_disk: Path, record: Record
) -> None:
    filler = fill(small_disk, left=0)
    with pytest.raises(Exception, match=r"(?i)disk|space|full|i/o"):
        gates.promote(cramped, 1, "staging", force=True, reason="now")
    filler.unlink()
    assert registry.current(cramped, "staging") is None
    assert check_store(cramped, everything=True).passed
    gates.promote(cramped, 1, "staging", force=True, reason="now")
    assert check_store(cramped, everything=True).passed
    record(11, ours="told; no half version; the next attempt succeeds")
