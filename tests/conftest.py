"""What every test may use: a toy project with real files, a real store, real models."""
# ruff: noqa: E402

from __future__ import annotations

import gc

gc.disable()  # imports make a million objects that stay; ``pytest_collection_finish`` enables it again
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import pytest
import servers
from rounds import VARIABLE
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xdist.scheduler import LoadScopeScheduling

from mlops_lib import contracts, data, quality, registry, tracking
from mlops_lib.engines.warm import without_grammar
from mlops_lib.gates import ContractCompatible, NoWorse, Threshold
from mlops_lib.project import Project
from mlops_lib.tracking import store

with without_grammar():
    import nbformat  # noqa: F401 - before any test imports it with 1 s of grammar

ROOT = Path(__file__).resolve().parent.parent
os.environ["MLOPS_WARM"] = "0"  # no test meets a server that its user has started; test_warm_commands starts its own
os.environ["MLOPS_STATE_DIR"] = ""  # the stores of tests come and go under one name: nothing is remembered of them
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it, and all that it starts
FEATURES = ("color", "size", "weight")


def make_rows(n_rows: int, *, seed: int, start: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return arrivals and labels of a toy world: big red things break."""
    rng = np.random.default_rng(seed)
    arrivals = pd.DataFrame(
        {
            "thing_id": np.arange(start, start + n_rows),
            "arrived_at": pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(n_rows), unit="min"),
            "color": pd.array(rng.choice(["red", "green", "blue"], n_rows), dtype="str"),
            "size": rng.normal(10, 2, n_rows),
            "weight": rng.normal(5, 1, n_rows),
        }
    )
    logit = 1.5 * (arrivals["color"] == "red") + (arrivals["size"] - 10) / 2 - 1
    broke = (rng.random(n_rows) < 1 / (1 + np.exp(-logit))).astype("int64")
    labels = pd.DataFrame({"thing_id": arrivals["thing_id"], "broke": broke, "labelled_at": arrivals["arrived_at"]})
    return arrivals, labels


def make_model(C: float = 1.0, *, features: tuple[str, ...] = FEATURES) -> Pipeline:  # noqa: N803 - scikit-learn's letter
    """Return an unfitted pipeline for the toy world."""
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["color"]), (StandardScaler(), list(features[1:]))
    )
    return make_pipeline(columns, LogisticRegression(C=C))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rounds``."""
    parser.addoption("--rounds", choices=("few", "many"), default="few", help="how often races and kills are repeated")


def pytest_configure(config: pytest.Config) -> None:
    """Tell the tests, and the processes that they start, how many rounds there are (tests/rounds.py)."""
    os.environ[VARIABLE] = config.getoption("rounds")


# What is started first, so that it is not what the others wait for; the other groups are the files.
LONGEST = ["http", "test_spark.py", "postgres", "test_sweep.py", "test_warm_commands.py", "test_browser.py"]
LONGEST += ["test_check.py"]
# Files whose tests need the server or the cluster, and do not say so by a parameter.
OF_A_STORE = {"test_lost_answer.py": "http", "test_server.py": "http", "test_first_use.py": "postgres"}


def group_of(nodeid: str) -> str:
    """Return the tests that one process runs together: a file's, or those that need the MLflow server or PostgreSQL."""
    file = nodeid.partition("::")[0].rpartition("/")[2]
    store_of = re.search(r"[\[-](http|postgres)[\]-]", nodeid)
    return OF_A_STORE.get(file) or (store_of[1] if store_of else file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first."""
    order = {group: n for n, group in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(LONGEST)))


class GroupScheduling(LoadScopeScheduling):
    """Hands out whole groups: a server, a Spark or a warm kernel is started once, not once in each process.

    pytest-xdist's own ``--dist loadgroup`` groups nothing under pytest 9.2, and does not say so
    (github.com/pytest-dev/pytest-xdist/issues/1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Return the scheduler for ``-n``."""
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: it would look through a million objects again and again."""
    collect_rarely()


def collect_rarely() -> None:
    """Let the garbage collector look at what comes from now on, and less often than Python does."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a folder that has the same name for every test of this process; what a test has left in it is kept.

    MLflow keeps what it knows of a store by its URI, and SQLAlchemy each statement that it has compiled for it: at
    another path every test would begin with 0.1 s of both.
    """
    folder = tmp_path_factory.getbasetemp() / "now"
    folder.mkdir()
    yield folder
    name = re.sub(r"\W", "_", request.node.name)[:30]
    folder.rename(tmp_path_factory.mktemp(name))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed numpy: an estimator of a test without ``random_state`` is the same one in every run."""
    np.random.seed(0)


@pytest.fixture(autouse=True)
def closed_databases() -> Iterator[None]:
    """Close each test's databases: MLflow keeps an engine for every URI it has seen, with its files open."""
    yield
    close_databases()


def close_databases() -> None:
    """Close every connection that MLflow's stores hold open in this process."""
    for name in ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"):
        module = sys.modules.get(name)
        for engine in list(module.SqlAlchemyStore._engine_map.values()) if module else ():
            engine.dispose()


@pytest.fixture
def record() -> Callable[..., None]:
    """Return what notes an observation for docs/reliability.md: ``record(4, plain="…", ours="…")``, after asserting it.

    The numbers are those of ``CASES`` in ci/reliability.py. Sentences hold no figure that another run may not repeat.
    """

    def note(case: int, *, plain: str | None = None, ours: str | None = None) -> None:
        if file := os.environ.get("MLOPS_RELIABILITY"):
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"case": case, "plain": plain, "ours": ours}) + "\n")

    return note


