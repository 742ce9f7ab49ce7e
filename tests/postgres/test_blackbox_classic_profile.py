"""`tests/blackbox/test_classic_profile.py` with Postgres."""

from tests.blackbox.test_classic_profile import *  # noqa: F403
