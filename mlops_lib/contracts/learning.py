"""Learn a contract from training rows, with room for rows a little beyond them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_lib.contracts.checking import (
    compute_scale,
    count_sizes,
    find_key_violations,
    raise_for_columns,
    read_key_cells,
)
from mlops_lib.contracts.contract import Column, Contract
from mlops_lib.contracts.reading import KINDS, infer_kind, read_cells
from mlops_lib.errors import ContractError
from mlops_lib.wording import listed


def infer_contract(
    frame: pd.DataFrame, *, features: Sequence[str], keys: Sequence[str], margin: float = 0.5, max_categories: int = 200
) -> Contract:
    """Learn a contract that the training rows keep, with room for rows a little beyond them.

    Shares and scales describe the training rows as a whole. Much shorter batches (a day of weather against three
    months) move more: loosen those columns with :meth:`Contract.replace_column`.

    Parameters
    ----------
    frame : DataFrame
        Training rows.
    features, keys : sequence of str
        Columns that the model reads; columns that identify a row.
    margin : float, >= 0
        Room around what was seen: this share of the range, or of the largest absolute value if that is more, on both
        sides; and of the missing share. A column that reaches 0 and never goes below it keeps 0 as its lower end.
    max_categories : int
        A string column with more distinct values than this gets no list of categories.

    Raises
    ------
    ContractError
        A column is missing or there twice; a column has only nulls, infinities or values of several kinds; a key is
        null or repeated; there are no rows.
    """
    raise_for_columns((*keys, *features), frame)
    if frame.empty:
        raise ContractError("inference", subject="the table", reason="has no rows")
    columns = tuple(_infer_column(frame[name], name, margin, max_categories) for name in features)
    kinds = {key: infer_kind(frame[key]) for key in keys}
    contract = Contract(
        columns, tuple(keys), n_rows=len(frame), key_kinds={key: kind for key, kind in kinds.items() if kind}
    )
    for violation in find_key_violations(contract, frame, read_key_cells(contract, frame)):
        _, first = next(violation.describe(), (None, ""))
        if first:
            where = f"in {violation.mask.sum()} of {len(frame)} rows; in the first {first}"
            raise ContractError("inference", subject=f"key {listed(keys)}", reason=f"does not identify a row {where}")
    return contract


def _infer_column(series: pd.Series[Any], name: str, margin: float, max_categories: int) -> Column:
    if series.isna().all():
        raise ContractError("inference", subject=f"column '{name}'", reason="holds only nulls")
    kind = infer_kind(series)
    if kind is None:
        found = pd.api.types.infer_dtype(series, skipna=True)
        raise ContractError(
            "inference", subject=f"column '{name}'", reason=f"holds {found} values, of no one kind of {listed(KINDS)}"
        )
    cells = read_cells(series, kind)
    if kind == "number":
        cells.bad |= np.isinf(cells.values)
    if cells.bad.any():
        value = reprlib.repr(series.iloc[int(np.argmax(cells.bad))])
        raise ContractError(
            "inference", subject=f"column '{name}'", reason=f"holds {value}, which is no finite {kind} without loss"
        )
    values = cells.values[~cells.null]
    share = float(cells.null.mean())
    # A quarter of the values that training had must be there: a column that goes all null is always caught.
    max_missing = min(share * (1 + margin) + 0.05, 1 - (1 - share) / 4)
    learnt: dict[str, Any] = {"nullable": share > 0, "max_missing_share": max_missing}
    if kind in ("number", "integer"):
        low, high = float(values.min()), float(values.max())
        room = margin * (max(high - low, abs(low), abs(high)) or 1.0)
        limits = {"low": 0.0 if low == 0 else low - room, "high": high + room}
        learnt |= {end: value for end, value in limits.items() if math.isfinite(value)}
        learnt["scale"] = compute_scale(count_sizes(cells))
    if kind == "string":
        distinct = sorted(set(values))
        learnt["categories"] = tuple(distinct) if len(distinct) <= max_categories else None
    return Column(name, kind, **learnt)
