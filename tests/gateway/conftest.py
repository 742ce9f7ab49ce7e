"""Fixtures of the database that the gateways of several nodes share."""

from tests.postgres_fixtures import limits_template, limits_url, store_template

__all__ = ["limits_template", "limits_url", "store_template"]  # fixtures, taken in
