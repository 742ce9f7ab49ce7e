"""Calls of the client's tools by a run: sent as an event, and answered by the results that the client brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from steadyhand.events import ToolCallsRequested
from steadyhand.job import State, ToolOutput
from steadyhand.ports import Claim, ClientToolCall, IsInSession, is_never_in_session
from steadyhand.worker.deadline import RunDeadline
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.waiting_runs import WaitingRuns


@dataclass(frozen=True, slots=True)
class ClientToolCaller:
    """Makes the calls of one run; see `ports.CallClientTools`."""

    deps: WorkerDeps
    waiting_runs: WaitingRuns
    claim: Claim
    event_writer: RunEventWriter
    deadline: RunDeadline

    async def __call__(
        self, calls: Sequence[ClientToolCall], is_in_session: IsInSession = is_never_in_session
    ) -> Mapping[str, ToolOutput]:
        """Wait for the results, without the run's slot if that is possible, and then for the slot.

        The wait has a bound of its own (`TimeoutError`) and does not count against the run's deadline.
        """
        broker, job, queue = self.deps.tool_calls, self.claim.job, self.deps.queue
        requests = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls]
        with self.deadline.paused():
            # The calls are pending before the event is sent: a client may answer it at once.
            with broker.pending(job.id, calls, job.api_key_id) as pending:
                await self.event_writer.emit(ToolCallsRequested(requests))
                with self.waiting_runs.entered(self.claim, pending, is_in_session):
                    results = await pending.wait_for_results(broker.timeout_seconds)
                    await queue.wait_until_resumed(self.claim)
            if pending.kept_in_job:
                await self.deps.store.update_job(
                    job.id,
                    frozenset({State.RUNNING}),
                    lambda old: replace(old, undelivered_results=None),
                    hold=True,
                )
        return results
