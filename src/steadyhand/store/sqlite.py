"""The engines of SQLite in WAL mode."""

import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from steadyhand.errors import ConfigError, StoreError
from steadyhand.store.database_url import require_known_scheme
from steadyhand.store.migrate import migrate
from steadyhand.store.readers import CONNECTIONS

BUSY_TIMEOUT_MS = 5000
"""The time that SQLite waits for the file lock of another process, such as a backup or a shell."""


def parse_sqlite_url(url: str) -> URL:
    """Parse a database URL. Raise `ConfigError` unless it names a SQLite file."""
    require_known_scheme(url)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database_url is not a URL; try sqlite:////path/to/steadyhand.db") from error
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(
            f"database_url: {parsed.get_backend_name()} is not supported; sqlite and postgresql are."
        )
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError("database_url: the store must be a file, because it outlives the process.")
    return parsed


def open_sqlite_engines(url: URL) -> tuple[Engine, Engine]:
    """Return the engines for writes and for reads of a database, which is created or migrated if needed."""
    try:
        create_private_file(Path(str(url.database)))
        write_engine = create_sqlite_engine(url, connections=1, begin="BEGIN IMMEDIATE")
        with write_engine.begin() as connection:
            migrate(connection)
        read_engine = create_sqlite_engine(url, connections=CONNECTIONS, begin="BEGIN", read_only=True)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(f"The database cannot be opened: {error}") from error
    return write_engine, read_engine


def create_private_file(path: Path) -> None:
    """Create the file with access for the service only; SQLite copies the mode to the files beside it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def create_sqlite_engine(url: URL, *, connections: int, begin: str, read_only: bool = False) -> Engine:
    """Return an engine whose transactions start with `begin` and whose commits are on disk when they return."""
    engine = create_engine(url, pool_size=connections, max_overflow=0, connect_args={"isolation_level": None})
    event.listen(engine, "connect", partial(_set_pragmas, read_only=read_only))
    # The driver would begin a transaction itself, too late for reads and without IMMEDIATE; this turns it off.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _set_pragmas(connection: Any, _record: Any, *, read_only: bool) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA query_only = {int(read_only)}")
    cursor.close()
