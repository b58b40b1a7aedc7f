"""Transformers as source: encoders tabulated, imputers and the scaler as one expression per column."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from mlops_lib.engines.exact.source import LIMIT, Column, Key, Lookup, Matrix, Source, literal
from mlops_lib.errors import NotExactError


def read_inputs(source: Source, dtypes: dict[str, str]) -> Matrix:
    """Return the columns of a row as they come in, with the check that each needs."""
    columns = [_input(source, f"x{i}", name, dtype) for i, (name, dtype) in enumerate(dtypes.items())]
    return Matrix(columns, list(dtypes))


def _input(source: Source, variable: str, name: str, dtype: str) -> Column:
    is_text = dtype in ("str", "category", "object")
    if not is_text and dtype != "float64" and not dtype.startswith(("int", "uint", "bool")):

        def refuse() -> str:
            raise NotExactError(
                what=f"column '{name}' of type {dtype}", supported="float64, integers, bool and strings are"
            )

        return Column(source, refuse, feature=name)

    def read() -> str:
        if is_text:
            source.lines.append(f"if {variable}.__class__ is not str:")
            source.lines.append(f"    {variable} = text({variable})")
            # Encoders tell None from NaN, and a column of objects may hold both.
            refused = f"{variable} is False" if dtype != "object" else f"not isinstance({variable}, str)"
            source.lines.append(f"    if {refused}:")
            source.lines.append("        return None")
        else:
            source.lines.append(f"if {variable}.__class__ is not float:")
            source.lines.append(f"    {variable} = number({variable})")
            missing = f" and {variable} == {variable}" if dtype == "float64" else ""
            source.decline_if(f"not -{LIMIT} <= {variable} <= {LIMIT}{missing}")
        return variable

    return Column(source, read, is_text=is_text, may_miss=dtype in ("float64", "str", "category"), feature=name)


def write_transformer(source: Source, step: Any, matrix: Matrix) -> Matrix:
    """Return what a fitted transformer makes of a matrix.

    Raises
    ------
    NotExactError
    """
    if step is None or step == "passthrough":
        return matrix
    write = _WRITERS.get(type(step))
    if write is None:
        raise NotExactError(
            what=type(step).__name__, supported=f"transformers are {', '.join(t.__name__ for t in _WRITERS)}"
        )
    if matrix.is_sparse and not isinstance(step, Pipeline | FunctionTransformer):
        raise NotExactError(
            what=f"{type(step).__name__} of a sparse matrix", supported="a dense one is (sparse_output=False)"
        )
    return write(source, step, matrix)


def _pipeline(source: Source, step: Pipeline, matrix: Matrix) -> Matrix:
    for _, inner in step.steps:
        matrix = write_transformer(source, inner, matrix)
    return matrix


def _column_transformer(source: Source, step: ColumnTransformer, matrix: Matrix) -> Matrix:
    if step.transformer_weights:
        raise NotExactError(what="ColumnTransformer with transformer_weights", supported="one without is")
    names = list(getattr(step, "feature_names_in_", [])) or None
    at = [matrix.names.index(name) for name in names] if names and matrix.names else range(len(matrix.columns))
    columns: list[Column] = []
    for name, transformer, chosen in step.transformers_:
        positions = step._transformer_to_input_indices[name]
        if transformer == "drop" or not len(positions):
            continue
        if isinstance(chosen, str | int):
            raise NotExactError(what=f"a single column {chosen!r} outside a list", supported=f"[{chosen!r}] is")
        part = Matrix([matrix.columns[at[i]] for i in positions], names and [names[i] for i in positions])
        columns += write_transformer(source, transformer, part).columns
    return Matrix(columns, is_sparse=step.sparse_output_)


def _identity(_: Source, step: FunctionTransformer, matrix: Matrix) -> Matrix:
    """Hand on: a ColumnTransformer fits one such for what it passes through."""
    if step.func is not None:
        raise NotExactError(what="FunctionTransformer with a function", supported="one without is")
    return matrix


def _imputer(source: Source, step: SimpleImputer, matrix: Matrix) -> Matrix:
    if not (isinstance(step.missing_values, float) and math.isnan(step.missing_values)):
        raise NotExactError(what=f"SimpleImputer with missing_values={step.missing_values!r}", supported="NaN is")
    if step.add_indicator:
        raise NotExactError(what="SimpleImputer with add_indicator", supported="one without is")
    filled = []
    for column, value in zip(matrix.columns, step.statistics_, strict=True):
        if pd.isna(value):  # nothing was known in training: the column goes
            column.name()
        elif column.is_text != isinstance(value, str):
            raise NotExactError(what=f"SimpleImputer that fills in {value!r}", supported="strings for strings are")
        elif column.is_text:
            filled.append(_fill(source, column, repr(str(value)), 0.0))
        else:
            filled.append(_fill(source, column, literal(value), abs(float(value))))
    return Matrix(filled)


def _fill(source: Source, column: Column, fill: str, size: float) -> Column:
    def write() -> str:
        name = column.name()
        present = f"{name} is not None" if column.is_text else f"{name} == {name}"
        return f"{name} if {present} else {fill}" if column.may_miss else name

    return Column(source, write, is_text=column.is_text, bound=max(column.bound, size))


def _scaler(_: Source, step: StandardScaler, matrix: Matrix) -> Matrix:
    columns = matrix.columns
    if step.with_mean:
        columns = [
            column.derive(f"{{}} - {literal(mean)}", column.bound + abs(float(mean)))
            for column, mean in zip(columns, step.mean_, strict=True)
        ]
    if step.with_std:
        columns = [
            column.derive(f"{{}} / {literal(scale)}", column.bound / float(scale))
            for column, scale in zip(columns, step.scale_, strict=True)
        ]
    return Matrix(columns)


# --- encoders ----------------------------------------------------------------------------------------------------


def _encoder(source: Source, step: Any, matrix: Matrix) -> Matrix:
    """Return an encoder's columns: it is asked what it makes of each category, so none of its options is repeated here.

    Parameters
    ----------
    step : OneHotEncoder, OrdinalEncoder or TargetEncoder, fitted
    """
    dtype = np.dtype(getattr(step, "dtype", np.float64))
    if dtype != np.float64 and dtype.kind not in "iu":
        raise NotExactError(what=f"{type(step).__name__} with dtype {dtype}", supported="float64 is")
    known = [_keys(step, column, i) for i, column in enumerate(matrix.columns)]
    longest = max(len(keys) for keys in known)
    table = _ask(step, [[*keys, *[keys[0]] * (longest - len(keys))] for keys in known], matrix)
    if table is None:
        raise NotExactError(what=f"{type(step).__name__} that refuses its own categories", supported="others are")
    lookups, start = [], 0
    for i, (column, keys) in enumerate(zip(matrix.columns, known, strict=True)):
        end = start + _width(step, i)

        def one(value: Any, i: int = i, start: int = start, end: int = end) -> list[float] | None:
            row = _ask(step, [[value if j == i else known[j][0]] for j in range(len(known))], matrix)
            return None if row is None else row[0, start:end].tolist()

        cells: dict[Key, list[float] | None] = {k: table[row, start:end].tolist() for row, k in enumerate(keys)}
        if column.may_miss:
            cells[None] = one(None)
        lookups.append(Lookup(source, column, cells, one(_unseen(keys))))
        start = end
    is_sparse = isinstance(step, OneHotEncoder) and step.sparse_output
    return Matrix([column for lookup in lookups for column in lookup.columns], is_sparse=is_sparse)


def _keys(step: Any, column: Column, i: int) -> list[Any]:
    keys = [k for k in step.categories_[i].tolist() if not pd.isna(k)]
    if column.is_text and all(isinstance(k, str) for k in keys) and keys:
        return keys
    if not column.is_text and keys and all(isinstance(k, int | float) for k in keys):
        return [float(k) for k in keys]
    raise NotExactError(
        what=f"{type(step).__name__} of categories of several types or none", supported="all of one type are"
    )


def _unseen(keys: Sequence[Any]) -> Any:
    return "unseen" + max(keys, key=len) if isinstance(keys[0], str) else max(keys) + 1.0


def _width(step: Any, i: int) -> int:
    if isinstance(step, OneHotEncoder):
        return int(step._n_features_outs[i])
    return len(step.classes_) if getattr(step, "target_type_", "") == "multiclass" else 1


def _ask(step: Any, values: list[list[Any]], matrix: Matrix) -> Any:
    """Return an encoder's dense output of shape (n_rows, n_columns_out), or None where it raises."""
    names = getattr(step, "feature_names_in_", range(len(values)))
    kinds = ["object" if column.is_text else "float64" for column in matrix.columns]
    series = [pd.Series([math.nan if v is None else v for v in c], dtype=k) for c, k in zip(values, kinds, strict=True)]
    frame = pd.DataFrame(dict(enumerate(series)))
    frame.columns = pd.Index(names)
    rows = frame if hasattr(step, "feature_names_in_") else frame.to_numpy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown categories are what is being asked about
            output = step.transform(rows)
    except ValueError:
        return None
    return np.asarray(output.toarray() if hasattr(output, "toarray") else output, dtype=np.float64)


_WRITERS: dict[type, Callable[[Source, Any, Matrix], Matrix]] = {
    Pipeline: _pipeline,
    ColumnTransformer: _column_transformer,
    FunctionTransformer: _identity,
    SimpleImputer: _imputer,
    StandardScaler: _scaler,
    OneHotEncoder: _encoder,
    OrdinalEncoder: _encoder,
    TargetEncoder: _encoder,
}
