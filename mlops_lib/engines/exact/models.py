"""Estimators as source: linear models, trees, forests, boosting; in the order of additions that scikit-learn uses.

What was measured (scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1; ci/bench_compiled.py repeats it):
``scipy.special.expit`` equals ``1 / (1 + math.exp(-x))`` bit for bit, numpy's own ``exp`` does not, so wherever
scikit-learn uses the latter, so does the scorer. A product with a sparse matrix adds in column order; with a dense one
the order is BLAS's and depends on how many rows there are, so the scorer calls numpy on the same one-row shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    Lasso,
    LassoCV,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from mlops_lib.engines.exact.source import FLOAT32_MAX, Column, Lookup, Matrix, Source, literal
from mlops_lib.engines.exact.transforms import write_encoder
from mlops_lib.errors import NotExactError

# Python allows 100 levels of indentation; compiling so many nodes takes a second and some 100 MB (ci/bench compiled).
MAX_DEPTH = 80
MAX_NODES = 50_000


def write_model(source: Source, model: Any, matrix: Matrix) -> None:
    """Write a fitted estimator down to its ``return``.

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


def _write_probabilities(source: Source, scores: Sequence[str], template: str = "{}") -> None:
    """Write the probabilities of raw scores: one for two classes, else one for each."""
    if len(scores) == 1:
        source.lines.append(f"p = expit({template.format(scores[0])})")
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
        found = [value * float(c) for value, c in zip(row or (), coef, strict=False) if value]
        return None if row is None else literal(found[0] if found else 0.0)

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


# --- trees of one estimator, and of forests ----------------------------------------------------------------------


class _Tree:
    """Nodes of either kind of tree: children, conditions and what a leaf adds."""

    def __init__(
        self, left: list[int], right: list[int], condition: Callable[[int], str], leaf: Callable[[int], list[str]]
    ) -> None:
        self.left, self.right, self.condition, self.leaf = left, right, condition, leaf

    def write(self, lines: list[str], node: int = 0, depth: int = 0) -> None:
        """Write nested ifs."""
        pad = " " * depth
        if self.left[node] < 0:
            lines += [pad + line for line in self.leaf(node)]
            return
        if depth >= MAX_DEPTH:
            raise NotExactError(what=f"a tree deeper than {MAX_DEPTH}", supported=f"one with max_depth={MAX_DEPTH} is")
        lines.append(f"{pad}if {self.condition(node)}:")
        self.write(lines, self.left[node], depth + 1)
        lines.append(f"{pad}else:")
        self.write(lines, self.right[node], depth + 1)


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


def _classic_tree(
    source: Source, columns: list[Column], tree: Any, leaf: Callable[[int], list[str]], *, missing: bool
) -> None:
    """Write one ``sklearn.tree._tree.Tree``."""
    features, thresholds = tree.feature.tolist(), tree.threshold.tolist()
    missing_left = tree.missing_go_to_left.tolist()

    def condition(node: int) -> str:
        column = columns[features[node]]
        limit = float32_threshold(thresholds[node])
        if column.feature:
            source.thresholds.setdefault(column.feature, set()).add(limit)
        if missing and column.may_miss and missing_left[node]:
            return f"not {column.number()} > {literal(limit)}"  # true for NaN
        return f"{column.number()} <= {literal(limit)}"

    nodes = _Tree(tree.children_left.tolist(), tree.children_right.tolist(), condition, leaf)
    nodes.write(source.lines)


def _prepare_classic(source: Source, matrix: Matrix, trees: Sequence[Any], *, missing: bool) -> list[Column]:
    """Write what the nodes compare, before the first of them, and the checks of scikit-learn's float32."""
    used = sorted({int(f) for tree in trees for f in tree.feature if f >= 0})
    for i, column in enumerate(matrix.columns):
        if column.lookup:
            column.lookup.row()  # in any case: it may refuse a category that no tree looks at
        if column.lookup is None or i in used:
            column.number()
        if column.bound > FLOAT32_MAX:
            name = column.number()
            source.decline_if(f"not -{FLOAT32_MAX} <= {name} <= {FLOAT32_MAX} and {name} == {name}")
    if not missing:
        _refuse_missing(source, matrix.columns)
    return matrix.columns


def _forest(source: Source, model: Any, matrix: Matrix) -> None:
    trees = getattr(model, "estimators_", [model])
    if getattr(model, "n_jobs", None) not in (None, 1):
        what = f"{type(model).__name__} with n_jobs={model.n_jobs}"
        raise NotExactError(
            what=what, supported="its trees are added in the order in which threads end; after fit, n_jobs=None is"
        )
    if model.n_outputs_ != 1:
        raise NotExactError(what=f"{type(model).__name__} of several targets", supported="one target is")
    _raise_for_size(model, sum(tree.tree_.node_count for tree in trees))
    missing = bool(trees[0]._support_missing_values(np.zeros((1, 1)))) and not matrix.is_sparse
    columns = _prepare_classic(source, matrix, [tree.tree_ for tree in trees], missing=missing)
    n_out = len(model.classes_) if hasattr(model, "classes_") else 1
    totals = [f"s{k}" for k in range(n_out)]
    is_forest = hasattr(model, "estimators_")
    if is_forest:
        source.lines.append(" = ".join([*totals, "0.0"]))
    for tree in trees:
        values = tree.tree_.value[:, 0, :].tolist()

        def leaf(node: int, values: list[list[float]] = values) -> list[str]:
            if not is_forest:
                return [f"s{k} = {literal(value)}" for k, value in enumerate(values[node])]
            # A zero added to a sum that began at +0.0 changes no bit.
            return [f"s{k} += {literal(v)}" for k, v in enumerate(values[node]) if v] or ["pass"]

        _classic_tree(source, columns, tree.tree_, leaf, missing=missing)
    by = f" / {literal(len(trees))}" if is_forest else ""
    source.lines.append(f"return ({', '.join(total + by for total in totals)},)")


