"""CSV files, as Arrow reads them: UTF-8 with commas and a header, every cell a text, refused where they were cut."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.csv as pacsv

from mlops_lib.data import reads
from mlops_lib.errors import TableError

# Not in threads, or Arrow does not know which row it reads; a row must fit into a block.
_SERIAL = pacsv.ReadOptions(use_threads=False, block_size=2**24)
_OPEN_QUOTE = "a quote is opened and never closed"
_END = "\x04"  # "end of transmission": what stands in the line behind the last one


class _CheckedText:
    """The bytes of a CSV, checked to be UTF-8 text while Arrow reads them, and one line more behind them.

    That line is swallowed where a quote was opened and never closed, which nothing else would show.
    """

    def __init__(self, path: Path, n_columns: int = 0) -> None:
        with reads.ours():
            self._file = path.open("rb")
        self._path, self._decoder = path, codecs.getincrementaldecoder("utf-8")()
        self._n_bytes = self._n_lines = 0
        self._last_line = ("\n" + ",".join([_END] * n_columns) + "\n").encode() if n_columns else b""

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def read(self, n_bytes: int) -> bytes:
        block = self._file.read(n_bytes)
        self._raise_for(block)
        self._n_bytes += len(block)
        self._n_lines += block.count(b"\n")
        if not block:
            block, self._last_line = self._last_line, b""
        return block

    def _raise_for(self, block: bytes) -> None:
        if not self._n_bytes and block.startswith(b"PAR1"):
            raise TableError("file", path=self._path, reason="it holds Parquet, though its name ends in .csv")
        n_pending = len(self._decoder.getstate()[0])  # bytes of a letter that began in the block before
        try:
            self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            self._refuse(block, error.start - n_pending, error.object[error.start], "UTF-8")
        if b"\0" in block:
            self._refuse(block, block.index(0), 0, "UTF-8 text")

    def _refuse(self, block: bytes, at: int, byte: int, expected: str) -> NoReturn:
        line = self._n_lines + block[: max(0, at)].count(b"\n") + 1
        found = f"byte 0x{byte:02x} at position {self._n_bytes + at} (line {line}) is not {expected}"
        raise TableError("file", path=self._path, reason=f"{found}; save it with that encoding") from None


def read_header(path: Path) -> list[str]:
    """Return the names of a CSV's columns; rows that do not fit them are told when they are read."""
    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    with contextlib.closing(_CheckedText(path)) as file, pacsv.open_csv(file, _SERIAL, parse) as reader:
        names = list(reader.schema.names)
    separator = next((mark for mark in ";\t|" if mark in names[0]), "") if len(names) == 1 else ""
    if separator:
        raise TableError(
            "file", path=path, reason=f"its fields are separated by {separator!r} (header {names[0]!r}), not by commas"
        )
    return names


def read_csv_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield a CSV as batches of text, null where a field is empty and not quoted.

    Raises
    ------
    TableError
        For bytes that are no text, a row with more or fewer fields than the header, and a quote that is never closed:
        with its line or row, and after the batches before it.
    """
    names = read_header(path)
    convert = pacsv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    ragged: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    last: pa.RecordBatch | None = None
    try:
        with contextlib.closing(_CheckedText(path, len(names))) as file:
            for batch in pacsv.open_csv(file, _SERIAL, parse, convert):
                if last is not None:
                    yield last
                last = batch
    except pa.ArrowInvalid:
        if not ragged:
            raise
        row = ragged[0]
        found = f"row {row.number} has {row.actual_columns} fields, the header {row.expected_columns}"
        reason = f"{found}; a text that holds commas is written in quotes"
        raise TableError("file", path=path, reason=_OPEN_QUOTE if _END in row.text else reason) from None
    if last is None or any(column[-1].as_py() != _END for column in last.columns):
        raise TableError("file", path=path, reason=_OPEN_QUOTE)
    yield last.slice(0, last.num_rows - 1)
