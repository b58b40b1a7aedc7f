"""The store: safe at first use, and refused by name when it is not one."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from refusals import raises

from mlops_lib import registry
from mlops_lib.errors import (
    MlopsError,
    ProjectError,
    StoreError,
)
from mlops_lib.project import Project
from mlops_lib.tracking import store


def uri_of(path: Path) -> str:
    return f"sqlite:///{path}"


def raise_for_integrity(path: Path) -> None:
    """Ask SQLite itself, and MLflow's own schema version."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert len(database.execute("select version_num from alembic_version").fetchall()) == 1


# --- first use ---------------------------------------------------------------------------------------------------


def test_a_store_that_is_there_is_left_as_it_is(tmp_path: Path, migrated_store: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated_store / "mlflow.db", path)
    store.connect(uri_of(path)).create_experiment("mine")
    assert store.connect(uri_of(path)).get_experiment_by_name("mine") is not None


def test_an_empty_file_counts_as_a_fresh_store(tmp_path: Path) -> None:
    """MLflow's own first connection may have been interrupted before it wrote a byte."""
    path = tmp_path / "mlflow.db"
    path.touch()
    store.connect(uri_of(path))
    raise_for_integrity(path)


def test_artifacts_go_beside_the_store_whatever_the_working_folder(
    tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(migrated_store / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.chdir("/")
    uri = uri_of(tmp_path / "mlflow.db")
    client = store.connect(uri)
    experiment = client.get_experiment(store.get_experiment_id(client, uri, "toy"))
    assert experiment.artifact_location == f"{tmp_path.as_uri()}/mlartifacts/toy"
    assert store.get_experiment_id(client, uri, "toy") == experiment.experiment_id


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_database_that_mlflow_broke_is_named(tmp_path: Path, migrated_store: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated_store / "mlflow.db", path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table _alembic_tmp_latest_metrics (x int)")
    with pytest.raises(StoreError, match=r"interrupted and left table '_alembic_tmp_latest_metrics'"):
        store.connect(uri_of(path))


def test_a_sqlite_file_of_somebody_else_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table songs (title text)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"a SQLite file but not an MLflow store"):
        store.connect(uri_of(path))
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"file is not a database"):
        store.connect(uri_of(path))
    assert path.read_bytes() == b"no database at all" * 100


def test_a_database_cut_in_half_is_refused(tmp_path: Path, migrated_store: Path) -> None:
    content = (migrated_store / "mlflow.db").read_bytes()
    path = tmp_path / "mlflow.db"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"SQLite says"):
        store.connect(uri_of(path))


@pytest.fixture
def read_only_store(tmp_path: Path, migrated_store: Path) -> Iterator[Path]:
    """Return a store in a folder that even root cannot write to."""
    source, folder = tmp_path / "source", tmp_path / "read-only"
    source.mkdir()
    folder.mkdir()
    shutil.copy(migrated_store / "mlflow.db", source / "mlflow.db")
    for command in (["mount", "--bind", source, folder], ["mount", "-o", "remount,ro,bind", folder]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user cannot mount a folder read-only")
    yield folder / "mlflow.db"
    subprocess.run(["umount", folder], check=True)


def test_a_read_only_store_is_told(read_only_store: Path) -> None:
    with pytest.raises(StoreError, match=r"read-only for this user"):
        store.connect(uri_of(read_only_store))


def test_a_fresh_store_in_a_read_only_folder_is_told(read_only_store: Path) -> None:
    with pytest.raises(StoreError, match=r"[Rr]ead-only"):
        store.connect(uri_of(read_only_store.with_name("new.db")))


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(StoreError, "unreachable"):
        store.connect(uri_of(tmp_path / "file/mlflow.db"))


def test_a_project_that_was_imported_instead_of_loaded_is_told_what_it_lacks(tmp_path: Path) -> None:
    imported = Project(name="toy", root=tmp_path)
    with pytest.raises(ProjectError, match=r"`load_project\(\)` returns it with the store"):
        registry.history(imported)


def test_a_server_that_is_down_is_told(closed_port: int) -> None:
    with pytest.raises(StoreError, match=r"Connection refused"):
        store.connect(f"http://127.0.0.1:{closed_port}")


def test_a_server_that_takes_calls_but_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONNECT_TIMEOUT_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(StoreError, match=r"no answer in 0.3 s"),
    ):
        store.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_does_not_speak_http_is_told() -> None:
    def talk() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(StoreError, match=r"does not speak HTTP"):
            store.connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_server_behind_which_mlflow_is_down_is_told() -> None:
    class BadGateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), BadGateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError, match=r"HTTP status 502"):
            store.connect(f"http://127.0.0.1:{server.server_port}/mlflow")
        server.shutdown()


@pytest.mark.parametrize(
    "uri",
    [
        "http://ada:s3cret@127.0.0.1:{port}",
        "http://ada:s3cret@127.0.0.1:port",
        "https://ada:s3cret@127.0.0.1:{port}",
        "postgresql+psycopg://ada:s3cret@127.0.0.1:{port}/mlflow",
        "postgresql+nodriver://ada:s3cret@127.0.0.1:{port}/mlflow",
        "nothing://ada:s3cret@127.0.0.1:{port}",
    ],
)
def test_a_password_is_never_shown(uri: str, closed_port: int) -> None:
    uri = uri.format(port=closed_port)
    with pytest.raises(MlopsError) as caught:
        store.connect(uri)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)
    assert "ada:***@" in str(caught.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///", "file:///tmp/mlruns", "nothing://x"])
def test_a_store_of_an_unsafe_or_unknown_kind_is_told(uri: str) -> None:
    with raises(StoreError, "unreachable"):
        store.connect(uri)


def test_paths_and_passwords_of_ordinary_addresses_are_left_alone() -> None:
    assert store.without_password("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"
    assert store.without_password("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert store.sqlite_path("http://127.0.0.1:5000") is None
    assert store.artifact_root("http://127.0.0.1:5000") is None
