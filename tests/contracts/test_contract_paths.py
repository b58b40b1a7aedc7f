"""The same row gets the same verdict as a DataFrame, an Arrow batch, Parquet, CSV text and JSON over HTTP."""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from contract_inputs import CONTRACT, CSV_TEXTS, GOOD, INPUTS, PATHS, SPARK, TABLES, Input
from fastapi.testclient import TestClient
from sklearn.dummy import DummyRegressor

from mlops_lib import contracts, data, registry
from mlops_lib.programs import service
from mlops_lib.project import Project
from mlops_lib.task import regression

# What a path that cannot carry an input may say when it is tried.
Unbuilt = (pa.ArrowException, TypeError, ValueError, OverflowError, NotImplementedError)


def to_series(path: str, value: Any) -> pd.Series[Any]:
    """Return one value in a column of the path's form."""
    match path:
        case "native":
            return pd.Series([value])
        case "nullable":
            return pd.Series([value], dtype=object).convert_dtypes()
        case "category":
            return pd.Series([value], dtype=object).astype("category")
        case "arrow":
            return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([to_arrow(value)])))
    return pd.Series([value], dtype=object)


def to_arrow(value: Any) -> pa.Array:
    """Return one value as Arrow holds it, without losing what its Python form says."""
    if isinstance(value, pd.Timestamp) and value.nanosecond:
        return pa.array([value.value], type=pa.timestamp("ns"))
    if isinstance(value, int) and not isinstance(value, bool) and value == 2**63:
        return pa.array([value], type=pa.uint64())
    return pa.array([None if value is None or value is pd.NA or value is pd.NaT else value])


def to_text(value: Any) -> str | None:
    """Return a value as a CSV has it, None for an empty field."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bytes, list, dict)):
        raise TypeError
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else str(value)


def to_json(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, (dt.date, dt.time)) and value is not pd.NaT:
        return value.isoformat()
    if isinstance(value, np.datetime64):
        return str(value)
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, Decimal):
        return float(value) if value != value.to_integral_value() else int(value)
    if isinstance(value, pd.Timedelta):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def write_csv(path: Path, rows: list[dict[str, str | None]]) -> Path:
    """Write rows as most programs do: text in quotes, an empty field for what is missing."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(GOOD) + "\n")
        for row in rows:
            fields = ("" if text is None else '"' + text.replace('"', '""') + '"' for text in row.values())
            file.write(",".join(fields) + "\n")
    return path


def verdicts(split: contracts.Split) -> list[str]:
    """Return the rule that each row breaks, in order; "" for a good row."""
    rules = dict(zip(split.bad.index.tolist(), split.bad["rule"].tolist(), strict=True))
    return [rules.get(row, "") for row in range(split.n_rows)]


def judge_frame(frame: pd.DataFrame) -> str:
    return verdicts(contracts.split_rows(CONTRACT, frame))[0]


def judge(path: str, given: Input, folder: Path, client: TestClient) -> str:
    """Send one row through one path; return the rule that it breaks."""
    if path == "csv":
        file = write_csv(folder / "one.csv", [{name: to_text(value) for name, value in given.row.items()}])
        (batch,) = data.read_batches(file)
        return verdicts(contracts.split_batch(CONTRACT, batch))[0]
    if path == "json":
        return judge_json(client, [given.row])[0]
    if path == "parquet":
        table = pa.table({name: to_arrow(value) for name, value in given.row.items()})
        pa.parquet.write_table(table, folder / "one.parquet")
        (batch,) = data.read_batches(folder / "one.parquet")
        return verdicts(contracts.split_batch(CONTRACT, batch))[0]
    return judge_frame(pd.DataFrame({name: to_series(path, value) for name, value in given.row.items()}))


def judge_json(client: TestClient, rows: list[dict[str, Any]]) -> list[str]:
    body = json.dumps({"dataframe_records": [{k: to_json(v) for k, v in row.items()} for row in rows]})
    answer = client.post("/invocations", content=body)
    if answer.status_code == 400:
        return ["payload"] * len(rows)
    assert answer.status_code in (200, 422), answer.text
    broken = {bad["row"]: bad["rule"] for bad in answer.json().get("rows", [])}
    return [broken.get(row, "") for row in range(len(rows))]


