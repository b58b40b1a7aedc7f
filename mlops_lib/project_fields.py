"""What the fields of a project must be, by themselves and beside each other.

>>> [name for name, _, fits, _ in check_fields(project) if not fits]  # doctest: +SKIP
[]
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

# What MLflow takes as the name of a model and of an experiment, and a file system as that of a folder.
NAME = re.compile(r"""(?![. ])(?!.*(\.\.|\.ledger|[. ]$))[^/:\\'"`%?#]+""")
# What MLflow takes as an alias, and nothing else means already.
STAGE = re.compile(r"(?!(latest|none|all|v?\d+)$)[\w-]{1,200}", re.IGNORECASE)
# Columns that tables of predictions have besides the keys, and those that they have where there are classes.
PREDICTION = re.compile("prediction(_id)?|scored_at|model_(name|version|digest)|features_hash")
SCORE = re.compile("score(_.*)?")
TABLES = ("target", "keys", "features", "arrivals", "labels")

# By annotation: whether a value is of the kind, and how it is named.
KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "int": (lambda value: type(value) is int and value > 0, "a whole number above zero"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "Path": (lambda value: isinstance(value, Path), "a Path, such as Path(__file__).resolve().parent.parent"),
    "tuple[str, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(each, str) and each for each in value),
        "a tuple of texts, such as ('a', 'b') or ('a',)",
    ),
    "tuple[Any, ...]": (lambda value: isinstance(value, tuple), "a tuple, such as (Threshold('roc_auc', 0.6),)"),
    "Callable": (lambda value: value is None or callable(value), "a function, not what it returns"),
    "Literal": (lambda value: value in ("none", "values", "hash"), "'none', 'values' or 'hash'"),
    "Task": (lambda value: hasattr(value, "with_classes"), "binary(…), multiclass() or regression() of mlops_lib.task"),
    "Monitoring": (lambda value: hasattr(value, "min_labelled"), "a Monitoring(…) of mlops_lib.project"),
}


def check_fields(p: Any) -> Iterator[tuple[str, object, bool, str]]:
    """Yield name, value, whether it will do and what is needed instead, for each rule of a ``Project``.

    What comes later relies on what came before.
    """
    for field in fields(p):
        value, kind = getattr(p, field.name), str(field.type)
        is_kind, needs = KINDS.get(kind) or KINDS.get(kind.partition("[")[0]) or (lambda _: True, "")
        yield field.name, value, is_kind(value), needs
    is_name = NAME.fullmatch(p.name) and p.name.isprintable() and len(p.name.encode()) <= 200
    letters = "up to 200 letters, digits, '-', '_', with blanks and dots between them, no '..' and no '.ledger'"
    yield "name", p.name, bool(is_name), letters
    for stage in p.stages:
        needs = "letters, digits, '-' and '_', and no number, 'v1', 'latest', 'none' or 'all'"
        yield "stages", stage, bool(STAGE.fullmatch(stage)), needs
    yield "stages", p.stages, len(p.stages) > 1, "two or more: what is registered would be in production at once"
    for name, names in (("keys", p.keys), ("features", p.features), ("stages", [each.casefold() for each in p.stages])):
        yield name, getattr(p, name), len({*names}) == len(names), "each name once"
    for gate in p.gates:
        parameters = getattr(type(gate), "__dataclass_params__", None)
        is_frozen = parameters is not None and parameters.frozen
        yield "gates", gate, is_frozen, "frozen records: write @dataclass(frozen=True) above the gate's class"
    for name, method, records in (
        ("gates", "check", p.gates),
        ("metrics", "compute", [each for each in p.metrics if not isinstance(each, str)]),
    ):
        for record in records:
            is_record = callable(getattr(record, method, None)) and not isinstance(record, type)
            yield name, record, is_record, "records such as Threshold('roc_auc', 0.6) or quality.Metric(…)"

    for name in TABLES if any(getattr(p, name) for name in TABLES) else ():
        yield name, getattr(p, name), bool(getattr(p, name)), f"to be given, or none of {', '.join(TABLES)}"
    for name, column in (("target", p.target), ("labelled_at", p.labelled_at)):
        yield name, column, column not in p.features, "a column that is no feature: when a row arrives it is not known"
        yield name, column, column not in p.keys, "a column that is no key"
    yield "labelled_at", p.labelled_at, p.labelled_at != p.target, "another column than the target"
    kept = p.features if p.keep_features == "values" else ()
    for name, columns in (("keys", p.keys), ("target", (p.target,)), ("features", kept)):
        for column in columns:
            is_taken = PREDICTION.fullmatch(column) or (p.task.is_classifier and SCORE.fullmatch(column))
            yield name, column, not is_taken, "another name: tables of predictions have a column of this one"
    for name, needed in (("arrivals", ["period"]), ("labels", ["period"]), ("predictions", ["period", "version"])):
        placeholders = _read_placeholders(getattr(p, name))
        is_template = sorted(placeholders) == needed or (name != "predictions" and not placeholders)
        yield name, getattr(p, name), is_template, f"a path with {' and '.join(f'{{{each}}}' for each in needed)}, once"
    is_pair = ("{period}" in p.arrivals) == ("{period}" in p.labels)
    yield "labels", p.labels, is_pair, "a {period} where arrivals have one, and only there"
    yield "labels", p.labels, not p.labels or p.labels != p.arrivals, "another file than arrivals"


def _read_placeholders(template: str) -> list[str]:
    """Return what stands in the braces of a path template."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:  # a single brace
        return [str(error)]
    return [f"{name}{conversion or ''}{spec}" for _, name, spec, conversion in parts if name is not None]
