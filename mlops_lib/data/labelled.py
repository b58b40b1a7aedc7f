"""Rows with what became of them: arrivals joined with the labels that were known at a moment.

>>> rows = data.read_labelled(project, ["2013-01", "2013-02"], max_rows=20_000)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_lib.data import reads
from mlops_lib.data.reading import count_rows, read_schema, read_table
from mlops_lib.data.tables import read_times, write_table
from mlops_lib.errors import NotFoundError, QualityError
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
    if not project.labels:  # they stand in the same table
        arrivals = arrivals.drop(columns=[project.target, project.labelled_at], errors="ignore")
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

    Parameters and errors are those of :func:`read_labelled`; a time without a zone counts as UTC. In a project without
    ``labelled_at`` every label counts at any time. Labels that came as feedback count too. What was told twice counts
    once, and a correction instead of what it corrects; a key with two labels of one time is refused.
    """
    settled = settle_labels(project, read_sightings(project, periods, as_of=as_of), as_of=as_of, keep_missing=True)
    raise_for_duplicates("labels", settled.contradicting, project.keys)
    return settled.labels


@dataclass(frozen=True)
class Settled:
    """Labels as they stand at a moment, one a key, and what was there besides.

    Parameters
    ----------
    labels : DataFrame
        Keys, target and, where they say it, when each label became known; as ``read_labels`` returns them.
    corrected, contradicting : DataFrame
        Sightings of keys whose label was changed later, or which have several labels of one time: those count as none.
    """

    labels: pd.DataFrame
    corrected: pd.DataFrame
    contradicting: pd.DataFrame


def read_sightings(project: Project, periods: str | Sequence[str], *, as_of: datetime | None = None) -> pd.DataFrame:
    """Read every label that was ever told for the rows of some periods: of the label tables and of feedback.

    Returns
    -------
    DataFrame of shape (n_sightings, n_columns)
        Keys, target and, where all say it (or ``as_of`` asks for it), ``labelled_at``. A key may come again.
    """
    paths: list[Path] = []
    for period in [periods] if isinstance(periods, str) else periods:
        feedback = project.feedback_path(period)
        if feedback.exists():
            paths.append(feedback)
        else:
            reads.note("file", str(feedback), "")  # were it there, it would have been read
        try:
            paths.append(project.path("labels", period))
        except NotFoundError:
            if not feedback.exists():
                raise
    named, asked = project.labelled_at, (as_of or project.now) is not None
    known_at = bool(named) and (asked or all(named in read_schema(path).names for path in paths))
    columns = [*project.keys, project.target, *([named] if known_at else [])]
    filled = [path for path in paths if count_rows(path) != 0]  # of a CSV it is not known
    labels = read_table(filled, columns=columns) if filled else pd.DataFrame(columns=columns)
    return labels[labels[project.target].notna()] if not project.labels else labels


def settle_labels(
    project: Project, sightings: pd.DataFrame, *, as_of: datetime | None = None, keep_missing: bool = False
) -> Settled:
    """Make one label a key of what was told about it by a moment: the latest; two of one time contradict each other.

    Parameters
    ----------
    sightings : DataFrame
        As :func:`read_sightings` returns them; those without a label tell nothing.
    as_of : datetime, optional
        By default that of the project's clock, or what is known at all.
    keep_missing : bool
        Whether rows without a label stay where no key comes twice.
    """
    keys, target, named = list(project.keys), project.target, project.labelled_at
    told, as_of = sightings, as_of or project.now
    if not keep_missing or told.duplicated(keys).any():
        told = told[told[target].notna()]
    times = read_times(told[named]) if named in told else pd.Series(pd.Timestamp(0, tz="UTC"), index=told.index)
    if as_of is not None and named in told:
        told = told[times <= pd.to_datetime(as_of, utc=True)]
        times = times[told.index]
    if not told.duplicated(keys).any():
        return Settled(told, told.iloc[:0], told.iloc[:0])
    order = times.sort_values(kind="stable").index
    told, times = told.loc[order], times.loc[order]
    is_first = ~told.assign(**{"": times}).duplicated([*keys, target, ""]).to_numpy()
    told, times = told[is_first], times[is_first]
    of_time = told.assign(**{"": times}).duplicated([*keys, ""], keep=False).to_numpy()
    contradicting = told[of_time]
    sound = told[~told.set_index(keys).index.isin(contradicting.set_index(keys).index)]
    values = sound.groupby(keys, dropna=False, observed=True)[target].transform("nunique")
    latest = sound[~sound.duplicated(keys, keep="last")].sort_index()
    corrected = sound[(values > 1).to_numpy()]
    return Settled(latest, corrected, contradicting)


def add_feedback(project: Project, period: str, labels: pd.DataFrame) -> int:
    """Add labels to those that came as feedback for a period's rows; return how many were not there yet.

    Parameters
    ----------
    labels : DataFrame
        Keys, target and, where the project names it, ``labelled_at``. What is there already, word for word, is not
        added again: told twice, or after an interruption, it is there once. Each has ``received_at`` beside it.

    Raises
    ------
    WriteError, TableError
        The labels are as they were.
    """
    path = project.feedback_path(period)
    columns = [*project.keys, project.target, *([project.labelled_at] if project.labelled_at else [])]
    before = read_table(path) if path.exists() else None
    told = labels[columns].assign(received_at=project.now or datetime.now(UTC))
    both = told if before is None else pd.concat([before, told], ignore_index=True)
    kept = both.drop_duplicates(columns, ignore_index=True)
    n_before = 0 if before is None else len(before)
    if len(kept) > n_before:
        write_table(kept, path)
    return len(kept) - n_before


def raise_for_duplicates(table: str, frame: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise ``QualityError`` if a key names two rows of a table."""
    again = frame.duplicated(list(keys))
    if again.any():
        first = ", ".join(str(value) for value in frame.loc[again, list(keys)].iloc[0])
        raise QualityError("keys", table=table, key=tuple(keys), n_duplicates=int(again.sum()), first=first)
