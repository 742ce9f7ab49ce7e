"""Messages to running turns."""

from dataclasses import dataclass

from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import Caller
from steadyhand.control.run_calls import STEER_CALL, STEER_SECONDS, node_of_run
from steadyhand.control.submit import JobSubmitter
from steadyhand.errors import Conflict, NodeGone
from steadyhand.events import SteerAccepted
from steadyhand.job import Job, State
from steadyhand.ports import CallBody, SteerMessage
from steadyhand.steering import MAX_STEERS, steer_id

_MAX_EVENTS = 10 * MAX_STEERS


@dataclass(frozen=True, slots=True)
class SteerAnswer:
    """A message that the agent has read; if `replayed`, already at an earlier request."""

    id: str
    job: Job
    replayed: bool


class JobSteering:
    """Passes messages to the agents of running jobs, on whatever node they run."""

    def __init__(self, deps: ControlDeps, queries: JobQueries, submitter: JobSubmitter) -> None:
        self._deps = deps
        self._queries = queries
        self._submitter = submitter
        deps.node_calls.serve(STEER_CALL, self._serve_steer)

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
                await self._has(job, message)
            return SteerAnswer(message.id, job, replayed=True)
        if job.state is not State.RUNNING:
            raise Conflict(f"The job is {job.state}; only a running one takes a message.", code="not_running")
        # Another node is asked only for a message that may be there already.
        may_be_there = idempotency_key is not None or node_of_run(self._deps, job) is None
        if may_be_there and await self._has(job, message):
            return SteerAnswer(message.id, job, replayed=True)
        charge = await self._submitter.charge_request(caller, job.agent, job.workspace)
        try:
            await self._send(job, message)
        except Conflict:
            charge.undo()
            raise
        except NodeGone as error:
            if not error.may_be_done:
                charge.undo()
            elif await self._was_accepted(job_id, message.id):  # its answer got lost
                return SteerAnswer(message.id, job, replayed=False)
            raise
        return SteerAnswer(message.id, job, replayed=False)

    async def _has(self, job: Job, message: SteerMessage) -> bool:
        """Return True if the agent has the message; raise as `SteerableRun.has` and `SteerBroker.get` do."""
        node = node_of_run(self._deps, job)
        if node is None:
            return self._deps.steers.get(job.id).has(message)
        return bool((await self._call(node, job, message, only_check=True))["has"])

    async def _send(self, job: Job, message: SteerMessage) -> None:
        node = node_of_run(self._deps, job)
        if node is None:
            await self._deps.steers.get(job.id).send(message)
        else:
            await self._call(node, job, message)

    async def _call(
        self, node: str, job: Job, message: SteerMessage, *, only_check: bool = False
    ) -> CallBody:
        body = {"job": job.id, "id": message.id, "text": message.text, "only_check": only_check}
        return await self._deps.node_calls.call(node, STEER_CALL, body, STEER_SECONDS)

    async def _serve_steer(self, body: CallBody) -> CallBody:
        """Pass a message of another node to a run on this one."""
        run, message = self._deps.steers.get(body["job"]), SteerMessage(body["id"], body["text"])
        if body["only_check"]:
            return {"has": run.has(message)}
        await run.send(message)
        return {}

    async def _was_accepted(self, job_id: str, message_id: str) -> bool:
        types = frozenset({SteerAccepted.type})
        events = await self._deps.store.list_newest_events(job_id, types, frozenset(), _MAX_EVENTS)
        return any(event.data["steer_id"] == message_id for event in events)
