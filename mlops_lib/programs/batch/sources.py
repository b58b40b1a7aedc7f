"""Where rows come from: a Parquet or CSV file, a folder of Parquet files, a SQL table or query.

All of them give Arrow batches of one schema, in one order, as often as asked, and a fingerprint of exactly these bytes;
a file that changes in between is refused. A SQL table is read once, through a server-side cursor in the order of its
keys, into a temporary file that has no name and so cannot be left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import sqlalchemy as sa

from mlops_lib import data
from mlops_lib.errors import BatchError, TableError
from mlops_lib.programs.batch import sql
from mlops_lib.tracking import store


class Source(Protocol):
    """A table that can be read in batches, more than once."""

    name: str

    @property
    def n_rows(self) -> int | None:
        """Rows in all, where that is known without reading them."""

    def fingerprint(self) -> str:
        """Return the hash of all bytes."""

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most ``data.BATCH_ROWS`` rows."""

    def raise_for_columns(self, needed: Sequence[str]) -> None:
        """Raise unless each needed column is there, once."""

    def raise_if_changed(self) -> None:
        """Raise ``BatchError`` if the bytes are no longer those of the fingerprint."""


@contextlib.contextmanager
def open_source(address: Path | str, keys: Sequence[str]) -> Iterator[Source]:
    """Open a path, or ``URL::table`` or ``URL::select …`` of a database, to be read in batches.

    Raises
    ------
    TableError, NotFoundError
        Nothing was written.
    """
    parts = split_address(address)
    if parts is None:
        yield FileSource(Path(address))
        return
    with data.translate_write_errors():
        spool = tempfile.TemporaryFile(prefix="mlops-")  # noqa: SIM115 - closed below
    with spool:
        yield SqlSource(*parts, keys, spool)


def split_address(address: Path | str) -> tuple[str, str] | None:
    """Return URL and table of ``URL::table``, or None for a path.

    >>> split_address("sqlite:////tmp/a.db::arrivals")
    ('sqlite:////tmp/a.db', 'arrivals')
    """
    text = str(address)
    scheme, mark, rest = text.partition("://")
    if isinstance(address, Path) or not mark:
        return None
    host, slash, tail = rest.partition("/")  # a host may hold '::' too: [::1]
    path, separator, table = tail.partition("::")
    if not (slash and separator and table.strip()):
        raise TableError("address", address=store.without_password(text))
    return f"{scheme}://{host}/{path}", table.strip()


# --- files -------------------------------------------------------------------------------------------------------


class FileSource:
    """A Parquet or CSV file, or the Parquet files below a folder; ``key=value`` in a path is a column (Hive)."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.raise_for_columns(())
        self._marks = _list_marks(path)
        self._fingerprint = ""

    @property
    def n_rows(self) -> int | None:
        """As the footers of Parquet files say."""
        return data.count_rows(self.path)

    def fingerprint(self) -> str:
        """Hash the file, or the names and files of a folder."""
        self._fingerprint = data.fingerprint_file(self.path)
        return self._fingerprint

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the table from its beginning."""
        return data.read_batches(self.path, columns=columns, batch_rows=data.BATCH_ROWS)

    def raise_for_columns(self, needed: Sequence[str]) -> None:
        """Look at every file's header."""
        data.raise_for_columns(self.path, needed)

    def raise_if_changed(self) -> None:
        """Compare names, sizes, times and inodes, then the hash: who writes through a map moves no time."""
        now = _list_marks(self.path)
        changed = [path for path in {**self._marks, **now} if self._marks.get(path) != now.get(path)]
        if changed:
            raise BatchError("input_changed", path=changed[0])
        if data.fingerprint_file(self.path) != self._fingerprint:
            raise BatchError("input_changed", path=self.path)


