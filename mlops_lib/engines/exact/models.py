"""Estimators as source: linear models, trees, forests, boosting; in the order of additions that scikit-learn uses.

What was measured (scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1; ci/bench compiled repeats it):
``scipy.special.expit`` equals ``1 / (1 + math.exp(-x))`` bit for bit, numpy's own ``exp`` does not, so wherever
scikit-learn uses the latter, so does the scorer. A product with a sparse matrix adds in column order; with a dense one
the order is BLAS's and depends on how many rows there are, so the scorer calls numpy on the same one-row shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlops_lib.engines.exact.source import FLOAT32_MAX, Column, Lookup, Matrix, Source, literal
from mlops_lib.errors import NotExactError

# Python allows 100 levels of indentation; compiling so many nodes takes a second and some 100 MB (ci/bench compiled).
MAX_DEPTH = 80
MAX_NODES = 50_000


def write_model(source: Source, model: Any, matrix: Matrix) -> None:
    """Write a fitted estimator down to its ``return``: the probability of each class, or the one number.

    Raises
    ------
    NotExactError
    """
    write = _WRITERS.get(type(model))
    if write is None:
        raise NotExactError(
            what=type(model).__name__, supported=f"models are {', '.join(t.__name__ for t in _WRITERS)}"
        )
    for column in matrix.columns:
        if column.lookup is None and not column.is_text:
            column.number()
    write(source, model, matrix)


def _refuse_missing(source: Source, columns: Sequence[Column]) -> None:
    for column in columns:
        if column.may_miss:
            source.decline_if(f"{column.number()} != {column.number()}")


def _write_probabilities(source: Source, scores: Sequence[str]) -> None:
    """Write the probability of each class: of one raw score for two classes, else of one for each."""
    if len(scores) == 1:
        source.lines.append(f"p = expit({scores[0]})")
        source.lines.append("return 1 - p, p")
    else:
        source.uses_numpy = True
        source.lines.append(f"return softmax({', '.join(scores)})")


# --- linear models -----------------------------------------------------------------------------------------------


def _linear(source: Source, model: Any, matrix: Matrix) -> None:
    coef = np.asarray(model.coef_)
    intercept = np.atleast_1d(np.asarray(model.intercept_, dtype=np.float64))
    if coef.dtype != np.float64 or not (coef.flags.c_contiguous or coef.flags.f_contiguous):
        raise NotExactError(
            what=f"{type(model).__name__} with {coef.dtype} coefficients", supported="contiguous float64 are"
        )
    is_classifier = isinstance(model, LogisticRegression)
    if not is_classifier and coef.ndim > 1:
        raise NotExactError(what=f"{type(model).__name__} of several targets", supported="one target is")
    _refuse_missing(source, [column for column in matrix.columns if column.lookup is None])
    if any(column.bound > 1e300 for column in matrix.columns):
        raise NotExactError(what="a scale near zero", supported="values stay finite with a larger one")
    write = _sparse_scores if matrix.is_sparse else _dense_scores
    scores = write(source, matrix.columns, coef, np.broadcast_to(intercept, len(np.atleast_2d(coef))))
    if is_classifier:
        _write_probabilities(source, scores)
    else:
        source.lines.append(f"return ({scores[0]},)")


def _sparse_scores(source: Source, columns: list[Column], coef: Any, intercept: Any) -> list[str]:
    """Write sums in column order; a category adds one number, looked up."""
    totals = []
    for row, start in zip(np.atleast_2d(coef), intercept, strict=True):
        terms, at = ["0.0"], 0
        while at < len(columns):
            lookup = columns[at].lookup
            products = lookup and columns[at : at + lookup.width] == lookup.columns and _products(lookup, row[at:])
            if lookup and products:
                terms.append(lookup.write(*products))
                at += lookup.width
            else:
                terms.append(f"{columns[at].number()} * {literal(row[at])}")
                at += 1
        total = source.local(" + ".join(terms[:100]))
        for some in range(100, len(terms), 100):  # Python's parser goes one level deeper for each addition of a line
            source.lines.append(f"{total} = {total} + {' + '.join(terms[some : some + 100])}")
        totals.append(source.local(f"{total} + {literal(start)}"))
    return totals


def _products(lookup: Lookup, coef: Any) -> tuple[dict[Any, str | None], str | None] | None:
    """Return what each category adds, if each has at most one column that is not zero."""

    def product(row: list[float] | None) -> str | None:
        terms = [value * float(c) for value, c in zip(row or (), coef, strict=False) if value]
        return None if row is None else literal(terms[0] if terms else 0.0)

    known = [row for row in (*lookup.cells.values(), lookup.unknown) if row is not None]
    if any(sum(value != 0 for value in row) > 1 or any(map(math.isnan, row)) for row in known):
        return None
    return {key: product(row) for key, row in lookup.cells.items()}, product(lookup.unknown)


def _dense_scores(source: Source, columns: list[Column], coef: Any, intercept: Any) -> list[str]:
    source.uses_numpy, source.is_rowwise = True, False
    cells, at = [], 0
    while at < len(columns):
        lookup = columns[at].lookup
        if lookup and lookup.width > 1 and columns[at : at + lookup.width] == lookup.columns:
            cells.append(f"*{lookup.row()}")
            at += lookup.width
        else:
            _refuse_missing(source, [columns[at]] if lookup else [])
            cells.append(columns[at].number())
            at += 1
    # The same memory layout: numpy chooses BLAS's function by it.
    order = "C" if coef.flags.c_contiguous else "F"
    weights = source.table(f"numpy.array({np.asarray(coef).tolist()!r}, order={order!r}){'.T' * (coef.ndim - 1)}")
    start = source.table(f"numpy.array({intercept.tolist()!r})")
    total = source.local(f"(numpy.array([[{', '.join(cells)}]]) @ {weights} + {start}).ravel().tolist()")
    return [f"{total}[{k}]" for k in range(len(intercept))]


# --- trees of one estimator, of forests, of boosting -------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """A tree of either kind, node by node: children (negative at a leaf), conditions, and what a leaf adds.

    A row goes to the left where its value is at most the threshold, or is missing and ``missing_left`` is true.
    """

    left: list[int]
    right: list[int]
    feature: list[int]
    threshold: list[float]
    missing_left: list[bool]
    leaf: Callable[[int], list[str]]

    def write(self, source: Source, columns: Sequence[Column], node: int = 0, depth: int = 0) -> None:
        """Write nested ifs."""
        pad = " " * depth
        if self.left[node] < 0:
            source.lines += [pad + line for line in self.leaf(node)]
            return
        if depth >= MAX_DEPTH:
            raise NotExactError(what=f"a tree deeper than {MAX_DEPTH}", supported=f"one with max_depth={MAX_DEPTH} is")
        column, limit = columns[self.feature[node]], self.threshold[node]
        if column.feature and math.isfinite(limit):
            source.thresholds.setdefault(column.feature, set()).add(limit)
        to_left = f"{column.number()} <= {literal(limit)}"
        if self.missing_left[node] and column.may_miss:
            to_left = f"not {column.number()} > {literal(limit)}"  # true for NaN
        source.lines.append(f"{pad}if {to_left}:")
        self.write(source, columns, self.left[node], depth + 1)
        source.lines.append(f"{pad}else:")
        self.write(source, columns, self.right[node], depth + 1)


def _raise_for_size(model: Any, n_nodes: int) -> None:
    if n_nodes > MAX_NODES:
        raise NotExactError(what=f"{type(model).__name__} of {n_nodes} nodes", supported=f"one of up to {MAX_NODES} is")


def float32_threshold(threshold: float) -> float:
    """Return the largest double that, made a float32 as scikit-learn's trees do, is at most ``threshold``.

    >>> float32_threshold(0.5)
    0.5000000298023224
    """
    below = np.float32(threshold)
    if float(below) > threshold:
        below = np.nextafter(below, np.float32(-np.inf))
    above = np.nextafter(below, np.float32(np.inf))
    middle = (float(below) + float(above)) / 2
    return middle if float(np.float32(middle)) <= threshold else math.nextafter(middle, -math.inf)


def _forest(source: Source, model: Any, matrix: Matrix) -> None:
    """Write a tree, or the mean of a forest's."""
    is_forest = hasattr(model, "estimators_")
    estimators = model.estimators_ if is_forest else [model]
    if getattr(model, "n_jobs", None) not in (None, 1):
        what = f"{type(model).__name__} with n_jobs={model.n_jobs}"
        raise NotExactError(
            what=what, supported="its trees are added in the order in which threads end; after fit, n_jobs=None is"
        )
    if model.n_outputs_ != 1:
        raise NotExactError(what=f"{type(model).__name__} of several targets", supported="one target is")
    _raise_for_size(model, sum(estimator.tree_.node_count for estimator in estimators))
    _check_float32(source, matrix, {int(f) for estimator in estimators for f in estimator.tree_.feature})
    if matrix.is_sparse or not estimators[0]._support_missing_values(np.zeros((1, 1))):
        _refuse_missing(source, matrix.columns)
    totals = [f"s{k}" for k in range(len(model.classes_) if hasattr(model, "classes_") else 1)]
    if is_forest:
        source.lines.append(" = ".join([*totals, "0.0"]))
    for estimator in estimators:
        tree = estimator.tree_
        values = tree.value[:, 0, :].tolist()

        def leaf(node: int, values: list[list[float]] = values) -> list[str]:
            if not is_forest:
                return [f"s{k} = {literal(value)}" for k, value in enumerate(values[node])]
            # A zero added to a sum that began at +0.0 changes no bit.
            return [f"s{k} += {literal(v)}" for k, v in enumerate(values[node]) if v] or ["pass"]

        _Tree(
            left=tree.children_left.tolist(),
            right=tree.children_right.tolist(),
            feature=tree.feature.tolist(),
            threshold=[float32_threshold(threshold) for threshold in tree.threshold.tolist()],
            missing_left=tree.missing_go_to_left.tolist(),
            leaf=leaf,
        ).write(source, matrix.columns)
    by = f" / {literal(len(estimators))}" if is_forest else ""
    source.lines.append(f"return ({', '.join(total + by for total in totals)},)")


