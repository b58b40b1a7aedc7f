"""How fast is a batch of flights scored, Parquet to Parquet, and in how much memory: stock tools and ours, in one run.

The real flights of a year, tiled to as many rows as asked, keys unique; a histogram gradient boosting of 100 trees on
16 columns. Every way is a fresh process from start to exit and takes its turn round by round, so that a machine that is
busy for a while is busy for all; once more, ours finds its warm server, as every command after the first one does.
Peak memory is what the process and its children hold, and then our server too, pages that several of them share counted
once (PSS), sampled ten times a second. No thread count is set: each way uses the cores as it does by default.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import benchmark
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

from mlops_lib import contracts, data, registry, tracking
from mlops_lib.project import Project, load_project

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
    servers: list[int] = field(default_factory=list)  # of warm kernels

    def __post_init__(self) -> None:
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.project = replace(load_project(), tracking_uri=store, environ={})
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        self.env = kept | {
            "MLFLOW_TRACKING_URI": store,
            "MLOPS_STATE_DIR": "",
            "MLOPS_PROJECT": str(self.project.file),
            "PYTHONWARNINGS": "ignore",
            "MLOPS_RUNTIME_DIR": str(self.folder / "k"),
            "MLOPS_WARM": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        register_model(self.project)
        self.uri = f"models:/{self.project.name}/1"

    def python(self, code: str, source: Path, output: Path) -> list[str]:
        return [sys.executable, "-c", code, self.uri, str(source), str(output)]

    def run(self, command: list[str]) -> tuple[float, float]:
        """Return seconds and peak MiB of a command; one that fails stops the benchmark with what it said."""
        with tempfile.TemporaryFile("w+") as said:
            started, peak = time.perf_counter(), 0
            process = subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=said, stderr=said)
            watched = [psutil.Process(process.pid), *map(psutil.Process, self.servers)]
            while process.poll() is None:
                peak = max(peak, held(watched))
                time.sleep(0.1)
            seconds = time.perf_counter() - started
            if process.returncode:
                said.seek(0)
                sys.exit(f"{command[:3]} failed:\n{said.read()[-3000:]}")
        return seconds, peak / 2**20

    @contextlib.contextmanager
    def warm(self) -> Iterator[None]:
        """Let commands find a server that has done its imports."""
        cold, self.env = self.env, {name: value for name, value in self.env.items() if name != "MLOPS_WARM"}
        call = partial(subprocess.run, env=self.env, check=True, stdout=subprocess.PIPE)
        try:
            call([sys.executable, "-c", "from mlops_lib.engines import warm; warm.prepare().join()"])
            pids = "from mlops_lib.engines import warm; print(*[server['pid'] for server in warm.status()])"
            found = call([sys.executable, "-c", pids])
            self.servers = [int(pid) for pid in found.stdout.split()]
            yield
        finally:
            call([sys.executable, "-c", "from mlops_lib.engines import warm; warm.stop()"])
            self.env, self.servers = cold, []


def held(processes: Iterable[psutil.Process]) -> int:
    """Sum the memory of processes and their children, those that are gone by now left out."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += member.memory_full_info().pss
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
    "`mlops score`, warm": (score_ours, 10**9),
    "`pyfunc.predict` in chunks of 100,000 rows": (lambda b, s, o: b.python(PYFUNC, s, o), 10**9),
    "pipeline, all in memory": (lambda b, s, o: b.python(MEMORY, s, o), 5 * 10**6),
    "`mlflow models predict`, CSV to JSON": (predict_csv, 300_000),
}
if HAS_SPARK:
    WAYS["`mlops score --on spark`, local[2]"] = (score_spark, 10**9)
    WAYS["`mlflow.pyfunc.spark_udf`, local[2]"] = (lambda b, s, o: b.python(SPARK, s, o), 5 * 10**6)
OURS, WARM = list(WAYS)[:2]


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
    contract = project.adjust_contract(contract) if project.adjust_contract else contract
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
                with bench.warm() if name == WARM else contextlib.nullcontext():
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
    X, scorer = row[release.features], partial(release.task.predict, release.model)
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


def render(runs: pd.DataFrame, one_row: dict[str, float], loads: list[float]) -> list[str]:
    """Return the report's lines."""
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
    packages = [name for name in PACKAGES if name != "pyspark" or HAS_SPARK]
    head = [
        "# Batches of flights, Parquet to Parquet",
        "",
        f"{benchmark.TODAY}, {benchmark.describe_command('scoring')}, ways interleaved.",
        f"{benchmark.describe_machine()}; load before and after {', '.join(f'{load:.1f}' for load in loads)}.",
        f"{benchmark.describe_versions(packages)}. Thread counts as each way chooses them.",
        "",
        "Each way is a fresh process from start to exit; *warm* finds the server of warm kernels running, as every",
        "command after the first one does, and is a fork of it. Memory (PSS) is that of the process and its children,",
        "and for *warm* of the server too, shared pages counted once. Ours checks every row against the contract and",
        "every key in the whole table, writes ids, version, digest and time on each row, and a manifest with digests",
        "of input and output; the others write one number a row.",
    ]
    if not HAS_SPARK:
        head += ["", "Spark is not installed here (`ci/setup-spark`), so its rows are missing."]
    return [*head, *lines]


def main() -> None:
    """Measure, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[300_000, 3_000_000], help="sizes, such as 30000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", type=int, nargs="+", help=f"numbers of ways: {dict(enumerate(WAYS))}")
    parser.add_argument("--try", dest="is_try", action="store_true", help="print, and write no report")
    options = parser.parse_args()
    ways = [list(WAYS)[number] for number in options.ways] if options.ways else list(WAYS)
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="b-") as folder:
        bench = Bench(Path(folder))
        runs = measure_files(bench, options.rows, options.rounds, ways)
        one_row = measure_one_row(bench)
    loads.append(os.getloadavg()[0])
    lines = render(runs, one_row, loads)
    if options.is_try:
        print("\n".join(lines))
    else:
        benchmark.write_report("scoring", lines)


if __name__ == "__main__":
    main()
