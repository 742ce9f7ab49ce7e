"""The jobs of nodes that died, and jobs that no node holds: with a shared queue any node gives them to one."""

import structlog

from steadyhand.errors import Conflict, NotFound
from steadyhand.job import Job, State
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.recovery import PARKED, Recovery
from steadyhand.worker.results import node_death_outcome
from steadyhand.worker.run_executor import RunExecutor

SWEEP_SECONDS = 15.0
"""The time between two looks for jobs that no node holds."""


class LostRuns:
    """Ends the runs that other nodes have lost, and takes up what they were about to do."""

    def __init__(self, deps: WorkerDeps, executor: RunExecutor, recovery: Recovery) -> None:
        self._deps = deps
        self._executor = executor
        self._recovery = recovery
        self._store = deps.store
        self._queue = deps.queue
        self._log = structlog.get_logger("steadyhand.worker")

    async def end_run(self, job_id: str, job_run: int) -> None:
        """End the run of a job whose node died. Its claim is taken from that node, which may still believe in it.

        `job_run` is the number of the newest run then. A later one is of another node: this one may have been frozen
        before it came to this, and others have ended the lost run in its place. The job then follows its
        `on_interrupt`. If the run had not begun, the job waits again.
        """
        job = await self._store.get(job_id)
        if job is None:
            return
        if job.run != job_run:
            self._log.info("job.moved_elsewhere", job=job_id)
            return
        try:
            if job.state is State.QUEUED:
                await self._queue.requeue(job)
            elif job.state is State.RUNNING:
                await self._interrupt(job)
        except (Conflict, NotFound):
            self._log.info("job.moved_elsewhere", job=job_id)
        if job.state in {State.RUNNING, State.INTERRUPTED}:
            await self._recovery.requeue_interrupted()

    async def _interrupt(self, job: Job) -> None:
        calls = await self._deps.ledger.settle_calls_of_run(job.id, job.run)
        self._log.warning("job.node_died", job=job.id, run=job.run, node=job.runs[-1].node, open_calls=calls)
        if job.as_answered.state.ended:
            await self._executor.ender.end_answered(job)
            return
        outcome = node_death_outcome(job, f"The node {job.runs[-1].node} died.")
        await self._executor.ender.end(job, outcome, planned=False)

    async def sweep(self) -> None:
        """Hold the parked and the interrupted jobs of other nodes, and queue those that have lost their place.

        A job that is parked is known to all nodes: the first that finds its wait over queues it.
        """
        await self._queue.repair()
        for job in await self._store.list_in_states(PARKED):
            if not self._deps.parked.contains(job.id):
                self._deps.parked.add(job)
        await self._recovery.requeue_interrupted()
