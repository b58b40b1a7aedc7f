"""How fast is a batch of flights scored, Parquet to Parquet, and in how much memory: stock tools and ours, in one run.

The real flights of a year, tiled to as many rows as asked, keys unique; a histogram gradient boosting of 100 trees on
16 columns. Every way is a fresh process from start to exit and takes its turn round by round, so that a machine that is
busy for a while is busy for all. Peak memory is the sum of the resident sets of the process and its children, sampled
every 50 ms. No thread count is set: each way uses the cores as it does by default.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from mlops_lib import contracts, data, integrity, registry, tracking
from mlops_lib.project import Project, load_project

ROOT = Path(__file__).resolve().parent.parent
MLOPS = Path(sys.executable).with_name("mlops")
PACKAGES = ("mlflow", "scikit-learn", "pandas", "numpy", "pyarrow", "pyspark")
ONE_ROW_CALLS = 300
PYFUNC = """
import sys, mlflow, pyarrow as pa, pyarrow.parquet as pq
model, writer = mlflow.pyfunc.load_model(sys.argv[1]), None
for batch in pq.ParquetFile(sys.argv[2]).iter_batches(100_000):
    frame = batch.to_pandas()
    table = pa.table({"flight_id": frame["flight_id"], "prediction": model.predict(frame)[:, 1]})
    writer = writer or pq.ParquetWriter(sys.argv[3], table.schema)
    writer.write_table(table)
writer.close()
"""
MEMORY = """
import sys, mlflow, pandas as pd
model, frame = mlflow.sklearn.load_model(sys.argv[1]), pd.read_parquet(sys.argv[2])
score = model.predict_proba(frame[list(model.feature_names_in_)])[:, 1]
pd.DataFrame({"flight_id": frame["flight_id"], "score": score}).to_parquet(sys.argv[3])
"""
SPARK = """
import sys, mlflow, warnings
from pyspark.sql import SparkSession
from pyspark.sql.functions import struct
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
udf = mlflow.pyfunc.spark_udf(spark, sys.argv[1], env_manager="local", result_type="array<double>")
frame = spark.read.parquet(sys.argv[2])
names = mlflow.models.get_model_info(sys.argv[1]).signature.inputs.input_names()
frame.select("flight_id", udf(struct(*names))[1].alias("prediction")).write.mode("overwrite").parquet(sys.argv[3])
"""


@dataclass
class Bench:
    """A registered model, tables of several sizes and the ways to score them, in a folder of their own."""

    folder: Path
    project: Project = field(init=False)
    uri: str = field(init=False)
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.project = replace(load_project(), tracking_uri=store, environ={})
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        self.env = kept | {
            "MLFLOW_TRACKING_URI": store,
            "MLOPS_PROJECT": str(self.project.file),
            "PYTHONWARNINGS": "ignore",
            "MLOPS_WARM": "0",  # a fork of the warm server would be nobody's child, and its memory not counted
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        register_model(self.project)
        self.uri = f"models:/{self.project.name}/1"

    def python(self, code: str, source: Path, output: Path) -> list[str]:
        return [sys.executable, "-c", code, self.uri, str(source), str(output)]

    def run(self, command: list[str]) -> tuple[float, float]:
        """Return seconds and peak MiB of a command; one that fails stops the benchmark with what it said."""
        started, peak = time.perf_counter(), 0
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=said, stderr=said)
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                peak = max(peak, resident(watched))
                time.sleep(0.05)
            seconds = time.perf_counter() - started
            if process.returncode:
                said.seek(0)
                sys.exit(f"{command[:3]} failed:\n{said.read()[-3000:]}")
        return seconds, peak / 2**20


def resident(process: psutil.Process) -> int:
    """Sum the resident sets of a process and its children, those that are gone by now left out."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return total


def score_ours(bench: Bench, source: Path, output: Path) -> list[str]:
    return [str(MLOPS), "score", str(source), str(output), "--version", "1"]


def score_spark(bench: Bench, source: Path, output: Path) -> list[str]:
    return [*score_ours(bench, source, output), "--on", "spark=local[2]"]


def predict_csv(bench: Bench, source: Path, output: Path) -> list[str]:
    csv = source.with_suffix(".csv")
    if not csv.exists():
        data.read_table(source).to_csv(csv, index=False)
    command = ["mlflow", "models", "predict", "-m", bench.uri, "-i", str(csv), "-t", "csv", "-o", str(output)]
    return [*command, "--env-manager", "local"]


HAS_SPARK = importlib.util.find_spec("pyspark") is not None
Way = Callable[[Bench, Path, Path], list[str]]
WAYS: dict[str, tuple[Way, int]] = {  # the way, and the most rows it is tried with
    "`mlops score`": (score_ours, 10**9),
    "`pyfunc.predict` in chunks of 100,000 rows": (lambda b, s, o: b.python(PYFUNC, s, o), 10**9),
    "pipeline, all in memory": (lambda b, s, o: b.python(MEMORY, s, o), 5 * 10**6),
    "`mlflow models predict`, CSV to JSON": (predict_csv, 300_000),
}
if HAS_SPARK:
    WAYS["`mlops score --on spark`, local[2]"] = (score_spark, 10**9)
    WAYS["`mlflow.pyfunc.spark_udf`, local[2]"] = (lambda b, s, o: b.python(SPARK, s, o), 5 * 10**6)
OURS, PYFUNC_NAME = list(WAYS)[:2]


