"""Where predictions go: a Parquet file or a SQL table. Both show all of a batch or nothing of it.

A Parquet file is written beside its place as ``.NAME.tmp`` under a lock that ends with its process. Quarantine and
manifest are renamed first, the predictions last: they are what counts. Whatever a killed job left is overwritten by the
next. Rows for a database wait in a nameless temporary file and go in with their account in one transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from mlops_lib import data
from mlops_lib.errors import BatchError, listed
from mlops_lib.programs.batch import sql
from mlops_lib.programs.batch.result import ScoreResult
from mlops_lib.programs.batch.sources import FolderSource, split_address
from mlops_lib.registry import Release
from mlops_lib.tracking import store

# Ids and scores differ in every row: a dictionary of them would be built for nothing.
_INSERT_ROWS = 10_000
_DICTIONARY = ["model_name", "model_version", "model_digest", "scored_at", "prediction", "rule", "reason"]


class Sink(Protocol):
    """What takes one version's rows and shows them when all is well."""

    name: str

    def find_done(self, release: Release, fingerprint: str, rows: int | None) -> ScoreResult | None:
        """Return the account of the same batch, done before; refuse an output that is of something else."""

    def open(self) -> Path | None:
        """Make ready to write; return the folder where there is room for temporary files."""

    def write(self, good: pa.Table, bad: pa.Table) -> None:
        """Add rows, unseen."""

    def publish(self, result: ScoreResult) -> ScoreResult:
        """Show everything at once."""

    def close(self) -> None:
        """Remove what was not shown."""


def open_sink(address: Path | str) -> Sink:
    """Return the sink of a path that ends in ``.parquet`` or of ``URL::table``; nothing is opened yet."""
    found = split_address(address)
    return SqlSink(*found) if found else FileSink(Path(address))


def quarantine_path(output: Path) -> Path:
    """Return where the rows that were set aside go."""
    return output.with_name(f"{output.stem}.quarantine.parquet")


def manifest_path(output: Path) -> Path:
    """Return where the account of a batch goes."""
    return output.with_name(f"{output.stem}.manifest.json")


class _Rows:
    """Rows of one kind on their way into one Parquet file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.n_rows = file, 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows; the first ones decide the columns."""
        if self._writer is None:
            # Without Arrow's own schema: names and digests come as dictionaries, and are plain strings to readers.
            options = {**data.PARQUET, "store_schema": False, "use_dictionary": _DICTIONARY}
            self._writer = pq.ParquetWriter(self.file, table.schema, **options)
        self._writer.write_table(table)
        self.n_rows += table.num_rows

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


# --- files -------------------------------------------------------------------------------------------------------


