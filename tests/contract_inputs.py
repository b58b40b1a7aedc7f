"""The inputs that every path must judge alike, as one table: DataFrame, Arrow, Parquet, CSV, HTTP and Spark.

Each input is a good row with one or two values changed, and the rule that it then breaks ("" for a good row). Where a
path cannot carry an input, the table says what happens there instead and why: nothing is skipped. ``None`` stands for
"cannot be built", and the test sees the attempt fail.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from mlops_lib.contracts import Column, Contract, Rule

CONTRACT = Contract(
    (
        Column("ratio", "number", low=-1e6, high=1e6),
        Column("maybe", "number", nullable=True),
        Column("count", "integer", low=0.0, high=500.0),
        Column("big", "integer", nullable=True),
        Column("flag", "boolean"),
        Column("carrier", "string", categories=("AA", "DL", "NA"), unseen="reject"),
        Column("note", "string", nullable=True),
        Column("left", "datetime"),
        Column("arrived", "datetime", nullable=True),
    ),
    keys=("id",),
    key_kinds={"id": "integer"},
    rules=(Rule("arrived > left", "arrives after it left"), Rule("ratio < maybe", policy="warn")),
)
NOON = dt.datetime(2024, 1, 1, 12)  # noqa: DTZ001 - the contract's times are naive
GOOD: dict[str, Any] = {
    "id": 7,
    "ratio": 0.5,
    "maybe": 1.5,
    "count": 3,
    "big": 4,
    "flag": True,
    "carrier": "AA",
    "note": "on time",
    "left": NOON,
    "arrived": dt.datetime(2024, 1, 1, 14, 30),  # noqa: DTZ001 - as above
}
TABLES = ("objects", "native", "nullable", "category", "arrow", "parquet")
PATHS = (*TABLES, "csv", "json")
SPARK = "spark"  # a path of its own: one job for all inputs (tests/test_spark.py)


@dataclass(frozen=True)
class Input:
    """One row: a name, what is changed in the good row, the rule it breaks, and the paths that cannot carry it."""

    name: str
    change: Mapping[str, Any]
    rule: str = ""
    differs: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        return {**GOOD, **self.change}

    def expected(self, path: str) -> str | None:
        """Return the rule that breaks on a path, "" for none, None where the path cannot carry the input."""
        return self.differs[path][0] if path in self.differs else self.rule


UNTYPED = {"csv": ("", "a CSV has no types: the text is that of a good value")}
NO_JSON = (None, "JSON has no such value")
NO_ARROW = (None, "Arrow has no such value")
REFUSED = {"json": ("payload", "JSON has no such number: the body is refused as a whole")}
NO_KEYS = {"json": ("", "a row of a request needs no key")}
UNHASHED = {"category": (None, "a category is hashable")}
NESTED = {**UNHASHED, "csv": (None, "a CSV has no nested values")}
BYTES = {"json": NO_JSON, "csv": (None, "bytes are no text")}
HUGE = dict.fromkeys(("arrow", "parquet"), (None, "beyond 64 bits"))
NOT_ARROW = dict.fromkeys(("arrow", "parquet"), NO_ARROW)
NO_SPARK = {SPARK: (None, "Spark does not read this type from Parquet: the batch ends with its error")}
JSON_TIME = {"json": ("", "JSON has no times: ISO 8601 text is one")}

INPUTS = [
    Input("a good row", {}),
    # numbers
    Input("a whole number where a number is due", {"ratio": 1}),
    Input("a negative whole number", {"ratio": -3}),
    Input("zero", {"ratio": 0}),
    Input("a negative zero", {"ratio": -0.0}),
    Input("a single-precision number", {"ratio": np.float32(0.25)}),
    Input(
        "a half-precision number",
        {"ratio": np.float16(0.25)},
        "",
        {"category": (None, "pandas has no index of such numbers"), **NO_SPARK},
    ),
    Input("a byte", {"ratio": np.int8(1)}),
    Input("an unsigned number", {"ratio": np.uint64(1)}),
    Input("a tiny number", {"ratio": 5e-324}),
    Input("the largest whole number that a float holds", {"maybe": 2**53}),
    Input("one more than a float holds", {"maybe": 2**53 + 1}, "maybe.kind"),
    Input("one less than a float holds", {"maybe": -(2**53) - 1}, "maybe.kind"),
    Input("a whole number of 64 bits as a number", {"maybe": 2**63 - 1}, "maybe.kind"),
    Input("a whole number beyond 64 bits as a number", {"maybe": 10**30}, "maybe.kind", HUGE),
    Input("a number of 400 digits", {"maybe": 10**400}, "maybe.kind", HUGE),
    Input("a decimal that a float holds exactly", {"maybe": Decimal("2.5")}),
    Input("a decimal as people write a float", {"maybe": Decimal("1.10")}),
    Input(
        "a decimal with more digits than a float has",
        {"maybe": Decimal("1.10000000000000000001")},
        "maybe.kind",
        dict.fromkeys(("csv", "json"), ("", "there, a float is read to its nearest")),
    ),
    Input("a complex number", {"ratio": 1 + 0j}, "ratio.kind", {"json": NO_JSON, **NOT_ARROW}),
    Input("true as a number", {"ratio": True}, "ratio.kind"),
    Input("NumPy's true as a number", {"ratio": np.True_}, "ratio.kind"),
    Input("text of a number", {"ratio": "0.5"}, "ratio.kind", UNTYPED),
    Input("text that is no number", {"ratio": "abc"}, "ratio.kind"),
    Input("a decimal comma", {"ratio": "0,5"}, "ratio.kind"),
    Input("a thousands separator", {"ratio": "1,000"}, "ratio.kind"),
    Input("an underscore in a number", {"ratio": "1_000"}, "ratio.kind"),
    Input("a hexadecimal number", {"ratio": "0x1F"}, "ratio.kind"),
    Input("a number with its unit", {"ratio": "5 km"}, "ratio.kind"),
    Input("a percentage", {"ratio": "50%"}, "ratio.kind"),
    Input(
        "an empty text as a number",
        {"ratio": ""},
        "ratio.kind",
        {"csv": ("ratio.null", "an empty field is a missing value")},
    ),
    Input("bytes as a number", {"ratio": b"1"}, "ratio.kind", BYTES),
    Input("a list as a number", {"ratio": [1.0]}, "ratio.kind", NESTED),
    Input("an object as a number", {"ratio": {"a": 1}}, "ratio.kind", NESTED),
    Input("a time as a number", {"ratio": NOON}, "ratio.kind"),
    Input("infinity", {"maybe": math.inf}, "maybe.finite", REFUSED),
    Input("minus infinity", {"maybe": -math.inf}, "maybe.finite", REFUSED),
    Input("infinity in a limited column", {"ratio": math.inf}, "ratio.finite", REFUSED),
    Input("a number above its range", {"ratio": 1e308}, "ratio.range"),
    Input("a number just above its range", {"ratio": 1_000_000.1}, "ratio.range"),
    Input("a number at the end of its range", {"ratio": 1e6}),
    Input("a number below its range", {"ratio": -1e7}, "ratio.range"),
    Input("no number", {"ratio": None}, "ratio.null"),
    Input("NaN where a number is due", {"ratio": math.nan}, "ratio.null", REFUSED),
    Input("pandas' NA where a number is due", {"ratio": pd.NA}, "ratio.null"),
    Input("no number where none is needed", {"maybe": None}),
    Input("NaN where none is needed", {"maybe": math.nan}, "", REFUSED),
    # whole numbers
    Input("a whole number as a float", {"count": 3.0}),
    Input("a whole number as a decimal", {"count": Decimal(3)}),
    Input("a fraction", {"count": 1.5}, "count.kind"),
    Input("text of a whole number", {"count": "3"}, "count.kind", UNTYPED),
    Input("true as a whole number", {"count": True}, "count.kind"),
    Input("the largest whole number of 64 bits", {"big": 2**63 - 1}),
    Input("the smallest whole number of 64 bits", {"big": -(2**63)}),
    Input("2**63", {"big": 2**63}, "big.kind"),
    Input("-2**63 - 1", {"big": -(2**63) - 1}, "big.kind", HUGE),
    Input("1e19", {"big": 1e19}, "big.kind"),
    Input(
        "a float too large to be exact",
        {"big": float(2**54)},
        "big.kind",
        {"nullable": ("", "pandas makes it a whole number")},
    ),
    Input("infinity as a whole number", {"big": math.inf}, "big.kind", REFUSED),
    Input("a whole number above its range", {"count": 501}, "count.range"),
    Input("a whole number below its range", {"count": -1}, "count.range"),
    Input("no whole number", {"count": None}, "count.null"),
    Input("no whole number where none is needed", {"big": None}),
    # booleans
    Input("false", {"flag": False}),
    Input("NumPy's false", {"flag": np.False_}),
    Input("text of false", {"flag": "false"}, "flag.kind", UNTYPED),
    Input("one as a boolean", {"flag": 1}, "flag.kind"),
    Input("zero as a boolean", {"flag": 0}, "flag.kind"),
    Input("1.0 as a boolean", {"flag": 1.0}, "flag.kind"),
    Input("two as a boolean", {"flag": 2}, "flag.kind"),
    Input("yes as a boolean", {"flag": "yes"}, "flag.kind"),
    Input("no boolean", {"flag": None}, "flag.null"),
    # strings
    Input("another known category", {"carrier": "DL"}),
    Input("a category that is called NA", {"carrier": "NA"}),
    Input("an unseen category", {"carrier": "ZZ"}, "carrier.unseen"),
    Input("a category after a space", {"carrier": " AA"}, "carrier.unseen"),
    Input("a category in small letters", {"carrier": "aa"}, "carrier.unseen"),
    Input("an empty category", {"carrier": ""}, "carrier.unseen"),
    Input("no category", {"carrier": None}, "carrier.null"),
    Input("a number as a text", {"note": 5}, "note.kind", UNTYPED),
    Input("true as a text", {"note": True}, "note.kind", UNTYPED),
    Input("bytes as a text", {"note": b"AA"}, "note.kind", BYTES),
    Input("an object as a text", {"note": {"a": 1}}, "note.kind", NESTED),
    Input("letters of any alphabet", {"note": "北京 ✈ Zürich"}),
    Input("a comma, a quote and a line break", {"note": 'late, "again"\nsorry'}),
    Input(
        "half a surrogate pair",
        {"note": "\ud800"},
        "note.kind",
        dict.fromkeys(("native", "nullable", "category", "arrow", "parquet", "csv"), (None, "no UTF-8 text")),
    ),
    Input("a very long text", {"note": "x" * 100_000}),
    Input("an empty text", {"note": ""}),
    Input("no text where none is needed", {"note": None}),
    # times
    Input("a time of pandas", {"left": pd.Timestamp(NOON)}),
    Input("a time of NumPy", {"left": np.datetime64("2024-01-01T12:00:00", "us")}),
    Input("a date", {"left": dt.date(2024, 1, 1)}),
    Input("a time with microseconds", {"left": NOON.replace(microsecond=1)}),
    Input("a time with nanoseconds", {"left": pd.Timestamp("2024-01-01 00:00:00.000000001")}, "left.kind", NO_SPARK),
    Input("a time of the year 1", {"left": dt.datetime(1, 1, 1)}),  # noqa: DTZ001 - as above
    Input("a time with its zone", {"left": NOON.replace(tzinfo=dt.UTC)}, "left.kind"),
    Input("an epoch in seconds", {"left": 1704067200}, "left.kind"),
    Input("an epoch as a float", {"left": 1704067200.0}, "left.kind"),
    Input("text of a time", {"left": "2024-01-01T12:00:00"}, "left.kind", {**UNTYPED, **JSON_TIME}),
    Input("text of a date", {"left": "2024-01-01"}, "left.kind", {**UNTYPED, **JSON_TIME}),
    Input("a date with the day first", {"left": "13/12/2024"}, "left.kind"),
    Input("a date with the day or the month first", {"left": "01/02/2024"}, "left.kind"),
    Input("a date in words", {"left": "1 January 2024"}, "left.kind"),
    Input("a date without separators", {"left": "20240101"}, "left.kind"),
    Input("a day that no month has", {"left": "2024-02-30"}, "left.kind"),
    Input("a clock without a date", {"left": dt.time(12)}, "left.kind", NO_SPARK),
    Input("a duration as a time", {"left": pd.Timedelta("1h")}, "left.kind"),
    Input("no time", {"left": None}, "left.null"),
    Input("pandas' NaT", {"left": pd.NaT}, "left.null"),
    Input("no time where none is needed", {"arrived": None}),
    # between columns
    Input("arrival before departure", {"arrived": NOON - dt.timedelta(hours=1)}, "arrives after it left"),
    Input("arrival at departure", {"arrived": NOON}, "arrives after it left"),
    Input("a rule that only warns", {"ratio": 9.0, "maybe": 1.0}),
    # keys
    Input("no key", {"id": None}, "id.null", NO_KEYS),
    Input("text as a key of whole numbers", {"id": "A7"}, "id.kind", NO_KEYS),
    Input("a fraction as a key of whole numbers", {"id": 1.5}, "id.kind", NO_KEYS),
]
# How a field may be written in a CSV, and the rule that it breaks: there, text is all there is.
CSV_TEXTS = [
    ("ratio", "1e-3", ""),
    ("ratio", "+1", ""),
    ("ratio", ".5", ""),
    ("ratio", "1.", ""),
    ("ratio", " 0.5 ", ""),
    ("ratio", "-1.50E+02", ""),
    ("maybe", "9007199254740992", ""),
    ("maybe", "9007199254740993", "maybe.kind"),
    ("maybe", "1e999", "maybe.finite"),
    ("maybe", "NA", ""),
    ("maybe", "NaN", ""),
    ("maybe", "None", "maybe.kind"),
    ("ratio", "NA", "ratio.null"),
    ("count", "007", ""),
    ("count", "3.0", ""),
    ("count", "3e0", ""),
    ("count", "+3", ""),
    ("count", "0x3", "count.kind"),
    ("count", "٣", "count.kind"),
    ("count", "3.5", "count.kind"),
    ("big", "9223372036854775807", ""),
    ("big", "9223372036854775808", "big.kind"),
    ("flag", "TRUE", ""),
    ("flag", "False", ""),
    ("flag", "t", "flag.kind"),
    ("flag", "1", "flag.kind"),
    ("carrier", "NA", ""),
    ("note", "NA", ""),
    ("left", "2024-01-01 12:00", ""),
    ("left", "2024-01-01T12:00:00.123456", ""),
    ("left", "2024-01-01T12:00:00Z", "left.kind"),
    ("left", "2024-01-01T12:00:00.1234567", "left.kind"),
    ("left", "01.02.2024", "left.kind"),
    ("id", "7.0", ""),
    ("id", "seven", "id.kind"),
]
