"""Hold a batch to its contract: good rows, bad rows with their reasons, and what the batch as a whole shows.

What batches show adds up: the sum of their tallies is the tally of the table, however it was cut, so that a table that
is streamed, or split among executors, gets the report that it would get whole.
"""

from __future__ import annotations

import functools
import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mlops_lib import data
from mlops_lib.contracts.contract import Column, Contract
from mlops_lib.contracts.reading import Cells, Format, Mask, describe_kind, name_kind, read_cells
from mlops_lib.contracts.rules import find_broken
from mlops_lib.errors import ContractError
from mlops_lib.report import Report, Row, Status
from mlops_lib.wording import listed

_SCALE_QUANTILE = 0.9  # the upper decile of |x| moves far less with the season than the median, near zero above all
_SCALE_MIN_VALUES = 30  # fewer nonzero values say nothing about units
_SIZES_PER_OCTAVE = 16  # sizes are counted in steps of 4 %
_N_EXAMPLES = 5


# --- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A batch taken apart; ``len(good) + len(bad) == n_rows``, both with the index that the rows came with.

    Parameters
    ----------
    good : DataFrame
        Keys, in their kinds where the contract knows them, then features in the contract's order and types.
    bad : DataFrame
        The rows exactly as they came, with ``rule`` (the first one broken: of the keys, the columns in order, the
        rules) and ``reason`` (all of them).
    tally : Tally
        What the batch adds to its table.
    contract : Contract
    """

    good: pd.DataFrame
    bad: pd.DataFrame
    tally: Tally
    contract: Contract

    @property
    def n_rows(self) -> int:
        """Rows in the batch."""
        return self.tally.n_rows

    @functools.cached_property
    def report(self) -> Report:
        """What :func:`check_table` says of the batch."""
        return self.tally.report(self.contract)


@dataclass(frozen=True)
class Violation:
    """A rule with the rows that break it, and what each of them is told."""

    rule: str
    mask: Mask
    text: str
    values: pd.Series[Any] | pd.DataFrame | None = None

    def describe(self) -> Iterator[tuple[int, str]]:
        """Yield each row's position and what is wrong with it, its value first where there is one."""
        at = np.flatnonzero(self.mask)
        if self.values is None:
            yield from ((position, self.text) for position in at.tolist())
            return
        table = self.values if isinstance(self.values, pd.DataFrame) else self.values.to_frame()
        columns = [_list_values(table.iloc[at, number]) for number in range(table.shape[1])]
        name = self.rule.rpartition(".")[0]
        for position, *items in zip(at.tolist(), *columns, strict=True):
            yield position, f"{name} is {', '.join(items)}, {self.text}"


def _list_values(values: pd.Series[Any]) -> list[str]:
    """Return values as people read them."""
    try:
        items = values.tolist()
    except (OverflowError, ValueError):  # a time that Arrow can hold and Python cannot
        if len(values) == 1:
            return ["out of bounds"]
        return [text for at in range(len(values)) for text in _list_values(values.iloc[[at]])]
    return [reprlib.repr(item.item() if isinstance(item, np.generic) else item) for item in items]


def split_batch(contract: Contract, batch: pa.RecordBatch | pa.Table) -> Split:
    """Split an Arrow batch as :func:`split_rows` does; what ``data.read_batches`` marked as text is read so."""
    frame, format = _read_batch(contract, batch)
    return split_rows(contract, frame, format=format)


def _read_batch(contract: Contract, batch: pa.RecordBatch | pa.Table) -> tuple[pd.DataFrame, Format]:
    """Return an Arrow batch as the DataFrame and format that :func:`split_rows` takes."""
    frame, texts = data.to_frame(batch), [field.name for field in batch.schema if data.is_text(field)]
    if len(texts) == len(batch.schema):
        return frame, "csv"
    kinds = {**contract.key_kinds, **{column.name: column.kind for column in contract.columns}}
    for name in texts:  # they stand in the names of folders; the others have types
        if kinds.get(name, "string") != "string":
            cells = read_cells(frame[name], kinds[name], "csv")
            known, values = ~(cells.null | cells.bad), pd.Series(cells.values, frame.index).astype(object)
            frame[name] = values.where(known, frame[name].astype(object))
    return frame, "table"


