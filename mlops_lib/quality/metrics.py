"""How good are scores: the metrics of each task, a project's own, and those of scikit-learn by their names.

Truth is handed over as the label tables hold it, scores as :mod:`mlops_lib.task` describes them, and both are compared
by position. What has no answer (no rows, one class, a score that is no probability) is refused by name instead of
returned as NaN.

>>> compute_metrics([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], prefix="test")["test_roc_auc"]
0.75
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_lib.errors import NotFoundError, QualityError
from mlops_lib.task import Kind, Task, binary

Floats = NDArray[np.float64]
Truth = NDArray[Any]  # as Task.encode gives it: the code of each row's class, or its number
Influence = Callable[[Truth, Floats], tuple[float, Floats]]


@dataclass(frozen=True)
class Metric:
    """One metric: its name, its function, its direction, and what each row does to it.

    Parameters
    ----------
    name : str
    compute : function of (y_true, y_pred or y_score) to float
        As scikit-learn's are called, with arrays of n_rows. Of two classes the positive one is 1 and the other 0; of
        several, classes are handed over as the label tables name them, scores in the order of the sorted classes.
    greater_is_better : bool or None
        None: nearest to zero is best, so that nothing is shown to be worse by it.
    uses : {"prediction", "score"}
        What a classifier's ``compute`` gets beside the truth: the predicted classes, or the probabilities.
    influence : function of (codes or numbers, scores), optional
        Returns the value and, for each row, n_rows times the derivative of the value by that row's weight: an array of
        mean zero whose mean square, divided by n_rows, is the value's variance. Without it intervals take the slower
        way by leaving out rows (:mod:`mlops_lib.quality.intervals`).
    needs_each_class : bool
        Whether an interval needs enough rows of each class, not only of all together.
    """

    name: str
    compute: Callable[[Any, Any], float]
    _: KW_ONLY
    greater_is_better: bool | None
    uses: Literal["prediction", "score"] = "prediction"
    influence: Influence | None = None
    needs_each_class: bool = True

    def measure(self, task: Task, y: Truth, y_score: Floats) -> float:
        """Return the value, from encoded truth and checked scores.

        Raises
        ------
        QualityError
            When the function raises, or returns something else than a finite number.
        """
        if self.influence is not None:
            return self.influence(y, y_score)[0]
        truth, given = y, task.decide_codes(y_score) if self.uses == "prediction" and task.is_classifier else y_score
        if task.kind == "multiclass":
            names = np.asarray(task.classes)
            truth, given = names[y], names[given] if self.uses == "prediction" else given[:, np.argsort(names)]
        try:
            value = float(self.compute(truth, given))
        except Exception as error:
            raise QualityError("no_value", metric=self.name, n_rows=len(y), reason=str(error)) from error
        if not math.isfinite(value):
            raise QualityError("no_value", metric=self.name, n_rows=len(y), reason=f"it is {value}")
        return value


# --- what each row does to a metric ------------------------------------------------------------------------------


def _count_by_score(y: Truth, score: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Return each row's rank among the distinct scores, ascending, and the negatives and positives at each rank."""
    values, rank = np.unique(score, return_inverse=True)
    counts = np.bincount(2 * rank + y, minlength=2 * len(values)).astype(np.float64)
    return rank, counts[0::2], counts[1::2]


def _roc_auc(y: Truth, score: Floats) -> tuple[float, Floats]:
    rank, negative, positive = _count_by_score(y, score)
    n_negative, n_positive = negative.sum(), positive.sum()
    below = (np.cumsum(negative) - negative / 2) / n_negative  # a tie counts half
    above = 1 - (np.cumsum(positive) - positive / 2) / n_positive
    value = positive @ below / n_positive
    is_positive = y == 1
    placement = np.where(is_positive, below[rank], above[rank])
    share = np.where(is_positive, n_positive, n_negative) / len(y)
    return float(value), (placement - value) / share


def _average_precision(y: Truth, score: Floats) -> tuple[float, Floats]:
    rank, negative, positive = _count_by_score(y, -score)
    hits = np.cumsum(positive)
    flagged = hits + np.cumsum(negative)
    precision = hits / flagged
    value = positive @ precision / hits[-1]
    # A row changes the precision at its own rank and at every later one: sums from each rank to the last.
    gain, loss = (np.cumsum(each[::-1])[::-1] for each in (positive / flagged, positive * hits / flagged**2))
    change = np.where(y == 1, precision[rank] - value + gain[rank], 0.0) - loss[rank]
    return float(value), change * len(y) / hits[-1]


