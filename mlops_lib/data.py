"""Tables in and out: Parquet and CSV, whole or in batches, written atomically and fingerprinted in full.

A file is read whole or refused with the reason: cut in half, empty, or without a column that is needed. A table is
written to a temporary file, synced and renamed, so nobody ever sees half of it.

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
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mlops_lib import reads
from mlops_lib.errors import (
    EmptyTableError,
    MissingColumnsError,
    MlopsError,
    NoRowsError,
    TableFileError,
    TableNotFoundError,
    TimeSplitError,
    WriteRefusedError,
)

BATCH_ROWS = 65_536
# With checksums: without them, changed bytes in a page of numbers are read as other numbers.
PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success sync it and rename it to ``path``, on failure remove it.

    Raises
    ------
    WriteRefusedError
        If the folder is not writable or the disk is full. ``path`` is as it was.
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp makes it private; a table is for the team
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        if isinstance(error, MlopsError):  # the body's own refusal, already explained
            raise
        raise WriteRefusedError(path, error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108


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
    TableNotFoundError, TableFileError, EmptyTableError, MissingColumnsError, NoRowsError
        Each names the file. Nothing was changed.
    """
    several = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not several:
        raise NoRowsError("an empty list of tables")
    needed = [*required, *(columns or ())]
    frames: list[pd.DataFrame] = []
    for path in several:
        raise_for_columns(path, needed)
        frames.append(pa.Table.from_batches(list(read_batches(path, columns=columns))).to_pandas())
    return pd.concat(frames, ignore_index=True)


def raise_for_columns(path: Path, needed: Iterable[str]) -> None:
    """Raise ``MissingColumnsError`` unless the file has every column in ``needed``, by reading its header only."""
    have = _columns(path)
    missing = tuple(dict.fromkeys(column for column in needed if column not in have))
    if missing:
        raise MissingColumnsError(path, missing, tuple(have))


def read_batches(
    path: Path | str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a table as Arrow batches of at most ``batch_rows`` rows, in order and in constant memory.

    Raises
    ------
    TableNotFoundError, TableFileError, EmptyTableError
        Before the first batch for a missing, cut or empty file; later for a damaged row group.
    """
    path = Path(path)
    n_rows = 0
    with _explained(path):
        reads.note("file", str(path.resolve()), fingerprint_file(path))
        for batch in _batches(path, columns, batch_rows):
            if batch.num_rows:
                n_rows += batch.num_rows
                yield batch
    if n_rows == 0:
        raise EmptyTableError(path)


def count_rows(path: Path | str) -> int | None:
    """Return the number of rows that a Parquet file's footer states, or None for a CSV file."""
    path = Path(path)
    with _explained(path):
        return int(pq.read_metadata(path).num_rows) if path.suffix == ".parquet" else None


def _batches(path: Path, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
    names = list(columns) if columns is not None else None
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(batch_size=batch_rows, columns=names)
    else:
        convert = pacsv.ConvertOptions(include_columns=names, strings_can_be_null=True)
        with pacsv.open_csv(path, convert_options=convert) as reader:
            for field in reader.schema:
                if pa.types.is_binary(field.type):
                    raise pa.ArrowInvalid(f"column '{field.name}' is not UTF-8 text")
            yield from reader


def _columns(path: Path) -> list[str]:
    with _explained(path):
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        with pacsv.open_csv(path) as reader:
            return list(reader.schema.names)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say of a file into our errors."""
    if path.suffix not in (".parquet", ".csv"):
        raise TableFileError(path, f"its name ends in '{path.suffix}', not .parquet or .csv")
    if not path.is_file():
        raise TableNotFoundError(path, tuple(sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))))
    try:
        yield
    except pa.ArrowInvalid as error:
        raise TableFileError(path, str(error).splitlines()[0].rstrip(".")) from error
    except OSError as error:
        raise TableFileError(path, (error.strerror or str(error)).splitlines()[0].rstrip(".")) from error


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


def split_by_time(frame: pd.DataFrame, column: str, *, test_share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split at a moment: earlier rows to train, the last ``test_share`` (0 to 1) of the time span to test.

    Rows are never shuffled: what is tested always happened after everything that was trained on.

    Raises
    ------
    TimeSplitError
        If a row has no time, or all rows have the same: none is left out in silence.
    """
    times = frame[column]
    if not 0 < test_share < 1:
        raise TimeSplitError(column, f"test_share is {test_share}, needs a number between 0 and 1")
    if times.isna().any():
        raise TimeSplitError(column, f"{times.isna().sum()} of {len(times)} rows have no time")
    if times.nunique() < 2:
        raise TimeSplitError(column, f"its {len(times)} rows have {times.nunique()} different times, at least 2 needed")
    moment = times.min() + (times.max() - times.min()) * (1 - test_share)
    return frame[times <= moment], frame[times > moment]
