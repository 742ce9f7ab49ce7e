"""Databases of Postgres for tests that open a store, shared by the folders that need them."""

import asyncio
import functools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.queue.procrastinate.places import SCHEMA as PLACES
from steadyhand.store import open_store
from steadyhand.store.postgres.call_table import CallTable
from steadyhand.store.postgres.connections import parse_postgres_url
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.cluster import listening
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.reserved_port import ReservedPort
from steadyhand.testing.service import wait_until

_SCHEMA = """
SELECT md5(concat_ws(' ',
    (SELECT string_agg(concat_ws(' ', it.relname, it.relkind, it.relacl, part.attname, part.atttypid), ','
            ORDER BY it.relname, part.attnum)
        FROM pg_class AS it JOIN pg_attribute AS part ON part.attrelid = it.oid
        WHERE it.relnamespace = 'public'::regnamespace),
    (SELECT string_agg(md5(prosrc), ',' ORDER BY proname, prosrc) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace),
    (SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint),
    (SELECT string_agg(tgname, ',' ORDER BY tgname) FROM pg_trigger WHERE NOT tgisinternal),
    (SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'),
    (SELECT concat_ws(' ', datacl, datdba, datallowconn, datconnlimit) FROM pg_database
        WHERE datname = current_database()),
    (SELECT string_agg(setconfig::text, ',') FROM pg_db_role_setting AS it
        JOIN pg_database ON pg_database.oid = it.setdatabase WHERE datname = current_database())
))
"""
"""A digest of all but the rows: a test may change the schema, rights and settings of its database."""

_KEEP_ROWS = """
DO $$
DECLARE
    it text;
    has_rows boolean;
BEGIN
    CREATE SCHEMA first_rows;
    FOR it IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', it) INTO has_rows;
        IF has_rows THEN
            EXECUTE format('CREATE TABLE first_rows.%1$I AS TABLE %1$I', it);
        END IF;
    END LOOP;
END $$
"""

_END_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

_EMPTY = """
DO $$
DECLARE
    it text;
    has_rows boolean;
    filled text[] := '{}';
BEGIN
    FOR it IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I)', it) INTO has_rows;
        IF to_regclass(format('first_rows.%I', it)) IS NOT NULL THEN
            EXECUTE format('DELETE FROM %I', it);
        ELSIF has_rows THEN
            filled := filled || quote_ident(it);
        END IF;
    END LOOP;
    IF filled <> '{}' THEN
        EXECUTE 'TRUNCATE ' || array_to_string(filled, ', ') || ' CASCADE';
    END IF;
    FOR it IN SELECT relname FROM pg_class WHERE relnamespace = 'first_rows'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('INSERT INTO %1$I SELECT * FROM first_rows.%1$I', it);
    END LOOP;
    PERFORM setval(seqrelid::regclass, seqstart, false) FROM pg_sequence;
END $$
"""


