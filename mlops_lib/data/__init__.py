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
    from mlops_lib.data.ingesting import deal_rows, expand_dates, key_rows, write_periods
    from mlops_lib.data.labelled import (
        Settled,
        add_feedback,
        read_labelled,
        read_labels,
        read_sightings,
        settle_labels,
    )
    from mlops_lib.data.reading import (
        BATCH_BYTES,
        BATCH_ROWS,
        count_rows,
        fingerprint_file,
        is_parquet,
        is_text,
        join_batches,
        list_files,
        mark_text,
        raise_for_columns,
        read_batches,
        read_partition,
        read_schema,
        read_table,
        survives,
        to_frame,
    )
    from mlops_lib.data.tables import (
        PARQUET,
        atomic_write,
        fingerprint_class,
        fingerprint_frame,
        fingerprint_function,
        hash_rows,
        parse_times,
        read_times,
        split_by_time,
        translate_write_errors,
        write_table,
    )

__all__ = [
    "BATCH_BYTES",
    "BATCH_ROWS",
    "PARQUET",
    "Settled",
    "add_feedback",
    "atomic_write",
    "count_rows",
    "deal_rows",
    "expand_dates",
    "fingerprint_class",
    "fingerprint_file",
    "fingerprint_frame",
    "fingerprint_function",
    "hash_rows",
    "is_parquet",
    "is_text",
    "join_batches",
    "key_rows",
    "list_files",
    "mark_text",
    "parse_times",
    "raise_for_columns",
    "read_batches",
    "read_labelled",
    "read_labels",
    "read_partition",
    "read_schema",
    "read_sightings",
    "read_table",
    "read_times",
    "settle_labels",
    "split_by_time",
    "survives",
    "to_frame",
    "translate_write_errors",
    "write_periods",
    "write_table",
]
_FILES = dict.fromkeys(("deal_rows", "expand_dates", "key_rows", "write_periods"), "ingesting")
_LABELLED = ("Settled", "add_feedback", "read_labelled", "read_labels", "read_sightings", "settle_labels")
_FILES |= dict.fromkeys(_LABELLED, "labelled")
_TABLES = ("PARQUET", "atomic_write", "fingerprint_class", "fingerprint_frame", "fingerprint_function", "hash_rows")
_FILES |= dict.fromkeys(
    (*_TABLES, "parse_times", "read_times", "split_by_time", "translate_write_errors", "write_table"), "tables"
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"mlops_lib.data.{_FILES.get(name, 'reading')}"), name)
