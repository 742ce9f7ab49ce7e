"""`tests/blackbox/test_sessions.py` with Postgres."""

from tests.blackbox.test_sessions import *  # noqa: F403
