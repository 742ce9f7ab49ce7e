"""What came of the calls that agents ask their callers for: brought to the process that waits, or to its session."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.requests import Caller, ResumeOptions
from steadyhand.errors import InvalidRequest
from steadyhand.events import Event, EventDraft, ToolCallsAnswered, ToolCallsRequested
from steadyhand.job import Job, OutcomeType, State
from steadyhand.tool_calls import results_digest

_UNKNOWN_CALL_CODE = "unknown_call"
_ACCEPTS_LATE_RESULTS = frozenset({OutcomeType.UNANSWERED, OutcomeType.INTERRUPTED, OutcomeType.TIMEOUT})

JobUpdate = Callable[[Job], Job]


@dataclass(frozen=True, slots=True)
class ToolResultsAnswer:
    """Results that were given: the job, the how manieth time that calls of it were answered, and the event of it."""

    job: Job
    number: int
    last_event: int


@dataclass(slots=True)
class _ToolCallState:
    """What a job asked its caller for so far: the calls of the newest turn with any, and each time of an answer."""

    calls: Sequence[Mapping[str, Any]] = ()
    run: int = 0
    open: bool = False
    answers: list[Event] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        if event.type == ToolCallsRequested.type:
            self.calls, self.run, self.open = event.data["calls"], event.run, True
        elif event.type == ToolCallsAnswered.type:
            self.open = False
            self.answers.append(event)

    def open_ids(self, job: Job) -> frozenset[str]:
        """Give the ids of the calls that the newest run still needs the results of."""
        return self.ids if self.open and self.run == job.run else frozenset()

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(call["id"] for call in self.calls)

    def find_answer(self, job: Job, digest: str) -> ToolResultsAnswer | None:
        """Give the newest time that these very results were given, if they were."""
        for number, event in reversed(list(enumerate(self.answers, 1))):
            if event.data["digest"] == digest:
                return ToolResultsAnswer(job, number, event.seq)
        return None


class Control(JobLifecycle):
    """Every verb over the ports. Each takes the caller and checks what that key may do."""

    async def open_tool_calls(self, caller: Caller, job_id: str) -> frozenset[str]:
        """Give the ids of the calls whose results a job needs to go on, whether its process waits or not."""
        job = await self.get(caller, job_id)
        return (await self._tool_call_state(job_id)).open_ids(job) if job.tools else frozenset()

    async def submit_tool_results(
        self, caller: Caller, job_id: str, results: Mapping[str, str], update: JobUpdate | None = None
    ) -> ToolResultsAnswer:
        """Give an agent the results of the calls that it waits for, by their ids; a repeat is harmless.

        When the agent's process is not there any more, its session is resumed. `note` changes the job in the same
        commit, and not for a repeat; it is pure. Raises `NotFound`, and `InvalidRequest` for ids that are not those
        that it waits for.
        """
        caller.require_scope("submit")
        async with self._tool_calls.lock_for(job_id):
            job = await self.get(replace(caller, scopes=frozenset({"read"})), job_id)
            state = await self._tool_call_state(job_id)
            earlier_answer = state.find_answer(job, results_digest(results))
            if earlier_answer is not None:
                return await self._repeat_answer(caller, earlier_answer, state, results)
            return await self._answer_process(job, state, results, update) or await self._answer_session(
                caller, job_id, state, results, update
            )

    async def reduce_job(self, caller: Caller, job_id: str, reduce: Callable[[Job], Job | None]) -> bool:
        """Keep less of what a job has for the door that it came through; false, and nothing, when `less` gives null."""
        caller.require_scope("cancel")
        job = await self.get(caller, job_id)
        if reduce(job) is None:
            return False
        await self._store.update_job(job_id, frozenset(State), lambda old: reduce(old) or old)
        return True

    async def _tool_call_state(self, job_id: str) -> _ToolCallState:
        state = _ToolCallState()
        async for event in self._stored_events(job_id, 0):
            state.apply(event)
        return state

    async def _answer_process(
        self, job: Job, state: _ToolCallState, results: Mapping[str, str], update: JobUpdate | None
    ) -> ToolResultsAnswer | None:
        """Hand the results to the process that waits for them; null when none does any more."""
        pending = self._tool_calls.get(job.id)
        if pending is None or pending.ids != state.open_ids(job):
            return None
        _check_call_ids(results, pending.ids)
        if not pending.disable_timeout():
            return None
        drafts = [
            EventDraft(job.run, self._clock(), ToolCallsAnswered(sorted(results), results_digest(results)))
        ]
        # Kept first: what the agent makes of them comes after this event.
        job = await self._recorder.update_job(
            job.id, frozenset({State.RUNNING}), update or _unchanged, drafts
        )
        pending.set_results(results)
        return ToolResultsAnswer(job, len(state.answers) + 1, job.last_event)

    async def _answer_session(
        self,
        caller: Caller,
        job_id: str,
        state: _ToolCallState,
        results: Mapping[str, str],
        update: JobUpdate | None,
    ) -> ToolResultsAnswer:
        """Resume the session of an agent whose process has ended while its calls waited."""
        job = await self.get(caller, job_id)
        outcome = job.outcome.type if job.outcome is not None else None
        if outcome not in _ACCEPTS_LATE_RESULTS or not state.open_ids(job):
            raise InvalidRequest(
                "The agent does not wait for the results of these calls any more.", code=_UNKNOWN_CALL_CODE
            )
        _check_call_ids(results, state.ids)
        resume_options = ResumeOptions(prompt=_late_results_prompt(state.calls, results))
        answered = ToolCallsAnswered(sorted(results), results_digest(results))
        job = await self._resume(caller, job, resume_options, answered, update=update or _unchanged)
        # Two events were kept together: the answer, and then the state.
        return ToolResultsAnswer(job, len(state.answers) + 1, job.last_event - 1)

    async def _repeat_answer(
        self, caller: Caller, answer: ToolResultsAnswer, state: _ToolCallState, results: Mapping[str, str]
    ) -> ToolResultsAnswer:
        """Answer for results that were given before: an agent that was interrupted at work on them goes on."""
        job = answer.job
        interrupted = (
            job.outcome is not None and job.outcome.type == OutcomeType.INTERRUPTED and job.at_start is None
        )
        if state.open or answer.number < len(state.answers) or not interrupted:
            return answer
        resume_options = ResumeOptions(prompt=_late_results_prompt(state.calls, results))
        return replace(answer, job=await self._resume(caller, job, resume_options))


def _unchanged(job: Job) -> Job:
    return job


def _check_call_ids(results: Mapping[str, str], expected: frozenset[str]) -> None:
    if unexpected := sorted(results.keys() - expected):
        raise InvalidRequest(
            f"The agent does not wait for the result of the call {unexpected[0][:64]!r}.",
            code=_UNKNOWN_CALL_CODE,
        )
    if missing := sorted(expected - results.keys()):
        raise InvalidRequest(
            f"The result of the call {missing[0]!r}, made in the same turn, is missing.",
            code=_UNKNOWN_CALL_CODE,
        )


def _late_results_prompt(calls: Sequence[Mapping[str, Any]], results: Mapping[str, str]) -> str:
    """Give the results as what a resumed agent is told."""
    parts = ["Your last tool calls were made after all. Their results:"]
    for call in calls:
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        parts.append(f"{call['name']}({arguments}):\n{results[call['id']]}")
    return "\n\n".join([*parts, "Go on with them."])
