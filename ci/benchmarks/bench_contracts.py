"""How fast is a table held to its contract: beside a plain copy of the table, side by side in one run.

The table is like a month of arrivals, 300,000 rows of 15 features: numbers, whole numbers, booleans, categories, times.
Clean, with 5 % bad rows, and as the text of a CSV. The ways take turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import benchmark
import numpy as np
import pandas as pd
import pyarrow as pa

from mlops_lib import contracts

N_ROWS = 300_000


def make_table(n_rows: int) -> pd.DataFrame:
    """Return keys and 15 features."""
    rng = np.random.default_rng(0)
    columns: dict[str, object] = {"id": np.arange(n_rows)}
    columns |= {f"number_{i}": rng.normal(50, 10, n_rows) for i in range(8)}
    columns |= {f"whole_{i}": rng.integers(1, 500, n_rows) for i in range(2)}
    columns |= {"flag": rng.random(n_rows) < 0.2}
    columns |= {f"text_{i}": pd.array(rng.choice(["AA", "DL", "UA", "WN"], n_rows), dtype="str") for i in range(3)}
    columns |= {"time": pd.Timestamp("2013-01-01") + pd.to_timedelta(np.arange(n_rows), unit="s")}
    return pd.DataFrame(columns)


def measure(n_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    frame = make_table(N_ROWS)
    contract = contracts.infer_contract(frame, features=[c for c in frame if c != "id"], keys=["id"])
    bad = frame.assign(number_0=frame["number_0"].where(frame.index % 20 != 0, 1e6))
    batch = pa.RecordBatch.from_pandas(frame, preserve_index=False)
    fields = [
        pa.array(frame[name].astype("str").str.lower() if name == "flag" else frame[name].astype("str"))
        for name in frame
    ]
    text = pa.record_batch(fields, names=list(frame)).replace_schema_metadata({"format": "csv"})
    ways: dict[str, Callable[[], object]] = {
        "copy of the table": frame.copy,
        "`split_rows`, clean": lambda: contracts.split_rows(contract, frame),
        "`split_rows`, 5 % bad": lambda: contracts.split_rows(contract, bad),
        "`split_batch`, Arrow, clean": lambda: contracts.split_batch(contract, batch),
        "`split_batch`, text of a CSV, clean": lambda: contracts.split_batch(contract, text),
    }
    assert not len(contracts.split_batch(contract, text).bad)
    assert len(contracts.split_rows(contract, bad).bad) == N_ROWS // 20
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def render(seconds: dict[str, list[float]]) -> list[str]:
    """Return the report's lines."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["copy of the table"]
    versions = benchmark.describe_versions(("pandas", "pyarrow"))
    return [
        f"# {N_ROWS:,} rows of 15 features held to their contract",
        "",
        f"{benchmark.TODAY}, {benchmark.describe_command('contracts')}, {len(seconds['copy of the table'])} "
        f"interleaved rounds, {benchmark.describe_machine()}, load {os.getloadavg()[0]:.1f}, {versions}.",
        "",
        "| way | median s | × copy |",
        "|---|---:|---:|",
        *(f"| {name} | {median:.3f} | {median / base:.1f} |" for name, median in medians.items()),
        "",
        "Each way reads any type without loss, counts shares, compares scales, finds repeated keys and builds the typed",
        "rows. pandera, a dependency until November 2026, is measured beside them in 2026-11-23-contracts.md.",
    ]


def main() -> None:
    """Measure, write the report and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    benchmark.write_report("contracts", render(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
