"""How long it takes to say whether a million rows have drifted, and in how much memory: ours beside evidently's preset.

Evidently is no dependency of this project and wants another pandas, so it is installed once into an environment of its
own, below the user's cache folder. Each way is a process of its own, from start to exit, imports included; ways are
interleaved. Thirty million rows, as thirty files, show whether memory grows. Writes benchmarks/<date>-monitor.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmark

PEER = ("evidently==0.7.23", "pandas<3", "pyarrow")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlops-bench"
NUMBERS = [f"x{i}" for i in range(12)]
TEXTS = [f"c{i}" for i in range(8)]
SHIFTED = ["x0", "c1", "c2"]  # c2 by its missing values
N_FILES = 30


def make_rows(n_rows: int, *, seed: int, is_shifted: bool) -> Any:
    """Return normal, skewed and whole numbers, texts of 3 to 60 values, some missing; three columns may be shifted."""
    import numpy as np  # noqa: PLC0415 - here and below: see the line of dashes
    import pandas as pd  # noqa: PLC0415

    rng, columns = np.random.default_rng(seed), {}
    for i, name in enumerate(NUMBERS):
        kinds = (rng.normal, rng.lognormal, lambda size: rng.integers(0, 50, size).astype(float))
        values = kinds[i % 3](size=n_rows) + (0.7 if is_shifted and name in SHIFTED else 0)
        columns[name] = np.where(rng.random(n_rows) < 0.05, np.nan, values) if i % 4 == 0 else values
    for i, name in enumerate(TEXTS):
        n_values = (3, 10, 30, 60)[i % 4]
        codes = (n_values * rng.random(n_rows) ** (2.5 if is_shifted and name == "c1" else 1)).astype(int)
        texts = np.array([f"value {value}" for value in range(n_values)], dtype=object)[codes]
        missing = (0.2 if is_shifted and name == "c2" else 0.05) if i % 2 == 0 else 0
        columns[name] = np.where(rng.random(n_rows) < missing, None, texts)
    return pd.DataFrame(columns)


# --- each step and way in a process of its own, which prints what it finds drifted --------------------------------
# Their imports are their own, since they count; a parent that is large would also be taken for a child's peak.


def make_tables(folder: Path, n_rows: int) -> None:
    """Write the reference, the current rows, and a folder in which they lie thirty times."""
    for seed, name in enumerate(("reference", "current")):
        rows = make_rows(n_rows, seed=seed, is_shifted=name == "current")
        rows.to_parquet(folder / f"{name}.parquet", row_group_size=100_000)
    (folder / "many").mkdir()
    for i in range(N_FILES):
        os.link(folder / "current.parquet", folder / "many" / f"part-{i:02}.parquet")


def build(folder: Path) -> list[str]:
    """Read the reference and write its profile."""
    from mlops_lib import data, quality  # noqa: PLC0415

    profile = quality.build_profile(data.read_table(folder / "reference.parquet"), columns=NUMBERS + TEXTS)
    (folder / "profile.json").write_text(json.dumps(profile.to_dict()))
    return []


def check(folder: Path, table: str = "current.parquet") -> list[str]:
    """Count the current rows, batch by batch, into the stored profile, and check."""
    from mlops_lib import data, quality  # noqa: PLC0415

    counter = quality.DriftCounter(quality.Profile.from_dict(json.loads((folder / "profile.json").read_text())))
    for batch in data.read_batches(folder / table):
        counter.add(data.to_frame(batch))
    return [row.name for row in quality.check_drift(counter.measure()).failures]


def check_many(folder: Path) -> list[str]:
    """Do the same with a folder of thirty files."""
    return check(folder, "many")


def run_evidently(folder: Path) -> list[str]:
    """Run the preset with its defaults on both tables."""
    import pandas as pd  # noqa: PLC0415
    from evidently import DataDefinition, Dataset, Report  # noqa: PLC0415
    from evidently.presets import DataDriftPreset  # noqa: PLC0415

    columns = DataDefinition(numerical_columns=NUMBERS, categorical_columns=TEXTS)
    tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("current", "reference")]
    current, reference = (Dataset.from_pandas(table, data_definition=columns) for table in tables)
    found = Report([DataDriftPreset()]).run(current, reference).dict()
    drifts = [each for each in found["metrics"] if each["config"]["type"].endswith(":ValueDrift")]
    return [each["config"]["column"] for each in drifts if float(each["value"]) >= each["config"]["threshold"]]


WAYS = {"build": build, "check": check, "check_many": check_many, "evidently": run_evidently}


def install_peer() -> Path:
    """Return the interpreter of evidently's environment, made where there is none."""
    folder = CACHE / PEER[0].replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (folder / "complete").touch()
    return python


