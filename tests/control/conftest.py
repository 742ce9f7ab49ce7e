"""Databases of Postgres, for the operations over several nodes."""

from tests.postgres_fixtures import postgres_url, store_template

__all__ = ["postgres_url", "store_template"]  # fixtures, taken in