def _list_marks(path: Path) -> dict[Path, tuple[int, int, int, int]]:
    """Return what tells a file, or each file of a folder, from what it may become."""
    stats = {file: file.stat() for file in data.list_files(path) if file.exists()}
    return {file: (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for file, stat in stats.items()}


# --- databases ---------------------------------------------------------------------------------------------------


# Kinds that are kept; all others become text.
_TYPES = ("null", "boolean", "integer", "floating", "decimal", "string", "timestamp", "date")
_FETCH_ROWS = 1000  # rows of a database at a time: their values may be long


class SqlSource:
    """A table or query of a database, read once into a spool, in the order of its keys.

    Values keep their kind: whole numbers stay whole, NUMERIC keeps its digits as in Parquet. A column that holds values
    of several kinds, as SQLite allows, is read as text, so that the contract sees it for what it is. ``pd.read_sql``
    with Arrow's types would make text of dates and of columns without values, and of bytes an error.
    """

    def __init__(self, url: str, table: str, keys: Sequence[str], spool: IO[bytes]) -> None:
        self.name = sql.name_table(url, table)
        self._spool, self._rows = spool, 0
        self._types: dict[str, pa.DataType] = {}
        with sql.connected(url, self.name, must_exist=True) as connection:
            everything = f"select * from {sql.quote(connection, table)} as mlops_input"
            names = list(connection.execute(sa.text(f"{everything} where 1 = 0")).keys())
            data.raise_for_columns(self.name, keys, names)
            order = ", ".join(sql.quote(connection, key) for key in keys)
            query = sa.text(f"{everything} order by {order}" if keys else everything)
            streamed = connection.execution_options(stream_results=True, yield_per=_FETCH_ROWS).execute(query)
            for rows in streamed.partitions(_FETCH_ROWS):  # SQLite has no server-side cursor and would give one row
                self._write(names, rows)
        if not self._rows:
            raise TableError("no_rows", path=self.name)

    def _write(self, names: Sequence[str], rows: Sequence[Any]) -> None:
        columns = [_to_arrow(values) for values in zip(*rows, strict=True)]
        batch = pa.record_batch(columns, names=list(names))
        for field in batch.schema:
            self._types[field.name] = _unify(self._types.get(field.name, pa.null()), field.type)
        with data.translate_write_errors(), pa.ipc.new_stream(self._spool, batch.schema) as writer:
            writer.write_batch(batch)  # a stream each, since types may differ
        self._rows += batch.num_rows

    @property
    def n_rows(self) -> int | None:
        """All that were read."""
        return self._rows

    def fingerprint(self) -> str:
        """Hash the values as they will be scored."""
        digest = hashlib.sha256(repr(pa.schema(list(self._types.items()))).encode())
        for batch in self.batches():
            digest.update(batch.serialize())
        return f"rows:{digest.hexdigest()}"

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the spool from its beginning."""
        wanted = pa.schema([(name, self._types[name]) for name in (self._types if columns is None else columns)])
        return data.join_batches(self._read(wanted), data.BATCH_ROWS)

    def _read(self, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
        self._spool.seek(0)
        left = self._rows
        while left:
            with pa.ipc.open_stream(self._spool) as reader:
                for batch in reader:
                    left -= batch.num_rows
                    arrays = [_cast(batch.column(field.name), field.type) for field in wanted]
                    yield pa.record_batch(arrays, schema=wanted)

    def raise_for_columns(self, needed: Sequence[str]) -> None:
        """Look at the names."""
        data.raise_for_columns(self.name, needed, list(self._types))

    def raise_if_changed(self) -> None:
        """Nothing can change: what was read is ours."""


def _to_arrow(values: Sequence[Any]) -> pa.Array:
    try:
        array = pa.array([None if value != value else value for value in values])  # noqa: PLR0124 - a decimal NaN
    except (pa.ArrowException, OverflowError):
        return _to_text(values)
    return array if any(getattr(pa.types, f"is_{name}")(array.type) for name in _TYPES) else _to_text(values)


def _to_text(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of both; text where that is neither's."""
    fields = [pa.schema([("x", kind)]) for kind in (one, other)]
    with contextlib.suppress(pa.ArrowException):
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    return pa.string()


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return _to_text(array.to_pylist()) if kind == pa.string() != array.type else array.cast(kind)
