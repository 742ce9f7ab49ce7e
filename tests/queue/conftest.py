"""Databases with the tables of the store and of the queue of many nodes."""

import pytest
from tests.postgres_fixtures import (
    pgbouncer_url,
    postgres_url,
    queue_template,
    reused_database,
    store_template,
)

from steadyhand.testing.postgres import Postgres

__all__ = ["pgbouncer_url", "postgres_url", "queue_template", "store_template"]  # fixtures, taken in


@pytest.fixture
def queue_url(postgres: Postgres, queue_template: str) -> str:
    """The URL of a database of the test's own, with all tables."""
    return reused_database(postgres, queue_template).prepare()
