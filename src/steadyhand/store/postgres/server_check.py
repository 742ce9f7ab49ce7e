"""The check of `doctor` for a database of Postgres."""

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from steadyhand.errors import ConfigError
from steadyhand.ports import DoctorCheck
from steadyhand.store.doctor import PAUSED_SCHEDULES, revision_remedy
from steadyhand.store.postgres.connections import ENCODING, ENCODING_REMEDY, connect, parse_postgres_url
from steadyhand.store.postgres.foreign_tables import FOREIGN_REMEDY, TABLES, foreign_tables
from steadyhand.store.readers import CONNECTIONS
from steadyhand.store.schema import NEWEST_REVISION

OLDEST_VERSION: Final = 150_000
"""The oldest release that is tested, as the server gives its number."""
NEEDED_CONNECTIONS: Final = CONNECTIONS + 5
"""Those for reads, one for writes, one for the lock, one for notifications, and two to spare."""
_NAME = "database"
_STATE = (
    "SELECT current_setting('server_version'), current_setting('server_version_num')::integer, "
    "pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean, "
    "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), to_regclass('alembic_version') IS NOT NULL, "
    "current_setting('server_encoding')"
)
_LIMIT = (
    "SELECT min(most) FROM (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND NOT rolsuper "
    "UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database() "
    "UNION ALL SELECT current_setting('max_connections')::integer "
    "- current_setting('superuser_reserved_connections')::integer) AS limits (most) WHERE most >= 0"
)
"""The most connections that the user may have at once, on this database and this server."""
_RIGHTS = (
    "SELECT right_name FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_name "
    "WHERE NOT has_table_privilege(to_regclass('jobs'), right_name)"
)


def check_postgres(url: str) -> tuple[DoctorCheck, Sequence[tuple[str, str]]]:
    """Check that the database can be reached, read and written, also beside a running service. Nothing is changed.

    Return the schedules that no person has paused, too, with their reasons.
    """
    try:
        parameters = parse_postgres_url(url)
    except ConfigError as error:
        return DoctorCheck(_NAME, ok=False, detail=error.detail, remedy="Set database_url."), ()
    try:
        with connect(parameters, "doctor") as connection:
            found = _check(connection)
            return found, _read_paused(connection) if found.ok else ()
    except psycopg.Error as error:
        detail = " ".join(str(error).split())
        remedy = "Start Postgres, or set database_url to a database and a user that it has."
        return DoctorCheck(_NAME, ok=False, detail=detail, remedy=remedy), ()


def _read_paused(connection: psycopg.Connection[Any]) -> Sequence[tuple[str, str]]:
    found: Any = connection.execute("SELECT to_regclass('schedules') IS NOT NULL").fetchone()
    return connection.execute(PAUSED_SCHEDULES).fetchall() if found[0] else ()


def _check(connection: psycopg.Connection[Any]) -> DoctorCheck:
    connection.read_only = True
    place = f"{connection.info.dbname} on {connection.info.host or 'this machine'}"
    state: Any = connection.execute(_STATE).fetchone()
    version, number, is_read_only, may_create, has_schema, encoding = state
    detail = f"Postgres {version}, database {place}"
    if number < OLDEST_VERSION:
        return DoctorCheck(_NAME, ok=False, detail=detail, remedy="Use Postgres 15 or newer.")
    if encoding != ENCODING:
        remedy = f"{ENCODING_REMEDY[0].upper()}{ENCODING_REMEDY[1:]}"
        return DoctorCheck(_NAME, ok=False, detail=f"{detail}, encoding {encoding}", remedy=remedy)
    if is_read_only:
        remedy = (
            "Name the server that takes writes: target_session_attrs=read-write finds it among several hosts."
        )
        return DoctorCheck(_NAME, ok=False, detail=f"{detail}, which is read-only", remedy=remedy)
    found = connection.execute(_LIMIT).fetchone()
    if found is not None and found[0] < NEEDED_CONNECTIONS:
        remedy = f"Let the user have {NEEDED_CONNECTIONS}: ALTER ROLE, ALTER DATABASE or max_connections."
        return DoctorCheck(_NAME, ok=False, detail=f"{detail}, at most {found[0]} connections", remedy=remedy)
    if not has_schema:
        foreign = foreign_tables(connection.execute(TABLES).fetchall())
        if foreign:
            return DoctorCheck(_NAME, ok=False, detail=f"{detail}, {foreign}", remedy=FOREIGN_REMEDY)
        if may_create:
            return DoctorCheck(_NAME, ok=True, detail=f"{detail}, empty; the first start creates its tables")
        remedy = "Let the user create tables: GRANT CREATE ON SCHEMA public TO its name."
        return DoctorCheck(
            _NAME, ok=False, detail=f"{detail}, empty, and the user may not create tables", remedy=remedy
        )
    return _check_schema(connection, detail)


def _check_schema(connection: psycopg.Connection[Any], detail: str) -> DoctorCheck:
    try:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        missing = [row[0] for row in connection.execute(_RIGHTS)]
    except psycopg.errors.InsufficientPrivilege:
        found, missing = None, ["SELECT"]
    if missing:
        remedy = "Let the user own the tables, as in REASSIGN OWNED BY the former owner TO its name."
        return DoctorCheck(
            _NAME, ok=False, detail=f"{detail}; the user may not {', '.join(missing)}", remedy=remedy
        )
    revision = found[0] if found else None
    ok, advice = revision == NEWEST_REVISION, revision_remedy(revision)
    return DoctorCheck(_NAME, ok, f"{detail}, schema {revision}", advice)
