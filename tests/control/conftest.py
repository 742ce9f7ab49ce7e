"""Databases of Postgres, for the operations over several nodes."""

from tests.postgres_fixtures import limits_template, limits_url, store_template

__all__ = ["limits_template", "limits_url", "store_template"]  # fixtures, taken in