def _gradient_boosting(source: Source, model: Any, matrix: Matrix) -> None:
    if not isinstance(model.init_, str | DummyClassifier | DummyRegressor):
        raise NotExactError(
            what=f"{type(model).__name__} with init={type(model.init_).__name__}", supported="a constant start is"
        )
    trees = [[tree.tree_ for tree in stage] for stage in model.estimators_]
    flat = [tree for stage in trees for tree in stage]
    _raise_for_size(model, sum(tree.node_count for tree in flat))
    columns = _prepare_classic(source, matrix, flat, missing=False)
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_)))[0].tolist()
    totals = [f"s{k}" for k in range(len(start))]
    source.lines += [f"s{k} = {literal(value)}" for k, value in enumerate(start)]
    for stage in trees:
        for k, tree in enumerate(stage):
            values = (model.learning_rate * tree.value[:, 0, 0]).tolist()

            def leaf(node: int, values: list[float] = values, k: int = k) -> list[str]:
                return [f"s{k} += {literal(values[node])}"]

            _classic_tree(source, columns, tree, leaf, missing=False)
    if isinstance(model, GradientBoostingRegressor):
        source.lines.append(f"return ({totals[0]},)")
    else:
        _write_probabilities(source, totals, "2 * {}" if model.loss == "exponential" else "{}")


# --- histogram gradient boosting ---------------------------------------------------------------------------------


def _hist_gradient_boosting(source: Source, model: Any, matrix: Matrix) -> None:
    if matrix.is_sparse:
        raise NotExactError(
            what=f"{type(model).__name__} of a sparse matrix", supported="a dense one is (sparse_output=False)"
        )
    stages = model._predictors
    _raise_for_size(model, sum(len(tree.nodes) for stage in stages for tree in stage))
    columns = matrix.columns
    if model._preprocessor is not None:  # native categories: coded, and moved to the front
        is_category = model.is_categorical_
        chosen = Matrix([c for c, taken in zip(columns, is_category, strict=True) if taken])
        encoder = model._preprocessor.named_transformers_["encoder"]
        columns = [
            *write_encoder(source, encoder, chosen).columns,
            *(c for c, taken in zip(columns, is_category, strict=True) if not taken),
        ]
    for column in columns:
        column.number()
    known = model._bin_mapper.make_known_categories_bitsets()
    start = np.ravel(model._baseline_prediction).tolist()
    totals = [f"s{k}" for k in range(len(start))]
    source.lines += [f"s{k} = {literal(value)}" for k, value in enumerate(start)]
    for stage in stages:
        for k, tree in enumerate(stage):
            _hist_tree(source, columns, tree, known, f"s{k}")
    if isinstance(model, HistGradientBoostingClassifier):
        _write_probabilities(source, totals)
    elif model._loss.link.__class__.__name__ == "LogLink":
        source.uses_numpy = True
        source.lines.append("return (float(numpy.exp(s0)),)")
    else:
        source.lines.append("return (s0,)")


def _hist_tree(source: Source, columns: list[Column], tree: Any, known: tuple[Any, Any], total: str) -> None:
    nodes = tree.nodes
    names = ("feature_idx", "num_threshold", "missing_go_to_left", "is_categorical", "bitset_idx", "value")
    feature, threshold, missing_left, is_category, bitset, value = (nodes[name].tolist() for name in names)
    known_bitsets, position_of = known

    def condition(node: int) -> str:
        column = columns[feature[node]]
        name = column.number()
        if is_category[node]:
            left = _codes(tree.raw_left_cat_bitsets[bitset[node]])
            if missing_left[node]:  # and so does whatever is not known
                right = _codes(known_bitsets[position_of[feature[node]]]) - left
                return f"{name} not in {_set(right)}"
            return f"{name} in {_set(left)}"
        limit = threshold[node]
        if column.feature and math.isfinite(limit):
            source.thresholds.setdefault(column.feature, set()).add(limit)
        if missing_left[node] and column.may_miss:
            return f"not {name} > {literal(limit)}"
        return f"{name} <= {literal(limit)}"

    left = [
        -1 if leaf else child for leaf, child in zip(nodes["is_leaf"].tolist(), nodes["left"].tolist(), strict=True)
    ]
    written = _Tree(left, nodes["right"].tolist(), condition, lambda node: [f"{total} += {literal(value[node])}"])
    written.write(source.lines)


def _codes(bitset: Any) -> set[int]:
    return {32 * word + bit for word, bits in enumerate(bitset.tolist()) for bit in range(32) if bits >> bit & 1}


def _set(codes: set[int]) -> str:
    return "{" + ", ".join(literal(code) for code in sorted(codes)) + "}" if codes else "()"


_WRITERS: dict[type, Callable[[Source, Any, Matrix], None]] = {
    **dict.fromkeys((LogisticRegression, LogisticRegressionCV, LinearRegression, Ridge, RidgeCV), _linear),
    **dict.fromkeys((Lasso, LassoCV, ElasticNet, ElasticNetCV), _linear),
    **dict.fromkeys((DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor), _forest),
    **dict.fromkeys(
        (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor), _forest
    ),
    **dict.fromkeys((GradientBoostingClassifier, GradientBoostingRegressor), _gradient_boosting),
    **dict.fromkeys((HistGradientBoostingClassifier, HistGradientBoostingRegressor), _hist_gradient_boosting),
}
