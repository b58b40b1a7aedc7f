"""Tables as other programs write them: no column is lost, no value changed, no file taken for another."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_lib import contracts, data
from mlops_lib.errors import TableError

LARGE = 2**53 + 1


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "index", [pd.Index([7, 8], name="id"), pd.MultiIndex.from_product([["a"], [7, 8]], names=["k", "id"])]
)
def test_what_pandas_wrote_as_an_index_is_a_column(index: pd.Index, tmp_path: Path) -> None:
    pd.DataFrame({"size": [1.0, 2.0]}, index=index).to_parquet(tmp_path / "x.parquet")
    frame = data.read_table(tmp_path / "x.parquet")
    assert sorted(frame) == sorted(["size", *index.names])
    assert frame["id"].tolist() == [7, 8]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(18, 0)])
def test_integers_beyond_2_to_the_53_survive_beside_nulls(kind: pa.DataType, tmp_path: Path) -> None:
    values = [LARGE, None, LARGE + 1]
    frame = data.read_table(write(tmp_path / "x.parquet", id=pa.array(values, kind)))
    assert frame["id"].iloc[[0, 2]].map(int).tolist() == [LARGE, LARGE + 1]
    assert frame["id"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_of_every_encoding_are_texts(kind: pa.DataType, tmp_path: Path) -> None:
    frame = data.read_table(write(tmp_path / "x.parquet", name=pa.array(["a", None, ""], kind)))
    assert frame["name"].isna().tolist() == [False, True, False]
    assert frame["name"].astype(object).iloc[[0, 2]].tolist() == ["a", ""]


def test_booleans_with_gaps_and_decimals_keep_their_values(tmp_path: Path) -> None:
    price = pa.array([Decimal("1.10"), Decimal("-0.25"), None], pa.decimal128(9, 2))
    frame = data.read_table(write(tmp_path / "x.parquet", open=pa.array([True, None, False]), price=price))
    assert frame["open"].dtype == "boolean"
    assert frame["price"].iloc[:2].tolist() == [1.1, -0.25]


@pytest.mark.parametrize("name", ["x.PARQUET", "x.Parquet", "x.CSV"])
def test_a_suffix_in_any_letter_case_is_the_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix.lower() == ".csv":
        path.write_text("id\n7\n")
    else:
        write(path, id=[7])
    assert data.read_table(path)["id"].tolist() == [7]


def test_what_stands_in_a_folders_name_stays_text_and_is_typed_by_the_contract(tmp_path: Path) -> None:
    for branch in ("01", "02"):
        write(tmp_path / f"t/branch={branch}/x.parquet", size=[1.5])
    assert data.read_table(tmp_path / "t")["branch"].tolist() == ["01", "02"]
    (batch,) = data.read_batches(tmp_path / "t")
    for kind, values in (("string", ["01", "02"]), ("integer", [1, 2])):
        split = contracts.split_batch(contracts.Contract((contracts.Column("branch", kind),)), batch)
        assert split.good["branch"].tolist() == values


@pytest.mark.parametrize(
    "hidden", ["_temporary/x.parquet", ".part=1/x.parquet", "_part=1/x.parquet", "_x.parquet", ".x.parquet"]
)
def test_hidden_files_and_partitions_are_somebodys_unfinished_work(hidden: str, tmp_path: Path) -> None:
    write(tmp_path / "t/part=2/x.parquet", id=[2])
    write(tmp_path / "t" / hidden, id=[1])
    assert data.read_table(tmp_path / "t")["id"].tolist() == [2]


def test_long_cells_and_legal_quotes_of_a_csv_are_cells(tmp_path: Path) -> None:
    long = "x" * 2_000_000
    (tmp_path / "x.csv").write_text(f'id,name\n1,"{long}"\n2,"he said ""no"",\nand left"\n', encoding="utf-8")
    assert data.read_table(tmp_path / "x.csv")["name"].tolist() == [long, 'he said "no",\nand left']


def test_a_value_over_the_stated_size_is_its_rows_fault(tmp_path: Path) -> None:
    contract = contracts.Contract((contracts.Column("name", "string"),))
    (batch,) = data.read_batches(write(tmp_path / "x.parquet", name=["a", "x" * (2**20 + 1)]))
    split = contracts.split_batch(contract, batch)
    assert split.bad["rule"].tolist() == ["name.kind"]
    assert split.good["name"].tolist() == ["a"]


@pytest.mark.parametrize("n_bytes", [1_000, 500_000])
def test_batches_are_bounded_in_bytes_however_small_the_file(n_bytes: int, tmp_path: Path) -> None:
    """A text that is stored once may stand in every row."""
    n_rows = 4 * data.BATCH_BYTES // n_bytes
    path = write(tmp_path / "x.parquet", name=pa.array(["x" * n_bytes] * n_rows).dictionary_encode())
    assert path.stat().st_size < data.BATCH_BYTES / 50
    seen = 0
    for batch in data.read_batches(path):
        assert batch.nbytes <= data.BATCH_BYTES + n_bytes + 64 * batch.num_rows
        seen += batch.num_rows
    assert seen == n_rows


def test_a_row_longer_than_a_batch_is_a_batch_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", name=["a", "x" * (data.BATCH_BYTES + 1), "b"])
    assert [batch.num_rows for batch in data.read_batches(path)] == [1, 1, 1]


def test_columns_of_one_name_are_refused_in_a_folder_too(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["id", "id"])
    (tmp_path / "t").mkdir()
    pq.write_table(table, tmp_path / "t/x.parquet")
    with pytest.raises(TableError, match="more than one column 'id'"):
        data.read_table(tmp_path / "t")


def test_half_precision_is_read(tmp_path: Path) -> None:
    frame = data.read_table(write(tmp_path / "x.parquet", x=np.array([0.5, 2.0], dtype="float16")))
    assert frame["x"].tolist() == [0.5, 2.0]
