"""What a job is told when the agent's own figure is not what was counted."""

import pytest

from steadyhand.job import OutcomeType
from steadyhand.outcome import AgentResult, RunEvidence
from steadyhand.ports import RunOutput, RunReport, UsageTotal
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
