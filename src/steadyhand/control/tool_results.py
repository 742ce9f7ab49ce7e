"""What came of the calls that agents ask their callers for: brought to the process that waits, or to its session."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steadyhand.control.lifecycle import Moving
from steadyhand.control.requests import Caller, Continuation
from steadyhand.errors import InvalidRequest
from steadyhand.events import CallsAnswered, CallsWaiting, Draft, Event
from steadyhand.job import Job, OutcomeType, State
from steadyhand.tool_calls import digest_of

_UNKNOWN_CALL = "unknown_call"
_TAKES_LATE_RESULTS = frozenset({OutcomeType.UNANSWERED, OutcomeType.INTERRUPTED, OutcomeType.TIMEOUT})

Note = Callable[[Job], Job]


@dataclass(frozen=True, slots=True)
class Answered:
    """Results that were given: the job, the how manieth time that calls of it were answered, and the event of it."""

    job: Job
    number: int
    after: int


@dataclass(slots=True)
class _Asked:
    """What a job asked its caller for so far: the calls of the newest turn with any, and each time of an answer."""

    calls: Sequence[Mapping[str, Any]] = ()
    run: int = 0
    open: bool = False
    answers: list[Event] = field(default_factory=list)

    def take(self, event: Event) -> None:
        if event.type == CallsWaiting.type:
            self.calls, self.run, self.open = event.data["calls"], event.run, True
        elif event.type == CallsAnswered.type:
            self.open = False
            self.answers.append(event)

    def needs(self, job: Job) -> frozenset[str]:
        """Give the ids of the calls that the newest run still needs the results of."""
        return self.ids if self.open and self.run == job.run else frozenset()

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(call["id"] for call in self.calls)

    def known(self, job: Job, digest: str) -> Answered | None:
        """Give the newest time that these very results were given, if they were."""
        for number, event in reversed(list(enumerate(self.answers, 1))):
            if event.data["digest"] == digest:
                return Answered(job, number, event.seq)
        return None


class Control(Moving):
    """Every verb over the ports. Each takes the caller and checks what that key may do."""

    async def open_calls(self, caller: Caller, job_id: str) -> frozenset[str]:
        """Give the ids of the calls whose results a job needs to go on, whether its process waits or not."""
        job = await self.get(caller, job_id)
        return (await self._asked(job_id)).needs(job) if job.tools else frozenset()

    async def answer_calls(
        self, caller: Caller, job_id: str, results: Mapping[str, str], note: Note | None = None
    ) -> Answered:
        """Give an agent the results of the calls that it waits for, by their ids; a repeat is harmless.

        When the agent's process is not there any more, its session is resumed. `note` changes the job in the same
        commit, and not for a repeat; it is pure. Raises `NotFound`, and `InvalidRequest` for ids that are not those
        that it waits for.
        """
        caller.require("submit")
        async with self._exchange.one_by_one(job_id):
            job = await self.get(replace(caller, scopes=frozenset({"read"})), job_id)
            asked = await self._asked(job_id)
            known = asked.known(job, digest_of(results))
            if known is not None:
                return await self._once_more(caller, known, asked, results)
            return await self._to_process(job, asked, results, note) or await self._to_session(
                caller, job_id, asked, results, note
            )

    async def forget_part(self, caller: Caller, job_id: str, less: Callable[[Job], Job | None]) -> bool:
        """Keep less of what a job has for the door that it came through; false, and nothing, when `less` gives null."""
        caller.require("cancel")
        job = await self.get(caller, job_id)
        if less(job) is None:
            return False
        await self._store.change(job_id, frozenset(State), lambda old: less(old) or old)
        return True

    async def _asked(self, job_id: str) -> _Asked:
        asked = _Asked()
        async for event in self._stored(job_id, 0):
            asked.take(event)
        return asked

    async def _to_process(
        self, job: Job, asked: _Asked, results: Mapping[str, str], note: Note | None
    ) -> Answered | None:
        """Hand the results to the process that waits for them; null when none does any more."""
        waiting = self._exchange.of(job.id)
        if waiting is None or waiting.ids != asked.needs(job):
            return None
        _are_those(results, waiting.ids)
        if not waiting.hold():
            return None
        drafts = [Draft(job.run, self._clock(), CallsAnswered(sorted(results), digest_of(results)))]
        # Kept first: what the agent makes of them comes after this event.
        job = await self._recorder.change(job.id, frozenset({State.RUNNING}), note or _as_is, drafts)
        waiting.answer(results)
        return Answered(job, len(asked.answers) + 1, job.last_event)

    async def _to_session(
        self, caller: Caller, job_id: str, asked: _Asked, results: Mapping[str, str], note: Note | None
    ) -> Answered:
        """Resume the session of an agent whose process has ended while its calls waited."""
        job = await self.get(caller, job_id)
        outcome = job.outcome.type if job.outcome is not None else None
        if outcome not in _TAKES_LATE_RESULTS or not asked.needs(job):
            raise InvalidRequest(
                "The agent does not wait for the results of these calls any more.", code=_UNKNOWN_CALL
            )
        _are_those(results, asked.ids)
        told = Continuation(prompt=_told_late(asked.calls, results))
        answered = CallsAnswered(sorted(results), digest_of(results))
        job = await self._resumed(caller, job, told, answered, noted=note or _as_is)
        # Two events were kept together: the answer, and then the state.
        return Answered(job, len(asked.answers) + 1, job.last_event - 1)

    async def _once_more(
        self, caller: Caller, known: Answered, asked: _Asked, results: Mapping[str, str]
    ) -> Answered:
        """Answer for results that were given before: an agent that was interrupted at work on them goes on."""
        job = known.job
        interrupted = (
            job.outcome is not None and job.outcome.type == OutcomeType.INTERRUPTED and job.at_start is None
        )
        if asked.open or known.number < len(asked.answers) or not interrupted:
            return known
        told = Continuation(prompt=_told_late(asked.calls, results))
        return replace(known, job=await self._resumed(caller, job, told))


def _as_is(job: Job) -> Job:
    return job


def _are_those(results: Mapping[str, str], wanted: frozenset[str]) -> None:
    if others := sorted(results.keys() - wanted):
        raise InvalidRequest(
            f"The agent does not wait for the result of the call {others[0][:64]!r}.", code=_UNKNOWN_CALL
        )
    if missing := sorted(wanted - results.keys()):
        raise InvalidRequest(
            f"The result of the call {missing[0]!r}, made in the same turn, is missing.", code=_UNKNOWN_CALL
        )


def _told_late(calls: Sequence[Mapping[str, Any]], results: Mapping[str, str]) -> str:
    """Give the results as what a resumed agent is told."""
    parts = ["Your last tool calls were made after all. Their results:"]
    for call in calls:
        given = json.dumps(call["arguments"], ensure_ascii=False)
        parts.append(f"{call['name']}({given}):\n{results[call['id']]}")
    return "\n\n".join([*parts, "Go on with them."])
