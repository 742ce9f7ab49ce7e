"""`tests/blackbox/test_conversation_ends.py` with Postgres."""

from tests.blackbox.test_conversation_ends import *  # noqa: F403
