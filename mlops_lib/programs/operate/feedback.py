"""Labels that come late, twice, corrected, by a prediction's id or by key; and what one prediction rests on.

>>> print(operate.add_labels(project, "labels-of-today.csv"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_lib import contracts, data, registry
from mlops_lib.errors import NotFoundError, TableError
from mlops_lib.gates.evidence import read_contract
from mlops_lib.programs.operate.tables import list_predictions
from mlops_lib.project import Project
from mlops_lib.report import Report, Row

PREDICTION_ID = "prediction_id"


def add_labels(project: Project, table: Path | pd.DataFrame) -> Report:
    """Take labels of rows that were predicted; told twice they count once, a correction stays beside what it corrects.

    Parameters
    ----------
    table : path or DataFrame of shape (n_labels, n_columns)
        The target, and the project's keys or ``prediction_id``; ``labelled_at`` where it is known when each label
        became known, which else is now. Other columns are left out.

    Returns
    -------
    Report
        How many labels are new, repeated, corrections, contradictions (two of one time: neither counts until a later
        one comes) and of rows that nobody predicted: those have failed, and are not taken.

    Raises
    ------
    TableError, QualityError, WriteError
        Nothing was taken, or what was taken is taken once: call it again.
    """
    labels = table if isinstance(table, pd.DataFrame) else data.read_table(table)
    path, keys, named = "labels" if isinstance(table, pd.DataFrame) else table, list(project.keys), project.labelled_at
    by_id = PREDICTION_ID in labels and not set(keys) <= set(labels)
    data.raise_for_columns(Path(path), [project.target, *([] if by_id else keys)], have=list(map(str, labels)))
    if labels.empty:
        raise TableError("no_rows", path=Path(path))
    labels = labels[labels[project.target].notna()].reset_index(drop=True)
    project.task.learn_classes(labels[project.target]).encode(labels[project.target])
    if named:
        known = labels[named] if named in labels else pd.Series(pd.NaT, index=labels.index)
        times = data.read_times(known).fillna(pd.Timestamp(project.clock))
        if (times > pd.Timestamp(project.clock)).any():
            raise TableError("times", column=named, reason=f"{int((times > project.clock).sum())} are in the future")
        labels = labels.assign(**{named: times})
    n_new, n_known, waiting, contradictions, corrections = 0, 0, labels, 0, 0
    for period in reversed(project.periods()):
        if waiting.empty:
            break
        mine, waiting = _find_predicted(project, period, waiting, [PREDICTION_ID] if by_id else keys)
        if mine.empty:
            continue
        added = data.add_feedback(project, period, mine)
        n_new, n_known = n_new + added, n_known + len(mine) - added
        settled = data.settle_labels(project, data.read_sightings(project, period))
        contradictions += len(settled.contradicting.drop_duplicates(keys))
        corrections += len(settled.corrected.drop_duplicates(keys))
    first = ", ".join(map(str, waiting[[PREDICTION_ID] if by_id else keys].iloc[0])) if len(waiting) else ""
    unknown = f"no prediction has them, the first is {first}; they were not taken" if first else ""
    rows = (
        Row("new labels", n_new, "counted once", "passed" if n_new else "not_applicable"),
        Row("told before", n_known, "counted once", "passed" if n_known else "not_applicable"),
        Row("corrected rows", corrections, "the latest counts", "passed" if corrections else "not_applicable"),
        Row(
            "contradictions",
            contradictions,
            "0",
            "failed" if contradictions else "passed",
            "two labels of one time: none counts" if contradictions else "",
        ),
        Row("unknown rows", len(waiting), "0", "failed" if len(waiting) else "passed", unknown),
    )
    return Report("Labels", rows, {"n_labels": len(labels)})


def _find_predicted(
    project: Project, period: str, labels: pd.DataFrame, names: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return those labels whose row was predicted in a period, with its keys, and the others."""
    found = []
    for path in list_predictions(project, period).values():
        scored = data.read_table(path, columns=[*dict.fromkeys([*project.keys, *names])])
        found.append(labels.reset_index(names="_row").merge(scored.drop_duplicates(names), on=names, how="inner"))
    if not found:
        return labels.iloc[:0], labels
    mine = pd.concat(found, ignore_index=True).drop_duplicates("_row")
    return mine.drop(columns="_row"), labels[~labels.index.isin(mine["_row"])].reset_index(drop=True)