def _mean(of_each_row: Callable[[Truth, Floats], Any]) -> Influence:
    def influence(y: Truth, score: Floats) -> tuple[float, Floats]:
        each = of_each_row(y, score)
        return float(each.mean()), each - each.mean()

    return influence


def _log_loss(y: Truth, score: Floats) -> Floats:
    of_truth = np.where(y == 1, score, 1 - score) if score.ndim == 1 else score[np.arange(len(y)), y]
    eps = np.finfo(np.float64).eps  # as scikit-learn does: a certain and wrong score costs 36, not infinity
    losses: Floats = -np.log(np.clip(of_truth, eps, 1 - eps))
    return losses


def _roc_auc_ovr(y: Truth, score: Floats) -> tuple[float, Floats]:
    return _average(_roc_auc((y == code).astype(np.int64), score[:, code]) for code in np.unique(y))


def _f1_macro(y: Truth, score: Floats) -> tuple[float, Floats]:
    predicted = score.argmax(axis=1)

    def of_class(code: int) -> tuple[float, Floats]:
        is_true, is_predicted = y == code, predicted == code
        hit, either = 2.0 * (is_true & is_predicted), 1.0 * is_true + is_predicted
        value = hit.mean() / either.mean()
        return float(value), (hit - value * either) / either.mean()

    return _average(of_class(code) for code in np.union1d(y, predicted))


def _average(classes: Iterable[tuple[float, Floats]]) -> tuple[float, Floats]:
    values, influences = zip(*classes, strict=True)
    return float(np.mean(values)), np.mean(influences, axis=0)


def _rmse(y: Truth, score: Floats) -> tuple[float, Floats]:
    squares = (score - y) ** 2
    value = math.sqrt(squares.mean())
    return value, (squares - squares.mean()) / (2 * value) if value else squares


def _r2(y: Truth, score: Floats) -> tuple[float, Floats]:
    squares, around_mean = (score - y) ** 2, (y - y.mean()) ** 2
    if not around_mean.any():
        raise QualityError("no_value", metric="r2", n_rows=len(y), reason=f"every target is {y[0]:g}")
    unexplained = squares.mean() / around_mean.mean()
    return float(1 - unexplained), (unexplained * around_mean - squares) / around_mean.mean()


def _median_absolute_error(y: Truth, score: Floats) -> tuple[float, Floats]:
    """By the sparsity of the errors around their median: leaving out rows makes too narrow intervals of medians.

    Koenker 2005, Quantile Regression, 3.4.2, with the bandwidth of Hall & Sheather 1988 for a median at 95 %.
    """
    errors = np.abs(score - y)
    value = np.median(errors)
    half = min(0.5, 0.972 * len(y) ** (-1 / 3))
    low, high = np.quantile(errors, [0.5 - half, 0.5 + half])
    above = 1.0 * (errors > value)
    return float(value), (above - above.mean()) * (high - low) / (2 * half)


# --- metrics by name ---------------------------------------------------------------------------------------------


def _exact(name: str, influence: Influence, *, greater_is_better: bool | None, **settings: Any) -> Metric:
    """Return a metric whose function is handed codes, and is that of its influence."""
    settings |= {"greater_is_better": greater_is_better, "uses": "score", "influence": influence}
    return Metric(name, lambda y, score: influence(y, score)[0], **settings)


_ACCURACY = _mean(lambda y, score: 1.0 * (score.argmax(axis=1) == y))
_LOG_LOSS = _exact("log_loss", _mean(_log_loss), greater_is_better=False)
_OF_TASK: Mapping[Kind, Sequence[Metric]] = {  # in the order of task.METRICS
    "binary": (
        _exact("roc_auc", _roc_auc, greater_is_better=True),
        _exact("average_precision", _average_precision, greater_is_better=True),
        _LOG_LOSS,
        _exact("brier", _mean(lambda y, score: (score - y) ** 2), greater_is_better=False),
    ),
    "multiclass": (
        _exact("accuracy", _ACCURACY, greater_is_better=True, needs_each_class=False),
        _LOG_LOSS,
        _exact("f1_macro", _f1_macro, greater_is_better=True),
        _exact("roc_auc_ovr", _roc_auc_ovr, greater_is_better=True),
    ),
    "regression": (
        _exact("mae", _mean(lambda y, score: np.abs(score - y)), greater_is_better=False),
        _exact("rmse", _rmse, greater_is_better=False),
        _exact("r2", _r2, greater_is_better=True),
        _exact("median_absolute_error", _median_absolute_error, greater_is_better=False),
        _exact("mean_error", _mean(lambda y, score: score - y), greater_is_better=None),
    ),
}


