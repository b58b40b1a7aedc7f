"""The MLflow store: one client, connected safely.

MLflow's own first migration of a fresh SQLite file breaks it for good when two processes start at once or one is
killed (measured on 3.17.2). :func:`connect` builds the schema under a lock in a temporary file and renames it into
place. It refuses a server that does not answer, a file that is not writable and a database that was broken earlier,
each with what to do.

>>> client = connect("sqlite:////tmp/example/mlflow.db")  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import logging
import os
import shlex
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

import filelock
import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME, ModelsArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.databricks_utils import get_databricks_host_creds
from mlflow.utils.rest_utils import MlflowHostCreds, http_request
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from mlops_lib.errors import ProjectError, StoreError
from mlops_lib.project import Project, sqlite_uri

CONNECT_TIMEOUT_S = 5.0
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of what is not there: the latter for a malformed id
BUILDING_LOCK = 0x6D6C6F7073  # key of the advisory lock, per database; "mlops" in ASCII
# Columns of MLflow's database that say where artifacts are.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Databases that this process has examined: a file is its URI and inode, so one that was replaced is examined again.
_examined: set[tuple[str, int]] = set()

P = ParamSpec("P")
R = TypeVar("R")


def connect(uri: str, *, create: bool = True) -> MlflowClient:
    """Return a client of the store at ``uri`` and make it MLflow's own, unless a run is open, which may be elsewhere.

    Parameters
    ----------
    uri : str
        ``sqlite:////absolute/path``, ``postgresql+…://…`` or ``http(s)://…``.
    create : bool
        A SQLite file that is missing is created, safely, and one that cannot be written is refused. Who only reads
        creates nothing, and needs no more than to read.

    Raises
    ------
    ProjectError, StoreError
        Nothing was changed.
    """
    if not uri:
        raise ProjectError("not_loaded")
    path, database = sqlite_path(uri), (uri, 0)
    if path is not None:
        if not path.is_absolute():
            raise _unreachable(uri, "a SQLite path must be absolute, or it moves with the working folder")
        if create:
            _create_sqlite(path, uri)
        elif not path.exists():
            raise StoreError("missing", uri=uri)
        if create:
            raise_for_read_only(uri)
        database = (uri, path.stat().st_ino)
        if database not in _examined:
            _raise_for_sqlite(path, uri)
    elif urlsplit(uri).scheme in ("http", "https"):
        _raise_for_server(uri)
    quiet_mlflow()
    if mlflow.active_run() is None:
        _use(uri)
    with translate_connect_errors(uri):
        if database not in _examined:
            with _first_use(uri):
                # This asks for nothing that a user of a shared server may not see.
                MlflowClient(uri, uri).search_experiments(max_results=1)
            _examined.add(database)
        return MlflowClient(uri, uri)


def is_remote(uri: str) -> bool:
    """Return whether a store is reached over HTTP: a server, or a Databricks workspace through MLflow's own client."""
    return urlsplit(uri).scheme in ("http", "https") or urlsplit(uri).scheme == "databricks" or uri == "databricks"


def has_aliases(uri: str) -> bool:
    """Return whether the store keeps aliases of versions; the registry of a Databricks workspace does not."""
    return not is_remote(uri) or urlsplit(uri).scheme in ("http", "https")


def _credentials(uri: str) -> MlflowHostCreds:
    is_workspace = urlsplit(uri).scheme not in ("http", "https")
    found: MlflowHostCreds = get_databricks_host_creds(uri) if is_workspace else get_default_host_creds(uri)
    return found


def may_write(uri: str) -> bool:
    """Return whether this user may write to a SQLite store and beside it; of any other store the store says so."""
    path = sqlite_path(uri)
    return path is None or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def raise_for_read_only(uri: str) -> None:
    """Raise ``StoreError`` unless :func:`may_write`."""
    if not may_write(uri):
        raise StoreError("read_only", uri=uri)


def read_clock(uri: str) -> datetime:
    """Return the time that the store's own clock has: a server's, a database's, or this machine's for a file."""
    if is_remote(uri):
        answer = http_request(_credentials(uri), "/health", "GET")
        return parsedate_to_datetime(answer.headers["Date"]) if "Date" in answer.headers else datetime.now(UTC)
    if sqlite_path(uri) is None:
        with create_engine(uri, poolclass=NullPool).connect() as connection:
            now: datetime = connection.execute(text("select current_timestamp")).scalar_one()
            return now.astimezone(UTC)
    return datetime.now(UTC)


def _use(uri: str) -> None:
    """Make a store MLflow's own. It would tell the environment, where a second project would read it as its user's."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ |= {name: value} if value is not None else {}


def find_experiment_id(client: MlflowClient, uri: str, name: str) -> str | None:
    """Return the id of experiment ``name``, None where it is missing.

    Raises
    ------
    StoreError
        It was deleted, or its artifacts are where the store's folder was before it was moved.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise StoreError("deleted", name=name, uri=without_password(uri), experiment_id=experiment.experiment_id)
    if root := _moved_root(uri, str(experiment.artifact_location)):
        raise StoreError("moved", location=root, uri=uri)
    return str(experiment.experiment_id)


