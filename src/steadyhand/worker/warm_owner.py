"""The life of each waiting process, from its start or its job to its end, in a task of its own."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

import structlog

from steadyhand.agents import Workspace
from steadyhand.errors import SteadyhandError
from steadyhand.job import Job
from steadyhand.log_context import set_log_fields
from steadyhand.ports import JobPaths, WarmAgent
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_records import WarmRecords
from steadyhand.worker.warm_slot import WarmCounts, WarmSlot, write_supervisor
from steadyhand.worker.warm_start import open_slot

LINGER_SECONDS = 15.0
"""The time for which a live process that has left nothing goes on after a turn, so that a message that comes soon does
not wait for a stopped process to go on. One that is awake takes 1.5 % of a core."""


class SlotOwner:
    """Owns the slots of one pool."""

    def __init__(
        self,
        deps: WorkerDeps,
        workspace_of: Callable[[Job], Workspace],
        slots: list[WarmSlot],
        *,
        counts: WarmCounts,
        records: WarmRecords,
        changed: asyncio.Event,
    ) -> None:
        """Remove each slot from `slots` at its end. Set `changed` whenever the pool has to look at them again."""
        self._deps = deps
        self._workspace_of = workspace_of
        self._slots = slots
        self._counts = counts
        self._records = records
        self._changed = changed
        self.running_jobs = 0
        self.is_closed = False
        """True if no process is to stay after its job."""
        self.reset_ended = asyncio.Event()
        """Set for a moment when a process has been reset, or has ended."""
        self._log = structlog.get_logger("steadyhand.warm")

    async def own_prepared(self, slot: WarmSlot, template: Job) -> None:
        """Own a slot from its start to its end."""
        log = self._log.bind(slot_id=slot.id, slot=slot.number, agent=slot.key.agent)
        try:
            async with AsyncExitStack() as stack:
                job = replace(template, id=slot.id)
                workspace, on_spawned = self._workspace_of(job), partial(self._on_spawned, slot)
                async with asyncio.timeout(None) as slot.preparing:
                    await open_slot(self._deps, slot, job, workspace, stack, on_spawned=on_spawned)
                slot.preparing = None
                if slot.agent is not None:
                    self._counts.refills += 1
                    self._records.add_start(slot.key)
                    self.update_priority()
                    slot.agent.pause()
                    log.debug(
                        "warm.ready",
                        seconds=round(time.monotonic() - slot.began, 3),
                        supervisor=slot.agent.supervisor[0],
                        initialised=slot.agent.is_initialised,
                    )
                    self._changed.set()
                    await self._until_released(slot, slot.agent)
                    await self._stay(slot, slot.agent)
        except (SteadyhandError, OSError, TimeoutError) as error:
            if slot.preparing is not None and slot.released.is_set():
                return  # it was dropped before it was ready
            self._counts.failures += 1
            seconds = self._records.add_failure(slot.key, error, time.monotonic())
            log.warning("warm.failed", error=str(error), retry_seconds=seconds)
        finally:
            self._forget(slot)

    async def own_live(self, slot: WarmSlot) -> None:
        """Own a slot whose process a job starts, until that is not to stay any more."""
        assert slot.stack is not None  # noqa: S101  # it is a slot of this kind
        set_log_fields({"slot_id": slot.id})  # it outlives the job that started it
        try:
            async with slot.stack as stack:
                stack.push_async_callback(self._release_waiting, slot)
                await slot.released.wait()
                if slot.agent is not None:
                    await self._stay(slot, slot.agent)
        except (SteadyhandError, OSError, TimeoutError) as error:
            self._counts.failures += 1
            self._log.warning("warm.failed", slot_id=slot.id, error=str(error))
        finally:
            self._forget(slot)

    async def _release_waiting(self, slot: WarmSlot) -> None:
        """Remove the checkout of a slot unless a job has it."""
        if slot.checkout is not None and slot.job_id is None:
            await self._deps.checkouts.release(slot.checkout)

    async def _stay(self, slot: WarmSlot, agent: WarmAgent) -> None:
        """Keep the process of a slot after each job after which it may stay."""
        while slot.is_kept and await self._make_ready(slot, agent):
            self._changed.set()
            await self._until_released(slot, agent)

    def _forget(self, slot: WarmSlot) -> None:
        slot.released.set()
        slot.settled.set()
        self._slots.remove(slot)
        self._end_reset(slot)
        self._log.debug("warm.ended", slot_id=slot.id, job=slot.job_id)
        slot.ended.set()
        self._changed.set()

    def _on_spawned(self, slot: WarmSlot, paths: JobPaths, pid: int, started: int) -> None:
        write_supervisor(paths, pid, started)
        slot.supervisor = pid
        self.update_priority()

    def update_priority(self) -> None:
        """Let preparations run in the background while a job runs."""
        for slot in self._slots:
            is_background = slot.agent is None and self.running_jobs > 0
            if slot.supervisor is not None and slot.is_background != is_background:
                slot.is_background = is_background
                runner = self._deps.warm_runners[self._deps.catalog.agent(slot.key.agent).runner]
                runner.set_background(slot.supervisor, is_background=is_background)

    async def _make_ready(self, slot: WarmSlot, agent: WarmAgent) -> bool:
        """Make a kept process ready for its next job; return False if it has to end."""
        slot.is_kept = False
        if self.is_closed or slot.checkout is None:
            return False
        lingers = slot.live_job is not None and slot.left_nothing
        if (slot.live_job is None or lingers) and not await agent.wake():
            return False
        if slot.live_job is None and not await agent.reset(slot.checkout):
            return False
        if not lingers:
            agent.pause()
        slot.released.clear()
        slot.is_claimed = False
        self._log.debug(
            "warm.kept", slot_id=slot.id, job=slot.settling, is_live=slot.live_job is not None,
            supervisor=agent.supervisor[0],
        )  # fmt: skip
        slot.settling = None
        slot.settled.set()
        self._end_reset(slot)
        return True

    def _end_reset(self, slot: WarmSlot) -> None:
        """Let the jobs go on that wait for a process."""
        slot.resets_for = None
        self.reset_ended.set()
        self.reset_ended.clear()

    async def _until_released(self, slot: WarmSlot, agent: WarmAgent) -> None:
        async with asyncio.TaskGroup() as group:
            exited = group.create_task(agent.exited())
            released = group.create_task(slot.released.wait())
            first = partial(asyncio.wait, {exited, released}, return_when=asyncio.FIRST_COMPLETED)
            await first(timeout=LINGER_SECONDS)
            if not exited.done() and not slot.is_claimed and not slot.released.is_set():
                agent.pause()
            await first()
            if exited.done() and not slot.is_claimed:
                slot.released.set()
            await asyncio.wait({released})  # a job that runs in it ends it
            exited.cancel()
