"""`tests/blackbox/test_durability.py` with Postgres."""

from tests.blackbox.test_durability import *  # noqa: F403
