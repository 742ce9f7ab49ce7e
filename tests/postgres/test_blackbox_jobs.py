"""`tests/blackbox/test_jobs.py` with Postgres."""

from tests.blackbox.test_jobs import *  # noqa: F403
