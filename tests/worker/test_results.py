"""What the result of a run does to its job: the figure of its cost, and the wait for a rate limit."""

from dataclasses import replace
from datetime import timedelta

import pytest

from steadyhand.job import Outcome, OutcomeType
from steadyhand.outcome import AgentResult, RunEvidence
from steadyhand.ports import RunOutput, RunReport, UsageTotal
from steadyhand.testing.contracts.samples import NOON
from steadyhand.worker.results import RunResult, cost_difference_warning


def ran(said: int | None, counted: UsageTotal | None) -> RunResult:
    result = AgentResult(OutcomeType.SUCCESS, is_error=False, text="done", cost_micros=said)
    return RunResult(RunReport(RunEvidence(exit_code=0, result=result), RunOutput((), "")), counted)


@pytest.mark.parametrize(("said", "counted"), [(94_000, 100_000), (100_000, 94_000), (0, 1), (1, 0)])
def test_a_cost_that_differs_by_more_than_5_percent_is_told_with_both_figures(
    said: int, counted: int
) -> None:
    notice = cost_difference_warning(ran(said, UsageTotal(calls=1, micros=counted)))
    assert notice is not None
    assert notice.code == "cost_differs"
    assert f"{said / 1_000_000:.6f}" in notice.message
    assert f"{counted / 1_000_000:.6f}" in notice.message


@pytest.mark.parametrize(("said", "counted"), [(95_000, 100_000), (100_000, 95_000), (7, 7), (0, 0)])
def test_a_cost_within_5_percent_is_not_worth_a_word(said: int, counted: int) -> None:
    assert cost_difference_warning(ran(said, UsageTotal(calls=1, micros=counted))) is None


def test_nothing_is_compared_where_a_figure_is_missing_or_may_be_too_low() -> None:
    assert cost_difference_warning(ran(100, None)) is None
    assert cost_difference_warning(ran(None, UsageTotal(calls=1, micros=1))) is None
    assert cost_difference_warning(ran(100, UsageTotal(calls=1, micros=1, complete=False))) is None


def test_a_rate_limit_that_an_earlier_service_met_parks_a_run_that_was_taken_up() -> None:
    """Its end was known to that service alone: the job asks again a little later in place of failing."""
    taken_up = replace(ran(None, None), asks_again_at=NOON)
    limited, failed = Outcome(OutcomeType.RATE_LIMITED), Outcome(OutcomeType.AGENT_ERROR)
    assert taken_up.park_until(limited) == NOON
    assert taken_up.park_until(failed) is None
    known = replace(taken_up, rate_limited_until=NOON + timedelta(hours=1))
    assert known.park_until(limited) == known.park_until(failed) == NOON + timedelta(hours=1)
