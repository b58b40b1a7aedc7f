"""A notebook's signature: read from its one parameters cell, without running anything.

The cell carries the tag ``parameters`` and holds annotated literals, each with a comment that is its help::

    train_until: str = "2013-03"  # last month to train on

Refused before a kernel starts: no such cell or two, a parameter without annotation, a default that is no literal, an
unknown name, a value of another type.
"""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, Optional

import pydantic

from mlops_lib.errors import NotFoundError, ParameterError
from mlops_lib.redaction import is_secret_name

TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "None": None,
    "list": list,
    "dict": dict,
    "date": date,
    "Path": Path,
    "Literal": Literal,
    "Optional": Optional,
}
# Values that are secrets whatever their name: keys of clouds and forges, tokens, private keys, passwords in addresses.
SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|gh[pousr]_\w{30,}|glpat-[\w-]{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY-----|\w+://[^/\s:@]+:[^/\s:@]+@"
)


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
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            line = ast.unparse(statement).splitlines()[0]
            raise refusal(f"line {statement.lineno} is `{line}`", "`name: type = literal  # help`")
        name, annotation = statement.target.id, ast.unparse(statement.annotation)
        if statement.value is None:
            raise refusal(f"'{name}' has no default", "a literal default")
        try:
            default = _literal(statement.value)
            parameter = Parameter(name, annotation, default, comments.get(statement.end_lineno or 0, ""))
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
        if is_secret_name(name) or SECRET_VALUE.search(repr(values[name])):
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
    if parameter.type in (str, Path):
        return Path(text) if parameter.type is Path else text
    if parameter.type is date:
        try:
            return date.fromisoformat(text)
        except ValueError:
            return text
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def to_source(value: Any) -> str:
    """Return the Python expression that gives ``value`` in the notebook's parameters cell."""
    if isinstance(value, date):
        return f"date.fromisoformat({value.isoformat()!r})"
    if isinstance(value, Path):
        return f"Path({str(value)!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


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
    """Evaluate a literal, or ``date(…)``, ``date.fromisoformat("…")`` and ``Path("…")`` of literals."""
    if isinstance(node, ast.Call) and not node.keywords:
        known: dict[str, Any] = {"date": date, "date.fromisoformat": date.fromisoformat, "Path": Path}
        function = known.get(ast.unparse(node.func))
        if function is not None:
            return function(*(ast.literal_eval(argument) for argument in node.args))
    return ast.literal_eval(node)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}
