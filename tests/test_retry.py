"""The rules for another run of a job."""

from dataclasses import replace
from datetime import timedelta

import pytest

from steadyhand.job import Run, StartMode, State
from steadyhand.retry import elapsed_seconds, requeued
from steadyhand.testing.contracts.samples import NOON, make_job


@pytest.mark.parametrize(("mode", "prompt"), [("resume", "The results: rain."), ("fresh", None)])
def test_a_run_that_resumes_is_told_the_results_that_the_process_before_it_did_not_get(
    mode: StartMode, prompt: str | None
) -> None:
    job = make_job(
        state=State.INTERRUPTED, continue_prompt="Go on.", undelivered_results="The results: rain."
    )
    again = requeued(job, mode, NOON)
    assert (again.continue_prompt, again.undelivered_results, again.requeues) == (prompt, None, 1)
    # Once they are delivered, a later run only continues.
    assert requeued(replace(job, undelivered_results=None), mode, NOON).continue_prompt is None


def test_the_time_in_which_a_run_waited_for_its_client_is_not_used_up() -> None:
    job = make_job(used_seconds=7.0, runs=(Run(1, State.RUNNING, started_at=NOON),))
    now = NOON + timedelta(seconds=100)
    assert elapsed_seconds(job, now) == 107
    assert elapsed_seconds(job, now, waited_seconds=60) == 47
    assert elapsed_seconds(job, now, waited_seconds=101) == 7
