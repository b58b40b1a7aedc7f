"""Python source as it is written: lookups above, one function below, and the columns that flow through it.

A :class:`Column` is what a column of the pipeline's matrix is in the scorer: an expression, written into the function
when somebody first needs it. What is known about its values (missing or not, how large at most) decides which checks
have to be written; a value that a check does not vouch for makes the function return None, and the pipeline answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlops_lib.errors import NotExactError

# Larger numbers go to the pipeline, which may refuse them: sums, scales and float32 stay finite below this.
LIMIT = 1e30
FLOAT32_MAX = 3.4028234663852886e38
MAX_TABLE_CELLS = 1_000_000
Key = str | float | None
PREAMBLE = """\
from math import exp, inf, nan
from operator import index


def number(value):
    if value is None:
        return nan
    if isinstance(value, float):
        return float(value)
    try:
        value = index(value)
    except TypeError:
        return inf
    return float(value) if -9007199254740992 <= value <= 9007199254740992 else inf


def text(value):
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, float) and value != value:
        return None
    return False


def rows(width, sparse):
    dense = {}
    for key, cells in sparse.items():
        row = [0.0] * width
        for position, value in cells.items():
            row[position] = value
        dense[key] = tuple(row)
    return dense


def expit(x):
    try:
        return 1.0 / (1.0 + exp(-x))
    except OverflowError:
        return 0.0
"""
# Summing and dividing in the steps of sklearn.utils.extmath.softmax; numpy's exp differs from the C library's.
SOFTMAX = """

def softmax(*values):
    x = numpy.array([values])
    x -= x.max(axis=1).reshape(-1, 1)
    numpy.exp(x, out=x)
    x /= x.sum(axis=1).reshape(-1, 1)
    return tuple(x[0].tolist())
