"""What operating leaves behind, as tidy Parquet tables that any tool reads; docs/tables.md says what they hold.

``<operated>/<table>/period=<period>/part.parquet``: one file a table and period, written whole and atomically, so that
a tick that is done again leaves what one tick leaves.

>>> quality = read_table(project, "quality")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd

from mlops_lib import data, quality
from mlops_lib.errors import NotFoundError
from mlops_lib.project import Project
from mlops_lib.report import Report

TABLES = ("quality", "drift", "labels", "ticks")


def partition_path(project: Project, table: str, period: str) -> Path:
    """Return where a table's rows of one period are, whether or not there are any."""
    return project.operated_path / table / f"period={quote(period, safe='')}" / "part.parquet"


def write_partition(project: Project, table: str, period: str, rows: pd.DataFrame) -> Path:
    """Write a table's rows of one period instead of those that were there.

    Raises
    ------
    WriteError
        The rows are as they were.
    """
    return data.write_table(rows.reset_index(drop=True), partition_path(project, table, period))


def read_table(project: Project, table: str, periods: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table with its column ``period``, all of it or some periods; of what was never written no rows.

    Raises
    ------
    NotFoundError
        There is no table of this name.
    """
    if table not in TABLES:
        raise NotFoundError("operated", table=table, tables=TABLES)
    found = sorted((project.operated_path / table).glob("period=*/part.parquet"))
    named = {unquote(path.parent.name.removeprefix("period=")): path for path in found}
    frames = [
        data.read_table(path).assign(period=period)
        for period, path in named.items()
        if periods is None or period in periods
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"period": []})


def list_predictions(project: Project, period: str) -> dict[int, Path]:
    """Return the files of a period's predictions by the version that made them, oldest first."""
    template = project.predictions_path(period, 0).name
    pattern = str(project.predictions_path(period, 0)).replace(template, project.predictions.rpartition("/")[2])
    head, _, tail = pattern.replace("{period}", period).partition("{version}")
    found: dict[int, Path] = {}
    for path in Path(head).parent.glob(f"{Path(head).name}*{tail}") if tail else ():
        number = str(path)[len(head) : -len(tail)]
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items()))


def describe_quality(
    table: pd.DataFrame,
    report: Report,
    limits: Mapping[str, quality.Limit],
    estimated: Mapping[str, quality.Interval],
    at: str,
) -> pd.DataFrame:
    """Return the live quality of a period as tidy rows, one a version and metric; ``held`` may be empty."""
    judged = {row.name.rpartition(": ")[2]: row for row in report.rows}
    rows = []
    for version, each in zip(table.index, table.to_dict("records"), strict=True):
        for name in [str(column) for column in table if f"{column}_low" in table]:
            guess, row, limit = estimated.get(name), judged.get(name), limits.get(name, quality.Limit())
            held = None if row is None or row.status == "not_applicable" else row.status == "passed"
            rows.append(
                {
                    "version": int(version),
                    "metric": name,
                    "value": each[name],
                    "low": each[f"{name}_low"],
                    "high": each[f"{name}_high"],
                    "estimated": guess.value if guess else None,
                    "estimated_low": guess.low if guess else None,
                    "estimated_high": guess.high if guess else None,
                    "limit_low": limit.low,
                    "limit_high": limit.high,
                    "held": held,
                    "n_scored": int(each["n_scored"]),
                    "n_labelled": int(each["n_labelled"]),
                    "calibration_gap": each["calibration_gap"],
                    "as_of": pd.Timestamp(at),
                }
            )
    numbers = ["value", "low", "high", "estimated", "estimated_low", "estimated_high", "limit_low", "limit_high"]
    return pd.DataFrame(rows).astype(dict.fromkeys([*numbers, "calibration_gap"], "float64") | {"held": "boolean"})


def describe_labels(settled: data.Settled) -> pd.DataFrame:
    """Return every label that was told, with whether it counts."""
    replaced = settled.corrected.drop(index=settled.labels.index, errors="ignore")
    parts = {"current": settled.labels, "corrected": replaced, "contradicting": settled.contradicting}
    return pd.concat([part.assign(state=name) for name, part in parts.items()], ignore_index=True)
