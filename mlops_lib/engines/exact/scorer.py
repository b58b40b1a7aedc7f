"""The scorer itself: generated, compiled, and called with one row; and what makes it a stand-in for its model."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if

from mlops_lib.engines.exact.models import write_model
from mlops_lib.engines.exact.source import Source
from mlops_lib.engines.exact.transforms import read_inputs, write_transformer
from mlops_lib.errors import NotExactError

# A scorer is faster than the pipeline up to 300 rows or more with every model that was measured (ci/bench compiled).
MAX_ROWS = 100
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StandIn:
    """Answers like a model, by the one method that it was proven for; it has no other.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    method : {"predict_proba", "predict"}
    """

    model: Any = field(repr=False)
    method: str

    @abstractmethod
    def answer(self, rows: pd.DataFrame) -> Floats:
        """Return what the model's method would: of shape (n_rows, n_classes), or (n_rows,)."""

    @available_if(lambda self: self.method == "predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, rows: pd.DataFrame) -> Floats:
        """Return the probability of each class, of shape (n_rows, n_classes)."""
        return self._answer_or_ask(rows)

    @available_if(lambda self: self.method == "predict")  # type: ignore[untyped-decorator]
    def predict(self, rows: pd.DataFrame) -> Floats:
        """Return the predicted numbers, of shape (n_rows,)."""
        return self._answer_or_ask(rows)

    def _answer_or_ask(self, rows: pd.DataFrame) -> Floats:
        try:
            return self.answer(rows)
        except Exception:  # noqa: BLE001 - no fault of a shortcut may keep rows from being scored
            return ask(self.model, self.method, rows)


@dataclass(frozen=True)
class Scorer(StandIn):
    """A fitted pipeline as one function of one row. It holds no state: any number of threads may call it.

    Parameters
    ----------
    dtypes : dict of str to str
        Features in the model's order, with the types that the pipeline's DataFrame has.
    source : str
        Generated; the same text for the same model.
    is_rowwise : bool
        Whether the pipeline gives a row the same bits alone and among others.
    thresholds : dict of str to list of float
        Where the model's answer changes, by feature: what edge cases are made of.
    function : callable
        Takes the values of one row; returns None where it leaves the row to the pipeline.
    """

    dtypes: dict[str, str] = field(repr=False)
    source: str = field(repr=False)
    is_rowwise: bool
    thresholds: dict[str, list[float]] = field(repr=False)
    function: Callable[..., tuple[float, ...] | None] = field(repr=False)

    @property
    def sha256(self) -> str:
        """Identity of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def max_rows(self) -> int:
        """Up to how many rows at once the function equals the pipeline and is faster."""
        return MAX_ROWS if self.is_rowwise else 1

    def predict_row(self, row: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the probability of each class, or the one prediction, of a row.

        Parameters
        ----------
        row : mapping of feature to value
            Numbers, strings and booleans as the contract reads them; None or NaN where a value is missing.
        """
        answer = self.function(*[row[name] for name in self.dtypes])
        if answer is not None:
            return answer
        frame = pd.DataFrame({name: pd.Series([row[name]], dtype=dtype) for name, dtype in self.dtypes.items()})
        return tuple(np.ravel(ask(self.model, self.method, frame)).tolist())

    def answer_rows(self, rows: pd.DataFrame) -> list[tuple[float, ...] | None]:
        """Return the function's own answer to each row: None where it leaves the row to the pipeline."""
        return list(map(self.function, *[rows[name].tolist() for name in self.dtypes]))

    def answer(self, rows: pd.DataFrame) -> Floats:
        """Return what the pipeline would; if a row is unsure, ask it."""
        answers = self.answer_rows(rows) if len(rows) <= self.max_rows else [None]
        if None in answers:
            return ask(self.model, self.method, rows[list(self.dtypes)])
        table = np.array(answers, dtype=np.float64)
        return table if self.method == "predict_proba" else table[:, 0]


def ask(model: Any, method: str, rows: Any) -> Floats:
    """Return a model's own answer, as float64."""
    return np.asarray(getattr(model, method)(rows), dtype=np.float64)


def generate(model: Any, method: str, dtypes: Mapping[str, str]) -> Scorer:
    """Generate the scorer of a fitted pipeline.

    Parameters
    ----------
    model : fitted scikit-learn estimator or Pipeline
    method : {"predict_proba", "predict"}
        Whose answers it gives: probabilities of a classifier, predictions of a regressor.
    dtypes : mapping of str to str
        Types of the DataFrame that the pipeline gets, by feature, in order: float64, integers, bool, str, category.

    Raises
    ------
    NotExactError
        Naming the first part that has no exact scorer.
    """
    if not all(isinstance(name, str) for name in dtypes):
        raise NotExactError(what="columns without names", supported="a DataFrame with names is")
    source, types = Source(), dict(dtypes)
    matrix = read_inputs(source, types)
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    for step in steps[:-1]:
        matrix = write_transformer(source, step, matrix)
    write_model(source, steps[-1], matrix)
    if is_classifier(steps[-1]) != (method == "predict_proba"):
        what = f"{method} of a {'classifier' if is_classifier(steps[-1]) else 'regressor'}"
        raise NotExactError(what=what, supported="predict_proba of a classifier and predict of a regressor are")
    text = source.render(list(types))
    scope: dict[str, Any] = {}
    exec(compile(text, "<scorer>", "exec"), scope)  # our own text, made a line above from a verified model
    thresholds = {name: sorted(values) for name, values in source.thresholds.items()}
    return Scorer(model, method, types, text, source.is_rowwise, thresholds, scope["score"])
