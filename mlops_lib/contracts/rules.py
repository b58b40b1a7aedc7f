"""Rules between columns: comparisons that are data, and what becomes of a row that breaks one."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field

from mlops_lib.contracts.reading import Cells, Mask
from mlops_lib.contracts.records import record
from mlops_lib.errors import ContractError
from mlops_lib.wording import listed

Policy = Literal["warn", "reject", "stop"]  # from mild to severe
POLICIES: tuple[Policy, ...] = get_args(Policy)
MAX_LENGTH = 500

_ALLOWED = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant),
    *(ast.List, ast.Tuple, ast.cmpop, ast.boolop, ast.Not, ast.Invert, ast.USub, ast.BitAnd, ast.BitOr),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod),
)


@record
class Rule:
    """A comparison that a row must keep.

    Parameters
    ----------
    expression : str
        As ``DataFrame.eval`` reads it, such as ``"arrival > departure"``. Only names of features, constants, arithmetic
        and logic: reading one runs nothing. As in SQL, a row with a null in one of the columns is not judged.
    name : str
        What reports and quarantined rows call it; the expression itself where it is empty.
    policy : {"reject", "warn", "stop"}
        A row that breaks it is set aside; or scored and counted; or no row of its batch is scored.
    max_share : float or None, in [0, 1]
        Above this share of rows that break it the batch fails, whatever becomes of the rows.
    """

    expression: str
    name: str = ""
    policy: Annotated[Policy, Field(description=listed(POLICIES))] = "reject"
    max_share: Annotated[float | None, Field(ge=0, le=1, description="0 to 1, or None")] = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.expression)

    def __str__(self) -> str:
        """Return the rule for people."""
        named = f"{self.name}: {self.expression}" if self.name != self.expression else self.expression
        share = "" if self.max_share is None else f", at most {self.max_share:.4g} of the rows"
        return f"{named} ({self.policy}{share})"


def raise_for_expression(rule: Rule, empty: Mapping[str, Cells]) -> None:
    """Raise ``ContractError`` unless the rule can be used on columns of these kinds."""
    try:
        find_broken(rule, empty)
    except (SyntaxError, NameError, TypeError, ValueError, NotImplementedError) as error:
        raise ContractError(
            "definition",
            subject=f"Rule '{rule.expression}'",
            found=f"cannot be used ({error})",
            expected=f"a comparison of columns, of {listed(empty)}, without calls, attributes or powers",
        ) from error


def find_broken(rule: Rule, cells: Mapping[str, Cells]) -> Mask:
    """Find the rows that break a rule; rows with a null in one of its columns do not."""
    if len(rule.expression) > MAX_LENGTH:
        raise ValueError(f"it is longer than {MAX_LENGTH} characters")
    nodes = list(ast.walk(ast.parse(rule.expression, mode="eval")))
    strange = sorted({type(node).__name__ for node in nodes if not isinstance(node, _ALLOWED)})
    names = sorted({node.id for node in nodes if isinstance(node, ast.Name)})
    unknown = [name for name in names if name not in cells]
    if strange or unknown or not names:
        raise ValueError(f"it holds {listed(strange or unknown or ['no column'])}")
    operands = [end for node in nodes if isinstance(node, ast.BinOp) for end in (node.left, node.right)]
    if not all(_is_number(operand, cells) for operand in operands):  # a text times a billion would fill the memory
        raise ValueError("it calculates with what is no number or time")
    columns = {name: pd.Series(cells[name].values, copy=False) for name in names}
    kept: Any = pd.eval(rule.expression, engine="python", resolvers=[columns], local_dict={}, global_dict={})
    if not (isinstance(kept, pd.Series) and kept.dtype.kind == "b"):
        raise TypeError("its value is not true or false")
    known = ~np.any([cells[name].null | cells[name].bad for name in names], axis=0)
    return np.asarray(known & ~kept.to_numpy())


def _is_number(node: ast.AST, cells: Mapping[str, Cells]) -> bool:
    if isinstance(node, ast.Name):
        return isinstance(cells[node.id].values, np.ndarray)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float))
    return not isinstance(node, (ast.List, ast.Tuple))