"""


class Source:
    """The text of one scorer, built line by line."""

    def __init__(self) -> None:
        self.tables: list[str] = []
        self.lines: list[str] = []
        self.uses_numpy = False
        # Whether the pipeline gives a row the same bits alone and among others.
        self.is_rowwise = True
        # Thresholds that meet an input as it came: what edge cases are made of.
        self.thresholds: dict[str, set[float]] = {}
        self._count = 0

    def local(self, expression: str) -> str:
        """Write an assignment to a new local variable; return its name."""
        self._count += 1
        self.lines.append(f"v{self._count} = {expression}")
        return f"v{self._count}"

    def table(self, expression: str) -> str:
        """Write a constant above the function; return its name."""
        self.tables.append(f"T{len(self.tables)} = {expression}")
        return f"T{len(self.tables) - 1}"

    def decline_if(self, condition: str) -> None:
        """Leave the row to the pipeline where ``condition`` holds."""
        self.lines.append(f"if {condition}:")
        self.lines.append("    return None")

    def render(self, features: Sequence[str]) -> str:
        """Return the whole text."""
        head = PREAMBLE + (SOFTMAX if self.uses_numpy else "")
        arguments = "".join(f"    x{i},  # {name!r}\n" for i, name in enumerate(features))
        body = "".join(f"    {line}\n" for line in self.lines)
        imports = "import numpy\n" if self.uses_numpy else ""
        return f"{imports}{head}\n\n" + "\n".join([*self.tables, ""]) + f"\n\ndef score(\n{arguments}):\n{body}"


@dataclass(eq=False)
class Column:
    """One column at one point of the pipeline.

    Parameters
    ----------
    expression : callable
        Returns the Python expression of its value; called once, when the value is first needed.
    is_text : bool
        Strings, with None for a missing one; numbers otherwise, with NaN.
    may_miss : bool
    bound : float
        The largest absolute value that it can have.
    lookup : Lookup, optional
        Where it is one of the columns that a category is encoded as.
    feature : str, optional
        Name of the input that it is, untouched.
    """

    source: Source
    expression: Callable[[], str]
    is_text: bool = False
    may_miss: bool = False
    bound: float = LIMIT
    lookup: Lookup | None = None
    feature: str | None = None
    _name: str = field(default="", init=False)

    def name(self) -> str:
        """Return the variable that holds its value, writing it first if need be."""
        if not self._name:
            expression = self.expression()
            self._name = expression if expression.isidentifier() else self.source.local(expression)
        return self._name

    def number(self) -> str:
        """Return the variable of a number.

        Raises
        ------
        NotExactError
            For text.
        """
        if self.is_text:
            raise NotExactError(what="a model that takes text", supported="only an encoder makes numbers of it")
        return self.name()

    def derive(self, template: str, bound: float) -> Column:
        """Return a number computed from this one; ``{}`` stands for its variable."""
        return Column(self.source, lambda: template.format(self.number()), may_miss=self.may_miss, bound=bound)


@dataclass(frozen=True)
class Matrix:
    """What one step of a pipeline hands to the next.

    Parameters
    ----------
    columns : list of Column
    names : list of str or None
        Column names, where the step hands on a DataFrame.
    is_sparse : bool
    """

    columns: list[Column]
    names: list[str] | None = None
    is_sparse: bool = False


class Lookup:
    """A category and the columns it is encoded as, tabulated from the fitted encoder itself.

    Parameters
    ----------
    column : Column
        The category.
    cells : mapping of key to list of float or None
        What each known category becomes; ``None`` is the key of a missing one. Where the value is None, the encoder
        raises, and the row is left to the pipeline.
    unknown : list of float or None
        What any other category becomes.
    """

    def __init__(
        self, source: Source, column: Column, cells: Mapping[Key, list[float] | None], unknown: list[float] | None
    ) -> None:
        self.source, self.column, self.cells, self.unknown = source, column, cells, unknown
        known = [row for row in (*cells.values(), unknown) if row is not None]
        self.width = len(known[0])
        self._row = ""
        self.columns = [
            Column(
                source,
                lambda k=k: self._cell(k),  # type: ignore[misc] # each its own k
                lookup=self,
                may_miss=any(math.isnan(row[k]) for row in known),
                bound=max(abs(row[k]) for row in known if not math.isnan(row[k])) if known else 0.0,
            )
            for k in range(self.width)
        ]

    def write(self, rows: Mapping[Key, str | None], unknown: str | None, wrap: str = "{}") -> str:
        """Write a table of one expression per category, and its use; return the variable.

        Parameters
        ----------
        rows : mapping of key to str or None
            None leaves the row to the pipeline.
        unknown : str or None
        wrap : str
            What stands around the table, such as ``rows(3, {})``.
        """
        name = self.column.name()
        if self.column.may_miss and not self.column.is_text:
            name = self.source.local(f"None if {name} != {name} else {name}")  # NaN is found in no table
        table = self.source.table(wrap.format("{" + ", ".join(f"{key!r}: {row}" for key, row in rows.items()) + "}"))
        default = "" if unknown is None else ", " + self.source.table(f"{wrap.format('{0: ' + unknown + '}')}[0]")
        value = self.source.local(f"{table}.get({name}{default})")
        if unknown is None or None in rows.values():
            self.source.decline_if(f"{value} is None")
        return value

    def row(self) -> str:
        """Return the variable that holds the one column, or the tuple of them all."""
        if not self._row:
            if self.width * len(self.cells) > MAX_TABLE_CELLS:
                raise NotExactError(
                    what=f"an encoder of {len(self.cells)} categories in {self.width} columns",
                    supported=f"a table may have {MAX_TABLE_CELLS} cells",
                )
            write, wrap = (_sparse, f"rows({self.width}, {{}})") if self.width > 1 else (_single, "{}")
            rows = {key: None if row is None else write(row) for key, row in self.cells.items()}
            self._row = self.write(rows, None if self.unknown is None else write(self.unknown), wrap)
        return self._row

    def _cell(self, k: int) -> str:
        return f"{self.row()}[{k}]" if self.width > 1 else self.row()


def literal(value: Any) -> str:
    """Return a number as Python source of the same float, exactly."""
    return repr(float(value))


def _single(row: list[float]) -> str:
    return literal(row[0])


def _sparse(row: list[float]) -> str:
    # -0.0 is kept: it compares equal to zero and differs from it.
    cells = (f"{k}: {literal(value)}" for k, value in enumerate(row) if repr(value) != "0.0")
    return "{" + ", ".join(cells) + "}"
