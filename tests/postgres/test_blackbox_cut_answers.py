"""`tests/blackbox/test_cut_answers.py` with Postgres."""

from tests.blackbox.test_cut_answers import *  # noqa: F403
