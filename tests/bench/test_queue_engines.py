"""The trial of queue engines runs: its scenarios reach what they measure, with the chosen engine and short times."""

import asyncio

import pytest
from bench.queue_engines.__main__ import take

from steadyhand.testing.postgres import Postgres


@pytest.mark.long
def test_a_short_form_of_the_trial_finds_that_no_job_of_a_killed_worker_runs_again(
    postgres: Postgres,
) -> None:
    results = asyncio.run(take(["procrastinate"], ["kills", "transaction"], 0.1, postgres))
    found = {scenario: figures["procrastinate"] for scenario, figures in results["scenarios"].items()}
    assert (found["kills"]["n"], found["kills"]["started_again"], found["kills"]["most_starts"]) == (2, 0, 1)
    assert found["kills"]["states"] == {"failed": 2}
    assert found["transaction"] == {"n": 1, "rolled_back_is_gone": True, "committed_starts": True}
    assert results["context"]["versions"].keys() == {"procrastinate", "psycopg"}
