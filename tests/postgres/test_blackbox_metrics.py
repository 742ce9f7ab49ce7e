"""`tests/blackbox/test_metrics.py` with Postgres."""

from tests.blackbox.test_metrics import *  # noqa: F403
