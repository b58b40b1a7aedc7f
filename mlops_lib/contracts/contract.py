"""The contract itself: columns, keys, rules and policies, as data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field

from mlops_lib.contracts.reading import KINDS, Cells, Kind, read_cells
from mlops_lib.contracts.records import FromList, Share, record
from mlops_lib.contracts.rules import POLICIES, Policy, Rule, raise_for_expression
from mlops_lib.errors import ContractError, NotFoundError
from mlops_lib.report import table_lines
from mlops_lib.wording import listed


@record
class Column:
    """What one feature may hold.

    Parameters
    ----------
    name : str
    kind : {"number", "integer", "boolean", "string", "datetime"}
        float64, int64, bool, str and naive datetime64.
    nullable : bool
        Whether a row without a value is good.
    low, high : float or None
        Closed range of a number or an integer; outside it the row is bad.
    categories : tuple of str or None
        Known values of a string; None when there were too many to list.
    unseen : {"warn", "reject", "stop"}
        Whether a row with another value is only counted, or bad, or stops its batch.
    max_missing_share, max_unseen_share : float, in [0, 1]
        Above them the batch fails.
    scale : float or None
        Upper decile of the nonzero absolute values: the size of a typical large value.
    scale_factor : float, >= 1
        A batch whose own scale is more than this many times larger or smaller fails: its units have changed.
    """

    name: str
    kind: Annotated[Kind, Field(description=f"one of {listed(KINDS)}")]
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    categories: Annotated[tuple[str, ...], FromList] | None = None
    unseen: Annotated[Policy, Field(description=f"one of {listed(POLICIES)}")] = "warn"
    max_missing_share: Share = 0.05
    max_unseen_share: Share = 0.05
    scale: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="more than 0, or None")] = None
    scale_factor: Annotated[float, Field(ge=1, allow_inf_nan=False, description="1 or more")] = 5.0

    def __post_init__(self) -> None:
        low, high = self.ends
        if not low <= high:
            found, expected = f"has low={self.low!r}", f"at most high={self.high}"
            raise ContractError("definition", subject=f"Column '{self.name}'", found=found, expected=expected)

    @property
    def ends(self) -> tuple[float, float]:
        """The closed range, infinite where there is no limit."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def range(self) -> str:
        """The closed range for people, such as ``0 to 90``."""
        return "{:g} to {:g}".format(*self.ends)


@functools.cache
def _no_cells(kind: Kind) -> Cells:
    return read_cells(pd.Series([], dtype=object), kind)


def _read_rule(rule: object) -> object:
    return Rule(rule) if isinstance(rule, str) else rule


