"""What gates are run on: the same labelled rows, scored by the candidate and by the champion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt
import pandas as pd

from mlops_lib import contracts, quality
from mlops_lib.errors import QualityError, TaskError
from mlops_lib.project import Project
from mlops_lib.registry import Release
from mlops_lib.report import Row, Status
from mlops_lib.task import Task, binary

NO_CHAMPION = "the first model has no champion to be compared with"


@dataclass(frozen=True)
class Evidence:
    """What gates are run on.

    Parameters
    ----------
    frame : DataFrame of shape (n_rows, n_columns)
        Features, in the contract, and what else the evaluation rows have, under a unique index.
    y_true : ndarray of shape (n_rows,)
        As the label tables hold it.
    candidate, champion : ndarray of shape (n_rows,) or (n_rows, n_classes)
        Scores as :mod:`mlops_lib.task` describes them; ``champion`` is None where there is none.
    contract_candidate, contract_champion : Contract or None
    release : Release or None
        The candidate itself, for gates that score other rows or look at its files.
    keys : tuple of str
        Columns of ``frame`` that identify a row.
    task : Task
        That of the candidate, with its classes.
    metrics : tuple of Metric
        The project's own.
    time : str
        Column of ``frame`` that says when a row arrived; empty where the project names none.
    """

    frame: pd.DataFrame
    y_true: npt.NDArray[Any]
    candidate: npt.NDArray[Any]
    champion: npt.NDArray[Any] | None = None
    contract_candidate: contracts.Contract | None = None
    contract_champion: contracts.Contract | None = None
    release: Release | None = None
    keys: tuple[str, ...] = ()
    task: Task = field(default_factory=binary)
    metrics: tuple[quality.Metric, ...] = ()
    time: str = ""

    def metric(self, name: str | quality.Metric) -> quality.Metric:
        """Return a metric by the name that a gate has: the task's, the project's own, or one of scikit-learn's."""
        return quality.find_metric(self.task, name, self.metrics)

    def clusters(self, name: str | None) -> pd.Series[Any] | None:
        """Return the column that says which rows belong together, times by their day, in their own time zone."""
        if name is None:
            return None
        return quality.name_clusters(self.columns([name])[name])

    def columns(self, names: Sequence[str]) -> pd.DataFrame:
        """Return some columns of the evaluation rows, or raise ``QualityError`` naming those that are missing."""
        missing = tuple(name for name in names if name not in self.frame)
        if missing:
            known = tuple(map(str, self.frame.columns))
            raise QualityError("columns", table="evaluation rows", missing=missing, columns=known)
        return self.frame[list(names)]

    @property
    def model(self) -> Release:
        """The candidate; a gate that needs it fails without."""
        if self.release is None:
            raise LookupError("the evidence holds scores only, no model")
        return self.release


class Gate(Protocol):
    """Anything with a ``check`` that turns evidence into rows; its ``repr`` is its definition."""

    def check(self, evidence: Evidence) -> Iterable[Row]:
        """Return one row per thing judged."""
        ...


def collect_evidence(project: Project, candidate: Release, champion: Release | None, frame: pd.DataFrame) -> Evidence:
    """Score the rows of ``frame`` (keys, features, target) that keep the candidate's contract with both models.

    Raises
    ------
    TaskError
        When the champion tells other classes apart, or predicts something else: their scores cannot be compared.
    """
    task = candidate.task
    if champion is not None and _what_is_asked(champion.task) != _what_is_asked(task):
        reason = f"is asked for '{champion.task}', version {candidate.version} for '{task}': nothing compares them"
        raise TaskError(subject=f"Version {champion.version} of '{champion.name}'", reason=reason)
    contract = read_contract(candidate)
    frame = frame.reset_index(drop=True)
    good = contracts.split_rows(contract, frame).good if contract is not None else frame
    others = [name for name in frame.columns if name not in good]
    scored = pd.concat([good, frame.loc[good.index, others]], axis=1)
    return Evidence(
        frame=scored,
        y_true=frame.loc[good.index, project.target].to_numpy(),
        candidate=candidate.predict(scored),
        champion=champion.predict(scored) if champion else None,
        contract_candidate=contract,
        contract_champion=read_contract(champion) if champion else None,
        release=candidate,
        keys=project.keys,
        task=task,
        metrics=tuple(each for each in quality.list_metrics(project) if isinstance(each, quality.Metric)),
        time=project.time,
    )


def read_contract(release: Release) -> contracts.Contract | None:
    """Return the contract that is stored beside a model, or None."""
    stored: Mapping[str, Any] = release.files.contract
    return contracts.Contract.from_dict(stored) if stored else None


def status_of(holds: bool) -> Status:
    """Return the status of what holds or does not."""
    return "passed" if holds else "failed"


def _what_is_asked(task: Task) -> tuple[object, ...]:
    """Return what two models must have in common to be compared: everything but the operating point."""
    return task.kind, task.classes, task.positive
