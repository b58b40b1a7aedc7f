"""The contract itself: columns, keys, rules and policies, as data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mlops_lib.contracts.reading import KINDS, Cells, read_cells
from mlops_lib.contracts.rules import POLICIES, Rule, find_broken, raise_for_expression
from mlops_lib.errors import ContractError, NotFoundError, listed
from mlops_lib.report import table_lines


@dataclass(frozen=True)
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
    kind: str
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] | None = None
    unseen: str = "warn"
    max_missing_share: float = 0.05
    max_unseen_share: float = 0.05
    scale: float | None = None
    scale_factor: float = 5.0

    def __post_init__(self) -> None:
        low, high = self.ends
        for name, sound, expected in (
            ("kind", self.kind in KINDS, f"one of {listed(KINDS)}"),
            ("unseen", self.unseen in POLICIES, f"one of {listed(POLICIES)}"),
            ("low", low <= high, f"at most high={self.high}"),
            ("max_missing_share", 0 <= self.max_missing_share <= 1, "0 to 1"),
            ("max_unseen_share", 0 <= self.max_unseen_share <= 1, "0 to 1"),
            ("scale", self.scale is None or 0 < self.scale < math.inf, "more than 0, or None"),
            ("scale_factor", 1 <= self.scale_factor < math.inf, "1 or more"),
        ):
            if not sound:
                raise ContractError(
                    "definition",
                    subject=f"Column '{self.name}'",
                    found=f"has {name}={getattr(self, name)!r}",
                    expected=expected,
                )

    @property
    def ends(self) -> tuple[float, float]:
        """The closed range, infinite where there is no limit."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def range(self) -> str:
        """The closed range for people, such as ``0 to 90``."""
        return "{:g} to {:g}".format(*self.ends)


@functools.cache
def _no_cells(kind: str) -> Cells:
    return read_cells(pd.Series([], dtype=object), kind)


