"""Tables of every Arrow type: the notebook, a batch and the service read the same values, or refuse the same rows."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds import rounds

from mlops_lib import contracts, data
from mlops_lib.contracts.reading import infer_kind
from mlops_lib.programs import service

MOMENTS = st.integers(0, 7 * 10**9).map(lambda s: dt.datetime.fromtimestamp(s, dt.UTC).replace(tzinfo=None))
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def whole(bits: int, *, signed: bool = True) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    exact = Context(prec=precision)  # the default context rounds to 28 digits
    return st.integers(-(10**precision) + 1, 10**precision - 1).map(lambda n: Decimal(n).scaleb(-scale, exact))


# The type, its values, and whether JSON has the same values.
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any], bool]] = [
    *((getattr(pa, f"int{bits}")(), whole(bits), True) for bits in (8, 16, 32, 64)),
    *((getattr(pa, f"uint{bits}")(), whole(bits, signed=False), bits < 64) for bits in (8, 16, 32, 64)),
    (pa.float16(), st.floats(-100, 100, width=16), True),
    (pa.float32(), st.floats(allow_nan=False, allow_infinity=False, width=32), True),
    (pa.float64(), FLOATS, True),
    (pa.bool_(), st.booleans(), True),
    *((kind, TEXTS, True) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", "01"]), True),
    (pa.decimal128(15, 2), decimals(15, 2), True),
    (pa.decimal128(38, 0), decimals(38, 0), False),
    (pa.decimal256(60, 30), decimals(60, 30), False),
    (pa.date32(), MOMENTS.map(dt.datetime.date), True),
    *((pa.timestamp(unit), MOMENTS, True) for unit in ("s", "ms", "us", "ns")),
    (pa.timestamp("us", "UTC"), MOMENTS.map(lambda moment: moment.replace(tzinfo=dt.UTC)), False),
    (pa.time64("us"), MOMENTS.map(dt.datetime.time), False),
    (pa.duration("us"), st.timedeltas(dt.timedelta(0), dt.timedelta(9)), False),
    (pa.binary(), st.binary(max_size=3), False),
    (pa.list_(pa.int64()), st.lists(whole(64), max_size=2), False),
    (pa.null(), st.none(), True),
]


def judge(splits: list[contracts.Split]) -> tuple[list[str], list[Any]]:
    """Return the rule that each row breaks, or "", and the values of the good ones."""
    rules: list[str] = []
    for split in splits:
        broken = dict(zip(split.bad.index.tolist(), split.bad["rule"], strict=True))
        rules += [broken.get(row, "") for row in range(split.n_rows)]
    return rules, [None if pd.isna(value) else value for split in splits for value in split.good["x"]]


def as_json(value: Any) -> Any:
    """Return a value as a caller would send it."""
    if isinstance(value, dt.date):
        return (value if isinstance(value, dt.datetime) else dt.datetime.combine(value, dt.time())).isoformat()
    return float(value) if isinstance(value, Decimal | np.floating) else value


@settings(max_examples=rounds(4, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
@pytest.mark.parametrize(("kind", "values", "has_json"), TYPES, ids=[str(kind) for kind, _, _ in TYPES])
def test_a_column_of_any_type_is_the_same_everywhere(
    kind: pa.DataType, values: st.SearchStrategy[Any], has_json: bool, drawn: st.DataObject, tmp_path: Path
) -> None:
    cells = drawn.draw(st.lists(st.one_of(values, st.none()), min_size=1, max_size=8))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": pa.array(range(len(cells))), "x": pa.array(cells, kind)}), path)
    frame = data.read_table(path)
    assert frame["x"].isna().tolist() == [cell is None for cell in cells]
    likely = infer_kind(frame["x"])
    for named in {likely, "number", "string"} - {None}:
        contract = contracts.Contract((contracts.Column("x", named, nullable=True),))
        notebook = judge([contracts.split_rows(contract, frame)])
        assert (
            judge([contracts.split_batch(contract, batch) for batch in data.read_batches(path, batch_rows=3)])
            == notebook
        )
        if has_json and named == likely:
            body = json.dumps({"dataframe_records": [{"x": as_json(cell)} for cell in cells]})
            rows = service.read_payload(body.encode())
            assert judge([contracts.split_rows(contract, rows, format="json")]) == notebook
