"""Where predictions go: a Parquet file or a SQL table. Both show all of a batch or nothing of it.

A Parquet file is written beside its place as ``.NAME.tmp``, a new file and no link, under a lock there that ends with
its process. Manifest and quarantine are renamed first, the predictions last: they are what counts. Whatever a killed
job left is removed by the next; what this output's own manifest does not name is somebody else's, and stays. Rows for a
database wait in a nameless temporary file and go in with their account in one transaction.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from mlops_lib import data
from mlops_lib.errors import BatchError
from mlops_lib.programs.batch import sql
from mlops_lib.programs.batch.result import ScoreResult
from mlops_lib.programs.batch.sources import split_address
from mlops_lib.registry import Release
from mlops_lib.tracking import store
from mlops_lib.wording import listed

# Ids and scores differ in every row: a dictionary of them would be built for nothing.
_INSERT_ROWS = 10_000
_DICTIONARY = ["model_name", "model_version", "model_digest", "scored_at", "prediction", "rule", "reason"]


def open_sink(address: Path | str) -> Sink:
    """Return the sink of a path that ends in ``.parquet`` or of ``URL::table``; nothing is opened yet."""
    parts = split_address(address)
    return SqlSink(*parts) if parts else FileSink(Path(address))


def quarantine_path(output: Path) -> Path:
    """Return where the rows that were set aside go."""
    return output.with_name(f"{output.stem}.quarantine.parquet")


def manifest_path(output: Path) -> Path:
    """Return where the account of a batch goes."""
    return output.with_name(f"{output.stem}.manifest.json")


class _Rows:
    """Rows of one kind on their way into one Parquet file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows; the first ones decide the columns."""
        if self._writer is None:
            # Without Arrow's own schema: names and digests come as dictionaries, and are plain strings to readers.
            options = {**data.PARQUET, "store_schema": False, "use_dictionary": _DICTIONARY}
            self._writer = pq.ParquetWriter(self.file, table.schema, **options)
        self._writer.write_table(table)

    def finish(self) -> None:
        """Write the footer and sync."""
        if self._writer is not None:
            self._writer.close()
        self.file.flush()
        os.fsync(self.file.fileno())

    def drop(self) -> None:
        """Let go of the file; a footer that finds no room on the disk any more is no further news."""
        if self._writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
        with contextlib.suppress(OSError):
            self.file.close()


class Sink(abc.ABC):
    """What takes one version's rows and shows them when all is well.

    Rows go to temporary files, which are made when the first ones come.
    """

    def __init__(self, name: str, file: Path | None = None) -> None:
        self.name, self._file = name, file
        self._rows: dict[str, _Rows] = {}

    @abc.abstractmethod
    def find_done(self, release: Release, fingerprint: str, rows: int | None) -> ScoreResult | None:
        """Return the account of the same batch, done before; refuse an output that is of something else."""

    @abc.abstractmethod
    def open(self) -> Path | None:
        """Make ready to write; return the folder where there is room for temporary files."""

    @abc.abstractmethod
    def _open_file(self, name: str) -> IO[bytes]:
        """Open the temporary file of the rows that are ``good`` or ``bad``."""

    @abc.abstractmethod
    def publish(self, result: ScoreResult) -> ScoreResult:
        """Show everything at once."""

    def write(self, good: pa.Table, bad: pa.Table) -> None:
        """Add rows, unseen; there is a file of bad ones if there are any."""
        with data.translate_write_errors(self._file):
            for name, table in (("good", good), ("bad", bad)):
                if name == "good" or table.num_rows:
                    if name not in self._rows:
                        self._rows[name] = _Rows(self._open_file(name))
                    self._rows[name].write(table)

    def close(self) -> None:
        """Remove what was not shown."""
        for rows in self._rows.values():
            rows.drop()


# --- files -------------------------------------------------------------------------------------------------------


class FileSink(Sink):
    """One Parquet file, its quarantine and its manifest."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path)
        if not data.is_parquet(path):
            raise BatchError("output", path=path, reason="its name does not end in .parquet")
        self.path = path
        self.places = {"good": path, "bad": quarantine_path(path), "account": manifest_path(path)}
        self._lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._new_folders: list[Path] = []

    def find_done(self, release: Release, fingerprint: str, rows: int | None) -> ScoreResult | None:
        """Compare the manifest that stands beside an output."""
        if not self.path.exists():
            return None
        account = self._read_account()
        if account is None:
            raise BatchError("output", path=self.path, reason="it was not written by a finished batch")
        if (account.digest, account.input_fingerprint, account.rows) != (release.digest, fingerprint, rows):
            first = f"the first {account.n_rows} rows of " if account.rows is not None else ""
            reason = f"it holds predictions of version {account.version} for {first}'{account.input}'"
            raise BatchError("output", path=self.path, reason=reason)
        if data.fingerprint_file(self.path) != account.output_fingerprint:
            raise BatchError("output", path=self.path, reason="it has been changed since it was written")
        return replace(account, already_done=True)

    def _read_account(self) -> ScoreResult | None:
        """Return what the manifest beside the output says, or None where there is none of this output."""
        try:
            account = ScoreResult(**json.loads(self.places["account"].read_text(encoding="utf-8")))
            return account if Path(account.output).name == self.path.name else None
        except (OSError, ValueError, TypeError):
            return None

    def _raise_for_others(self) -> None:
        """Raise if a file stands where quarantine or manifest go that no earlier batch of this output wrote."""
        account, bad = self._read_account(), self.places["bad"]
        own = {self.places["account"]: account is not None, bad: account is not None and account.quarantine is not None}
        for place, is_own in own.items():
            if os.path.lexists(place) and not is_own:
                reason = f"'{place.name}' is there, and is not of an earlier batch of this output"
                raise BatchError("output", path=self.path, reason=reason)

    def open(self) -> Path:
        """Make the folder, take the lock, and remove what a killed job left."""
        with data.translate_write_errors(self.path):
            self._new_folders = [folder for folder in self.path.parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise BatchError(
                    "output", path=self.path, reason="another process is scoring to it at this moment"
                ) from None
            self._raise_for_others()
            self._remove_drafts()
        return self.path.parent

    def _open_file(self, name: str) -> IO[bytes]:
        return _draft_of(self.places[name]).open("x+b")

    def publish(self, result: ScoreResult) -> ScoreResult:
        """Sync all files, then rename the predictions last, then sync the folder."""
        with data.translate_write_errors(self.path):
            for rows in self._rows.values():
                rows.finish()
                rows.drop()  # not everywhere can a file be renamed that is open
            bad = _draft_of(self.places["bad"]) if "bad" in self._rows else None
            return self._show(result, _draft_of(self.path), bad)

    def publish_folders(self, result: ScoreResult, good: Path, bad: Path) -> ScoreResult:
        """Rename folders of Parquet files, as Spark writes them, in the same order."""
        with data.translate_write_errors(self.path):
            return self._show(result, good, bad if result.n_quarantined else None)

    def _show(self, result: ScoreResult, good: Path, bad: Path | None) -> ScoreResult:
        """Rename the account, a quarantine and the predictions to their places, in this order."""
        quarantine, account = self.places["bad"], self.places["account"]
        result = replace(
            result, output_fingerprint=data.fingerprint_file(good), quarantine=str(quarantine) if bad else None
        )
        with _draft_of(account).open("x", encoding="utf-8") as file:
            json.dump(asdict(result), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if quarantine.is_dir():
            shutil.rmtree(quarantine)  # of an earlier batch whose predictions were taken away
        elif bad is None:
            quarantine.unlink(missing_ok=True)  # as above
        os.replace(_draft_of(account), account)  # noqa: PTH105 - it says atomic
        if bad is not None:
            os.replace(bad, quarantine)  # noqa: PTH105 - as above
        os.replace(good, self.path)  # noqa: PTH105 - as above
        self._new_folders = []
        if os.name == "posix":  # what is renamed stays renamed; elsewhere no folder can be opened
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return result

    def _remove_drafts(self) -> None:
        for place in self.places.values():
            _draft_of(place).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove drafts that were not renamed, the lock, and folders that were made for them."""
        super().close()
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._remove_drafts()
                Path(self._lock.lock_file).unlink()  # while it is held: who waits for it then makes a new one
            self._lock.release()
        for folder in self._new_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


# --- databases ---------------------------------------------------------------------------------------------------


class SqlSink(Sink):
    """A table that batches are appended to, with ``…_quarantine`` and ``…_batches``, the accounts, beside it."""

    def __init__(self, url: str, table: str) -> None:
        super().__init__(sql.name_table(url, table))
        self.url, (schema, _, self.table) = url, table.rpartition(".")
        self.schema = schema or None
        if not table.replace(".", "_").isidentifier():
            raise BatchError("output", path=self.name, reason="predictions go to a table, and that is no name of one")

    def find_done(self, release: Release, fingerprint: str, rows: int | None) -> ScoreResult | None:
        """Look for the account of the same batch."""
        path = store.sqlite_path(self.url)
        if path is not None and not path.is_file():
            return None  # asking would create it
        with sql.connected(self.url, self.name) as connection:
            return self._find_account(connection, _batch_key(release.digest, fingerprint, rows))

    def _find_account(self, connection: sa.Connection, key: str) -> ScoreResult | None:
        inspector, batches = sa.inspect(connection), self._batches(sa.MetaData(self.schema))
        if inspector.has_table(batches.name, schema=self.schema):
            account = connection.execute(sa.select(batches.c.account).where(batches.c.batch == key)).scalar()
            return replace(ScoreResult(**json.loads(account)), already_done=True) if account else None
        if inspector.has_table(self.table, schema=self.schema):
            reason = f"the table is there, and no '{batches.name}' that accounts for it"
            raise BatchError("output", path=self.name, reason=reason)
        return None

    def open(self) -> Path | None:
        """Do nothing: the database is not touched before the end, so that nothing in it is locked."""
        return None

    def _open_file(self, name: str) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="mlops-")

    def publish(self, result: ScoreResult) -> ScoreResult:
        """Insert rows, quarantine and account in one transaction; who was faster with the same batch has done it."""
        with data.translate_write_errors():
            for rows in self._rows.values():
                rows.finish()
        self._rows["good"].file.seek(0)
        whole: Any = self._rows["good"].file
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
        quarantine = f"{self.name}_quarantine" if result.n_quarantined else None
        result = replace(result, output_fingerprint=f"sha256:{digest}", quarantine=quarantine)
        key = _batch_key(result.digest, result.input_fingerprint, result.rows)
        with sql.connected(self.url, self.name) as connection:
            done = self._find_account(connection, key)
            if done is not None:
                return done
            self._insert(connection, result, key)
        return result

    def _insert(self, connection: sa.Connection, result: ScoreResult, key: str) -> None:
        metadata = sa.MetaData(self.schema)
        batches = self._batches(metadata)
        columns = [sa.Column(field.name, _sql_type(field.type)) for field in pq.read_schema(self._rows["good"].file)]
        good = sa.Table(self.table, metadata, sa.Column("batch", sa.String(64), index=True), *columns)
        texts = [sa.Column(name, sa.Text) for name in ("row", "rule", "reason")]
        bad = sa.Table(f"{self.table}_quarantine", metadata, sa.Column("batch", sa.String(64), index=True), *texts)
        self._raise_for_table(connection, good)
        metadata.create_all(connection)
        facts = {column.name: getattr(result, column.name) for column in batches.c if hasattr(result, column.name)}
        connection.execute(batches.insert(), {**facts, "batch": key, "account": json.dumps(asdict(result))})
        for name, table in (("good", good), ("bad", bad)):
            if name in self._rows:
                with pq.ParquetFile(self._rows[name].file) as file:
                    for batch in file.iter_batches(_INSERT_ROWS):
                        rows = [row if name == "good" else _bad_row(row) for row in batch.to_pylist()]
                        connection.execute(table.insert(), [{**row, "batch": key} for row in rows])

    def _raise_for_table(self, connection: sa.Connection, table: sa.Table) -> None:
        inspector = sa.inspect(connection)
        if inspector.has_table(table.name, schema=self.schema):
            have = {column["name"] for column in inspector.get_columns(table.name, schema=self.schema)}
            if have != set(table.c.keys()):
                reason = f"the table has columns {listed(sorted(have))}, these rows {listed(sorted(table.c.keys()))}"
                raise BatchError("output", path=self.name, reason=reason)

    def _batches(self, metadata: sa.MetaData) -> sa.Table:
        whole = [sa.Column(column, sa.BigInteger) for column in ("version", "n_rows", "n_scored", "n_quarantined")]
        texts = [sa.Column(column, sa.Text) for column in ("name", "digest", "input", "input_fingerprint", "scored_at")]
        key = sa.Column("batch", sa.String(64), primary_key=True)
        return sa.Table(f"{self.table}_batches", metadata, key, *texts, *whole, sa.Column("account", sa.Text))


def _batch_key(digest: str, fingerprint: str, rows: int | None) -> str:
    """Return what makes two batches one: the model's files, the input's bytes, the rows asked for."""
    return hashlib.sha256(f"{digest} {fingerprint} {rows}".encode()).hexdigest()


def _bad_row(row: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name not in ("rule", "reason")}
    return {"row": json.dumps(values, default=str), "rule": row["rule"], "reason": row["reason"]}


def _sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    if pa.types.is_integer(kind):
        return sa.BigInteger()
    if pa.types.is_floating(kind):
        return sa.Double()
    if pa.types.is_timestamp(kind):
        return sa.DateTime(timezone=kind.tz is not None)
    return sa.Boolean() if pa.types.is_boolean(kind) else sa.Text()
