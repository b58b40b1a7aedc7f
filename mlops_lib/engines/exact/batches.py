"""Boosted trees over many rows at once, bit-equal to the pipeline, in numpy, and faster.

A leaf is found without walking a tree (QuickScorer: Lucchese et al., SIGIR 2015). Leaves are the bits of a word, from
left to right; a node whose condition fails clears those of its left side, and the lowest bit that is left is the exit.
What all nodes of one feature clear depends only on which thresholds a value lies between, so a table gives the word of
each feature's value, for a group of trees in one look-up. Sums are made in scikit-learn's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder

from mlops_lib.engines.exact.scorer import Floats, StandIn
from mlops_lib.errors import NotExactError

BLOCK_ROWS = 8192  # of these, everything a group of trees touches stays in the processor's cache
GROUP_BYTES = 32  # numpy copies table rows of up to so many bytes by one instruction
TABLE_ROWS = 2048  # features of few thresholds share a table of up to so many rows, and so a look-up
MAX_TABLE_BYTES = 2**25
GRIDS = (2**6, 2**9, 2**12)
Places = npt.NDArray[np.intp]


class Word(NamedTuple):
    """How the leaves of a tree are bits of a word: all but its sign."""

    n_leaves: int
    ints: str  # its type
    floats: str  # that holds each single bit of it exactly, as a power of two: the leaf's number is the exponent
    shift: int  # where the exponent begins
    bias: int  # what is added to the exponent

    @property
    def all_leaves(self) -> int:
        """The word in which no leaf is ruled out."""
        return (1 << self.n_leaves) - 1


WORDS = (Word(31, "int32", "float32", 23, 127), Word(63, "int64", "float64", 52, 1023))


class Spread(NamedTuple):
    """A column of few values: each of them once, and which of them each row has."""

    values: Floats
    codes: Places


class Group(NamedTuple):
    """Trees that are looked up together."""

    tables: Mapping[int, Any]  # by join: the leaves that each joint place leaves to each tree, (n_places, n_trees)
    leaves: Floats  # what each leaf adds, tree after tree
    n_trees: int  # the arrays are as wide as a full group, the last one may have fewer


class Grid:
    """Sorted thresholds on a grid so fine that no cell holds two: one comparison finds where a value lies.

    Rounding keeps order: a value is above all thresholds of lower cells and below those of higher ones.
    """

    def __init__(self, thresholds: Floats) -> None:
        self._thresholds = thresholds
        finite = thresholds[np.isfinite(thresholds)]
        self._is_fine = bool(len(finite)) and finite[0] == thresholds[0]  # nothing is below a threshold of -inf
        if not self._is_fine:
            return
        self._low = finite[0]
        for n_cells in GRIDS:
            with np.errstate(all="ignore"):
                self._scale = (n_cells - 1) / (finite[-1] - self._low)
            self._last = n_cells - 1
            cells = self._find_cells(finite)
            self._is_fine = len(np.unique(cells)) == len(finite)
            if self._is_fine:
                break
        self._limits = np.full(n_cells, np.inf)
        self._limits[cells] = finite
        self._before = np.searchsorted(cells, np.arange(n_cells))

    def _find_cells(self, values: Floats) -> Places:
        with np.errstate(all="ignore"):
            cells: Floats = np.subtract(values, self._low)
            np.multiply(cells, self._scale, out=cells)
        np.fmin(np.fmax(cells, 0, out=cells), self._last, out=cells)  # a missing value too becomes 0
        return cells.astype(np.intp)

    def place(self, values: Floats) -> Places:
        """Return how many thresholds are below each value; one more than all of them is the place of a missing one."""
        if self._is_fine:
            cells = self._find_cells(values)
            places = self._before.take(cells)
            places += np.greater(values, self._limits.take(cells))
        else:
            places = np.searchsorted(self._thresholds, values)
        np.putmask(places, np.isnan(values), len(self._thresholds) + 1)
        return places


class Boosting:
    """Fitted histogram gradient boosting for two classes or one number, as tables.

    Parameters
    ----------
    model : HistGradientBoostingClassifier or HistGradientBoostingRegressor

    Raises
    ------
    NotExactError
        Several classes, native categories, trees without a split or of more than 63 leaves, or tables too large.
    """

    def __init__(self, model: Any) -> None:
        name = type(model).__name__
        if not isinstance(model, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
            raise NotExactError(what=f"{name} in batches", supported="histogram gradient boosting is")
        if model.n_trees_per_iteration_ != 1 or model.is_categorical_ is not None:
            raise NotExactError(
                what=f"{name} of several classes or native categories", supported="two classes and numbers are"
            )
        trees = [stage[0].nodes for stage in model._predictors]
        self._model, self._start = model, float(np.ravel(model._baseline_prediction)[0])
        self._word = _choose_word(name, trees)
        self._thresholds = _collect_thresholds(name, trees)
        self._grids = {feature: Grid(limits) for feature, limits in self._thresholds.items()}
        self._joins = self._choose_joins(name, len(trees))
        self._width = GROUP_BYTES // np.dtype(self._word.ints).itemsize
        self._groups = [self._tabulate(trees[i : i + self._width]) for i in range(0, len(trees), self._width)]

    # --- tables ------------------------------------------------------------------------------------------------------

    def _n_places(self, feature: int) -> int:
        """Return how many places a value has: below, between and above the thresholds, and missing."""
        return len(self._thresholds[feature]) + 2

    def _n_rows(self, join: Sequence[int]) -> int:
        """Return how many rows the table of some features has: one for each combination of their places."""
        return math.prod(self._n_places(feature) for feature in join)

    def _choose_joins(self, name: str, n_trees: int) -> list[list[int]]:
        """Return which features share a table; none do where tables would be too large."""
        for table_rows in (TABLE_ROWS, 1):
            joins = self._join(table_rows)
            n_bytes = sum(map(self._n_rows, joins)) * np.dtype(self._word.ints).itemsize * n_trees
            if n_bytes <= MAX_TABLE_BYTES:
                return joins
        raise NotExactError(what=f"{name} with tables of {n_bytes} bytes", supported=f"up to {MAX_TABLE_BYTES} are")

    def _join(self, table_rows: int) -> list[list[int]]:
        """Return the features that share a table: largest first, each to the first table that has room."""
        joins: list[list[int]] = []
        for feature in sorted(self._thresholds, key=self._n_places, reverse=True):
            join = next((join for join in joins if self._n_rows([*join, feature]) <= table_rows), None)
            joins.append([feature]) if join is None else join.append(feature)
        return joins

    def _tabulate(self, trees: Sequence[Any]) -> Group:
        """Return the tables of a group of trees: by each feature alone first, then joined."""
        word, width = self._word, self._width
        by_feature = {
            feature: np.full((self._n_places(feature), width), word.all_leaves, dtype=word.ints)
            for feature in self._thresholds
        }
        leaves = np.zeros((width, word.n_leaves))
        for number, nodes in enumerate(trees):
            values: list[float] = []
            self._rule_out(nodes, 0, {feature: table[:, number] for feature, table in by_feature.items()}, values)
            leaves[number, : len(values)] = values
        tables = {}
        for number, join in enumerate(self._joins):
            table = np.full((1, width), word.all_leaves, dtype=word.ints)
            for feature in join:
                table = (table[:, None] & by_feature[feature]).reshape(-1, width)
            if number == 0 or (table != word.all_leaves).any():
                tables[number] = table
        return Group(tables, leaves.ravel(), len(trees))

    def _rule_out(self, nodes: Any, at: int, words: Mapping[int, Any], values: list[float]) -> int:
        """Clear, in a tree's word for each place of a value, the leaves that the nodes below ``at`` rule out.

        Leaves are numbered from left to right, as they are appended to ``values``. Returns the bits of those below.
        """
        node = nodes[at]
        if node["is_leaf"]:
            values.append(float(node["value"]))
            return int(1 << (len(values) - 1))
        left = self._rule_out(nodes, node["left"], words, values)
        right = self._rule_out(nodes, node["right"], words, values)
        feature = int(node["feature_idx"])
        thresholds, by_place = self._thresholds[feature], words[feature]
        above, missing = int(np.searchsorted(thresholds, node["num_threshold"])) + 1, len(thresholds) + 1
        without_left = by_place.dtype.type(self._word.all_leaves & ~left)
        by_place[above:missing] &= without_left
        if not node["missing_go_to_left"]:
            by_place[missing] &= without_left
        return left | right

    # --- rows --------------------------------------------------------------------------------------------------------

    def predict(self, columns: Sequence[Floats | Spread], n_rows: int) -> Floats:
        """Return the probability of each class, or the prediction, of prepared columns."""
        sums = np.full(n_rows, self._start)
        # What is known once of a column of few values: the places of these.
        known = {
            feature: self._grids[feature].place(column.values)
            for feature, column in enumerate(columns)
            if feature in self._grids and isinstance(column, Spread)
        }
        for at in range(0, n_rows, BLOCK_ROWS):
            block = slice(at, at + BLOCK_ROWS)
            self._add([self._place(join, columns, known, block) for join in self._joins], sums[block])
        if isinstance(self._model, HistGradientBoostingClassifier):
            return np.asarray(self._model._loss.predict_proba(sums))
        return np.asarray(self._model._loss.link.inverse(sums))

    def _place(
        self, join: list[int], columns: Sequence[Floats | Spread], known: Mapping[int, Places], block: slice
    ) -> Places:
        """Return each row's place in the table of some features."""
        joint, *others = (
            known[feature].take(column.codes[block])
            if isinstance(column := columns[feature], Spread)
            else self._grids[feature].place(column[block])
            for feature in join
        )
        for feature, places in zip(join[1:], others, strict=True):
            joint *= self._n_places(feature)
            joint += places
        return joint

    def _add(self, places: Sequence[Places], sums: Floats) -> None:
        """Add each tree's leaf to ``sums``, tree by tree. Arrays are of shape (n_rows, n_trees)."""
        word, shape = self._word, (len(sums), self._width)
        left, scratch = np.empty(shape, word.ints), np.empty(shape, word.ints)
        powers, positions, values = np.empty(shape, word.floats), np.empty(shape, np.intp), np.empty(shape)
        # Where each tree's leaves begin among those of its group, less what an exponent has too much.
        starts = np.tile(np.arange(self._width, dtype=word.ints) * word.n_leaves - word.bias, (len(sums), 1))
        for group in self._groups:
            for n_before, (number, table) in enumerate(group.tables.items()):
                table.take(places[number], axis=0, out=scratch if n_before else left, mode="clip")
                if n_before:
                    np.bitwise_and(left, scratch, out=left)
            np.negative(left, out=scratch)
            np.bitwise_and(left, scratch, out=left)  # the lowest bit alone, a power of two: its exponent is the leaf
            powers[...] = left
            np.right_shift(powers.view(word.ints), word.shift, out=scratch)
            np.add(scratch, starts, out=scratch)
            positions[...] = scratch
            group.leaves.take(positions, out=values, mode="clip")
            for number in range(group.n_trees):
                np.add(sums, values[:, number], out=sums)


