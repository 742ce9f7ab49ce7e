"""Versions side by side on one database: which code may use a schema that a newer one has migrated.

Each schema names the oldest code that works with it, so that code which does not know the newest migrations can tell if
it may go on.
"""

import structlog
from sqlalchemy import Connection, inspect, text

from steadyhand import __version__
from steadyhand.errors import SchemaInUse, SchemaTooNew
from steadyhand.store.driver import POSTGRES
from steadyhand.store.schema import NEWEST_REVISION, OLDEST_REVISION

_SILENT_SECONDS = 12
"""The age of a heartbeat from which on its node is taken for dead, as for the queue."""
_MOST_NAMED = 3


def is_newer(connection: Connection, revision: str) -> bool:
    """Return True if a newer version has migrated the database, and this one works with it.

    Raise `SchemaTooNew` if it does not work with it.
    """
    if not (revision.isdigit() and revision > NEWEST_REVISION):
        return False
    oldest = None
    if inspect(connection).has_table("schema_support"):
        oldest = connection.execute(text("SELECT oldest_revision FROM schema_support WHERE id = 1")).scalar()
    if oldest is None or oldest > NEWEST_REVISION:
        raise SchemaTooNew(f"Steadyhand {__version__} is too old for the database's schema, {revision}.")
    log = structlog.get_logger("steadyhand.store")
    log.warning("store.newer_schema", found=revision, newest=NEWEST_REVISION)
    return True


def check_old_nodes(connection: Connection) -> None:
    """Raise `SchemaInUse` if nodes work on the database that are too old for the newest schema."""
    if connection.dialect.name != POSTGRES:
        return
    query = text(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass('queue_nodes') AND attname = 'schema_revision'"
    )
    if connection.execute(query).first() is None:
        return
    query = text(
        "SELECT node, version FROM queue_nodes WHERE schema_revision < :oldest AND lost_at IS NULL "
        "AND lease_at > clock_timestamp() - make_interval(secs => :seconds) ORDER BY node"
    )
    found = connection.execute(query, {"oldest": OLDEST_REVISION, "seconds": _SILENT_SECONDS}).all()
    if found:
        names = ", ".join(f"{node} ({version})" for node, version in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise SchemaInUse(f"Nodes too old for the schema of {__version__} are at work: {names}{more}.")


def store_support(connection: Connection) -> None:
    """Store the oldest code that works with the schema, once the database has the newest one."""
    connection.execute(text("DELETE FROM schema_support"))
    values = {"oldest": OLDEST_REVISION}
    connection.execute(text("INSERT INTO schema_support (id, oldest_revision) VALUES (1, :oldest)"), values)
