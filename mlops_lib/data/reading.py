"""Tables read as they are: a Parquet or CSV file, or a folder of Parquet files, whole or in batches.

A table is read whole or refused with the reason: cut in half, empty, or without a column that is needed. A CSV is UTF-8
with commas and a header; its batches are text, for a contract to read: the type of its first rows says nothing of the
others. So are the columns that stand in a folder's names (``branch=01/part.parquet``). Notebooks, batches, Spark and
monitoring get their rows from here, and their values by :func:`to_frame`.

>>> from mlops_lib import data
>>> data.read_table("data/arrivals/2013-01.parquet", columns=["origin"])  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlops_lib.data import reads
from mlops_lib.data.csv_text import read_csv_batches, read_header
from mlops_lib.errors import NotFoundError, QualityError, TableError

BATCH_ROWS = 65_536
BATCH_BYTES = 2**25  # of a batch in memory; a row that is longer is a batch of its own
_TEXT = {b"format": b"csv"}  # metadata of a column that is text only because its file has no types
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8, "BYTE_ARRAY": 8}
_PLAIN = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
_PLAIN |= {pa.large_binary(): pa.binary(), pa.binary_view(): pa.binary()}
# Integers and booleans with gaps: as NumPy's floats they would lose their kind, and beyond 2**53 their value.
_WITH_GAPS = {getattr(pa, f"{u}int{n}")(): f"{u.upper()}Int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
_WITH_GAPS[pa.bool_()] = "boolean"


# --- whole -------------------------------------------------------------------------------------------------------


def read_table(
    paths: Path | str | Sequence[Path], *, columns: Sequence[str] | None = None, required: Iterable[str] = ()
) -> pd.DataFrame:
    """Read one table (see :func:`read_batches`), or several of one kind one below the other.

    Parameters
    ----------
    paths : path or sequence of paths
    columns : sequence of str, optional
        Read only these.
    required : iterable of str
        Columns without which the table is refused.

    Returns
    -------
    DataFrame of shape (n_rows, n_columns)
        In the types of :func:`to_frame`. Text of a CSV or of a folder's names gets the one type that all its values
        have.

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
        frames.append(to_frame(_infer_types(pa.Table.from_batches(list(read_batches(path, columns=columns))))))
    return pd.concat(frames, ignore_index=True)


