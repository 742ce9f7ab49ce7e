"""Databases of Postgres for tests that open a store, shared by the folders that need them."""

import asyncio
from collections.abc import Iterator

import pytest

from steadyhand.store import open_store
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
