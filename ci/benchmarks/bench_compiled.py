"""One row: the generated scorer, the pipeline, and MLflow's pyfunc, side by side; and whether the bits are the same.

The flights models are those of notebooks/02_train, fitted on January to March in both families, compared on 100,000
later flights; the others are fitted on the same flights, encoded in different ways, and compared on 20,000. Ways take
turns in blocks of ten rows, so that a machine that is busy for a while is busy for all of them; the first row of a
block finds the processor's caches as the others left them. CPU time is measured: waiting for others does not count.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow.models import infer_signature
from scipy.special import expit
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from sklearn.tree import DecisionTreeClassifier

from mlops_lib import data
from mlops_lib.engines.exact.scorer import generate
from mlops_lib.engines.exact.verdict import check_exact, make_edge_cases
from mlops_lib.errors import NotExactError
from mlops_lib.project import load_project

PACKAGES = ("scikit-learn", "numpy", "scipy", "pandas", "mlflow")
N_EXACT, BLOCK, BATCHES = 100_000, 10, (1, 10, 30, 100, 300, 1000)


def read_flights(project: Any, first: str, last: str) -> tuple[pd.DataFrame, Any]:
    """Return features and target of a period."""
    paths = {name: project.paths(name, first, last) for name in ("arrivals", "labels")}
    flights = data.read_table(paths["arrivals"]).merge(data.read_table(paths["labels"]), on=list(project.keys))
    return flights[list(project.features)], flights[project.target]


def make_models(X: pd.DataFrame) -> dict[str, Any]:
    """Return the pipelines, unfitted; the first two are those of notebooks/02_train."""
    text = X.select_dtypes(exclude="number").columns.tolist()
    numbers = X.select_dtypes("number").columns.tolist()

    def build(encoder: Any, scaler: Any, estimator: Any) -> Any:
        return make_pipeline(make_column_transformer((encoder, text), (scaler, numbers)), estimator)

    def ordinal() -> Any:
        return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)

    def scaled() -> Any:
        return make_pipeline(SimpleImputer(strategy="median"), StandardScaler())

    def one_hot(**options: Any) -> Any:
        return OneHotEncoder(handle_unknown="ignore", min_frequency=50, **options)

    seeded: dict[str, Any] = {"random_state": 0}
    return {
        "flights, boosting": build(ordinal(), "passthrough", HistGradientBoostingClassifier(**seeded)),
        "flights, logistic": build(one_hot(), scaled(), LogisticRegression(max_iter=500)),
        "hist boosting, regression": build(
            TargetEncoder(**seeded), "passthrough", HistGradientBoostingRegressor(**seeded)
        ),
        "logistic, dense one-hot": build(one_hot(sparse_output=False), scaled(), LogisticRegression(max_iter=500)),
        "logistic, target encoder": build(TargetEncoder(**seeded), scaled(), LogisticRegression(max_iter=500)),
        "ridge, target encoder": build(TargetEncoder(**seeded), scaled(), Ridge()),
        "decision tree, depth 10": build(ordinal(), "passthrough", DecisionTreeClassifier(max_depth=10, **seeded)),
        "random forest, 100 × depth 8": build(
            TargetEncoder(**seeded), "passthrough", RandomForestClassifier(100, max_depth=8, **seeded)
        ),
        "random forest, 50 × depth 8, regression": build(
            ordinal(), scaled(), RandomForestRegressor(50, max_depth=8, **seeded)
        ),
        "random forest, 100 × any depth": build(
            TargetEncoder(**seeded), "passthrough", RandomForestClassifier(100, **seeded)
        ),
    }


def interleave(ways: dict[str, Callable[[int], Any]], n: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median CPU time of each way in µs, and that of its first call after the others; blocks take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    first: dict[str, list[float]] = {name: [] for name in ways}
    for start in range(0, n, BLOCK):
        for name, way in ways.items():
            for i in range(start, start + BLOCK):
                started = time.thread_time_ns()
                way(i % n)
                times[name].append((time.thread_time_ns() - started) / 1000)
            first[name].append(times[name][-BLOCK])
    return {k: statistics.median(v) for k, v in times.items()}, {k: statistics.median(v) for k, v in first.items()}


def method_of(model: Any) -> str:
    """Return how a model is asked."""
    return "predict_proba" if hasattr(model, "predict_proba") else "predict"


def log_pyfunc(model: Any, rows: pd.DataFrame, folder: str) -> Any:
    """Return the model as stock MLflow loads it."""
    path = Path(folder) / f"m{len(list(Path(folder).iterdir()))}"
    method = method_of(model)
    signature = infer_signature(rows, getattr(model, method)(rows))
    options = {"serialization_format": "cloudpickle", "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.save_model(model, path, signature=signature, pyfunc_predict_fn=method, **options)
    return mlflow.pyfunc.load_model(str(path))


def measure(name: str, model: Any, rows: pd.DataFrame, n: int, folder: str) -> tuple[str, list[str]]:
    """Return the table row of a model, and those of its batches."""
    dtypes, method = {column: str(dtype) for column, dtype in rows.dtypes.items()}, method_of(model)
    ask = getattr(model, method)
    started, memory = time.process_time(), resident_mb()
    try:
        scorer = generate(model, method, dtypes)
    except NotExactError as error:
        return f"| {name} | {str(error).split(':')[0]} | | | | | | | | | | |", []
    seconds, grown = time.process_time() - started, resident_mb() - memory
    cases = pd.concat([rows, make_edge_cases(scorer, rows.head(1000))], ignore_index=True)
    found = check_exact(scorer, cases, n_single=n)
    records, frames = rows.head(n).to_dict("records"), [rows.iloc[[i]] for i in range(n)]
    stock = log_pyfunc(model, rows.head(100), folder)
    us, cold = interleave(
        {
            "ours": lambda i: scorer.predict_row(records[i]),
            "pipeline": lambda i: ask(frames[i]),
            "pyfunc": lambda i: stock.predict(frames[i]),
        },
        n,
    )
    same = "all" if found.n_different == 0 else f"{found.n_different} differ"
    line = (
        f"| {name} | {same} of {found.n_rows:,} | {found.n_declined} | {us['ours']:.1f} | {cold['ours']:.1f} | "
        f"{us['pipeline']:.0f} | "
        f"{us['pyfunc']:.0f} | **{us['pipeline'] / us['ours']:.0f}** | "
        f"{cold['pipeline'] / cold['ours']:.0f} | {us['pyfunc'] / us['ours']:.0f} | "
        f"{len(scorer.source) / 1000:.0f} | {seconds:.2f} / {grown:.0f} |"
    )
    batches = []
    for size in BATCHES if scorer.is_rowwise else ():
        some = [records[i % n] for i in range(size)]
        frame = pd.DataFrame(some).astype(dtypes)
        # From records, as a service has them, and from a DataFrame, as it is today.
        times, _ = interleave(
            {
                "rows": lambda _, some=some: [scorer.predict_row(row) for row in some],
                "frame": lambda _, frame=frame: scorer.answer_rows(frame),
                "pipeline": lambda _, frame=frame: ask(frame),
            },
            BLOCK,
        )
        batches.append(f"| {name} | {size} | {times['rows']:.0f} | {times['frame']:.0f} | {times['pipeline']:.0f} |")
    return line, batches


def resident_mb() -> float:
    """Return the memory that this process has."""
    return float(psutil.Process().memory_info().rss / 2**20)


def measure_arithmetic() -> list[str]:
    """Return lines on what scikit-learn's numbers depend on, measured here."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 3, 700_000), rng.uniform(-700, 700, 300_000)])
    plain = np.array([1 / (1 + math.exp(-value)) for value in x.tolist()])
    exact = np.array([math.exp(value) for value in x.tolist()])
    lines = [
        f"- `1 / (1 + math.exp(-x))` equals `scipy.special.expit` on {_share(plain, expit(x))} of 1,000,000 values.",
        f"- `math.exp` equals `numpy.exp` on {_share(exact, np.exp(x))} of them.",
    ]
    for width in (5, 40):
        X, coef = rng.normal(size=(20_000, width)), rng.normal(size=(width, 1))
        alone = np.array([(X[i : i + 1] @ coef)[0, 0] for i in range(len(X))])
        sums = []
        for row in X.tolist():
            total = 0.0
            for value, weight in zip(row, coef[:, 0].tolist(), strict=True):
                total += value * weight
            sums.append(total)
        lines.append(
            f"- A dense product of {width} columns: a row alone has the bits of the same row in a batch in "
            f"{_share((X @ coef)[:, 0], alone)} of rows, those of a sum in order in {_share(np.array(sums), alone)}."
        )
    return lines


