"""`tests/blackbox/test_errors.py` with Postgres."""

from tests.blackbox.test_errors import *  # noqa: F403
