from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.job import Outcome, OutcomeType, State, Usage
from steadyhand.outcome import OUTCOMES, AgentResult, RunEvidence, StopReason, decide_outcome, error_info

GOOD = AgentResult(OutcomeType.SUCCESS, is_error=False, text="done")
UNKNOWN = "--agent 'x' not found. Available agents: claude, Plan"

CASES = {
    "a good result and exit 0": (RunEvidence(exit_code=0, result=GOOD), "success"),
    "a good result of a process we had to end afterwards": (
        RunEvidence(exit_code=None, result=GOOD),
        "success",
    ),
    "a success subtype that is an error, exit 1": (
        RunEvidence(
            exit_code=1, result=replace(GOOD, is_error=True, text="API Error: 402", api_error_status=402)
        ),
        "budget",
    ),
    "a success subtype, no error, but exit 1": (RunEvidence(exit_code=1, result=GOOD), "agent_error"),
    "exit 0 with is_error": (RunEvidence(exit_code=0, result=replace(GOOD, is_error=True)), "agent_error"),
    "exit 0 with no result": (RunEvidence(exit_code=0), "no_result"),
    "exit 3 with no result": (RunEvidence(exit_code=3, stderr="boom\n"), "agent_error"),
    "an empty result": (RunEvidence(exit_code=0, result=replace(GOOD, text=" \n")), "empty"),
    "no text but an object": (
        RunEvidence(
            exit_code=0, schema_required=True, result=replace(GOOD, text=None, structured_output={"a": 1})
        ),
        "success",
    ),
    "a schema without an object": (
        RunEvidence(exit_code=0, schema_required=True, result=GOOD),
        "invalid_output",
    ),
    "a schema never met": (
        RunEvidence(exit_code=1, result=replace(GOOD, reported=OutcomeType.INVALID_OUTPUT, is_error=True)),
        "invalid_output",
    ),
    "an object that does not fit its schema": (
        RunEvidence(
            exit_code=0,
            schema_required=True,
            schema_error="/a: 1 is not of type 'string' (schema: /properties/a/type)",
            result=replace(GOOD, structured_output={"a": 1}),
        ),
        "invalid_output",
    ),
    "a refusal": (RunEvidence(exit_code=0, result=replace(GOOD, stop_reason="refusal")), "refused"),
    "the budget of the CLI": (
        RunEvidence(exit_code=1, result=AgentResult(OutcomeType.BUDGET, is_error=True, text=None)),
        "budget",
    ),
    "the turns of the CLI": (
        RunEvidence(exit_code=1, result=AgentResult(OutcomeType.MAX_TURNS, is_error=True, text=None)),
        "max_turns",
    ),
    "an error while running": (
        RunEvidence(exit_code=1, result=AgentResult(OutcomeType.AGENT_ERROR, is_error=True, text=None)),
        "agent_error",
    ),
    "an API error 429": (
        RunEvidence(exit_code=1, result=replace(GOOD, is_error=True, api_error_status=429)),
        "rate_limited",
    ),
    "an API error 401": (
        RunEvidence(exit_code=1, result=replace(GOOD, is_error=True, api_error_status=401)),
        "unauthorized",
    ),
    "an API error 500 though not marked as an error": (
        RunEvidence(exit_code=0, result=replace(GOOD, api_error_status=500)),
        "model_error",
    ),
    "a run that nobody knows to have asked the model": (
        RunEvidence(exit_code=0, counted_calls=0, result=replace(GOOD, usage=Usage())),
        "not_asked",
    ),
    "the same without a ledger": (RunEvidence(exit_code=0, result=replace(GOOD, usage=Usage())), "not_asked"),
    "the same where an object was asked for": (
        RunEvidence(exit_code=0, schema_required=True, result=replace(GOOD, usage=Usage())),
        "not_asked",
    ),
    "no turn, but a call in the ledger": (
        RunEvidence(exit_code=0, counted_calls=1, result=replace(GOOD, usage=Usage())),
        "success",
    ),
    "no turn, but a cost": (
        RunEvidence(exit_code=0, result=replace(GOOD, usage=Usage(), cost_micros=880)),
        "success",
    ),
    "a turn that went past the ledger": (
        RunEvidence(exit_code=0, counted_calls=0, result=replace(GOOD, usage=Usage(turns=1))),
        "success",
    ),
    "a hook that ended the work": (
        RunEvidence(exit_code=0, result=replace(GOOD, text="", hook="A hook stopped the agent.")),
        "hook",
    ),
    "a hook that had not ended when the agent did": (
        RunEvidence(exit_code=0, hook="The hook SessionStart has not ended."),
        "hook",
    ),
    "a hook that had not ended beside a result": (
        RunEvidence(exit_code=0, hook="The hook Stop has not ended.", result=GOOD),
        "success",
    ),
    "a command that is not there": (
        RunEvidence(exit_code=0, unknown_command="Nobody defines the command 'x'."),
        "unknown_command",
    ),
    "a signal from elsewhere": (RunEvidence(signal=9), "killed"),
    "a signal from elsewhere after a good result": (RunEvidence(signal=9, result=GOOD), "killed"),
    "the memory limit that killed the agent": (RunEvidence(signal=9, out_of_memory=True), "memory"),
    "the memory limit that made the agent fail": (
        RunEvidence(exit_code=1, out_of_memory=True, disk_full=True, result=replace(GOOD, is_error=True)),
        "memory",
    ),
    "the memory limit that the agent coped with": (
        RunEvidence(exit_code=0, out_of_memory=True, result=GOOD),
        "success",
    ),
    "the memory limit beside a budget that was spent": (
        RunEvidence(
            exit_code=1,
            out_of_memory=True,
            result=AgentResult(OutcomeType.BUDGET, is_error=True, text=None),
        ),
        "budget",
    ),
    "the memory limit on the way to the deadline": (
        RunEvidence(stop_reason=StopReason.DEADLINE, signal=9, out_of_memory=True),
        "timeout",
    ),
    "a full disk that made the agent fail": (RunEvidence(exit_code=1, disk_full=True), "disk"),
    "a full disk that the agent coped with": (
        RunEvidence(exit_code=0, disk_full=True, result=GOOD),
        "success",
    ),
    "an unknown agent, as the runner saw it": (
        RunEvidence(exit_code=1, unknown_agent=True, stderr=UNKNOWN),
        "unknown_agent",
    ),
    "an unknown agent, as the CLI says it": (RunEvidence(exit_code=1, stderr=UNKNOWN), "unknown_agent"),
    "the deadline": (RunEvidence(stop_reason=StopReason.DEADLINE, exit_code=143), "timeout"),
    "the deadline, with a result that came on the way out": (
        RunEvidence(stop_reason=StopReason.DEADLINE, exit_code=0, result=GOOD),
        "timeout",
    ),
    "silence": (RunEvidence(stop_reason=StopReason.IDLE, signal=9), "stalled"),
    "a cancel": (RunEvidence(stop_reason=StopReason.CANCEL, signal=9), "cancelled"),
    "a store that does not answer": (RunEvidence(stop_reason=StopReason.STORE, signal=15), "interrupted"),
    "a shutdown": (RunEvidence(stop_reason=StopReason.SHUTDOWN, signal=15), "interrupted"),
    "a caller that did not make its calls": (
        RunEvidence(stop_reason=StopReason.UNANSWERED, exit_code=0),
        "unanswered",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_judged_from_all_evidence(case: str) -> None:
    evidence, expected = CASES[case]
    assert decide_outcome(evidence).type == expected


def test_every_outcome_that_judging_can_give_is_in_the_closed_list() -> None:
    assert {expected for _, expected in CASES.values()} <= set(OUTCOMES)
    made_elsewhere = {"not_started", "workspace", "no_session", "expired", "internal"}
    assert set(OUTCOMES) == {expected for _, expected in CASES.values()} | made_elsewhere


def test_every_type_of_outcome_has_its_meaning() -> None:
    assert list(OUTCOMES) == list(OutcomeType)


def test_the_documentation_gives_each_outcome_its_state_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("| outcome | state | when |\n")[2].partition("\n\n")[0]
    documented: dict[str, set[str]] = {}
    for row in table.splitlines()[1:]:
        names, state, when = (cell.strip() for cell in row.strip("|").split("|"))
        assert when
        for name in names.split(","):
            documented.setdefault(name.strip(" `"), set()).add(state)
    assert documented == {name: {meaning.state.value} for name, meaning in OUTCOMES.items()}


def test_a_detail_is_one_line_and_bounded() -> None:
    verdict = decide_outcome(RunEvidence(exit_code=1, stderr="first\n" + "long " * 200 + "\n\n"))
    assert verdict.detail is not None
    assert "\n" not in verdict.detail
    assert len(verdict.detail) <= 300


def test_a_limit_that_passes_while_a_hook_runs_names_the_hook_and_a_cancel_does_not() -> None:
    hook = "The hook SessionStart has not ended."
    details = {
        reason: decide_outcome(RunEvidence(stop_reason=reason, signal=9, hook=hook)).detail
        for reason in (StopReason.DEADLINE, StopReason.IDLE, StopReason.CANCEL)
    }
    assert list(details.values()) == [hook, hook, None]


def test_an_error_without_a_message_has_the_agents_own_name_of_it_as_its_detail() -> None:
    failed = AgentResult(OutcomeType.AGENT_ERROR, is_error=True, text=None, label="error_during_execution")
    assert decide_outcome(RunEvidence(exit_code=1, result=failed)).detail == "error_during_execution"
    named = replace(failed, errors=("It broke.",))
    assert decide_outcome(RunEvidence(exit_code=1, result=named)).detail == "It broke."


def test_only_a_success_has_no_fault() -> None:
    for evidence, expected in CASES.values():
        fault = error_info(decide_outcome(evidence))
        assert (fault is None) == (expected == "success")
        if fault is not None:
            assert fault.code == expected
            assert fault.message.startswith(OUTCOMES[OutcomeType(expected)].message)


def test_every_outcome_means_an_ended_state_and_says_so_in_a_sentence() -> None:
    for meaning in OUTCOMES.values():
        assert meaning.state.ended
        assert meaning.message.endswith(".")
    assert OUTCOMES[OutcomeType.SUCCESS].state is State.COMPLETED


@pytest.mark.parametrize("kind", [OutcomeType.WORKSPACE, OutcomeType.NOT_STARTED])
def test_a_fault_before_the_run_is_retryable_unless_it_is_permanent(kind: OutcomeType) -> None:
    passing, permanent = error_info(Outcome(kind, "x")), error_info(Outcome(kind, "x", is_permanent=True))
    assert passing is not None
    assert permanent is not None
    assert (passing.retryable, permanent.retryable) == (True, False)


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        (400, 400),
        (404, 404),
        (401, 401),
        (413, 413),
        (408, None),
        (409, None),
        (429, None),
        (500, None),
        (529, None),
    ],
)
def test_only_an_error_of_the_model_for_good_is_told_by_its_status(status: int, kept: int | None) -> None:
    result = replace(GOOD, is_error=True, api_error_status=status)
    outcome = decide_outcome(RunEvidence(exit_code=1, result=result))
    assert outcome.model_status == kept
    told = error_info(outcome)
    assert told is not None
    assert told.retryable is (kept is None)
