"""Fixtures of the databases that these tests open."""

from tests.postgres_fixtures import (
    limits_template,
    limits_url,
    pgbouncer_url,
    postgres_url,
    store_template,
)

__all__ = [  # fixtures, taken in
    "limits_template",
    "limits_url",
    "pgbouncer_url",
    "postgres_url",
    "store_template",
]
