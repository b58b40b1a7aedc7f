"""A batch that is killed, has no room or may not write: nothing half-done is ever seen, and the next call is whole."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
import workers
from conftest import make_rows
from rounds import rounds, soak

from mlops_lib import data
from mlops_lib.errors import MlopsError, WriteError
from mlops_lib.programs import batch
from mlops_lib.project import Project

pytestmark = pytest.mark.usefixtures("version")
Record = Callable[..., None]
N_KILLS = rounds(5, 50)
N_ROWS = 120_000
COLUMNS = ["thing_id", "score", "prediction", "prediction_id", "model_version", "model_digest"]


@pytest.fixture
def source(project: Project) -> Path:
    """Return many arrivals of which some break the contract, written without a gate that cannot be pickled."""
    frame, _ = make_rows(N_ROWS, seed=5)
    frame.loc[::1000, "size"] = None
    return data.write_table(frame, project.root / "many.parquet")


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def visible(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.startswith(".")} if folder.exists() else set()


def kill_after(delay_s: float, project: Project, source: Path | str, output: Path | str) -> None:
    """Score in another process and kill it some time after it began."""
    victim = workers.start(batch.score_table, project, 1, source, output)
    time.sleep(delay_s)
    victim.kill()
    victim.join()


def read_rows(output: Path) -> pd.DataFrame:
    return data.read_table(output)[COLUMNS]


@soak
def test_a_batch_killed_at_any_moment_shows_nothing_and_the_next_is_whole(
    project: Project, source: Path, record: Record
) -> None:
    project, calm, output = replace(project, gates=()), project.root / "calm.parquet", project.root / "out/s.parquet"
    workers.start(time.monotonic).join()  # starts the server that forks, which takes longer than any batch
    began = time.monotonic()
    workers.start(batch.score_table, project, 1, source, calm).join()
    longest = time.monotonic() - began
    expected, n_finished, draw = read_rows(calm), 0, random.Random(N_KILLS)
    for _ in range(N_KILLS):
        kill_after(draw.uniform(0, 1.1 * longest), project, source, output)
        seen = visible(output.parent)
        assert seen <= {"s.parquet", "s.manifest.json", "s.quarantine.parquet"}
        if "s.parquet" in seen:  # it was faster than the kill: then everything is there
            n_finished += 1
            assert batch.score_table(project, 1, source, output).already_done
            pd.testing.assert_frame_equal(read_rows(output), expected)
            for name in seen:
                (output.parent / name).unlink()
    result = batch.score_table(project, 1, source, output)
    assert not result.already_done
    assert (result.n_rows, result.n_quarantined) == (N_ROWS, N_ROWS // 1000)
    pd.testing.assert_frame_equal(read_rows(output), expected)
    pd.testing.assert_frame_equal(
        data.read_table(batch.quarantine_path(output)), data.read_table(batch.quarantine_path(calm))
    )
    assert sorted(file.name for file in output.parent.iterdir()) == [
        "s.manifest.json",
        "s.parquet",
        "s.quarantine.parquet",
    ]
    print(f"{N_KILLS} kills in {longest:.1f} s, {n_finished} after the end")
    record(11, ours="a batch killed at any moment shows no predictions; the next call is equal to an undisturbed one")


@pytest.mark.parametrize("n_renames", [0, 1, 2, 3])
def test_a_batch_killed_between_two_renames_is_done_again_or_done(
    project: Project, source: Path, n_renames: int
) -> None:
    project, output = replace(project, gates=()), project.root / "out/s.parquet"
    few = data.write_table(data.read_table(source).head(2000), source.with_name("few.parquet"))
    workers.start(die_after_renames, n_renames, project, few, output).join()
    assert ("s.parquet" in visible(output.parent)) == (n_renames == 3)
    assert batch.score_table(project, 1, few, output).already_done == (n_renames == 3)
    assert data.read_table(output)["thing_id"].is_unique
    assert batch.score_table(project, 1, few, output).already_done


def die_after_renames(n_renames: int, *arguments: object) -> None:
    """Score until so many files were renamed, then vanish."""
    rename, done = os.replace, [0]

    def counted(*paths: object) -> None:
        if done[0] == n_renames:
            os._exit(9)
        rename(*paths)  # type: ignore[arg-type]
        done[0] += 1

    os.replace = counted  # type: ignore[assignment]
    batch.score_table(arguments[0], 1, *arguments[1:])  # type: ignore[arg-type]
    os._exit(0)


@soak
def test_a_batch_into_a_database_that_is_killed_leaves_no_row(
    project: Project, source: Path, postgres_uri: str
) -> None:
    project = replace(project, gates=())
    few = data.write_table(data.read_table(source).head(20_000), source.with_name("few.parquet"))
    draw = random.Random(N_KILLS)
    for number in range(max(2, N_KILLS // 2)):
        table = f"scores_{number}"
        kill_after(draw.uniform(0.2, 3), project, few, f"{postgres_uri}::{table}")
        result = batch.score_table(project, 1, few, f"{postgres_uri}::{table}")
        engine = sa.create_engine(postgres_uri)
        with engine.connect() as connection:
            rows = pd.read_sql(sa.text(f"select thing_id from {table}"), connection)
            accounts = pd.read_sql(sa.text(f"select * from {table}_batches"), connection)
        engine.dispose()
        assert (len(rows), rows["thing_id"].is_unique, len(accounts)) == (result.n_scored, True, 1)


def test_a_full_disk_is_named_and_shows_nothing(project: Project, source: Path, tmp_path: Path, record: Record) -> None:
    def fill(done: int, total: int | None) -> None:
        with contextlib.suppress(OSError), (folder / "other.bin").open("ab") as file:
            while True:
                file.write(bytes(4096))
                file.flush()

    with mounted(tmp_path / "full", "size=6m") as folder:
        with pytest.raises(WriteError, match=r"full/s.parquet': No space left on device"):
            batch.score_table(project, 1, source, folder / "s.parquet", progress=fill)
        assert [file.name for file in folder.iterdir()] == ["other.bin"]
    record(11, ours="a batch on a full disk ends with a named error and leaves no file")


def test_a_disk_that_fills_with_keys_is_named_too(project: Project, source: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=256k") as folder:
        with pytest.raises(WriteError, match=r"No space left on device"):
            batch.score_table(project, 1, source, folder / "s.parquet")
        assert list(folder.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_named(project: Project, source: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "sealed", "size=1m", "ro") as folder:
        with pytest.raises(WriteError, match=r"sealed/s.parquet': Read-only file system"):
            batch.score_table(project, 1, source, folder / "s.parquet")
        assert list(folder.iterdir()) == []


def test_whatever_is_wrong_with_an_input_nothing_is_left(project: Project, source: Path) -> None:
    frame, output = data.read_table(source).head(500), project.root / "out/s.parquet"
    whole = data.write_table(frame, source.with_name("whole.parquet")).read_bytes()
    faults: dict[str, Callable[[Path], object]] = {
        "cut": lambda path: path.write_bytes(whole[:-100]),
        "cut in the middle": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "no table": lambda path: path.write_bytes(b"PAR1 nothing of the kind PAR1"),
        "nothing": lambda path: path.write_bytes(b""),
        "no rows": lambda path: data.write_table(frame.head(0), path),
        "a column less": lambda path: data.write_table(frame.drop(columns="size"), path),
        "a column renamed": lambda path: data.write_table(frame.rename(columns={"size": "Size"}), path),
        "no key": lambda path: data.write_table(frame.drop(columns="thing_id"), path),
        "keys all null": lambda path: data.write_table(frame.assign(thing_id=None), path),
        "keys all one": lambda path: data.write_table(frame.assign(thing_id=7), path),
        "text for numbers": lambda path: data.write_table(frame.assign(size="big"), path),
        "nothing that fits": lambda path: data.write_table(pd.DataFrame({"a": [1.0], "b": ["x"]}), path),
    }
    for number, (name, make) in enumerate(faults.items()):
        path = source.with_name(f"fault-{number}.parquet")
        make(path)
        with pytest.raises(MlopsError, match=path.name):
            batch.score_table(project, 1, path, output)
        assert not output.parent.exists(), name
