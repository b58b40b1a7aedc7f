"""Tables written atomically, fingerprinted in full, and split in time.

A table is written to a temporary file, synced and renamed, so nobody ever sees half of it.

>>> from mlops_lib import data
>>> import pandas as pd, pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "t.parquet"
>>> _ = data.write_table(pd.DataFrame({"x": [1.0, 2.0]}), path)
>>> data.read_table(path).shape
(2, 1)
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlops_lib.errors import GateError, TableError, WriteError

# With checksums: without them, changed bytes in a page of numbers are read as other numbers.
PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success sync it and rename it to ``path``, on failure remove it.

    Raises
    ------
    WriteError
        If the folder is not writable or the disk is full. ``path`` is as it was.
    """
    path = Path(path)
    temporary = ""
    try:
        with translate_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp makes it private; a table is for the team
            os.replace(temporary, path)  # noqa: PTH105
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108


@contextlib.contextmanager
def translate_write_errors(path: Path | None = None) -> Iterator[None]:
    """Turn what the system says of writing ``path``, or a temporary file without a name, into ``WriteError``."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        raise WriteError(path=path or Path(tempfile.gettempdir()) / "temporary file", reason=reason) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_table(frame: pd.DataFrame, path: Path | str) -> Path:
    """Write ``frame`` (without its index) as Parquet, atomically; return ``path``."""
    path = Path(path)
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file, **PARQUET)
    return path


def fingerprint_frame(frame: pd.DataFrame) -> str:
    """Return ``table:`` and the SHA-256 of a table's full content: every row, every column, names, types and order.

    MLflow's own dataset digest reads the first 10,000 rows and drops dates and booleans; this one reads all of it. Two
    frames have one fingerprint when they have the same columns in the same order, of the same kinds and values.
    """
    digest = hashlib.sha256()
    for name in frame.columns:
        column = frame[name]
        values = pd.util.hash_pandas_object(column, index=False, categorize=True).to_numpy()
        digest.update(f"{name}\0{_kind(column)}\0{len(column)}\0".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return f"table:{digest.hexdigest()}"


def _kind(column: pd.Series[Any]) -> str:
    return "string" if pd.api.types.is_string_dtype(column.dtype) else str(column.dtype)


def fingerprint_function(function: Any) -> str:
    """Return ``sha256:`` and the SHA-256 of a function's source text; what that cannot cover is refused.

    Raises
    ------
    GateError
        For what is no plain function, depends on variables of a function around it, or has no source to be read.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function):
        raise GateError("source", function=name, reason="it is no plain function")
    if function.__closure__:
        raise GateError("source", function=name, reason="it depends on variables of the function that made it")
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise GateError("source", function=name, reason="its source cannot be read") from error
    return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"


def fingerprint_class(kind: type) -> str:
    """Return ``sha256:`` and the SHA-256 of the source text of a class and of what it inherits.

    Raises
    ------
    GateError
        For a class whose source cannot be read.
    """
    try:
        sources = [inspect.getsource(each) for each in kind.__mro__ if each.__module__ not in ("builtins", "typing")]
    except (OSError, TypeError) as error:
        raise GateError("source", function=kind.__qualname__, reason="its source cannot be read") from error
    return f"sha256:{hashlib.sha256(''.join(sources).encode()).hexdigest()}"


def hash_rows(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Return 64 bits for each row's content, to find the same rows again in another table.

    Columns count in their order, not by name. Numbers are compared as floats where that loses nothing, so that the same
    row read back as integers is the same; missing values are alike. The hash is not salted: whoever can guess a row can
    find out whether it is there.
    """
    kinds = {name: _plain(frame[name]) for name in frame.columns}
    return np.asarray(pd.util.hash_pandas_object(pd.DataFrame(kinds), index=False), dtype=np.uint64)


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return pd.to_datetime(column, utc=True).astype("datetime64[ns, UTC]")
    if pd.api.types.is_numeric_dtype(column.dtype):
        floats = column.astype("Float64").astype("float64") + 0.0  # minus zero is zero
        return floats if floats.abs().max() <= 2**53 or not len(floats) else column
    return column.astype("str")


def parse_times(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column's texts as times in UTC, as a CSV holds them; a column that is no text stays as it is.

    Raises
    ------
    TableError
        A text is no time.
    """
    if not pd.api.types.is_string_dtype(column.dtype):
        return column
    times = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
    wrong = column[times.isna() & column.notna()]
    if len(wrong):
        reason = f"{len(wrong)} of {len(column)} rows hold no ISO 8601 time, such as {str(wrong.iloc[0])[:40]!r}"
        raise TableError("time", column=column.name, reason=reason)
    return times


def read_times(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column of times, or of their texts, as moments in UTC; one without a zone counts as UTC.

    Raises
    ------
    TableError
        A text is no time.
    """
    return pd.to_datetime(parse_times(column), utc=True)


def split_by_time(frame: pd.DataFrame, column: str, *, test_share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split at a moment: earlier rows to train, the last ``test_share`` (0 to 1) of the time span to test.

    Rows are never shuffled: what is tested always happened after everything that was trained on.

    Raises
    ------
    TableError
        If a row has no time, or all rows have the same: none is left out in silence.
    """
    times = parse_times(frame[column])
    if not 0 < test_share < 1:
        raise TableError("time", column=column, reason=f"test_share is {test_share}, needs a number between 0 and 1")
    if times.isna().any():
        raise TableError("time", column=column, reason=f"{times.isna().sum()} of {len(times)} rows have no time")
    if times.nunique() < 2:
        raise TableError(
            "time",
            column=column,
            reason=f"its {len(times)} rows have {times.nunique()} different times, at least 2 needed",
        )
    moment = times.min() + (times.max() - times.min()) * (1 - test_share)
    return frame[times <= moment], frame[times > moment]
