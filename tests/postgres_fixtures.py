"""Databases of Postgres for tests that open a store, shared by the folders that need them."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from steadyhand.queue.procrastinate.places import SCHEMA as PLACES
from steadyhand.store import open_store
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import wait_until


@pytest.fixture(scope="session")
def store_template(postgres: Postgres) -> str:
    """The name of a database with the schema of the store, to copy."""
    name = postgres.create_database()

    async def create() -> None:
        await (await open_store(postgres.url(name))).close()

    asyncio.run(create())
    return name


@pytest.fixture
def postgres_url(postgres: Postgres, store_template: str) -> Iterator[str]:
    """The address of a database of one's own that a store has opened before."""
    name = postgres.create_database(store_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def limits_template(postgres: Postgres, store_template: str) -> str:
    """The name of a database with the tables of the store, of the places and of the limits."""
    name = postgres.create_database(store_template)

    async def create() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.url(name)) as connection:
            await connection.execute(PLACES)
        limits = LimitsConnection(postgres.url(name))
        await limits.install()
        await limits.install()
        await limits.close()

    asyncio.run(create())
    return name


@pytest.fixture
def limits_url(postgres: Postgres, limits_template: str) -> Iterator[str]:
    """The URL of a database of the test's own, with all tables."""
    name = postgres.create_database(limits_template)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def pgbouncer_url(postgres: Postgres, postgres_url: str, world_dir: Path) -> Iterator[str]:
    """The address of a PgBouncer in transaction mode before that database."""
    yield from _pgbouncer(postgres, postgres_url, world_dir)


def _pgbouncer(postgres: Postgres, url: str, directory: Path) -> Iterator[str]:
    name, port = url.rpartition("/")[2], _free_port()
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{name} = host=127.0.0.1 port={postgres.port} user=steadyhand password={postgres.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\nmax_client_conn = 50\ndefault_pool_size = 8\n"
    )
    account = ["-u", "postgres"] if os.geteuid() == 0 else []
    with subprocess.Popen(
        ["/usr/sbin/pgbouncer", *account, str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_until(lambda: _is_listening(port))
            yield f"postgresql://steadyhand@127.0.0.1:{port}/{name}"
        finally:
            process.terminate()
            process.wait(20)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
