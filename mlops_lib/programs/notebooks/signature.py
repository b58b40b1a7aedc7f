"""A notebook's signature: read from its one parameters cell, without running anything.

The cell carries the tag ``parameters`` and holds assignments, each with a comment that is its help::

    train_until: str = "2013-03"  # last month to train on

One without annotation has the type of its default (of None any, read as JSON where it is JSON); a default that is no
literal is the notebook's to compute, and shown as its source. Refused before a kernel starts: two such cells, something
else than assignments, a default of another type than its annotation, an unknown name, a value of another type.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Optional, get_args, get_origin

import pydantic

from mlops_lib.errors import NotFoundError, ParameterError
from mlops_lib.redaction import is_secret_name, is_secret_value

TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "None": None,
    "list": list,
    "dict": dict,
    "date": date,
    "datetime": datetime,
    "Any": Any,
    "Path": Path,
    "Literal": Literal,
    "Optional": Optional,
}


class Expression(str):
    """The source of a default that is no literal; what it gives is known in the notebook only."""

    __slots__ = ()

    __repr__ = str.__str__


_CALLS: Mapping[str, Callable[..., Any]] = {
    "date": date,
    "date.fromisoformat": date.fromisoformat,
    "datetime": datetime,
    "datetime.fromisoformat": datetime.fromisoformat,
    "Path": Path,
    "float": float,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook."""

    name: str
    annotation: str
    default: Any
    help: str

    @property
    def type(self) -> Any:
        """The type that the annotation names."""
        return _type_of(ast.parse(self.annotation, mode="eval").body)

    def __str__(self) -> str:
        """Return the line as it would stand in the cell."""
        return f"{self.name}: {self.annotation} = {self.default!r}  # {self.help}"


def read_signature(notebook: Mapping[str, Any], path: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters by name, in order; an empty dict for a notebook without any tagged cell.

    Raises
    ------
    ParameterError
        Nothing was run.
    """

    def refusal(reason: str, expected: str) -> ParameterError:
        return ParameterError("cell", notebook=path, reason=reason, expected=expected)

    cells = [cell for cell in notebook["cells"] if "parameters" in cell.get("metadata", {}).get("tags", ())]
    if not cells:
        return {}
    if len(cells) > 1:
        raise refusal(f"{len(cells)} cells have the tag 'parameters'", "exactly one")
    source = "".join(cells[0]["source"])
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise refusal(f"line {error.lineno} is no Python", "annotated literals") from error
    comments = _comments(source)
    parameters: dict[str, Parameter] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(targets[0], ast.Name) or targets[1:]:
            line = ast.unparse(statement).splitlines()[0]
            raise refusal(f"line {statement.lineno} is `{line}`", "`name: type = literal  # help`")
        name = targets[0].id
        if statement.value is None:
            raise refusal(f"'{name}' has no default", "a literal default")
        default = _literal(statement.value)
        annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else _name_type(default)
        try:
            parameter = Parameter(name, annotation, default, comments.get(statement.end_lineno or 0, ""))
            if isinstance(default, Expression):
                _ = parameter.type
            else:
                _validate(parameter.type, default)
        except (ValueError, TypeError) as error:
            reason = f"'{name}: {annotation}' has the default {ast.unparse(statement.value)}"
            raise refusal(reason, f"a literal of that type ({_first(error)})") from error
        parameters[name] = parameter
    return parameters


def check_values(signature: Mapping[str, Parameter], values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the values that a run would have: the defaults, replaced by ``values`` of declared names and types.

    Raises
    ------
    NotFoundError, ParameterError
        Nothing was run.
    """
    for name in values:
        if name not in signature:
            raise NotFoundError("parameter", notebook=path, name=name, declared=tuple(signature))
        if is_secret_name(name) or is_secret_value(values[name]):
            raise ParameterError("secret", notebook=path, name=name)
    checked = {name: parameter.default for name, parameter in signature.items()}
    for name, value in values.items():
        parameter = signature[name]
        plain = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
        try:
            checked[name] = _validate(parameter.type, plain)
        except ValueError as error:
            raise ParameterError(
                "value", notebook=path, name=name, annotation=parameter.annotation, value=value, reason=_first(error)
            ) from error
    return checked


def parse_value(parameter: Parameter, text: str) -> Any:
    """Read a value from a command line as its parameter's type; what cannot be read stays text, to be refused later."""
    kind = parameter.type
    if _accepts(kind, text) and Literal in _origins(kind):
        return text
    if text.lower() in ("none", "null") and kind is not str and _accepts(kind, None):
        return None
    if kind is not Any:
        with contextlib.suppress(pydantic.ValidationError):  # texts, numbers, dates, paths, true and false
            return pydantic.TypeAdapter(kind).validate_strings(text, strict=True)
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = read(text)
            for given in (value, tuple(value) if isinstance(value, list) else value):
                if _accepts(kind, given):
                    return given
    return text


def to_source(value: Any) -> str:
    """Return the Python expression that gives ``value`` in the notebook's parameters cell."""
    if isinstance(value, date):
        return f"{type(value).__name__}.fromisoformat({value.isoformat()!r})"
    if isinstance(value, Path):
        return f"Path({str(value)!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{to_source(key)}: {to_source(each)}' for key, each in value.items())}}}"
    return f"[{', '.join(map(to_source, value))}]" if isinstance(value, list) else repr(value)


def _accepts(kind: Any, value: Any) -> bool:
    try:
        _validate(kind, value)
    except ValueError:
        return False
    return True


def _origins(kind: Any) -> set[Any]:
    """Return what a type is made of, at its top: of ``Literal["a"] | None`` Literal and None."""
    return {get_origin(each) or each for each in (kind, *(() if get_origin(kind) is Literal else get_args(kind)))}


def _name_type(default: Any) -> str:
    """Return the annotation of a parameter that has none."""
    is_plain = isinstance(default, bool | int | float | str | list | dict | date | Path)
    return type(default).__name__ if is_plain and not isinstance(default, Expression) else "Any"


def _validate(kind: Any, value: Any) -> Any:
    return pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(strict=True)).validate_python(value)


def _first(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)


def _type_of(node: ast.expr) -> Any:
    """Build the type that an annotation names; only the names in ``TYPES`` are known."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in TYPES:
        return TYPES[node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Optional[_type_of(node.left)] if _is_none(node.right) else _type_of(node.left) | _type_of(node.right)  # noqa: UP045
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        arguments = tuple(_type_of(element) for element in inner)
        return _type_of(node.value)[arguments if len(arguments) > 1 else arguments[0]]
    raise TypeError(f"'{ast.unparse(node)}' is not one of {', '.join(TYPES)}")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal, ``date(…)``, ``Path("…")``, ``float("inf")`` and the like; anything else is its source."""
    with contextlib.suppress(ValueError, TypeError, SyntaxError):
        function = _CALLS.get(ast.unparse(node.func)) if isinstance(node, ast.Call) and not node.keywords else None
        if function is not None and isinstance(node, ast.Call):
            return function(*(ast.literal_eval(argument) for argument in node.args))
        return ast.literal_eval(node)
    return Expression(ast.unparse(node))


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}