def register_model(project: Project) -> None:
    """Fit on the first quarter, log and register version 1."""
    if project.ingest:
        project.ingest()
    parts = [data.read_table(project.paths(name, *project.periods()[0:3:2])) for name in ("arrivals", "labels")]
    rows = parts[0].merge(parts[1], on=list(project.keys))
    X, y = rows[list(project.features)], rows[project.target]
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    texts = X.select_dtypes(exclude="number").columns.tolist()
    columns = make_column_transformer((encode, texts), remainder="passthrough")
    model = make_pipeline(columns, HistGradientBoostingClassifier(random_state=0)).fit(X, y)
    contract = contracts.infer_contract(rows, features=project.features, keys=project.keys)
    contract = project.contract(contract) if project.contract else contract
    with tracking.start_run(project):
        logged = tracking.log_model(project, model, X, contract=contract.to_dict(), profile={})
    registry.register(project, logged.model_uri)


def write_rows(project: Project, path: Path, n_rows: int) -> Path:
    """Write a year's rows again and again, keys unique, in constant memory."""
    year = data.read_table([project.path("arrivals", period) for period in project.periods()])
    written, writer = 0, None
    while written < n_rows:
        part = year.head(n_rows - written).assign(
            **{project.keys[0]: np.arange(written, min(n_rows, written + len(year)))}
        )
        table = pa.Table.from_pandas(part, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema, **data.PARQUET)
        writer.write_table(table)
        written += len(part)
    if writer:
        writer.close()
    return path


def measure_files(bench: Bench, sizes: Iterable[int], n_rounds: int, ways: list[str]) -> pd.DataFrame:
    """Return one row for each run: size, round, way, seconds, MiB."""
    found = []
    for n_rows in sizes:
        source = write_rows(bench.project, bench.folder / f"{n_rows}.parquet", n_rows)
        for number in range(n_rounds):
            for name in ways:
                way, most = WAYS[name]
                if n_rows > most:
                    continue
                command = way(bench, source, bench.folder / "scored.parquet")
                seconds, peak = bench.run(command)
                found.append((n_rows, number + 1, name, seconds, peak))
                for old in bench.folder.glob("scored*"):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                print(f"{n_rows:,} round {number + 1}: {seconds:6.2f} s {peak:6.0f} MiB  {name}", file=sys.stderr)
    return pd.DataFrame(found, columns=["rows", "round", "way", "s", "MiB"])


def measure_one_row(bench: Bench) -> dict[str, float]:
    """Return the median microseconds of scoring one row, the ways taking turns."""
    release = registry.load_model(bench.project, 1)
    contract = contracts.Contract.from_dict(release.files.contract)
    row = data.read_table(bench.project.path("arrivals", bench.project.periods()[0])).head(1)
    X, scorer = row[release.features], integrity.scorer(release.model)
    pyfunc = mlflow.pyfunc.load_model(bench.uri)
    calls: dict[str, Callable[[], object]] = {
        "pipeline": lambda: scorer(X),
        "contract and pipeline": lambda: scorer(contracts.split_rows(contract, row).good[release.features]),
        "`pyfunc.predict`": lambda: pyfunc.predict(X),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ONE_ROW_CALLS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) * 1e6 for name, values in taken.items()}


def render(runs: pd.DataFrame, one_row: dict[str, float], loads: list[float], arguments: str) -> str:
    """Return the report."""
    lines: list[str] = []
    for n_rows, table in runs.groupby("rows"):
        medians = table.groupby("way", sort=False)["s"].median()
        lines += ["", f"## {n_rows:,} rows", "", "| way | median s | rows/s | × ours | peak MiB | each round, s |"]
        lines.append("|---|---:|---:|---:|---:|---|")
        for name, median in medians.items():
            of_way = table[table["way"] == name]
            each = ", ".join(f"{seconds:.1f}" for seconds in of_way["s"])
            ratio = f"{median / medians[OURS]:.2f}" if OURS in medians else "–"
            lines.append(
                f"| {name} | {median:.1f} | {n_rows / median:,.0f} | {ratio} | {of_way['MiB'].max():.0f} | {each} |"
            )
    lines += ["", "## One row, in process", "", "| way | median µs |", "|---|---:|"]
    lines += [f"| {name} | {value:,.0f} |" for name, value in one_row.items()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    have = [name for name in PACKAGES if name != "pyspark" or HAS_SPARK]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in have)
    head = [
        "# Batches of flights, Parquet to Parquet",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, `ci/bench scoring{arguments}`, ways interleaved.",
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}; load before and after {', '.join(f'{load:.1f}' for load in loads)}.",
        f"{versions}. Thread counts as each way chooses them.",
        "",
        "Each way is a fresh process from start to exit; memory is that of the process and its children. Ours checks",
        "every row against the contract and every key in the whole table, writes ids, version, digest and time on each",
        "row, and a manifest with digests of input and output; the others write one number a row.",
    ]
    if not HAS_SPARK:
        head += ["", "Spark is not installed here (`ci/setup-spark`), so its rows are missing."]
    return "\n".join([*head, *lines]) + "\n"


def main() -> None:
    """Measure, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[300_000, 3_000_000], help="sizes, such as 30000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", type=int, nargs="+", help=f"numbers of ways: {dict(enumerate(WAYS))}")
    parser.add_argument("--try", dest="is_try", action="store_true", help="print, and write no report")
    options = parser.parse_args()
    arguments = "".join(f" {argument}" for argument in sys.argv[1:])
    ways = [list(WAYS)[number] for number in options.ways] if options.ways else list(WAYS)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        bench = Bench(Path(folder))
        runs = measure_files(bench, options.rows, options.rounds, ways)
        one_row = measure_one_row(bench)
    loads.append(os.getloadavg()[0])
    text = render(runs, one_row, loads, arguments)
    if not options.is_try:
        path = ROOT / "benchmarks" / f"{datetime.now(UTC):%Y-%m-%d}-scoring.md"
        path.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