def split_rows(contract: Contract, frame: pd.DataFrame, *, format: Format = "table") -> Split:
    """Split a batch into rows that can be scored and rows set aside with their reasons.

    Parameters
    ----------
    contract : Contract
    frame : DataFrame
        Keys and features in any order and of any type; other columns are ignored.
    format : {"table", "csv", "json"}
        What a value's type says: all there is; nothing, since all are text; all but times, which are ISO 8601 text.

    Raises
    ------
    ContractError
        A column is missing or there twice: no row can be judged.
    """
    raise_for_columns((*contract.keys, *contract.features), frame)
    cells = {column.name: read_cells(frame[column.name], column.kind, format) for column in contract.columns}
    keys = read_key_cells(contract, frame, format)
    violations = [
        violation
        for violation in (
            *_header_violations(frame, format),
            *find_key_violations(contract, frame, keys, format),
            *(v for column in contract.columns for v in _column_violations(column, frame, cells[column.name], format)),
            *(Violation(rule.name, find_broken(rule, cells), f"not {rule.expression}") for rule in contract.rules),
        )
        if violation.mask.any()
    ]
    keep = np.ones(len(frame), dtype=bool)
    rules: dict[int, str] = {}
    reasons: dict[int, list[str]] = {}
    for violation in violations:
        if contract.policy(violation.rule) == "warn":
            continue
        keep &= ~violation.mask
        for position, reason in violation.describe():
            rules.setdefault(position, violation.rule)
            reasons.setdefault(position, []).append(reason)
    at = np.flatnonzero(~keep).tolist()
    bad = frame.iloc[at].assign(
        rule=pd.Series([rules[position] for position in at], dtype="str").array,
        reason=pd.Series(["; ".join(reasons[position]) for position in at], dtype="str").array,
    )
    good = _build_good(contract, frame, cells, keys, keep)
    return Split(good, bad, _tally(contract, frame, cells, violations, len(bad)), contract)


def read_key_cells(contract: Contract, frame: pd.DataFrame, format: Format = "table") -> dict[str, Cells]:
    """Read the keys whose kinds the contract knows."""
    kinds = {key: contract.key_kinds[key] for key in contract.keys if key in contract.key_kinds}
    return {key: read_cells(frame[key], kind, format) for key, kind in kinds.items()}


def read_keys(contract: Contract, batch: pa.RecordBatch | pa.Table) -> pd.DataFrame:
    """Return the sound keys of an Arrow batch, as they stand in :attr:`Split.good`: to look for the same key twice."""
    frame, format = _read_batch(contract, batch)
    cells = read_key_cells(contract, frame, format)
    unsound = np.any([frame[key].isna().to_numpy() for key in contract.keys], axis=0)
    for column in cells.values():
        unsound |= column.null | column.bad
    return _build_good(contract, frame, {}, cells, ~unsound)


def _header_violations(frame: pd.DataFrame, format: Format) -> Iterator[Violation]:
    """Yield the rows of a CSV in which every value is the name of its column."""
    if format != "csv":
        return
    same = np.ones(len(frame), dtype=bool)
    for name in frame.columns:
        if same.any():
            same &= (frame[name] == name).to_numpy(dtype=bool, na_value=False)
    yield Violation("header.repeated", same, "the header stands here again")


