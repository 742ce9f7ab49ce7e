"""Migration of a database to the newest schema, in this process, when it is opened."""

import time
from pathlib import Path

import structlog
from sqlalchemy import Connection, inspect, text

from steadyhand.errors import StoreError
from steadyhand.optional_modules import not_loaded
from steadyhand.store.driver import POSTGRES
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.store.schema_support import check_old_nodes, is_newer, store_support

_CACHE_KIBIBYTES, _DEFAULT_CACHE_KIBIBYTES = 65_536, 2_000


def migrate(connection: Connection) -> None:
    """Migrate the schema inside the connection's transaction; an up-to-date schema needs one query.

    An empty database of Postgres gets the newest schema at once. A newer schema is left alone if this version may use
    it. Raise `SchemaTooNew` if it may not, and `SchemaInUse` if nodes at work are too old for the newest schema.
    """
    revision = _revision(connection)
    if revision == NEWEST_REVISION:
        return
    is_postgres = connection.dialect.name == POSTGRES
    if is_postgres and revision is None:
        from steadyhand.store.postgres.postgres_tables import create_schema  # noqa: PLC0415  # only for this database

        create_schema(connection)
        store_support(connection)
        return
    if revision is not None:
        if is_newer(connection, revision):
            return
        check_old_nodes(connection)
    load_alembic()
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    log, began = structlog.get_logger("steadyhand.store"), time.monotonic()
    if revision is not None:
        log.info("store.migrating", found=revision, newest=NEWEST_REVISION)
    # A migration that fills new tables of a long history reads and writes more than the usual cache holds.
    if not is_postgres:
        connection.exec_driver_sql(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        maker = (
            "another version of Steadyhand" if revision is None or revision.isdigit() else "another program"
        )
        raise StoreError(f"The database was made by {maker} and this one cannot read it.") from error
    store_support(connection)
    if not is_postgres:
        connection.exec_driver_sql(f"PRAGMA cache_size = -{_DEFAULT_CACHE_KIBIBYTES}")
    if revision is not None:
        log.info("store.migrated", seconds=round(time.monotonic() - began, 1))


def load_alembic() -> None:
    """Load Alembic, only when there is something to migrate: it costs a cold start 0.1 s and more."""
    # Its templates would load a highlighter of source text: 4 MB that the service would hold until its end.
    with not_loaded("mako.ext.pygmentplugin"):
        import alembic.command  # noqa: F401, PLC0415


def _revision(connection: Connection) -> str | None:
    if connection.dialect.name == POSTGRES:
        is_there = connection.exec_driver_sql("SELECT to_regclass('alembic_version') IS NOT NULL").scalar()
    else:
        is_there = inspect(connection).has_table("alembic_version")
    if not is_there:
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
