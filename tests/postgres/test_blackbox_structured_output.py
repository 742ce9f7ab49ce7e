"""`tests/blackbox/test_structured_output.py` with Postgres."""

from tests.blackbox.test_structured_output import *  # noqa: F403
