"""From one table to a file a period: rows dealt into parts or by time, keyed, with what models can use of dates.

>>> import pandas as pd
>>> table = pd.DataFrame({"id": range(1000)})
>>> parts = deal_rows(table, ["id"], {"train": 0.6, "validation": 0.2, "test": 0.2})
>>> bool(0.5 < (parts == "train").mean() < 0.7)
True
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_lib.data import reads
from mlops_lib.data.reading import fingerprint_file, raise_for_columns
from mlops_lib.data.tables import atomic_write, hash_rows, read_times, write_table
from mlops_lib.errors import TableError

STAMP = ".ingested.json"  # beside the files: what they were made from


def deal_rows(table: pd.DataFrame, keys: Sequence[str], shares: Mapping[str, float]) -> pd.Series[str]:
    """Deal rows into named parts by a hash of their key: the same row always falls into the same part.

    Rows of one key stay together, so that none of them can be trained on while another one is tested; a part's share
    comes out right only where there are many keys.

    Parameters
    ----------
    table : DataFrame of shape (n_rows, n_columns)
    keys : sequence of str
        Columns whose values count; their order does, too.
    shares : mapping of str to float in (0, 1]
        Of the keys, by part; together 1.

    Returns
    -------
    Series of str of shape (n_rows,)

    Raises
    ------
    TableError
        For shares that are not positive or do not add up.
    """
    ends = np.cumsum(list(shares.values()))
    if not len(ends) or min(shares.values()) <= 0 or abs(ends[-1] - 1) > 1e-9:
        raise TableError("shares", shares=", ".join(f"{name} {share:g}" for name, share in shares.items()) or "none")
    raise_for_columns("the table", keys, list(map(str, table)))
    place = hash_rows(table[list(keys)]) / 2.0**64
    parts = np.array(list(shares), dtype=object)[np.searchsorted(ends[:-1], place, side="right")]
    return pd.Series(parts, index=table.index, dtype="str", name="part")


def key_rows(table: pd.DataFrame) -> pd.Series[str]:
    """Return a key for each row of a table that has none: a hash of its content, numbered where rows are alike.

    It does not depend on the order of the rows that differ, so that a longer table of tomorrow gives the same rows the
    same keys.
    """
    content = pd.Series(hash_rows(table), index=table.index).map("{:016x}".format)
    again = content.groupby(content, sort=False).cumcount()
    return content.where(again == 0, content + "-" + again.astype("str")).astype("str").rename("row_id")


def expand_dates(table: pd.DataFrame, columns: Sequence[str], *, until: str = "") -> pd.DataFrame:
    """Return the table with numbers that models can use of its dates; the dates stay.

    Parameters
    ----------
    columns : sequence of str
        Dates, or ISO 8601 texts. Each brings ``…_year``, ``…_month`` and ``…_day_of_week`` (Monday is 0); missing stays
        missing.
    until : str, optional
        Column of the moment at which a row arrives; then each brings ``…_days_before`` instead of the year: time that
        has passed by then, which a later year does not carry out of what training has seen.

    Raises
    ------
    TableError
        A text is no time.
    """
    raise_for_columns("the table", [*columns, *([until] if until else [])], list(map(str, table)))
    added: dict[str, pd.Series[Any]] = {}
    for name in columns:
        times = read_times(table[name])
        if until:
            passed = read_times(table[until]) - times
            added[f"{name}_days_before"] = passed.dt.total_seconds() / 86_400
        else:
            added[f"{name}_year"] = times.dt.year
        added |= {f"{name}_month": times.dt.month, f"{name}_day_of_week": times.dt.day_of_week}
    return table.assign(**{name: values.astype("float64") for name, values in added.items()})


def write_periods(
    template: Path | str, source: Path | str, read: Callable[[], pd.DataFrame], *, by: str
) -> tuple[str, ...]:
    """Write the rows that ``read`` returns as one Parquet file a period, once, and again when something has changed.

    Whether it has is seen from the source's bytes and from the file in which ``read`` is written. Files of periods that
    there are no longer are removed.

    Parameters
    ----------
    template : path with one ``{period}``
    source : path
        The file or folder that ``read`` reads.
    read : callable
        Returns the whole table.
    by : str
        Column of texts that names each row's period; it is not written.

    Returns
    -------
    tuple of str
        The periods, in the order in which the table has them.

    Raises
    ------
    TableError, WriteError
        For rows without a period. Each file is the former or the new one, whole.
    """
    template, stamp = str(template), Path(template).parent / STAMP
    read_from = {"source": Path(source), "code": Path(inspect.getfile(read))}
    made_from = {"template": Path(template).name, **{name: fingerprint_file(file) for name, file in read_from.items()}}
    reads.note("file", str(Path(source).resolve()), made_from["source"])  # a run that is reused would not ingest again
    former = _read_stamp(stamp)
    if former.get("made_from") == made_from:
        known = tuple(former["periods"])
        if all(Path(template.format(period=period)).is_file() for period in known):
            return known
    table = read()
    raise_for_columns("the table", [by], list(map(str, table)))
    n_without = int(table[by].isna().sum())
    if n_without or table.empty:
        reason = f"{n_without} of {len(table)} rows have none" if n_without else "there are no rows"
        raise TableError("time", column=by, reason=reason)
    periods = tuple(str(period) for period in table[by].unique())
    for period, rows in table.groupby(by, sort=False):
        write_table(rows.drop(columns=by), template.format(period=period))
    for period in {*former.get("periods", ())} - {*periods}:
        Path(template.format(period=period)).unlink(missing_ok=True)
    with atomic_write(stamp, "w") as file:
        json.dump({"made_from": made_from, "periods": periods}, file)
    return periods


def _read_stamp(path: Path) -> dict[str, Any]:
    """Return what the stamp says; nothing if there is none, or half of one."""
    try:
        with reads.ours():
            stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and isinstance(stamp.get("periods"), list) else {}
