"""Calls of the client's tools by a run: sent as an event, and answered by the results that the client brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from steadyhand.events import ToolCallsRequested
from steadyhand.job import Job, State, ToolOutput
from steadyhand.ports import Claim, ClientToolCall, IsInSession, is_never_in_session
from steadyhand.worker.deadline import RunDeadline
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.results import require_run
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.take_up import TakenUp
from steadyhand.worker.waiting_runs import WaitingRuns


@dataclass(frozen=True, slots=True)
class ClientToolCaller:
    """Makes the calls of one run; see `ports.CallClientTools`."""

    deps: WorkerDeps
    waiting_runs: WaitingRuns
    claim: Claim
    event_writer: RunEventWriter
    deadline: RunDeadline
    taken_up: TakenUp | None = None
    """The rest of the run, if an earlier service has left it."""

    async def __call__(
        self, calls: Sequence[ClientToolCall], is_in_session: IsInSession = is_never_in_session
    ) -> Mapping[str, ToolOutput]:
        """Wait for the results, without the run's slot if that is possible, and then for the slot.

        The wait has a bound of its own (`TimeoutError`) and does not count against the run's deadline.
        """
        broker, job, queue = self.deps.tool_calls, self.claim.job, self.deps.queue
        call_ids, taken_up = frozenset(call.id for call in calls), self.taken_up
        earlier = None if taken_up is None else taken_up.results_of(call_ids)
        if earlier is not None:
            await self._forget_kept_results()
            return earlier
        waited = 0.0 if taken_up is None else taken_up.seconds_since_asked(call_ids)
        requests = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in calls]
        with self.deadline.paused():
            # The calls are pending before the event is sent: a client may answer it at once.
            with broker.pending(job.id, calls, job.api_key_id) as pending:
                if self.deps.held_runs is not None:
                    # The claim has the job as it was before this run.
                    pending.save = partial(
                        self.deps.held_runs.save_results, job.id, self.event_writer.run_number
                    )
                if taken_up is None or not taken_up.was_asked(call_ids):
                    await self.event_writer.emit(ToolCallsRequested(requests))
                with self.waiting_runs.entered(self.claim, pending, is_in_session):
                    results = await pending.wait_for_results(broker.timeout_seconds - waited)
                    await queue.wait_until_resumed(self.claim)
            if pending.kept_in_job:
                await self._forget_kept_results()
        return results

    async def _forget_kept_results(self) -> None:
        """Let the job keep no results any more: the process gets them."""
        await self.deps.store.update_job(
            self.claim.job.id,
            frozenset({State.RUNNING}),
            self._without_undelivered,
            hold=True,
        )

    def _without_undelivered(self, job: Job) -> Job:
        require_run(job, self.event_writer.run_number)
        return replace(job, undelivered_results=None)
