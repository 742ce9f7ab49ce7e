"""The outcome of a run, decided from all evidence and never from the exit code alone. Pure.

`OUTCOMES` is the closed list: each type with its state and its message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from steadyhand.job import ErrorInfo, Outcome, OutcomeType, State, Usage
from steadyhand.text_lines import split_lines


class StopReason(StrEnum):
    """The reason why Steadyhand stopped a run; the first one wins."""

    DEADLINE = "deadline"
    IDLE = "idle"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    UNANSWERED = "unanswered"
    DISPLACED = "displaced"
    STORE = "store"


class OutcomeInfo(NamedTuple):
    """The state of a job with an outcome, whether a retry may help, and the message as one sentence."""

    state: State
    retryable: bool
    message: str


OUTCOMES: Mapping[OutcomeType, OutcomeInfo] = {
    OutcomeType.SUCCESS: OutcomeInfo(State.COMPLETED, False, "The agent finished its work."),
    OutcomeType.AGENT_ERROR: OutcomeInfo(State.FAILED, True, "The agent ended with an error of its own."),
    OutcomeType.REFUSED: OutcomeInfo(State.FAILED, False, "The model refused the request."),
    OutcomeType.EMPTY: OutcomeInfo(
        State.FAILED, True, "The agent ended without an error and without an answer."
    ),
    OutcomeType.NO_RESULT: OutcomeInfo(State.FAILED, True, "The agent ended without a result."),
    OutcomeType.BUDGET: OutcomeInfo(State.FAILED, False, "The budget was spent."),
    OutcomeType.MAX_TURNS: OutcomeInfo(State.FAILED, False, "The limit of turns was reached."),
    OutcomeType.INVALID_OUTPUT: OutcomeInfo(State.FAILED, True, "The answer does not fit the output schema."),
    OutcomeType.RATE_LIMITED: OutcomeInfo(State.FAILED, True, "The model's rate limit was reached."),
    OutcomeType.UNAUTHORIZED: OutcomeInfo(
        State.FAILED, False, "The model's service did not accept the credential."
    ),
    OutcomeType.MODEL_ERROR: OutcomeInfo(State.FAILED, True, "The model's service answered with an error."),
    OutcomeType.UNKNOWN_AGENT: OutcomeInfo(State.FAILED, False, "The requested agent is not defined."),
    OutcomeType.UNKNOWN_COMMAND: OutcomeInfo(State.FAILED, False, "The requested command is not defined."),
    OutcomeType.NOT_ASKED: OutcomeInfo(State.FAILED, False, "The agent ended without asking the model."),
    OutcomeType.HOOK: OutcomeInfo(State.FAILED, False, "A hook kept the agent from its work."),
    OutcomeType.MEMORY: OutcomeInfo(State.FAILED, False, "The memory limit was reached."),
    OutcomeType.DISK: OutcomeInfo(State.FAILED, False, "The disk limit was reached."),
    OutcomeType.KILLED: OutcomeInfo(State.FAILED, True, "The agent was killed, but not by Steadyhand."),
    OutcomeType.TIMEOUT: OutcomeInfo(State.TIMEOUT, True, "The deadline passed."),
    OutcomeType.STALLED: OutcomeInfo(
        State.TIMEOUT, True, "The agent sent no output for the length of the idle limit."
    ),
    OutcomeType.CANCELLED: OutcomeInfo(State.CANCELLED, False, "It was cancelled."),
    OutcomeType.INTERRUPTED: OutcomeInfo(State.INTERRUPTED, True, "The node stopped under it."),
    OutcomeType.UNANSWERED: OutcomeInfo(
        State.INTERRUPTED, False, "The results of the calls that the agent asked its caller for did not come."
    ),
    OutcomeType.NOT_STARTED: OutcomeInfo(State.ERROR, True, "The agent's process could not be started."),
    OutcomeType.WORKSPACE: OutcomeInfo(State.ERROR, True, "The workspace could not be made ready."),
    OutcomeType.NO_SESSION: OutcomeInfo(
        State.ERROR, False, "The conversation that the job continues no longer exists."
    ),
    OutcomeType.EXPIRED: OutcomeInfo(
        State.ERROR, True, "The job waited in the queue longer than `expires_in_seconds`."
    ),
    OutcomeType.INTERNAL: OutcomeInfo(
        State.ERROR, True, "Steadyhand failed; the service's log has the cause."
    ),
}

_STOP_OUTCOMES = {
    StopReason.DEADLINE: OutcomeType.TIMEOUT,
    StopReason.IDLE: OutcomeType.STALLED,
    StopReason.CANCEL: OutcomeType.CANCELLED,
    StopReason.SHUTDOWN: OutcomeType.INTERRUPTED,
    StopReason.UNANSWERED: OutcomeType.UNANSWERED,
    StopReason.DISPLACED: OutcomeType.UNANSWERED,
    StopReason.STORE: OutcomeType.INTERRUPTED,
}
_STOP_DETAILS = {
    StopReason.DISPLACED: "The process ended to make room for others that wait; the results resume its session.",
    StopReason.STORE: "The store did not answer, and no more of the agent's output could be held.",
}
_STATUS_OUTCOMES = {
    401: OutcomeType.UNAUTHORIZED,
    402: OutcomeType.BUDGET,
    403: OutcomeType.UNAUTHORIZED,
    429: OutcomeType.RATE_LIMITED,
}
_LIMIT_SYMPTOMS = frozenset({OutcomeType.KILLED, OutcomeType.AGENT_ERROR, OutcomeType.NO_RESULT})
"""Outcomes that a reached memory or disk limit replaces."""
_FIRST_CLIENT_ERROR, _FIRST_SERVER_ERROR = 400, 500
_PASSING_STATUSES = frozenset({408, 409, 425, 429})
_MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The result that an agent's program reports, parsed; `raw` is the object as received.

    `reported` is the program's own outcome: success, a reached limit, or AGENT_ERROR for any other. `label` is its own
    name of it, the detail of an error without a message.
    """

    reported: OutcomeType
    is_error: bool
    text: str | None
    label: str = ""
    structured_output: Any = None
    api_error_status: int | None = None
    stop_reason: str | None = None
    errors: tuple[str, ...] = ()
    session_id: str | None = None
    cost_micros: int | None = None
    usage: Usage | None = None
    hook: str | None = None
    """A sentence about a hook that ended the agent's work."""
    raw: Mapping[str, Any] | None = None
    is_judged_by_calls: bool = False
    """True if the program tells neither the status of the model's service nor if it was asked: its calls tell both."""


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """All that is known of the end of a run. `exit_code` is None if a signal ended the agent.

    `schema_error` is the error of the last structured output against its schema. `out_of_memory` is True if the kernel
    killed a process of the run at its memory limit, `disk_full` if its disk was full.
    """

    stop_reason: StopReason | None = None
    exit_code: int | None = None
    signal: int | None = None
    result: AgentResult | None = None
    stderr: str = ""
    unknown_agent: bool = False
    schema_required: bool = False
    schema_error: str | None = None
    out_of_memory: bool = False
    disk_full: bool = False
    exhausted_budget: str | None = None
    """The budget that refused a call of the run, as a sentence."""
    unknown_command: str | None = None
    """The reason why the job's command cannot run."""
    hook: str | None = None
    """A sentence about a hook that has not ended."""
    counted_calls: int | None = None
    """The calls of the model in the ledger; None if nobody counts them."""
    last_status: int | None = None
    """The status of the last answer that the agent had from the model's service or the gateway, if it is known."""


