"""One batch of rows: held to the contract, scored, and made into the tables that are written. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_lib import contracts
from mlops_lib.engines import exact
from mlops_lib.programs.batch.keys import is_among
from mlops_lib.task import Task

REASONS = ("rule", "reason")  # why a row was set aside


@dataclass(frozen=True)
class Scored:
    """What became of one batch.

    Parameters
    ----------
    good : Table
        Keys, the columns of ``task.to_columns``, ``prediction_id``, model name, version, digest and time; features if
        kept.
    bad : Table
        The rows set aside as they came, with ``rule`` and ``reason``; a column of the input of such a name, as in a
        quarantine that is scored again, is called ``input_rule`` there.
    tally : Tally
        What the batch adds to the table's, by which the contract judges it as a whole.
    """

    good: pa.Table
    bad: pa.Table
    bad_by_rule: Mapping[str, int]
    tally: contracts.Tally


@dataclass(frozen=True)
class BatchScorer:
    """A verified model and its contract, ready for any number of batches."""

    name: str
    version: int
    digest: str
    task: Task
    features: Sequence[str]
    model: Any
    contract: contracts.Contract
    scored_at: datetime
    keep_features: str = "none"
    verdict: Mapping[str, Any] = field(default_factory=dict)  # on the model's exact scorers

    @cached_property
    def _compiled(self) -> exact.StandIn | None:
        return exact.batches_for(self.model, self.verdict)

    @property
    def is_compiled(self) -> bool:
        """Whether rows are scored by what is faster than the model's own pipeline, and has the same bits."""
        return self._compiled is not None

    @cached_property
    def predict(self) -> Callable[[pd.DataFrame], Any]:
        """What scores many rows."""
        return partial(self.task.predict, self._compiled or self.model)

    def score(self, batch: pa.RecordBatch, split: contracts.Split, repeated: pd.DataFrame) -> Scored:
        """Score the rows of a split batch, except those whose key comes again in another batch.

        Parameters
        ----------
        batch : RecordBatch
        split : Split
            What the contract said of it; its index is the rows' positions.
        repeated : DataFrame
            Keys that come more than once in the whole input.
        """
        good, names = split.good, list(self.contract.keys)
        rule, reason = split.bad["rule"], split.bad["reason"]
        aside = [pd.DataFrame({"rule": rule, "reason": reason})]
        again = is_among(good[names], repeated)
        if again.any():
            label = ", ".join(names)
            aside.append(_explain(good.index[again], f"{label}.duplicated", f"{label} comes more than once"))
            good = good[~again]
        empty = np.empty((0, len(self.task.classes)) if self.task.kind == "multiclass" else 0)
        score = np.asarray(self.predict(good[list(self.features)]), dtype=float) if len(good) else empty
        finite = np.isfinite(score) if score.ndim == 1 else np.isfinite(score).all(axis=1)
        if not finite.all():
            aside.append(_explain(good.index[~finite], "score.finite", f"version {self.version} gives no finite score"))
            good, score = good[finite], score[finite]
        why = pd.concat(aside).sort_index()
        bad = pa.Table.from_batches([batch.take(pa.array(why.index.to_numpy(dtype="int64")))])
        bad = bad.rename_columns(make_room(bad.column_names)).replace_schema_metadata(None)
        for name in REASONS:
            bad = bad.append_column(name, pa.array(why[name].astype(object), pa.string()))
        return Scored(self._build(good, score), bad, Counter(why["rule"].astype(object)), split.tally)

    def _build(self, good: pd.DataFrame, score: Any) -> pa.Table:
        n_rows = len(good)
        keys = {name: _to_arrow(good[name]) for name in self.contract.keys}
        texts = [pc.cast(array, pa.string()) for array in keys.values()]
        columns: dict[str, Any] = {
            **keys,
            **{name: _to_arrow(values) for name, values in self.task.to_columns(score).items()},
            "prediction_id": pc.binary_join_element_wise(f"{self.name}/{self.version}", *texts, "/"),
            "model_name": _constant(pa.scalar(self.name), n_rows),
            "model_version": pa.repeat(pa.scalar(self.version, pa.int64()), n_rows),
            "model_digest": _constant(pa.scalar(self.digest), n_rows),
            "scored_at": pa.repeat(pa.scalar(self.scored_at, pa.timestamp("us", tz="UTC")), n_rows),
        }
        if self.keep_features == "values":
            columns |= {name: _to_arrow(good[name]) for name in self.features if name not in columns}
        if self.keep_features == "hash":
            hashes = pd.util.hash_pandas_object(good[list(self.features)], index=False)
            columns["features_hash"] = pa.array(hashes.to_numpy().view("int64"))
        return pa.table(columns)


def make_room(names: Sequence[str]) -> list[str]:
    """Return an input's names with those of a quarantine's own columns free.

    >>> make_room(["id", "rule", "input_rule"])
    ['id', 'input_input_rule', 'input_rule']
    """
    free = list(names)
    for own in set(REASONS) & set(names):
        name = own
        while name in free:
            name = f"input_{name}"
        free[names.index(own)] = name
    return free


def _to_arrow(values: pd.Series[Any] | npt.NDArray[Any]) -> pa.Array:
    is_text = isinstance(values, np.ndarray) and values.dtype == object  # a class; of no rows Arrow would not know
    array = pa.array(values, pa.string() if is_text else None)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _explain(index: pd.Index[Any], rule: str, reason: str) -> pd.DataFrame:
    return pd.DataFrame({"rule": rule, "reason": reason}, index=index)


def _constant(value: pa.Scalar, n_rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), n_rows), pa.array([value.as_py()]))
