"""Batch scoring: every row accounted for, all or nothing, traceable."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import workers
from conftest import FEATURES, make_rows
from refusals import raises
from sklearn.linear_model import LinearRegression

from mlops_lib import contracts, data, registry
from mlops_lib.errors import (
    BatchError,
    NotFoundError,
    TableError,
    WriteError,
)
from mlops_lib.programs import batch
from mlops_lib.programs.batch import keys, rows, sinks, sources, sql
from mlops_lib.project import Project
from mlops_lib.task import regression

pytestmark = pytest.mark.usefixtures("version")


@pytest.fixture
def source(project: Project) -> Path:
    """Return 1,000 good arrivals."""
    return project.path("arrivals", "p2")


@pytest.fixture
def output(project: Project) -> Path:
    """Return where predictions go; nothing is there yet."""
    return project.root / "out/scored.parquet"


def files_of(output: Path) -> list[str]:
    return sorted(file.name for file in output.parent.iterdir()) if output.parent.exists() else []


def with_bad_rows(source: Path, n_bad: int) -> Path:
    """Return a copy of a table whose first rows break the contract in two ways."""
    frame = data.read_table(source)
    frame.loc[: n_bad - 1, "size"] = np.nan
    frame.loc[: n_bad // 2 - 1, "color"] = None
    return data.write_table(frame, source.with_name("bad.parquet"))


# --- rows --------------------------------------------------------------------------------------------------------


def test_predictions_carry_keys_scores_and_where_they_come_from(project: Project, source: Path, output: Path) -> None:
    result = batch.score_table(project, "dev", source, output)
    predictions, arrivals = data.read_table(output), data.read_table(source)
    assert list(predictions.columns) == [
        "thing_id",
        "score",
        "prediction",
        "prediction_id",
        "model_name",
        "model_version",
        "model_digest",
        "scored_at",
    ]
    assert predictions["thing_id"].tolist() == arrivals["thing_id"].tolist()
    release = registry.load_model(project, 1)
    expected = release.model.predict_proba(arrivals[list(FEATURES)])[:, 1]
    np.testing.assert_array_equal(predictions["score"], expected)
    assert (predictions["prediction"] == (expected >= 0.5)).all()
    assert predictions["prediction_id"].is_unique
    assert predictions.loc[0, "prediction_id"] == "toy/1/1000"
    assert set(predictions["model_digest"]) == {release.digest}
    assert predictions["scored_at"].nunique() == 1
    assert (result.version, result.stage, result.n_scored, result.quarantine) == (1, "dev", 1000, None)
    assert files_of(output) == ["scored.manifest.json", "scored.parquet"]


def test_bad_rows_are_set_aside_with_their_reasons_and_none_is_lost(
    project: Project, source: Path, output: Path
) -> None:
    result = batch.score_table(project, 1, with_bad_rows(source, 20), output)
    assert (result.n_rows, result.n_scored, result.n_quarantined) == (1000, 980, 20)
    assert sum(result.bad_by_rule.values()) == 20
    bad, good = data.read_table(batch.quarantine_path(output)), data.read_table(output)
    assert set(bad["thing_id"]) | set(good["thing_id"]) == set(data.read_table(source)["thing_id"])
    assert not set(bad["thing_id"]) & set(good["thing_id"])
    assert bad["reason"].str.len().min() > 5
    assert set(bad["rule"]) == set(result.bad_by_rule)
    assert str(result).startswith("980 of 1,000 rows scored with version 1 of 'toy', 20 set aside (")


def test_the_account_beside_the_predictions_is_the_result(project: Project, source: Path, output: Path) -> None:
    result = batch.score_table(project, 1, with_bad_rows(source, 20), output)
    account = json.loads(batch.manifest_path(output).read_text())
    assert account == asdict(result)
    assert account["input_fingerprint"] == data.fingerprint_file(source.with_name("bad.parquet"))
    assert account["output_fingerprint"] == data.fingerprint_file(output)


def test_extra_columns_and_another_order_of_columns_change_nothing(
    project: Project, source: Path, output: Path
) -> None:
    frame = data.read_table(source)
    shuffled = data.write_table(frame[frame.columns[::-1]].assign(note="x"), source.with_name("shuffled.parquet"))
    batch.score_table(project, 1, source, output)
    other = output.with_name("other.parquet")
    batch.score_table(project, 1, shuffled, other)
    pd.testing.assert_series_equal(data.read_table(output)["score"], data.read_table(other)["score"])


def test_a_csv_is_scored_to_the_same_numbers(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    csv = source.with_suffix(".csv")
    frame.to_csv(csv, index=False)
    batch.score_table(project, 1, csv, output)
    other = output.with_name("other.parquet")
    batch.score_table(project, 1, source, other)
    columns = ["thing_id", "score", "prediction_id"]
    pd.testing.assert_frame_equal(data.read_table(output)[columns], data.read_table(other)[columns])


def test_whole_numbers_in_a_column_of_floats_are_good_rows(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    frame["size"] = frame["size"].round().astype("int64")
    result = batch.score_table(project, 1, data.write_table(frame, source.with_name("ints.parquet")), output)
    assert result.n_scored == 1000


@pytest.mark.parametrize("batch_rows", [1, 7, 400])
def test_the_size_of_batches_does_not_show(
    project: Project, source: Path, output: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = data.write_table(data.read_table(source).head(40), source.with_name("small.parquet"))
    batch.score_table(project, 1, small, output)
    monkeypatch.setattr(data, "BATCH_ROWS", batch_rows)
    other = output.with_name("other.parquet")
    batch.score_table(project, 1, small, other)
    columns = ["thing_id", "score", "prediction_id"]
    pd.testing.assert_frame_equal(data.read_table(output)[columns], data.read_table(other)[columns], rtol=1e-12)


def test_a_key_that_comes_again_in_another_batch_is_set_aside_both_times(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = data.read_table(source)
    frame.loc[900, "thing_id"] = frame.loc[5, "thing_id"]
    frame.loc[3, "thing_id"] = frame.loc[4, "thing_id"]
    twice = data.write_table(frame, source.with_name("twice.parquet"))
    monkeypatch.setattr(data, "BATCH_ROWS", 100)
    result = batch.score_table(project, 1, twice, output)
    assert (result.n_scored, result.n_quarantined) == (996, 4)
    assert result.bad_by_rule == {"thing_id.duplicated": 4}
    bad = data.read_table(batch.quarantine_path(output))
    assert sorted(bad["thing_id"]) == sorted([1004, 1004, 1005, 1005])


def test_only_the_first_rows_are_scored_in_a_smoke_test(project: Project, source: Path, output: Path) -> None:
    result = batch.score_table(project, 1, source, output, rows=10)
    assert (result.n_rows, result.n_scored) == (10, 10)
    assert data.read_table(output)["thing_id"].tolist() == list(range(1000, 1010))
    assert batch.score_table(project, 1, source, output, rows=10).already_done
    with pytest.raises(BatchError, match=r"holds predictions of version 1 for the first 10 rows of"):
        batch.score_table(project, 1, source, output)


def test_more_rows_than_there_are_is_all_rows(project: Project, source: Path, output: Path) -> None:
    assert batch.score_table(project, 1, source, output, rows=5000).n_rows == 1000
    assert batch.score_table(project, 1, source, output, rows=5000).already_done


def test_progress_ends_at_the_number_of_rows(project: Project, source: Path, output: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    batch.score_table(project, 1, source, output, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1000, 1000)


# --- again -------------------------------------------------------------------------------------------------------


def test_the_same_batch_again_does_nothing(project: Project, source: Path, output: Path) -> None:
    bad = with_bad_rows(source, 20)
    first = batch.score_table(project, 1, bad, output)
    before = {file: file.read_bytes() for file in output.parent.iterdir()}
    again = batch.score_table(project, 1, bad, output)
    assert again == replace(first, already_done=True)
    assert {file: file.read_bytes() for file in output.parent.iterdir()} == before
    assert "already scored" in str(again)


@pytest.mark.usefixtures("second")
def test_another_input_or_version_is_not_written_over_it(project: Project, source: Path, output: Path) -> None:
    batch.score_table(project, 1, source, output)
    before = output.read_bytes()
    with pytest.raises(BatchError, match=r"holds predictions of version 1 for '.*p2.parquet'"):
        batch.score_table(project, 1, project.path("arrivals", "p3"), output)
    with pytest.raises(BatchError, match=r"holds predictions of version 1"):
        batch.score_table(project, 2, source, output)
    assert output.read_bytes() == before


def test_an_output_that_somebody_changed_or_made_is_left_alone(project: Project, source: Path, output: Path) -> None:
    batch.score_table(project, 1, source, output)
    data.write_table(data.read_table(output).head(10), output)
    with pytest.raises(BatchError, match=r"has been changed since it was written"):
        batch.score_table(project, 1, source, output)
    batch.manifest_path(output).unlink()
    with pytest.raises(BatchError, match=r"not written by a finished batch"):
        batch.score_table(project, 1, source, output)
    with pytest.raises(BatchError, match=r"does not end in .parquet"):
        batch.score_table(project, 1, source, output.with_suffix(".csv"))


def test_an_input_is_never_its_own_output(project: Project, source: Path) -> None:
    before = source.read_bytes()
    with raises(BatchError, "output"):
        batch.score_table(project, 1, source, source)
    assert source.read_bytes() == before


def test_a_quarantine_of_an_earlier_batch_does_not_stay_beside_a_clean_one(
    project: Project, source: Path, output: Path
) -> None:
    batch.score_table(project, 1, with_bad_rows(source, 20), output)
    output.unlink()
    result = batch.score_table(project, 1, source, output)
    assert result.quarantine is None
    assert files_of(output) == ["scored.manifest.json", "scored.parquet"]


# --- where rows come from ------------------------------------------------------------------------------------------

COLUMNS = ["thing_id", "score", "prediction_id"]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, project: Project, source: Path) -> str:
    """Return the URL of a database whose table ``arrivals`` holds 1,000 good arrivals, in no order."""
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{project.root / 'rows.db'}" if is_sqlite else request.getfixturevalue("postgres_uri")
    with engine_of(url) as engine:
        data.read_table(source).sample(frac=1, random_state=0).to_sql("arrivals", engine, index=False)
    return str(url)


@contextlib.contextmanager
def engine_of(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def read_sql(url: str, query: str) -> pd.DataFrame:
    with engine_of(url) as engine, engine.connect() as connection:
        return pd.read_sql(sa.text(query), connection)


def test_a_folder_is_scored_file_after_file(project: Project, source: Path, output: Path) -> None:
    folder = source.parent
    data.write_table(data.read_table(source).head(3), folder / "_unfinished/part.parquet")
    data.write_table(data.read_table(source).head(3), folder / ".hidden.parquet")
    data.write_table(data.read_table(source).head(0), folder / "p0.parquet")
    result = batch.score_table(project, 1, folder, output)
    assert result.n_scored == 3000
    assert data.read_table(output)["thing_id"].tolist() == list(range(3000))
    assert batch.score_table(project, 1, folder, output).already_done
    data.write_table(data.read_table(folder / "p3.parquet").head(10), folder / "p3.parquet")
    with pytest.raises(BatchError, match="holds predictions of version 1"):
        batch.score_table(project, 1, folder, output)


def test_a_column_may_stand_in_the_folders_names(project: Project, source: Path, output: Path) -> None:
    frame, folder = data.read_table(source), project.root / "by-color"
    for color, part in frame.groupby("color"):
        data.write_table(part.drop(columns="color"), folder / f"color={color}" / "part-0.parquet")
    batch.score_table(project, 1, source, output)
    other = output.with_name("other.parquet")
    batch.score_table(project, 1, folder, other)
    pd.testing.assert_frame_equal(
        data.read_table(other)[COLUMNS].sort_values("thing_id", ignore_index=True), data.read_table(output)[COLUMNS]
    )


def test_a_folder_whose_files_do_not_fit_one_another_is_refused(project: Project, source: Path, output: Path) -> None:
    frame, folder = data.read_table(source), project.root / "mixed"
    folder.mkdir()
    with pytest.raises(NotFoundError, match=r"mixed/\*.parquet"):
        batch.score_table(project, 1, folder, output)
    data.write_table(frame, folder / "a.parquet")
    data.write_table(frame.assign(thing_id=frame["thing_id"] + 5000).drop(columns="size"), folder / "b.parquet")
    with pytest.raises(TableError, match=r"mixed/b.parquet' lacks size"):
        batch.score_table(project, 1, folder, output)
    data.write_table(frame.assign(size="big"), folder / "b.parquet")
    with pytest.raises(TableError, match=r"mixed/b.parquet.*do not fit those of 'a.parquet'.*size"):
        batch.score_table(project, 1, folder, output)
    assert files_of(output) == []


def test_a_table_of_a_database_is_scored_in_the_order_of_its_keys(
    project: Project, source: Path, output: Path, database: str
) -> None:
    batch.score_table(project, 1, source, output)
    other = output.with_name("other.parquet")
    result = batch.score_table(project, 1, f"{database}::arrivals", other)
    pd.testing.assert_frame_equal(data.read_table(output)[COLUMNS], data.read_table(other)[COLUMNS])
    assert batch.score_table(project, 1, f"{database}::arrivals", other).already_done
    assert result.input.endswith("::arrivals")


def test_a_database_is_read_in_batches_and_not_row_by_row(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BATCH_ROWS", 400)
    monkeypatch.setattr(sources, "_FETCH_ROWS", 200)
    with sources.open_source(f"{database}::arrivals", ("thing_id",)) as source:
        assert [batch.num_rows for batch in source.batches()] == [400, 400, 200]


def test_a_query_is_an_input_too(project: Project, output: Path, database: str) -> None:
    query = "select thing_id, color, size, cast(weight as numeric) as weight from arrivals where thing_id < 1100;"
    result = batch.score_table(project, 1, f"{database}::{query}", output)
    assert result.n_scored == 100


def test_a_changed_row_of_a_database_is_another_input(project: Project, output: Path, database: str) -> None:
    batch.score_table(project, 1, f"{database}::arrivals", output)
    with engine_of(database) as engine, engine.begin() as connection:
        connection.execute(sa.text("update arrivals set size = size + 0.001 where thing_id = 1500"))
    with pytest.raises(BatchError, match="holds predictions of version 1"):
        batch.score_table(project, 1, f"{database}::arrivals", output)


def test_bad_rows_of_a_database_are_set_aside(project: Project, output: Path, database: str) -> None:
    with engine_of(database) as engine, engine.begin() as connection:
        connection.execute(sa.text("update arrivals set size = null where thing_id < 1010"))
        connection.execute(sa.text("update arrivals set thing_id = null where thing_id = 1020"))
    result = batch.score_table(project, 1, f"{database}::arrivals", output)
    assert result.bad_by_rule == {"size.null": 10, "thing_id.null": 1}
    predictions = data.read_table(output)
    assert predictions.loc[0, "prediction_id"] == "toy/1/1010"


def test_a_database_that_cannot_be_read_is_told_without_its_password(
    project: Project, output: Path, database: str
) -> None:
    with pytest.raises(TableError, match=r"::nothing.*nothing"):
        batch.score_table(project, 1, f"{database}::nothing", output)
    with pytest.raises(TableError, match="::select 1 as one' lacks thing_id"):
        batch.score_table(project, 1, f"{database}::select 1 as one", output)
    with raises(TableError, "no_rows"):
        batch.score_table(project, 1, f"{database}::select * from arrivals where size < -1000", output)
    gone = project.root / "gone.db"
    with pytest.raises(TableError, match="there is no file"):
        batch.score_table(project, 1, f"sqlite:///{gone}::arrivals", output)
    assert not gone.exists()
    with raises(TableError, "database") as caught:
        batch.score_table(project, 1, "postgresql+psycopg://me:hush-hush@127.0.0.1:9/x::arrivals", output)
    assert "hush-hush" not in str(caught.value)
    with pytest.raises(TableError, match=r"load plugin"):
        batch.score_table(project, 1, "nosuch://me@there/x::arrivals", output)
    assert files_of(output) == []


def test_a_database_that_says_nothing_is_told_by_its_error() -> None:
    with pytest.raises(TableError, match="OperationalError"), sql.connected("sqlite://", "a table"):
        raise sa.exc.OperationalError("select 1", {}, sqlite3.OperationalError())


def test_a_temporary_file_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    refused = pytest.raises(WriteError, match=r"gone/temporary file': No such file")
    with refused, sources.open_source("sqlite:////tmp/a.db::t", []):
        pytest.fail("nothing can be read")


@pytest.mark.parametrize("address", ["sqlite:////tmp/a.db", "sqlite:////tmp/a.db::", "postgresql://host::t"])
def test_an_address_without_a_table_is_refused(project: Project, source: Path, output: Path, address: str) -> None:
    with pytest.raises(TableError, match="names no table"):
        batch.score_table(project, 1, address, output)
    with pytest.raises(TableError, match="names no table"):
        batch.score_table(project, 1, source, address)


def test_a_column_of_several_kinds_in_sqlite_is_read_as_text(project: Project, output: Path) -> None:
    url = f"sqlite:///{project.root / 'loose.db'}"
    frame, _ = make_rows(40, seed=1)
    with engine_of(url) as engine:
        frame.astype({"size": object}).to_sql("arrivals", engine, index=False)
        with engine.begin() as connection:
            connection.execute(sa.text("update arrivals set size = 'big' where thing_id = 3"))
    with pytest.raises(BatchError, match=r"40 of 40.*size.kind"):
        batch.score_table(project, 1, f"{url}::arrivals", output)


def test_whole_keys_stay_whole_beside_missing_ones(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source).astype({"thing_id": "Int64"})
    frame["thing_id"] += 2**53
    frame.loc[3, "thing_id"] = None
    result = batch.score_table(project, 1, data.write_table(frame, source.with_name("null.parquet")), output)
    assert result.bad_by_rule == {"thing_id.null": 1}
    assert data.read_table(output).loc[1, "prediction_id"] == f"toy/1/{2**53 + 1001}"


def test_two_keys_of_one_hash_are_still_two_keys(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = data.read_table(source).head(50)
    frame.loc[40, "thing_id"] = frame.loc[5, "thing_id"]
    few = data.write_table(frame, source.with_name("few.parquet"))
    monkeypatch.setattr(data, "BATCH_ROWS", 10)
    monkeypatch.setattr(keys, "_hash", lambda frame: np.full(len(frame), 7, dtype=np.uint64))
    result = batch.score_table(project, 1, few, output)
    assert result.bad_by_rule == {"thing_id.duplicated": 2}


@pytest.mark.parametrize("way", ["append", "touch", "map", "remove"])
def test_a_file_that_changes_while_it_is_scored_is_refused(
    project: Project, source: Path, output: Path, way: str
) -> None:
    def disturb(done: int, total: int | None) -> None:
        if way == "append":
            with source.open("ab") as file:
                file.write(b"x")
        elif way == "touch":
            os.utime(source)
        elif way == "remove":
            source.unlink()
        else:
            times = source.stat()
            with source.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
                view[100] ^= 1
            os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(BatchError, match=r"p2.parquet' changed while it was being scored"):
        batch.score_table(project, 1, source, output, progress=disturb)
    assert files_of(output) == []


@pytest.mark.parametrize("way", ["change", "add"])
def test_a_folder_that_changes_while_it_is_scored_is_refused(
    project: Project, source: Path, output: Path, way: str
) -> None:
    def disturb(done: int, total: int | None) -> None:
        name = source if way == "change" else source.with_name("p9.parquet")
        data.write_table(make_rows(5, seed=9, start=9000)[0], name)

    with raises(BatchError, "input_changed"):
        batch.score_table(project, 1, source.parent, output, progress=disturb)
    assert files_of(output) == []


# --- several versions ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("second")
def test_two_versions_share_one_pass_and_give_what_each_gives_alone(
    project: Project, source: Path, output: Path
) -> None:
    passes: list[int] = []
    both = output.with_name("both-{version}.parquet")
    bad = with_bad_rows(source, 20)
    results = batch.score_versions(project, [1, "dev"], bad, both, progress=lambda done, total: passes.append(done))
    assert passes == [1000]
    assert [(result.version, result.stage) for result in results] == [(1, None), (2, "dev")]
    for version in (1, 2):
        alone = output.with_name(f"alone-{version}.parquet")
        batch.score_table(project, version, bad, alone)
        for path in (lambda p: p, batch.quarantine_path):
            found, expected = (data.read_table(path(p)) for p in (output.with_name(f"both-{version}.parquet"), alone))
            columns = [name for name in expected.columns if name != "scored_at"]
            pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert results[0].digest != results[1].digest
    again = batch.score_versions(project, [1, 2], bad, both)
    assert [result.already_done for result in again] == [True, True]


@pytest.mark.usefixtures("second")
def test_what_is_done_already_is_not_done_again_beside_a_new_version(
    project: Project, source: Path, output: Path
) -> None:
    both = output.with_name("both-{version}.parquet")
    batch.score_versions(project, [1], source, both)
    results = batch.score_versions(project, [1, 2], source, both)
    assert [result.already_done for result in results] == [True, False]


def test_stages_of_one_version_are_one_result(project: Project, source: Path, output: Path) -> None:
    results = batch.score_versions(project, ["dev", 1, "1"], source, output)
    assert [(result.version, result.stage) for result in results] == [(1, "dev")]


@pytest.mark.usefixtures("second")
def test_one_file_for_two_versions_is_refused(project: Project, source: Path, output: Path) -> None:
    with pytest.raises(BatchError, match=r"Versions 1, 2 cannot all be scored to .*\{version\}"):
        batch.score_versions(project, [1, 2], source, output)
    assert files_of(output) == []


# --- what a prediction is ------------------------------------------------------------------------------------------


def test_features_are_kept_or_hashed_where_the_project_says_so(project: Project, source: Path, output: Path) -> None:
    batch.score_table(replace(project, keep_features="values"), 1, source, output)
    kept, arrivals = data.read_table(output), data.read_table(source)
    pd.testing.assert_frame_equal(kept[list(FEATURES)], arrivals[list(FEATURES)])
    other = output.with_name("hashed.parquet")
    batch.score_table(replace(project, keep_features="hash"), 1, source, other)
    hashed = data.read_table(other)
    assert hashed["features_hash"].nunique() == 1000
    assert not set(FEATURES) & set(hashed.columns)


def make_scorer(model: object) -> rows.BatchScorer:
    frame, _ = make_rows(50, seed=3)
    contract = contracts.infer_contract(frame, features=["size", "weight"], keys=["thing_id"])
    at = datetime(2020, 1, 1, tzinfo=UTC)
    return rows.BatchScorer("toy", 3, "d" * 64, regression(), ["size", "weight"], model, contract, at)


def score_frame(scorer: rows.BatchScorer, frame: pd.DataFrame) -> rows.Scored:
    batch = pa.RecordBatch.from_pandas(frame, preserve_index=False)
    return scorer.score(batch, contracts.split_batch(scorer.contract, batch), pd.DataFrame())


def test_a_regression_predicts_its_value() -> None:
    frame, _ = make_rows(50, seed=3)
    model = LinearRegression().fit(frame[["size", "weight"]], 3 * frame["size"])
    found = score_frame(make_scorer(model), frame).good.to_pandas()
    np.testing.assert_allclose(found["prediction"], 3 * frame["size"])
    assert "score" not in found, "a number is its own prediction"


def test_a_row_without_a_finite_score_is_set_aside(record: Callable[..., None]) -> None:
    class Odd(LinearRegression):
        def predict(self, X: pd.DataFrame) -> np.ndarray:
            return np.where(X["size"] > X["size"].median(), np.nan, 1.0)

    frame, _ = make_rows(50, seed=3)
    found = score_frame(make_scorer(Odd()), frame)
    assert (found.good.num_rows, found.bad.num_rows) == (25, 25)
    assert found.bad_by_rule == {"score.finite": 25}
    assert set(found.bad.to_pandas()["reason"]) == {"version 3 gives no finite score"}
    record(26, ours="in a batch the row is set aside")


# --- databases as outputs ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("second")
def test_predictions_are_appended_to_a_table_with_an_account_of_each_batch(
    project: Project, source: Path, database: str
) -> None:
    table = f"{database}::scores"
    first = batch.score_table(project, 1, with_bad_rows(source, 20), table)
    batch.score_table(project, 2, source, table)
    found = read_sql(database, "select * from scores order by model_version, thing_id")
    assert found.groupby("model_version").size().to_dict() == {1: 980, 2: 1000}
    batches = read_sql(database, "select * from scores_batches order by version")
    assert batches["n_quarantined"].tolist() == [20, 0]
    assert set(found["batch"]) == set(batches["batch"])
    quarantine = read_sql(database, "select * from scores_quarantine")
    assert len(quarantine) == 20
    assert json.loads(quarantine.loc[0, "row"])["thing_id"] == 1000
    assert first.quarantine == f"{first.output}_quarantine"
    again = batch.score_table(project, 1, source.with_name("bad.parquet"), table)
    assert again == replace(first, already_done=True)
    assert len(read_sql(database, "select * from scores")) == 1980


def test_a_table_is_scored_into_its_own_database(project: Project, source: Path, output: Path, database: str) -> None:
    batch.score_table(project, 1, f"{database}::arrivals", f"{database}::scores")
    batch.score_table(project, 1, source, output)
    found = read_sql(database, "select * from scores order by thing_id")[COLUMNS]
    pd.testing.assert_frame_equal(found, data.read_table(output)[COLUMNS])


@pytest.mark.usefixtures("second")
def test_versions_side_by_side_go_into_one_table(project: Project, source: Path, database: str) -> None:
    batch.score_versions(project, [1, 2], source, f"{database}::scores")
    found = read_sql(database, "select thing_id, model_version, score from scores")
    assert found.pivot(index="thing_id", columns="model_version", values="score").notna().all().all()


def test_a_failed_insert_leaves_no_row_and_no_account(
    project: Project, source: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(row: object) -> None:
        raise sa.exc.OperationalError("insert", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(sinks, "_bad_row", fail)
        with pytest.raises(TableError, match="server closed the connection"):
            batch.score_table(project, 1, with_bad_rows(source, 20), f"{database}::scores")
    with engine_of(database) as engine:
        left = [name for name in sa.inspect(engine).get_table_names() if name.startswith("scores")]
        counts = [len(read_sql(database, f"select * from {name}")) for name in left]
    assert not any(counts)
    assert batch.score_table(project, 1, source, f"{database}::scores").n_scored == 1000


def test_a_table_that_is_something_else_is_left_alone(project: Project, source: Path, database: str) -> None:
    with pytest.raises(BatchError, match="no 'arrivals_batches' that accounts for it"):
        batch.score_table(project, 1, source, f"{database}::arrivals")
    batch.score_table(project, 1, source, f"{database}::scores")
    other = project.path("arrivals", "p3")
    with pytest.raises(BatchError, match=r"the table has columns .* these rows .*features_hash"):
        batch.score_table(replace(project, keep_features="hash"), 1, other, f"{database}::scores")
    with pytest.raises(BatchError, match="that is no name of one"):
        batch.score_table(project, 1, source, f"{database}::select 1")


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bad", [60, 1000])
def test_too_many_bad_rows_are_refused_and_nothing_is_written(
    project: Project, source: Path, output: Path, n_bad: int
) -> None:
    with raises(BatchError, "bad_rows") as caught:
        batch.score_table(project, 1, with_bad_rows(source, n_bad), output)
    assert (caught.value.n_bad, caught.value.n_rows) == (n_bad, 1000)
    assert files_of(output) == []


def test_a_table_that_is_wrong_only_as_a_whole_is_refused(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "BATCH_ROWS", 100)
    frame = data.read_table(source)
    other = data.write_table(frame.assign(weight=frame["weight"] / 20 + 2.3), source.with_name("other.parquet"))
    contract = contracts.Contract.from_dict(registry.load_model(project, 1).files.contract)
    contract = contract.replace_column("weight", low=None, scale_factor=1.5)
    monkeypatch.setattr(contracts.Contract, "from_dict", lambda values: contract)
    with pytest.raises(BatchError, match=r"other.parquet' was not scored.*weight.scale: large values are about"):
        batch.score_table(project, 1, other, output)
    assert files_of(output) == []
    assert batch.score_table(project, 1, other, output, rows=50).n_scored == 50


def test_bad_tables_are_refused_and_nothing_is_written(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    cut = source.with_name("cut.parquet")
    cut.write_bytes(source.read_bytes()[:5000])
    cases = [
        (source.with_name("gone.parquet"), NotFoundError, "table"),
        (cut, TableError, "file"),
        (data.write_table(frame.head(0), source.with_name("empty.parquet")), TableError, "no_rows"),
        (data.write_table(frame.drop(columns="size"), source.with_name("narrow.parquet")), TableError, "columns"),
        (data.write_table(frame.drop(columns="thing_id"), source.with_name("nokey.parquet")), TableError, "columns"),
    ]
    for path, error, case in cases:
        with raises(error, case):
            batch.score_table(project, 1, path, output)
    with raises(NotFoundError, "version"):
        batch.score_table(project, 9, source, output)
    assert files_of(output) == []


def test_a_damaged_row_group_is_refused(project: Project, source: Path, output: Path) -> None:
    path = source.with_name("damaged.parquet")
    pq.write_table(pq.read_table(source), path, row_group_size=250, **data.PARQUET)
    group = pq.read_metadata(path).row_group(2)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "size")
    at = column.data_page_offset + 100
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"damaged.parquet' cannot be read: "):
        batch.score_table(project, 1, path, output)
    assert files_of(output) == []


def test_columns_of_one_name_are_refused(project: Project, source: Path, output: Path) -> None:
    table = pq.read_table(source)
    path = source.with_name("repeated.parquet")
    pq.write_table(table.append_column("size", table["weight"]), path)
    with pytest.raises(TableError, match=r"repeated.parquet' has more than one column 'size'"):
        batch.score_table(project, 1, path, output)
    csv = source.with_name("repeated.csv")
    csv.write_text("thing_id,color,size,size,weight\n1,red,1.0,2.0,3.0\n")
    with pytest.raises(TableError, match=r"repeated.csv' has more than one column 'size'"):
        batch.score_table(project, 1, csv, output)
    assert files_of(output) == []


def test_an_output_that_is_a_folder_or_below_a_file_is_refused(project: Project, source: Path, output: Path) -> None:
    output.mkdir(parents=True)
    with pytest.raises(BatchError, match="not written by a finished batch"):
        batch.score_table(project, 1, source, output)
    with pytest.raises(WriteError, match=r"p2.parquet/x.parquet"):
        batch.score_table(project, 1, source, source / "x.parquet")


# --- interrupted -------------------------------------------------------------------------------------------------


def test_a_batch_stopped_in_the_middle_leaves_nothing_and_runs_again(
    project: Project, source: Path, output: Path
) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.score_table(project, 1, with_bad_rows(source, 20), output, progress=stop)
    assert files_of(output) == []
    assert not batch.score_table(project, 1, source, output).already_done


def test_a_batch_killed_in_the_middle_leaves_nothing_visible_and_runs_again(
    project: Project, source: Path, output: Path
) -> None:
    """SIGKILL gives nobody the time to clean up."""
    victim = workers.start(score_half, replace(project, gates=()), with_bad_rows(source, 20), output)
    deadline = time.monotonic() + 60
    while not output.with_name("half").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    output.with_name("half").unlink()
    victim.kill()
    victim.join()
    assert all(name.startswith(".") and name.endswith((".tmp", ".lock")) for name in files_of(output))
    result = batch.score_table(project, 1, source.with_name("bad.parquet"), output)
    assert (result.n_rows, result.already_done) == (1000, False)


def score_half(project: Project, source: Path, output: Path) -> None:
    """Run in another process: stop in the middle, and say so."""

    def wait(done: int, total: int | None) -> None:
        output.with_name("half").touch()
        time.sleep(60)

    batch.score_table(project, 1, source, output, progress=wait)


def test_a_disk_that_fills_up_leaves_no_account_of_what_is_not_there(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(WriteError, match=r"No space left"):
            batch.score_table(project, 1, source, output)
    assert files_of(output) == []


def test_many_rows_of_several_row_groups_are_all_there(project: Project, output: Path) -> None:
    arrivals, _ = make_rows(150_000, seed=5)
    path = project.root / "big.parquet"
    data.write_table(arrivals, path)
    result = batch.score_table(project, 1, path, output)
    assert result.n_rows == result.n_scored + result.n_quarantined == 150_000
    assert pq.read_metadata(output).num_rows == result.n_scored


def test_two_jobs_do_not_write_one_output_at_a_time(project: Project, source: Path, output: Path) -> None:
    first = sinks.FileSink(output)
    first.open()
    with pytest.raises(BatchError, match="another process is scoring to it"):
        batch.score_table(project, 1, source, output)
    first.close()
    assert files_of(output) == []
    assert batch.score_table(project, 1, source, output).n_scored == 1000


def test_a_batch_needs_nothing_that_only_linux_has(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> None:
        raise TypeError("no library without a name")  # as Windows says

    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert batch.score_table(project, 1, source, output).n_scored == 1000
    assert files_of(output) == ["scored.manifest.json", "scored.parquet"]


def test_what_a_killed_job_left_is_gone_after_the_next(project: Project, source: Path, output: Path) -> None:
    output.parent.mkdir()
    for name in ("scored.parquet", "scored.quarantine.parquet", "scored.manifest.json"):
        output.with_name(f".{name}.tmp").write_bytes(b"half of something" * 10_000)
    output.with_name(".scored.parquet.lock").touch()
    batch.score_table(project, 1, source, output)
    assert files_of(output) == ["scored.manifest.json", "scored.parquet"]
    assert data.read_table(output)["thing_id"].nunique() == 1000


def test_the_account_says_how_long_each_phase_took_and_with_what(project: Project, source: Path, output: Path) -> None:
    result = batch.score_table(project, 1, source, output)
    assert list(result.durations) == ["prepare", "keys", "score", "total"]
    assert {"python", "scikit-learn", "pyarrow"} <= set(result.libraries)


def test_a_quarantine_is_scored_again_and_repeats_no_column(project: Project, source: Path, output: Path) -> None:
    arrivals = data.read_table(source)
    arrivals.loc[0, "size"] = 1e9
    data.write_table(arrivals, source)
    first = batch.score_table(project, 1, source, output)
    assert first.quarantine is not None
    aside = pd.read_parquet(first.quarantine)
    data.write_table(pd.concat([aside, arrivals.iloc[1:]]), source)
    second = batch.score_table(project, 1, source, output.with_name("again.parquet"))
    assert second.quarantine is not None
    names = pq.read_schema(second.quarantine).names
    assert names[-4:] == ["input_rule", "input_reason", "rule", "reason"]


def test_rows_for_a_column_that_is_taken_twice_get_a_free_name() -> None:
    assert rows.make_room(["rule", "input_rule", "reason"]) == ["input_input_rule", "input_rule", "input_reason"]


@pytest.mark.parametrize("name", ["scored.quarantine.parquet", "scored.manifest.json"])
def test_what_another_output_wrote_is_never_replaced(project: Project, source: Path, output: Path, name: str) -> None:
    """Also where it stands at the place of this output's quarantine or manifest, with bad rows and without."""
    other = output.with_name(name)
    if name.endswith(".parquet"):
        batch.score_table(project, 1, source, other)
    else:
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
    before = other.read_bytes()
    with pytest.raises(BatchError, match=rf"'{name}' is there, and is not of an earlier batch of this output"):
        batch.score_table(project, 1, source, output)
    assert other.read_bytes() == before
    assert not output.exists()


def test_an_earlier_batch_of_the_same_output_makes_way(project: Project, source: Path, output: Path) -> None:
    arrivals = data.read_table(source)
    arrivals.loc[0, "size"] = 1e9
    data.write_table(arrivals, source)
    assert batch.score_table(project, 1, source, output).quarantine
    output.unlink()
    data.write_table(arrivals.iloc[1:], source)
    assert batch.score_table(project, 1, source, output).quarantine is None
    assert not batch.quarantine_path(output).exists()


@pytest.mark.parametrize(
    "draft", [".scored.parquet.tmp", ".scored.quarantine.parquet.tmp", ".scored.manifest.json.tmp"]
)
def test_a_planted_link_at_a_drafts_name_is_not_followed(
    project: Project, source: Path, output: Path, tmp_path: Path, draft: str
) -> None:
    arrivals = data.read_table(source)
    arrivals.loc[0, "size"] = 1e9
    data.write_table(arrivals, source)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    output.parent.mkdir(exist_ok=True)
    output.with_name(draft).symlink_to(victim)
    assert batch.score_table(project, 1, source, output).n_quarantined == 1
    assert victim.read_text() == "kept"
