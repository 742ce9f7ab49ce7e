"""`tests/blackbox/test_execute.py` with Postgres."""

from tests.blackbox.test_execute import *  # noqa: F403
