"""`tests/blackbox/test_phases.py` with Postgres."""

from tests.blackbox.test_phases import *  # noqa: F403