def to_frame(table: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """Return an Arrow table as a DataFrame with the same values: the one conversion, for notebooks and scoring alike.

    Integers and booleans with gaps are pandas' nullable types, dates are times at midnight, decimals are whole numbers
    or the nearest floats where that loses no digit. What pandas once wrote as an index is a column like any other.
    """
    table = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    columns = [_undo_decimals(_storage(column)) for column in table.columns]
    gaps = [column.null_count > 0 and column.type in _WITH_GAPS for column in columns]
    plain = {str(at): column for at, column in enumerate(columns) if not gaps[at]}
    frame: pd.DataFrame = pa.table(plain).to_pandas(date_as_object=False)
    for at in np.flatnonzero(gaps).tolist():
        dtype: Any = pd.api.types.pandas_dtype(_WITH_GAPS[columns[at].type])
        frame.insert(at, str(at), pd.Series(dtype.__from_arrow__(columns[at])))
    return frame.set_axis(table.column_names, axis=1)


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values of an extension type, such as those of UUIDs."""
    return column.cast(column.type.storage_type) if isinstance(column.type, pa.BaseExtensionType) else column


def _undo_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals as int64, or as the nearest floats, if all their digits come back from them."""
    if not pa.types.is_decimal(column.type):
        return column
    if column.type.scale <= 0:
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(pa.int64())
    floats = column.cast(pa.string()).cast(pa.float64())
    digits_fit = column.type.precision <= 15
    return floats if digits_fit or all(map(survives, column.to_pylist(), floats.to_pylist())) else column


def survives(value: Decimal | None, number: float | None) -> bool:
    """Return whether a decimal is what people write for its nearest float.

    >>> survives(Decimal("0.10"), 0.1), survives(Decimal("0.10000000000000000001"), 0.1)
    (True, False)
    """
    return value is None or number is None or Decimal(repr(number)) == value


def _infer_types(table: pa.Table) -> pa.Table:
    """Give columns that are text for want of types the one type that all their values have, if that loses nothing."""
    for index, field in enumerate(table.schema):
        if field.metadata != _TEXT:
            continue
        text = table.column(index)
        missing = pc.is_in(text, pa.array(["", "NA", "N/A", "NaN", "nan", "null", "NULL"]))
        values = pc.if_else(missing, None, text)
        # 007 is a name, and so is a whole number of 16 digits among others that int64 does not hold.
        kinds = [] if _any(values, "^-?0[0-9xX]") else [pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us")]
        for kind in kinds:
            if kind == pa.float64() and _any(values, "^[+-]?[0-9]{16,}$"):
                break
            with contextlib.suppress(pa.ArrowInvalid):
                table = table.set_column(index, field.name, values.cast(kind))
                break
    return table


def _any(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


# --- names -------------------------------------------------------------------------------------------------------


def list_files(path: Path) -> list[Path]:
    """Return a table's files: itself, or the Parquet files below a folder in the order of their names.

    Hidden ones and those of ``_…`` are somebody's unfinished work.
    """
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if is_parquet(file)
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]
    if not files:
        raise NotFoundError("table", path=path / "*.parquet", siblings=tuple(sorted(p.name for p in path.iterdir())))
    return files


def is_parquet(path: Path) -> bool:
    """Return whether a name ends in ``.parquet``, in letters of any case."""
    return path.suffix.lower() == ".parquet"


def read_schema(path: Path | str) -> pa.Schema:
    """Return names and types of a table's columns by reading headers only; a folder's files must fit one another."""
    path = Path(path)
    schemas = [(file, _read_header(file, path)) for file in list_files(path)]
    first, unified = schemas[0]
    for file, schema in schemas[1:]:
        try:
            unified = pa.unify_schemas([unified, schema], promote_options="permissive")
        except pa.ArrowException as error:
            reason = f"its columns do not fit those of '{first.name}': {str(error).splitlines()[0].rstrip('.')}"
            raise TableError("file", path=file, reason=reason) from error
    return unified


def _read_header(file: Path, root: Path) -> pa.Schema:
    with _translate_read_errors(file):
        if not is_parquet(file):
            return pa.schema([pa.field(name, pa.string(), metadata=_TEXT) for name in read_header(file)])
        fields = [pa.field(field.name, _PLAIN.get(field.type, field.type)) for field in pq.read_schema(file)]
        own = [field.name for field in fields]
        names = [name for name in read_partition(file, root) if name not in own]
        return mark_text(pa.schema([*fields, *(pa.field(name, pa.string()) for name in names)]), names)


def read_partition(file: Path, root: Path) -> dict[str, str | None]:
    """Return what stands as ``key=value`` in the names of the folders between a table's root and one of its files."""
    pairs = [part.partition("=") for part in file.relative_to(root).parts[:-1] if "=" in part]
    return {unquote(name): None if value == _NULL_PARTITION else unquote(value) for name, _, value in sorted(pairs)}


def mark_text(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Return a schema in which these columns are text for want of types: a contract reads them as their kinds."""
    return pa.schema([field.with_metadata(_TEXT) if field.name in names else field for field in schema])


def is_text(field: pa.Field) -> bool:
    """Return whether a column is text only because its file has no types."""
    return bool(field.metadata == _TEXT)


def raise_for_columns(name: Path | str, needed: Iterable[str], have: Sequence[str] | None = None) -> None:
    """Raise unless a table has every column in ``needed``, and none of its columns twice.

    Parameters
    ----------
    name : path or str
        A file or folder, whose headers are all read, or what messages call the table.
    needed : iterable of str
    have : sequence of str, optional
        The columns of a table that is no file.

    Raises
    ------
    TableError
    """
    needed, root = list(needed), Path(name)
    tables = [(name, have)] if have is not None else [(f, _read_header(f, root).names) for f in list_files(root)]
    for table, names in tables:
        missing = tuple(dict.fromkeys(column for column in needed if column not in names))
        if missing:
            raise TableError("columns", path=table, missing=missing, columns=tuple(names))
        repeated = tuple(dict.fromkeys(column for column in names if list(names).count(column) > 1))
        if repeated:
            raise TableError("repeated_columns", path=table, columns=tuple(map(repr, repeated)))


def count_rows(path: Path | str) -> int | None:
    """Return the number of rows that the footers of Parquet files state, or None for a CSV file."""
    n_rows = 0
    for file in list_files(Path(path)):
        with _translate_read_errors(file):
            if not is_parquet(file):
                return None
            n_rows += int(pq.read_metadata(file).num_rows)
    return n_rows


def fingerprint_file(path: Path | str) -> str:
    """Return ``sha256:`` and the SHA-256 of a file's bytes, all of them; ``folder:`` and that of a folder's files."""
    path = Path(path)
    if path.is_dir():
        lines = [f"{file.relative_to(path)} {fingerprint_file(file)}\n" for file in list_files(path)]
        return f"folder:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    with reads.ours(), path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


# --- in batches --------------------------------------------------------------------------------------------------


def read_batches(
    path: Path | str, *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a table as Arrow batches of one schema, in order and in constant memory.

    A batch has at most ``batch_rows`` rows and, but for a row that is longer, ``BATCH_BYTES``. Of a CSV all columns are
    text, null where a field is empty and not quoted; of a folder those that stand in its names. Both are marked as such
    (:func:`is_text`).

    Raises
    ------
    NotFoundError, TableError
        Before the first batch for a missing, cut or empty file; later for a damaged row group, bytes that are no text
        and a row of a CSV that does not fit its header.
    """
    path = Path(path)
    schema = read_schema(path)
    wanted = pa.schema([schema.field(name) for name in (schema.names if columns is None else columns)])
    reads.note("file", str(path.resolve()), lambda: fingerprint_file(path))
    n_rows = 0
    for batch in join_batches(_read_files(path, wanted, batch_rows), batch_rows):
        n_rows += batch.num_rows
        yield batch
    if n_rows == 0:
        raise TableError("no_rows", path=path)


def join_batches(batches: Iterator[pa.RecordBatch], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Join small batches: a prediction costs nearly as much for ten rows as for a thousand."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        n_rows, n_bytes = sum(b.num_rows for b in waiting), sum(b.nbytes for b in waiting)
        if waiting and (n_rows + batch.num_rows > batch_rows or n_bytes + batch.nbytes > BATCH_BYTES):
            yield pa.concat_batches(waiting)
            waiting = []
        if batch.num_rows:
            waiting.append(batch)
    if waiting:
        yield pa.concat_batches(waiting)


def _read_files(root: Path, wanted: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a table's files with the columns and types of one schema."""
    for file in list_files(root):
        with _translate_read_errors(file):
            if not is_parquet(file):
                for batch in read_csv_batches(file, wanted.names):
                    for start in range(0, batch.num_rows, batch_rows):
                        yield batch.slice(start, batch_rows).cast(wanted)
                continue
            partition = read_partition(file, root)
            for batch in _read_parquet(file, wanted.names, batch_rows):
                own = batch.schema.names
                columns = [
                    batch.column(field.name).cast(field.type)
                    if field.name in own
                    else pa.repeat(pa.scalar(partition.get(field.name), field.type), batch.num_rows)
                    for field in wanted
                ]
                yield pa.record_batch(columns, schema=wanted)


def _read_parquet(path: Path, names: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield pieces of a Parquet file of at most ``BATCH_BYTES``, or of one row.

    Repeated texts stay in their dictionaries until a piece is known to be small: a value that is stored once may stand
    in every row, and a file of 190 kB come to 4 GB.
    """
    footer = pq.read_metadata(path)
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    leaves = [footer.schema.column(at) for at in range(footer.num_columns)]
    repeated = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY"
        and (leaf.path in kinds or "view" not in kinds.get(leaf.path.partition(".")[0], ""))  # or Arrow cannot cast it
    ]
    widest = 1.0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        chunks = zip(leaves, map(group.column, range(footer.num_columns)), strict=True)
        n_bytes = sum(
            max(chunk.total_uncompressed_size, chunk.num_values * (_WIDTHS.get(leaf.physical_type) or leaf.length))
            for leaf, chunk in chunks
        )
        widest = max(widest, n_bytes / max(group.num_rows, 1))
    # Buffered: a column of a large row group is not read as a whole, nor kept when its row group is done.
    options: dict[str, Any] = {"buffer_size": 2**17, "pre_buffer": False, "page_checksum_verification": True}
    with pq.ParquetFile(path, metadata=footer, read_dictionary=repeated, **options) as file:
        for batch in file.iter_batches(max(1, min(batch_rows, int(BATCH_BYTES / widest))), columns=list(names)):
            batch.validate(full=True)  # bytes that are no text, and positions outside their arrays
            sizes = np.cumsum(sum(map(_count_bytes, batch.columns), np.zeros(batch.num_rows, dtype="int64")))
            cuts = np.flatnonzero(np.diff(sizes // BATCH_BYTES)) + 1 if len(sizes) else sizes
            for start, end in zip([0, *cuts], [*cuts, batch.num_rows], strict=True):
                yield batch.slice(start, end - start)


def _count_bytes(column: pa.Array) -> Any:
    """Return how long each row's text is, written out; 0 for what has one length."""
    if isinstance(column, pa.DictionaryArray):
        lengths = _count_bytes(column.dictionary)
        return (
            0
            if np.isscalar(lengths) or not len(lengths)
            else lengths.take(np.asarray(pc.fill_null(column.indices, 0)), mode="clip")
        )
    if isinstance(column.type, pa.ListType):
        ends, lengths = np.asarray(column.offsets), _count_bytes(column.values)
        total = np.concatenate([[0], np.cumsum(lengths)]) if not np.isscalar(lengths) else None
        return 0 if total is None else np.diff(total[ends])
    if pa.types.is_struct(column.type):
        return sum(map(_count_bytes, column.flatten()))
    if any(is_kind(column.type) for is_kind in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string)):
        return np.asarray(pc.fill_null(pc.binary_length(column), 0))
    return 0


@contextlib.contextmanager
def _translate_read_errors(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say of a file into our errors."""
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise TableError("file", path=path, reason=f"its name ends in '{path.suffix}', not .parquet or .csv")
    if not path.is_file():
        siblings = tuple(sorted(p.name for p in path.parent.glob(f"*{path.suffix}")))
        raise NotFoundError("table", path=path, siblings=siblings)
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0].rstrip(".")
        if "straddling" in reason:
            reason = "a row is longer than 16 MB, or a quote is opened and never closed"
        raise TableError("file", path=path, reason=reason) from error
