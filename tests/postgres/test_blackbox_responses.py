"""`tests/blackbox/test_responses.py` with Postgres."""

from tests.blackbox.test_responses import *  # noqa: F403
