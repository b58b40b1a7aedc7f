"""What a model is worth: the cost of its predictions in the project's own unit, and the threshold that makes it least.

>>> from mlops_lib.project import Costs
>>> metric = cost_metric(Costs(false_alarm=1, miss=10), binary())
>>> metric.measure(binary(), np.array([0, 1, 1]), np.array([0.9, 0.8, 0.1]))  # one false alarm, one miss, of three rows
3.6666666666666665
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_lib.errors import QualityError
from mlops_lib.project import Costs, Project
from mlops_lib.quality.metrics import Metric, read_scores
from mlops_lib.task import Task, binary

MEAN_COST = "mean_cost"
_Floats = NDArray[np.float64]


def list_metrics(project: Project) -> tuple[str | Metric, ...]:
    """Return what the project measures besides its task's metrics: its own, and the mean cost where it states costs."""
    return (*project.metrics, *([cost_metric(project.costs, project.task)] if project.costs else []))


def cost_metric(costs: Costs, task: Task) -> Metric:
    """Return the mean cost of a row, at the model's own threshold, as a metric for gates, comparison and monitoring.

    Parameters
    ----------
    costs : Costs
    task : Task
        With two classes, ``false_alarm`` and ``miss`` count; otherwise ``costs.function`` of truth and prediction.
    """

    def compute(y_true: Any, y_pred: Any) -> float:
        if costs.function is None:
            truth, called = np.asarray(y_true), np.asarray(y_pred)
            rows = costs.false_alarm * ((called == 1) & (truth == 0)) + costs.miss * ((called == 0) & (truth == 1))
        else:
            rows = np.asarray(costs.function(y_true, y_pred), dtype=np.float64)
            if rows.shape != np.shape(y_true):
                raise ValueError(f"costs have shape {rows.shape}, one for each of {len(y_true)} rows is needed")
        return float(np.mean(rows))

    return Metric(MEAN_COST, compute, greater_is_better=False, needs_each_class=task.kind == "binary")


def choose_threshold(project: Project, y_true: ArrayLike, y_score: ArrayLike) -> Task:
    """Return the project's task with the threshold that costs least on these rows; as it is where there are no costs.

    Every threshold that flags another set of rows is tried, but for those that flag more than ``capacity``. Of equal
    ones the one that flags fewest counts. It lies midway between the last score that is flagged and the next one.

    Parameters
    ----------
    project : Project
        Of two classes.
    y_true, y_score : array-like of shape (n_rows,)
        Validation rows: neither those that were trained on, nor those that a verdict will rest on.

    Raises
    ------
    QualityError
        For rows that are no labels and scores.
    """
    costs, task = project.costs, project.task
    if costs is None or task.kind != "binary" or costs.function is not None:
        return task
    thresholds, cost = compute_costs(costs, y_true, y_score, task=task)
    return replace(task, threshold=float(thresholds[np.flatnonzero(cost == cost.min())[-1]]))


def compute_costs(
    costs: Costs, y_true: ArrayLike, y_score: ArrayLike, *, task: Task = binary()
) -> tuple[_Floats, _Floats]:
    """Return thresholds in rising order and the mean cost of a row at each, within the capacity.

    Returns
    -------
    thresholds, cost : ndarrays of shape (n_thresholds,)
    """
    _, y, score = read_scores(task, y_true, y_score)
    if not len(y):
        raise QualityError("no_rows", what="the rows that a threshold is chosen on")
    values = np.unique(score)
    ends = np.append((values[:-1] + values[1:]) / 2, (values[-1] + 1) / 2 if values[-1] < 1 else np.inf)
    thresholds = np.concatenate([[0.0], ends])  # the last one flags nothing, where scores leave room for it
    order = np.argsort(score, kind="stable")
    position = np.searchsorted(score[order], thresholds, side="left")  # rows below each threshold
    positives_below = np.concatenate([[0], np.cumsum(y[order] == 1)])[position]
    flagged = len(y) - position
    false_alarms = flagged - (int((y == 1).sum()) - positives_below)
    cost = (costs.false_alarm * false_alarms + costs.miss * positives_below) / len(y)
    allowed = (flagged <= costs.capacity * len(y)) & np.isfinite(thresholds)
    if not allowed.any():
        raise QualityError("capacity", capacity=costs.capacity, n_flagged=int(flagged[np.isfinite(thresholds)].min()))
    return thresholds[allowed], cost[allowed]