def find_metric(task: Task, name: str | Metric | None = None, own: Iterable[Metric] = ()) -> Metric:
    """Return a metric by its name: a project's own, one of the task's, or a function of ``sklearn.metrics``.

    Parameters
    ----------
    task : Task
    name : str or Metric, optional
        The task's leading metric by default; a :class:`Metric` is returned as it is.
    own : iterable of Metric
        The project's own.

    Raises
    ------
    NotFoundError
        With the names that are known.
    QualityError
        For a function of scikit-learn that does not say by its name and signature how it is to be used.
    """
    if isinstance(name, Metric):
        return name
    known = {metric.name: metric for metric in (*_OF_TASK[task.kind], *own)}
    if name is None:
        return known[task.metrics[0]]
    metric = known.get(name) or _from_sklearn(name)
    if metric is None:
        raise NotFoundError("metric", metric=str(name), metrics=tuple(known))
    return metric


def _from_sklearn(name: str) -> Metric | None:
    """Return a function of ``sklearn.metrics`` as a metric, None where there is none of that name."""
    from sklearn import metrics  # noqa: PLC0415 - 0.7 s, and listing versions needs none

    function = getattr(metrics, name, None) if name in metrics.__all__ else None
    if not inspect.isfunction(function):
        return None
    parameters = list(inspect.signature(function).parameters.values())
    second = parameters[1].name if len(parameters) > 1 else ""
    uses: Any = {"y_pred": "prediction", "y_score": "score", "y_proba": "score"}.get(second)
    ending = name.rpartition("_")[2]
    needed = [each.name for each in parameters[2:] if each.default is each.empty and each.kind != each.VAR_KEYWORD]
    if uses is None or ending not in ("score", "loss", "error") or needed:
        reason = f"it needs {', '.join(needed)}" if needed else "it does not say what it takes and what is better"
        raise QualityError("function", function=name, reason=reason)
    return Metric(name, function, greater_is_better=ending == "score", uses=uses)


def read_scores(task: Task, y_true: ArrayLike, y_score: ArrayLike) -> tuple[Task, Truth, Floats]:
    """Return the task with its classes, the encoded truth and the scores, or raise the error that names what is wrong.

    Raises
    ------
    QualityError
        For no rows or one class only, for other lengths, and for scores or labels that are none.
    """
    truth = np.asarray(y_true)
    task = task.learn_classes(truth)
    score = task.check_scores(y_score, len(truth))
    y = task.encode(truth)
    if task.is_classifier and y.min() == y.max():
        raise QualityError("one_class", value=task.class_values[y[0]], n_rows=len(y))
    return task, y, score


def compare_scores(task: Task, y: Truth, y_score: Floats) -> tuple[Floats, Truth]:
    """Return what each row's score says, and what was observed: their means agree where scores mean what they say.

    Of two classes the probability of the positive one, and whether it is; of several that of the predicted class, and
    whether it is; of numbers the prediction and the number.
    """
    if task.kind == "multiclass":
        return y_score.max(axis=1), 1 * (y_score.argmax(axis=1) == y)
    return y_score, y


def calibration_gap(task: Task) -> Metric:
    """Return by how much the mean score exceeds what was observed, as a metric that is best near zero."""
    gaps = _mean(lambda y, score: np.subtract(*compare_scores(task, y, score)))
    return _exact("calibration_gap", gaps, greater_is_better=None, needs_each_class=False)


def compute_metrics(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    task: Task = binary(),
    prefix: str = "",
    metrics: Iterable[str | Metric] = (),
) -> dict[str, float]:
    """Compute every metric of the task.

    Parameters
    ----------
    y_true : array-like of shape (n_rows,)
        As the label tables hold it.
    y_score : array-like of shape (n_rows,) or (n_rows, n_classes)
        Of two classes the probability of the positive one, of several that of each, or the predicted number.
    task : Task
    prefix : str
        Name of the split; ``"test"`` gives ``test_roc_auc``.
    metrics : iterable of str or Metric
        More of them; see :func:`find_metric`.

    Raises
    ------
    QualityError
        For no rows or one class only, for other lengths, and for scores or labels that are none: when a metric would be
        undefined. No metric is ever NaN.
    """
    task, y, score = read_scores(task, y_true, y_score)
    chosen = [find_metric(task, name) for name in (*task.metrics, *metrics)]
    start = f"{prefix}_" if prefix else ""
    return {f"{start}{metric.name}": metric.measure(task, y, score) for metric in chosen}