@dataclass(frozen=True)
class Trace:
    """What one prediction rests on.

    Parameters
    ----------
    facts : dict of str to str
        Row, version, release, verdict, run, notebook, training data, commit, in this order.
    moved_by : Series
        By feature, by how much the score is higher than with the feature's typical value; the largest first.
    """

    facts: dict[str, str]
    moved_by: pd.Series[Any]

    def __str__(self) -> str:
        """Return it as aligned lines for people."""
        width = max(map(len, self.facts))
        lines = [f"{name.ljust(width)}  {value}" for name, value in self.facts.items()]
        moved = [f"  {value:+.4f}  {name}" for name, value in self.moved_by.items()]
        return "\n".join(
            [*lines, "", "the score with each feature as it is, less that with its typical value:", *moved]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {"facts": self.facts, "moved_by": self.moved_by.to_dict()}


def trace(project: Project, prediction_id: str) -> Trace:
    """Follow a prediction to its row, model version, verdict, run and training data; say which features moved it.

    The features' part is exact: the model itself scores the row again with one feature at a time replaced by its
    typical value (the middle bin's edge, or the most frequent category, of the training rows). Effects of features that
    act together do not add up to the score.

    Raises
    ------
    NotFoundError
        No prediction has this id. Nothing was changed.
    """
    period, scored = _find_prediction(project, prediction_id)
    version = registry.get_version(project, int(scored["model_version"]))
    release, lineage = registry.load_model(project, version.version), registry.read_lineage(project, version)
    moves = [e for e in registry.history(project) if e.version == version.version and e.stage == project.production]
    arrivals = data.read_table(project.path("arrivals", period), required=project.keys)
    is_row = np.logical_and.reduce([(arrivals[key] == scored[key]).to_numpy() for key in project.keys])
    facts = {
        "prediction": prediction_id,
        "row": ", ".join(f"{key} {scored[key]}" for key in project.keys) + f" of {period}",
        **{name: str(scored[name]) for name in (*release.task.columns(), "scored_at")},
        "version": f"{version.version} of '{version.name}' ({version.description})",
        "release": str(moves[-1]) if moves else "it was never in production",
        "verdict": (moves[-1].verdict if moves else "") or "none",
        "run": version.run_id,
        **{name: lineage[name] for name in ("notebook", "commit", "actor") if lineage.get(name)},
        **{f"trained on {name}"[:40]: text for name, text in lineage.items() if name.startswith("input.")},
    }
    moved = pd.Series(dtype="float64")
    if is_row.any():
        contract = read_contract(release)
        row = arrivals[is_row].reset_index(drop=True)
        row = contracts.split_rows(contract, row).good if contract else row
        moved = _explain(release, row) if len(row) else moved
    return Trace(facts, moved)


def _find_prediction(project: Project, prediction_id: str) -> tuple[str, dict[str, Any]]:
    """Return a prediction's period and its row."""
    for period in reversed(project.periods()):
        for path in list_predictions(project, period).values():
            ids = data.read_table(path, columns=[PREDICTION_ID])[PREDICTION_ID]
            if (ids == prediction_id).any():
                row = data.read_table(path)[(ids == prediction_id).to_numpy()].iloc[0]
                return period, {str(name): value for name, value in row.items()}
    raise NotFoundError("prediction", prediction_id=prediction_id, folder=project.predictions)


def _explain(release: registry.Release, row: pd.DataFrame) -> pd.Series[Any]:
    """Return how far each feature moves one row's score from where its typical value would leave it."""
    whole = row.select_dtypes("integer").columns  # a typical value need not be whole
    row = row.head(1).astype(dict.fromkeys(whole, "float64"))
    changed = pd.concat([row] * (len(release.features) + 1), ignore_index=True)
    for number, (name, typical) in enumerate(_typical_values(release), start=1):
        column = changed[name].astype(object)
        column[number] = typical
        changed[name] = column.astype(row[name].dtype)
    scores = release.task.predict(release.model, changed[release.features])
    scores = scores if scores.ndim == 1 else scores[:, int(scores[0].argmax())]
    moved = pd.Series(scores[0] - scores[1:], index=release.features)
    return moved[moved.abs().sort_values(ascending=False, kind="stable").index]


def _typical_values(release: registry.Release) -> Iterator[tuple[str, Any]]:
    profile = release.files.profile.get("columns", {})
    for name in release.features:
        bins = profile.get(name, {}).get("bins") or [None]
        yield name, bins[len(bins) // 2] if profile.get(name, {}).get("kind") == "numeric" else bins[0]
