"""The store for the files of jobs that several nodes share, if the service has one.

On one machine, with SQLite and without `artifacts.url`, there is none, and nothing of it is loaded.
"""

from steadyhand.config.settings import Settings
from steadyhand.ports.artifacts import Artifacts
from steadyhand.store import SqlStore
from steadyhand.store.database_url import is_postgres_url

PROGRESS_SECONDS = 5.0
"""The shortest time between two times at which the work of a run is stored."""


def shares_artifacts(settings: Settings) -> bool:
    """Return True if the files of jobs are stored for other nodes."""
    tables = settings.tables
    return tables.artifacts.url is not None or is_postgres_url(tables.service.database_url or "")


def open_artifacts(settings: Settings, store: SqlStore) -> Artifacts | None:
    """Return the shared store of files; None if the files of jobs are on this machine alone. Raise `ConfigError`."""
    if not shares_artifacts(settings):
        return None
    table, objects = settings.tables.artifacts, None
    if table.url is not None:
        from steadyhand.store.object_store import ObjectBucket  # noqa: PLC0415  # it needs an extra

        objects = ObjectBucket(table.url, table.object_options)
    return store.open_artifacts(table.database_bytes, objects)