@pytest.fixture
def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first of the test processes has filled."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            close_databases()
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a fresh MLflow database and the toy project's tables, made once."""

    def make(folder: Path) -> None:
        store.connect(f"sqlite:///{folder / 'mlflow.db'}")
        for index, period in enumerate(("p1", "p2", "p3")):
            arrivals, labels = make_rows(1000, seed=index, start=1000 * index)
            data.write_table(arrivals, folder / f"data/arrivals/{period}.parquet")
            data.write_table(labels, folder / f"data/labels/{period}.parquet")

    return make_once(tmp_path_factory, "store", make)


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """Return a PostgreSQL cluster of this test process; its database ``migrated`` is a fresh MLflow store to copy."""
    with servers.run_postgres() as cluster:
        cluster.execute("create database migrated")
        store.connect(cluster.uri("migrated"))
        close_databases()  # a database that is copied must have no visitors
        yield cluster


@pytest.fixture
def postgres_uri(postgres: servers.Postgres) -> str:
    """Return the URI of a fresh MLflow store in PostgreSQL, for this test alone."""
    return postgres.create("migrated")


@pytest.fixture(scope="session")
def server_uri(postgres: servers.Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of an MLflow server over PostgreSQL with two workers and proxied artifacts, for every test."""
    with servers.run_server(postgres.create("migrated"), tmp_path_factory.mktemp("server"), "--no-auth") as address:
        yield address


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[str]:
    """Return the address of MLflow's server as it comes, with one worker over SQLite."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copy(migrated_store / "mlflow.db", folder)  # the server would build its schema first
    with servers.run_mlflow(f"sqlite:///{folder / 'mlflow.db'}", folder) as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres", "http"])
def any_store_project(request: pytest.FixtureRequest, project: Project) -> Project:
    """Return the toy project on SQLite, on PostgreSQL directly and on a server; there its name is one of its own."""
    if request.param == "postgres":
        return on_postgres(project, request.getfixturevalue("postgres_uri"))
    if request.param == "http":
        address = request.getfixturevalue("server_uri")
        return replace(project, tracking_uri=address, name=f"toy-{uuid.uuid4().hex[:8]}")
    return project


def on_postgres(project: Project, uri: str) -> Project:
    """Return a project on a PostgreSQL store; MLflow would put artifacts below whatever folder it runs in."""
    client = store.connect(uri)
    for name in (project.name, f"{project.name}.ledger"):
        client.create_experiment(name, artifact_location=(project.root / "mlartifacts" / name).as_uri())
    return replace(project, tracking_uri=uri)


@pytest.fixture
def project(tmp_path: Path, migrated_store: Path) -> Project:
    """Return a toy project in ``tmp_path``: three periods of rows, a store of its own, an actor."""
    return make_project(tmp_path, migrated_store)


def make_project(folder: Path, migrated_store: Path) -> Project:
    """Copy the toy project into a folder."""
    shutil.copy(migrated_store / "mlflow.db", folder / "mlflow.db")
    shutil.copytree(migrated_store / "data", folder / "data")
    return project_in(folder)


def project_in(folder: Path) -> Project:
    """Return the toy project of a folder."""
    found = Project(
        name="toy",
        root=folder,
        target="broke",
        keys=("thing_id",),
        features=FEATURES,
        arrivals="data/arrivals/{period}.parquet",
        labels="data/labels/{period}.parquet",
        gates=(Threshold("roc_auc", 0.6), NoWorse("roc_auc", margin=0.02), ContractCompatible()),
        slices=("color",),
    )
    # The environment that load_project gives: another one would be another warm server, with 4 s of imports.
    return replace(found, tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", actor="ada", environ={**os.environ})


def log_toy_model(project: Project, *, C: float = 1.0) -> tracking.LoggedModel:  # noqa: N803
    """Train on period p1 and log; return what was logged."""
    rows = data.read_labelled(project, "p1")
    X, y = rows[list(project.features)], rows[project.target]
    model = make_model(C, features=project.features).fit(X, y)
    contract = contracts.infer_contract(rows, features=project.features, keys=project.keys)
    profile = quality.build_profile(rows, columns=project.features)
    with tracking.start_run(project):
        return tracking.log_model(
            project, model, X, keys=rows[["thing_id"]], contract=contract.to_dict(), profile=profile.to_dict()
        )


def register_model(project: Project, *, C: float = 1.0) -> registry.Version:  # noqa: N803
    """Train on period p1, log and register; return the version."""
    logged = log_toy_model(project, C=C)
    return registry.register(project, logged.model_uri, metrics={"val_roc_auc": 0.75}, description=f"C={C}")


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Project:
    """Return a toy project in whose store version 1 is registered, made once; tests leave it as it is."""

    def make(folder: Path) -> None:
        register_model(make_project(folder, migrated_store))

    return project_in(make_once(tmp_path_factory, "registered", make))


@pytest.fixture(scope="session")
def first(registered: Project) -> registry.Version:
    """Return the version of ``registered``, read once."""
    return registry.get_version(registered, 1)


@pytest.fixture
def version(project: Project, registered: Project, first: registry.Version) -> registry.Version:
    """Return version 1 of the toy model, in dev."""
    copy_store(registered, project)
    store.connect(project.tracking_uri)
    return first


@pytest.fixture(scope="session")
def registered_twice(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path, registered: Project) -> Project:
    """Return a toy project like ``registered`` with another version 2, made once; tests leave it as it is."""

    def make(folder: Path) -> None:
        found = make_project(folder, migrated_store)
        copy_store(registered, found)
        register_model(found, C=0.5)

    return project_in(make_once(tmp_path_factory, "registered_twice", make))


@pytest.fixture
def second(project: Project, version: registry.Version, registered_twice: Project) -> registry.Version:
    """Return version 2 of the toy model, in dev; version 1 is that of ``version``."""
    close_databases()  # ``version`` has looked into the file that is replaced here
    copy_store(registered_twice, project)
    return registry.get_version(project, 2)


def copy_store(source: Project, target: Project) -> None:
    """Give a project a copy of another one's store, its paths made its own: faster than doing everything again."""
    shutil.copy(source.root / "mlflow.db", target.root / "mlflow.db")
    shutil.rmtree(target.root / "mlartifacts", ignore_errors=True)
    shutil.copytree(source.root / "mlartifacts", target.root / "mlartifacts")
    columns = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
    with contextlib.closing(sqlite3.connect(target.root / "mlflow.db")) as database, database:
        for table, column in {**columns, "model_versions": "storage_location"}.items():
            sql = f"update {table} set {column} = replace({column}, ?, ?)"
            database.execute(sql, (source.root.as_uri(), target.root.as_uri()))
