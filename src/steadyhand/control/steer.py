"""Messages to running turns."""

from dataclasses import dataclass

from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller
from steadyhand.control.submit import JobSubmitter
from steadyhand.errors import Conflict
from steadyhand.events import SteerAccepted
from steadyhand.job import Job, State
from steadyhand.ports import SteerMessage
from steadyhand.steering import MAX_STEERS, steer_id

_MAX_EVENTS = 10 * MAX_STEERS


@dataclass(frozen=True, slots=True)
class SteerAnswer:
    """A message that the agent has read; if `replayed`, already at an earlier request."""

    id: str
    job: Job
    replayed: bool


class JobSteering:
    """Passes messages to the agents of running jobs."""

    def __init__(self, deps: ControlDeps, queries: JobQueries, submitter: JobSubmitter) -> None:
        self._deps = deps
        self._queries = queries
        self._submitter = submitter

    async def steer(
        self, caller: Caller, job_id: str, text: str, idempotency_key: str | None = None
    ) -> SteerAnswer:
        """Pass a message to the running turn of a job; return when the agent has read it.

        It counts as a request of its key. Raise `Conflict`: `not_running` if no turn is under way, or it is about to
        end, and `not_steerable` if this kind of agent takes no messages.
        """
        caller.require_scope("submit")
        job = await self._queries.get(caller, job_id)
        message = SteerMessage(steer_id(job_id, caller.key_id, idempotency_key), text)
        if idempotency_key is not None and await self._was_accepted(job_id, message.id):
            if job.state is State.RUNNING:
                self._deps.steers.get(job_id).has(message)
            return SteerAnswer(message.id, job, replayed=True)
        if job.state is not State.RUNNING:
            raise Conflict(f"The job is {job.state}; only a running one takes a message.", code="not_running")
        run = self._deps.steers.get(job_id)
        if run.has(message):
            return SteerAnswer(message.id, job, replayed=True)
        charge = await self._submitter.charge_request(caller, job.agent, job.workspace)
        try:
            await run.send(message)
        except Conflict:
            charge.undo()
            raise
        return SteerAnswer(message.id, job, replayed=False)

    async def _was_accepted(self, job_id: str, message_id: str) -> bool:
        types = frozenset({SteerAccepted.type})
        events = await self._deps.store.list_newest_events(job_id, types, frozenset(), _MAX_EVENTS)
        return any(event.data["steer_id"] == message_id for event in events)
