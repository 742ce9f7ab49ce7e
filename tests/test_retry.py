"""The rules for another run of a job."""

from dataclasses import replace
from datetime import timedelta

import pytest

from steadyhand.job import Outcome, OutcomeType, Run, StartMode, State
from steadyhand.retry import elapsed_seconds, recovery_start_mode, requeued
from steadyhand.testing.contracts.samples import NOON, make_job
from steadyhand.worker.results import node_death_outcome


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


def test_a_job_whose_nodes_died_twice_is_not_run_again_by_itself() -> None:
    runs = (Run(1, State.RUNNING, started_at=NOON),)
    job = make_job(state=State.RUNNING, on_interrupt="restart", runs=runs)
    first = node_death_outcome(job, "The node one died.")
    assert (first.node_died, first.detail) == (True, "The node one died.")
    assert recovery_start_mode(job, first, planned=False) == "fresh"
    ended = replace(job.runs[0], state=State.INTERRUPTED, outcome=first)
    again = replace(job, runs=(ended, Run(2, State.RUNNING, started_at=NOON)))
    stopped = Outcome(OutcomeType.INTERRUPTED, "The node two stopped.")
    assert recovery_start_mode(again, stopped, planned=True) == "fresh"
    second = node_death_outcome(again, "The node two died.")
    assert second.detail == (
        "The node two died. 2 nodes died while this job ran on them, so it is not run again by itself."
    )
    assert recovery_start_mode(again, second, planned=False) is None
