"""Results of client tool calls: passed to the agent's process while it waits, or to its session once it has ended."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from steadyhand.control.deps import ControlDeps, JobUpdate
from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller, ResumeOptions, unchanged
from steadyhand.control.run_calls import TOOL_RESULTS_CALL, TOOL_RESULTS_SECONDS, node_of_run
from steadyhand.errors import Conflict, InvalidRequest, NodeGone, NotFound, StoreUnavailable
from steadyhand.events import EventDraft, ToolCallsAnswered
from steadyhand.job import Job, OutcomeType, State, ToolOutput, output_text
from steadyhand.ports import CallBody
from steadyhand.tool_calls import ToolCallState, results_digest

_UNKNOWN_CALL_CODE = "unknown_call"
_ACCEPTS_LATE_RESULTS = frozenset({OutcomeType.UNANSWERED, OutcomeType.INTERRUPTED, OutcomeType.TIMEOUT})

MAX_END_SECONDS = 75.0
"""The longest wait for the end of a run whose process is being ended."""


@dataclass(frozen=True, slots=True)
class ToolResultsAnswer:
    """Accepted results: the job, the number of the answer (1 is the job's first), and the number of its event."""

    job: Job
    number: int
    last_event: int


class ToolResultSubmitter:
    """Passes results of client tool calls to the agents that asked for them, on whatever node they run."""

    def __init__(self, deps: ControlDeps, queries: JobQueries, lifecycle: JobLifecycle) -> None:
        self._deps = deps
        self._queries = queries
        self._lifecycle = lifecycle
        deps.node_calls.serve(TOOL_RESULTS_CALL, self._serve_results)

    async def open_tool_calls(self, caller: Caller, job_id: str) -> frozenset[str]:
        """Return the ids of the calls whose results a job needs to continue, also if its process has ended."""
        job = await self._queries.get(caller, job_id)
        return (await self._state(job_id)).open_ids(job.run) if job.spec.tools else frozenset()

    async def submit_tool_results(
        self, caller: Caller, job_id: str, results: Mapping[str, ToolOutput], update: JobUpdate | None = None
    ) -> ToolResultsAnswer:
        """Pass the results of the open calls, by their ids, to the agent; a repeat is harmless.

        If the agent's process has ended, its session is resumed. `update` changes the job in the same commit, but not
        for a repeat; it is pure. Raise `NotFound`, and `InvalidRequest` if the ids are not those of the open calls.
        """
        caller.require_scope("submit")
        async with self._deps.tool_calls.lock_for(job_id):
            job = await self._queries.get(replace(caller, scopes=frozenset({"read"})), job_id)
            state = await self._state(job_id)
            earlier_answer = _find_answer(state, job, results_digest(results))
            if earlier_answer is not None:
                return await self._repeat_answer(caller, earlier_answer, state, results)
            answer = await self._answer_process(job, state, results, update)
            if answer is None:
                answer = await self._answer_elsewhere(job, state, results, update)
            return answer or await self._answer_session(caller, job_id, state, results, update)

    async def reduce_job(self, caller: Caller, job_id: str, reduce: Callable[[Job], Job | None]) -> bool:
        """Replace a job by `reduce(job)`. Return False, with nothing changed, if `reduce` returns None."""
        caller.require_scope("cancel")
        job = await self._queries.get(caller, job_id)
        if reduce(job) is None:
            return False
        await self._deps.store.update_job(job_id, frozenset(State), lambda old: reduce(old) or old)
        return True

    async def _state(self, job_id: str) -> ToolCallState:
        return await ToolCallState.read(self._deps.store, job_id)

    async def _answer_process(
        self, job: Job, state: ToolCallState, results: Mapping[str, ToolOutput], update: JobUpdate | None
    ) -> ToolResultsAnswer | None:
        """Pass the results to the process that waits for them; return None if no process waits any more."""
        pending = await self._deps.tool_calls.find(job.id)
        if pending is None or pending.ids != state.open_ids(job.run):
            return None
        _check_call_ids(results, pending.ids)
        if not pending.accept():
            return None
        if pending.save is not None:
            await pending.save(results)
        undelivered = None if pending.has_slot else _late_results_prompt(state.calls, results)

        def change(old: Job) -> Job:
            if old.run != job.run:  # this node was cut off, and another one runs the job
                raise Conflict(f"The job has had {old.run} runs.")
            return replace((update or unchanged)(old), undelivered_results=undelivered)

        answered = ToolCallsAnswered(sorted(results), results_digest(results))
        drafts = [EventDraft(job.run, self._deps.clock(), answered)]
        # Stored first: the agent's reaction to the results comes after this event.
        try:
            job = await self._deps.event_log.update_job(job.id, frozenset({State.RUNNING}), change, drafts)
        except StoreUnavailable:
            pending.reopen(self._deps.tool_calls.timeout_seconds)  # its caller has to send them again
            raise
        pending.kept_in_job = undelivered is not None
        pending.set_results(results)
        return ToolResultsAnswer(job, len(state.answers) + 1, job.last_event)

    async def _answer_elsewhere(
        self, job: Job, state: ToolCallState, results: Mapping[str, ToolOutput], update: JobUpdate | None
    ) -> ToolResultsAnswer | None:
        """Pass the results to the process that waits for them on another node; return None if none does any more.

        If that node dies, the run ends and its session takes the results. If only its answer is lost, the store has it.
        """
        node = node_of_run(self._deps, job)
        if node is None or not state.open_ids(job.run):
            return None
        _check_call_ids(results, state.ids)
        body = {
            "job": job.id,
            "results": dict(results),
            "update": None if update is None else update.to_json(),
        }
        try:
            reply = await self._deps.node_calls.call(node, TOOL_RESULTS_CALL, body, TOOL_RESULTS_SECONDS)
        except NodeGone:
            return await self._stored_answer(job.id, results)
        if not reply:
            return None
        return ToolResultsAnswer(await self._require_job(job.id), reply["number"], reply["last_event"])

    async def _serve_results(self, body: CallBody) -> CallBody:
        """Pass results that another node has received to a process on this one; the answer is empty if none waits."""
        job_id, results, update = body["job"], body["results"], body["update"]
        async with self._deps.tool_calls.lock_for(job_id):
            job, state = await self._require_job(job_id), await self._state(job_id)
            answer = _find_answer(state, job, results_digest(results)) or await self._answer_process(
                job, state, results, None if update is None else self._deps.read_update(update)
            )
        return {} if answer is None else {"number": answer.number, "last_event": answer.last_event}

    async def _stored_answer(
        self, job_id: str, results: Mapping[str, ToolOutput]
    ) -> ToolResultsAnswer | None:
        """Return the answer with these results that another node has stored, or None."""
        job = await self._require_job(job_id)
        return _find_answer(await self._state(job_id), job, results_digest(results))

    async def _require_job(self, job_id: str) -> Job:
        job = await self._deps.store.get(job_id)
        if job is None:
            raise NotFound("There is no such job.")
        return job

    async def _answer_session(
        self,
        caller: Caller,
        job_id: str,
        state: ToolCallState,
        results: Mapping[str, ToolOutput],
        update: JobUpdate | None,
    ) -> ToolResultsAnswer:
        """Resume the session of an agent whose process ended while its calls were open."""
        job = await self._queries.get(caller, job_id)
        if job.state is State.RUNNING and state.open_ids(job.run):
            # A process that is being ended takes no results any more; its session does, once it has ended.
            job = await self._queries.wait(caller, job_id, MAX_END_SECONDS)
            answer = await self._stored_answer(job_id, results)
            if answer is not None:  # meanwhile the process had them after all, from another node
                return answer
            if not job.state.ended:
                raise Conflict("The run is about to end. Send the results again.")
        outcome = job.outcome.type if job.outcome is not None else None
        if outcome not in _ACCEPTS_LATE_RESULTS or not state.open_ids(job.run):
            raise InvalidRequest(
                "The agent no longer waits for the results of these calls.", code=_UNKNOWN_CALL_CODE
            )
        _check_call_ids(results, state.ids)
        options = ResumeOptions(prompt=_late_results_prompt(state.calls, results))
        answered = ToolCallsAnswered(sorted(results), results_digest(results))
        try:
            job = await self._lifecycle.resume_job(
                caller, job, options, answered, update=update or unchanged, goes_on=True
            )
        except Conflict:
            answer = await self._stored_answer(job_id, results)
            if answer is None:
                raise
            return answer  # the same request came to another node, and was faster
        # Two events were stored together: the answer, and then the state.
        return ToolResultsAnswer(job, len(state.answers) + 1, job.last_event - 1)

    async def _repeat_answer(
        self,
        caller: Caller,
        answer: ToolResultsAnswer,
        state: ToolCallState,
        results: Mapping[str, ToolOutput],
    ) -> ToolResultsAnswer:
        """Return the earlier answer; resume an agent that was interrupted while it worked on these results."""
        job = answer.job
        interrupted = job.outcome is not None and job.outcome.type == OutcomeType.INTERRUPTED
        if state.is_open or answer.number < len(state.answers) or not (interrupted and job.is_final):
            return answer
        options = ResumeOptions(prompt=_late_results_prompt(state.calls, results))
        return replace(answer, job=await self._lifecycle.resume_job(caller, job, options, goes_on=True))


def _find_answer(state: ToolCallState, job: Job, digest: str) -> ToolResultsAnswer | None:
    """Return the newest answer with exactly these results, or None."""
    for number, event in reversed(list(enumerate(state.answers, 1))):
        if event.data["digest"] == digest:
            return ToolResultsAnswer(job, number, event.seq)
    return None


def _check_call_ids(results: Mapping[str, ToolOutput], expected: frozenset[str]) -> None:
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


def _late_results_prompt(calls: Sequence[Mapping[str, Any]], results: Mapping[str, ToolOutput]) -> str:
    """Return the prompt that brings late results to a resumed agent."""
    parts = ["Your last tool calls were made after all. Their results:"]
    for call in calls:
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        parts.append(f"{call['name']}({arguments}):\n{output_text(results[call['id']])}")
    return "\n\n".join([*parts, "Go on with them."])
