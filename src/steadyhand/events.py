"""What happens in a job, as typed and numbered events. Pure.

A body is one of the classes below; `type` is its name on the wire and its fields are its `data`
(docs/http-api.md#events). `TextDelta` is live only: it has no number and is never stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

from steadyhand.job_warnings import WarningCode


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A job moved along an edge; `source` is null for its acceptance."""

    type: ClassVar[str] = "state.changed"
    source: str | None
    target: str
    outcome: str | None = None
    reason: str | None = None
    parked_until: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message of the agent (or a person's turn within the run)."""

    type: ClassVar[str] = "message"
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """What the model thought before it spoke."""

    type: ClassVar[str] = "thinking"
    text: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool call, as the model asked for it."""

    type: ClassVar[str] = "tool.started"
    tool_id: str
    name: str
    input: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """What a tool answered; `output` is text, cut at 64 KiB when `truncated`."""

    type: ClassVar[str] = "tool.finished"
    tool_id: str
    is_error: bool
    output: str
    truncated: bool
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class ToolCallsRequested:
    """The agent waits for its caller to make these calls: each with `id`, `name` and `arguments`."""

    type: ClassVar[str] = "calls.waiting"
    calls: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ToolCallsAnswered:
    """The caller brought what came of the calls with these `ids`; `digest` stands for the results, all of them."""

    type: ClassVar[str] = "calls.answered"
    ids: Sequence[str]
    digest: str


@dataclass(frozen=True, slots=True)
class UsageReported:
    """Tokens of one model turn or of the run so far, with the cost when it is known (decimal dollars)."""

    type: ClassVar[str] = "usage"
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    turns: int
    cost_usd: str | None = None


@dataclass(frozen=True, slots=True)
class EgressRefused:
    """The agent asked for a host that it may not reach."""

    type: ClassVar[str] = "egress.refused"
    host: str


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """Something the caller should know."""

    type: ClassVar[str] = "warning"
    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a message under way. Live only."""

    type: ClassVar[str] = "text.delta"
    message_id: str
    text: str


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
)
"""What is numbered and stored."""

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
    )
}

STEP_TYPES = frozenset({Message.type, Thinking.type, ToolStarted.type, ToolFinished.type})
"""What an agent says and does, one after the other."""

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
    """A piece of text on its way to those who follow now.

    It came after `steps` events of its run that are `STEPS`, and stands at `offset` in its message: a follower that
    missed a piece, or came in the middle, or is told of it before what came before it was kept, can tell.
    """

    job_id: str
    run: int
    at: datetime
    body: TextDelta
    steps: int = 0
    offset: int = 0


def format_rfc3339(at: datetime) -> str:
    """Give a time as it stands on the wire: in UTC, with a Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def event_data(body: EventBody | TextDelta) -> dict[str, Any]:
    """Give a body's `data` as it stands on the wire."""
    return {_WIRE_NAMES.get(each.name, each.name): getattr(body, each.name) for each in fields(body)}
