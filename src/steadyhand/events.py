"""The events of a job, typed and numbered. Pure.

A body is one of the classes below; `type` is its name on the wire and its fields are its `data`
(docs/http-api.md#events). `TextDelta`, `ThinkingDelta` and `PhaseProgress` are live only: they have no number
and are never stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

from steadyhand.job_warnings import WarningCode


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A change of state; `source` is None for the acceptance of the job."""

    type: ClassVar[str] = "state.changed"
    source: str | None
    target: str
    outcome: str | None = None
    reason: str | None = None
    parked_until: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message of the agent, or a user turn within the run."""

    type: ClassVar[str] = "message"
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """The model's thinking before a message."""

    type: ClassVar[str] = "thinking"
    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool call as the model requested it; `parent_tool_id` is the call that started the subagent which made it."""

    type: ClassVar[str] = "tool.started"
    tool_id: str
    name: str
    input: Mapping[str, Any]
    parent_tool_id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """The result of a tool; `output` is text, cut at 64 KiB if `truncated`."""

    type: ClassVar[str] = "tool.finished"
    tool_id: str
    is_error: bool
    output: str
    truncated: bool
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class ToolCallsRequested:
    """Calls of client tools whose results the agent waits for: each has `id`, `name` and `arguments`."""

    type: ClassVar[str] = "calls.waiting"
    calls: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ToolCallsAnswered:
    """Results of the calls with these `ids` from the client; `digest` is a digest of all the results."""

    type: ClassVar[str] = "calls.answered"
    ids: Sequence[str]
    digest: str


@dataclass(frozen=True, slots=True)
class UsageReported:
    """Tokens of one model turn or of the run so far, with the cost if it is known (decimal dollars)."""

    type: ClassVar[str] = "usage"
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    turns: int
    cost_usd: str | None = None
    context_windows: Mapping[str, int] | None = None
    """The tokens that fit into the context of the models of the run, by name; as the agent reports it at its end."""


@dataclass(frozen=True, slots=True)
class EgressRefused:
    """A refused connection to a host that the agent may not reach."""

    type: ClassVar[str] = "egress.refused"
    host: str


@dataclass(frozen=True, slots=True)
class BudgetNear:
    """A budget of which a share was reached by a call of this job: that of a key, an agent or the service."""

    type: ClassVar[str] = "budget.near"
    scope: str
    name: str
    period: str
    limit_usd: str
    spent_usd: str


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """A warning: a problem that did not end the job."""

    type: ClassVar[str] = "warning"
    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The begin of a phase of the run; `detail` is the command of a setup, else `None`."""

    type: ClassVar[str] = "phase"
    phase: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """The progress within a phase. Live only."""

    type: ClassVar[str] = "phase.progress"
    phase: str
    detail: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a message that is not complete yet. Live only."""

    type: ClassVar[str] = "text.delta"
    message_id: str
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta(TextDelta):
    """A piece of thinking that is not complete yet. Live only."""

    type: ClassVar[str] = "thinking.delta"


@dataclass(frozen=True, slots=True)
class SteerAccepted:
    """A message to the running turn that the agent has read; it waits for the agent's next step."""

    type: ClassVar[str] = "steer.accepted"
    steer_id: str
    text: str


@dataclass(frozen=True, slots=True)
class SteerUsed:
    """The agent goes on with a message to the running turn."""

    type: ClassVar[str] = "steer.used"
    steer_id: str


@dataclass(frozen=True, slots=True)
class SteerDropped:
    """The run ended before the agent went on with a message that it had read."""

    type: ClassVar[str] = "steer.dropped"
    steer_id: str


EventBody = (
    StateChanged
    | Message
    | Thinking
    | ToolStarted
    | ToolFinished
    | ToolCallsRequested
    | ToolCallsAnswered
    | UsageReported
    | EgressRefused
    | BudgetNear
    | WarningEvent
    | PhaseStarted
    | SteerAccepted
    | SteerUsed
    | SteerDropped
)
"""The events that are numbered and stored."""

EVENT_TYPES: Mapping[str, type[EventBody]] = {
    kind.type: kind
    for kind in (
        StateChanged,
        Message,
        Thinking,
        ToolStarted,
        ToolFinished,
        ToolCallsRequested,
        ToolCallsAnswered,
        UsageReported,
        EgressRefused,
        BudgetNear,
        WarningEvent,
        PhaseStarted,
        SteerAccepted,
        SteerUsed,
        SteerDropped,
    )
}

STEP_TYPES = frozenset({Message.type, Thinking.type, ToolStarted.type, ToolFinished.type})
"""The events of the agent's steps: messages, thinking and tool calls."""


def budget_near_text(data: Mapping[str, Any]) -> str:
    """Return a sentence about a budget that is nearly spent, from the data of its event."""
    owner = {"agent": f"the agent {data.get('name', '')}", "key": "this key"}.get(
        str(data.get("scope")), "this service"
    )
    amounts = f"{data.get('spent_usd', '?')} of {data.get('limit_usd', '?')} USD"
    return f"The budget of {owner} for this {data.get('period', 'day')} is nearly spent: {amounts}."


_WIRE_NAMES = {"source": "from", "target": "to"}
_LATER_FIELDS = frozenset({"parent_tool_id", "context_windows"})
"""Fields that events have had since they were first stored; one that is None is left out."""


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event before the store has numbered it."""

    run: int
    at: datetime
    body: EventBody


@dataclass(frozen=True, slots=True)
class Event:
    """A durable event: `seq` counts from 1 within its job, without gaps, on across runs."""

    seq: int
    job_id: str
    run: int
    at: datetime
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LiveText:
    """A piece of text for the current followers of a job.

    `steps` is the number of events of its run in `STEP_TYPES` before it, `offset` its position in its message or
    thinking. So a follower notices a missed piece, a late start, and a piece that arrives before the stored events
    that precede it. `taken_back` is the number of characters sent before that begin a secret which is replaced in this
    piece; its `offset` does not count them.
    """

    job_id: str
    run: int
    at: datetime
    body: TextDelta
    steps: int = 0
    offset: int = 0
    taken_back: int = 0


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """The progress of a run's phase for the current followers of a job."""

    job_id: str
    run: int
    at: datetime
    body: PhaseProgress


def format_rfc3339(at: datetime) -> str:
    """Return a time in RFC 3339, in UTC with a Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def event_data(body: EventBody | TextDelta | PhaseProgress) -> dict[str, Any]:
    """Return the `data` of an event as it is sent to clients."""
    return {
        _WIRE_NAMES.get(field.name, field.name): value
        for field in fields(body)
        if (value := getattr(body, field.name)) is not None or field.name not in _LATER_FIELDS
    }
