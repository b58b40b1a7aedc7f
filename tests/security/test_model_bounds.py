"""A model whose numbers lead outside it is refused before it predicts, though its digest is right and its types are."""

from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
import skops.io
from estimators import MODELS, SEEDED, UNCHECKED, after, make_training, save_model, task_of
from sklearn import cluster, ensemble, neighbors, preprocessing, svm, tree
from sklearn.feature_extraction import DictVectorizer, text
from sklearn.pipeline import make_pipeline

from mlops_lib import models
from mlops_lib.errors import ModelError, ModelFileError
from mlops_lib.models import bounds, types

X = np.random.default_rng(0).normal(size=(60, 3))
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])
Y = (X[:, 0] + X[:, 1] > 0).astype(int)
CLASSES = np.digitize(X[:, 0], [-0.5, 0.5])


def rewrite_tree(model: Any, **changes: Any) -> None:
    """Put other values into a decision tree's node 0, or other counts, as a file could."""
    found = model if isinstance(model, tree._tree.Tree) else model.tree_
    state = found.__getstate__()
    nodes = state["nodes"].copy()
    for field, value in changes.items():
        if field in nodes.dtype.names:
            nodes[field][0] = value
        else:
            state[field] = value
    found.__setstate__({**state, "nodes": nodes})


def rewrite_nodes(model: Any, **changes: Any) -> None:
    """Put other values into node 0 of the first tree of histogram gradient boosting."""
    nodes = model._predictors[0][0].nodes
    for field, value in changes.items():
        nodes[field][0] = value


def single() -> Any:
    return tree.DecisionTreeClassifier(**SEEDED).fit(FRAME, Y)


def forest() -> Any:
    return ensemble.RandomForestClassifier(2, **SEEDED).fit(FRAME, Y)


def boosting() -> Any:
    return ensemble.GradientBoostingClassifier(n_estimators=2, **SEEDED).fit(FRAME, CLASSES)


def hist() -> Any:
    return ensemble.HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=5, **SEEDED).fit(FRAME, Y)


def hist_with_categories() -> Any:
    columns = np.c_[CLASSES, X]
    return ensemble.HistGradientBoostingClassifier(
        max_iter=2, min_samples_leaf=5, categorical_features=[0], **SEEDED
    ).fit(columns, CLASSES == 1)


def hist_of_text() -> Any:
    frame = pd.DataFrame({"color": np.array(["red", "green", "blue"])[CLASSES], "size": X[:, 1]})
    return ensemble.HistGradientBoostingClassifier(
        max_iter=2, min_samples_leaf=5, categorical_features=["color"], **SEEDED
    ).fit(frame, CLASSES == 1)


def one_hot() -> Any:
    return preprocessing.OneHotEncoder(min_frequency=3, drop="first").fit(
        np.array([list("aaabbbbcde"), list("xxxxxxxyyy")]).T
    )


def words() -> Any:
    return text.TfidfVectorizer().fit(["one two", "two three"])


def records() -> Any:
    return DictVectorizer().fit([{"a": 1, "b": 2}])


