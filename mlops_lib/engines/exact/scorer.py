"""The scorer itself: generated, compiled, and called with one row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.pipeline import Pipeline

from mlops_lib.engines.exact.models import write_model
from mlops_lib.engines.exact.source import Source
from mlops_lib.engines.exact.transforms import read_inputs, write_transformer
from mlops_lib.errors import NotExactError

# A scorer is faster than the pipeline up to 300 rows or more with every model that was measured (ci/bench compiled).
MAX_ROWS = 100


@dataclass(frozen=True)
class Scorer:
    """A fitted pipeline as one function of one row. It holds no state: any number of threads may call it.

    Parameters
    ----------
    model : fitted scikit-learn estimator
        Answers for the rows that the function leaves alone.
    dtypes : dict of str to str
        Features in the model's order, with the types that the pipeline's DataFrame has.
    source : str
        Generated; the same text for the same model.
    is_rowwise : bool
        Whether the pipeline gives a row the same bits alone and among others.
    thresholds : dict of str to list of float
        Where the model's answer changes, by feature: what edge cases are made of.
    """

    model: Any = field(repr=False)
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
        """Up to how many rows at once :meth:`predict_rows` equals the pipeline and is faster."""
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
        return tuple(np.ravel(predict(self.model, frame)).tolist())

    def score_row(self, row: Mapping[str, Any]) -> float:
        """Return the positive class's probability, or the prediction."""
        answer = self.predict_row(row)
        return answer[1] if len(answer) > 1 else answer[0]

    def answer_rows(self, rows: pd.DataFrame) -> list[tuple[float, ...] | None]:
        """Return the function's own answer to each row: None where it leaves the row to the pipeline."""
        return list(map(self.function, *[rows[name].tolist() for name in self.dtypes]))

    def predict_rows(self, rows: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return what the pipeline would, of shape (n_rows, n_classes) or (n_rows,); if a row is unsure, ask it."""
        answers = self.answer_rows(rows) if len(rows) <= self.max_rows else [None]
        if None in answers:
            return predict(self.model, rows[list(self.dtypes)])
        made = np.array(answers, dtype=np.float64)
        return made if made.shape[1] > 1 else made[:, 0]


def predict(model: Any, rows: Any) -> npt.NDArray[np.float64]:
    """Return the pipeline's probabilities of each class, or its predictions, as float64."""
    method = model.predict_proba if hasattr(model, "predict_proba") else model.predict
    return np.asarray(method(rows), dtype=np.float64)


def generate(model: Any, dtypes: Mapping[str, str]) -> Scorer:
    """Generate the scorer of a fitted pipeline.

    Parameters
    ----------
    model : fitted scikit-learn estimator or Pipeline
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
    text = source.render(list(types))
    scope: dict[str, Any] = {}
    exec(compile(text, "<scorer>", "exec"), scope)  # our own text, made a line above from a verified model
    thresholds = {name: sorted(values) for name, values in source.thresholds.items()}
    return Scorer(model, types, text, source.is_rowwise, thresholds, scope["score"])
