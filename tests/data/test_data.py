"""Tables in and out: whole or not at all, and fingerprints that see everything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import raises

from mlops_lib import data
from mlops_lib.errors import (
    NotFoundError,
    QualityError,
    TableError,
    WriteError,
)


def make_frame(n_rows: int = 100) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": np.arange(n_rows),
            "size": np.linspace(0, 1, n_rows),
            "is_late": np.arange(n_rows) % 2 == 0,
            "carrier": pd.array(["AA", "DL"] * (n_rows // 2), dtype="str"),
            "departs": pd.Timestamp("2013-01-01", tz="UTC") + pd.to_timedelta(np.arange(n_rows), unit="h"),
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a table of 100 rows."""
    return data.write_table(make_frame(), tmp_path / "may.parquet")


# --- writing -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(path: Path) -> None:
    pd.testing.assert_frame_equal(data.read_table(path), make_frame())


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    data.write_table(make_frame(), tmp_path / "a/b/may.parquet")
    assert [file.name for file in (tmp_path / "a/b").iterdir()] == ["may.parquet"]


def test_a_table_is_readable_for_the_team(path: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failure_in_the_middle_of_writing_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), data.atomic_write(path) as file:  # noqa: PT012 - the body is what fails
        file.write(b"half")
        _ = 1 / 0
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["may.parquet"]


