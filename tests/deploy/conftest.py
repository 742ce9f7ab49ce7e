"""A database with the tables of the queue, for the query by which KEDA counts jobs."""

from tests.postgres_fixtures import postgres_url, store_template

__all__ = ["postgres_url", "store_template"]