def replace(model: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(model, name, value)


def add_category(model: Any) -> None:
    model._bin_mapper.bin_thresholds_[0] = np.array([0.0, 300.0])


def forget_categories(model: Any) -> None:
    model._bin_mapper.is_categorical_ = np.zeros(4, dtype=bool)


def drop_bitsets(model: Any) -> None:
    predictor = model._predictors[0][0]
    predictor.raw_left_cat_bitsets = predictor.raw_left_cat_bitsets[:0]


def narrow_bitsets(model: Any) -> None:
    predictor = model._predictors[0][0]
    predictor.raw_left_cat_bitsets = predictor.raw_left_cat_bitsets[:, :1]


def drop_column(model: Any) -> None:
    steps = model._preprocessor.transformers_
    model._preprocessor.transformers_ = [steps[0], (*steps[1][:2], np.array([False, False])), *steps[2:]]


def reorder_column(model: Any) -> None:
    model._preprocessor.transformers_[0] = ("encoder", "passthrough", np.array([True, False]))


CRAFTED: list[tuple[Callable[[], Any], Callable[[Any], object], str]] = [
    (one_hot, lambda m: m._default_to_infrequent_mappings[0].__setitem__(1, 10**9), "writes column 1000000000 of 5"),
    (one_hot, lambda m: m._default_to_infrequent_mappings[0].__setitem__(1, -1), "groups other categories"),
    (one_hot, lambda m: m._drop_idx_after_grouping.__setitem__(0, 7), "drops column 7 of 3"),
    (one_hot, lambda m: m._n_features_outs.__setitem__(1, 0), "has 2 columns and claims 0"),
    (one_hot, lambda m: m._n_features_outs.append(1), "encodes other columns than it has"),
    (one_hot, lambda m: delattr(m, "_n_features_outs"), "AttributeError"),
    (words, lambda m: m.vocabulary_.update(two=10**9), "columns of its 3 words that are not 0, 1, 2"),
    (words, lambda m: m.vocabulary_.update(two=-1), "columns of its 3 words"),
    (words, lambda m: m.vocabulary_.update(two="2"), "TypeError"),
    (words, lambda m: replace(m, input="filename"), "opens the files that rows name"),
    (words, lambda m: replace(m, input="file"), "opens the files that rows name"),
    (text.HashingVectorizer, lambda m: replace(m, input="filename"), "opens the files that rows name"),
    (records, lambda m: m.vocabulary_.update(b=10**9), "columns of its 2 words"),
    (single, lambda m: rewrite_tree(m, left_child=2_000_000_000), r"Tree that points to node \[2000000000\] of"),
    (single, lambda m: rewrite_tree(m, right_child=-7), r"points to node \[-7\] of"),
    (single, lambda m: rewrite_tree(m, left_child=0), r"goes round in a circle at node \[0\]"),
    (single, lambda m: rewrite_tree(m, left_child=m.tree_.children_right[0]), "a node with two parents"),
    (single, lambda m: rewrite_tree(m, feature=3), r"reads column \[3\] of 3"),
    (single, lambda m: rewrite_tree(m, feature=-2), r"reads column \[-2\] of 3"),
    (single, lambda m: rewrite_tree(m, threshold=np.nan), "a threshold that is no number"),
    (single, lambda m: rewrite_tree(m, node_count=2_000_000_000), "claims 2000000000 nodes"),
    (single, lambda m: rewrite_tree(m, node_count=0), "claims 0 nodes"),
    (single, lambda m: rewrite_tree(m, max_depth=0), "deep and claims 0"),
    (single, lambda m: replace(m, n_features_in_=2), "checks other columns than its tree reads"),
    (single, lambda m: delattr(m, "n_features_in_"), "AttributeError"),
    (single, lambda m: replace(m, tree_=1), "has a int for a tree"),
    (forest, lambda m: rewrite_tree(m.estimators_[1], left_child=2_000_000_000), "points to node"),
    (boosting, lambda m: rewrite_tree(m.estimators_[1, 0], left_child=2_000_000_000), "points to node"),
    (boosting, lambda m: replace(m, n_features_in_=2), "checks other columns than its trees read"),
    (boosting, lambda m: replace(m, estimators_=np.c_[m.estimators_, m.estimators_]), "has 6 trees a step, needs 3"),
    (
        boosting,
        lambda m: replace(m, estimators_=np.c_[m.estimators_, m.estimators_], n_trees_per_iteration_=6),
        "has 6 trees a step for 3 columns",
    ),
    (boosting, lambda m: replace(m, estimators_=m.estimators_.tolist()), "has no table of trees"),
    (boosting, lambda m: replace(m.estimators_[0, 0], tree_="a"), "has a str for a tree"),
    (hist, lambda m: rewrite_nodes(m, left=2_000_000_000), "TreePredictor that points to node"),
    (hist, lambda m: rewrite_nodes(m, right=0), "goes round in a circle"),
    (hist, lambda m: rewrite_nodes(m, feature_idx=3), r"reads column \[3\] of 3"),
    (hist, lambda m: rewrite_nodes(m, feature_idx=-1), r"reads column \[-1\] of 3"),
    (hist, lambda m: rewrite_nodes(m, num_threshold=np.nan), "a threshold that is no number"),
    (hist, lambda m: rewrite_nodes(m, is_categorical=1), "reads a number as a category"),
    (hist, lambda m: replace(m, n_features_in_=2), "maps other columns than it checks"),
    (hist, lambda m: replace(m._predictors[0][0], nodes=np.zeros(3)), "IndexError"),
    (hist, lambda m: replace(m, _predictors=[[1]]), "has a int for a tree"),
    (hist_with_categories, add_category, "knows a category outside 0 to 255"),
    (hist_with_categories, forget_categories, "reads a number as a category"),
    (hist_with_categories, drop_bitsets, "points outside its 0 sets"),
    (hist_with_categories, narrow_bitsets, r"has sets of categories of shape \(\d+, 1\)"),
    (hist_of_text, drop_column, "drops or repeats columns"),
    (hist_of_text, reorder_column, "begins with foreign steps"),
    (hist_of_text, lambda m: replace(m._preprocessor.transformers_[1][1], func=np.sum), "AttributeError|of its own"),
    (hist_of_text, lambda m: replace(m, _preprocessor=preprocessing.StandardScaler()), "begins with a StandardScaler"),
]


@pytest.mark.parametrize(("make", "spoil", "reason"), CRAFTED)
def test_numbers_that_lead_outside_the_model_are_found(
    make: Callable[[], Any], spoil: Callable[[Any], object], reason: str
) -> None:
    model = make()
    bounds.raise_for_bounds(model, file="model.skops", name="The model")
    spoil(model)
    with pytest.raises(ModelFileError, match=reason) as caught:
        bounds.raise_for_bounds(model, file="model.skops", name="The model")
    assert caught.value.case == "discarded"


class Holder:
    __slots__ = ("kept",)

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def method(self) -> None:
        pass


@pytest.mark.parametrize(
    "hide",
    [
        lambda found: {"deep": [({1}, {"er": found})]},
        lambda found: make_pipeline(preprocessing.StandardScaler(), found),
        lambda found: np.array([None, found], dtype=object),
        Holder,
        lambda found: Holder(found).method,
        lambda found: __import__("functools").partial(print, key=found),
        lambda found: preprocessing.FunctionTransformer(kw_args={"a": found}),
        lambda found: {found: 1},
    ],
)
def test_a_tree_is_found_wherever_it_sits(hide: Callable[[Any], Any]) -> None:
    model = single()
    rewrite_tree(model, left_child=2_000_000_000)
    with pytest.raises(ModelFileError, match="points to node"):
        bounds.raise_for_bounds(hide(model), file="model.skops", name="The model")


def test_an_object_that_holds_itself_is_looked_at_once() -> None:
    round_trip: dict[str, Any] = {}
    round_trip["self"] = [round_trip]
    assert len(list(bounds.walk(round_trip))) == 2


@pytest.mark.filterwarnings("ignore:Number of distinct.*:UserWarning")
def test_every_check_is_asked_by_some_ordinary_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that scikit-learn moves elsewhere would otherwise no longer be looked at, without a word."""
    asked = set()

    def note(kind: str) -> Callable[[Any], None]:
        return lambda _: asked.add(kind)

    monkeypatch.setattr(bounds, "CHECKS", {kind: note(kind) for kind in bounds.CHECKS})
    for name in ("tree", "gradient_boosting", "hist_gradient_boosting"):
        bounds.raise_for_bounds(MODELS[name]().fit(*make_training()), file="model.skops", name="The model")
    bounds.raise_for_bounds([one_hot(), words(), records()], file="model.skops", name="The model")
    assert asked == set(bounds.CHECKS)


@pytest.mark.parametrize("name", UNCHECKED)
def test_what_nobody_checks_is_neither_logged_nor_loaded_until_the_project_names_it(name: str, tmp_path: Path) -> None:
    X, y = make_training()
    model = UNCHECKED[name]().fit(X, y)
    manifest = save_model(model, tmp_path, X.head())
    with pytest.raises(ModelError) as logged:
        models.list_trusted_types(model)
    with pytest.raises(ModelError) as loaded:
        models.load_model_files(tmp_path, manifest, name="The model")
    assert set(loaded.value.types) <= set(logged.value.types)
    models.list_trusted_types(model, extra=logged.value.types)
    named = models.load_model_files(tmp_path, manifest, name="The model", extra=logged.value.types)
    np.testing.assert_array_equal(task_of(model).predict(named.model, X), task_of(model).predict(model, X))


@pytest.mark.parametrize(
    "make",
    [
        lambda: neighbors.KNeighborsClassifier(algorithm="brute").fit(FRAME, Y),
        lambda: neighbors.LocalOutlierFactor(novelty=True).fit(FRAME),
        lambda: svm.NuSVC().fit(FRAME, Y),
        lambda: svm.OneClassSVM().fit(FRAME),
        lambda: cluster.MiniBatchKMeans(3, n_init=1, **SEEDED).fit(FRAME),
        lambda: after(ensemble.BaggingClassifier(svm.SVC(), **SEEDED)).fit(*make_training()),
    ],
)
def test_what_nobody_checks_is_found_by_what_it_derives_from_and_wherever_it_sits(make: Callable[[], Any]) -> None:
    assert bounds.find_unchecked(make())


def test_a_sparse_matrix_in_a_model_is_on_no_list(tmp_path: Path) -> None:
    model = preprocessing.FunctionTransformer(kw_args={"counts": scipy.sparse.csr_matrix(np.eye(3))})
    with pytest.raises(ModelError, match=r"scipy.sparse._csr.csr_matrix"):
        models.list_trusted_types(model)


# Loads a folder and predicts, in a process of its own: with MLflow alone, or through the one loader.
PLAIN = """
import sys, mlflow, numpy as np
model = mlflow.sklearn.load_model(sys.argv[1])
print("loaded", flush=True)
model.predict(np.random.default_rng(0).normal(size=(60, 3)))
print("predicted")
"""
OURS = """
import sys
from pathlib import Path
from mlops_lib import models
from mlops_lib.errors import ModelFileError
for folder in map(Path, sys.argv[1:]):
    try:
        models.load_model_files(folder, models.compute_manifest(folder), name="The model")
    except ModelFileError as error:
        print(error.reason)
print("alive")
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_crafted_file_whose_digest_is_right_is_refused_and_the_process_lives(
    tmp_path: Path, record: Callable[..., None]
) -> None:
    """Whoever may write to the registry can register the digest of what they wrote."""
    import mlflow

    folders = []
    for make, spoil in (
        (single, lambda m: rewrite_tree(m, left_child=2_000_000_000, right_child=2_000_000_000)),
        (hist, lambda m: rewrite_nodes(m, left=2_000_000_000, right=2_000_000_000)),
    ):
        model = make()
        warmup = models.warmup_json(task_of(model), model, FRAME)
        spoil(model)
        folders.append(tmp_path / str(len(folders)))
        save_model(model, folders[-1], FRAME, warmup=warmup)
    crafted = single()
    rewrite_tree(crafted, left_child=2_000_000_000, right_child=2_000_000_000)
    trusted = models.list_trusted_types(single())
    mlflow.sklearn.save_model(crafted, tmp_path / "plain", skops_trusted_types=trusted, pip_requirements=[])

    plain = run(PLAIN, tmp_path / "plain")
    assert plain.stdout.split() == ["loaded"]
    assert plain.returncode < 0, "killed by a signal"
    ours = run(OURS, *folders)
    assert ours.returncode == 0, ours.stderr
    assert [re.sub(r"\d+$", "n", line) for line in ours.stdout.splitlines()] == [
        "holds a Tree that points to node [2000000000] of n",
        "holds a TreePredictor that points to node [2000000000] of n",
        "alive",
    ]
    record(
        16,
        plain="MLflow loads it, and its first prediction kills the process",
        ours="refused after its bounds were looked at, before it predicts; the process lives",
    )


@pytest.mark.parametrize("step", [text.CountVectorizer(input="filename"), text.HashingVectorizer(input="file")])
def test_what_opens_files_is_refused_when_it_is_logged(step: Any) -> None:
    with pytest.raises(ModelError, match=r"opens the files that rows name"):
        models.list_trusted_types(make_pipeline(step))


# --- the list of types -------------------------------------------------------------------------------------------

OWN_CODE = ("__setstate__", "__reduce__", "__reduce_ex__", "__setattr__", "__init_subclass__", "__del__")


def code_of(kind: type) -> set[str]:
    """Return the classes, among a type and what it inherits, that run code of their own when made from a file."""
    bases = [base for base in kind.__mro__ if base is not object and base.__module__ != "builtins"]
    return {f"{base.__module__}.{base.__qualname__}" for base in bases if any(name in vars(base) for name in OWN_CODE)}


def test_every_listed_type_whose_making_runs_code_was_read_for_it() -> None:
    found: set[str] = set()
    for name in models.TRUSTED_TYPES:
        module, _, attribute = name.rpartition(".")
        listed = getattr(importlib.import_module(module), attribute)
        found |= code_of(listed) if isinstance(listed, type) else set()
    reviewed = set(types.REVIEWED_CODE)
    assert {name.replace("numpy.generic", "numpy.number") for name in found} <= reviewed, found - reviewed
    assert code_of(type(scipy.stats.uniform)) - reviewed, "a type that was not read would be found"


def test_a_distribution_that_would_run_a_text_of_the_file_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    told = copy.copy(scipy.stats.uniform)
    told._parse_arg_template = f"open({str(marker)!r}, 'w').close()\n" + told._parse_arg_template
    model = preprocessing.FunctionTransformer(kw_args={"told": told})
    raw = skops.io.dumps(model)
    skops.io.loads(raw, trusted=skops.io.get_untrusted_types(data=raw))
    assert marker.exists(), "it is a file that runs"
    marker.unlink()
    with pytest.raises(ModelError, match=r"scipy.stats"):
        models.list_trusted_types(model)
    save_model(MODELS["logistic"]().fit(*make_training()), tmp_path, make_training()[0])
    (tmp_path / "model.skops").write_bytes(raw)
    with pytest.raises(ModelError, match=r"scipy.stats"):
        models.load_model_files(tmp_path, models.compute_manifest(tmp_path), name="The model")
    assert not marker.exists()