def _choose_word(name: str, trees: Sequence[Any]) -> Word:
    """Return the shortest word that has a bit for each leaf of every tree."""
    n_leaves = max(int(nodes["is_leaf"].sum()) for nodes in trees)
    for word in WORDS:
        if n_leaves <= word.n_leaves:
            return word
    raise NotExactError(what=f"{name} with trees of {n_leaves} leaves", supported=f"up to {WORDS[-1].n_leaves} are")


def _collect_thresholds(name: str, trees: Sequence[Any]) -> dict[int, Floats]:
    """Return the sorted thresholds of each feature that is used."""
    inner = np.concatenate([nodes[nodes["is_leaf"] == 0] for nodes in trees])
    if not len(inner):
        raise NotExactError(what=f"{name} without a split", supported="trees are")
    features = inner["feature_idx"]
    return {f: np.unique(inner["num_threshold"][features == f]) for f in np.unique(features).tolist()}


@dataclass(frozen=True)
class Batches(StandIn):
    """A pipeline that ends in histogram gradient boosting, for many rows at once. It holds no state."""

    boosting: Boosting = field(repr=False)
    earlier: Sequence[Any] = field(repr=False)  # steps that transform the rows themselves
    columns: ColumnTransformer | None = field(repr=False)  # whose encoders are asked once for each category of a batch

    def answer(self, rows: pd.DataFrame) -> Floats:
        """Return what the pipeline would."""
        X: Any = rows
        for step in self.earlier:
            X = step.transform(X)
        return self.boosting.predict(_transform_columns(self.columns, X) if self.columns else _split(X), len(rows))