def get_experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of experiment ``name``, creating it where it is missing; artifacts go beside a SQLite store."""
    if (found := find_experiment_id(client, uri, name)) is not None:
        return found
    root = artifact_root(uri)
    with ignore_codes("RESOURCE_ALREADY_EXISTS"):
        return str(client.create_experiment(name, artifact_location=f"{root}/{quote(name)}" if root else None))
    return get_experiment_id(client, uri, name)  # another process was faster


def list_model(model_id: str, *, limit: int) -> dict[str, int | None]:
    """Return the size (bytes, None where the store knows none) of each file that a download gives, and copy none.

    After ``limit`` files and folders it stops: links may lead round in circles.
    """
    repository, folders = ModelsArtifactRepository(f"models:/{model_id}"), [""]
    sizes: dict[str, int | None] = {}
    for folder in folders:
        for file in repository.list_artifacts(folder):
            if file.is_dir:
                folders.append(file.path)
            else:
                sizes[file.path] = file.file_size
        if len(folders) + len(sizes) > limit:
            break
    # The download itself writes this one, over what MLflow's own loader may have left in the store.
    return {**sizes, REGISTERED_MODEL_META_FILE_NAME: None}


def download_model(model_id: str, folder: Path) -> None:
    """Copy a logged model's files to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    ModelsArtifactRepository(f"models:/{model_id}").download_artifacts("", str(folder))


def read_artifact(location: str, name: str) -> str:
    """Return the text of one file at an artifact location.

    Raises
    ------
    FileNotFoundError
        The store is there, the file is not.
    MlflowException
        The store does not answer.
    """
    repository = get_artifact_repository(location)
    try:
        if name in {file.path for file in repository.list_artifacts()}:
            with tempfile.TemporaryDirectory() as folder:
                return Path(repository.download_artifacts(name, folder)).read_text(encoding="utf-8")
    except OSError as error:  # those of requests are OSErrors too
        raise MlflowException(str(error)) from error
    raise FileNotFoundError(f"{location}/{name}")


def quiet_mlflow() -> None:
    """Keep MLflow's own migrations, URLs and copying bars out of notebooks and terminals; warnings stay."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI, or None for any other store; see :func:`mlops_lib.project.sqlite_uri`."""
    scheme, _, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if scheme in ("sqlite", "sqlite+pysqlite") else None


def artifact_root(uri: str) -> str | None:
    """Return where artifacts of a SQLite store go (beside it), or None where a server decides."""
    path = sqlite_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path is not None else None


def find_moved_roots(uri: str) -> list[str]:
    """Return the folders of artifacts that a SQLite store names and that are gone: the store's own was moved."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as database:
        # Experiment 0 is MLflow's own and has nothing of ours.
        found = database.execute("select artifact_location from experiments where experiment_id != 0")
        locations = [location for (location,) in found]
    return sorted({root for location in locations if (root := _moved_root(uri, location or ""))})


def _moved_root(uri: str, location: str) -> str | None:
    """Return the folder of artifacts that a location names, if it is gone and the SQLite store has another by now."""
    root, here = location.partition("/mlartifacts")[0] + "/mlartifacts", artifact_root(uri)
    if here is None or root == here or not location.startswith((f"{root}/", root)) or not root.startswith("file:///"):
        return None
    return None if Path(unquote(urlsplit(root).path)).exists() else root


def relocate_artifacts(uri: str) -> list[str]:
    """Let a SQLite store whose folder was moved or renamed find its artifacts beside it; return what was done."""
    here, gone = str(artifact_root(uri)), find_moved_roots(uri)
    with contextlib.closing(sqlite3.connect(sqlite_path(uri) or ":memory:", timeout=20)) as database, database:
        for root in gone:
            for table, column in LOCATIONS:
                database.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (here, len(root) + 1, len(root) + 1, f"{root}/"),
                )
    return [f"artifacts are looked for in '{here}', no longer in '{root}', which is gone" for root in gone]


@contextlib.contextmanager
def translate_connect_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, the database and its driver say of a first question into our error, without the password."""
    try:
        yield
    except ImportError as error:
        raise _unreachable(uri, f"its driver is not installed: {error}") from error
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        reason, cause = explain(error, uri)
        raise _unreachable(uri, reason) from cause


