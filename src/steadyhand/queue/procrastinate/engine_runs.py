"""The runs that the engine hands to a node: each is started in a transaction of ours, and its job is read."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from steadyhand.errors import StoreError, StoreUnavailable
from steadyhand.job import Job
from steadyhand.queue.procrastinate.cancelling import cancel_until_done
from steadyhand.queue.procrastinate.handed_runs import HandedRun, PlacesStore, end_run, start_run
from steadyhand.queue.procrastinate.turns import Turns

READ_AGAIN_SECONDS = 0.5
"""The time after which a job is read again that the store could not return."""


class EngineRuns:
    """The runs of the node `node` that start. `on_started` is called with each one."""

    def __init__(self, store: PlacesStore, node: str, on_started: Callable[[HandedRun], None]) -> None:
        self._store = store
        self._node = node
        self._on_started = on_started
        self._handed: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self._starting: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("steadyhand.queue")

    async def note(self, job_id: str, run: int) -> None:
        """Note a run that the engine hands over, whose task ends here: it holds nothing while the agent works.

        The start has a task of this queue: the engine's may be cancelled, and the run would have no claim and no end.
        """
        self._handed.put_nowait((job_id, run))

    async def start_all(self, group: asyncio.TaskGroup, turns: Turns) -> None:
        """Start what was handed over, each run in a task of the group, until cancelled."""
        try:
            while True:
                job_id, run = await self._handed.get()
                task = group.create_task(self._start(turns, job_id, run))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)
        finally:
            await cancel_until_done(list(self._starting))

    async def _start(self, turns: Turns, job_id: str, run: int) -> None:
        try:
            if not await turns.submit(partial(start_run, job_id, run, self._node)):
                return
            job = await self._get_patiently(job_id)
        except StoreError as error:  # the queue closes, or the place is taken back as one that did not start
            self._log.warning("queue.run_not_taken", job_id=job_id, run=run, error=str(error))
            return
        if job is None:
            await turns.submit(partial(end_run, job_id, run))
            return
        self._on_started(HandedRun(job, run))

    async def _get_patiently(self, job_id: str) -> Job | None:
        while True:
            try:
                return await self._store.get(job_id)
            except StoreUnavailable:
                await asyncio.sleep(READ_AGAIN_SECONDS)
