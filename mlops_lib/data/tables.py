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

import codecs
import contextlib
import hashlib
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
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mlops_lib.data import reads
from mlops_lib.errors import (
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
        with refusing(path):
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
def refusing(path: Path) -> Iterator[None]:
    """Turn what the system says of writing ``path`` into ``WriteError``."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        raise WriteError(path=path, reason=reason) from error


def nameless(folder: Path | None = None) -> Path:
    """Return what messages call a temporary file without a name, in ``folder`` or where the system has them."""
    return (folder or Path(tempfile.gettempdir())) / "temporary file"


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


def raise_for_columns(path: Path, needed: Iterable[str]) -> None:
    """Raise ``TableError`` unless the file has every column in ``needed``, by reading its header only."""
    have = read_schema(path).names
    missing = tuple(dict.fromkeys(column for column in needed if column not in have))
    if missing:
        raise TableError("columns", path=path, missing=missing, columns=tuple(have))


def read_batches(
    path: Path | str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a table as Arrow batches of at most ``batch_rows`` rows, in order and in constant memory.

    Batches of a CSV hold text, null where a field is empty and not quoted, and say so in their schema's metadata.

    Raises
    ------
    NotFoundError, TableError
        Before the first batch for a missing, cut or empty file; later for a damaged row group.
    """
    path = Path(path)
    n_rows = 0
    with _explained(path):
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
    with _explained(path):
        return int(pq.read_metadata(path).num_rows) if path.suffix == ".parquet" else None


def _batches(path: Path, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
    names = list(columns) if columns is not None else None
    if path.suffix == ".parquet":
        # Buffered: a column of a large row group is not read as a whole, nor kept when its row group is done.
        options: dict[str, Any] = {"buffer_size": 2**17, "pre_buffer": False, "page_checksum_verification": True}
        with pq.ParquetFile(path, **options) as file:
            try:
                yield from file.iter_batches(batch_size=batch_rows, columns=names)
            except (pa.ArrowInvalid, OSError) as error:
                raise TableError(
                    "file", path=path, reason=_locate(file, str(error).splitlines()[0].rstrip("."))
                ) from error
    else:
        yield from _csv_batches(path, names)


# --- CSV -----------------------------------------------------------------------------------------------------------


def _csv_batches(path: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    raise_for_encoding(path)
    convert = pacsv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(read_schema(path).names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    with _open_csv(path, convert) as reader:
        for batch in reader:
            yield batch.replace_schema_metadata({"source": "csv"})


@contextlib.contextmanager
def _open_csv(path: Path, convert: pacsv.ConvertOptions) -> Iterator[pacsv.CSVStreamingReader]:
    """Open a CSV; a row with more or fewer fields than the header is an error that says which row it is."""
    ragged: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    try:
        serial = pacsv.ReadOptions(use_threads=False)  # or Arrow does not know which row it reads
        with pacsv.open_csv(path, serial, parse, convert) as reader:
            yield reader
    except pa.ArrowInvalid:
        if not ragged:
            raise
        row = ragged[0]
        found = f"row {row.number} has {row.actual_columns} fields, the header {row.expected_columns}"
        raise TableError("file", path=path, reason=f"{found}; a text that holds commas is written in quotes") from None


def raise_for_encoding(path: Path) -> None:
    """Raise ``TableError`` for a CSV that is not UTF-8 text, or in which a quote is never closed."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes = n_lines = n_quotes = last_quote = 0
    with reads.ours(), path.open("rb") as file:
        while True:
            block = file.read(2**20)
            if not n_bytes and block.startswith(b"PAR1"):
                raise TableError("file", path=path, reason="it holds Parquet, though its name ends in .csv")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at, byte = n_bytes - pending + error.start, error.object[error.start]
                line = n_lines + block[: max(0, error.start - pending)].count(b"\n") + 1
                found = f"byte 0x{byte:02x} at position {at} (line {line}) is not UTF-8"
                raise TableError("file", path=path, reason=f"{found}; save it with that encoding") from None
            if b"\0" in block:
                line = n_lines + block[: block.index(0)].count(b"\n") + 1
                found = f"byte 0x00 at position {n_bytes + block.index(0)} (line {line}) is not UTF-8 text"
                raise TableError("file", path=path, reason=f"{found}; save it with that encoding")
            if not block:
                break
            if b'"' in block:
                last_quote = n_lines + block[: block.rindex(b'"')].count(b"\n") + 1
            n_quotes += block.count(b'"')
            n_lines += block.count(b"\n")
            n_bytes += len(block)
    if n_quotes % 2:
        raise TableError(
            "file", path=path, reason=f"a quote is opened and never closed; the last one stands on line {last_quote}"
        )


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


def _locate(file: pq.ParquetFile, reason: str) -> str:
    """Say which row group and column of a damaged file cannot be read."""
    for group in range(file.num_row_groups):
        for column in file.schema_arrow.names:
            try:
                file.read_row_group(group, columns=[column])
            except (pa.ArrowInvalid, OSError):
                return f"column '{column}' of row group {group + 1} of {file.num_row_groups}: {reason}"
    return reason


def read_schema(path: Path | str) -> pa.Schema:
    """Return names and types of a file's columns, by reading its header only."""
    path = Path(path)
    with _explained(path):
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        return pa.schema([(name, pa.string()) for name in _read_header(path)])


def _read_header(path: Path) -> list[str]:
    # Only the header matters here: rows that do not fit it are told when they are read.
    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    try:
        with pacsv.open_csv(path, parse_options=parse) as reader:
            names = list(reader.schema.names)
    except UnicodeDecodeError:
        names = ["\0"]
    if "\0" in "".join(names):
        raise_for_encoding(path)
    separator = next((mark for mark in ";\t|" if mark in names[0]), "") if len(names) == 1 else ""
    if separator:
        raise TableError(
            "file", path=path, reason=f"its fields are separated by {separator!r} (header {names[0]!r}), not by commas"
        )
    return names


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say of a file into our errors."""
    if path.suffix not in (".parquet", ".csv"):
        raise TableError("file", path=path, reason=f"its name ends in '{path.suffix}', not .parquet or .csv")
    if not path.is_file():
        raise NotFoundError(
            "table", path=path, siblings=tuple(sorted(p.name for p in path.parent.glob(f"*{path.suffix}")))
        )
    try:
        yield
    except pa.ArrowInvalid as error:
        raise TableError("file", path=path, reason=str(error).splitlines()[0].rstrip(".")) from error
    except OSError as error:
        raise TableError(
            "file", path=path, reason=(error.strerror or str(error)).splitlines()[0].rstrip(".")
        ) from error


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