class ReusedDatabase:
    """A copy of a template for one test after the other, as it was before each.

    To empty it takes a part of the time that a new database takes. One whose schema or settings a test has changed is
    made anew.
    """

    def __init__(self, postgres: Postgres, template: str) -> None:
        self._postgres = postgres
        self._template = template
        self._name = ""
        self._schema: object = None

    def prepare(self) -> str:
        """Return its URL, once it is as its template. What the test before has left there ends."""
        try:
            is_ready = bool(self._name) and self._empty()
        except psycopg.Error:
            is_ready = False
        if not is_ready:
            self._create()
        return self._postgres.url(self._name)

    def _empty(self) -> bool:
        """Remove what the test before has stored; return False if it has changed more than that."""
        with self._connect() as connection:
            connection.execute(_END_OTHERS)
            if _read_schema(connection) != self._schema:
                return False
            connection.execute(_EMPTY)
        return True

    def _create(self) -> None:
        if self._name:
            self._postgres.drop_database(self._name)
        self._name = self._postgres.create_database(self._template)
        with self._connect() as connection:
            connection.execute(_KEEP_ROWS)
            self._schema = _read_schema(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        settings = (
            "-c session_replication_role=replica -c lock_timeout=20s"  # without the triggers of references
        )
        url = self._postgres.url(self._name)
        return psycopg.connect(url, autocommit=True, options=settings, application_name="tests")


def _read_schema(connection: psycopg.Connection[Any]) -> object:
    return connection.execute(_SCHEMA).fetchone()


@functools.cache
def reused_database(postgres: Postgres, template: str) -> ReusedDatabase:
    """Return the one database of this process for the tests that need a copy of a template."""
    return ReusedDatabase(postgres, template)


@pytest.fixture(scope="session")
def store_template(postgres: Postgres) -> str:
    """The name of a database with the schema of the store, to copy."""
    name = postgres.create_database()

    async def create() -> None:
        await (await open_store(postgres.url(name))).close()

    asyncio.run(create())
    return name


@pytest.fixture
def postgres_url(postgres: Postgres, store_template: str) -> str:
    """The address of a database of one's own that a store has opened before."""
    return reused_database(postgres, store_template).prepare()


@pytest.fixture(scope="session")
def limits_template(postgres: Postgres, store_template: str) -> str:
    """The name of a database with the tables of the store, of the places, of the limits and of calls between nodes."""
    name = postgres.create_database(store_template)

    async def create() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.url(name)) as connection:
            await connection.execute(PLACES)
        limits = LimitsConnection(postgres.url(name))
        await limits.install()
        await limits.install()
        await limits.close()
        calls = CallTable(parse_postgres_url(postgres.url(name)))
        calls.create()
        calls.close()

    asyncio.run(create())
    return name


@pytest.fixture
def limits_url(postgres: Postgres, limits_template: str) -> str:
    """The URL of a database of the test's own, with all tables."""
    return reused_database(postgres, limits_template).prepare()


@pytest.fixture(scope="session")
def queue_template(postgres: Postgres, store_template: str) -> str:
    """The name of a database with the tables of the store and of the queue of many nodes, and no node."""
    name = postgres.create_database(store_template)
    asyncio.run(_create_queue(postgres.url(name)))
    postgres.execute("DELETE FROM queue_nodes", name)
    return name


async def _create_queue(url: str) -> None:
    store = await open_store(url)
    try:
        async with listening(url) as listener:
            queue = ProcrastinateQueue(
                url, store, node="template", capacity=1, max_queued=1, listen_to=listener.on
            )
            async with queue.opened():
                pass
    finally:
        await store.close()


@pytest.fixture
def pgbouncer_url(postgres: Postgres, postgres_url: str, world_dir: Path) -> Iterator[str]:
    """The address of a PgBouncer in transaction mode before that database."""
    with pgbouncer(postgres, postgres_url, world_dir) as url:
        yield url


@contextmanager
def pgbouncer(postgres: Postgres, url: str, directory: Path) -> Iterator[str]:
    """Run a PgBouncer in transaction mode before a database for the length of the block, and yield its address."""
    name = url.rpartition("/")[2]
    settings, log = directory / "pgbouncer.ini", directory / "pgbouncer.log"
    account = ["-u", "postgres"] if os.geteuid() == 0 else []
    with ReservedPort() as port, log.open("wb") as output:
        settings.write_text(
            f"[databases]\n{name} = host=127.0.0.1 port={postgres.port} user=steadyhand password={postgres.password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port.number}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\nmax_client_conn = 50\ndefault_pool_size = 8\n"
        )
        with subprocess.Popen(
            ["/usr/sbin/pgbouncer", *account, str(settings)], stdout=subprocess.DEVNULL, stderr=output
        ) as process:
            try:
                wait_until(lambda: port.is_served() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield f"postgresql://steadyhand@127.0.0.1:{port.number}/{name}"
            finally:
                process.terminate()
                process.wait(20)