def test_a_file_that_is_being_written_is_not_visible_yet(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with data.atomic_write(target, "w") as file:
        file.write("all")
        assert not target.exists()
    assert target.read_text() == "all"


def test_text_is_written_as_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    code = (
        "import sys; from mlops_lib import data\n"
        "with data.atomic_write(sys.argv[1], 'w') as file: file.write('Z\\xfcrich \\u6f22')"
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.txt"], check=True, env=environment)
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "Zürich 漢"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_old_file_stays(small_disk: Path) -> None:
    path = data.write_table(make_frame(), small_disk / "may.parquet")
    before = path.read_bytes()
    big = pd.DataFrame({"x": np.random.default_rng(0).normal(size=200_000)})
    with pytest.raises(WriteError, match=r"No space left on device"):
        data.write_table(big, path)
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["may.parquet"]


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that even root cannot write to, with a table in it."""
    source, folder = tmp_path / "source", tmp_path / "read-only"
    folder.mkdir()
    data.write_table(make_frame(), source / "may.parquet")
    commands = (["mount", "--bind", source, folder], ["mount", "-o", "remount,ro,bind", folder])
    for command in commands:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user cannot mount a folder read-only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_told_and_can_still_be_read(read_only_disk: Path) -> None:
    with pytest.raises(WriteError, match=r"Read-only file system"):
        data.write_table(make_frame(), read_only_disk / "may.parquet")
    assert len(data.read_table(read_only_disk / "may.parquet")) == 100


def test_a_folder_that_is_a_file_is_told(path: Path) -> None:
    with pytest.raises(WriteError, match=r"may.parquet/x.parquet"):
        data.write_table(make_frame(), path / "x.parquet")


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_missing_table_is_told_with_its_neighbours(path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"The folder holds: may.parquet. Did you mean 'may.parquet'?"):
        data.read_table(path.with_name("mai.parquet"))


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"The folder holds: none"):
        data.read_table(tmp_path / "no/folder/may.parquet")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_table_cut_short_is_refused_whole(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TableError, match=r"cannot be read") as caught:
        data.read_table(path)
    assert caught.value.path == path


def test_a_damaged_page_is_not_read_as_other_numbers(tmp_path: Path) -> None:
    path = data.write_table(pd.DataFrame({"x": np.random.default_rng(0).normal(size=10_000)}), tmp_path / "x.parquet")
    content = bytearray(path.read_bytes())
    content[100:400] = b"\0" * 300
    path.write_bytes(content)
    with raises(TableError, "file"):
        data.read_table(path)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = data.write_table(make_frame().head(0), tmp_path / "empty.parquet")
    with pytest.raises(TableError, match=r"empty.parquet"):
        data.read_table(path)
    csv = tmp_path / "empty.csv"
    csv.write_text("id,size\n")
    with raises(TableError, "no_rows"):
        data.read_table(csv)


@pytest.mark.parametrize("name", ["may.xlsx", "may", "may.parquet.gz"])
def test_another_kind_of_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(TableError, match=r"not .parquet or .csv"):
        data.read_table(tmp_path / name)


def test_a_missing_column_is_told_with_the_nearest(path: Path) -> None:
    with pytest.raises(TableError, match=r"lacks late. It has id, .* Did you mean 'is_late'?"):
        data.read_table(path, required=["id", "late"])
    with pytest.raises(TableError, match=r"lacks carier"):
        data.read_table(path, columns=["carier"])


def test_only_the_columns_asked_for_are_read(path: Path) -> None:
    assert list(data.read_table(path, columns=["size", "id"]).columns) == ["size", "id"]


def test_several_tables_are_read_one_below_the_other(path: Path, tmp_path: Path) -> None:
    other = data.write_table(make_frame(10), tmp_path / "june.parquet")
    both = data.read_table([path, other])
    assert len(both) == 110
    assert both.index.tolist() == list(range(110))


def test_no_table_at_all_is_refused() -> None:
    with pytest.raises(QualityError, match=r"no rows in an empty list of tables"):
        data.read_table([])


def test_csv_is_read_with_its_types_and_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "may.csv"
    path.write_text("id,size,carrier,departs\n1,0.5,AA,2013-01-01 00:00:00\n2,,,\n")
    frame = data.read_table(path, required=["size"])
    assert frame["size"].isna().tolist() == [False, True]
    assert frame["carrier"].isna().tolist() == [False, True]
    assert str(frame["departs"].dtype).startswith("datetime64")
    assert data.read_table(path, columns=["carrier"]).columns.tolist() == ["carrier"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Empty CSV file"),
        ("id,size\n1,2\n3\n", "row 3 has 1 fields, the header 2"),
        ("id,size\n1,2\n3,4,5\n", "row 3 has 3 fields, the header 2"),
        ("id,size\n1,2\n3,1,5\n", "a text that holds commas is written in quotes"),
        ("id;size\n1;2,5\n", r"separated by ';' \(header 'id;size'\), not by commas"),
        ("id\tsize\n1\t2\n", r"separated by '\\t' "),
        ("id,\xff\n1,2\n", r"byte 0xff at position 3 \(line 1\) is not UTF-8"),
        ("id,name\n1,a\n2,caf\xe9\n", r"byte 0xe9 at position 17 \(line 3\) is not UTF-8"),
        ("id,name\n1,caf\xc3", r"byte 0xc3 at position 13 \(line 2\) is not UTF-8"),
        ("i\0d\0,\0x\0\n\0", r"byte 0x00 at position 1 \(line 1\) is not UTF-8 text"),
        ('id,name\n1,"a\n2,b\n3,c\n', "a quote is opened and never closed"),
        ('id,name\n1,a\n2,"', "a quote is opened and never closed"),
        ('id,name\n1,5" disk\n2,"b', "a quote is opened and never closed"),
        ('id,name\n1,a\n"2,b\n3,c\n', "a quote is opened and never closed"),
        ('id,name\n1,"' + "a,b\n" * 5_000_000, "a row is longer than 16 MB, or a quote is opened and never closed"),
        ("PAR1\n", "it holds Parquet, though its name ends in .csv"),
        ("id\n\xff\n", r"byte 0xff at position 3 \(line 2\) is not UTF-8"),
    ],
)
def test_a_csv_that_is_none_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "may.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TableError, match=reason):
        data.read_table(path)


def test_bytes_that_are_not_utf_8_are_placed_beyond_the_first_block_too(tmp_path: Path) -> None:
    path = tmp_path / "may.csv"
    head = b"id,name\n" + b"1,\xc3\xa9\n" * 400_000  # blocks of 1 MiB end within a letter
    path.write_bytes(head + b"2,\xe9\n")
    with pytest.raises(TableError, match=rf"byte 0xe9 at position {len(head) + 2} \(line 400002\)"):
        list(data.read_batches(path))


def test_batches_of_a_csv_are_text_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "may.csv"
    path.write_text('\ufeffid,name\n007,NA\n8,""\n,\nabc,"a, ""b""\nc"\n', encoding="utf-8")
    (batch,) = data.read_batches(path)
    assert all(map(data.is_text, batch.schema))
    assert batch.to_pylist() == [
        {"id": "007", "name": "NA"},
        {"id": "8", "name": ""},
        {"id": None, "name": None},
        {"id": "abc", "name": 'a, "b"\nc'},
    ]
    assert next(data.read_batches(path, columns=["name"])).schema.names == ["name"]


def test_a_quote_within_a_cell_is_a_letter_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "may.csv"
    for text, cell in (('1,5" disk', '5" disk'), ('1,"5"" disk"', '5" disk'), ('1,""', "")):
        path.write_text(f"id,name\n0,a\n{text}", encoding="utf-8")
        rows = [row for batch in data.read_batches(path) for row in batch.to_pylist()]
        assert rows == [{"id": "0", "name": "a"}, {"id": "1", "name": cell}]


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "may.csv").write_text("id,size,size\n1,2,3\n")
    with pytest.raises(TableError, match=r"may.csv' has more than one column 'size'"):
        data.read_table(tmp_path / "may.csv")


def test_the_types_of_a_csv_that_is_read_whole_come_from_all_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "may.csv"
    rows = "".join(f"{i},{i},{i}\n" for i in range(200_000))  # more than one block
    path.write_text(f"id,size,name\n{rows}5,1.5,abc\n")
    assert data.read_table(path).dtypes.astype(str).tolist() == ["int64", "float64", "str"]
    path.write_text("a,b,c,d\n007,NA,true,NA\n8,1.5,false,x\n")
    frame = data.read_table(path)
    assert frame["a"].tolist() == ["007", "8"]
    assert frame["b"].isna().tolist() == [True, False]
    assert frame["c"].tolist() == [True, False]
    assert frame["d"].tolist() == ["NA", "x"]


def test_batches_keep_order_and_size(path: Path) -> None:
    batches = list(data.read_batches(path, batch_rows=30))
    assert [batch.num_rows for batch in batches] == [30, 30, 30, 10]
    assert pa.Table.from_batches(batches).to_pandas()["id"].tolist() == list(range(100))


def test_rows_are_counted_from_the_footer(path: Path, tmp_path: Path) -> None:
    assert data.count_rows(path) == 100
    (tmp_path / "may.csv").write_text("id\n1\n")
    assert data.count_rows(tmp_path / "may.csv") is None


def test_an_exception_of_whoever_reads_batches_is_left_as_it_is(path: Path) -> None:
    """A full disk while writing elsewhere is no fault of the table that is being read."""
    with pytest.raises(OSError, match=r"No space left") as caught:  # noqa: PT012 - the loop is what is tested
        for _ in data.read_batches(path):
            raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, TableError)


# --- fingerprints ------------------------------------------------------------------------------------------------


def change(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    changed = frame.copy()
    changed.loc[row, column] = value
    return changed


BASE = make_frame(12_000)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(change(BASE, "size", 10_001, 5.0), id="a number beyond row 10,000"),
        pytest.param(change(BASE, "departs", 10_001, pd.Timestamp("2000-01-01", tz="UTC")), id="a date"),
        pytest.param(change(BASE, "is_late", 10_001, True), id="a boolean"),
        pytest.param(change(BASE, "carrier", 11_999, "UA"), id="the last text"),
        pytest.param(change(BASE, "carrier", 0, None), id="a missing text"),
        pytest.param(change(BASE, "size", 0, np.nan), id="a missing number"),
        pytest.param(BASE[["size", "id", "is_late", "carrier", "departs"]], id="the order of columns"),
        pytest.param(BASE.rename(columns={"size": "length"}), id="a name"),
        pytest.param(BASE.astype({"id": "float64"}), id="whole numbers as floats"),
        pytest.param(BASE.astype({"id": "int32"}), id="narrower numbers"),
        pytest.param(BASE.astype({"is_late": "int64"}), id="booleans as numbers"),
        pytest.param(BASE.iloc[::-1], id="the order of rows"),
        pytest.param(BASE.iloc[:-1], id="one row fewer"),
        pytest.param(BASE.drop(columns="departs"), id="one column fewer"),
    ],
)
def test_the_fingerprint_of_a_table_sees(changed: pd.DataFrame) -> None:
    assert data.fingerprint_frame(changed) != data.fingerprint_frame(BASE)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param(BASE.copy(), id="a copy"),
        pytest.param(BASE.set_index(np.arange(12_000) + 7), id="another index"),
        pytest.param(BASE.astype({"carrier": "object"}), id="text stored in another way"),
    ],
)
def test_the_fingerprint_of_a_table_does_not_depend_on(same: pd.DataFrame) -> None:
    assert data.fingerprint_frame(same) == data.fingerprint_frame(BASE)


def test_a_table_keeps_its_fingerprint_through_a_file(tmp_path: Path) -> None:
    path = data.write_table(BASE, tmp_path / "base.parquet")
    assert data.fingerprint_frame(data.read_table(path)) == data.fingerprint_frame(BASE)


def test_two_columns_cannot_pass_for_one_another() -> None:
    one = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    other = pd.DataFrame({"a": [1, 2, 3, 4]})
    assert data.fingerprint_frame(one) != data.fingerprint_frame(other)


@given(st.binary(max_size=2000), st.integers(min_value=0, max_value=1999), st.integers(min_value=1, max_value=255))
def test_the_fingerprint_of_a_file_sees_every_byte(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int, mask: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    before = data.fingerprint_file(path)
    assert before.startswith("sha256:")
    assert data.fingerprint_file(path) == before
    if offset < len(content):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :])
        assert data.fingerprint_file(path) != before


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_share", [0.1, 0.25, 0.5, 0.9])
def test_what_is_tested_happened_after_what_was_trained_on(test_share: float) -> None:
    frame = make_frame(1000).sample(frac=1, random_state=0)
    train, test = data.split_by_time(frame, "departs", test_share=test_share)
    assert len(train) + len(test) == 1000
    assert train["departs"].max() < test["departs"].min()
    assert len(test) == pytest.approx(1000 * test_share, abs=2)


def test_rows_of_one_moment_are_never_torn_apart() -> None:
    frame = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 5 + ["2020-01-02"] * 5)})
    train, test = data.split_by_time(frame, "day", test_share=0.3)
    assert (len(train), len(test)) == (5, 5)


@pytest.mark.parametrize("test_share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(test_share: float) -> None:
    with pytest.raises(TableError, match=r"needs a number between 0 and 1"):
        data.split_by_time(make_frame(), "departs", test_share=test_share)


def test_times_of_a_csv_with_zones_are_split_like_any_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,at\n1,2020-01-02T03:04:05Z\n2,2020-01-03T03:04:05+02:00\n3,2020-01-03T02:00:00Z\n")
    train, test = data.split_by_time(data.read_table(path), "at", test_share=0.01)
    assert (list(train["id"]), list(test["id"])) == ([1, 2], [3])
    with pytest.raises(TableError, match="1 of 2 rows hold no ISO 8601 time, such as 'soon'"):
        data.split_by_time(pd.DataFrame({"at": ["2020-01-01", "soon"]}), "at", test_share=0.1)


def test_rows_of_a_single_moment_cannot_be_split_by_time() -> None:
    frame = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 5)})
    with pytest.raises(TableError, match=r"5 rows have 1 different times"):
        data.split_by_time(frame, "day", test_share=0.3)


def test_rows_without_a_time_are_not_lost_in_silence() -> None:
    frame = change(make_frame(), "departs", 3, pd.NaT)
    with pytest.raises(TableError, match=r"1 of 100 rows have no time"):
        data.split_by_time(frame, "departs", test_share=0.3)


# --- hashes of rows ----------------------------------------------------------------------------------------------


def test_a_row_is_found_again_in_another_order_other_kinds_and_after_a_file(path: Path) -> None:
    hashed = data.hash_rows(make_frame())
    assert (hashed.dtype, len(set(hashed.tolist()))) == (np.uint64, 100)
    again = data.read_table(path).iloc[::-1]
    assert data.hash_rows(again).tolist() == hashed[::-1].tolist()
    floats = make_frame().astype({"id": "float64", "is_late": "float64", "carrier": "category"})
    assert data.hash_rows(floats).tolist() == hashed.tolist()
    elsewhere = make_frame().assign(departs=lambda rows: rows["departs"].dt.tz_convert("America/New_York"))
    assert data.hash_rows(elsewhere).tolist() == hashed.tolist()
    assert data.hash_rows(make_frame().rename(columns=str.upper)).tolist() == hashed.tolist()


@pytest.mark.parametrize(("column", "value"), [("id", 7.5), ("size", np.nan), ("carrier", "UA"), ("carrier", None)])
def test_a_row_with_one_other_value_has_another_hash(column: str, value: object) -> None:
    frame = make_frame().astype({"id": "float64"})
    frame.loc[3, column] = value
    differs = data.hash_rows(frame) != data.hash_rows(make_frame())
    assert np.flatnonzero(differs).tolist() == [3]


def test_large_whole_numbers_that_are_one_float_are_two_rows() -> None:
    one, other = data.hash_rows(pd.DataFrame({"id": [2**60, 2**60 + 1]}))
    assert one != other


def test_missing_is_missing_and_minus_zero_is_zero() -> None:
    frame = pd.DataFrame({"a": [0.0, np.nan]})
    other = pd.DataFrame({"a": pd.array([-0.0, None], dtype="Float64")})
    assert data.hash_rows(frame).tolist() == data.hash_rows(other).tolist()
    assert data.hash_rows(frame.head(0)).tolist() == []
