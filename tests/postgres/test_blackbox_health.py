"""`tests/blackbox/test_health.py` with Postgres."""

from tests.blackbox.test_health import *  # noqa: F403