def _share(some: Any, others: Any) -> str:
    return f"{100 * float(np.mean(some == others)):.1f} %"


def main() -> None:
    """Measure, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30 single rows instead of 200")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    project = load_project()
    project.ingest()
    X, y = read_flights(project, "2013-01", "2013-03")
    later = read_flights(project, "2013-04", "2013-12")[0]
    later = later.iloc[:: len(later) // N_EXACT].head(N_EXACT).reset_index(drop=True)
    lines, batches = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in make_models(X).items():
            model.fit(X.iloc[::4], y.iloc[::4])
            rows = later if name.startswith("flights") else later.iloc[::5].reset_index(drop=True)
            line, more = measure(name, model, rows, 30 if options.quick else 200, folder)
            print(line, file=sys.stderr)
            lines.append(line)
            batches += more if name.startswith(("flights", "random")) else []
    text = [
        "# One row: the generated scorer, the pipeline, pyfunc",
        "",
        f"{benchmark.TODAY}, {benchmark.describe_command('compiled')}, {benchmark.describe_machine()}, "
        f"{benchmark.describe_versions(PACKAGES)}; load {os.getloadavg()[0]:.1f}.",
        "Fitted on every fourth flight of January to March, compared on later ones and edge cases. CPU time, medians.",
        "",
        "| model | same bits | left to the pipeline | ours, µs | first, µs | pipeline, µs | pyfunc, µs "
        "| × pipeline | × first | × pyfunc | source, kB | generate, CPU s / MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *lines,
        "",
        "*Same bits*: every row against the pipeline, some against the pipeline called with that row alone; where a",
        "batch changes the bits (dense linear models), every row against the last step called with it alone.",
        "*First*: after the other ways have filled the processor's caches; the others are medians of all calls.",
        "",
        "## Batches",
        "",
        "| model | rows | ours from records, µs | ours from a DataFrame, µs | pipeline, µs |",
        "|---|---:|---:|---:|---:|",
        *batches,
        "",
        "## Arithmetic",
        "",
        *measure_arithmetic(),
    ]
    benchmark.write_report("compiled", text)


if __name__ == "__main__":
    main()
