"""One batch of rows: held to the contract, scored, and made into the tables that are written. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.base import is_regressor

from mlops_lib import contracts, integrity
from mlops_lib.scoring import keys as key_room


@dataclass(frozen=True)
class Scored:
    """What became of one batch.

    Parameters
    ----------
    good : Table
        Keys, ``score``, ``prediction``, ``prediction_id``, model name, version, digest and time; features if kept.
    bad : Table
        The rows set aside as they came, with ``rule`` and ``reason``.
    """

    good: pa.Table
    bad: pa.Table
    bad_by_rule: Mapping[str, int]


@dataclass(frozen=True)
class Scorer:
    """A verified model and its contract, ready for any number of batches."""

    name: str
    version: int
    digest: str
    threshold: float
    features: Sequence[str]
    model: Any
    contract: contracts.Contract
    scored_at: datetime
    keep_features: str = "none"

    def score(self, batch: pa.RecordBatch, split: contracts.Split, repeated: pd.DataFrame) -> Scored:
        """Score the rows of a split batch, except those whose key comes again in another batch.

        Parameters
        ----------
        batch : RecordBatch
        split : Split
            What the contract said of :func:`to_frame` of it, which has the rows' positions as its index.
        repeated : DataFrame
            Keys that come more than once in the whole input.
        """
        good, names = split.good, list(self.contract.keys)
        rule, reason = split.bad["rule"], split.bad["reason"]
        aside = [pd.DataFrame({"rule": rule, "reason": reason})]
        again = key_room.is_among(good[names], repeated)
        if again.any():
            label = ", ".join(names)
            aside.append(_explain(good.index[again], f"{label}.duplicated", f"{label} comes more than once"))
            good = good[~again]
        score = np.asarray(integrity.scorer(self.model)(good[list(self.features)]) if len(good) else [], dtype=float)
        finite = np.isfinite(score)
        if not finite.all():
            aside.append(_explain(good.index[~finite], "score.finite", f"version {self.version} gives no finite score"))
            good, score = good[finite], score[finite]
        why = pd.concat(aside).sort_index()
        bad = pa.Table.from_batches([batch.take(pa.array(why.index.to_numpy(dtype="int64")))])
        for name in ("rule", "reason"):
            bad = bad.append_column(name, pa.array(why[name].astype(object), pa.string()))
        return Scored(self._build(batch, good, score), bad, Counter(why["rule"].astype(object)))

    def _build(self, batch: pa.RecordBatch, good: pd.DataFrame, score: Any) -> pa.Table:
        n_rows = len(good)
        rows = batch if n_rows == batch.num_rows else batch.take(pa.array(good.index.to_numpy(dtype="int64")))
        keys = {name: rows.column(name) for name in self.contract.keys}
        texts = [pc.cast(array, pa.string()) for array in keys.values()]
        is_class = not is_regressor(self.model)
        columns: dict[str, Any] = {
            **keys,
            "score": pa.array(score),
            "prediction": pa.array((score >= self.threshold).astype("int8") if is_class else score),
            "prediction_id": pc.binary_join_element_wise(f"{self.name}/{self.version}", *texts, "/"),
            "model_name": _constant(pa.scalar(self.name), n_rows),
            "model_version": pa.repeat(pa.scalar(self.version, pa.int64()), n_rows),
            "model_digest": _constant(pa.scalar(self.digest), n_rows),
            "scored_at": pa.repeat(pa.scalar(self.scored_at, pa.timestamp("us", tz="UTC")), n_rows),
        }
        if self.keep_features == "values":
            columns |= {name: pa.array(good[name]) for name in self.features if name not in columns}
        if self.keep_features == "hash":
            hashes = pd.util.hash_pandas_object(good[list(self.features)], index=False)
            columns["features_hash"] = pa.array(hashes.to_numpy().view("int64"))
        return pa.table(columns)


def to_frame(batch: pa.RecordBatch) -> pd.DataFrame:
    """Return the rows as the contract takes them: whole numbers stay whole where others in the column are missing."""
    kinds = {field.type for field, column in zip(batch.schema, batch.columns, strict=True) if column.null_count}
    whole = {kind: _NULLABLE[kind] for kind in kinds if kind in _NULLABLE}
    frame: pd.DataFrame = batch.to_pandas(types_mapper=whole.get if whole else None)
    return frame


_NULLABLE = {
    getattr(pa, name)(): getattr(pd, f"{'UInt' if name[0] == 'u' else 'Int'}{name.lstrip('uint')}Dtype")()
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


def _explain(index: pd.Index[Any], rule: str, reason: str) -> pd.DataFrame:
    return pd.DataFrame({"rule": rule, "reason": reason}, index=index)


def _constant(value: pa.Scalar, n_rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), n_rows), pa.array([value.as_py()]))
