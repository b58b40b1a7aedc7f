"""The first use of a store: many at once, or killed in the middle; MLflow alone beside it."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow.store.db.utils
import psycopg
import pytest
import servers
import workers
from mlflow.tracking import MlflowClient
from rounds import rounds, soak, wait_until
from sqlalchemy import make_url

from mlops_lib.programs import operate
from mlops_lib.tracking import store

Record = Callable[..., None]


def uri_of(path: Path) -> str:
    return f"sqlite:///{path}"


def raise_for_integrity(path: Path) -> None:
    """Ask SQLite itself, and MLflow's own schema version."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        heads = database.execute("select version_num from alembic_version").fetchall()
    assert heads == [(mlflow.store.db.utils._get_latest_schema_revision(),)]


def is_usable_by_mlflow(path: Path) -> bool:
    """Return whether MLflow itself can open a store."""
    try:
        return bool(MlflowClient(uri_of(path)).search_experiments())
    except Exception:  # noqa: BLE001 - whatever it says
        return False


def kill_during_first_use(use: Callable[[str], object], uri: str, delay_s: float, begun: Callable[[], bool]) -> None:
    """Start a first use in another process and kill it some time after it has begun."""
    victim = workers.start(use, uri)
    wait_until(begun, every_s=0.005)
    time.sleep(delay_s)
    victim.kill()
    victim.join()


# --- at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [2, 6])
def test_processes_that_use_a_fresh_store_at_once_all_succeed(tmp_path: Path, n_processes: int, record: Record) -> None:
    path = tmp_path / "new/mlflow.db"
    assert workers.run_at_once(workers.use_store, [(uri_of(path),)] * n_processes) == [1] * n_processes
    raise_for_integrity(path)
    assert {file.name for file in path.parent.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}
    record(1, ours="all succeed, on SQLite and on PostgreSQL")


def test_six_processes_that_use_a_fresh_store_at_once_fail_with_mlflow_alone(tmp_path: Path, record: Record) -> None:
    for attempt in range(5):
        answers = workers.run_at_once(workers.use_plain_store, [(uri_of(tmp_path / f"{attempt}.db"),)] * 6)
        if any(isinstance(answer, Exception) for answer in answers):
            record(1, plain="some fail with a raw database error")
            return
    pytest.fail("MLflow's first use has become safe: say so in docs/reliability.md")


def test_processes_that_use_a_fresh_postgresql_at_once_all_succeed(postgres: servers.Postgres, record: Record) -> None:
    uri = postgres.create()
    assert workers.run_at_once(workers.use_store, [(uri,)] * 6) == [1] * 6
    record(1, ours="all succeed, on SQLite and on PostgreSQL")


# --- killed ------------------------------------------------------------------------------------------------------


@soak
@pytest.mark.parametrize("delay_s", rounds((0.05, 0.5), tuple(n / 25 for n in range(50))))
def test_a_process_killed_while_it_builds_the_store_hurts_nobody(
    tmp_path: Path, delay_s: float, record: Record
) -> None:
    path = tmp_path / "mlflow.db"
    kill_during_first_use(workers.use_store, uri_of(path), delay_s, lambda: bool(list(tmp_path.iterdir())))
    assert len(store.connect(uri_of(path)).search_experiments()) == 1
    raise_for_integrity(path)
    assert {file.name for file in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}
    record(2, ours="the next command works")


def test_a_first_use_of_mlflow_alone_that_is_killed_breaks_the_store(tmp_path: Path, record: Record) -> None:
    """It is killed where a migration has copied a table and would drop the old one."""
    path = tmp_path / "mlflow.db"
    victim = workers.start(workers.use_plain_store_and_die, uri_of(path), "alembic.ddl.impl.DefaultImpl.drop_table")
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert not is_usable_by_mlflow(path), "MLflow's first use has become safe: say so in docs/reliability.md"
    record(2, plain="the database can be broken for good")


