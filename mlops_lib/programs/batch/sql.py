"""Databases: connect, quote, and say what is wrong without showing a password."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from mlops_lib.errors import TableError
from mlops_lib.tracking import store


def name_table(url: str, table: str) -> str:
    """Return ``URL::table`` without its password."""
    return f"{store.without_password(url)}::{table}"


@contextlib.contextmanager
def connected(url: str, name: str, *, must_exist: bool = False) -> Iterator[sa.Connection]:
    """Yield a connection in one transaction, committed at the end; what fails is told with ``name``.

    Raises
    ------
    TableError
        Nothing was committed.
    """
    path = store.sqlite_path(url)
    if must_exist and path is not None and not path.is_file():
        raise TableError("database", name=name, reason=f"there is no file '{path}'")
    engine: sa.Engine | None = None
    try:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            yield connection
    except ImportError as error:
        raise TableError("database", name=name, reason=f"its driver is not installed ({error})") from error
    except SQLAlchemyError as error:
        reason, cause = store.explain(getattr(error, "orig", None) or error, url)
        raise TableError("database", name=name, reason=reason.rstrip(".")) from cause
    finally:
        if engine is not None:
            engine.dispose()


def quote(connection: sa.Connection, table: str) -> str:
    """Return a table's or column's name quoted (``schema.table`` part by part), or a query in brackets."""
    if table.lower().split(maxsplit=1)[0] in ("select", "with") and " " in table:
        return f"({table.rstrip('; ')})"
    return ".".join(connection.dialect.identifier_preparer.quote(part) for part in table.split("."))
