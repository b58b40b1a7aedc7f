"""Are scores still right once late labels come in: quality by model version or period, held to limits.

>>> print(Limit(low=0.68), "|", Limit(low=-0.05, high=0.05))
>= 0.68 | -0.05 to 0.05
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mlops_lib.errors import QualityError
from mlops_lib.quality.intervals import MIN_CLUSTERS, Codes, estimate, name_clusters, read_clusters
from mlops_lib.quality.metrics import Floats, Metric, Truth, calibration_gap, compare_scores, find_metric
from mlops_lib.quality.profiles import raise_for_columns
from mlops_lib.report import Report, Row, Status
from mlops_lib.task import MIN_PER_CLASS, Task, binary

_CLUSTER = "\0cluster"  # no column of a table is called so
_NO_INTERVAL = f"fewer than {MIN_CLUSTERS} clusters or {MIN_PER_CLASS} rows of a class, or none is known for it"


def compute_live_quality(
    predictions: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    key: str | Sequence[str],
    target: str,
    task: Task = binary(),
    by: str = "model_version",
    metrics: Iterable[str | Metric] = (),
    clusters: str | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Measure the predictions whose labels have come in, by model version or by period.

    Parameters
    ----------
    predictions : DataFrame
        With ``key``, ``by`` and the columns that ``task.to_columns`` gives; one row a prediction.
    labels : DataFrame
        With ``key`` and ``target``, which is missing while unknown. Labels of rows never scored are left out.
    key : str or sequence of str
        Integers join about eight times faster than texts.
    task : Task
        With its classes.
    by : str
        A column of the predictions: the model version, or a day.
    metrics : iterable of str or Metric
        Besides those of the task; see :func:`mlops_lib.quality.find_metric`.
    clusters : str, optional
        A column of the predictions that says which rows belong together; of times the day. Without it every row counts
        as independent, and intervals of rows that are not are far too narrow.
    confidence : float in (0, 1)
        Of the intervals.

    Returns
    -------
    DataFrame
        Indexed by the sorted values of ``by``: ``n_scored, n_labelled, labelled_share``; of all rows ``mean_score``
        (of several classes that of the predicted one; of numbers ``mean_prediction``); of the labelled ones
        ``positive_share`` (of several classes ``right_share``, of numbers ``mean_target``) and ``calibration_gap``,
        by how much the mean score of the same rows exceeds it; the metrics, NaN where they have no value; after them
        the ends of the intervals of these and of the gap, such as ``roc_auc_low`` and ``roc_auc_high``: NaN with too
        few rows of a class, or fewer than ``intervals.MIN_CLUSTERS`` clusters.

    Raises
    ------
    QualityError
        For columns that are missing, no rows, scores or labels that are none, a key that names two predictions or two
        labels, and a confidence that is none.
    """
    if not 0 < confidence < 1:
        raise QualityError("confidence", confidence=confidence)
    keys, scores = [key] if isinstance(key, str) else list(key), list(task.score_columns)
    for table, frame, needed in (
        ("predictions", predictions, [*keys, *scores, by, *([clusters] if clusters else [])]),
        ("labels", labels, [*keys, target]),
    ):
        raise_for_columns(table, frame, needed)
        again = frame.duplicated(keys)
        if again.any():
            first = ", ".join(str(value) for value in frame.loc[again, keys].iloc[0])
            raise QualityError("keys", table=table, key=tuple(keys), n_duplicates=int(again.sum()), first=first)
    if predictions.empty:
        raise QualityError("no_rows", what="the predictions")
    task.check_scores(task.from_columns(predictions), len(predictions))
    scored = predictions[list(dict.fromkeys([*keys, *scores, by]))]
    if clusters:
        scored = scored.assign(**{_CLUSTER: name_clusters(predictions[clusters])})
    joined = scored.merge(labels[[*keys, target]], on=keys, how="left")
    task.encode(joined[target].dropna())
    chosen = [calibration_gap(task), *(find_metric(task, name) for name in (*task.metrics, *metrics))]
    rows = {
        name: _measure_group(task, group, target, chosen, confidence)
        for name, group in joined.groupby(by, observed=True, dropna=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def _measure_group(
    task: Task, group: pd.DataFrame, target: str, metrics: Sequence[Metric], confidence: float
) -> dict[str, float]:
    y_score, is_known = task.from_columns(group), group[target].notna().to_numpy()
    y, known = task.encode(group.loc[is_known, target]), y_score[is_known]
    codes = read_clusters(group.loc[is_known, _CLUSTER], len(y)) if _CLUSTER in group else None
    means, of_known = ("mean_score", "positive_share") if task.kind == "binary" else ("mean_score", "right_share")
    if task.kind == "regression":
        means, of_known = "mean_prediction", "mean_target"
    measured = [_measure(metric, task, y, known, codes=codes, confidence=confidence) for metric in metrics]
    return {
        "n_scored": len(group),
        "n_labelled": len(y),
        "labelled_share": len(y) / len(group),
        means: float((y_score.max(axis=1) if task.kind == "multiclass" else y_score).mean()),
        of_known: float(compare_scores(task, y, known)[1].mean()) if len(y) else np.nan,
        **{metric.name: value for metric, (value, _, _) in zip(metrics, measured, strict=True)},
        **{f"{metric.name}_low": low for metric, (_, low, _) in zip(metrics, measured, strict=True)},
        **{f"{metric.name}_high": high for metric, (_, _, high) in zip(metrics, measured, strict=True)},
    }


def _measure(
    metric: Metric, task: Task, y: Truth, y_score: Floats, *, codes: Codes | None, confidence: float
) -> tuple[float, float, float]:
    """Return a metric's value and the ends of its interval, NaN where they have none."""
    value = low = high = np.nan
    if len(y) and not (task.is_classifier and metric.needs_each_class and y.min() == y.max()):
        with contextlib.suppress(QualityError):
            value = metric.measure(task, y, y_score)
            interval = estimate(metric, task, y, [y_score], codes=codes, confidence=confidence)
            low, high = interval.low, interval.high
    return value, low, high


@dataclass(frozen=True)
class Limit:
    """The range in which a quality must stay; an end that is ``None`` is open.

    >>> print(Limit(low=0.68), "|", Limit(low=-0.05, high=0.05))
    >= 0.68 | -0.05 to 0.05
    """

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return the range in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}" if self.high is not None else "any"

    def holds(self, low: float, high: float) -> bool:
        """Whether some of an interval lies in the range; of one without ends nothing does."""
        return (-np.inf if self.low is None else self.low) <= high and low <= (
            np.inf if self.high is None else self.high
        )


def check_live_quality(quality: pd.DataFrame, *, limits: Mapping[str, Limit], min_labelled: int = 200) -> Report:
    """Check every version or period of :func:`compute_live_quality` against limits.

    A row has failed where even the better end of its interval is beyond the limit: an alarm needs evidence. A value
    without an interval is not judged, since nothing says how far chance has moved it.

    Parameters
    ----------
    quality : DataFrame
    limits : mapping of str to Limit
        By metric, such as ``{"roc_auc": Limit(low=0.68), "calibration_gap": Limit(-0.05, 0.05)}``.
    min_labelled : int
        With fewer labels a row is not applicable, nor is one whose interval has no ends. With enough labels a metric of
        NaN has failed.

    Raises
    ------
    QualityError
        When a limit names a column that was not computed.
    """
    raise_for_columns("qualities", quality, limits)
    rows = []
    for group, each in quality.iterrows():
        for name, limit in limits.items():
            value, n_labelled = float(each[name]), int(each["n_labelled"])
            low, high = (float(each.get(f"{name}_{end}", np.nan)) for end in ("low", "high"))
            status: Status = "passed" if limit.holds(low, high) else "failed"
            reason = "" if status == "passed" else f"its interval is {low:.3f} to {high:.3f} on {n_labelled} labels"
            if n_labelled < min_labelled:
                status, reason = "not_applicable", f"{n_labelled} labels, needs {min_labelled}"
            elif np.isnan(value):
                reason = f"it has no value on {n_labelled} labels, such as where all are of one class"
            elif np.isnan([low, high]).any():
                status, reason = "not_applicable", f"it has no interval on {n_labelled} labels: {_NO_INTERVAL}"
            rows.append(Row(f"{quality.index.name} {group}: {name}", value, str(limit), status, reason))
    return Report("Live quality", tuple(rows), {"min_labelled": min_labelled})
