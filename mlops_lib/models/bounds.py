"""Whether the numbers in a loaded model stay inside the model: asked of every object in it, before it first predicts.

scikit-learn's compiled code follows child indices, feature indices and counts without looking; with a doctored file it
reads or writes memory that is not its own, or never ends. skops cannot help: it checks types, not content. Here every
object that a model holds, however deep, is visited once, and what is known to be followed blindly is checked.

What is covered: decision trees and their ensembles, gradient boosting with and without histograms, encoders and
vocabularies that write sparse matrices; and what would open a file that a row names. What follows its
numbers as blindly and is not looked at here (``UNCHECKED``) is refused, unless the project names it among its trusted
types; with those a doctored file can crash the process. It is no proof about all compiled code of scikit-learn: against
somebody who may write to the registry it is signatures that protect (:mod:`mlops_lib.models.signing`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlops_lib.errors import ModelFileError

# Estimators that skops trusts, with all that derives from them: their private state would have to be read by position.
# What they are made of (k-d and ball trees, distances) and splines and sparse matrices are on no list of types at all.
UNCHECKED = frozenset(
    {
        "sklearn.cluster._kmeans._BaseKMeans",
        "sklearn.neighbors._base.NeighborsBase",
        "sklearn.svm._base.BaseLibSVM",
    }
)


def find_unchecked(model: Any) -> set[str]:
    """Return the types in a model whose compiled code would follow numbers that nobody has checked."""
    kinds = {type(part) for part in walk(model)}
    return {_name(kind) for kind in kinds if any(_name(base) in UNCHECKED for base in kind.__mro__)}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def raise_for_bounds(model: Any, *, file: str, name: str) -> None:
    """Raise ``ModelFileError`` naming the first object that :func:`find_fault` finds.

    Parameters
    ----------
    model : object
        As deserialized; nothing of it is called.
    """
    reason = find_fault(model)
    if reason:
        raise ModelFileError("discarded", model=name, file=file, reason=f"holds {reason}")


def find_fault(model: Any) -> str:
    """Return the first object whose numbers lead outside it, or that opens files, and why; "" for a sound model."""
    for part in walk(model):
        for kind in type(part).__mro__:
            check = CHECKS.get(_name(kind))
            if check is None:
                continue
            try:
                check(part)
            except Exception as error:  # noqa: BLE001 - an attribute that is missing, or as no fit leaves it behind
                reason = str(error) if isinstance(error, OutOfBounds) else f"{type(error).__name__}: {error}"
                return f"a {type(part).__name__} that {reason}"
    return ""


class OutOfBounds(Exception):  # noqa: N818 - never leaves this module; its text ends a sentence
    """What is wrong with one object."""


def demand(holds: object, reason: str) -> None:
    """Raise ``OutOfBounds`` unless ``holds``."""
    if not bool(holds):
        raise OutOfBounds(reason)


def walk(model: Any) -> Iterator[Any]:
    """Yield every object that a model holds, once: attributes, slots, items, arrays of objects, bound arguments."""
    seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no number is used twice
    waiting = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | complex | type | None):
            continue
        seen[id(part)] = part
        yield part
        waiting.extend(_contents(part))


def _contents(part: Any) -> Iterator[Any]:
    if isinstance(part, np.ndarray):
        yield from part.ravel().tolist() if part.dtype == object else ()
    elif isinstance(part, Mapping):
        yield from part.keys()
        yield from part.values()
    elif isinstance(part, list | tuple | set | frozenset):
        yield from part
    elif isinstance(part, functools.partial):
        yield from (part.func, part.args, part.keywords)
    elif isinstance(part, types.MethodType):
        yield part.__self__
    yield from getattr(part, "__dict__", {}).values()
    for kind in type(part).__mro__:
        slots = getattr(kind, "__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            yield getattr(part, slot, None)


# --- trees -------------------------------------------------------------------------------------------------------


def check_nodes(left: Any, right: Any, is_leaf: Any) -> int:
    """Check that nodes form a tree in which children come after their parent; return its depth.

    Parameters
    ----------
    left, right, is_leaf : ndarray of shape (n_nodes,)

    scikit-learn numbers a child after its parent always, so what points backwards would go round for ever.
    """
    left, right = left.astype(np.int64), right.astype(np.int64)
    count = len(left)
    parents = np.flatnonzero(~is_leaf)
    children = np.concatenate([left[parents], right[parents]])
    origins = np.concatenate([parents, parents])
    outside = children[(children < 0) | (children >= count)]
    demand(not outside.size, f"points to node {outside[:1]} of {count}")
    back = origins[children <= origins]
    demand(not back.size, f"goes round in a circle at node {back[:1]}")
    demand(len(np.unique(children)) == len(children), "has a node with two parents")
    depth, level = 0, np.zeros(1, dtype=np.int64)
    while (level := level[~is_leaf[level]]).size:
        level = np.concatenate([left[level], right[level]])
        depth += 1
    return depth


def check_tree(tree: Any) -> None:
    """Check a decision tree's nodes. Its counts come first: its arrays are views of as many as it says."""
    demand(0 < tree.node_count <= tree.capacity, f"claims {tree.node_count} nodes and has {tree.capacity}")
    internal = tree.children_left != -1
    depth = check_nodes(tree.children_left, tree.children_right, ~internal)
    demand(depth <= tree.max_depth, f"is {depth} deep and claims {tree.max_depth}")
    _demand_features(tree.feature[internal], tree.n_features)
    demand(not np.isnan(tree.threshold[internal]).any(), "has a threshold that is no number")