def _check_float32(source: Source, matrix: Matrix, used: set[int]) -> None:
    """Write the columns before the first node, and the checks of scikit-learn's float32."""
    for i, column in enumerate(matrix.columns):
        if column.lookup:
            column.lookup.row()  # in any case: it may refuse a category that no tree looks at
        if column.lookup is None or i in used:
            column.number()
        if column.bound > FLOAT32_MAX:
            name = column.number()
            source.decline_if(f"not -{FLOAT32_MAX} <= {name} <= {FLOAT32_MAX} and {name} == {name}")


def _boosting(source: Source, model: Any, matrix: Matrix) -> None:
    """Write the sum of a histogram gradient boosting's trees, one sum for each class where there are several."""
    name = type(model).__name__
    if matrix.is_sparse:
        raise NotExactError(what=f"{name} of a sparse matrix", supported="a dense one is (sparse_output=False)")
    if model.is_categorical_ is not None:
        raise NotExactError(what=f"{name} with native categories", supported="an encoder's are")
    _raise_for_size(model, sum(len(tree.nodes) for stage in model._predictors for tree in stage))
    for column in matrix.columns:
        column.number()
    totals = []
    for k, start in enumerate(np.ravel(model._baseline_prediction).tolist()):
        totals.append(f"s{k}")
        source.lines.append(f"s{k} = {literal(start)}")
    for stage in model._predictors:
        for total, tree in zip(totals, stage, strict=True):
            nodes, values = tree.nodes, tree.nodes["value"].tolist()

            def leaf(node: int, total: str = total, values: list[float] = values) -> list[str]:
                return [f"{total} += {literal(values[node])}"]

            _Tree(
                left=np.where(nodes["is_leaf"], -1, nodes["left"].astype(np.int64)).tolist(),
                right=nodes["right"].tolist(),
                feature=nodes["feature_idx"].tolist(),
                threshold=nodes["num_threshold"].tolist(),
                missing_left=nodes["missing_go_to_left"].tolist(),
                leaf=leaf,
            ).write(source, matrix.columns)
    if isinstance(model, HistGradientBoostingClassifier):
        _write_probabilities(source, totals)
    elif model._loss.link.__class__.__name__ == "LogLink":
        source.uses_numpy = True
        source.lines.append("return (float(numpy.exp(s0)),)")
    else:
        source.lines.append("return (s0,)")


_WRITERS: dict[type, Callable[[Source, Any, Matrix], None]] = {
    **dict.fromkeys((LogisticRegression, LinearRegression, Ridge, Lasso, ElasticNet), _linear),
    **dict.fromkeys((DecisionTreeClassifier, DecisionTreeRegressor), _forest),
    **dict.fromkeys((RandomForestClassifier, RandomForestRegressor), _forest),
    **dict.fromkeys((HistGradientBoostingClassifier, HistGradientBoostingRegressor), _boosting),
}
