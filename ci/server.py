"""Start MLflow's server for a team: PostgreSQL behind it, accounts in front of it, exact host names, artifacts proxied.

Builds the schema first, under a lock, so that its workers find it whole. Refuses to listen to other machines without
accounts. Everything secret is made once and kept in the state folder, readable by its user only.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import sys
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from mlops_lib.errors import MlopsError

EPILOG = """example:
  ci/server postgresql+psycopg://mlops:…@db.example.org/mlflow --state /srv/mlops
  ci/server postgresql+psycopg://… --state /srv/mlops --name mlflow.example.org   (behind a proxy that speaks TLS)

The URI may also stand in MLFLOW_BACKEND_STORE_URI, where 'ps' does not show it.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/server",
        description="MLflow's server for a team: PostgreSQL, accounts, exact host names, proxied artifacts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = os.environ.get("MLFLOW_BACKEND_STORE_URI")
    parser.add_argument("uri", nargs="?", default=known, metavar="POSTGRES_URI", help="postgresql+psycopg://…")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    parser.add_argument("--state", type=Path, required=True, help="folder for secrets, and for artifacts by default")
    parser.add_argument("--artifacts", help="where artifacts go: a folder or a bucket (default: STATE/artifacts)")
    parser.add_argument("--workers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--name", action="append", default=[], help="host name, with its port if not 443, that clients use; repeatable"
    )
    parser.add_argument("--no-auth", action="store_true", help="no accounts: for a loopback address only")
    options = parser.parse_args(arguments)
    if not options.uri:
        parser.error("name the database, as an argument or in MLFLOW_BACKEND_STORE_URI")
    if not options.uri.startswith("postgresql"):
        parser.error(f"a team's store is in PostgreSQL, not in '{urlsplit(options.uri).scheme}'")
    if not is_loopback(options.host):
        if options.no_auth:
            parser.error(
                f"--no-auth is for loopback addresses: on {options.host} anybody could replace a model's files"
            )
        if not options.name:
            parser.error(
                f"with --host {options.host}, --name says which host names clients use; all others are refused"
            )
    wild = [name for name in options.name if any(letter in name for letter in "*?[/, ")]
    if wild:
        parser.error(f"--name takes one exact name, such as mlflow.example.org or 10.1.2.3:5000, not '{wild[0]}'")
    return options


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keep(path: Path, value: str) -> str:
    """Return what a file of the state folder holds; make it of ``value`` the first time, for this user only."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(value)
    except FileExistsError:
        return path.read_text(encoding="utf-8")
    return value


def build(options: argparse.Namespace) -> None:
    """Build MLflow's schema and, for the accounts, another one beside it: its workers would race for both."""
    from mlops_lib.tracking import store  # noqa: PLC0415 - seconds, and a wrong use is told at once

    store.connect(options.uri)
    if not options.no_auth:
        from mlflow.server.auth.db.utils import migrate_if_needed  # noqa: PLC0415 - it reads the environment
        from sqlalchemy import create_engine  # noqa: PLC0415

        migrate_if_needed(create_engine(options.uri), "head")


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the server's environment: what is secret is not on its command line."""
    names = [f"{options.host}:{options.port}", *options.name]
    if is_loopback(options.host):
        names.append(f"localhost:{options.port}")
    schemes = {name: "http" if name.endswith(f":{options.port}") else "https" for name in names}
    values = {
        "MLFLOW_BACKEND_STORE_URI": options.uri,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(names),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"{scheme}://{name}" for name, scheme in schemes.items()),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if options.no_auth:
        return values
    settings = options.state / "basic_auth.ini"
    settings.unlink(missing_ok=True)  # the database may have moved
    uri = options.uri.replace("%", "%%")  # configparser's own sign
    keep(settings, f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {uri}\nadmin_username = admin\n")
    return {
        **values,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keep(options.state / "admin-password", secrets.token_urlsafe(24)),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keep(options.state / "secret-key", secrets.token_urlsafe(48)),
    }


def main(arguments: list[str]) -> NoReturn:
    options = parse(arguments)
    options.state = options.state.resolve()
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ.update(environment(options))
    try:
        build(options)
    except MlopsError as error:
        sys.exit(str(error))
    lines = [f"export MLFLOW_TRACKING_URI={address(options)}"]
    if not options.no_auth:
        lines.append("export MLFLOW_TRACKING_USERNAME=admin")
        lines.append(f'export MLFLOW_TRACKING_PASSWORD="$(cat {options.state}/admin-password)"')
    if not is_loopback(options.host):
        lines.append("# passwords travel as they are: put a proxy that speaks TLS in front of this address")
    print("\n".join(lines), flush=True)
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", options.host]
    command += ["--port", str(options.port), "--workers", str(options.workers)]
    command += ["--artifacts-destination", options.artifacts or f"{options.state}/artifacts"]
    # With asyncio's loop uvicorn's workers leave Nagle's algorithm on, and each answer waits 40 ms for its second half.
    command += ["--uvicorn-opts", "--loop uvloop"]
    command += [] if options.no_auth else ["--app-name", "basic-auth"]
    os.chdir(options.state)
    os.execv(command[0], command)


def address(options: argparse.Namespace) -> str:
    return f"https://{options.name[0]}" if options.name else f"http://{options.host}:{options.port}"


if __name__ == "__main__":
    main(sys.argv[1:])
