"""Processes that wait for jobs: started ahead, kept by key, bound to a job at its claim, and replaced.

A slot is a checkout, an access of the gateway, and a process of the agent in them. It has a number, and so a user and a
socket, that no claim of the queue has.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import structlog

from steadyhand.agents import Workspace
from steadyhand.job import Job
from steadyhand.ports import Checkout, WarmKey
from steadyhand.retry import continues_parent
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.machine_memory import available_memory
from steadyhand.worker.warm_demand import AgentDemand, SlotKey
from steadyhand.worker.warm_owner import SlotOwner
from steadyhand.worker.warm_plan import WarmPlan
from steadyhand.worker.warm_records import WarmRecords
from steadyhand.worker.warm_reports import WarmReports
from steadyhand.worker.warm_slot import (
    SUPERVISOR_FILE,
    Owner,
    WarmCounts,
    WarmSlot,
    may_reset,
    owner_of,
    write_supervisor,
)
from steadyhand.worker.warm_start import plain_job, template_of

CHECK_SECONDS = 0.5
CLOSE_SECONDS = 60.0
SETTLE_SECONDS = 2.0
PROCESSORS = os.cpu_count() or 1


class WarmPool:
    """The waiting processes of a worker. Without an agent that asks for them it does nothing."""

    def __init__(
        self,
        deps: WorkerDeps,
        workspace_of: Callable[[Job], Workspace],
        *,
        available: Callable[[], int | None] = available_memory,
        waiting_runs: Callable[[], Sequence[tuple[float, str]]] = tuple,
    ) -> None:
        self._deps = deps
        self._workspace_of = workspace_of
        self._slots: list[WarmSlot] = []
        self._demand: dict[str, AgentDemand] = {}
        self._records = WarmRecords(deps.config.clock)
        self._plan = WarmPlan(
            deps, self._slots, self._demand, self._key_of, records=self._records, available=available,
            waiting_runs=waiting_runs,
        )  # fmt: skip
        self._changed = asyncio.Event()
        self._waiting_for_reset: Counter[Owner] = Counter()
        self._closed = False
        self.is_drained: Callable[[], bool] = lambda: False
        """Returns True while the node is drained: no process waits for jobs that do not come."""
        self._group: asyncio.TaskGroup | None = None
        self.counts = WarmCounts()
        self._owner = SlotOwner(
            deps, workspace_of, self._slots, counts=self.counts, records=self._records, changed=self._changed
        )
        self._log = structlog.get_logger("steadyhand.warm")
        for agent in deps.catalog.agents.values():
            if agent.warm and agent.runner in deps.warm_runners:
                self._demand[agent.name] = AgentDemand(plain_job(deps, agent))
        self._reports = WarmReports(
            deps, self._demand, self._records, self._key_of,
            is_short_of_memory=self._plan.is_short_of_memory,
        )  # fmt: skip

    # --- claims ----------------------------------------------------------------------------

    @asynccontextmanager
    async def claimed(self, job: Job) -> AsyncIterator[WarmSlot | None]:
        """Reserve a slot for a job for the length of the block; None without one. Its process ends with the block."""
        self._owner.running_jobs += 1
        self._owner.update_priority()
        slot = None
        try:
            await self._wait_for_parent(job)
            await self._wait_for_reset(job)
            slot = self._take(job) or self._begin_live(job)
            if slot is not None and not await self._is_for(slot, job):
                self._count_lost(slot, job)
                slot.released.set()
            yield slot if slot is None or not slot.released.is_set() else None
        finally:
            self._owner.running_jobs -= 1
            self._owner.update_priority()
            if slot is not None:
                await self._end(slot)

    def _take(self, job: Job) -> WarmSlot | None:
        demand = self._demand.get(job.agent)
        if self._closed:
            return None
        slot = self._live_slot(job)
        if slot is not None:
            return self._claim(slot, job, "live")
        key = None if demand is None else self._key_of(job)
        if demand is None or key is None:
            return None
        demand.record(key, template_of(job), time.monotonic())
        self._changed.set()
        fits = self._fitting(key, owner_of(job))
        if not fits:
            self.counts.misses += 1
            self._records.add_miss(job.agent)
            return None
        # One that the same caller has had stands for a new start; then those with the details, the youngest first.
        return self._claim(
            max(fits, key=lambda each: (each.owner is not None, each.initialise, each.began)), job, "warm"
        )

    def _begin_live(self, job: Job) -> WarmSlot | None:
        """Return a slot in which a job starts a process that may stay after it; None if none may, or it needs none."""
        agent, runner = self._deps.catalog.agent(job.agent), self._deps.warm_runners.get(job.runner)
        if self._group is None or self._closed or not agent.live_seconds or job.runs:
            return None
        if runner is None or not runner.is_sandboxed or self._workspace_of(job).trust == "full":
            return None
        key = self._slot_key(job, _key_after(self._deps, job))
        if key is None or self._plan.is_short_of_memory():
            return None
        slot = WarmSlot(
            key, self._plan.free_number(), initialise=True, is_claimed=True, stack=AsyncExitStack()
        )
        self._slots.append(slot)
        self._group.create_task(self._owner.own_live(slot), name=f"live slot {slot.number}")
        return slot

    async def _wait_for_parent(self, job: Job) -> None:
        """Wait, for a bounded time, until the process that holds the conversation of a job can go on with it."""
        for slot in self._slots:
            if job.parent_job_id is not None and slot.settling == job.parent_job_id:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SETTLE_SECONDS):
                        await slot.settled.wait()
                return

    async def _wait_for_reset(self, job: Job) -> None:
        """Wait, for a bounded time, for a process of the same caller that is being reset, if that costs less.

        A reset takes a tenth of the processor time of a start. So a job waits if no other process is there for it, and,
        while more jobs run than there are processors, also if there is one, which a start would have to replace.
        """
        key = self._key_of(job) if job.agent in self._demand and not self._closed else None
        if key is None:
            return
        owner = owner_of(job)
        if self._waiting_for_reset[owner] >= self._count_resets(key, owner):
            return
        self._waiting_for_reset[owner] += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    while self._count_resets(key, owner) and not self._has_better(key, owner):
                        await self._owner.reset_ended.wait()
        finally:
            self._waiting_for_reset -= Counter([owner])  # an owner without any is forgotten

    def _count_resets(self, key: SlotKey, owner: Owner) -> int:
        return sum(slot.resets_for == owner and slot.key == key for slot in self._slots)

    def _has_better(self, key: SlotKey, owner: Owner) -> bool:
        """Return True if a job has a process now that is better than the wait for one that is being reset."""
        fits = self._fitting(key, owner)
        return any(slot.owner is not None for slot in fits) or (
            bool(fits) and self._owner.running_jobs <= PROCESSORS
        )

    def _fitting(self, key: SlotKey, owner: Owner) -> list[WarmSlot]:
        """Return the slots that a job with this key of this caller can have now."""
        return [
            slot
            for slot in self._slots
            if slot.is_ready
            and (slot.live_job is None or slot.can_reset)
            and slot.owner in (None, owner)
            and slot.key.fits(key, exactly=slot.initialise)
        ]

    async def _is_for(self, slot: WarmSlot, job: Job) -> bool:
        """Return True once the process of a claimed slot holds no conversation but that of the job."""
        if slot.live_job in (None, job.parent_job_id):
            return True
        slot.live_job = None
        if slot.agent is None or slot.checkout is None:
            return False
        return await slot.agent.wake() and await slot.agent.reset(slot.checkout)

    def _claim(self, slot: WarmSlot, job: Job, kind: Literal["warm", "live"]) -> WarmSlot:
        slot.is_claimed, slot.claimed_as, slot.is_awake = True, kind, None
        age = round(time.monotonic() - slot.began, 1)
        self._log.debug(
            "warm.taken", slot_id=slot.id, job=job.id, age_seconds=age,
            is_used=slot.owner is not None, is_live=slot.live_job is not None,
        )  # fmt: skip
        return slot

    def _live_slot(self, job: Job) -> WarmSlot | None:
        """Return the slot that holds the conversation which a job continues."""
        if job.parent_job_id is None or not continues_parent(job):
            return None
        for slot in self._slots:
            if slot.is_ready and slot.live_job == job.parent_job_id and slot.owner is not None:
                runner = self._deps.warm_runners[job.runner]
                key = self._slot_key(job, runner.turn_key(job, self._deps.catalog.agent(job.agent)))
                if key == slot.key and slot.owner[0] == job.api_key_id:
                    return slot
        return None

    def _key_of(self, job: Job) -> SlotKey | None:
        agent = self._deps.catalog.agent(job.agent)
        runner = self._deps.warm_runners.get(agent.runner)
        return None if runner is None else self._slot_key(job, runner.warm_key(job, agent))

    def _slot_key(self, job: Job, key: WarmKey | None) -> SlotKey | None:
        workspace = self._workspace_of(job)
        if key is None or workspace.mode == "in_place":
            return None
        return SlotKey(job.agent, key.process, key.details, repr((workspace, job.publish)))

    def may_keep(self, job: Job) -> bool:
        """Return True if the process of a job may stay after it: for its conversation, or for its caller."""
        slot, agent = self.slot_of(job.id), self._deps.catalog.agent(job.agent)
        if slot is None or self._closed or self.is_drained() or slot.checkout is None:
            return False
        if slot.checkout.commit is None:
            return agent.live_seconds > 0 or may_reset(agent, job)
        is_sandboxed = self._deps.warm_runners[job.runner].is_sandboxed
        return agent.live_seconds > 0 and is_sandboxed and not slot.checkout.full_trust

    def held_checkout(self, job: Job) -> Checkout | None:
        """Return the checkout of a job whose process has ended its turn and stays, for a harvest beside it."""
        slot = self.slot_of(job.id)
        return None if slot is None else _held(slot)

    def expect_reset(self, job: Job) -> None:
        """Let the next job of the caller of an answered job wait until its process is reset."""
        slot, agent = self.slot_of(job.id), self._deps.catalog.agent(job.agent)
        if slot is not None and slot.initialise and not agent.live_seconds and may_reset(agent, job):
            slot.resets_for = owner_of(job) if self.may_keep(job) else None

    def expect_turn(self, job: Job) -> None:
        """Let jobs that continue a job wait until its process is ready for them. Call it before the job ends."""
        slot = self.slot_of(job.id)
        if slot is not None:
            slot.settling = job.id
            slot.settled.clear()
            self.expect_reset(job)

    async def keep(self, slot: WarmSlot, job: Job) -> bool:
        """Keep the process of an ended job, with its checkout; return False if both have to go."""
        held = _held(slot)
        if slot.agent is None or held is None or self._closed:
            return False
        checkout = await self._deps.checkouts.take_back(held, slot.id)
        if checkout is None:
            return False
        write_supervisor(checkout.paths, *slot.agent.supervisor)
        agent = self._deps.catalog.agent(job.agent)
        slot.checkout, slot.job_id, slot.owner = checkout, None, owner_of(job)
        slot.live_job, slot.live_run = (job.id, job.run) if agent.live_seconds else (None, 0)
        slot.left_nothing = may_reset(agent, job) and checkout.commit is None
        slot.can_reset = slot.left_nothing and slot.stack is None
        slot.is_kept, slot.kept_at = True, time.monotonic()
        if not slot.initialise:
            # It is initialised now, for jobs with these details alone.
            slot.key, slot.initialise = self._slot_key(job, _key_after(self._deps, job)) or slot.key, True
        self.counts.kept += 1
        return True

    async def wake(self, slot: WarmSlot) -> None:
        """Let the process of a claimed slot go on, and note if it answers in time. `hand_over` else does it."""
        slot.is_awake = slot.agent is not None and await slot.agent.wake()

    async def hand_over(self, slot: WarmSlot, job: Job) -> Checkout | None:
        """Return the checkout of a claimed slot as that of a job; None if the slot cannot be used, which ends it."""
        checkout = await self._checkout_for(slot, job)
        if checkout is None:
            self._log.info("warm.lost", slot_id=slot.id, job=job.id)
            self._count_lost(slot, job)
            slot.released.set()
            return None
        slot.job_id = job.id
        slot.checkout = checkout
        (checkout.paths.root / SUPERVISOR_FILE).unlink(missing_ok=True)  # the store has it from now on
        return checkout

    async def _checkout_for(self, slot: WarmSlot, job: Job) -> Checkout | None:
        if slot.is_awake is None:
            await self.wake(slot)
        if slot.agent is None or slot.checkout is None or not slot.is_awake or slot.released.is_set():
            return None
        if slot.live_job is not None and (job.parent_job_id != slot.live_job or job.begin != "resume"):
            return None
        # Its root is found among all processes, and only a repository's refs are laid into it.
        root = None if slot.checkout.workspace.repository is None else slot.agent.root
        return await self._deps.checkouts.hand_over(slot.checkout, job, root)

    def count_prompt(self, job: Job, *, taken: bool) -> None:
        """Count a job as a hit once its process has taken the prompt, or as a miss if that ended before."""
        slot = self.slot_of(job.id)
        if slot is None or slot.claimed_as is None:
            return
        if not taken:
            self._count_lost(slot, job)
            return
        self.counts.hits += slot.claimed_as == "warm"
        self.counts.live_hits += slot.claimed_as == "live"
        self._records.add_hit(job.agent)
        slot.claimed_as = None

    def _count_lost(self, slot: WarmSlot, job: Job) -> None:
        if slot.claimed_as is None:
            return
        self.counts.lost += 1
        self.counts.misses += 1
        self._records.add_miss(job.agent)
        slot.claimed_as = None

    async def end_process(self, slot: WarmSlot) -> None:
        """End the process of a slot whose job has ended, and wait for it: its files can then be removed."""
        slot.is_kept = False
        await self._end(slot)

    def end_live(self, job_id: str, run: int) -> int:
        """End the processes that hold the conversation of a job as of this run, and return their number."""
        slots = [
            slot for slot in self._slots if slot.is_ready and (slot.live_job, slot.live_run) == (job_id, run)
        ]
        self._drop(slots)
        return len(slots)

    def slot_of(self, job_id: str) -> WarmSlot | None:
        """Return the slot whose checkout a job has."""
        return next((slot for slot in self._slots if slot.job_id == job_id), None)

    async def _end(self, slot: WarmSlot) -> None:
        slot.released.set()
        if not slot.is_kept:
            async with asyncio.timeout(CLOSE_SECONDS):
                await slot.ended.wait()

    # --- the pool --------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the slots filled until cancelled."""
        if not self._is_asked_for:
            return
        async with asyncio.TaskGroup() as self._group:
            while True:
                self._changed.clear()
                self._drop(self._plan.unwanted())
                if self.is_drained():
                    self._drop(slot for slot in self._slots if not slot.is_claimed)
                is_full = self._closed or self.is_drained() or self._plan.is_short_of_memory()
                wanted = None if is_full else self._plan.next_wanted()
                if wanted is not None:
                    slot = WarmSlot(wanted[0], self._plan.free_number(), wanted[1])
                    self._slots.append(slot)
                    self._group.create_task(
                        self._owner.own_prepared(slot, wanted[2]), name=f"warm slot {slot.number}"
                    )
                try:
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def close(self) -> None:
        """End every slot without a job, and start no other."""
        self._closed = self._owner.is_closed = True
        self._drop(slot for slot in self._slots if not slot.is_claimed)
        self._changed.set()

    @property
    def _is_asked_for(self) -> bool:
        agents = self._deps.catalog.agents.values()
        return bool(self._demand) or any(
            agent.live_seconds > 0 and agent.runner in self._deps.warm_runners for agent in agents
        )

    @property
    def waiting(self) -> list[WarmSlot]:
        """Return the slots that a job can have."""
        return [slot for slot in self._slots if slot.is_ready]

    def summary(self) -> Mapping[str, Any] | None:
        """Return the counts, the number of waiting processes and the age of the oldest; None without any agent."""
        return self._reports.summary(self.waiting, self.counts) if self._is_asked_for else None

    def agent_reports(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the waiting processes of each agent that asks for them, and why there are fewer than configured."""
        return self._reports.of_agents(self.waiting)

    def surplus_runs(self) -> int:
        """Return how many of the runs that wait for their clients' tools the memory has no room for."""
        return self._plan.surplus_runs()

    def _drop(self, slots: Iterable[WarmSlot]) -> None:
        for slot in list(slots):
            if not slot.released.is_set():
                self.counts.dropped += 1
                slot.release()


def _held(slot: WarmSlot) -> Checkout | None:
    """Stop the process of a slot, and return its checkout as the process has it mounted."""
    if slot.agent is None or slot.checkout is None:
        return None
    slot.agent.pause()
    has_layers = slot.checkout.layers is not None
    return replace(slot.checkout, holder=slot.agent.supervisor if has_layers else None)


def _key_after(deps: WorkerDeps, job: Job) -> WarmKey | None:
    return deps.warm_runners[job.runner].turn_key(
        replace(job, runs=(), begin="fresh"), deps.catalog.agent(job.agent)
    )