@dataclass(frozen=True)
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

    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    max_bad_share: float = 0.05
    rules: tuple[Rule, ...] = ()
    n_rows: int = 0
    key_kinds: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = tuple(Rule(rule) if isinstance(rule, str) else rule for rule in self.rules)
        object.__setattr__(self, "rules", rules)
        twice = sorted({name for name in self.features if self.features.count(name) > 1})
        if twice:
            raise ContractError(
                "definition",
                subject="The contract",
                found=f"has more than one column {listed(twice)}",
                expected="each once",
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ContractError(
                "definition",
                subject="The contract",
                found=f"has max_bad_share={self.max_bad_share!r}",
                expected="0 to 1",
            )
        names = [rule.name for rule in rules]
        if len(set(names)) < len(names):
            raise ContractError(
                "definition",
                subject="The contract",
                found=f"has two rules of one name in {listed(names)}",
                expected="each once",
            )
        empty = {column.name: _no_cells(column.kind) for column in self.columns}
        for rule in rules:
            raise_for_expression(rule, empty)
        for name, policy in self.policies.items():
            known = self._policies()
            if policy not in known.get(name, POLICIES):
                raise ContractError(
                    "definition", subject=f"Rule '{name}'", found=f"has policy '{policy}'", expected=listed(known[name])
                )

    def _policies(self) -> dict[str, tuple[str, ...]]:
        """Return the policies that each rule can have, by its name."""
        keys = ", ".join(self.keys)
        must = [f"{keys}.null", f"{keys}.duplicated", *(f"{key}.kind" for key in self.keys)] if keys else []
        must += [f"{name}.{rule}" for name in self.features for rule in ("null", "kind", "finite")]
        may = [f"{name}.{rule}" for name in self.features for rule in ("range", "unseen")]
        batch = [f"{name}.{rule}" for name in self.features for rule in ("missing_share", "unseen_share", "scale")]
        rows = {**dict.fromkeys(must, ("reject", "stop")), **dict.fromkeys(may, POLICIES)}
        return {
            **rows,
            **dict.fromkeys((rule.name for rule in self.rules), POLICIES),
            **dict.fromkeys(batch, ("warn", "stop")),
        }

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
        known = [item.name for item in dataclasses.fields(Column)]
        column = self.column(name)
        for change in changes:
            if change not in known:
                raise ContractError("name", subject=f"Column '{name}'", what="field", name=change, names=known)
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

    def policy(self, name: str) -> str:
        """Return what becomes of a broken rule: ``warn``, ``reject`` (a row) or ``stop`` (a batch)."""
        for rule in self.rules:
            if rule.name == name:
                return rule.policy
        column, _, what = name.rpartition(".")
        if what == "unseen" and column in self.features:
            return self.column(column).unseen
        default = "stop" if what in ("missing_share", "unseen_share", "scale") else "reject"
        return self.policies.get(name, default)

    def with_policy(self, name: str, policy: str) -> Contract:
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
        if policy not in known[name]:
            raise ContractError(
                "definition", subject=f"Rule '{name}'", found=f"has policy '{policy}'", expected=listed(known[name])
            )
        if any(rule.name == name for rule in self.rules):
            return self.with_rule(next(rule for rule in self.rules if rule.name == name), policy=policy)
        if name.endswith(".unseen"):
            return self.replace_column(name.removesuffix(".unseen"), unseen=policy)
        return dataclasses.replace(self, policies={**self.policies, name: policy})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Contract:
        """Read back what :meth:`to_dict` wrote, from JSON too."""
        columns = (
            Column(**{**column, "categories": None if column["categories"] is None else tuple(column["categories"])})
            for column in values["columns"]
        )
        rules = tuple(rule if isinstance(rule, str) else Rule(**rule) for rule in values["rules"])
        return cls(**{**values, "columns": tuple(columns), "keys": tuple(values["keys"]), "rules": rules})

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, no NaN. Equal contracts give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read back what :meth:`to_json` wrote."""
        return cls.from_dict(json.loads(text))

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

    def _repr_html_(self) -> str:
        """Return the table that JupyterLab shows."""
        head, rows, rules = self._lines()
        shown = pd.DataFrame(rows[1:], columns=rows[0]).to_html(index=False)
        return "".join([f"<p>{html.escape(head)}</p>", shown, *(f"<p>{html.escape(rule)}</p>" for rule in rules)])

    def to_pandera(self) -> Any:
        """Return the row rules as a ``pandera.pandas.DataFrameSchema`` for columns of the contract's own types.

        Missing columns fail, others are ignored. What only a batch can show (shares, scale) is not in it.
        """
        import pandera.pandas as pandera  # noqa: PLC0415 - takes a second to import, and scoring does not need it

        def column_schema(column: Column) -> Any:
            low, high = column.ends if self.policy(f"{column.name}.range") != "warn" else (-math.inf, math.inf)
            checks = [pandera.Check.ge(low)] if low > -math.inf else []
            checks += [pandera.Check.le(high)] if high < math.inf else []
            if column.kind == "number":
                checks.append(pandera.Check(np.isfinite, name="finite"))
            if column.kind == "datetime":  # any unit, which no one dtype says
                checks.append(pandera.Check(lambda values: values.dtype.kind == "M", name="datetime64"))
            if column.unseen != "warn" and column.categories is not None:
                checks.append(pandera.Check.isin(column.categories))
            dtypes = {"number": "float64", "string": "str", "datetime": None}
            whole = {"integer": ("int64", "Int64"), "boolean": ("bool", "boolean")}
            dtype = whole[column.kind][column.nullable] if column.kind in whole else dtypes[column.kind]
            return pandera.Column(dtype, checks, nullable=column.nullable and column.name not in self.keys)

        def rule_check(rule: Rule) -> Any:
            kinds = {column.name: column.kind for column in self.columns}
            return pandera.Check(
                lambda frame: (
                    ~pd.Series(
                        find_broken(rule, {name: read_cells(frame[name], kinds[name]) for name in self.features}),
                        frame.index,
                    )
                ),
                name=rule.name,
            )

        columns = {name: pandera.Column(nullable=False) for name in self.keys}
        columns |= {column.name: column_schema(column) for column in self.columns}
        checks = [rule_check(rule) for rule in self.rules if rule.policy != "warn"]
        return pandera.DataFrameSchema(columns, checks=checks, unique=list(self.keys) or None)
