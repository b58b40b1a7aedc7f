"""Keys that come more than once in a table of any size, found in constant memory.

Only the key columns are read. Each row's key becomes a 64-bit hash, written to one of 64 temporary files by its upper
bits; one file at a time is sorted. A second look at the few rows whose hash came twice compares the keys themselves.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlops_lib import data

_BUCKETS = 64
Hashes = npt.NDArray[np.uint64]


def find_repeated(read: Callable[[], Iterable[pd.DataFrame]], folder: Path | None) -> pd.DataFrame:
    """Return each key that comes more than once, once.

    Parameters
    ----------
    read : callable
        Gives frames of the key columns; called a second time only if a hash came twice.
    folder : Path, optional
        Where temporary files go; they have no name and vanish with the process. Default: the system's.

    Raises
    ------
    WriteError
        There was no room for 8 bytes a row.
    """
    # Closing the files fails too, when there is no room for what they still hold.
    with data.translate_write_errors(folder and folder / "temporary file"), contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(_BUCKETS)]
        for frame in read():
            hashes = np.sort(_hash(frame))
            ends = np.searchsorted(hashes >> np.uint64(58), np.arange(1, _BUCKETS + 1))
            for file, part in zip(files, np.split(hashes, ends[:-1]), strict=True):
                file.write(part.tobytes())
        twice = [_repeated(file) for file in files]
    wanted = np.concatenate(twice)
    candidates = []
    for frame in read() if len(wanted) else ():
        candidates.append(frame[np.isin(_hash(frame), wanted)])
    if not candidates:
        return pd.DataFrame()
    table: pd.DataFrame = pd.concat(candidates, ignore_index=True)
    again: pd.DataFrame = table[table.duplicated()].drop_duplicates(ignore_index=True)
    return again


def is_among(frame: pd.DataFrame, keys: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return which rows of ``frame`` (key columns only) have a key that is in ``keys``."""
    if keys.empty:
        return np.zeros(len(frame), dtype=bool)
    return np.asarray(pd.MultiIndex.from_frame(frame).isin(pd.MultiIndex.from_frame(keys)))


def _hash(frame: pd.DataFrame) -> Hashes:
    return np.asarray(pd.util.hash_pandas_object(frame, index=False), dtype=np.uint64)


def _repeated(file: Any) -> Hashes:
    file.seek(0)
    hashes = np.sort(np.frombuffer(file.read(), dtype=np.uint64))
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
