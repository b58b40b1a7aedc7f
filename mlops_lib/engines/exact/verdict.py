"""Proof and verdict: a scorer against its pipeline, bit for bit, and what is stored of it."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.pipeline import Pipeline

from mlops_lib.engines.exact.batches import write_batches
from mlops_lib.engines.exact.scorer import Scorer, generate, predict
from mlops_lib.errors import NotExactError

SINGLE_ROWS = 20  # called one by one with the whole pipeline, 3 ms each
THRESHOLDS = 10
VERSIONS = ("numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Comparison:
    """A scorer held against its pipeline.

    Parameters
    ----------
    n_rows : int
        Rows that the scorer answered, each compared.
    n_declined : int
        Rows that it left to the pipeline.
    n_single : int
        Of ``n_rows``, compared with the whole pipeline called with that one row too.
    n_different : int
    """

    n_rows: int
    n_declined: int
    n_single: int
    n_different: int

    @property
    def is_equal(self) -> bool:
        """Whether anything was compared, and all of it is bit for bit the same."""
        return self.n_rows > 0 and self.n_different == 0


def check_exact(scorer: Scorer, rows: pd.DataFrame, *, n_single: int = SINGLE_ROWS) -> Comparison:
    """Compare a scorer with its pipeline, bit for bit.

    Parameters
    ----------
    rows : DataFrame of shape (n_rows, n_features)
        With the types of ``scorer.dtypes``. Every row that the scorer answers is compared with a batch, or, where the
        pipeline gives a row other bits in a batch, with the last step multiplying each prepared row alone.
    n_single : int
        So many rows are also compared with the whole pipeline called with each of them alone.
    """
    columns = list(scorer.dtypes)
    answers = list(map(scorer.function, *[_cells(rows[name]) for name in columns]))
    taken = [i for i, answer in enumerate(answers) if answer is not None]
    single = taken[:: max(1, math.ceil(len(taken) / max(1, n_single)))]
    different: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unknown categories, which are here on purpose
        for some in [taken, *([i] for i in single)] if taken else []:
            ours = np.array([answers[i] for i in some])
            different |= {some[i] for i in _differ(ours, _predict(scorer, rows[columns].iloc[some]))}
    return Comparison(len(taken), len(answers) - len(taken), len(single), len(different))


def _cells(column: pd.Series[Any]) -> list[Any]:
    """Return the values as a caller may give them: a missing one as None, or, in every second row, as NaN."""
    as_nan = np.arange(len(column)) % 2 == 1
    return column.astype(object).where(column.notna() | as_nan, None).tolist()


def _predict(scorer: Scorer, rows: pd.DataFrame) -> npt.NDArray[np.float64] | None:
    """Return what the pipeline gives each of the rows alone; None where it refuses them."""
    model = scorer.model
    try:
        return predict(model if scorer.is_rowwise or len(rows) == 1 else _one_by_one(model), rows)
    except ValueError:
        return None


class _EachRow(np.ndarray[Any, np.dtype[np.float64]]):
    """Coefficients that each row is multiplied with alone, as BLAS does it for a matrix of one row."""

    def __rmatmul__(self, rows: Any) -> Any:
        each = np.ascontiguousarray(rows)[:, np.newaxis]  # contiguous, as one row always is
        return np.matmul(each, self.view(np.ndarray))[:, 0]


def _one_by_one(model: Any) -> Any:
    """Return a linear model, or a pipeline that ends in one, that gives each of many rows the bits it has alone."""
    if isinstance(model, Pipeline):
        return Pipeline([*model.steps[:-1], (model.steps[-1][0], _one_by_one(model[-1]))])
    alone = copy.copy(model)
    alone.coef_ = model.coef_.view(_EachRow)
    return alone


def _differ(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64] | None) -> list[int]:
    """Return the rows in which any bit differs; the sign of a zero counts."""
    if theirs is None:
        return list(range(len(ours)))
    theirs = np.ascontiguousarray(theirs.reshape(len(theirs), -1))
    if ours.shape != theirs.shape:
        return list(range(len(ours)))
    return np.flatnonzero((ours.view(np.int64) != theirs.view(np.int64)).any(axis=1)).tolist()


def make_edge_cases(scorer: Scorer, rows: pd.DataFrame, *, random_state: int = 0) -> pd.DataFrame:
    """Return rows that training does not have, made from those that it has.

    In each, one feature is changed: missing, zero of either sign, the smallest numbers and large ones, the neighbours
    of the model's own thresholds, for float32 too; an unseen, an empty, a longer category. Then rows whose columns are
    shuffled, so that values meet that never met.
    """
    rng = np.random.default_rng(random_state)
    base = rows[list(scorer.dtypes)].head(1000)
    records = []
    for name, dtype in scorer.dtypes.items():
        for value in _edge_values(scorer, base[name], name, dtype, rng):
            records.append({**base.iloc[int(rng.integers(len(base)))].to_dict(), name: value})
    shuffled = base.apply(lambda column: column.sample(frac=1, random_state=int(rng.integers(2**31))).to_numpy())
    records += shuffled.head(200).to_dict("records")
    return pd.DataFrame(
        {name: pd.Series([record[name] for record in records], dtype=dtype) for name, dtype in scorer.dtypes.items()}
    )


def _edge_values(scorer: Scorer, column: pd.Series[Any], name: str, dtype: str, rng: np.random.Generator) -> list[Any]:
    if dtype.startswith("bool"):
        return [True, False]
    if dtype.startswith(("int", "uint")):
        return [0, 1, 2, 100]
    if dtype != "float64":
        known = [value for value in column.dropna().unique().tolist() if isinstance(value, str)][:10]
        return [None, "", " ", "unseen", "\u00fcnseen", "None", "nan", *known, *(f"{value}\x00" for value in known[:3])]
    values = [math.nan, 0.0, -0.0, 5e-324, -5e-324, 1.0, -1.0, 0.5, 1e29, -1e29, 1e31, 1e300, -1e300]
    limits = scorer.thresholds.get(name, [])
    some = rng.choice(limits, min(len(limits), THRESHOLDS), replace=False).tolist() if limits else []
    for limit in some:
        values += [limit, math.nextafter(limit, math.inf), math.nextafter(limit, -math.inf), float(np.float32(limit))]
    return values


def prove(model: Any, rows: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict on a model's scorer, ready to be stored beside the model.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    rows : DataFrame of shape (n_rows, n_features)
        A sample of the training data.

    Returns
    -------
    dict
        ``equal``, and ``reason`` where it is False; ``dtypes``, ``sha256`` of the source, how many rows were compared,
        ``batches``, whether :func:`batches_for` has a faster way for many rows, and the ``versions`` that it holds for.
    """
    dtypes: dict[Any, str] = {name: str(dtype) for name, dtype in rows.dtypes.items()}
    try:
        scorer = generate(model, dtypes)
        cases = pd.concat([rows, make_edge_cases(scorer, rows)], ignore_index=True)
        cases = cases.astype(dtypes)
        found = check_exact(scorer, cases)
    except NotExactError as error:
        return {"equal": False, "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - no fault of this shortcut may keep a model from being logged
        return {"equal": False, "reason": f"{type(error).__name__}: {error}"}
    facts = {
        "dtypes": dtypes,
        "n_rows": found.n_rows,
        "n_declined": found.n_declined,
        "n_single": found.n_single,
        "sha256": scorer.sha256,
        "batches": _is_exact_in_batches(model, cases),
        "versions": _versions(),
    }
    if not found.is_equal:
        reason = f"{found.n_different} of {found.n_rows} rows differ from the pipeline"
        return {"equal": False, "reason": reason, **facts}
    return {"equal": True, **facts}


def scorer_for(model: Any, verdict: Mapping[str, Any]) -> Scorer | None:
    """Generate the scorer of a verified model again, if the stored verdict holds for it here; else return None.

    Parameters
    ----------
    model : fitted scikit-learn estimator
        As the verified loader returned it.
    verdict : mapping
        As :func:`prove` made it; empty for a model without one.
    """
    if not verdict.get("equal") or verdict.get("versions") != _versions():
        return None
    try:
        scorer = generate(model, verdict["dtypes"])
    except NotExactError:
        return None
    return scorer if scorer.sha256 == verdict["sha256"] else None


def batches_for(model: Any, verdict: Mapping[str, Any]) -> Callable[[pd.DataFrame], Any] | None:
    """Return what scores many rows of a verified model faster and bit-equal, if the stored verdict holds here; or None.

    Parameters are those of :func:`scorer_for`. The function takes rows of shape (n_rows, n_features) and returns
    (n_rows,): the positive class's probability, or the prediction.
    """
    if not verdict.get("batches") or verdict.get("versions") != _versions():
        return None
    return write_batches(model)


def _is_exact_in_batches(model: Any, rows: pd.DataFrame) -> bool:
    """Whether there is a faster way for many rows that gives each of them the pipeline's bits."""
    try:
        score = write_batches(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown categories, which are here on purpose
            theirs = predict(model, rows)
            ours = score(rows)
    except (NotExactError, ValueError):
        return False
    return not _differ(ours.reshape(-1, 1), theirs[:, 1] if theirs.ndim > 1 else theirs)


def _versions() -> dict[str, str]:
    """Return what the order of additions depends on."""
    return {name: importlib.metadata.version(name) for name in VERSIONS} | {"machine": platform.machine()}
