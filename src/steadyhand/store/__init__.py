"""Jobs, runs, events and keys, durable: SQLAlchemy Core over SQLite in WAL mode."""

from steadyhand.store.checks import check_store
from steadyhand.store.lock import DataDirectoryLock
from steadyhand.store.sql import SqlStore, open_store

__all__ = ["DataDirectoryLock", "SqlStore", "check_store", "open_store"]
