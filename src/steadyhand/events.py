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
    """A tool call as the model requested it."""

    type: ClassVar[str] = "tool.started"
    tool_id: str
    name: str
    input: Mapping[str, Any]


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


@dataclass(frozen=True, slots=True)
class EgressRefused:
    """A refused connection to a host that the agent may not reach."""

    type: ClassVar[str] = "egress.refused"
    host: str


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
    | WarningEvent
    | PhaseStarted
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
        WarningEvent,
        PhaseStarted,
    )
}

STEP_TYPES = frozenset({Message.type, Thinking.type, ToolStarted.type, ToolFinished.type})
"""The events of the agent's steps: messages, thinking and tool calls."""

_WIRE_NAMES = {"source": "from", "target": "to"}


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
    return {_WIRE_NAMES.get(field.name, field.name): getattr(body, field.name) for field in fields(body)}
