"""`tests/blackbox/test_openapi.py` with Postgres."""

from tests.blackbox.test_openapi import *  # noqa: F403
