"""Real servers for tests: PostgreSQL on a socket of its own, and MLflow's server on a port of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.error import URLError

import psycopg
import pytest

from mlops_lib.engines import warm

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SETTINGS = {
    "listen_addresses": "''",  # only the Unix socket, in a folder of its own
    "fsync": "off",  # the cluster lives as long as the tests
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",  # sixteen processes, each with two pools, and a server
    "shared_buffers": "32MB",
}


@dataclass(frozen=True)
class Postgres:
    """A running cluster. ``folder`` holds its socket."""

    folder: Path

    def uri(self, database: str) -> str:
        """Return the store URI of a database."""
        return f"postgresql+psycopg://mlops@/{database}?host={self.folder}"

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Run one statement outside any transaction, as CREATE DATABASE wants it."""
        with psycopg.connect(host=str(self.folder), user="mlops", dbname=database, autocommit=True) as connection:
            connection.execute(sql)

    def create(self, template: str = "template1") -> str:
        """Create a database, empty or as a copy of another one that nobody is connected to; return its store URI."""
        name = f"store_{next(_numbers)}"
        self.execute(f'create database "{name}" template "{template}"')
        return self.uri(name)


_numbers = count(1)


@contextlib.contextmanager
def own_kernel_server(*unset: str) -> Iterator[Path]:
    """Give what runs inside a kernel server of its own, without some environment variables; yield its folder."""
    folder = Path(tempfile.mkdtemp(prefix="mk-"))  # unlike tmp_path it is short enough for a socket
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_RUNTIME_DIR", str(folder))
        patch.setenv("MLFLOW_DISABLE_AGENT_HINT", "true")
        for name in unset:
            patch.delenv(name, raising=False)
        yield folder
        warm.stop()
    shutil.rmtree(folder)


@contextlib.contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Start a cluster on a Unix socket, as the user ``postgres`` where we are root, and remove it in the end."""
    programs = find_postgres()
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="mlops-postgres-") as name:  # a socket's path must be short
        folder = Path(name)
        if user:
            postgres = pwd.getpwnam("postgres")
            os.chown(folder, postgres.pw_uid, postgres.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", str(folder / "data"), *arguments]
            with (folder.parent / f"{folder.name}.log").open("wb") as log:  # a pipe would wait for the cluster's end
                done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False, **user)
            said = Path(log.name).read_text(encoding="utf-8", errors="replace")
            Path(log.name).unlink()
            assert done.returncode == 0, f"{' '.join(command)}: {said}"

        run("initdb", "-U", "mlops", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        with (folder / "data/postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{key} = {value}\n" for key, value in SETTINGS.items())
            file.write(f"unix_socket_directories = '{folder}'\n")
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"))
        try:
            yield Postgres(folder)
        finally:
            run("pg_ctl", "stop", "-m", "immediate")


def find_postgres() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where there is none, or fail it in CI."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for folder in folders:
        if (folder / "initdb").is_file():
            return folder
    return absent("PostgreSQL's programs are not installed; ci/setup-postgres installs Debian's")


def absent(what: str) -> Path:
    """Skip on a user's machine, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_server(uri: str, folder: Path, *options: str) -> Iterator[str]:
    """Run ``ci/server`` on a free port; yield its address. Its state is in ``folder``."""
    address = f"127.0.0.1:{(port := free_port())}"
    command = [str(ROOT / "ci/server"), "--state", str(folder), "--port", str(port), *options]
    with running(command, {"MLFLOW_BACKEND_STORE_URI": uri}, folder / "log") as begun:
        wait_for(f"http://{address}/health", begun, folder / "log")
        yield f"http://{address}"


@contextlib.contextmanager
def run_mlflow(uri: str, folder: Path, *, is_proxy: bool = True) -> Iterator[str]:
    """Run MLflow's server on a free port, artifacts in ``folder``, proxied as it comes or named; yield its address."""
    address = f"127.0.0.1:{(port := free_port())}"
    command = [str(BIN / "mlflow"), "server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    place = ["--artifacts-destination"] if is_proxy else ["--no-serve-artifacts", "--default-artifact-root"]
    command += [*place, str(folder / "artifacts")]
    with running(command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, folder / "log") as begun:
        wait_for(f"http://{address}/health", begun, folder / "log")
        yield f"http://{address}"


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and end all of it in the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with log.open("ab") as stream:
        begun = subprocess.Popen(
            command, stdout=stream, stderr=stream, env={**clean, **environment}, start_new_session=True, cwd=log.parent
        )
    try:
        yield begun
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            begun.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGKILL)
        begun.wait()


def wait_for(address: str, begun: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an address answers."""
    while begun.poll() is None:  # how long it may take is the limit of the test
        with contextlib.suppress(URLError, OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(f"{address} ended before it answered:\n{log.read_text(encoding='utf-8', errors='replace')}")
