"""Judging a run from all evidence, never from the exit code alone. Pure.

`OUTCOMES` is the closed list: each type, the state it means, and what it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from steadyhand.job import Fault, OutcomeType, State, Usage, Verdict


class Stop(StrEnum):
    """Why Steadyhand stopped a run; the first reason given wins."""

    DEADLINE = "deadline"
    IDLE = "idle"
    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    UNANSWERED = "unanswered"


class Meaning(NamedTuple):
    """What an outcome says: the state of its job, whether asking again may help, and in a sentence why."""

    state: State
    retryable: bool
    text: str


OUTCOMES: Mapping[OutcomeType, Meaning] = {
    OutcomeType.SUCCESS: Meaning(State.COMPLETED, False, "The agent finished its work."),
    OutcomeType.AGENT_ERROR: Meaning(State.FAILED, True, "The agent ended with an error of its own."),
    OutcomeType.REFUSED: Meaning(State.FAILED, False, "The model refused the request."),
    OutcomeType.EMPTY: Meaning(State.FAILED, True, "The agent ended well and said nothing."),
    OutcomeType.NO_RESULT: Meaning(State.FAILED, True, "The agent ended without a result."),
    OutcomeType.BUDGET: Meaning(State.FAILED, False, "The budget was spent."),
    OutcomeType.MAX_TURNS: Meaning(State.FAILED, False, "The limit of turns was reached."),
    OutcomeType.INVALID_OUTPUT: Meaning(State.FAILED, True, "The answer does not fit the output schema."),
    OutcomeType.RATE_LIMITED: Meaning(State.FAILED, True, "The model's rate limit was reached."),
    OutcomeType.UNAUTHORIZED: Meaning(
        State.FAILED, False, "The model's service did not accept the credential."
    ),
    OutcomeType.MODEL_ERROR: Meaning(State.FAILED, True, "The model's service answered with an error."),
    OutcomeType.UNKNOWN_AGENT: Meaning(State.FAILED, False, "Nobody defined the agent that was asked for."),
    OutcomeType.MEMORY: Meaning(State.FAILED, False, "The memory limit was reached."),
    OutcomeType.DISK: Meaning(State.FAILED, False, "The disk limit was reached."),
    OutcomeType.KILLED: Meaning(
        State.FAILED, True, "The agent was killed by something that was not Steadyhand."
    ),
    OutcomeType.TIMEOUT: Meaning(State.TIMEOUT, True, "The deadline passed."),
    OutcomeType.STALLED: Meaning(State.TIMEOUT, True, "Nothing was heard from the agent for the idle limit."),
    OutcomeType.CANCELLED: Meaning(State.CANCELLED, False, "It was cancelled."),
    OutcomeType.INTERRUPTED: Meaning(State.INTERRUPTED, True, "The node stopped under it."),
    OutcomeType.UNANSWERED: Meaning(
        State.INTERRUPTED, False, "The results of the calls that the agent asked its caller for did not come."
    ),
    OutcomeType.NOT_STARTED: Meaning(State.ERROR, True, "The agent's process could not be started."),
    OutcomeType.WORKSPACE: Meaning(State.ERROR, True, "The workspace could not be made ready."),
    OutcomeType.EXPIRED: Meaning(State.ERROR, True, "It waited longer in the queue than it was good for."),
    OutcomeType.INTERNAL: Meaning(State.ERROR, True, "Steadyhand failed; the service's log has the cause."),
}

_STOPPED = {
    Stop.DEADLINE: OutcomeType.TIMEOUT,
    Stop.IDLE: OutcomeType.STALLED,
    Stop.CANCEL: OutcomeType.CANCELLED,
    Stop.SHUTDOWN: OutcomeType.INTERRUPTED,
    Stop.UNANSWERED: OutcomeType.UNANSWERED,
}
_SUBTYPES = {
    "error_max_turns": OutcomeType.MAX_TURNS,
    "error_max_budget_usd": OutcomeType.BUDGET,
    "error_max_structured_output_retries": OutcomeType.INVALID_OUTPUT,
}
_STATUSES = {
    401: OutcomeType.UNAUTHORIZED,
    402: OutcomeType.BUDGET,
    403: OutcomeType.UNAUTHORIZED,
    429: OutcomeType.RATE_LIMITED,
}
_BROKEN = frozenset({OutcomeType.KILLED, OutcomeType.AGENT_ERROR, OutcomeType.NO_RESULT})
"""What a run that ran out of something looks like: the limit is then what to say."""
_DETAIL_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Result:
    """The CLI's own result object, read: `raw` is that object as it came."""

    subtype: str
    is_error: bool
    text: str | None
    structured_output: Any = None
    api_error_status: int | None = None
    stop_reason: str | None = None
    errors: tuple[str, ...] = ()
    session_id: str | None = None
    cost_micros: int | None = None
    usage: Usage | None = None
    raw: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of how a run ended. `exit_code` is null when a signal ended the agent.

    `schema_fault` says what of the object that it gave, or gave last, does not fit its schema. `memory` says that the
    kernel killed something of the run at its memory limit, `disk` that its disk was full.
    """

    stop: Stop | None = None
    exit_code: int | None = None
    signal: int | None = None
    result: Result | None = None
    stderr: str = ""
    unknown_agent: bool = False
    wants_schema: bool = False
    schema_fault: str | None = None
    memory: bool = False
    disk: bool = False
    spent_out: str | None = None
    """Which budget turned a call of the run away, in a sentence."""


def judge(evidence: Evidence) -> Verdict:
    """Say what a run came to.

    A result that came before a stop was asked for still counts as stopped: the caller was told so. A limit that was
    reached says why a run broke; one that the agent coped with says nothing.
    """
    if evidence.stop is not None:
        return _verdict(_STOPPED[evidence.stop])
    if evidence.unknown_agent:
        return _verdict(OutcomeType.UNKNOWN_AGENT, _last_line(evidence.stderr))
    judged = _without_result(evidence) if evidence.result is None else _with_result(evidence.result, evidence)
    if evidence.spent_out is not None and judged.type != OutcomeType.SUCCESS:
        return _verdict(OutcomeType.BUDGET, evidence.spent_out)
    if judged.type in _BROKEN and (evidence.memory or evidence.disk):
        return _verdict(OutcomeType.MEMORY if evidence.memory else OutcomeType.DISK, judged.detail)
    return judged


def _without_result(evidence: Evidence) -> Verdict:
    if evidence.signal is not None:
        return _verdict(OutcomeType.KILLED, f"signal {evidence.signal}")
    if evidence.exit_code:
        detail = _last_line(evidence.stderr) or f"exit code {evidence.exit_code}"
        return _verdict(
            OutcomeType.UNKNOWN_AGENT if _names_unknown_agent(detail) else OutcomeType.AGENT_ERROR, detail
        )
    return _verdict(OutcomeType.NO_RESULT, "exit code 0")


def _with_result(result: Result, evidence: Evidence) -> Verdict:
    said = "; ".join(result.errors) or result.text
    if result.subtype in _SUBTYPES:
        kind = _SUBTYPES[result.subtype]
        return _verdict(kind, (evidence.schema_fault if kind == OutcomeType.INVALID_OUTPUT else None) or said)
    if result.api_error_status is not None:
        return _verdict(_STATUSES.get(result.api_error_status, OutcomeType.MODEL_ERROR), said)
    if result.stop_reason == "refusal":
        return _verdict(OutcomeType.REFUSED, said)
    if result.is_error or result.subtype != "success":
        return _verdict(OutcomeType.AGENT_ERROR, said or result.subtype)
    if evidence.signal is not None:
        return _verdict(OutcomeType.KILLED, f"signal {evidence.signal} after its result")
    if evidence.exit_code:
        detail = _last_line(evidence.stderr) or f"exit code {evidence.exit_code}"
        return _verdict(OutcomeType.AGENT_ERROR, detail)
    if evidence.wants_schema and result.structured_output is None:
        return _verdict(OutcomeType.INVALID_OUTPUT, "no structured output came")
    if evidence.schema_fault is not None:
        return _verdict(OutcomeType.INVALID_OUTPUT, evidence.schema_fault)
    if not (result.text or "").strip() and result.structured_output is None:
        return _verdict(OutcomeType.EMPTY)
    return _verdict(OutcomeType.SUCCESS)


def fault_of(verdict: Verdict) -> Fault | None:
    """Give the `error` of an ended job: null for a success, else code, message and whether to try again."""
    meaning = OUTCOMES[verdict.type]
    if meaning.state is State.COMPLETED:
        return None
    message = meaning.text if verdict.detail is None else f"{meaning.text} {verdict.detail}"
    return Fault(code=verdict.type, message=message, retryable=meaning.retryable)


def _verdict(kind: OutcomeType, detail: str | None = None) -> Verdict:
    one_line = " ".join(detail.split())[:_DETAIL_LIMIT] if detail else None
    return Verdict(kind, one_line or None)


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def _names_unknown_agent(line: str) -> bool:
    return line.startswith("--agent '") and "not found. Available agents:" in line