def translate_errors(function: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
    """Turn what MLflow and the database say in the middle of ``function`` into our error, without the password."""

    @functools.wraps(function)
    def call(project: Project, /, *arguments: P.args, **options: P.kwargs) -> R:
        uri = project.tracking_uri
        try:
            return function(project, *arguments, **options)
        except (MlflowException, SQLAlchemyError) as error:
            reason, cause = explain(error, uri)
            if getattr(error, "error_code", "") == "PERMISSION_DENIED" or "error code 403" in reason:
                raise StoreError("permission", uri=without_password(uri), reason=reason) from cause
            raise StoreError("midway", uri=without_password(uri), reason=reason) from cause

    return call


class ignore_codes:  # noqa: N801 - reads like contextlib.suppress
    """Pass over MLflow's errors of these codes, such as those in :data:`MISSING`."""

    def __init__(self, *codes: str) -> None:
        self.codes = codes

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Say whether the error is passed over."""
        return isinstance(error, MlflowException) and error.error_code in self.codes


def _create_sqlite(path: Path, uri: str) -> None:
    """Build the schema of a fresh SQLite store under a lock, in a temporary file that is renamed into place."""
    if path.exists() and path.stat().st_size:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if path.exists() and path.stat().st_size:
                return
            building = path.with_name(f".{path.name}.building")
            # Of a process that was killed while building: a journal would roll the new file back to nothing.
            beside = (path.with_name(path.name + suffix) for suffix in ("-journal", "-wal", "-shm"))
            for leftover in (*path.parent.glob(f"{building.name}*"), *beside):
                leftover.unlink(missing_ok=True)
            _build_schema(building, artifact_root(uri) or "")
            os.replace(building, path)  # noqa: PTH105 - the name that says atomic
    except PermissionError as error:
        raise StoreError("read_only", uri=uri) from error
    except OSError as error:
        raise _unreachable(uri, error.strerror or str(error)) from error


def _build_schema(path: Path, artifacts: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415 - 0.7 s, once per store

    quiet_mlflow()
    SqlAlchemyStore(sqlite_uri(path), artifacts).engine.dispose()
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Open one connection to a database ourselves, and keep everybody else away while MLflow builds a fresh PostgreSQL.

    MLflow would try for about a hundred seconds to connect, with a wrong password too. The lock is the session's:
    whoever is killed loses it, and the next one builds on what is committed.
    """
    if sqlite_path(uri) is not None or is_remote(uri):
        yield
        return
    _close_in_forks()
    limits = {"connect_timeout": int(CONNECT_TIMEOUT_S)}
    engine = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=limits)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            lock = {"key": BUILDING_LOCK}
            connection.execute(text("select pg_advisory_lock(:key)"), lock)
            if _is_built(connection):
                connection.execute(text("select pg_advisory_unlock(:key)"), lock)
        yield


def _is_built(connection: Connection) -> bool:
    """Return whether the first experiment is there, which is what MLflow makes last."""
    if connection.scalar(text("select to_regclass('experiments')")) is None:
        return False
    return bool(connection.scalar(text("select count(*) from experiments")))


@functools.cache
def _close_in_forks() -> None:
    """Give a forked process connections of its own: MLflow keeps its engines in a class, and a socket has one user."""

    def forget() -> None:
        for name in ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"):
            module = sys.modules.get(name)
            for engine in list(module.SqlAlchemyStore._engine_map.values()) if module else ():
                engine.dispose(close=False)  # closing would end the parent's session

    if hasattr(os, "register_at_fork"):  # elsewhere nothing forks
        os.register_at_fork(after_in_child=forget)


def _raise_for_sqlite(path: Path, uri: str) -> None:
    try:
        # Writable, since a process that was killed while it wrote leaves a journal that has to be rolled back.
        mode = "rw" if may_write(uri) else "ro"
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=20)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise _broken(path, uri, f"SQLite says: {error}") from error
    leftovers = sorted(name for name in tables if name.startswith("_alembic_tmp_"))
    if leftovers:
        raise _broken(path, uri, f"a migration was interrupted and left table '{leftovers[0]}'")
    if "experiments" not in tables:
        raise _broken(path, uri, "it is a SQLite file but not an MLflow store")


def _raise_for_server(uri: str) -> None:
    """Ask for a sign of life ourselves: MLflow would retry for about four minutes.

    Any answer of a web server will do, since not every MLflow has ``/health``; only 5xx means that nobody is at home.
    """
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        if parts.scheme == "https":  # certificates are MLflow's business
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
            return
        connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", f"{parts.path.rstrip('/')}/health")
            status = connection.getresponse().status
    except TimeoutError as error:
        raise _unreachable(uri, f"no answer in {CONNECT_TIMEOUT_S:g} s") from error
    except (OSError, ValueError) as error:
        raise _unreachable(uri, getattr(error, "strerror", "") or str(error)) from error
    except http.client.HTTPException as error:
        raise _unreachable(uri, "what answers there does not speak HTTP") from error
    if status >= 500:
        raise _unreachable(uri, f"it answers with HTTP status {status}")


def _unreachable(uri: str, reason: str) -> StoreError:
    return StoreError("unreachable", uri=without_password(uri), reason=reason)


def _broken(path: Path, uri: str, reason: str) -> StoreError:
    return StoreError("broken", uri=uri, path=shlex.quote(str(path)), reason=reason)


def without_password(uri: str) -> str:
    """Return a URI that can be shown: its password is replaced by stars."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def explain(error: Exception, uri: str) -> tuple[str, Exception | None]:
    """Return an error's first line without the URI's password, and the error as a cause if a traceback may show it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    texts = [line for line in lines if not line.startswith("(raised as a result of")]  # SQLAlchemy's aside
    return (texts or lines)[0][:200].replace(uri, without_password(uri)), None if "@" in uri else error
