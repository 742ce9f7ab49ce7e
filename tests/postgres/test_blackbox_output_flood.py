"""`tests/blackbox/test_output_flood.py` with Postgres."""

from tests.blackbox.test_output_flood import *  # noqa: F403
