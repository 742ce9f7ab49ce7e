"""Databases with the tables of the store and of the queue of many nodes."""

import asyncio
from collections.abc import Iterator

import pytest
from tests.postgres_fixtures import pgbouncer_url, postgres_url, store_template

from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.store import open_store
from steadyhand.testing.cluster import listening
from steadyhand.testing.postgres import Postgres

__all__ = ["pgbouncer_url", "postgres_url", "store_template"]  # fixtures, taken in


async def _create_tables(url: str) -> None:
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


@pytest.fixture(scope="session")
def queue_template(postgres: Postgres) -> str:
    """The name of a database with all tables and no rows."""
    name = postgres.create_database()
    asyncio.run(_create_tables(postgres.url(name)))
    return name


@pytest.fixture
def queue_url(postgres: Postgres, queue_template: str) -> Iterator[str]:
    """The URL of a database of the test's own, with all tables."""
    name = postgres.create_database(queue_template)
    yield postgres.url(name)
    postgres.drop_database(name)
