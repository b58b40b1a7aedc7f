"""Are the exporters that exist exact, and what do they cover: treelite, tl2cgen, m2cgen, skl2onnx, and ours.

They are no dependencies of this project, so this runs in an environment of its own, below a scratch folder:

    python -m venv SCRATCH && SCRATCH/bin/pip install scikit-learn==1.9.1 numpy==2.4.6 pandas pyarrow setuptools \
        treelite tl2cgen m2cgen skl2onnx onnxruntime
    PYTHONPATH=. OMP_NUM_THREADS=1 SCRATCH/bin/python ci/bench_exporters.py

Exact means: the probability of class 1 has the bits that the scikit-learn pipeline gives. treelite, tl2cgen and m2cgen
take the last step only and are given rows that scikit-learn has prepared; their latency is that of the last step. Ours
and "whole pipeline" start from the row as it came.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from mlops_lib.engines.exact.scorer import generate

PACKAGES = ("scikit-learn", "numpy", "treelite", "tl2cgen", "m2cgen", "skl2onnx", "onnxruntime")
N_ROWS, N_ONE = 5000, 500
TEXT, NUMBERS = ["carrier", "place"], [f"n{i}" for i in range(8)]
Answers = tuple[Callable[[], Any], Callable[[int], Any]]  # all rows at once, one row


def make_rows(n_rows: int, seed: int) -> tuple[pd.DataFrame, Any]:
    """Return rows of two categories and eight numbers, and a target that depends on some of them."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({name: rng.normal(size=n_rows) for name in NUMBERS})
    for name, n in (("carrier", 12), ("place", 40)):
        rows[name] = pd.array([f"{name}{i}" for i in rng.integers(0, n, n_rows)], dtype="str")
    signal = rows["n0"] + rows["n1"] * rows["n2"] + (rows["carrier"] < "carrier3") + rng.normal(size=n_rows)
    return rows[TEXT + NUMBERS], (signal > 0.5).astype(int)


def make_models() -> dict[str, Any]:
    """Return the pipelines, unfitted."""
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    as_is = "passthrough"
    return {
        "histogram boosting, ordinal": _pipeline(ordinal, as_is, HistGradientBoostingClassifier(random_state=0)),
        "random forest, target encoder": _pipeline(
            TargetEncoder(random_state=0), as_is, RandomForestClassifier(100, max_depth=8, random_state=0)
        ),
        "logistic, one-hot": _pipeline(one_hot, StandardScaler(), LogisticRegression(max_iter=500)),
        "logistic, target encoder": _pipeline(TargetEncoder(random_state=0), StandardScaler(), LogisticRegression()),
    }


def _pipeline(encoder: Any, scaler: Any, estimator: Any) -> Any:
    return make_pipeline(make_column_transformer((encoder, TEXT), (scaler, NUMBERS)), estimator)


def ours(model: Any, rows: pd.DataFrame, _: Any) -> Answers:
    scorer = generate(model, "predict_proba", {name: str(dtype) for name, dtype in rows.dtypes.items()})
    records = rows.to_dict("records")
    return lambda: [scorer.predict_row(r)[1] for r in records], lambda i: scorer.predict_row(records[i])


def treelite_gtil(model: Any, _: pd.DataFrame, X: Any) -> Answers:
    import treelite  # noqa: PLC0415 - each tool is tried on its own

    tree = treelite.sklearn.import_model(model[-1])

    def predict(some: Any) -> Any:
        return treelite.gtil.predict(tree, some).reshape(len(some), -1)[:, -1]

    return lambda: predict(X), lambda i: predict(X[i : i + 1])


_libraries = itertools.count()  # a name of its own for each: a second library of the same name would be the first


def tl2cgen_gcc(model: Any, _: pd.DataFrame, X: Any) -> Answers:
    import tl2cgen  # noqa: PLC0415
    import treelite  # noqa: PLC0415

    path = Path(tempfile.mkdtemp()) / f"model{next(_libraries)}.so"
    tree = treelite.sklearn.import_model(model[-1])
    tl2cgen.export_lib(tree, toolchain="gcc", libpath=str(path), params={})
    predictor = tl2cgen.Predictor(str(path))

    def predict(some: Any) -> Any:
        return predictor.predict(tl2cgen.DMatrix(some)).reshape(len(some), -1)[:, -1]

    return lambda: predict(X), lambda i: predict(X[i : i + 1])


def m2cgen_python(model: Any, _: pd.DataFrame, X: Any) -> Answers:
    import m2cgen  # noqa: PLC0415

    scope: dict[str, Any] = {}
    exec(m2cgen.export_to_python(model[-1]), scope)
    records = X.tolist()

    def predict(row: list[float]) -> float:
        answer = scope["score"](row)
        return float(answer[1]) if isinstance(answer, list) else float(1 / (1 + np.exp(-answer)))

    return lambda: [predict(r) for r in records], lambda i: predict(records[i])


