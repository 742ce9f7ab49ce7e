"""The timeline of a job: what it did and waited for, one after another, from its stored events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from steadyhand.events import Event, PhaseStarted, StateChanged, ToolCallsAnswered, ToolCallsRequested
from steadyhand.job import ENDED, State

WIDTH, ROW_HEIGHT, BAR_HEIGHT = 1000, 26, 18
"""The size of the picture, without a unit: it is as wide as its place."""
MAX_SPANS = 300
TIMELINE_EVENTS = frozenset(
    {StateChanged.type, PhaseStarted.type, ToolCallsRequested.type, ToolCallsAnswered.type}
)
_LEAST_WIDTH = 2.0
_LABELS = {
    "queued": "Queued",
    "waiting": "Waiting for the turn before",
    "parked": "Parked",
    "begun": "Preparing",
    "fetching": "Fetch",
    "checking_out": "Checkout",
    "setup": "Setup",
    "starting": "Start of the agent",
    "running": "Running",
    "tool": "Waiting for a tool of the client",
    "harvesting": "Harvest",
}
_STATES = {State.QUEUED: "queued", State.PARKED: "parked", State.WAITING: "waiting", State.RUNNING: "begun"}


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the timeline; `end` is None for the one that goes on."""

    kind: str
    run: int
    start: datetime
    end: datetime | None = None

    @property
    def label(self) -> str:
        """The name for people."""
        return _LABELS[self.kind]


@dataclass(frozen=True, slots=True)
class Bar:
    """A span as a rectangle of the picture."""

    span: Span
    seconds: float
    x: float
    y: int
    width: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars of all spans, a row for each run, and what they are together."""

    bars: Sequence[Bar]
    rows: Sequence[int]
    """The runs; the first one has the waits before it."""
    start: datetime | None
    end: datetime | None

    @property
    def height(self) -> int:
        """The height of the picture."""
        return max(1, len(self.rows)) * ROW_HEIGHT


def timeline_spans(events: Sequence[Event]) -> Sequence[Span]:
    """Return the spans between these events, the newest `MAX_SPANS`."""
    spans: list[Span] = []
    current: Span | None = None
    for event in events:
        kind = _kind(event)
        if kind is None or (current is not None and (kind, event.run) == (current.kind, current.run)):
            continue
        if current is not None:
            spans.append(Span(current.kind, current.run, current.start, max(current.start, event.at)))
        current = None if kind == "ended" else Span(kind, event.run, event.at)
    if current is not None:
        spans.append(current)
    return spans[-MAX_SPANS:]


def _kind(event: Event) -> str | None:
    if event.type == ToolCallsRequested.type:
        return "tool"
    if event.type == ToolCallsAnswered.type:
        return "running"
    if event.type == PhaseStarted.type:
        phase = str(event.data.get("phase"))
        return phase if phase in _LABELS else None
    try:
        state = State(str(event.data.get("to")))
    except ValueError:
        return None
    return "ended" if state in ENDED else _STATES[state]


def build_timeline(events: Sequence[Event], now: datetime) -> Timeline:
    """Return the timeline after these events; a span that goes on ends `now`."""
    spans = timeline_spans(events)
    if not spans:
        return Timeline((), (), None, None)
    rows = sorted({max(1, span.run) for span in spans})
    start, end = spans[0].start, max(span.end or now for span in spans)
    total = max((end - start).total_seconds(), 0.001)
    bars = []
    for span in spans:
        seconds = max(0.0, ((span.end or now) - span.start).total_seconds())
        width = min(WIDTH, max(_LEAST_WIDTH, WIDTH * seconds / total))
        x = min(WIDTH - width, WIDTH * max(0.0, (span.start - start).total_seconds()) / total)
        y = rows.index(max(1, span.run)) * ROW_HEIGHT
        bars.append(Bar(span, seconds, round(x, 1), y, round(width, 1)))
    return Timeline(bars, rows, start, end)