def decide_outcome(evidence: RunEvidence) -> Outcome:
    """Return the outcome of a run.

    A run with a result that was asked to stop counts as stopped: the caller was told so. A reached limit is the outcome
    of a failed run only: an agent may cope with it.
    """
    if evidence.stop_reason is not None:
        reason = evidence.stop_reason
        is_limit = reason in (StopReason.DEADLINE, StopReason.IDLE)
        detail = evidence.hook if is_limit else _STOP_DETAILS.get(reason)
        return _outcome(_STOP_OUTCOMES[reason], detail)
    if evidence.unknown_command is not None:
        return _outcome(OutcomeType.UNKNOWN_COMMAND, evidence.unknown_command)
    if evidence.unknown_agent:
        return _outcome(OutcomeType.UNKNOWN_AGENT, _last_line(evidence.stderr))
    outcome = (
        _outcome_without_result(evidence)
        if evidence.result is None
        else _outcome_with_result(evidence.result, evidence)
    )
    if evidence.exhausted_budget is not None and outcome.type != OutcomeType.SUCCESS:
        return _outcome(OutcomeType.BUDGET, evidence.exhausted_budget)
    if outcome.type in _LIMIT_SYMPTOMS and (evidence.out_of_memory or evidence.disk_full):
        return _outcome(OutcomeType.MEMORY if evidence.out_of_memory else OutcomeType.DISK, outcome.detail)
    return outcome


