"""The connections of the store to Postgres, and how text goes over them.

They work behind PgBouncer in transaction mode: nothing of a session is used, and no statement is prepared on the
server. A pooled connection that the server has closed is found when it is taken, so that a restart of the server
between two operations fails none of them.
"""

import os
import re
import select
import socket
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel, conninfo
from psycopg.adapt import Buffer, Dumper, Loader
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DisconnectionError

from steadyhand.errors import ConfigError
from steadyhand.store.driver import HAS_TIMEOUT, count_alone

CONNECT_SECONDS: Final = 5
ENCODING: Final = "UTF8"
"""The encoding that a database must have: no other one has room for each text of an agent."""
ENCODING_REMEDY: Final = "create one with: createdb --encoding UTF8 --template template0 NAME"
_DEFAULTS: Final = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""So a connection over a network that is gone ends within a minute; an address may set others."""
_MOST_READS = 16
_UNKNOWN_OPTION = re.compile(r'invalid URI query parameter: "(\w{1,64})"')

_ESCAPE = "\ue000"
"""A character for private use: with the hexadecimal digits after it, it stands for one that Postgres cannot store."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff\ue000]")
_ESCAPED = re.compile(_ESCAPE + "([0-9a-f]{4})")


def escape(text: str) -> str:
    """Return a text that Postgres can store: without NUL and lone surrogates. `unescape` returns the one before."""
    return _UNSTORABLE.sub(lambda found: f"{_ESCAPE}{ord(found.group()):04x}", text)


def unescape(text: str) -> str:
    """Return the text that `escape` changed. An escape that was cut off stays as it is."""
    return _ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), text)


class _TextDumper(Dumper):
    """Sends a text whatever characters it has."""

    oid = 0  # unknown, as that of psycopg's own: the server takes the type that the statement needs

    def dump(self, obj: str) -> Buffer:
        if obj.isascii() and "\x00" not in obj:
            return obj.encode("ascii")
        return escape(obj).encode("utf-8")


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        text = bytes(data).decode("utf-8")
        return text if text.isascii() or _ESCAPE not in text else unescape(text)


def parse_postgres_url(url: str) -> dict[str, Any]:
    """Return the parameters of an address such as `postgresql://user:password@host/name`. Raise `ConfigError`.

    No error has a part of the address that may be one of the password, also not as its cause.
    """
    if _has_unescaped_password(url):
        raise ConfigError("database_url: write @ in the password as %40, / as %2F and % as %25")
    try:
        found = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        option = _UNKNOWN_OPTION.search(str(error))
        advice = (
            f"it has the unknown option {option[1]}"
            if option
            else "try postgresql://user@host/database; in the password write @ as %40, / as %2F, % as %25 "
            "and a space as %20"
        )
        raise ConfigError(f"database_url is not a URL that Postgres understands: {advice}") from None
    return {**_DEFAULTS, **found, "client_encoding": ENCODING}


def _has_unescaped_password(url: str) -> bool:
    """Return True if libpq would take a part of the password for the host or the database."""
    _, _, rest = url.partition("://")
    at, slash = rest.find("@"), rest.find("/")
    if at >= 0 and (slash < 0 or at < slash):
        rest = rest[at + 1 :]
    return "@" in rest.partition("?")[0]


def name_of_connection(purpose: str) -> str:
    """Return the name of a connection of this process in the server's list of activities."""
    return f"steadyhand {purpose} of process {os.getpid()} on {socket.gethostname()}"[:63]


def connect(parameters: dict[str, Any], purpose: str, **options: Any) -> psycopg.Connection[Any]:
    """Return a new connection that names this process and its purpose in the server's list of activities."""
    name = name_of_connection(purpose)
    connection: psycopg.Connection[Any] = psycopg.connect(
        **{"application_name": name, **parameters}, prepare_threshold=None, **options
    )
    adapters = connection.adapters
    adapters.register_dumper(str, _TextDumper)
    for kind in ("text", "varchar"):
        adapters.register_loader(kind, _TextLoader)
    return connection


def create_postgres_engine(
    parameters: dict[str, Any],
    *,
    purpose: str,
    connections: int,
    read_only: bool = False,
    idle_seconds: int | None = None,
    before_use: Callable[[], None] = lambda: None,
) -> Engine:
    """Return an engine of at most so many connections. `before_use` is called whenever one is taken.

    Those that only read have one consistent state for a whole transaction. With `idle_seconds` the server ends a
    transaction in which nothing comes for so long: a process that is frozen in one would hold up others.
    """

    def create() -> psycopg.Connection[Any]:
        connection = connect(parameters, purpose)
        if read_only:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
        return connection

    engine = create_engine(
        "postgresql+psycopg://",
        creator=create,
        pool_size=connections,
        max_overflow=0,
        use_native_hstore=False,
    )

    def check(connection: Any, _record: Any, _proxy: Any) -> None:
        if is_closed(connection):
            raise DisconnectionError
        before_use()

    event.listen(engine, "checkout", check)
    event.listen(engine, "connect", _note_timeout)
    event.listen(engine, "begin", _lift_timeout)
    event.listen(engine, "before_cursor_execute", _count_alone)
    if idle_seconds is not None:
        statement = f"SET LOCAL idle_in_transaction_session_timeout = {idle_seconds * 1000:d}"

        def limit_idle_time(connection: Connection) -> None:
            connection.exec_driver_sql(statement)

        event.listen(engine, "begin", limit_idle_time)
    return engine


def _note_timeout(connection: psycopg.Connection[Any], record: Any) -> None:
    found = connection.execute("SHOW statement_timeout").fetchone()
    connection.rollback()
    record.info[HAS_TIMEOUT] = found is not None and found[0] != "0"


def _lift_timeout(connection: Connection) -> None:
    """Lift a limit that the user or the database has: each read has its own, and no write is undone by its length."""
    if connection.info.get(HAS_TIMEOUT):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


def _count_alone(connection: Connection, *_: Any) -> None:
    count_alone(connection)


def is_closed(connection: psycopg.Connection[Any]) -> bool:
    """Return True if the server has closed an idle connection. Nothing is sent, and nothing is waited for."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        for _ in range(_MOST_READS):
            if not poll.poll(0):
                return False
            connection.pgconn.consume_input()  # its last words, or those of the server's settings
    except psycopg.Error:
        return True
    return False
