"""What a model is asked for: one of two classes, one of several, or a number.

A :class:`Task` is declared by the project, completed by the fitted model (whose classes it takes), written into the
model's metadata and read back from there. It is the one place that knows what a target may hold, what a model returns,
which metrics belong to it, which columns a prediction has and how few rows are too few. Classes are whatever the label
tables hold: texts, whole numbers, truth values.

What a model returns for rows of shape (n_rows, n_features), its *scores*, is one array: the probability of the
positive class, of shape (n_rows,); that of each class in the order of ``classes``, of shape (n_rows, n_classes); or the
number itself, of shape (n_rows,).

>>> binary(positive="late").with_classes(["late", "on time"]).decide([0.2, 0.7]).tolist()
['on time', 'late']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_lib.errors import QualityError, TaskError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["binary", "multiclass", "regression"]

# The metrics of each task by name, the leading one first; mlops_lib.quality computes them.
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "brier"),
    "multiclass": ("accuracy", "log_loss", "f1_macro", "roc_auc_ovr"),
    "regression": ("mae", "rmse", "r2", "median_absolute_error", "mean_error"),
}
# Below these an interval is not to be trusted (benchmarks: gates): rows of each class, or rows of a number.
MIN_PER_CLASS = 30
MIN_ROWS = 30


@dataclass(frozen=True)
class Task:
    """What a model is asked for.

    Parameters
    ----------
    kind : {"binary", "multiclass", "regression"}
    classes : tuple of str, int, float or bool
        In the order in which the model returns their probabilities; empty for numbers, and until a model names them.
    positive : str, int, float or bool, optional
        Of two classes the one whose probability is the score.
    threshold : float in [0, 1], optional
        Of two classes: a score at or above it is called the positive class.

    Raises
    ------
    TaskError
        When they contradict each other.
    """

    kind: Kind
    classes: tuple[Any, ...] = ()
    positive: Any = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Hold the fields against each other."""
        reason = ""
        if self.kind not in METRICS:
            reason = f"is none of {', '.join(METRICS)}"
        elif (self.kind == "binary") != (self.positive is not None and self.threshold is not None):
            reason = "needs a positive class and a threshold where there are two classes, and only there"
        elif self.threshold is not None and not 0 <= self.threshold <= 1:
            reason = f"has the threshold {self.threshold}, needs one from 0 to 1"
        elif (
            self.kind == "binary"
            and self.classes
            and (len(set(self.classes)) != 2 or self.positive not in self.classes)
        ):
            reason = f"has the classes {self.classes}, needs {self.positive!r} and another one"
        elif self.kind == "multiclass" and len(self.classes) in (1, 2):
            reason = f"has the classes {self.classes}, needs three or more"
        if reason:
            raise TaskError(subject=f"The task {self.kind!r}", reason=reason)

    def __str__(self) -> str:
        """Return kind, classes and operating point for people."""
        point = "" if self.threshold is None else f"; {self.positive} from a score of {self.threshold:g} on"
        return f"{self.kind}{': ' if self.classes else ''}{', '.join(map(str, self.classes))}{point}"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of this task's metrics, the leading one first."""
        return METRICS[self.kind]

    @property
    def is_classifier(self) -> bool:
        """Whether the target is a class."""
        return self.kind != "regression"

    @property
    def negative(self) -> Any:
        """Of two classes the one that is not positive; None while no model has named it."""
        return next((each for each in self.classes if each != self.positive), None)

    @property
    def class_values(self) -> NDArray[Any]:
        """The classes in the order of their codes (:meth:`encode`): of two the negative one first."""
        classes = (self.negative, self.positive) if self.kind == "binary" else self.classes
        values = np.asarray(classes)
        return values if values.dtype.kind in "biuf" else np.array(classes, dtype=object)

    def with_classes(self, classes: Iterable[Any]) -> Task:
        """Return the task with the classes that a model or a table has, in their order."""
        return replace(self, classes=tuple(_plain(each) for each in classes))

    def learn_classes(self, y_true: ArrayLike) -> Task:
        """Return the task with the classes that labels hold, numbers before texts, where it knows none yet."""
        if self.classes or not self.is_classifier:
            return self
        import pandas as pd  # noqa: PLC0415 - as below

        values = {_plain(value) for value in pd.unique(pd.Series(np.asarray(y_true)).dropna())}
        return self.with_classes(sorted(values, key=lambda value: (isinstance(value, str), value)))

    # --- the model ---------------------------------------------------------------------------------------------------

    def fit_to(self, model: Any, *, name: str = "The model") -> Task:
        """Return the task with a fitted model's classes and its own threshold, if it has one.

        ``FixedThresholdClassifier`` and ``TunedThresholdClassifierCV`` bring a threshold, which then counts.

        Raises
        ------
        TaskError
            For a model of another task: other or too few classes, several outputs, no probabilities.
        """
        reason = self._misfit(model)
        if reason:
            raise TaskError(subject=name, reason=reason)
        if not self.is_classifier:
            return self
        threshold, last = self.threshold, _last_step(model)
        if _has_threshold(last):
            own: Any = last.best_threshold_ if hasattr(last, "best_threshold_") else last.threshold
            threshold = 0.5 if own == "auto" else float(own)
        return replace(self, classes=tuple(_plain(each) for each in model.classes_), threshold=threshold)

    def _misfit(self, model: Any) -> str:  # noqa: PLR0911 - a list of reasons
        """Return why a model is not of this task, or nothing."""
        from sklearn.base import is_classifier  # noqa: PLC0415 - 1 s, and who reads a project's name need not wait

        if self.is_classifier != is_classifier(model):
            return f"{'is a' if is_classifier(model) else 'is no'} classifier, and the project's task is {self.kind}"
        if getattr(model, "n_outputs_", 1) != 1 or isinstance(getattr(model, "classes_", None), list):
            return "has several outputs; train one model for each"
        if not self.is_classifier:
            return ""
        if not hasattr(model, "predict_proba"):
            return "gives no probabilities; wrap it in sklearn.calibration.CalibratedClassifierCV"
        classes = tuple(_plain(each) for each in model.classes_)
        if len(classes) < 2 or (self.kind == "binary") != (len(classes) == 2):
            return f"knows the classes {classes}, and the project's task is {self.kind}"
        if self.classes and set(classes) != set(self.classes):
            return f"knows the classes {classes}, and the project's task has {self.classes}"
        if self.kind == "binary" and self.positive not in classes:
            return f"knows the classes {classes}, and the positive one is {self.positive!r}"
        last = _last_step(model)
        if self.kind == "binary" and _has_threshold(last):
            # TunedThresholdClassifierCV has the label that its scorer has, which nothing public tells.
            label = last.pos_label if hasattr(last, "pos_label") else last._curve_scorer._get_pos_label()
            label = last.classes_[1] if label is None else label
            estimator = getattr(last, "estimator_", last.estimator)
            has_scores = hasattr(estimator, "predict_proba") and last.response_method != "decision_function"
            if not has_scores or label != self.positive:
                return f"has a threshold of its own that is not on the probability of {self.positive!r}"
        return ""

    @property
    def predict_method(self) -> Literal["predict", "predict_proba"]:
        """The method of the model that scores; this is the only place that chooses."""
        return "predict_proba" if self.is_classifier else "predict"

    def predict_all(self, model: Any, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return what MLflow's own scoring does: the probability of every class, of two also, or the number itself."""
        return np.asarray(getattr(model, self.predict_method)(X))

    def predict(self, model: Any, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return a fitted model's scores for rows of shape (n_rows, n_features); see the module's first lines."""
        scores = self.predict_all(model, X)
        return scores[:, self.classes.index(self.positive)] if self.kind == "binary" else scores

    # --- what it predicts ---------------------------------------------------------------------------------------------

    def decide(self, y_score: ArrayLike) -> NDArray[Any]:
        """Return what is predicted: a class for each row, or the number itself."""
        if not self.is_classifier:
            return np.asarray(y_score, dtype=np.float64)
        return self.class_values[self.decide_codes(y_score)]

    def decide_codes(self, y_score: ArrayLike) -> NDArray[np.intp]:
        """Return the position in ``class_values`` of each row's predicted class."""
        y_score = np.asarray(y_score, dtype=np.float64)
        if self.kind == "multiclass":
            return np.asarray(y_score.argmax(axis=1))
        if self.threshold is None:
            raise TaskError(subject=f"The task '{self.kind}'", reason="has no classes to decide between")
        return (y_score >= self.threshold).astype(np.intp)

    def to_columns(self, y_score: ArrayLike) -> dict[str, NDArray[Any]]:
        """Return the columns of a prediction, each of shape (n_rows,).

        Two classes: ``score``, the probability of the positive one, and ``prediction``. Several: ``prediction``,
        ``score``, the probability of that class, and ``score_<class>`` of each. A number: ``prediction``.
        """
        y_score = np.asarray(y_score, dtype=np.float64)
        prediction = self.decide(y_score)
        if self.kind == "regression":
            return {"prediction": prediction}
        if self.kind == "binary":
            return {"score": y_score, "prediction": prediction}
        each = dict(zip(self.score_columns, y_score.T, strict=True))
        return {"prediction": prediction, "score": y_score.max(axis=1), **each}

    def columns(self) -> tuple[str, ...]:
        """Return the names of :meth:`to_columns` in order."""
        return tuple(self.to_columns(np.empty((0, len(self.classes)) if self.kind == "multiclass" else 0)))

    @property
    def score_columns(self) -> tuple[str, ...]:
        """Those of :meth:`to_columns` that hold the scores."""
        if self.kind == "multiclass":
            return tuple(f"score_{name}" for name in self.classes)
        return ("score",) if self.kind == "binary" else ("prediction",)

    def from_columns(self, predictions: pd.DataFrame) -> NDArray[np.float64]:
        """Return the scores that :meth:`to_columns` was given."""
        scores = predictions[list(self.score_columns)].to_numpy(dtype=np.float64)
        return scores if self.kind == "multiclass" else scores[:, 0]

    # --- what is true, and what is held against it -------------------------------------------------------------------

    def encode(self, y_true: ArrayLike) -> NDArray[Any]:
        """Return the target as numbers: 0 and 1, the positive class being 1; the position of each class; the number.

        Parameters
        ----------
        y_true : array-like of shape (n_rows,)
            As the label tables hold it: 1, 1.0 and True are one class, ``"1"`` is another. A task that knows no classes
            yet takes those that are here.

        Raises
        ------
        QualityError
            For a missing label, a class that is none of ``classes``, a number that is not finite. Nothing was computed.
        """
        import pandas as pd  # noqa: PLC0415 - as above

        given = pd.Series(np.asarray(y_true))
        if self.kind == "regression":
            numbers = pd.to_numeric(given, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            bad = ~np.isfinite(numbers)
            if bad.any():
                raise QualityError("labels", values=tuple(map(str, given[bad].unique())), known="finite numbers")
            return numbers
        codes, uniques = pd.factorize(given, use_na_sentinel=False)
        values = [_plain(value) for value in np.asarray(uniques, dtype=object)]
        order = self.learn_classes(y_true).class_values.tolist()
        position = {name: number for number, name in enumerate(order)}
        known = [position.get(value, -1) for value in values]
        unknown = tuple(str(value) for value, code in zip(values, known, strict=True) if code < 0)
        if unknown:
            raise QualityError("labels", values=unknown, known=" and ".join(map(str, order)))
        return np.asarray(known, dtype=np.int64)[codes]

    def check_scores(self, y_score: ArrayLike, n_rows: int) -> NDArray[np.float64]:
        """Return scores as an array of this task's shape.

        Raises
        ------
        QualityError
            For no rows, another number of rows or classes, and what is no probability or no finite number.
        """
        given = np.asarray(y_score)
        if not n_rows and not len(given):
            raise QualityError("no_rows", what="the labels and scores")
        if self.kind == "multiclass" and given.shape[1:] != (len(self.classes),):
            n_columns = given.shape[1] if given.ndim == 2 else 1
            raise QualityError("classes", n_classes=len(self.classes), n_columns=n_columns)
        if self.kind != "multiclass":
            given = given.ravel()  # both columns of predict_proba: twice too many
        if len(given) != n_rows:
            raise QualityError("lengths", n_true=n_rows, n_score=len(given), what="scores")
        is_number = given.dtype.kind in "fiub"  # numpy would read "0.9" as one
        scores = given.astype(np.float64) if is_number else np.full(given.shape, np.nan)
        is_sound = np.isfinite(scores) if self.kind == "regression" else (scores >= 0) & (scores <= 1)  # NaN: false
        if self.kind == "multiclass":
            is_sound = is_sound.all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < 1e-3)
        bad = np.flatnonzero(~is_sound)
        if len(bad):
            n_bad, row = len(bad), int(bad[0])
            first = str(scores[row]) if is_number else repr(given[row])
            if self.kind == "regression":
                raise QualityError("numbers", n_bad=n_bad, n_rows=n_rows, first_value=first, first_row=row)
            raise QualityError("scores", n_bad=n_bad, n_rows=n_rows, first_value=first, first_row=row)
        return scores

    # --- stored beside a model ---------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        values = {
            "kind": self.kind,
            "classes": list(self.classes),
            "positive": self.positive,
            "threshold": self.threshold,
        }
        return {name: value for name, value in values.items() if value not in (None, [])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Read back what :meth:`to_dict` wrote."""
        return cls(**{**values, "classes": tuple(values.get("classes", ()))})


def binary(positive: Any = 1, *, negative: Any = None, threshold: float = 0.5) -> Task:
    """Return the task of telling one class from another.

    Parameters
    ----------
    positive : str, int, float or bool
        The class whose probability is the score.
    negative : str, int, float or bool, optional
        The other one; 0 where the positive one is 1, else what the model or the labels have besides.
    threshold : float in [0, 1]
        Operating point: a score at or above it is called positive.
    """
    if negative is None and positive == 1:
        negative = type(positive)(0)
    return Task("binary", () if negative is None else (negative, positive), positive, threshold)


def multiclass(classes: Iterable[Any] = ()) -> Task:
    """Return the task of telling three classes or more apart; by default those that the model has."""
    return Task("multiclass", tuple(_plain(each) for each in classes))


def regression() -> Task:
    """Return the task of predicting a number."""
    return Task("regression")


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as Python's own value, others as they are."""
    return value.item() if hasattr(value, "item") else value


def _last_step(model: Any) -> Any:
    """Return what a pipeline ends with, or the model itself."""
    return model.steps[-1][1] if hasattr(model, "steps") else model


def _has_threshold(model: Any) -> bool:
    """Return whether it is one of scikit-learn's classifiers with a threshold of its own."""
    return hasattr(model, "response_method") and hasattr(model, "estimator")
