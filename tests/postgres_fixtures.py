"""Databases of Postgres for tests that open a store, shared by the folders that need them."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from steadyhand.queue.procrastinate.places import SCHEMA as PLACES
from steadyhand.store import open_store
from steadyhand.store.postgres.limits_connection import LimitsConnection
from steadyhand.testing.postgres import Postgres


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
