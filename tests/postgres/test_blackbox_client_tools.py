"""`tests/blackbox/test_client_tools.py` with Postgres."""

from tests.blackbox.test_client_tools import *  # noqa: F403
