"""Tables in and out: read, written and fingerprinted the same way by notebooks, jobs and the command line.

Names are imported on first use, so that a kernel whose reads are recorded (:mod:`mlops_lib.data.reads`) does not load
pandas for it.

>>> from mlops_lib import data
>>> data.read_table("data/arrivals/2013-01.parquet", columns=["origin"])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_lib.data.labelled import read_labelled, read_labels
    from mlops_lib.data.tables import (
        BATCH_ROWS,
        PARQUET,
        atomic_write,
        count_rows,
        fingerprint_file,
        fingerprint_frame,
        fingerprint_function,
        hash_rows,
        raise_for_columns,
        read_batches,
        read_schema,
        read_table,
        split_by_time,
        translate_write_errors,
        write_table,
    )

__all__ = [
    "BATCH_ROWS",
    "PARQUET",
    "atomic_write",
    "count_rows",
    "fingerprint_file",
    "fingerprint_frame",
    "fingerprint_function",
    "hash_rows",
    "raise_for_columns",
    "read_batches",
    "read_labelled",
    "read_labels",
    "read_schema",
    "read_table",
    "split_by_time",
    "translate_write_errors",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    file = "labelled" if name in ("read_labelled", "read_labels") else "tables"
    return getattr(importlib.import_module(f"mlops_lib.data.{file}"), name)