@pytest.fixture(scope="module")
def client(registered: Project) -> Iterator[TestClient]:
    """Return a client of the service under the table's contract; its model answers anything."""
    release = registry.load_model(registered, 1)
    model = DummyRegressor(strategy="constant", constant=0.5).fit([[0]], [0.5])
    metadata = {**release.files.metadata, "mlops": {**release.files.metadata["mlops"], "features": CONTRACT.features}}
    files = replace(
        release.files, contract=json.loads(CONTRACT.to_json()), model=model, metadata=metadata, task=regression()
    )
    with TestClient(service.create_app(replace(release, files=files))) as client:
        yield client


def test_the_table_is_long_enough_and_its_names_are_unique() -> None:
    assert len(INPUTS) >= 80
    assert len({given.name for given in INPUTS}) == len(INPUTS)
    assert {given.rule.rpartition(".")[2] for given in INPUTS} >= {"", "kind", "null", "range", "finite", "unseen"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_a_row_gets_its_verdict_on_every_path(given: Input, path: str, tmp_path: Path, client: TestClient) -> None:
    expected = given.expected(path)
    if expected is None:
        with pytest.raises(Unbuilt):
            judge(path, given, tmp_path, client)
    else:
        assert judge(path, given, tmp_path, client) == expected, given.differs.get(path)


def test_a_table_says_no_more_exceptions_than_there_are() -> None:
    """An exception is a different verdict: one that is none would hide that a path has got better."""
    for given in INPUTS:
        assert set(given.differs) <= {*PATHS, SPARK}, given.name
        assert all(verdict != given.rule and reason for verdict, reason in given.differs.values()), given.name


def numbered(path: str) -> list[Input]:
    """Return the inputs that a path can carry, with keys of their own where the key is not what is changed."""
    carried = [given for given in INPUTS if given.expected(path) not in (None, "payload")]
    return [
        given if "id" in given.change else replace(given, change={**given.change, "id": 1000 + number})
        for number, given in enumerate(carried)
    ]


def test_a_row_gets_the_same_verdict_among_all_the_others(tmp_path: Path, client: TestClient) -> None:
    expected = {path: [given.expected(path) for given in numbered(path)] for path in ("objects", "csv", "json")}
    frame = pd.DataFrame([given.row for given in numbered("objects")], columns=list(GOOD), dtype=object)
    assert verdicts(contracts.split_rows(CONTRACT, frame)) == expected["objects"]
    rows = [{name: to_text(value) for name, value in given.row.items()} for given in numbered("csv")]
    (batch,) = data.read_batches(write_csv(tmp_path / "all.csv", rows))
    assert verdicts(contracts.split_batch(CONTRACT, batch)) == expected["csv"]
    assert judge_json(client, [given.row for given in numbered("json")]) == expected["json"]


@pytest.mark.parametrize("path", TABLES)
def test_a_good_row_comes_out_the_same_from_every_form(path: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({name: to_series(path, value) for name, value in GOOD.items()})
    expected = contracts.split_rows(CONTRACT, pd.DataFrame({k: to_series("objects", v) for k, v in GOOD.items()})).good
    pd.testing.assert_frame_equal(contracts.split_rows(CONTRACT, frame).good, expected)
    (batch,) = data.read_batches(write_csv(tmp_path / "one.csv", [{k: to_text(v) for k, v in GOOD.items()}]))
    pd.testing.assert_frame_equal(contracts.split_batch(CONTRACT, batch).good, expected)


@pytest.mark.parametrize(("column", "text", "rule"), CSV_TEXTS)
def test_a_field_of_a_csv_is_read_by_one_grammar_whatever_stands_beside_it(
    column: str, text: str, rule: str, tmp_path: Path
) -> None:
    row = {name: to_text(value) for name, value in GOOD.items()} | {"maybe": None, column: text}
    others = [{**row, **dict.fromkeys(GOOD, "?"), "id": str(i)} for i in range(3)]
    alone, among = ([row], [*others[:1], row, *others[1:]])
    for rows, at in ((alone, 0), (among, 1)):
        (batch,) = data.read_batches(write_csv(tmp_path / "x.csv", rows))
        assert verdicts(contracts.split_batch(CONTRACT, batch))[at] == rule
    with (tmp_path / "x.csv").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 5


def test_a_header_that_stands_in_the_middle_of_a_csv_is_a_bad_row(tmp_path: Path) -> None:
    one, two = ({k: to_text(v) for k, v in {**GOOD, "id": number}.items()} for number in (1, 2))
    (batch,) = data.read_batches(write_csv(tmp_path / "x.csv", [one, {name: name for name in GOOD}, two]))
    split = contracts.split_batch(CONTRACT, batch)
    assert verdicts(split) == ["", "header.repeated", ""]
    assert split.bad["reason"].iloc[0].startswith("the header stands here again; id is 'id', needs an integer")


def test_a_word_in_the_millionth_row_of_a_csv_is_that_rows_fault(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("id,x\n")
        file.writelines(f"{number},{number}.5\n" for number in range(999_999))
        file.write("999999,abc\n")
    contract = contracts.Contract((contracts.Column("x", "number"),), keys=("id",), key_kinds={"id": "integer"})
    splits = [contracts.split_batch(contract, batch) for batch in data.read_batches(path)]
    assert len(splits) > 1
    assert sum(split.n_rows for split in splits) == 1_000_000
    (bad,) = [split.bad for split in splits if len(split.bad)]
    assert bad["id"].tolist() == ["999999"]
    assert bad["reason"].tolist() == ["x is 'abc', needs a number such as 1.5"]
    assert {str(split.good["x"].dtype) for split in splits} == {"float64"}


def test_keys_of_a_csv_are_compared_as_what_they_are(tmp_path: Path) -> None:
    rows = [{k: to_text(v) for k, v in {**GOOD, "id": text}.items()} for text in ("7", "07", "7.0", "8", "x", "x")]
    (batch,) = data.read_batches(write_csv(tmp_path / "x.csv", rows))
    assert verdicts(contracts.split_batch(CONTRACT, batch)) == [*["id.duplicated"] * 3, "", *["id.kind"] * 2]
    assert contracts.read_keys(CONTRACT, batch)["id"].tolist() == [7, 7, 7, 8]


def test_large_whole_numbers_stay_exact_beside_a_missing_one() -> None:
    batch = pa.record_batch({"big": pa.array([2**62 + 1, None])})
    good = contracts.split_batch(contracts.Contract((CONTRACT.column("big"),)), batch).good
    assert good["big"].tolist() == [2**62 + 1, pd.NA]


@pytest.mark.parametrize(
    ("values", "column", "rules"),
    [
        (pa.array(["AA", "ZZ"]).dictionary_encode(), "carrier", ["", "carrier.unseen"]),
        (pa.array(["AA", "ZZ"], pa.large_string()), "carrier", ["", "carrier.unseen"]),
        (pa.array([Decimal("1.5"), Decimal("1.1")], pa.decimal128(5, 2)), "maybe", ["", ""]),
        (pa.array([Decimal(3), Decimal(2) ** 60], pa.decimal128(38, 0)), "big", ["", ""]),
        (pa.array([0, 1], pa.timestamp("ns")), "left", ["", "left.kind"]),
        (pa.array([0, 1000], pa.timestamp("ns")), "left", ["", ""]),
        (pa.array([0, 1], pa.timestamp("s")), "left", ["", ""]),
        (pa.array([0, 2**62], pa.timestamp("s")), "left", ["", "left.kind"]),
        (pa.array([0, 1], pa.timestamp("us", "UTC")), "left", ["left.kind", "left.kind"]),
        (pa.array([0, 1], pa.date32()), "left", ["", ""]),
        (pa.array([[1], [2]]), "maybe", ["maybe.kind", "maybe.kind"]),
        (pa.array([{"a": 1}, None]), "maybe", ["maybe.kind", ""]),
        (pa.nulls(2), "maybe", ["", ""]),
        (pa.array([1.5, 2.5], pa.float16()), "maybe", ["", ""]),
    ],
    ids=lambda item: str(getattr(item, "type", item)),
)
def test_every_type_of_a_parquet_file_is_read_without_loss_or_refused(
    values: pa.Array, column: str, rules: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.parquet"
    try:
        pa.parquet.write_table(pa.table({column: values}), path)
        (batch,) = data.read_batches(path)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # Parquet has no such value; other Arrow batches do
        batch = pa.record_batch({column: values})
    split = contracts.split_batch(contracts.Contract((CONTRACT.column(column),)), batch)
    assert verdicts(split) == rules
