"""`tests/blackbox/test_outcomes.py` with Postgres."""

from tests.blackbox.test_outcomes import *  # noqa: F403
