"""`tests/blackbox/test_environment.py` with Postgres."""

from tests.blackbox.test_environment import *  # noqa: F403
