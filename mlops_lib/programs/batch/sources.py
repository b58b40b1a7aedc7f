"""Where rows come from: a Parquet or CSV file, a folder of Parquet files, a SQL table or query.

All of them give Arrow batches of one schema, in one order, as often as asked, and a fingerprint of exactly these bytes;
a file that changes in between is refused. A SQL table is read once, through a server-side cursor in the order of its
keys, into a temporary file that has no name and so cannot be left behind.
"""

from __future__ import annotations

import contextlib
import decimal
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.dataset as ds
import sqlalchemy as sa

from mlops_lib import data
from mlops_lib.errors import (
    BatchError,
    NotFoundError,
    TableError,
)
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
        yield FolderSource(Path(address)) if Path(address).is_dir() else FileSource(Path(address))
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


def _rebatch(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches: a prediction costs nearly as much for ten rows as for a thousand."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if waiting and sum(b.num_rows for b in waiting) + batch.num_rows > data.BATCH_ROWS:
            yield pa.concat_batches(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield pa.concat_batches(waiting)


# --- files -------------------------------------------------------------------------------------------------------


class FileSource:
    """One Parquet or CSV file."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.raise_for_columns(())
        self._marks = _list_marks(path)
        self._fingerprint = ""

    @property
    def n_rows(self) -> int | None:
        """As a Parquet file's footer says."""
        return data.count_rows(self.path)

    def fingerprint(self) -> str:
        """Hash the file, or the names and files of a folder."""
        self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        return data.fingerprint_file(self.path)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the file from its beginning."""
        yield from _rebatch(data.read_batches(self.path, columns=columns, batch_rows=data.BATCH_ROWS))

    def raise_for_columns(self, needed: Sequence[str]) -> None:
        """Look at the header."""
        data.raise_for_columns(self.path, needed)

    def raise_if_changed(self) -> None:
        """Compare names, sizes, times and inodes, then the hash: who writes through a map moves no time."""
        now = _list_marks(self.path)
        changed = [path for path in {**self._marks, **now} if self._marks.get(path) != now.get(path)]
        if changed:
            raise BatchError("input_changed", path=changed[0])
        if self._hash() != self._fingerprint:
            raise BatchError("input_changed", path=self.path)


class FolderSource(FileSource):
    """Parquet files below a folder, in the order of their names; ``key=value`` in a path is a column (Hive)."""

    def __init__(self, folder: Path) -> None:
        self.path, self.name, self._fingerprint = folder, str(folder), ""
        self._marks = _list_marks(folder)
        if not self._marks:
            siblings = tuple(sorted(p.name for p in folder.iterdir()))
            raise NotFoundError("table", path=folder / "*.parquet", siblings=siblings)
        self._partitions = _read_partitions(folder, list(self._marks))
        schemas = {path: self._read_schema(path) for path in self._marks}
        first, self._schema = next(iter(schemas.items()))
        for path, schema in schemas.items():
            try:
                self._schema = pa.unify_schemas([self._schema, schema], promote_options="permissive")
            except pa.ArrowException as error:
                reason = f"its columns do not fit those of '{first.name}': {str(error).splitlines()[0].rstrip('.')}"
                raise TableError("file", path=path, reason=reason) from error

    @property
    def n_rows(self) -> int | None:
        """As all footers say."""
        return sum(data.count_rows(path) or 0 for path in self._marks)

    def _hash(self) -> str:
        lines = [f"{path.relative_to(self.path)} {data.fingerprint_file(path)}\n" for path in self._marks]
        return f"folder:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read the files one after the other."""
        wanted = self._schema if columns is None else pa.schema([self._schema.field(name) for name in columns])
        yield from _rebatch(self._align(wanted))

    def raise_for_columns(self, needed: Sequence[str]) -> None:
        """Look at every file's header."""
        for path in self._marks:
            data.raise_for_columns(path, needed, self._read_schema(path).names)

    def _read_schema(self, path: Path) -> pa.Schema:
        schema = data.read_schema(path)
        for name, value in self._partitions[path].items():
            if name not in schema.names:
                schema = schema.append(pa.field(name, value.type))
        return schema.remove_metadata()

    def _align(self, wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the batches of all files with the columns and types of one schema."""
        n_rows = 0
        for path in self._marks:
            if not data.count_rows(path):
                continue
            own, partition = data.read_schema(path).names, self._partitions[path]
            names = [name for name in wanted.names if name in own]
            for batch in data.read_batches(path, columns=names, batch_rows=data.BATCH_ROWS):
                n_rows += batch.num_rows
                columns = [
                    batch.column(field.name).cast(field.type)
                    if field.name in own
                    else pa.repeat(partition.get(field.name, pa.scalar(None, field.type)), batch.num_rows)
                    for field in wanted
                ]
                yield pa.record_batch(columns, schema=wanted)
        if not n_rows:
            raise TableError("no_rows", path=self.path)


def _list_marks(path: Path) -> dict[Path, tuple[int, int, int, int]]:
    """Return what tells a file, or each Parquet file below a folder, from what it may become.

    Hidden ones and those of ``_…`` are somebody's unfinished work.
    """
    marks = {}
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        is_hidden = any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        if file.is_file() and not is_hidden:
            stat = file.stat()
            marks[file] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return marks


def _read_partitions(folder: Path, paths: Sequence[Path]) -> dict[Path, dict[str, pa.Scalar]]:
    """Return the ``key=value`` of each file's path, typed as pyarrow types them over all files."""
    discover = ds.HivePartitioning.discover()
    names = [str(path) for path in paths]
    try:
        found = ds.dataset(names, format="parquet", partitioning=discover, partition_base_dir=str(folder))
    except (pa.ArrowException, OSError) as error:
        raise TableError("file", path=folder, reason=str(error).splitlines()[0].rstrip(".")) from error
    keys = {Path(part.path): ds.get_partition_keys(part.partition_expression) for part in found.get_fragments()}
    columns = sorted({name for values in keys.values() for name in values})
    return {
        path: {name: pa.scalar(keys[path].get(name), found.schema.field(name).type) for name in columns}
        for path in paths
    }


# --- databases ---------------------------------------------------------------------------------------------------


_TYPES = ("null", "boolean", "integer", "floating", "string", "timestamp", "date")  # kept; all others become text


class SqlSource:
    """A table or query of a database, read once into a spool, in the order of its keys.

    Values keep their kind: whole numbers stay whole, NUMERIC becomes the nearest float as it would from a CSV. A column
    that holds values of several kinds, as SQLite allows, is read as text, so that the contract sees it for what it is.
    ``pd.read_sql`` with Arrow's types would make text of dates and of columns without values, and of bytes an error.
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
            streamed = connection.execution_options(stream_results=True, yield_per=data.BATCH_ROWS).execute(query)
            for rows in streamed.partitions(data.BATCH_ROWS):  # SQLite has no server-side cursor and would give one row
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
    plain = [float(value) if isinstance(value, decimal.Decimal) else value for value in values]
    try:
        array = pa.array(plain)
    except (pa.ArrowException, OverflowError):
        return _to_text(plain)
    return array if any(getattr(pa.types, f"is_{name}")(array.type) for name in _TYPES) else _to_text(plain)


def _to_text(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _unify(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pa.types.is_null(one) or one == other:
        return other
    if pa.types.is_null(other):
        return one
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return _to_text(array.to_pylist()) if kind == pa.string() != array.type else array.cast(kind)
