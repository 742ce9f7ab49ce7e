"""`tests/blackbox/test_shutdown_tool_calls.py` with Postgres."""

from tests.blackbox.test_shutdown_tool_calls import *  # noqa: F403
