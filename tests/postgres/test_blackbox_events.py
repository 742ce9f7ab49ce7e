"""`tests/blackbox/test_events.py` with Postgres."""

from tests.blackbox.test_events import *  # noqa: F403
