"""Batch scoring: every row accounted for, all or nothing, traceable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import FEATURES, make_rows, register_model

from mlops_lib import data, registry, scoring
from mlops_lib.errors import (
    BatchRefusedError,
    EmptyTableError,
    MissingColumnsError,
    OutputTakenError,
    TableFileError,
    TableNotFoundError,
    UnknownVersionError,
    WriteRefusedError,
)
from mlops_lib.project import Project

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
    result = scoring.score_table(project, "dev", source, output)
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
    result = scoring.score_table(project, 1, with_bad_rows(source, 20), output)
    assert (result.n_rows, result.n_scored, result.n_quarantined) == (1000, 980, 20)
    assert sum(result.bad_by_rule.values()) == 20
    bad, good = data.read_table(scoring.quarantine_path(output)), data.read_table(output)
    assert set(bad["thing_id"]) | set(good["thing_id"]) == set(data.read_table(source)["thing_id"])
    assert not set(bad["thing_id"]) & set(good["thing_id"])
    assert bad["reason"].str.len().min() > 5
    assert set(bad["rule"]) == set(result.bad_by_rule)
    assert str(result).startswith("980 of 1,000 rows scored with version 1 of 'toy', 20 set aside (")


def test_the_account_beside_the_predictions_is_the_result(project: Project, source: Path, output: Path) -> None:
    result = scoring.score_table(project, 1, with_bad_rows(source, 20), output)
    account = json.loads(scoring.manifest_path(output).read_text())
    assert account == asdict(result)
    assert account["input_fingerprint"] == data.fingerprint_file(source.with_name("bad.parquet"))
    assert account["output_fingerprint"] == data.fingerprint_file(output)


def test_extra_columns_and_another_order_of_columns_change_nothing(
    project: Project, source: Path, output: Path
) -> None:
    frame = data.read_table(source)
    shuffled = data.write_table(frame[frame.columns[::-1]].assign(note="x"), source.with_name("shuffled.parquet"))
    scoring.score_table(project, 1, source, output)
    other = output.with_name("other.parquet")
    scoring.score_table(project, 1, shuffled, other)
    pd.testing.assert_series_equal(data.read_table(output)["score"], data.read_table(other)["score"])


def test_a_csv_is_scored_to_the_same_numbers(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    csv = source.with_suffix(".csv")
    frame.to_csv(csv, index=False)
    scoring.score_table(project, 1, csv, output)
    other = output.with_name("other.parquet")
    scoring.score_table(project, 1, source, other)
    columns = ["thing_id", "score", "prediction_id"]
    pd.testing.assert_frame_equal(data.read_table(output)[columns], data.read_table(other)[columns])


def test_whole_numbers_in_a_column_of_floats_are_good_rows(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    frame["size"] = frame["size"].round().astype("int64")
    result = scoring.score_table(project, 1, data.write_table(frame, source.with_name("ints.parquet")), output)
    assert result.n_scored == 1000


@pytest.mark.parametrize("batch_rows", [1, 7, 400])
def test_the_size_of_batches_does_not_show(
    project: Project, source: Path, output: Path, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = data.write_table(data.read_table(source).head(40), source.with_name("small.parquet"))
    scoring.score_table(project, 1, small, output)
    monkeypatch.setattr(data, "BATCH_ROWS", batch_rows)
    other = output.with_name("other.parquet")
    scoring.score_table(project, 1, small, other)
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
    result = scoring.score_table(project, 1, twice, output)
    assert (result.n_scored, result.n_quarantined) == (996, 4)
    assert result.bad_by_rule == {"thing_id.duplicated": 4}
    bad = data.read_table(scoring.quarantine_path(output))
    assert sorted(bad["thing_id"]) == sorted([1004, 1004, 1005, 1005])


def test_only_the_first_rows_are_scored_in_a_smoke_test(project: Project, source: Path, output: Path) -> None:
    result = scoring.score_table(project, 1, source, output, rows=10)
    assert (result.n_rows, result.n_scored) == (10, 10)
    assert data.read_table(output)["thing_id"].tolist() == list(range(1000, 1010))
    assert scoring.score_table(project, 1, source, output, rows=10).already_done
    with pytest.raises(OutputTakenError, match=r"holds predictions of version 1 for the first 10 rows of"):
        scoring.score_table(project, 1, source, output)


def test_more_rows_than_there_are_is_all_rows(project: Project, source: Path, output: Path) -> None:
    assert scoring.score_table(project, 1, source, output, rows=5000).n_rows == 1000
    assert scoring.score_table(project, 1, source, output, rows=5000).already_done


def test_progress_ends_at_the_number_of_rows(project: Project, source: Path, output: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    scoring.score_table(project, 1, source, output, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1000, 1000)


# --- again -------------------------------------------------------------------------------------------------------


def test_the_same_batch_again_does_nothing(project: Project, source: Path, output: Path) -> None:
    bad = with_bad_rows(source, 20)
    first = scoring.score_table(project, 1, bad, output)
    before = {file: file.read_bytes() for file in output.parent.iterdir()}
    again = scoring.score_table(project, 1, bad, output)
    assert again == replace(first, already_done=True)
    assert {file: file.read_bytes() for file in output.parent.iterdir()} == before
    assert "already scored" in str(again)


def test_another_input_or_version_is_not_written_over_it(project: Project, source: Path, output: Path) -> None:
    scoring.score_table(project, 1, source, output)
    before = output.read_bytes()
    with pytest.raises(OutputTakenError, match=r"holds predictions of version 1 for '.*p2.parquet'"):
        scoring.score_table(project, 1, project.path("arrivals", "p3"), output)
    register_model(project, C=0.1)
    with pytest.raises(OutputTakenError, match=r"holds predictions of version 1"):
        scoring.score_table(project, 2, source, output)
    assert output.read_bytes() == before


def test_an_output_that_somebody_changed_or_made_is_left_alone(project: Project, source: Path, output: Path) -> None:
    scoring.score_table(project, 1, source, output)
    data.write_table(data.read_table(output).head(10), output)
    with pytest.raises(OutputTakenError, match=r"has been changed since it was written"):
        scoring.score_table(project, 1, source, output)
    scoring.manifest_path(output).unlink()
    with pytest.raises(OutputTakenError, match=r"not written by a finished batch"):
        scoring.score_table(project, 1, source, output)
    with pytest.raises(OutputTakenError, match=r"does not end in .parquet"):
        scoring.score_table(project, 1, source, output.with_suffix(".csv"))


def test_an_input_is_never_its_own_output(project: Project, source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(OutputTakenError):
        scoring.score_table(project, 1, source, source)
    assert source.read_bytes() == before


def test_a_quarantine_of_an_earlier_batch_does_not_stay_beside_a_clean_one(
    project: Project, source: Path, output: Path
) -> None:
    scoring.score_table(project, 1, with_bad_rows(source, 20), output)
    output.unlink()
    result = scoring.score_table(project, 1, source, output)
    assert result.quarantine is None
    assert files_of(output) == ["scored.manifest.json", "scored.parquet"]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bad", [60, 1000])
def test_too_many_bad_rows_are_refused_and_nothing_is_written(
    project: Project, source: Path, output: Path, n_bad: int
) -> None:
    with pytest.raises(BatchRefusedError) as caught:
        scoring.score_table(project, 1, with_bad_rows(source, n_bad), output)
    assert (caught.value.n_bad, caught.value.n_rows) == (n_bad, 1000)
    assert files_of(output) == []


def test_bad_tables_are_refused_and_nothing_is_written(project: Project, source: Path, output: Path) -> None:
    frame = data.read_table(source)
    cut = source.with_name("cut.parquet")
    cut.write_bytes(source.read_bytes()[:5000])
    cases = [
        (source.with_name("gone.parquet"), TableNotFoundError),
        (cut, TableFileError),
        (data.write_table(frame.head(0), source.with_name("empty.parquet")), EmptyTableError),
        (data.write_table(frame.drop(columns="size"), source.with_name("narrow.parquet")), MissingColumnsError),
        (data.write_table(frame.drop(columns="thing_id"), source.with_name("nokey.parquet")), MissingColumnsError),
    ]
    for path, error in cases:
        with pytest.raises(error):
            scoring.score_table(project, 1, path, output)
    with pytest.raises(UnknownVersionError):
        scoring.score_table(project, 9, source, output)
    assert files_of(output) == []


# --- interrupted -------------------------------------------------------------------------------------------------


def test_a_batch_stopped_in_the_middle_leaves_nothing_and_runs_again(
    project: Project, source: Path, output: Path
) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoring.score_table(project, 1, with_bad_rows(source, 20), output, progress=stop)
    assert files_of(output) == []
    assert not scoring.score_table(project, 1, source, output).already_done


def test_a_batch_killed_in_the_middle_leaves_nothing_visible_and_runs_again(
    project: Project, source: Path, output: Path
) -> None:
    """SIGKILL gives nobody the time to clean up."""
    code = (
        "import pickle, sys, time\n"
        "from mlops_lib import scoring\n"
        "project, source, output = pickle.loads(sys.stdin.buffer.read())\n"
        "def wait(done, total):\n    print('half', flush=True)\n    time.sleep(60)\n"
        "scoring.score_table(project, 1, source, output, progress=wait)\n"
    )
    import pickle

    victim = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write(pickle.dumps((replace(project, gates=()), with_bad_rows(source, 20), output)))
    victim.stdin.close()
    assert victim.stdout.readline() == b"half\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    assert all(name.startswith(".") and name.endswith(".tmp") for name in files_of(output))
    result = scoring.score_table(project, 1, source.with_name("bad.parquet"), output)
    assert (result.n_rows, result.already_done) == (1000, False)


def test_a_disk_that_fills_up_leaves_no_account_of_what_is_not_there(
    project: Project, source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(WriteRefusedError, match=r"No space left"):
            scoring.score_table(project, 1, source, output)
    assert files_of(output) == []


def test_many_rows_of_several_row_groups_are_all_there(project: Project, output: Path) -> None:
    arrivals, _ = make_rows(150_000, seed=5)
    path = project.root / "big.parquet"
    data.write_table(arrivals, path)
    result = scoring.score_table(project, 1, path, output)
    assert result.n_rows == result.n_scored + result.n_quarantined == 150_000
    assert pq.read_metadata(output).num_rows == result.n_scored
