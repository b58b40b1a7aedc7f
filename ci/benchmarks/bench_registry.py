"""How long do the registry's calls take with 1,000 versions and 5,000 ledger entries, beside plain MLflow's calls.

One small model is logged and registered through the library; the other versions and entries are written straight into
SQLite, with a chain that the library then checks at every call. The ways take turns, round by round, so that a machine
that is busy for a while is busy for both. A promotion is forced: no gate is evaluated. What checking the model's files
takes is measured beside it and taken off, since it depends on the model and not on the registry.

A promotion on a verdict does the check again, on rows that it reads again. What that takes is measured in a project of
its own, beside the same promotion that believes the verdict and only compares the model's files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import benchmark
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from mlops_lib import contracts, gates, registry, tracking
from mlops_lib.project import Project
from mlops_lib.registry import ledger, versions
from mlops_lib.registry.rules import Rules
from mlops_lib.tracking import store

N_VERSIONS, N_ENTRIES = 1000, 5000
N_ROWS = 30_000  # that a verdict judges
TABLES = ("model_versions", "model_version_tags")


def make_project(folder: Path) -> Project:
    """Return a project whose version 1 is registered."""
    project = Project(
        name="bench",
        root=folder,
        target="y",
        keys=("id",),
        features=("x",),
        arrivals="arrivals/{period}.parquet",
        labels="labels/{period}.parquet",
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        actor="bench",
    )
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0]})
    store.connect(project.tracking_uri)
    with tracking.start_run(project):
        logged = tracking.log_model(project, LogisticRegression().fit(frame, [0, 0, 1, 1]), frame)
    registry.register(project, logged.model_uri)
    return project


def fabricate(project: Project) -> None:
    """Add versions and entries: each version is registered, and moved to staging and prod while entries are left."""
    (first,) = registry.read_ledger(project)
    found, at, rules = ledger.open_ledger(project)[1], first.time, Rules.of(project).to_text()
    registered, moved = [first], list[registry.Entry]()
    moves = [("register", "dev", n) for n in range(2, N_VERSIONS + 1)]
    for n in range(1, N_VERSIONS + 1):
        moves += [("promote", "staging", n), ("promote", "prod", n), ("freeze", "prod", n), ("unfreeze", "prod", n)]
    for action, stage, version in moves[: N_ENTRIES - 1]:
        at += timedelta(minutes=1)
        chain = registered if action == "register" else moved
        entry = registry.Entry(
            number=len(chain) + 1,
            operation=f"{len(registered) + len(moved):032x}",
            previous=chain[-1].hash if chain else found.moves.genesis,
            seen="" if action == "register" else registered[-1].hash,
            rules="" if action == "register" else rules,
            action=action,
            stage=stage,
            version=version,
            from_version=version - 1 or None,
            model_id=first.model_id,
            digest=first.digest,
            verdict="0" * 64 if action == "promote" else "",
            actor="bench",
            at=at.isoformat(timespec="microseconds"),
            reason="best of four on April, and the report was read",
        )
        chain.append(entry)
    rows = [(found.registrations.run_id, f"{e.number:06d}", e.to_json()) for e in registered[1:]]
    rows += [(found.moves.run_id, f"{e.number:06d}", e.to_json()) for e in moved]
    with contextlib.closing(sqlite3.connect(project.root / "mlflow.db")) as database, database:
        database.executemany("insert into params (run_uuid, key, value) values (?, ?, ?)", rows)
        for table in TABLES:
            columns = [column for _, column, *_ in database.execute(f"pragma table_info({table})")]
            place = columns.index("version")
            for row in database.execute(f"select * from {table}").fetchall():
                copies = [(*row[:place], n, *row[place + 1 :]) for n in range(2, N_VERSIONS + 1)]
                marks = ", ".join("?" * len(columns))
                database.executemany(f"insert into {table} ({', '.join(columns)}) values ({marks})", copies)
    registry.history(project)
    assert len(registry.read_ledger(project)) == N_ENTRIES
    assert registry.check_store(project).passed


class Seconds(NamedTuple):
    """What a call took: on the clock, and of the processor."""

    clock: float
    processor: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock - other.clock, self.processor - other.processor)


def timed(call: Callable[[], object]) -> Seconds:
    """Return the seconds that a call takes."""
    began = Seconds(time.perf_counter(), time.process_time())
    call()
    return Seconds(time.perf_counter(), time.process_time()) - began


def median(found: list[Seconds]) -> Seconds:
    return Seconds(statistics.median(s.clock for s in found), statistics.median(s.processor for s in found))


def measure(project: Project, n_rounds: int) -> dict[str, tuple[Seconds, Seconds | None]]:
    """Return, for each call, the median seconds of ours and of plain MLflow's."""
    client, middle = store.connect(project.tracking_uri), registry.read_ledger(project)[N_ENTRIES // 2].time
    seconds: dict[str, tuple[list[Seconds], list[Seconds]]] = {}

    def note(name: str, ours: Seconds, plain: Seconds | None = None) -> None:
        mine, others = seconds.setdefault(name, ([], []))
        mine.append(ours)
        others.extend([] if plain is None else [plain])

    for n in range(n_rounds + 1):
        name = "list_versions | search_model_versions"
        plain = timed(lambda: list(client.search_model_versions("name = 'bench'", max_results=N_VERSIONS)))
        note(name, timed(lambda: registry.list_versions(project)), plain)
        note("history", timed(lambda: registry.history(project)))
        note("as_of", timed(lambda: registry.as_of(project, middle)))
        plain = timed(lambda: client.get_model_version_by_alias("bench", "prod"))
        note("current | get_model_version_by_alias", timed(lambda: registry.current(project, "prod")), plain)
        note("check_store", timed(lambda: registry.check_store(project)))
        version = 10 + n  # in staging long ago, as every version was
        made, seen = client.get_model_version("bench", str(version)), ledger.open_ledger(project)[1]
        files = timed(lambda: versions.verify_files(project, made, seen))  # noqa: B023 - called at once
        plain = timed(lambda: client.set_registered_model_alias("bench", "staging", str(version)))  # noqa: B023
        client.set_registered_model_alias("bench", "staging", str(seen.state.standing["staging"].version))
        whole = timed(
            lambda: gates.promote(project, version, "staging", force=True, reason="bench")  # noqa: B023
        )
        note("promote, without the model's files | set_registered_model_alias", whole - files, plain)
        if n == 0:
            seconds.clear()  # the first round warms up
        print(f"round {n} of {n_rounds}", file=sys.stderr)
    return {name: (median(mine), median(others) if others else None) for name, (mine, others) in seconds.items()}


def make_labelled_project(folder: Path) -> tuple[Project, str]:
    """Return a project with N_ROWS labelled rows of eight columns, four gates and a champion, and its model's URI."""
    names = tuple(f"x{n}" for n in range(8))
    project = Project(
        name="judged",
        root=folder,
        target="y",
        keys=("id",),
        features=names,
        arrivals="arrivals-{period}.parquet",
        labels="labels-{period}.parquet",
        gates=(
            gates.Threshold("roc_auc", 0.6),
            gates.NoWorse("roc_auc", 0.01),
            gates.Calibrated(0.1),
            gates.ModelSize(20),
        ),
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        actor="bench",
    )
    for n, period in enumerate(("train", "test")):
        rng = np.random.default_rng(n)
        frame = pd.DataFrame(rng.normal(size=(N_ROWS, len(names))), columns=names)
        frame.insert(0, "id", np.arange(N_ROWS) + n * N_ROWS)
        labels = frame[["id"]].assign(y=(frame["x0"] + rng.normal(size=N_ROWS) > 0).astype("int64"))
        frame.to_parquet(project.root / f"arrivals-{period}.parquet")
        labels.to_parquet(project.root / f"labels-{period}.parquet")
        if period == "train":
            X = frame[list(names)]
            contract = contracts.infer_contract(frame, features=names, keys=["id"]).to_dict()
            store.connect(project.tracking_uri)
            with tracking.start_run(project):
                model = LogisticRegression().fit(X, labels["y"])
                logged = tracking.log_model(project, model, X, keys=frame[["id"]], contract=contract)
    champion = registry.register(project, logged.model_uri).version
    for stage in ("staging", "prod"):
        gates.promote(project, champion, stage, force=True, reason="bench")
    return project, logged.model_uri


def measure_promotions(project: Project, model_uri: str, n_rounds: int) -> tuple[Seconds, Seconds]:
    """Return the median seconds of promotions that do the check again, and of those that believe the verdict."""
    found: tuple[list[Seconds], list[Seconds]] = ([], [])

    def believe(version: int) -> registry.Entry:
        client, seen = ledger.open_ledger(project)

        def compare_files(_: object) -> None:
            versions.verify_files(project, client.get_model_version(project.name, str(version)), seen)

        return registry.move_up(project, version, "staging", check=compare_files)

    for n in range(2 * n_rounds + 2):
        version = registry.register(project, model_uri).version
        with tracking.start_run(project):
            candidate, champion = registry.load_model(project, version), registry.load_model(project, "prod")
            registry.log_verdict(project, version, gates.check_gates(project, candidate, champion, "test"))
        ways = (lambda: gates.promote(project, version, "staging"), lambda: believe(version))  # noqa: B023
        found[n % 2].append(timed(ways[n % 2]))
        print(f"promotion {n} of {2 * n_rounds + 1}", file=sys.stderr)
    again, believed = [median(seconds[1:]) for seconds in found]  # the first of each warms up
    return again, believed


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    n_rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        project = make_project(Path(scratch))
        fabricate(project)
        found = measure(project, n_rounds)
    with tempfile.TemporaryDirectory() as scratch:
        again, believed = measure_promotions(*make_labelled_project(Path(scratch)), n_rounds)
    machine = f"{benchmark.describe_machine()}, {benchmark.describe_versions(['mlflow'])}"
    rows = []
    for name, (ours, plain) in found.items():
        mine, _, stock = name.partition(" | ")
        beside = f"{stock} | {plain.clock:.3f} s | {plain.processor:.3f} s" if plain else "— | — | —"
        rows.append(f"| {mine} | {ours.clock:.3f} s | {ours.processor:.3f} s | {beside} |")
    text = f"""# The registry with {N_VERSIONS:,} versions and {N_ENTRIES:,} ledger entries, {benchmark.TODAY}

{benchmark.describe_command("registry")}: medians of {n_rounds} rounds after one to warm up, on SQLite.
{machine}; load average at the end {os.getloadavg()[0]:.1f}.
Every call here reads the whole ledger and checks its chain of hashes. On a machine that others use, the clock says how
busy they are; the processor's time says what the call costs.

| call | here, clock | here, processor | plain MLflow's call | clock | processor |
|---|---:|---:|---|---:|---:|
{chr(10).join(rows)}

## A promotion on a verdict over {N_ROWS:,} rows

Eight columns, a champion, four gates besides those that are always asked; a small ledger.

| promotion | clock | processor |
|---|---:|---:|
| the check is done again | {again.clock:.3f} s | {again.processor:.3f} s |
| the verdict is believed, the model's files are compared | {believed.clock:.3f} s | {believed.processor:.3f} s |"""
    benchmark.write_report("registry", [text])


if __name__ == "__main__":
    main()