@record
class Contract:
    """The columns, keys and rules that a table must keep before it is scored.

    Parameters
    ----------
    columns : tuple of Column
        The features, in the model's order.
    keys : tuple of str
        Columns that identify a row: present, not null, together unique.
    max_bad_share : float, in [0, 1]
        Above this share of bad rows the batch fails.
    rules : tuple of Rule, or of str for rules with nothing but an expression
        Comparisons between columns, such as ``"arrival > departure"``.
    n_rows : int
        Rows that the contract was learnt from.
    key_kinds : dict of str to str
        Kinds of the keys that have one; such a key of another kind is bad, and in a CSV it is read as its kind.
    policies : dict of str to str
        What becomes of a broken rule, by its name in reports and quarantined rows, where that is not the default: a row
        is set aside (``reject``) and a batch that fails is not scored (``stop``). See :meth:`with_policy`.
    """

    columns: Annotated[tuple[Column, ...], FromList]
    keys: Annotated[tuple[str, ...], FromList] = ()
    max_bad_share: Share = 0.05
    rules: Annotated[tuple[Annotated[Rule, BeforeValidator(_read_rule)], ...], FromList] = ()
    n_rows: int = 0
    key_kinds: Mapping[str, Kind] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        names = [rule.name for rule in self.rules]
        if twice or len(set(names)) < len(names):
            found = (
                f"has more than one column {listed(twice)}"
                if twice
                else f"has two rules of one name in {listed(names)}"
            )
            raise ContractError("definition", subject="The contract", found=found, expected="each once")
        empty = {column.name: _no_cells(column.kind) for column in self.columns}
        for rule in self.rules:
            raise_for_expression(rule, empty)
        known = self._policies()
        for name, policy in self.policies.items():
            self._raise_for_policy(name, policy, known.get(name, POLICIES))

    def _raise_for_policy(self, name: str, policy: Policy, known: Sequence[Policy]) -> None:
        if policy not in known:
            found, expected = f"has policy '{policy}'", listed(known)
            raise ContractError("definition", subject=f"Rule '{name}'", found=found, expected=expected)

    def _policies(self) -> dict[str, tuple[Policy, ...]]:
        """Return the policies that each rule can have, by its name."""
        keys = ", ".join(self.keys)
        must = [f"{keys}.null", f"{keys}.duplicated", *(f"{key}.kind" for key in self.keys)] if keys else []
        must += [f"{name}.{rule}" for name in self.features for rule in ("null", "kind", "finite")]
        may = [f"{name}.{rule}" for name in self.features for rule in ("range", "unseen")]
        batch = [f"{name}.{rule}" for name in self.features for rule in ("missing_share", "unseen_share", "scale")]
        may += [rule.name for rule in self.rules]
        policies: dict[str, tuple[Policy, ...]] = dict.fromkeys(must, ("reject", "stop"))
        return policies | dict.fromkeys(may, POLICIES) | dict.fromkeys(batch, ("warn", "stop"))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Return one column; an unknown name raises ``NotFoundError``."""
        if name not in self.features:
            raise NotFoundError("contract_column", name=name, columns=self.features)
        return self.columns[self.features.index(name)]

    def replace_column(self, name: str, **changes: Any) -> Contract:
        """Return a contract with one column tightened or loosened; this one stays as it is.

        Raises
        ------
        NotFoundError
            No such column.
        ContractError
            No such field, or a value that it cannot have.
        """
        column = self.column(name)
        new = dataclasses.replace(column, **changes)
        return dataclasses.replace(self, columns=tuple(new if c is column else c for c in self.columns))

    def with_rule(self, rule: Rule | str, **fields: Any) -> Contract:
        """Return a contract with one rule more, or with the rule of that name replaced.

        >>> Contract((Column("x", "number"),)).with_rule("x > 0", policy="warn").rules[0].policy
        'warn'

        Raises
        ------
        ContractError
            The rule cannot be used on these columns.
        """
        new = Rule(rule, **fields) if isinstance(rule, str) else dataclasses.replace(rule, **fields)
        kept = tuple(old for old in self.rules if old.name != new.name)
        return dataclasses.replace(self, rules=(*kept, new))

    def policy(self, name: str) -> Policy:
        """Return what becomes of a broken rule: ``warn``, ``reject`` (a row) or ``stop`` (a batch)."""
        for rule in self.rules:
            if rule.name == name:
                return rule.policy
        column, _, what = name.rpartition(".")
        if what == "unseen" and column in self.features:
            return self.column(column).unseen
        default: Policy = "stop" if what in ("missing_share", "unseen_share", "scale") else "reject"
        return self.policies.get(name, default)

    def with_policy(self, name: str, policy: Policy) -> Contract:
        """Return a contract in which a broken rule has another consequence.

        Parameters
        ----------
        name : str
            As quarantined rows and reports call it: ``"temp.range"``, ``"carrier.unseen"``, ``"temp.scale"``.
        policy : {"warn", "reject", "stop"}
            What is ``warn`` is scored and counted. A value that the model cannot be given (``null``, ``kind``,
            ``finite``, keys) is at least rejected; what only a batch can show is ``warn`` or ``stop``.

        Raises
        ------
        ContractError
            No such rule, or a policy that it cannot have.
        """
        known = self._policies()
        if name not in known:
            raise ContractError("name", subject="The contract", what="rule", name=name, names=known)
        self._raise_for_policy(name, policy, known[name])
        for rule in self.rules:
            if rule.name == name:
                return self.with_rule(rule, policy=policy)
        if name.endswith(".unseen"):
            return self.replace_column(name.removesuffix(".unseen"), unseen=policy)
        return dataclasses.replace(self, policies={**self.policies, name: policy})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Contract:
        """Read back what :meth:`to_dict` wrote, from JSON too."""
        columns = tuple(Column(**column) for column in values["columns"])
        rules = tuple(rule if isinstance(rule, str) else Rule(**rule) for rule in values["rules"])
        return cls(**{**values, "columns": columns, "rules": rules})

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, no NaN. Equal contracts give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def frame(self) -> pd.DataFrame:
        """Return one row a column, one column a field."""
        return pd.DataFrame([asdict(column) for column in self.columns])

    def _lines(self) -> tuple[str, list[list[object]], list[str]]:
        """Return what both tables show: a head, a row for each column, and the rules and policies."""
        keys = listed(f"{key} ({self.key_kinds[key]})" if key in self.key_kinds else key for key in self.keys)
        head = (
            f"contract {self.digest[:12]} learnt from {self.n_rows:,} rows; keys {keys}; "
            f"at most {self.max_bad_share:.1%} bad rows"
        )
        rows: list[list[object]] = [["column", "kind", "null", "values", "missing", "unseen", "scale"]]
        for column in self.columns:
            values = "" if column.ends == (-math.inf, math.inf) else column.range
            if column.categories is not None:
                values = f"{len(column.categories)} known: {listed(column.categories, limit=5)}"
            unseen = "" if column.categories is None else f"{column.unseen}, <= {column.max_unseen_share:.3g}"
            scale = "" if column.scale is None else f"{column.scale:.4g} ×÷ {column.scale_factor:.3g}"
            null, missing = "yes" if column.nullable else "no", f"<= {column.max_missing_share:.3g}"
            rows.append([column.name, column.kind, null, values, missing, unseen, scale])
        policies = [f"policy of {name}: {policy}" for name, policy in self.policies.items()]
        return head, rows, [*(f"rule {rule}" for rule in self.rules), *policies]

    def __str__(self) -> str:
        """Return a table for a terminal."""
        head, rows, rules = self._lines()
        return "\n".join([head, *table_lines(rows), *rules])

    __repr__ = __str__  # where a notebook has no HTML

    def _repr_html_(self) -> str:
        """Return the table that JupyterLab shows."""
        head, rows, rules = self._lines()
        shown = pd.DataFrame(rows[1:], columns=rows[0]).to_html(index=False)
        return "".join([f"<p>{html.escape(head)}</p>", shown, *(f"<p>{html.escape(rule)}</p>" for rule in rules)])
