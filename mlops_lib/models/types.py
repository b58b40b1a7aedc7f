"""The types that a model file may contain: those that skops trusts itself, our reviewed list, and what a project names.

The list holds the types that skops leaves out of its defaults and that ordinary estimators need. They are records
(links, losses, splitters, requests) and pure functions of arrays (metrics, feature scores), which read and run nothing
outside themselves. No type whose making compiles, executes, imports or opens anything from its state is on it: scipy's
distributions execute a text of theirs (``rv_generic.__setstate__``), so a search over them is logged by its
``best_estimator_``. skops checks types, not content: what compiled code would index unchecked is on the
list where :mod:`mlops_lib.models.bounds` looks at the content (trees); the rest (neighbours, support vectors, k-means,
splines, sparse matrices) a project has to name, and then a doctored file can crash the process. Boosters, whose own
parsers are native, are first loaded by a child process (:mod:`mlops_lib.models.rehearsal`).

A list is reviewed together with the defaults that it completes, so each belongs to one version of skops and one minor
version of scikit-learn. With another version nothing is saved or loaded until somebody has read what has changed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

from mlops_lib.errors import ModelError
from mlops_lib.models.bounds import find_fault, find_unchecked
from mlops_lib.models.rehearsal import BOOSTERS

TRUSTED_TYPES = frozenset(
    {
        *(kind for kinds in BOOSTERS.values() for kind in kinds),
        "collections.OrderedDict",
        "functools.partial",
        "numpy.dtype",
        "numpy.mean",
        "numpy.number",
        "scipy._lib.array_api_compat.numpy._aliases.asarray",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogLink",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.metrics._classification.accuracy_score",
        "sklearn.metrics._classification.balanced_accuracy_score",
        "sklearn.metrics._classification.brier_score_loss",
        "sklearn.metrics._classification.f1_score",
        "sklearn.metrics._classification.log_loss",
        "sklearn.metrics._classification.precision_score",
        "sklearn.metrics._classification.recall_score",
        "sklearn.metrics._ranking.average_precision_score",
        "sklearn.metrics._ranking.roc_auc_score",
        "sklearn.metrics._scorer._CurveScorer",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.model_selection._split.TimeSeriesSplit",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
        "sklearn.utils.validation.check_array",
    }
)
# Types of the list whose making runs code of their own, each read for what it does with its state; a test finds others.
REVIEWED_CODE = {
    "catboost.core._CatBoostBase": "its bytes are parsed in C++, its other state becomes parameters; rehearsed",
    "collections.OrderedDict": "its items, in their order",
    "functools.partial": "sets function, arguments and keywords; skops checks each of them as a type of its own",
    "lightgbm.basic.Booster": "its text is parsed in C++, its other state becomes attributes; rehearsed",
    "numpy.dtype": "sets byte order, fields and names; skops makes it by name",
    "numpy.number": "sets bytes of a number",
    "sklearn.base.BaseEstimator": "warns of another version and updates its attributes",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor": "casts its nodes to the present dtype",
    "sklearn.tree._tree.Tree": "copies nodes and values after comparing their dtypes; bounds.check_tree looks at them",
    "sklearn.utils._bunch.Bunch": "drops its state; its items are a dict's",
    "sklearn.utils._metadata_requests._MetadataRequester": "makes methods from class attributes, not from state",
    "xgboost.core.Booster": "its bytes are parsed in C++, its other state becomes attributes; rehearsed",
}
# (skops, scikit-learn's minor version) -> list. To add one: read skops' changes and its _trusted_types.py, run
# tests/test_integrity.py with the new versions, add what the matrix of estimators needs and nothing else.
REVIEWED = {("0.16.0", "1.9"): TRUSTED_TYPES}


def list_trusted_types(model: Any, *, extra: Iterable[str] = (), name: str = "The model") -> list[str]:
    """Return the types of ``model`` that skops wants named, all of them on our list or in ``extra``.

    Raises
    ------
    ModelError
        Naming the types that nobody has reviewed, or why skops cannot save the model at all;
        or if the list was not reviewed for the installed skops and scikit-learn.
    """
    import skops.io  # noqa: PLC0415 - 1.5 s, and a command that lists versions loads none

    raise_for_versions()
    try:
        needed = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    except Exception as error:
        reason = "it refers to itself" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"
        raise ModelError("not_savable", model=name, reason=reason) from error
    raise_for_types([*needed, *find_unchecked(model)], extra, name)
    fault = find_fault(model)
    if fault:
        raise ModelError("not_savable", model=name, reason=f"it holds {fault}")
    return sorted(needed)


def raise_for_versions() -> None:
    """Raise ``ModelError`` unless there is a list for the installed skops and scikit-learn."""
    skops, sklearn = (importlib.metadata.version(package) for package in ("skops", "scikit-learn"))
    if (skops, ".".join(sklearn.split(".")[:2])) not in REVIEWED:
        raise ModelError(
            "versions",
            skops=skops,
            sklearn=sklearn,
            reviewed=tuple(f"skops {s} with scikit-learn {k}" for s, k in REVIEWED),
        )


def raise_for_types(needed: Iterable[str], extra: Iterable[str], name: str) -> None:
    """Raise ``ModelError`` for types that are neither on the list nor in ``extra``."""
    unknown = set(needed) - TRUSTED_TYPES
    # To name these in the project does not help: no fresh process could import them.
    homeless = {kind for kind in unknown if kind.startswith("__main__.") or "<" in kind}
    untrusted = tuple(sorted(unknown - set(extra) or homeless))
    if untrusted:
        at_fault = tuple(kind for kind in untrusted if kind in homeless)
        raise ModelError("types", model=name, types=untrusted, homeless=at_fault)