def _outcome_without_result(evidence: RunEvidence) -> Outcome:
    if evidence.hook is not None:
        return _outcome(OutcomeType.HOOK, evidence.hook)
    if evidence.signal is not None:
        return _outcome(OutcomeType.KILLED, f"signal {evidence.signal}")
    if evidence.exit_code:
        detail = _last_line(evidence.stderr) or f"exit code {evidence.exit_code}"
        return _outcome(
            OutcomeType.UNKNOWN_AGENT if _names_unknown_agent(detail) else OutcomeType.AGENT_ERROR, detail
        )
    return _outcome(OutcomeType.NO_RESULT, "exit code 0")


def _outcome_with_result(result: AgentResult, evidence: RunEvidence) -> Outcome:
    message = "; ".join(result.errors) or result.text
    if result.reported not in (OutcomeType.SUCCESS, OutcomeType.AGENT_ERROR):
        schema_error = evidence.schema_error if result.reported == OutcomeType.INVALID_OUTPUT else None
        return _outcome(result.reported, schema_error or message)
    status = _error_status(result, evidence)
    if status is not None:
        return _outcome_of_status(status, message)
    if result.stop_reason == "refusal":
        return _outcome(OutcomeType.REFUSED, message)
    if result.is_error or result.reported != OutcomeType.SUCCESS:
        return _outcome(OutcomeType.AGENT_ERROR, message or result.label)
    if evidence.signal is not None:
        return _outcome(OutcomeType.KILLED, f"signal {evidence.signal} after its result")
    if evidence.exit_code:
        detail = _last_line(evidence.stderr) or f"exit code {evidence.exit_code}"
        return _outcome(OutcomeType.AGENT_ERROR, detail)
    if result.hook is not None:
        return _outcome(OutcomeType.HOOK, result.hook)
    if _never_asked(result, evidence):
        return _outcome(OutcomeType.NOT_ASKED, message)
    if evidence.schema_required and result.structured_output is None:
        return _outcome(OutcomeType.INVALID_OUTPUT, "no structured output came")
    if evidence.schema_error is not None:
        return _outcome(OutcomeType.INVALID_OUTPUT, evidence.schema_error)
    if not (result.text or "").strip() and result.structured_output is None:
        failure = _failed_call(evidence) if result.is_judged_by_calls else None
        return _outcome(OutcomeType.EMPTY) if failure is None else _outcome_of_status(failure, message)
    return _outcome(OutcomeType.SUCCESS)


def _error_status(result: AgentResult, evidence: RunEvidence) -> int | None:
    """Return the status of the model's service that ended the run, or None."""
    if not (result.is_judged_by_calls and result.is_error):
        return result.api_error_status
    return _failed_call(evidence)


def _failed_call(evidence: RunEvidence) -> int | None:
    """Return the status of the last answer of the model's service if that is an error, else None."""
    last = evidence.last_status
    return last if last is not None and last >= _FIRST_CLIENT_ERROR else None


def _outcome_of_status(status: int, message: str | None) -> Outcome:
    outcome = _outcome(_STATUS_OUTCOMES.get(status, OutcomeType.MODEL_ERROR), message)
    return replace(outcome, model_status=status) if _is_permanent(status) else outcome


def _never_asked(result: AgentResult, evidence: RunEvidence) -> bool:
    """Return True if neither the ledger nor the agent knows of a call of the model.

    An agent may reach its model past the gateway, and one that reports no turn may have paid for a call all the same.
    """
    if evidence.counted_calls or result.cost_micros:
        return False
    if result.is_judged_by_calls:
        return evidence.counted_calls is not None
    return result.usage is not None and result.usage.turns == 0


def error_info(outcome: Outcome) -> ErrorInfo | None:
    """Return the `error` of an ended job: None for a success, else its code, its message and whether to retry."""
    info = OUTCOMES[outcome.type]
    if info.state is State.COMPLETED:
        return None
    message = info.message if outcome.detail is None else f"{info.message} {outcome.detail}"
    retryable = info.retryable and outcome.model_status is None and not outcome.is_permanent
    return ErrorInfo(code=outcome.type, message=message, retryable=retryable)


def _is_permanent(status: int) -> bool:
    """Return True for a status that the same request would get again."""
    return _FIRST_CLIENT_ERROR <= status < _FIRST_SERVER_ERROR and status not in _PASSING_STATUSES


def _outcome(kind: OutcomeType, detail: str | None = None) -> Outcome:
    one_line = " ".join(detail.split())[:_MAX_DETAIL] if detail else None
    return Outcome(kind, one_line or None)


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in split_lines(text) if line.strip()]
    return lines[-1] if lines else None


def _names_unknown_agent(line: str) -> bool:
    return line.startswith("--agent '") and "not found. Available agents:" in line