def time_way(python: Path | str, way: str, folder: Path) -> dict[str, Any]:
    """Run one way; return its seconds from start to exit, its peak memory in MiB and what it found."""
    environment = {**os.environ, "PYTHONPATH": str(benchmark.ROOT)}
    began = time.perf_counter()
    command = [str(python), __file__, "--way", way, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{way} ended with {os.waitstatus_to_exitcode(status)}")
    found = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}
    print(f"{way}: {seconds:.2f} s, {found['mib']:.0f} MiB", file=sys.stderr)
    return {**found, "drifted": json.loads(printed.splitlines()[-1])}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--way", choices=["make", *WAYS], help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way == "make":
        make_tables(options.folder, options.rows)
        return
    if options.way:
        print(json.dumps(WAYS[options.way](options.folder)))
        return
    peer = install_peer()
    interpreter = {way: peer if way == "evidently" else sys.executable for way in WAYS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make = [sys.executable, __file__, "--way", "make", "--rows", str(options.rows), str(folder)]
        subprocess.run(make, check=True)
        for _ in range(options.rounds):
            for way in ("build", "check", "evidently"):
                found[way].append(time_way(interpreter[way], way, folder))
        found["check_many"].append(time_way(sys.executable, "check_many", folder))
    benchmark.write_report("monitor", report(found, options.rows, peer))


def report(found: dict[str, list[dict[str, Any]]], n_rows: int, peer: Path) -> list[str]:
    """Return the lines of the report."""
    kinds = ("seconds", "cpu", "mib")
    median = {way: {k: statistics.median(each[k] for each in rounds) for k in kinds} for way, rounds in found.items()}
    ours, theirs = median["check"], median["evidently"]
    asked = "import benchmark; print(benchmark.describe_versions(['evidently', 'pandas', 'numpy', 'scipy']))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    installed = subprocess.run([peer, "-c", asked], env=environment, capture_output=True, text=True, check=True).stdout
    names = {
        "check": f"ours: {n_rows:,} rows against a stored profile",
        "build": f"ours: the profile of {n_rows:,} reference rows, once a model",
        "check_many": f"ours: {N_FILES * n_rows:,} rows against the stored profile",
        "evidently": f"evidently `DataDriftPreset`, both tables of {n_rows:,} rows",
    }
    lines = [
        f"# Has a table drifted: time and memory, {benchmark.TODAY}",
        "",
        f"{benchmark.describe_command('monitor')}: medians of {len(found['check'])} rounds, ways interleaved;",
        f"{N_FILES * n_rows:,} rows once.",
        f"{benchmark.describe_machine()}; load average at the end {os.getloadavg()[0]:.1f}.",
        f"Ours: {benchmark.describe_versions(['pandas', 'numpy', 'scipy', 'pyarrow'])}.",
        f"Theirs, in an environment of its own: {installed.strip()}.",
        "",
        "Twelve numeric columns and eight of texts with 3 to 60 values, some of them with missing values, as Parquet.",
        "Each way is a process from start to exit, imports and reading included; memory is its peak (`ru_maxrss`).",
        "Evidently reads both tables whenever it is asked, measures exact distances of rows and prepares its plots;",
        "ours reads the current rows in batches and counts them into the profile's bins, so its distances are of bins.",
        "",
        "| way | clock s | processor s | × ours | peak MiB | each round, s |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for way, name in names.items():
        each = median[way]
        ratio = f"{each['seconds'] / ours['seconds']:.1f}"
        rounds = ", ".join(f"{one['seconds']:.1f}" for one in found[way])
        lines.append(f"| {name} | {each['seconds']:.2f} | {each['cpu']:.2f} | {ratio} | {each['mib']:.0f} | {rounds} |")
    told = {"check": "ours", "evidently": "evidently"}
    both = theirs["seconds"] / (ours["seconds"] + median["build"]["seconds"])
    lines += [
        "",
        f"Evidently takes {theirs['seconds'] / ours['seconds']:.0f} times as long,",
        f"{both:.0f} times as long where our profile is built anew each time,",
        f"and {theirs['mib'] / ours['mib']:.1f} times the memory.",
        f"{N_FILES} times the rows take {median['check_many']['mib'] / ours['mib']:.2f} times the memory.",
        "",
        "## What each calls drifted",
        "",
        f"Planted: {', '.join(SHIFTED[:2])} by their values, {SHIFTED[2]} by its missing ones. Each with its defaults.",
        "",
        *(f"- {who}: {', '.join(sorted(found[way][0]['drifted'])) or 'none'}" for way, who in told.items()),
    ]
    return lines


if __name__ == "__main__":
    main()