def onnx_last_step(dtype: str) -> Callable[..., Answers]:
    def build(model: Any, _: pd.DataFrame, X: Any) -> Answers:
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # noqa: PLC0415

        kind = DoubleTensorType if dtype == "float64" else FloatTensorType
        run = _onnx(model[-1], [("X", kind([None, X.shape[1]]))])
        typed = X.astype(dtype)
        return lambda: run({"X": typed}), lambda i: run({"X": typed[i : i + 1]})

    return build


def onnx_pipeline(model: Any, rows: pd.DataFrame, _: Any) -> Answers:
    from skl2onnx.common.data_types import DoubleTensorType, StringTensorType  # noqa: PLC0415

    kinds = [(name, (StringTensorType if name in TEXT else DoubleTensorType)([None, 1])) for name in rows]
    run = _onnx(model, kinds)
    columns = {name: rows[name].to_numpy(object if name in TEXT else "float64").reshape(-1, 1) for name in rows}
    return lambda: run(columns), lambda i: run({name: c[i : i + 1] for name, c in columns.items()})


def _onnx(model: Any, types: Any) -> Callable[[dict[str, Any]], Any]:
    import onnxruntime  # noqa: PLC0415
    from skl2onnx import convert_sklearn  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    made = convert_sklearn(model, initial_types=types, options={"zipmap": False})
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return lambda inputs: session.run(None, inputs)[1][:, 1]


TOOLS: dict[str, Callable[..., Answers]] = {
    "ours (`exact`), whole pipeline": ours,
    "treelite GTIL, last step": treelite_gtil,
    "tl2cgen, last step, needs gcc": tl2cgen_gcc,
    "m2cgen, last step": m2cgen_python,
    "skl2onnx float32, last step": onnx_last_step("float32"),
    "skl2onnx double, last step": onnx_last_step("float64"),
    "skl2onnx double, whole pipeline": onnx_pipeline,
}


def time_us(call: Callable[[int], Any]) -> float:
    """Return the median time of one row, in µs."""
    times = []
    for i in range(N_ONE):
        started = time.perf_counter_ns()
        call(i)
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000


def measure(name: str, model: Any) -> list[str]:
    """Return a table row for each tool."""
    model.fit(*make_rows(10_000, seed=0))
    rows, _ = make_rows(N_ROWS, seed=1)
    X = np.ascontiguousarray(model[:-1].transform(rows))
    theirs = model.predict_proba(rows)[:, 1]
    alone = np.array([model[-1].predict_proba(X[i : i + 1])[0, 1] for i in range(N_ROWS)])
    frames = [rows.iloc[[i]] for i in range(N_ONE)]
    pipeline_us = time_us(lambda i: model.predict_proba(frames[i]))
    lines = [
        f"| {name} | the pipeline itself | {_share(theirs, alone)} | {_ulp(theirs, alone)} | {pipeline_us:.0f} | 1 |"
    ]
    for tool, build in TOOLS.items():
        try:
            everything, one = build(model, rows, X)
            answers = np.asarray(everything())
        except Exception as error:  # noqa: BLE001 - what a tool says to a model that it does not take
            said = f"{type(error).__name__}: {error}".split("\n")[0].replace("|", "/")[:70]
            lines.append(f"| {name} | {tool} | {said} | | | |")
            continue
        us = time_us(one)
        exact, apart = _share(answers, alone), _ulp(answers, alone)
        lines.append(f"| {name} | {tool} | {exact} | {apart} | {us:.1f} | {pipeline_us / us:.0f} |")
    return lines


def _share(answers: Any, truth: Any) -> str:
    share = float(np.mean(answers.astype("float64") == truth))
    return "all" if share == 1 else f"{100 * share:.1f} %"


def _ulp(answers: Any, truth: Any) -> str:
    return f"{np.max(np.abs(answers.astype('float64') - truth) / np.spacing(truth)):.3g}"


def main() -> None:
    """Measure, write the report and print it."""
    warnings.simplefilter("ignore")
    lines = [line for name, model in make_models().items() for line in measure(name, model)]
    text = [
        "# Exporters of scikit-learn models: exact or not, and what they cover",
        "",
        f"{benchmark.TODAY}, `ci/bench_exporters.py` in an environment of its own. {benchmark.describe_machine()}, "
        f"{benchmark.describe_versions(PACKAGES)}.",
        f"Trained on 10,000 generated rows, compared on {N_ROWS}: two categories, eight numbers.",
        "",
        "| model | tool | rows with the same bits | furthest, ulp | one row, µs | × pipeline |",
        "|---|---|---:|---:|---:|---:|",
        *lines,
        "",
        "*Same bits* as the pipeline gives that row alone; the line *the pipeline itself* is its batch against that.",
        "*Last step* tools get rows that scikit-learn has prepared, so their time leaves the encoders out.",
    ]
    benchmark.write_report("exporters", text)


if __name__ == "__main__":
    main()
