"""Proof and verdict: a scorer against its pipeline, bit for bit, and what is stored of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from mlops_lib.engines.exact.batches import write_batches
from mlops_lib.engines.exact.scorer import Floats, Scorer, StandIn, ask, generate
from mlops_lib.errors import NotExactError

SINGLE_ROWS = 20  # called one by one with the whole pipeline, 3 ms each
THRESHOLDS = 10
# Cells of the tables that a proof compares, so that its time and memory are linear in columns: of a wide table fewer
# rows are looked at, and each row of the edge cases has an edge in several columns at once.
MAX_CELLS = 500_000
VERSIONS = ("numpy", "scipy", "scikit-learn")
NUMBERS = (math.nan, 0.0, -0.0, 5e-324, -5e-324, 1.0, -1.0, 0.5, 1e29, -1e29, 1e31, 1e300, -1e300)
TEXTS = (None, "", " ", "unseen", "\u00fcnseen", "None", "nan")


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
        pipeline gives a row other bits in a batch, with the last step called with each prepared row alone.
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
            different |= {some[i] for i in _differ(ours, _ask_alone(scorer, rows[columns].iloc[some]))}
    return Comparison(len(taken), len(answers) - len(taken), len(single), len(different))


def _cells(column: pd.Series[Any]) -> list[Any]:
    """Return the values as a caller may give them: a missing one as None, or, in every second row, as NaN."""
    as_nan = np.arange(len(column)) % 2 == 1
    return column.astype(object).where(column.notna() | as_nan, None).tolist()


def _ask_alone(scorer: Scorer, rows: pd.DataFrame) -> Floats | None:
    """Return what the pipeline gives each of the rows alone; None where it refuses them."""
    model, method = scorer.model, scorer.method
    try:
        if scorer.is_rowwise or len(rows) == 1:
            return ask(model, method, rows)
        last, X = (model[-1], model[:-1].transform(rows)) if isinstance(model, Pipeline) else (model, rows)
        X = np.ascontiguousarray(X)  # as one row always is
        return np.concatenate([ask(last, method, X[i : i + 1]) for i in range(len(X))])
    except ValueError:
        return None


def _differ(ours: Floats, theirs: Floats | None) -> list[int]:
    """Return the rows in which any bit differs; the sign of a zero counts."""
    if theirs is None:
        return list(range(len(ours)))
    ours, theirs = (np.ascontiguousarray(answers.reshape(len(answers), -1)) for answers in (ours, theirs))
    if ours.shape != theirs.shape:
        return list(range(len(ours)))
    return np.flatnonzero((ours.view(np.int64) != theirs.view(np.int64)).any(axis=1)).tolist()


def make_edge_cases(scorer: Scorer, rows: pd.DataFrame, *, random_state: int = 0) -> pd.DataFrame:
    """Return rows that training does not have, made from those that it has.

    In each, one feature is changed (of very many, several): missing, zero of either sign, the smallest numbers and
    large ones, the neighbours of the model's own thresholds, for float32 too; an unseen, an empty, a longer category.
    Then rows whose columns are shuffled, so that values meet that never met.
    """
    rng = np.random.default_rng(random_state)
    base, most = rows[list(scorer.dtypes)].head(1000).reset_index(drop=True), _most_rows(len(scorer.dtypes))
    values = {name: _edge_values(scorer, base[name], name, dtype, rng) for name, dtype in scorer.dtypes.items()}
    n_rows = min(sum(map(len, values.values())), most)
    edges = base.iloc[rng.integers(len(base), size=n_rows)]
    shuffled = base.apply(lambda column: column.iloc[rng.permutation(len(base))].to_numpy())
    first, columns = 0, {}
    for name, dtype in scorer.dtypes.items():
        cells = edges[name].tolist()
        for at, value in enumerate(values[name], first):
            cells[at % n_rows] = value
        first += len(values[name])
        columns[name] = pd.Series([*cells, *shuffled[name].head(min(200, most)).tolist()], dtype=dtype)
    return pd.DataFrame(columns)


def _most_rows(n_columns: int) -> int:
    return max(50, MAX_CELLS // n_columns)


def _edge_values(scorer: Scorer, column: pd.Series[Any], name: str, dtype: str, rng: np.random.Generator) -> list[Any]:
    if dtype.startswith("bool"):
        return [True, False]
    if dtype.startswith(("int", "uint")):
        return [0, 1, 2, 100]
    if dtype != "float64":
        known = [value for value in column.dropna().unique().tolist() if isinstance(value, str)][:10]
        return [*TEXTS, *known, *(f"{value}\x00" for value in known[:3])]
    values, limits = list(NUMBERS), scorer.thresholds.get(name, [])
    for limit in rng.choice(limits, min(len(limits), THRESHOLDS), replace=False).tolist() if limits else []:
        values += [limit, math.nextafter(limit, math.inf), math.nextafter(limit, -math.inf), float(np.float32(limit))]
    return values


def prove(model: Any, method: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict on a model's scorer, ready to be stored beside the model.

    Parameters
    ----------
    model : fitted scikit-learn estimator
    method : {"predict_proba", "predict"}
        By which the caller asks the model, and so its stand-ins.
    rows : DataFrame of shape (n_rows, n_features)
        A sample of the training data.

    Returns
    -------
    dict
        ``equal``, and ``reason`` where it is False; ``method``, ``dtypes``, ``sha256`` of the source, how many rows
        were compared, ``batches``, whether :func:`batches_for` has a faster way for many rows, and the ``versions``
        that it holds for.
    """
    dtypes: dict[Any, str] = {name: str(dtype) for name, dtype in rows.dtypes.items()}
    try:
        scorer = generate(model, method, dtypes)
        rows = rows.head(_most_rows(len(dtypes)))
        cases = pd.concat([rows, make_edge_cases(scorer, rows)], ignore_index=True)
        cases = cases.astype(dtypes).copy()  # in few blocks: each row that is taken out visits them all
        comparison = check_exact(scorer, cases)
        facts = {
            "method": method,
            "dtypes": dtypes,
            "n_rows": comparison.n_rows,
            "n_declined": comparison.n_declined,
            "n_single": comparison.n_single,
            "sha256": scorer.sha256,
            "batches": _is_exact_in_batches(model, method, cases),
            "versions": _versions(),
        }
    except NotExactError as error:
        return {"equal": False, "reason": str(error)}
    except Exception as error:  # noqa: BLE001 - no fault of this shortcut may keep a model from being logged
        return {"equal": False, "reason": f"{type(error).__name__}: {error}"}
    if not comparison.is_equal:
        reason = f"{comparison.n_different} of {comparison.n_rows} rows differ from the pipeline"
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
    if not _holds(verdict, "equal"):
        return None
    try:
        scorer = generate(model, verdict["method"], verdict["dtypes"])
        return scorer if scorer.sha256 == verdict["sha256"] else None
    except Exception:  # noqa: BLE001 - without the shortcut the model scores all the same
        return None


def batches_for(model: Any, verdict: Mapping[str, Any]) -> StandIn | None:
    """Return what scores many rows of a verified model faster and bit-equal, if the stored verdict holds here; or None.

    Parameters are those of :func:`scorer_for`.
    """
    with contextlib.suppress(Exception):  # without the shortcut the model scores all the same
        return write_batches(model, verdict["method"]) if _holds(verdict, "batches") else None
    return None


def _holds(verdict: Mapping[str, Any], claim: str) -> bool:
    """Whether a verdict, which may be an older one, makes a claim for what is installed here."""
    return bool(verdict.get(claim)) and "method" in verdict and verdict.get("versions") == _versions()


def _is_exact_in_batches(model: Any, method: str, rows: pd.DataFrame) -> bool:
    """Whether there is a faster way for many rows that gives each of them the pipeline's bits."""
    try:
        batches = write_batches(model, method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown categories, which are here on purpose
            return not _differ(batches.answer(rows), ask(model, method, rows))
    except (NotExactError, ValueError):
        return False


def _versions() -> dict[str, str]:
    """Return what the order of additions depends on."""
    return {name: importlib.metadata.version(name) for name in VERSIONS} | {"machine": platform.machine()}
