"""A run that an earlier service left: the events of it that are stored, and the rest of them.

Its output is read again from the beginning, which makes the same events again in the same order. Those that are stored
are left out: so none is lost and none is stored twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from steadyhand.errors import RunError
from steadyhand.events import (
    STEP_TYPES,
    Event,
    EventBody,
    Message,
    PhaseStarted,
    SteerAccepted,
    SteerDropped,
    SteerUsed,
    TextDelta,
    Thinking,
    ToolCallsAnswered,
    ToolCallsRequested,
    ToolFinished,
    ToolStarted,
    UsageReported,
    WarningEvent,
)
from steadyhand.job import Job, ToolOutput
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Emit, OrphanedRun, Store

_PAGE_SIZE = 500
_AGENT_TYPES = frozenset(
    each.type
    for each in (
        Message,
        Thinking,
        ToolStarted,
        ToolFinished,
        UsageReported,
        SteerAccepted,
        SteerUsed,
        SteerDropped,
    )
)
"""The events that come from the agent's output, with the warnings of `_AGENT_WARNINGS`."""
_AGENT_WARNINGS = frozenset(
    {
        WarningCode.AGENT_NOTICE,
        WarningCode.MODEL_ERROR,
        WarningCode.API_RETRY,
        WarningCode.COMPACTED,
        WarningCode.RATE_LIMIT,
        WarningCode.EVENTS_LEFT_OUT,
    }
)


class NotTakenUp(RunError):
    """A run that an earlier service left cannot go on."""


@dataclass(slots=True)
class StoredEvents:
    """The events of a run that are stored."""

    from_agent: deque[str] = field(default_factory=deque)
    """The types of those that come from the agent's output, in their order."""
    steps: int = 0
    """The number of those in `STEP_TYPES`."""
    warnings: set[tuple[str, str]] = field(default_factory=set)
    """The codes and the texts of the warnings."""
    open_tools: dict[str, datetime] = field(default_factory=dict)
    """The start of each tool call that has not ended."""
    phases: set[str] = field(default_factory=set)
    """The phases that have begun."""
    asked: dict[frozenset[str], datetime | None] = field(default_factory=dict)
    """The ids of the calls of the client's tools, by turns; with the time of the turn that has no results yet."""
    waited_seconds: float = 0.0
    """The time that the run waited for results of earlier turns."""

    @classmethod
    async def read(cls, store: Store, job: Job) -> "StoredEvents":
        """Read the events of the newest run of a job."""
        stored, after = cls(), 0
        while page := await store.list_events(job.id, after, _PAGE_SIZE):
            after = page[-1].seq
            for event in page:
                if event.run == job.run:
                    stored.add(event)
        return stored

    def add(self, event: Event) -> None:
        """Add the next event."""
        self.steps += event.type in STEP_TYPES
        if event.type == ToolStarted.type:
            self.open_tools[str(event.data.get("tool_id"))] = event.at
        elif event.type == ToolFinished.type:
            self.open_tools.pop(str(event.data.get("tool_id")), None)
        elif event.type == ToolCallsRequested.type:
            self.asked[frozenset(str(call["id"]) for call in event.data["calls"])] = event.at
        elif event.type == ToolCallsAnswered.type:
            for ids, asked_at in self.asked.items():
                if asked_at is not None:
                    self.waited_seconds += (event.at - asked_at).total_seconds()
                    self.asked[ids] = None
        elif event.type == PhaseStarted.type:
            self.phases.add(str(event.data.get("phase")))
        elif event.type == WarningEvent.type:
            self.warnings.add((str(event.data.get("code")), str(event.data.get("message"))))
        if _is_from_agent(event.type, event.data.get("code")):
            self.from_agent.append(_key(event.type, event.data))


def _is_from_agent(event_type: str, code: Any) -> bool:
    return event_type in _AGENT_TYPES or (event_type == WarningEvent.type and code in _AGENT_WARNINGS)


def _key(event_type: str, data: Mapping[str, Any]) -> str:
    return f"{event_type} {data.get('code')}" if event_type == WarningEvent.type else event_type


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A run that goes on, and its stored events. Without an orphan its agent had not started."""

    orphan: OrphanedRun | None
    stored: StoredEvents
    clock: Callable[[], datetime]
    results: Mapping[str, ToolOutput] = field(default_factory=dict)
    """Results of the client's tools that the agent may not have got, by the ids of their calls."""

    def seconds_left(self, job: Job) -> float:
        """Return the seconds until the deadline of the run, which is the newest of its job."""
        if self.orphan is not None:
            waited = self.stored.waited_seconds + sum(
                (self.clock() - asked_at).total_seconds()
                for asked_at in self.stored.asked.values()
                if asked_at
            )
            return max(0.0, float(self.orphan.facts["deadline"]) + waited - asyncio.get_running_loop().time())
        started = job.runs[-1].started_at or self.clock()
        elapsed = (self.clock() - started).total_seconds()
        return max(0.0, job.timeout_seconds - job.used_seconds - elapsed)

    def was_asked(self, call_ids: frozenset[str]) -> bool:
        """Return True if the event of these calls of the client's tools is stored."""
        return call_ids in self.stored.asked

    def seconds_since_asked(self, call_ids: frozenset[str]) -> float:
        """Return the time that calls have waited for their results; 0 if they have them, or were not sent."""
        asked_at = self.stored.asked.get(call_ids)
        return 0.0 if asked_at is None else max(0.0, (self.clock() - asked_at).total_seconds())

    def results_of(self, call_ids: frozenset[str]) -> Mapping[str, ToolOutput] | None:
        """Return the results of calls that the agent had not got; None if they have none.

        Raise `NotTakenUp` if the event of their answer is stored and they are lost.
        """
        if not self.was_asked(call_ids) or self.stored.asked[call_ids] is not None:
            return None
        if not call_ids <= self.results.keys():
            raise NotTakenUp("The results of the client's tools had not reached the agent.")
        return {call_id: self.results[call_id] for call_id in call_ids}

    def has_begun(self, phase: str) -> bool:
        """Return True if the event of a phase is stored."""
        return phase in self.stored.phases

    def rest_of(self, emit: Emit) -> Emit:
        """Return a function for the events of the agent's whole output, which leaves out the stored ones."""
        expected = self.stored.from_agent

        async def emit_rest(body: EventBody | TextDelta) -> None:
            if not expected:
                await emit(self._with_duration(body) if isinstance(body, ToolFinished) else body)
                return
            if isinstance(body, TextDelta):
                return
            code = body.code if isinstance(body, WarningEvent) else None
            if expected.popleft() != _key(body.type, {"code": code}):
                raise NotTakenUp("This version reads the output of the run in another way.")

        return emit_rest

    def _with_duration(self, body: ToolFinished) -> ToolFinished:
        """Return the end of a tool call with the time since its stored start: its start was read again just now."""
        started = self.stored.open_tools.get(body.tool_id)
        if started is None:
            return body
        return replace(body, duration_ms=round((self.clock() - started).total_seconds() * 1000))

    def new_only(self, emit: Emit) -> Emit:
        """Return a function for events of the gateway, which leaves out a warning that is stored already."""
        warnings = self.stored.warnings

        async def emit_new(body: EventBody | TextDelta) -> None:
            if not isinstance(body, WarningEvent) or (str(body.code), body.message) not in warnings:
                await emit(body)

        return emit_new
