"""`tests/blackbox/test_python_client.py` with Postgres."""

from tests.blackbox.test_python_client import *  # noqa: F403
