"""`tests/blackbox/test_chat.py` with Postgres."""

from tests.blackbox.test_chat import *  # noqa: F403
