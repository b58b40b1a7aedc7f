"""Rows with what became of them: arrivals joined with the labels that were known at a moment.

>>> rows = data.read_labelled(project, ["2013-01", "2013-02"], max_rows=20_000)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from mlops_lib.data.reading import read_schema, read_table
from mlops_lib.errors import QualityError
from mlops_lib.project import Project


def read_labelled(
    project: Project,
    periods: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
    as_of: datetime | None = None,
) -> pd.DataFrame:
    """Read the arrivals of one period or several that have a label, joined with it on the project's keys.

    Parameters
    ----------
    columns : sequence of str, optional
        Read only these columns of the arrivals, besides the keys; by default all.
    max_rows : int, optional
        At most so many rows, taken at even distances: the same ones every time.
    as_of : datetime, optional
        Only labels known by then count; by default all that exist.

    Returns
    -------
    DataFrame of shape (n_rows, n_columns)
        In the order of the arrivals: their columns, the target and, where the labels say it, when each became known.

    Raises
    ------
    NotFoundError, QualityError
        And those of :func:`read_table`. Nothing was changed.
    """
    several = [periods] if isinstance(periods, str) else list(periods)
    chosen = None if columns is None else list(dict.fromkeys([*project.keys, *columns]))
    paths = [project.path("arrivals", period) for period in several]
    arrivals = read_table(paths, columns=chosen, required=project.keys)
    raise_for_duplicates("arrivals", arrivals, project.keys)
    rows = arrivals.merge(read_labels(project, several, as_of=as_of), on=list(project.keys))
    rows = rows[rows[project.target].notna()].reset_index(drop=True)
    if rows.empty:
        raise QualityError("no_rows", what=f"the labelled rows of {', '.join(several)}")
    if max_rows is not None and len(rows) > max_rows:
        rows = rows.iloc[np.arange(max_rows) * len(rows) // max_rows].reset_index(drop=True)
    return rows


def read_labels(project: Project, periods: str | Sequence[str], *, as_of: datetime | None = None) -> pd.DataFrame:
    """Read keys, target and, where the labels say it, ``labelled_at`` of one period or several.

    Parameters and errors are those of :func:`read_labelled`; a time without a zone counts as UTC.
    """
    paths = [project.path("labels", period) for period in ([periods] if isinstance(periods, str) else periods)]
    known_at = as_of is not None or all(project.labelled_at in read_schema(path).names for path in paths)
    labels = read_table(paths, columns=[*project.keys, project.target, *([project.labelled_at] if known_at else [])])
    raise_for_duplicates("labels", labels, project.keys)
    if as_of is not None:
        labels = labels[pd.to_datetime(labels[project.labelled_at], utc=True) <= pd.to_datetime(as_of, utc=True)]
    return labels


def raise_for_duplicates(table: str, frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise ``QualityError`` if a key names two rows of a table."""
    again = frame.duplicated(list(keys))
    if again.any():
        first = ", ".join(str(value) for value in frame.loc[again, list(keys)].iloc[0])
        raise QualityError("keys", table=table, key=tuple(keys), n_duplicates=int(again.sum()), first=first)
