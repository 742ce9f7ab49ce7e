"""The durable store of jobs, runs, events and keys: SQLAlchemy Core over SQLite in WAL mode, or Postgres."""

from steadyhand.store.database_url import is_postgres_url
from steadyhand.store.doctor import check_store
from steadyhand.store.lock import DataDirectoryLock
from steadyhand.store.sql_store import SqlStore, open_store

__all__ = ["DataDirectoryLock", "SqlStore", "check_store", "is_postgres_url", "open_store"]