def find_key_violations(
    contract: Contract, frame: pd.DataFrame, cells: Mapping[str, Cells], format: Format = "table"
) -> Iterator[Violation]:
    """Yield null keys, keys of another kind, and keys that come more than once in these rows."""
    keys = list(contract.keys)
    if not keys:
        return
    name, table = ", ".join(keys), frame[keys]
    null = np.any(table.isna().to_numpy(), axis=1)
    for column in cells.values():
        null |= column.null
    yield Violation(f"{name}.null", null, "needs a value", table)
    sound = ~null
    for key, column in cells.items():
        needs = f"needs {describe_kind(contract.key_kinds[key], format)}"
        yield Violation(f"{key}.kind", column.bad, needs, frame[key])
        sound &= ~column.bad
    values = pd.DataFrame({key: cells[key].values if key in cells else frame[key].array for key in keys})
    duplicated = np.zeros(len(frame), dtype=bool)
    duplicated[sound] = _find_duplicated(values if sound.all() else values[sound])
    yield Violation(f"{name}.duplicated", duplicated, "needs to be the only one", table)


def _find_duplicated(table: pd.DataFrame) -> Mask:
    try:
        return table.duplicated(keep=False).to_numpy()
    except (TypeError, NotImplementedError):  # a list or a dict where a key should be
        return table.map(repr).duplicated(keep=False).to_numpy()


def _column_violations(column: Column, frame: pd.DataFrame, cells: Cells, format: Format) -> Iterator[Violation]:
    name, series = column.name, frame[column.name]
    if not column.nullable:
        yield Violation(f"{name}.null", cells.null, f"{name} is null, needs {name_kind(column.kind)}")
    yield Violation(f"{name}.kind", cells.bad, f"needs {describe_kind(column.kind, format)}", series)
    if column.kind == "number":
        yield Violation(f"{name}.finite", np.isinf(cells.values), "needs a finite number", series)
    if column.kind in ("number", "integer"):
        low, high = column.ends
        outside = (cells.values < low) | (cells.values > high)
        if outside.any():  # in most batches nothing is
            outside &= np.isfinite(cells.values) & ~(cells.null | cells.bad)
        yield Violation(f"{name}.range", outside, f"needs {column.range}", series)
    if column.categories is not None:
        needs = f"needs one of {listed(column.categories, limit=5)}"
        known = np.asarray(cells.values.isin(list(column.categories)))
        yield Violation(f"{name}.unseen", ~(known | cells.null | cells.bad), needs, series)


def _build_good(
    contract: Contract, frame: pd.DataFrame, cells: Mapping[str, Cells], keys: Mapping[str, Cells], keep: Mask
) -> pd.DataFrame:
    """Return the rows to keep, in the contract's types."""
    everything = bool(keep.all())
    columns = {key: keys[key].values if key in keys else frame[key].array for key in contract.keys}
    data: dict[str, Any] = {key: values if everything else values[keep] for key, values in columns.items()}
    nullable = {"integer": pd.arrays.IntegerArray, "boolean": pd.arrays.BooleanArray}
    for column in contract.columns if cells else ():
        read = cells[column.name]
        values = read.values if everything else read.values[keep]
        if column.nullable and column.kind in nullable:
            values = nullable[column.kind](values, read.null[keep])
        data[column.name] = values
    return pd.DataFrame(data, index=frame.index[keep])


