"""Opening a database of Postgres for the store: the lock, the schema, then the connections."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from steadyhand.errors import StoreError
from steadyhand.store.migrate import migrate
from steadyhand.store.postgres.connections import (
    ENCODING,
    ENCODING_REMEDY,
    create_postgres_engine,
    parse_postgres_url,
)
from steadyhand.store.postgres.database_lock import DatabaseLock
from steadyhand.store.postgres.event_migration import migrate_with_events
from steadyhand.store.readers import CONNECTIONS

_IDLE_SECONDS = 8
_MIGRATION_LOCK = 0x5374_6561_6479_0002
"""The number of the advisory lock under which one node at a time migrates."""


def open_postgres_engines(url: str, node: str) -> tuple[Engine, Engine, DatabaseLock]:
    """Return the engines of a node for writes and for reads, and the lock of its name, which is held."""
    parameters = parse_postgres_url(url)
    lock = DatabaseLock(parameters, node)
    try:
        lock.acquire()
        write = partial(create_postgres_engine, parameters, purpose="writer", connections=1)
        write_engine = write(before_use=lock.ensure, idle_seconds=_IDLE_SECONDS)
        migrate_with_events(partial(_begin_migration, write_engine), migrate)
        read_engine = create_postgres_engine(
            parameters, purpose="reader", connections=CONNECTIONS, read_only=True
        )
    except (SQLAlchemyError, psycopg.Error) as error:
        lock.release()
        raise StoreError(f"The database cannot be opened: {_reason(error)}") from error
    except BaseException:  # the lock is not for who gets an error
        lock.release()
        raise
    return write_engine, read_engine, lock


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        _check_encoding(connection)
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK:d})"))
        yield connection


def _check_encoding(connection: Connection) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != ENCODING:
        raise StoreError(f"The database has the encoding {encoding}; {ENCODING_REMEDY}")


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())