def check_predictor(predictor: Any) -> None:
    """Check a tree of histogram gradient boosting."""
    nodes, bitsets = predictor.nodes, predictor.raw_left_cat_bitsets
    demand(nodes.ndim == 1 and len(nodes), "has no nodes")
    is_leaf = nodes["is_leaf"].astype(bool)
    check_nodes(nodes["left"], nodes["right"], is_leaf)
    categorical = nodes["is_categorical"].astype(bool) & ~is_leaf
    demand(bitsets.ndim == 2 and bitsets.shape[1] == 8, f"has sets of categories of shape {bitsets.shape}")
    demand((nodes["bitset_idx"][categorical] < len(bitsets)).all(), f"points outside its {len(bitsets)} sets")
    demand(not np.isnan(nodes["num_threshold"][~is_leaf & ~categorical]).any(), "has a threshold that is no number")


def _demand_features(features: Any, count: int) -> None:
    outside = features[(features < 0) | (features >= count)]
    demand(not outside.size, f"reads column {outside[:1]} of {count}")


def check_tree_estimator(model: Any) -> None:
    """Check that a tree reads the columns that its estimator makes sure of."""
    if hasattr(model, "tree_"):
        demand(_is(model.tree_, "Tree"), f"has a {type(model.tree_).__name__} for a tree")
        demand(model.n_features_in_ == model.tree_.n_features, "checks other columns than its tree reads")


def check_boosting(model: Any) -> None:
    """Check that gradient boosting adds its trees into columns that it has made."""
    if not hasattr(model, "estimators_"):
        return
    trees = model.estimators_
    demand(isinstance(trees, np.ndarray) and trees.ndim == 2, "has no table of trees")
    width = trees.shape[1]
    demand(width == model.n_trees_per_iteration_, f"has {width} trees a step, needs {model.n_trees_per_iteration_}")
    if width > 1:  # as many columns as the loss and the first guess make
        demand(model._loss.is_multiclass, f"has {width} trees a step for one column")
        if model.init_ != "zero":
            first = getattr(model.init_, "class_prior_", model.init_.classes_)
            demand(len(first) == width, f"has {width} trees a step for {len(first)} columns")
    for estimator in trees.ravel():
        demand(_is(estimator.tree_, "Tree"), f"has a {type(estimator.tree_).__name__} for a tree")
        demand(model.n_features_in_ == estimator.tree_.n_features, "checks other columns than its trees read")


