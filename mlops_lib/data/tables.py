"""Tables in and out: Parquet and CSV, whole or in batches, written atomically and fingerprinted in full.

A file is read whole or refused with the reason: cut in half, empty, or without a column that is needed. A table is
written to a temporary file, synced and renamed, so nobody ever sees half of it. A CSV is UTF-8 with commas and a
header; its batches are text, for a contract to read: the type of its first rows says nothing of the others.

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlops_lib.data import reads
from mlops_lib.data.csv_text import read_csv_batches, read_header
from mlops_lib.errors import (
    GateError,
    NotFoundError,
    QualityError,
    TableError,
    WriteError,
)

BATCH_ROWS = 65_536
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


def read_table(
    paths: Path | str | Sequence[Path], *, columns: Sequence[str] | None = None, required: Iterable[str] = ()
) -> pd.DataFrame:
    """Read one Parquet or CSV file, or several of one kind one below the other.

    Parameters
    ----------
    paths : path or sequence of paths
    columns : sequence of str, optional
        Read only these (Parquet).
    required : iterable of str
        Columns without which the table is refused.

    Returns
    -------
    DataFrame of shape (n_rows, n_columns)

    Raises
    ------
    NotFoundError, TableError, QualityError
        Each names the file. Nothing was changed.
    """
    several = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not several:
        raise QualityError("no_rows", what="an empty list of tables")
    needed = [*required, *(columns or ())]
    frames: list[pd.DataFrame] = []
    for path in several:
        raise_for_columns(path, needed)
        table = pa.Table.from_batches(list(read_batches(path, columns=columns)))
        frames.append((_infer_types(table) if path.suffix == ".csv" else table).to_pandas())
    return pd.concat(frames, ignore_index=True)


def raise_for_columns(name: Path | str, needed: Iterable[str], have: Sequence[str] | None = None) -> None:
    """Raise unless a table has every column in ``needed``, and none of its columns twice.

    Parameters
    ----------
    name : path or str
        A file, whose header is read, or what messages call the table.
    needed : iterable of str
    have : sequence of str, optional
        The columns of a table that is no file.

    Raises
    ------
    TableError
    """
    have = read_schema(name).names if have is None else have
    missing = tuple(dict.fromkeys(column for column in needed if column not in have))
    if missing:
        raise TableError("columns", path=name, missing=missing, columns=tuple(have))
    repeated = tuple(dict.fromkeys(column for column in have if list(have).count(column) > 1))
    if repeated:
        raise TableError("repeated_columns", path=name, columns=repeated)


def read_batches(
    path: Path | str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a table as Arrow batches of at most ``batch_rows`` rows, in order and in constant memory.

    Batches of a CSV hold text, null where a field is empty and not quoted, and say so in their schema's metadata.

    Raises
    ------
    NotFoundError, TableError
        Before the first batch for a missing, cut or empty file; later for a damaged row group, bytes that are no text
        and a row of a CSV that does not fit its header.
    """
    path = Path(path)
    n_rows = 0
    with _translate_read_errors(path):
        reads.note("file", str(path.resolve()), lambda: fingerprint_file(path))
        for batch in _batches(path, columns, batch_rows):
            if batch.num_rows:
                n_rows += batch.num_rows
                yield batch
    if n_rows == 0:
        raise TableError("no_rows", path=path)


def count_rows(path: Path | str) -> int | None:
    """Return the number of rows that a Parquet file's footer states, or None for a CSV file."""
    path = Path(path)
    with _translate_read_errors(path):
        return int(pq.read_metadata(path).num_rows) if path.suffix == ".parquet" else None


def _batches(path: Path, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
    names = list(columns) if columns is not None else None
    if path.suffix == ".parquet":
        # Buffered: a column of a large row group is not read as a whole, nor kept when its row group is done.
        options: dict[str, Any] = {"buffer_size": 2**17, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(path, **options) as file:
            yield from file.iter_batches(batch_size=batch_rows, columns=names)
    else:
        yield from read_csv_batches(path, names)


def _infer_types(table: pa.Table) -> pa.Table:
    """Give each column of text the one type that all its values have; without a contract there is nothing better."""
    for index, name in enumerate(table.column_names):
        text = table.column(index)
        missing = pc.is_in(text, pa.array(["", "NA", "N/A", "NaN", "nan", "null", "NULL"]))
        values = pc.if_else(missing, None, text)
        if bool(pc.any(pc.match_substring_regex(values, "^-?0[0-9xX]")).as_py()):  # 007 is a name, not a number
            continue
        for kind in (pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us")):
            with contextlib.suppress(pa.ArrowInvalid):
                table = table.set_column(index, name, values.cast(kind))
                break
    return table.replace_schema_metadata(None)


def read_schema(path: Path | str) -> pa.Schema:
    """Return names and types of a file's columns, by reading its header only."""
    path = Path(path)
    with _translate_read_errors(path):
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        return pa.schema([(name, pa.string()) for name in read_header(path)])


@contextlib.contextmanager
def _translate_read_errors(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say of a file into our errors."""
    if path.suffix not in (".parquet", ".csv"):
        raise TableError("file", path=path, reason=f"its name ends in '{path.suffix}', not .parquet or .csv")
    if not path.is_file():
        siblings = tuple(sorted(p.name for p in path.parent.glob(f"*{path.suffix}")))
        raise NotFoundError("table", path=path, siblings=siblings)
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0].rstrip(".")
        if "straddling" in reason:
            reason = "a row is longer than 1 MB, or a quote is opened and never closed"
        raise TableError("file", path=path, reason=reason) from error


def fingerprint_file(path: Path | str) -> str:
    """Return ``sha256:`` and the SHA-256 of the file's bytes, all of them."""
    with reads.ours(), Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


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


def split_by_time(frame: pd.DataFrame, column: str, *, test_share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split at a moment: earlier rows to train, the last ``test_share`` (0 to 1) of the time span to test.

    Rows are never shuffled: what is tested always happened after everything that was trained on.

    Raises
    ------
    TableError
        If a row has no time, or all rows have the same: none is left out in silence.
    """
    times = frame[column]
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