def write_batches(model: Any, method: str) -> Batches:
    """Return what scores many rows as a pipeline would.

    Parameters
    ----------
    model : fitted scikit-learn Pipeline or estimator
    method : {"predict_proba", "predict"}

    Raises
    ------
    NotExactError
        Where it does not end in histogram gradient boosting, and for what :class:`Boosting` refuses.
    """
    steps = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    *earlier, last = [step for step in steps if not (step is None or isinstance(step, str))]  # "passthrough"
    boosting, columns = Boosting(last), None
    if earlier and isinstance(earlier[-1], ColumnTransformer):
        *earlier, columns = earlier
    return Batches(model, method, boosting, earlier, columns)


def _split(X: Any) -> list[Floats]:
    """Return the columns of a matrix, sparse or dense, or of a DataFrame."""
    return list(np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64).T)


def _transform_columns(step: ColumnTransformer, rows: pd.DataFrame) -> Sequence[Floats | Spread]:
    singles = any(isinstance(chosen, str | int) for _, _, chosen in step.transformers_)  # are handed on as one Series
    if step.transformer_weights or singles or not isinstance(rows, pd.DataFrame):
        return _split(step.transform(rows))
    parts: list[Floats | Spread] = []
    for name, transformer, _ in step.transformers_:
        names = step.feature_names_in_[step._transformer_to_input_indices[name]].tolist()
        if transformer == "drop" or not names or rows.empty:
            continue
        if isinstance(transformer, OrdinalEncoder | TargetEncoder):
            parts += _encode(transformer, rows[names])
        else:
            parts += _split(transformer.transform(rows[names]))
    return parts


def _encode(encoder: Any, rows: pd.DataFrame) -> Sequence[Floats | Spread]:
    """Encode each category once, and spread the result."""
    factors = {name: pd.factorize(rows[name], use_na_sentinel=False) for name in rows}
    longest = max(len(categories) for _, categories in factors.values())
    few = {name: values.take(np.arange(longest) % len(values)) for name, (_, values) in factors.items()}
    encoded = _split(encoder.transform(pd.DataFrame(few)))
    if len(encoded) != len(factors):
        return _split(encoder.transform(rows))  # several columns for one category
    return [Spread(column, codes) for column, (codes, _) in zip(encoded, factors.values(), strict=True)]
