"""`tests/blackbox/test_slots.py` with Postgres."""

from tests.blackbox.test_slots import *  # noqa: F403
