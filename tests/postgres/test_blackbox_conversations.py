"""`tests/blackbox/test_conversations.py` with Postgres."""

from tests.blackbox.test_conversations import *  # noqa: F403