# --- tables --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What rows show together; tallies of batches add up to that of their table.

    Parameters
    ----------
    n_rows, n_bad : int
    broken : Counter
        Rows that broke each rule, those that it only warns of included.
    missing : Counter
        Nulls in each column, where they are allowed too.
    examples : dict of str to tuple of str
        Some unseen categories of each column, in order.
    sizes : dict of str to Counter
        How many values of each number there are of each size.
    extra : tuple of str
        Columns that the contract does not know.
    """

    n_rows: int = 0
    n_bad: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, Counter[int]] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        """Return the tally of both batches."""
        names = {*self.examples, *other.examples}
        examples = {name: {*self.examples.get(name, ()), *other.examples.get(name, ())} for name in names}
        return Tally(
            self.n_rows + other.n_rows,
            self.n_bad + other.n_bad,
            self.broken + other.broken,
            self.missing + other.missing,
            examples={name: tuple(sorted(values)[:_N_EXAMPLES]) for name, values in examples.items()},
            sizes={
                name: self.sizes.get(name, Counter()) + other.sizes.get(name, Counter())
                for name in {**self.sizes, **other.sizes}
            },
            extra=tuple(dict.fromkeys((*self.extra, *other.extra))),
        )

    def report(self, contract: Contract) -> Report:
        """Judge the rows together. What the contract only warns of has passed, with a reason."""
        n_columns = len({*contract.keys, *contract.features})
        columns = Row("columns", n_columns, f"{n_columns}, each once", "passed")
        facts = {"contract": contract.digest, "n_rows": self.n_rows, "extra_columns": list(self.extra)}
        if not self.n_rows:
            return Report("Contract", (columns, Row("rows", 0, ">= 1", "failed", "the table is empty")), facts)
        policies = {rule: contract.policy(rule) for rule in self.broken}
        most = sorted(self.broken, key=lambda rule: (-self.broken[rule], rule))
        counts = {rule: self.broken[rule] for rule in most if policies[rule] != "warn"}
        warned = {rule: self.broken[rule] for rule in most if policies[rule] == "warn"}
        reason = f"{self.n_bad} of {self.n_rows} rows: {listed((f'{r} {n}' for r, n in counts.items()), limit=5)}"
        rows = [columns, _share_row("bad_rows", self.n_bad / self.n_rows, contract.max_bad_share, reason)]
        rows += [
            Row(rule, count, "0 rows", "failed", "one such row stops the batch")
            for rule, count in counts.items()
            if policies[rule] == "stop"
        ]
        for rule in contract.rules:
            if rule.max_share is not None:
                share = self.broken[rule.name] / self.n_rows
                rows.append(_share_row(f"{rule.name}.share", share, rule.max_share, f"not {rule.expression}"))
        for column in contract.columns:
            rows += self._column_rows(contract, column)
        facts |= {"n_bad": self.n_bad, "bad_by_rule": counts, "warned_by_rule": warned}
        return Report("Contract", tuple(rows), facts)

    def _column_rows(self, contract: Contract, column: Column) -> Iterator[Row]:
        name, kind = column.name, name_kind(column.kind)
        wrong, missing, unseen = self.broken[f"{name}.kind"], self.missing[name], self.broken[f"{name}.unseen"]
        reason = f"values that are not {kind}"
        yield _share_row(f"{name}.kind", wrong / self.n_rows, contract.max_bad_share, reason)
        share = missing / self.n_rows
        yield _soften(contract, _share_row(f"{name}.missing_share", share, column.max_missing_share, "nulls"))
        if column.categories is not None:
            share, reason = unseen / self.n_rows, f"such as {listed(self.examples.get(name, ()))}"
            yield _soften(contract, _share_row(f"{name}.unseen_share", share, column.max_unseen_share, reason))
        if column.scale is not None:
            yield _soften(contract, _scale_row(column, column.scale, compute_scale(self.sizes[name])))


def check_table(contract: Contract, frame: pd.DataFrame) -> Report:
    """Check a batch as a whole: columns, kinds, missing and unseen shares, scale, share of bad rows."""
    try:
        raise_for_columns((*contract.keys, *contract.features), frame)
    except ContractError as error:
        n_expected = len(error.expected)
        faults = [f"missing: {listed(error.missing)}"] if error.missing else []
        faults += [f"more than once: {listed(error.duplicated)}"] if error.duplicated else []
        row = Row("columns", n_expected - len(error.missing), f"{n_expected}, each once", "failed", "; ".join(faults))
        facts = {"contract": contract.digest, "n_rows": len(frame), "extra_columns": _extra_columns(contract, frame)}
        return Report("Contract", (row,), facts)
    return split_rows(contract, frame).report


def raise_for_columns(expected: Iterable[str], frame: pd.DataFrame) -> None:
    """Raise ``ContractError`` unless each expected column is there once."""
    names, have = tuple(dict.fromkeys(expected)), frame.columns.tolist()
    missing = tuple(name for name in names if name not in have)
    duplicated = tuple(name for name in names if have.count(name) > 1)
    if missing or duplicated:
        raise ContractError("columns", missing=missing, duplicated=duplicated, expected=names)


def _extra_columns(contract: Contract, frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns if name not in (*contract.keys, *contract.features)]


def _tally(
    contract: Contract, frame: pd.DataFrame, cells: Mapping[str, Cells], violations: Sequence[Violation], n_bad: int
) -> Tally:
    masks = {violation.rule: violation.mask for violation in violations}
    tally = Tally(len(frame), n_bad, extra=tuple(_extra_columns(contract, frame)))
    tally.broken.update({rule: int(mask.sum()) for rule, mask in masks.items()})
    for column in contract.columns:
        name, read = column.name, cells[column.name]
        tally.missing[name] = int(read.null.sum())
        if column.scale is not None:
            tally.sizes[name] = count_sizes(read)
        if f"{name}.unseen" in masks:
            tally.examples[name] = tuple(sorted(set(read.values[masks[f"{name}.unseen"]]))[:_N_EXAMPLES])
    return tally


def _share_row(name: str, share: float, limit: float, reason: str) -> Row:
    failed = share > limit
    return Row(name, share, f"<= {limit:.4g}", "failed" if failed else "passed", reason if failed else "")


def _soften(contract: Contract, row: Row) -> Row:
    """Let a failed check pass with a warning where the contract says so."""
    if row.status != "failed" or contract.policy(row.name) != "warn":
        return row
    return Row(row.name, row.value, row.limit, "passed", f"warning: {row.reason}")


# --- scale ---------------------------------------------------------------------------------------------------------


def _scale_row(column: Column, learnt: float, scale: float | None) -> Row:
    name, limit = f"{column.name}.scale", f"{1 / column.scale_factor:.4g} to {column.scale_factor:.4g}"
    if scale is None:
        return Row(name, None, limit, "not_applicable", f"fewer than {_SCALE_MIN_VALUES} nonzero values")
    ratio = scale / learnt
    status: Status = "passed" if 1 / column.scale_factor <= ratio <= column.scale_factor else "failed"
    reason = f"large values are about {scale:.4g}, were {learnt:.4g} in training: have the units changed?"
    return Row(name, ratio, limit, status, reason if status == "failed" else "")


def count_sizes(cells: Cells) -> Counter[int]:
    """Count the nonzero finite values of each size: the logarithm of the absolute value, in steps of 4 %."""
    kept = cells.values[~cells.bad] if cells.bad.any() else cells.values  # what stands for a null is 0 or no number
    magnitudes = np.abs(kept.astype("float64"))
    magnitudes = magnitudes[(magnitudes > 0) & (magnitudes < math.inf)]
    sizes, counts = np.unique((np.log2(magnitudes) * _SIZES_PER_OCTAVE).astype("int16"), return_counts=True)
    return Counter(dict(zip(sizes.tolist(), counts.tolist(), strict=True)))


def compute_scale(sizes: Counter[int]) -> float | None:
    """Return the upper decile of the nonzero finite absolute values, to 4 %, or None for too few of them.

    A mean of the logarithms would need no counts, but moves with the season where values are near zero: of New York's
    Celsius temperatures it is 7.5 times larger in July than in the winter, this decile 3.5 times.
    """
    total = sizes.total()
    if total < _SCALE_MIN_VALUES:
        return None
    ordered = sorted(sizes)
    places = np.cumsum([sizes[size] for size in ordered])
    size = ordered[int(np.searchsorted(places, int(_SCALE_QUANTILE * (total - 1)), side="right"))]
    return float(min(np.exp2(size / _SIZES_PER_OCTAVE), np.finfo("float64").max))
