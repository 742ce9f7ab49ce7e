"""Fixtures of the databases that these tests open."""

from tests.postgres_fixtures import limits_template, limits_url, postgres_url, store_template

__all__ = ["limits_template", "limits_url", "postgres_url", "store_template"]  # fixtures, taken in