@pytest.mark.parametrize("delay_s", [0.05, 0.3, 0.9])
def test_a_process_killed_while_it_builds_in_postgresql_hurts_nobody(
    postgres: servers.Postgres, delay_s: float, record: Record
) -> None:
    uri = postgres.create()

    def is_locked() -> bool:
        with psycopg.connect(host=str(postgres.folder), user="mlops", dbname=make_url(uri).database) as connection:
            sql = "select 1 from pg_locks l, pg_database d where l.database = d.oid and datname = current_database()"
            return connection.execute(f"{sql} and locktype = 'advisory'").fetchone() is not None

    kill_during_first_use(workers.use_store, uri, delay_s, is_locked)
    assert workers.run_at_once(workers.use_store, [(uri,)] * 2) == [1, 1]
    record(2, ours="the next command works")


def die_while_writing(path: Path, *, is_emptied: bool) -> None:
    """Leave the journal of a killed process, beside what it had written of the database or beside an empty file."""
    script = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('pragma cache_size = 1')\n"  # so that pages reach the file before the end
        "database.execute('begin immediate')\n"
        "database.execute('create table half (x)')\n"
        "database.executemany('insert into half values (?)', [('y' * 4000,)] * 500)\n"
        f"{'os.truncate(sys.argv[1], 0)' if is_emptied else ''}\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert path.with_name("mlflow.db-journal").stat().st_size


def test_the_journal_of_a_killed_first_use_does_not_empty_the_store_built_after_it(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    die_while_writing(path, is_emptied=True)
    store.connect(uri_of(path))
    raise_for_integrity(path)
    assert len(store.connect(uri_of(path)).search_experiments()) == 1


def test_a_database_that_a_killed_process_left_half_written_is_rolled_back(
    tmp_path: Path, migrated_store: Path
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated_store / "mlflow.db", path)
    die_while_writing(path, is_emptied=False)
    assert store.connect(uri_of(path)).get_experiment("0").name == "Default"


# --- broken by MLflow --------------------------------------------------------------------------------------------


def test_the_repair_that_is_named_for_a_database_that_mlflow_broke_works(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    path = folder / "mlflow.db"
    shutil.copy(migrated_store / "mlflow.db", path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table _alembic_tmp_latest_metrics (x int)")
    (tmp_path / "project.py").write_text(
        "from pathlib import Path\nfrom mlops_lib.project import Project\n"
        "project = Project('toy', Path(__file__).parent, 'y', ('k',), ('x',), 'a/{period}', 'l/{period}')\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(path))

    def diagnose() -> str:
        (row,) = (row for row in operate.examine(tmp_path / "project.py").rows if row.name == "store")
        return row.reason

    said = diagnose()
    assert "interrupted and left table '_alembic_tmp_latest_metrics'" in said
    repair = re.search(r"`(mv .+)`", said)
    assert repair
    subprocess.run(repair[1], shell=True, check=True)
    assert diagnose() == "there is none yet: the first run makes it"
    store.connect(uri_of(path))
    assert diagnose() == ""
    raise_for_integrity(path)
    assert path.with_name("mlflow.db.broken").exists()


# --- forks -------------------------------------------------------------------------------------------------------


def test_a_forked_process_does_not_talk_on_its_parents_connection(postgres_uri: str) -> None:
    """In a process of its own, since this one has threads; MLflow alone mixes up answers here."""
    script = (
        "import os, sys\n"
        "from mlops_lib.tracking import store\n"
        "client = store.connect(sys.argv[1])\n"
        "children = []\n"
        "for _ in range(4):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        try:\n"
        "            found = [len(client.search_experiments()) for _ in range(8)]\n"
        "        except BaseException:\n"
        "            found = []\n"
        "        os._exit(0 if found == [1] * 8 else 1)\n"
        "    children.append(pid)\n"
        "found = [len(client.search_experiments()) for _ in range(8)]\n"
        "codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]\n"
        "print(codes, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, postgres_uri], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[0] * 4} {[1] * 8}"