class FileSink:
    """One Parquet file, its quarantine and its manifest."""

    def __init__(self, path: Path) -> None:
        if path.suffix != ".parquet":
            raise BatchError("output", path=path, reason="its name does not end in .parquet")
        self.path, self.name = path, str(path)
        self.places = {"good": path, "bad": quarantine_path(path), "account": manifest_path(path)}
        self._rows: dict[str, _Rows] = {}
        self._made: list[Path] = []
        self._is_published = False

    def find_done(self, release: Release, fingerprint: str, rows: int | None) -> ScoreResult | None:
        """Compare the manifest that stands beside an output."""
        if not self.path.exists():
            return None
        try:
            account = ScoreResult(**json.loads(manifest_path(self.path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise BatchError("output", path=self.path, reason="it was not written by a finished batch") from None
        if (account.digest, account.input_fingerprint, account.rows) != (release.digest, fingerprint, rows):
            first = f"the first {account.n_rows} rows of " if account.rows is not None else ""
            reason = f"it holds predictions of version {account.version} for {first}'{account.input}'"
            raise BatchError("output", path=self.path, reason=reason)
        if fingerprint_path(self.path) != account.output_fingerprint:
            raise BatchError("output", path=self.path, reason="it has been changed since it was written")
        return replace(account, already_done=True)

    def open(self) -> Path:
        """Make the folder and take the lock."""
        with data.refusing(self.path):
            self._made = [folder for folder in self.path.parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rows["good"] = _Rows(_open_draft(self.path))
            for place in self.places.values():
                if place != self.path:
                    _draft_of(place).unlink(missing_ok=True)  # of a job that was killed
        return self.path.parent

    def write(self, good: pa.Table, bad: pa.Table) -> None:
        """Add rows to the drafts."""
        with data.refusing(self.path):
            self._rows["good"].write(good)
            if bad.num_rows:
                if "bad" not in self._rows:
                    self._rows["bad"] = _Rows(_open_draft(self.places["bad"]))
                self._rows["bad"].write(bad)

    def publish(self, result: ScoreResult) -> ScoreResult:
        """Sync all files, then rename the predictions last, then sync the folder."""
        with data.refusing(self.path):
            for rows in self._rows.values():
                rows.finish()
            result = replace(
                result,
                output_fingerprint=data.fingerprint_file(_draft_of(self.path)),
                quarantine=str(self.places["bad"]) if "bad" in self._rows else None,
            )
            self._write_account(result)
            if "bad" not in self._rows:
                self.places["bad"].unlink(missing_ok=True)  # of an earlier batch whose predictions were taken away
            for name in ("bad", "account", "good"):
                if name in self._rows or name == "account":
                    os.replace(_draft_of(self.places[name]), self.places[name])  # noqa: PTH105 - it says atomic
            self._finish()
        return result

    def publish_folders(self, result: ScoreResult, good: Path, bad: Path) -> ScoreResult:
        """Rename folders of Parquet files, as Spark writes them, in the same order."""
        with data.refusing(self.path):
            quarantine = str(self.places["bad"]) if result.n_quarantined else None
            result = replace(result, output_fingerprint=fingerprint_path(good), quarantine=quarantine)
            self._write_account(result)
            if self.places["bad"].is_dir():
                shutil.rmtree(self.places["bad"])  # of an earlier batch whose predictions were taken away
            if quarantine:
                bad.rename(self.places["bad"])
            os.replace(_draft_of(self.places["account"]), self.places["account"])  # noqa: PTH105 - as above
            good.rename(self.path)
            _draft_of(self.path).unlink()
            self._finish()
        return result

    def _write_account(self, result: ScoreResult) -> None:
        with _draft_of(self.places["account"]).open("w", encoding="utf-8") as file:
            json.dump(asdict(result), file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def _finish(self) -> None:
        """Sync the folder: what is renamed stays renamed."""
        self._is_published, self._made = True, []
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Remove drafts that were not renamed, and folders that were made for them."""
        if self._rows and not self._is_published:
            for place in self.places.values():
                _draft_of(place).unlink(missing_ok=True)  # while the lock still says that they are ours
        for rows in self._rows.values():
            rows.drop()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def fingerprint_path(path: Path) -> str:
    """Return the fingerprint of a Parquet file or of a folder of them."""
    return FolderSource(path).fingerprint() if path.is_dir() else data.fingerprint_file(path)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _open_draft(path: Path) -> IO[bytes]:
    """Open and lock the draft of ``path``, emptied: what is in an unlocked one was left by a killed job."""
    draft = _draft_of(path)
    while True:
        file = os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BatchError("output", path=path, reason="another process is scoring to it at this moment") from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == draft.stat().st_ino:
                file.truncate(0)
                return file
        file.close()  # its last owner renamed or removed it between our opening and our locking it


# --- databases ---------------------------------------------------------------------------------------------------


class SqlSink:
    """A table that batches are appended to, with ``…_quarantine`` and ``…_batches``, the accounts, beside it."""

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table
        self.name = sql.name_table(url, table)
        self._rows: dict[str, _Rows] = {}
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
        inspector, (schema, name) = sa.inspect(connection), self._split()
        if not inspector.has_table(f"{name}_batches", schema=schema):
            if inspector.has_table(name, schema=schema):
                raise BatchError(
                    "output", path=self.name, reason=f"the table is there, and no '{name}_batches' that accounts for it"
                )
            return None
        batches = self._batches(sa.MetaData())
        found = connection.execute(sa.select(batches.c.account).where(batches.c.batch == key)).scalar()
        return replace(ScoreResult(**json.loads(found)), already_done=True) if found else None

    def open(self) -> Path | None:
        """Open nameless files; the database is not touched before the end, so that nothing in it is locked."""
        with data.refusing(data.nameless()):
            for name in ("good", "bad"):
                self._rows[name] = _Rows(tempfile.TemporaryFile(prefix="mlops-"))  # noqa: SIM115
        return None

    def write(self, good: pa.Table, bad: pa.Table) -> None:
        """Keep rows in nameless files."""
        with data.refusing(data.nameless()):
            self._rows["good"].write(good)
            if bad.num_rows:
                self._rows["bad"].write(bad)

    def publish(self, result: ScoreResult) -> ScoreResult:
        """Insert rows, quarantine and account in one transaction; who was faster with the same batch has done it."""
        with data.refusing(data.nameless()):
            self._rows["good"].finish()
            self._rows["bad"].finish()
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
        schema, name = self._split()
        metadata = sa.MetaData()
        batches = self._batches(metadata)
        with pq.ParquetFile(self._rows["good"].file) as good:
            columns = [sa.Column(field.name, _sql_type(field.type)) for field in good.schema_arrow]
            table = sa.Table(name, metadata, sa.Column("batch", sa.String(64), index=True), *columns, schema=schema)
            texts = [sa.Column(column, sa.Text) for column in ("row", "rule", "reason")]
            bad_table = sa.Table(
                f"{name}_quarantine", metadata, sa.Column("batch", sa.String(64), index=True), *texts, schema=schema
            )
            self._raise_for_table(connection, table)
            metadata.create_all(connection)
            account = json.dumps(asdict(result))
            facts = {column.name: getattr(result, column.name) for column in batches.c if hasattr(result, column.name)}
            connection.execute(batches.insert(), {**facts, "batch": key, "account": account})
            for batch in good.iter_batches(_INSERT_ROWS):
                connection.execute(table.insert(), [{**row, "batch": key} for row in batch.to_pylist()])
        if self._rows["bad"].n_rows:
            with pq.ParquetFile(self._rows["bad"].file) as bad:
                for batch in bad.iter_batches(_INSERT_ROWS):
                    rows = [_bad_row(row, key) for row in batch.to_pylist()]
                    connection.execute(bad_table.insert(), rows)

    def _raise_for_table(self, connection: sa.Connection, table: sa.Table) -> None:
        inspector = sa.inspect(connection)
        if inspector.has_table(table.name, schema=table.schema):
            have = {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
            if have != set(table.c.keys()):
                reason = f"the table has columns {listed(sorted(have))}, these rows {listed(sorted(table.c.keys()))}"
                raise BatchError("output", path=self.name, reason=reason)

    def _batches(self, metadata: sa.MetaData) -> sa.Table:
        schema, name = self._split()
        whole = [sa.Column(column, sa.BigInteger) for column in ("version", "n_rows", "n_scored", "n_quarantined")]
        texts = [sa.Column(column, sa.Text) for column in ("name", "digest", "input", "input_fingerprint", "scored_at")]
        key = sa.Column("batch", sa.String(64), primary_key=True)
        return sa.Table(f"{name}_batches", metadata, key, *texts, *whole, sa.Column("account", sa.Text), schema=schema)

    def _split(self) -> tuple[str | None, str]:
        schema, _, name = self.table.rpartition(".")
        return schema or None, name

    def close(self) -> None:
        """Let the nameless files go."""
        for rows in self._rows.values():
            rows.drop()


def _batch_key(digest: str, fingerprint: str, rows: int | None) -> str:
    """Return what makes two batches one: the model's files, the input's bytes, the rows asked for."""
    return hashlib.sha256(f"{digest} {fingerprint} {rows}".encode()).hexdigest()


def _bad_row(row: dict[str, Any], key: str) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name not in ("rule", "reason")}
    return {"batch": key, "row": json.dumps(values, default=str), "rule": row["rule"], "reason": row["reason"]}


def _sql_type(kind: pa.DataType) -> sa.types.TypeEngine[Any]:
    if pa.types.is_integer(kind):
        return sa.BigInteger()
    if pa.types.is_floating(kind):
        return sa.Double()
    if pa.types.is_timestamp(kind):
        return sa.DateTime(timezone=kind.tz is not None)
    return sa.Boolean() if pa.types.is_boolean(kind) else sa.Text()
