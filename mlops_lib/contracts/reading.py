"""Read a column as its kind without loss, whatever form it comes in: the one place where a value is judged.

A type settles a whole column where it can; else each value is judged by itself. The text of a CSV and the times of a
JSON body are read by a fixed grammar (ISO 8601, a decimal point), never guessed.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_lib.data import survives

Mask = npt.NDArray[np.bool_]
# What the values of a table mean: their types count; all are text; types count, but times are text.
Format = Literal["table", "csv", "json"]

Kind = Literal["number", "integer", "boolean", "string", "datetime"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_EXACT = 2**53  # integers up to here survive float64
_INT64 = 2**63 - 1
_MAX_BYTES = 2**20  # of a text: a longer one is its row's fault, not the end of the process
# Spellings of a missing value in a CSV, except in a column of strings, where only an empty field without quotes is one.
_MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
_TEXT_NEEDS = {
    "number": "a number such as 1.5",
    "integer": "an integer such as 3",
    "boolean": "true or false",
    "string": "a string of at most 1 MB",
    "datetime": "a time without zone such as 2024-01-31T17:05:00",
}


@dataclass
class Cells:
    """One column read as its kind. Where ``null`` or ``bad`` (not of the kind without loss), ``values`` are filler."""

    values: Any  # ndarray, or pandas' own string array
    null: Mask
    bad: Mask


def name_kind(kind: str) -> str:
    """Return a kind with its article."""
    return f"{'an' if kind == 'integer' else 'a'} {kind}"


def describe_kind(kind: str, format: Format = "table") -> str:
    """Return what a value of this kind must be, for people."""
    if format == "csv" or kind == "string" or (format == "json" and kind == "datetime"):
        return _TEXT_NEEDS[kind]
    return f"{name_kind(kind)} without loss"


def infer_kind(series: pd.Series[Any]) -> Kind | None:
    """Return the one kind that all values have, or None."""
    series = _decode(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return infer_kind(pd.Series(series.dtype.categories))
    by_type = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "M": "datetime", "U": "string"}
    by_value = {"floating": "number", "mixed-integer-float": "number", "date": "datetime", "decimal": "number"}
    found = pd.api.types.infer_dtype(series, skipna=True)
    kind = by_type.get(series.dtype.kind, by_value.get(found, found))
    return next((known for known in KINDS if known == kind), None)


def read_cells(series: pd.Series[Any], kind: str, format: Format = "table") -> Cells:
    """Read a column as its kind: by its type where that settles it, else value by value."""
    cells = _read_cells(series, kind, format)
    if kind == "string" and len(cells.null):
        text = pa.array(cells.values)
        if text.nbytes > _MAX_BYTES:  # else none of them is
            cells.bad |= _mask(pc.fill_null(pc.greater(pc.binary_length(text), _MAX_BYTES), False)) & ~cells.null
    return cells


def _read_cells(series: pd.Series[Any], kind: str, format: Format) -> Cells:
    if format == "csv":
        return _read_csv(series, kind)
    if format == "json" and kind == "datetime":
        return _read_json_times(series)
    series = _decode(series)
    dtype: Any = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        levels = _read_cells(pd.Series([*dtype.categories, None], dtype=object), kind, "table")
        codes = series.cat.codes.to_numpy()  # -1, a null, takes the None at the end
        return Cells(levels.values.take(codes), levels.null[codes], levels.bad[codes])
    return _read_typed(series, dtype, kind) or _read_objects(np.asarray(series, dtype=object), kind)


def _decode(series: pd.Series[Any]) -> pd.Series[Any]:
    """Write out what is sparse, or dictionary-encoded by Arrow."""
    dtype: Any = series.dtype
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return series.astype(pd.ArrowDtype(dtype.pyarrow_dtype.value_type))
    return series.astype(dtype.subtype) if isinstance(dtype, pd.SparseDtype) else series


# --- by type -------------------------------------------------------------------------------------------------------


def _read_typed(series: pd.Series[Any], dtype: Any, kind: str) -> Cells | None:  # noqa: PLR0911 - one for each type
    """Read a column whose type settles what its values are; None where it does not."""
    none = np.zeros(len(series), dtype=bool)
    if kind in ("number", "integer") and dtype.kind == "f" and dtype.itemsize <= 8:
        numbers = series.to_numpy(dtype="float64", na_value=np.nan)
        return Cells(numbers, np.isnan(numbers), none) if kind == "number" else _round_whole(numbers)
    null = series.isna().to_numpy()
    match kind, dtype.kind:
        case "number" | "integer", "i" | "u":
            whole = series.to_numpy(dtype="uint64" if dtype.kind == "u" else "int64", na_value=0)
            if kind == "integer":
                return Cells(whole.astype("int64"), null, whole > _INT64)
            return Cells(np.where(null, np.nan, whole), null, (whole > _EXACT) | (whole < -_EXACT))
        case "boolean", "b":
            return Cells(series.to_numpy(dtype=bool, na_value=False), null, none)
        case "datetime", "M" if _unit(dtype):
            return _read_times(series, null)
        case "string", "U" | "O" if pd.api.types.infer_dtype(series, skipna=True) == "string":
            try:
                return Cells(series.astype("str").array, null, none)
            except UnicodeEncodeError:
                pass  # half a surrogate pair, which JSON can carry: value by value
    return None


def _round_whole(numbers: npt.NDArray[np.float64]) -> Cells:
    """Read float64 as int64; what is no whole number up to 2**53 is bad."""
    null = np.isnan(numbers)
    bad = ~null & ((numbers != np.trunc(numbers)) | (np.abs(numbers) > _EXACT))
    return Cells(np.where(null | bad, 0, numbers).astype("int64"), null, bad)


def _unit(dtype: object) -> str:
    """Return the unit of a type of times without zone, or nothing for another type."""
    return next((unit for unit in ("ns", "us", "ms", "s") if f"[{unit}]" in str(dtype)), "")


def _read_times(series: pd.Series[Any], null: Mask) -> Cells:
    """Read times of any unit as microseconds; a fraction of one, or a time beyond int64, is bad."""
    unit = _unit(series.dtype)
    times: Any = series if isinstance(series.dtype, np.dtype) else series.astype(f"datetime64[{unit}]")  # type: ignore[call-overload]
    times = times.to_numpy()
    if unit == "us":
        return Cells(times, null, np.zeros(len(times), dtype=bool))
    ticks = times.view("int64")
    bad = ticks % 1000 != 0 if unit == "ns" else np.abs(ticks) > _INT64 // {"ms": 1000, "s": 1_000_000}[unit]
    bad &= ~null
    return Cells(np.where(bad, np.datetime64("NaT"), times).astype("datetime64[us]"), null, bad)


# --- value by value ------------------------------------------------------------------------------------------------


def _read_objects(objects: npt.NDArray[np.object_], kind: str) -> Cells:
    read, filler, dtype = _READERS[kind]
    null: Mask = np.asarray(pd.isna(objects))
    found = [None if is_null else read(value) for value, is_null in zip(objects, null, strict=True)]
    bad = np.array([value is None for value in found], dtype=bool) & ~null
    filled = [filler if value is None else value for value in found]
    values: Any = pd.array(filled, dtype="str") if kind == "string" else np.array(filled, dtype=dtype)
    return Cells(values, null, bad)


def _is_bool(value: object) -> bool:
    return isinstance(value, (bool, np.bool_))


def _read_number(value: object) -> float | None:
    if isinstance(value, (int, np.integer)) and not _is_bool(value):
        return float(value) if -_EXACT <= int(value) <= _EXACT else None
    if isinstance(value, Decimal):
        return float(value) if abs(value) <= _EXACT and survives(value, float(value)) else None
    if isinstance(value, (float, np.floating)):
        return float(value) if float(value) == value else None
    return None


def _read_integer(value: object) -> int | None:
    if isinstance(value, (int, np.integer)) and not _is_bool(value):
        return int(value) if -_INT64 - 1 <= int(value) <= _INT64 else None
    if isinstance(value, Decimal):
        return int(value) if abs(value) <= _INT64 and value == value.to_integral_value() else None
    if isinstance(value, (float, np.floating)) and float(value).is_integer() and abs(float(value)) <= _EXACT:
        return int(value)
    return None


def _read_boolean(value: object) -> bool | None:
    return bool(value) if _is_bool(value) else None


def _read_string(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return str(value)


def _read_datetime(value: object) -> np.datetime64 | None:
    if not isinstance(value, (dt.date, np.datetime64)):
        return None
    time = pd.Timestamp(value)
    return None if time.tzinfo or time.nanosecond else np.datetime64(time.as_unit("us").to_numpy())


# How one value is read, what stands where there is none, and the type of the column.
_READERS: dict[str, tuple[Callable[[object], Any], Any, str]] = {
    "number": (_read_number, math.nan, "float64"),
    "integer": (_read_integer, 0, "int64"),
    "boolean": (_read_boolean, False, "bool"),
    "string": (_read_string, None, "str"),
    "datetime": (_read_datetime, np.datetime64("NaT"), "datetime64[us]"),
}


# --- text ----------------------------------------------------------------------------------------------------------


def _read_csv(series: pd.Series[Any], kind: str) -> Cells:
    """Read a column of text as its kind, as its JSON or Python spelling would have been read."""
    text = pa.array(series.array, type=pa.string())
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    if kind == "string":
        null = series.isna().to_numpy()
        return Cells(series.astype("str").array, null, np.zeros(len(null), dtype=bool))
    text = pc.utf8_trim(text, " \t")
    missing = pc.or_kleene(pc.is_null(text), pc.is_in(text, pa.array(_MISSING)))
    return _parse(pc.if_else(missing, None, text), kind)


def _read_json_times(series: pd.Series[Any]) -> Cells:
    """Read the times of a JSON body, which has no type for them: ISO 8601, and nothing that is no text."""
    null = series.isna().to_numpy()
    texts = [_read_string(value) for value in series]
    cells = _parse(pa.array(texts, type=pa.string()), "datetime")
    return Cells(cells.values, null, ~null & (cells.null | cells.bad))


def _parse(text: pa.StringArray, kind: str) -> Cells:
    null = _mask(pc.is_null(text))
    if kind == "boolean":
        lower = pc.utf8_lower(text)
        bad = ~null & ~_mask(pc.is_in(lower, pa.array(["true", "false"])))
        return Cells(_mask(pc.fill_null(pc.equal(lower, "true"), False)), null, bad)
    if kind == "datetime":
        times = _cast(text, pa.timestamp("us"))
        return Cells(times.to_numpy(zero_copy_only=False), null, ~null & _mask(pc.is_null(times)))
    if kind == "integer":
        try:
            whole = text.cast(pa.int64())
        except pa.ArrowInvalid:
            return _parse_numbers(text, null, "integer")
        is_hex = bool(pc.any(pc.match_substring(text, "x", ignore_case=True)).as_py())  # Arrow reads 0x1F as 31
        return _parse_numbers(text, null, kind) if is_hex else Cells(_fill(whole, 0), null, np.zeros(len(null), bool))
    return _parse_numbers(text, null, "number")


def _parse_numbers(text: pa.StringArray, null: Mask, kind: str) -> Cells:
    """Read text as float64, or as whole numbers of it; integers too large for float64 are read for themselves."""
    found = _cast(text, pa.float64())
    bad = ~null & _mask(pc.is_null(found))
    numbers = _fill(found, math.nan)
    cells = Cells(numbers, np.isnan(numbers) & ~bad, bad) if kind == "number" else _round_whole(numbers)
    cells.null, cells.bad = cells.null & ~bad, cells.bad | bad
    for at in np.flatnonzero(np.abs(numbers) >= _EXACT).tolist():
        literal = text[at].as_py()
        if literal.lstrip("+-").isdigit():
            value = int(literal) if math.isfinite(numbers[at]) else None
            exact = value is not None and (_READERS[kind][0])(value) is not None
            cells.bad[at] = not exact
            cells.values[at] = value if exact else 0
    return cells


def _cast(text: pa.StringArray, to: pa.DataType) -> pa.Array:
    """Cast text by Arrow's strict grammar; what does not keep it becomes null. A clean column is cast at once."""
    try:
        return text.cast(to)
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, to)
        half = len(text) // 2
        return pa.concat_arrays([_cast(text[:half], to), _cast(text[half:], to)])


def _fill(array: pa.Array, value: float) -> Any:
    return np.array(pc.fill_null(array, value))  # a copy: Arrow's own memory cannot be written


def _mask(array: pa.Array) -> Mask:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=bool)
