"""`tests/blackbox/test_openai_jobs.py` with Postgres."""

from tests.blackbox.test_openai_jobs import *  # noqa: F403