def check_hist_boosting(model: Any) -> None:
    """Check that the trees read columns that exist, and as categories only columns that are."""
    if not hasattr(model, "_predictors"):
        return
    mapper, count = model._bin_mapper, model.n_features_in_
    categorical = np.asarray(mapper.is_categorical_, dtype=bool)
    demand(categorical.shape == (count,) and len(mapper.bin_thresholds_) == count, "maps other columns than it checks")
    if model._preprocessor is not None:
        _check_preprocessor(model._preprocessor, count)
    for column in np.flatnonzero(categorical):
        known = np.asarray(mapper.bin_thresholds_[column])
        demand(((known >= 0) & (known < 256)).all(), "knows a category outside 0 to 255")
    for predictor in (predictor for step in model._predictors for predictor in step):
        demand(_is(predictor, "TreePredictor"), f"has a {type(predictor).__name__} for a tree")
        nodes = predictor.nodes
        inner = ~nodes["is_leaf"].astype(bool)
        _demand_features(nodes["feature_idx"][inner], count)
        read = nodes["feature_idx"][inner & nodes["is_categorical"].astype(bool)]
        demand(categorical[read].all(), "reads a number as a category")


def _check_preprocessor(columns: Any, count: int) -> None:
    """Check that what comes before the trees leaves as many columns as there were."""
    demand(_is(columns, "ColumnTransformer"), f"begins with a {type(columns).__name__}")
    (_, encoder, first), (_, numbers, second) = columns.transformers_[:2]
    demand(_is(encoder, "OrdinalEncoder") and _is(numbers, "FunctionTransformer"), "begins with foreign steps")
    demand(numbers.func is None or numbers.func.func.__name__ == "check_array", "begins with a function of its own")
    masks = [np.asarray(mask, dtype=bool) for mask in (first, second)]
    demand(all(m.shape == (count,) for m in masks) and (masks[0] ^ masks[1]).all(), "drops or repeats columns")


# --- encoders and vocabularies -----------------------------------------------------------------------------------


def check_one_hot(encoder: Any) -> None:
    """Check that each category has a column of its own matrix."""
    if not hasattr(encoder, "categories_"):
        return
    count, drops = len(encoder.categories_), getattr(encoder, "_drop_idx_after_grouping", None)
    groups = getattr(encoder, "_default_to_infrequent_mappings", None) if encoder._infrequent_enabled else None
    groups = [None] * count if groups is None else groups
    drops = [None] * count if drops is None else drops
    widths = encoder._n_features_outs
    demand(
        len(groups) == len(drops) == len(widths) == count == encoder.n_features_in_, "encodes other columns than it has"
    )
    for known, group, drop, width in zip(encoder.categories_, groups, drops, widths, strict=True):
        n_columns = len(known)
        if group is not None:
            group = np.asarray(group)  # noqa: PLW2901 - the same, as numbers
            demand(group.shape == (n_columns,) and (group >= 0).all(), "groups other categories than it knows")
            n_columns = int(group.max()) + 1
            demand(n_columns <= len(known), f"writes column {n_columns - 1} of {len(known)}")
        demand(drop is None or 0 <= int(drop) < n_columns, f"drops column {drop} of {n_columns}")
        demand(width == n_columns - (drop is not None), f"has {n_columns} columns and claims {width}")


def check_vocabulary(vectorizer: Any) -> None:
    """Check that words have columns of their own matrix, and that texts are texts and no names of files."""
    demand(getattr(vectorizer, "input", "content") == "content", "opens the files that rows name (input=)")
    words = getattr(vectorizer, "vocabulary_", None)
    if words is not None:
        columns = sorted(words.values())
        demand(columns == list(range(len(words))), f"has columns of its {len(words)} words that are not 0, 1, 2, …")


def _is(part: Any, kind: str) -> bool:
    return type(part).__name__ == kind


CHECKS: dict[str, Callable[[Any], None]] = {
    "sklearn.preprocessing._encoders.OneHotEncoder": check_one_hot,
    "sklearn.feature_extraction.text._VectorizerMixin": check_vocabulary,
    "sklearn.feature_extraction._dict_vectorizer.DictVectorizer": check_vocabulary,
    "sklearn.tree._tree.Tree": check_tree,
    "sklearn.tree._classes.BaseDecisionTree": check_tree_estimator,
    "sklearn.ensemble._gb.BaseGradientBoosting": check_boosting,
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": check_predictor,
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.BaseHistGradientBoosting": check_hist_boosting,
}
