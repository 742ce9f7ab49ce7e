"""Processes that wait for jobs: started ahead, kept by key, bound to a job at its claim, and replaced.

A slot is a checkout, an access of the gateway, and a process of the agent in them. It has a number, and so a user and a
socket, that no claim of the queue has.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import structlog

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SteadyhandError
from steadyhand.job import Job, JobSpec
from steadyhand.ports import Checkout, JobPaths, RunSpec, WarmAgent, WarmKey, WarmRunner
from steadyhand.retry import continues_parent
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.machine_memory import available_memory
from steadyhand.worker.warm_demand import AgentDemand, SlotKey
from steadyhand.worker.warm_slot import (
    SUPERVISOR_FILE,
    WarmCounts,
    WarmSlot,
    may_reset,
    owner_of,
    write_supervisor,
)

CHECK_SECONDS = 0.5
MAX_AGE_SECONDS = 3600.0
"""The age at which a waiting process is replaced."""
SLOT_BYTES = 100 << 20
"""The memory that a process is taken to need."""
MIN_AVAILABLE_BYTES = 256 << 20
"""Below this much memory of the machine no process waits."""
CLOSE_SECONDS = 60.0
SETTLE_SECONDS = 2.0
KEPT_SECONDS = 60.0
"""How long a process that was reset waits for the next job of its caller."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 2.0, 300.0


class WarmPool:
    """The waiting processes of a worker. Without an agent that asks for them it does nothing."""

    def __init__(
        self,
        deps: WorkerDeps,
        workspace_of: Callable[[Job], Workspace],
        *,
        available: Callable[[], int | None] = available_memory,
    ) -> None:
        self._deps = deps
        self._workspace_of = workspace_of
        self._available = available
        self._slots: list[WarmSlot] = []
        self._demand: dict[str, AgentDemand] = {}
        self._retry_at: dict[SlotKey, tuple[float, float]] = {}
        self._changed = asyncio.Event()
        self._running_jobs = 0
        self._closed = False
        self.counts = WarmCounts()
        self._log = structlog.get_logger("steadyhand.warm")
        for agent in deps.catalog.agents.values():
            if agent.warm and agent.runner in deps.warm_runners:
                self._demand[agent.name] = AgentDemand(self._plain_job(agent))

    # --- claims ----------------------------------------------------------------------------

    @asynccontextmanager
    async def claimed(self, job: Job) -> AsyncIterator[WarmSlot | None]:
        """Reserve a slot for a job for the length of the block; None without one. Its process ends with the block."""
        self._running_jobs += 1
        self._update_priority()
        slot = None
        try:
            await self._wait_for_parent(job)
            slot = self._take(job)
            if slot is not None and not await self._is_for(slot, job):
                slot.released.set()
            yield slot if slot is None or not slot.released.is_set() else None
        finally:
            self._running_jobs -= 1
            self._update_priority()
            if slot is not None:
                await self._end(slot)

    def _take(self, job: Job) -> WarmSlot | None:
        demand = self._demand.get(job.agent)
        if demand is None or self._closed:
            return None
        slot = self._live_slot(job)
        if slot is not None:
            self.counts.live_hits += 1
            return self._claim(slot, job)
        key = self._key_of(job)
        if key is None:
            return None
        demand.record(key, _template(job), time.monotonic())
        self._changed.set()
        owner = owner_of(job)
        fits = [
            slot
            for slot in self._slots
            if slot.is_ready
            and (slot.live_job is None or slot.can_reset)
            and slot.owner in (None, owner)
            and slot.key.fits(key, exactly=slot.initialise)
        ]
        if not fits:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        # One that the same caller has had stands for a new start; then those with the details, the youngest first.
        return self._claim(
            max(fits, key=lambda each: (each.owner is not None, each.initialise, each.began)), job
        )

    async def _wait_for_parent(self, job: Job) -> None:
        """Wait, for a bounded time, until the process that holds the conversation of a job can go on with it."""
        for slot in self._slots:
            if job.parent_job_id is not None and slot.settling == job.parent_job_id:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SETTLE_SECONDS):
                        await slot.settled.wait()
                return

    async def _is_for(self, slot: WarmSlot, job: Job) -> bool:
        """Return True once the process of a claimed slot holds no conversation but that of the job."""
        if slot.live_job in (None, job.parent_job_id):
            return True
        slot.live_job = None
        if slot.agent is None or slot.checkout is None:
            return False
        return await slot.agent.wake() and await slot.agent.reset(slot.checkout)

    def _claim(self, slot: WarmSlot, job: Job) -> WarmSlot:
        slot.is_claimed = True
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
        if slot is None or self._closed or self._workspace_of(job).repository is not None:
            return False
        return agent.live_seconds > 0 or may_reset(agent, job)

    def expect_turn(self, job: Job) -> None:
        """Let jobs that continue a job wait until its process is ready for them. Call it before the job ends."""
        slot = self.slot_of(job.id)
        if slot is not None:
            slot.settling = job.id
            slot.settled.clear()

    async def keep(self, slot: WarmSlot, job: Job) -> bool:
        """Keep the process of an ended job, with its checkout; return False if both have to go."""
        if slot.agent is None or slot.checkout is None or self._closed:
            return False
        slot.agent.pause()
        checkout = await self._deps.checkouts.take_back(slot.checkout, slot.id)
        if checkout is None:
            return False
        write_supervisor(checkout.paths, *slot.agent.supervisor)
        agent = self._deps.catalog.agent(job.agent)
        slot.checkout, slot.job_id, slot.owner = checkout, None, owner_of(job)
        slot.live_job = job.id if agent.live_seconds else None
        slot.can_reset = may_reset(agent, job)
        slot.is_kept, slot.kept_at = True, time.monotonic()
        if not slot.initialise:
            # It is initialised now, for jobs with these details alone.
            slot.key, slot.initialise = self._slot_key(job, _key_after(self._deps, job)) or slot.key, True
        self.counts.kept += 1
        return True

    async def hand_over(self, slot: WarmSlot, job: Job) -> Checkout | None:
        """Return the checkout of a claimed slot as that of a job; None if the slot cannot be used, which ends it."""
        checkout = await self._checkout_for(slot, job)
        if checkout is None:
            self._log.info("warm.lost", slot_id=slot.id, job=job.id)
            slot.released.set()
            return None
        slot.job_id = job.id
        slot.checkout = checkout
        (checkout.paths.root / SUPERVISOR_FILE).unlink(missing_ok=True)  # the store has it from now on
        return checkout

    async def _checkout_for(self, slot: WarmSlot, job: Job) -> Checkout | None:
        if slot.agent is None or slot.checkout is None or not await slot.agent.wake():
            return None
        if slot.live_job is not None and (job.parent_job_id != slot.live_job or job.begin != "resume"):
            return None
        return await self._deps.checkouts.hand_over(slot.checkout, job, slot.agent.root)

    async def end_process(self, slot: WarmSlot) -> None:
        """End the process of a slot whose job has ended, and wait for it: its files can then be removed."""
        slot.is_kept = False
        await self._end(slot)

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
        if not self._demand:
            return
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                self._drop_unwanted()
                wanted = None if self._closed or self._is_short_of_memory() else self._next_wanted()
                if wanted is not None:
                    slot = WarmSlot(wanted[0], self._free_number(), wanted[1])
                    self._slots.append(slot)
                    group.create_task(self._keep(slot, wanted[2]), name=f"warm slot {slot.number}")
                try:
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def close(self) -> None:
        """End every slot without a job, and start no other."""
        self._closed = True
        self._drop(slot for slot in self._slots if not slot.is_claimed)
        self._changed.set()

    @property
    def waiting(self) -> list[WarmSlot]:
        """Return the slots that a job can have."""
        return [slot for slot in self._slots if slot.is_ready]

    def summary(self) -> Mapping[str, Any] | None:
        """Return the counts, the number of waiting processes and the age of the oldest; None without any agent."""
        if not self._demand:
            return None
        now, waiting = time.monotonic(), self.waiting
        oldest = max((now - slot.began for slot in waiting), default=0.0)
        return {"waiting": len(waiting), "oldest_seconds": round(oldest, 1), **asdict(self.counts)}

    def _drop(self, slots: Iterator[WarmSlot]) -> None:
        for slot in list(slots):
            if not slot.released.is_set():
                self.counts.dropped += 1
                slot.released.set()

    def _drop_unwanted(self) -> None:
        """End the slots that are too old, that nobody asks for any more, or that the memory has no room for."""
        now = time.monotonic()
        unclaimed = [slot for slot in self._slots if not slot.is_claimed and not slot.released.is_set()]
        if self._is_short_of_memory():
            self._drop(iter(unclaimed))
            return
        self._drop(
            slot for slot in unclaimed if now - slot.began > MAX_AGE_SECONDS or self._is_over(slot, now)
        )
        self._drop_used_beyond_memory(unclaimed)
        plan = self._plan(now)
        for slot in unclaimed:
            if slot.owner is not None:
                continue
            wanted = (slot.key, slot.initialise)
            if plan.get(wanted, 0) > 0:
                plan[wanted] -= 1
            elif slot.is_ready:
                self._drop(iter([slot]))

    def _is_over(self, slot: WarmSlot, now: float) -> bool:
        """Return True if a kept process has waited long enough for its conversation or its caller."""
        live_seconds = self._deps.catalog.agent(slot.key.agent).live_seconds
        limit = KEPT_SECONDS if slot.live_job is None else live_seconds
        return slot.owner is not None and now - slot.kept_at > limit

    def _drop_used_beyond_memory(self, unclaimed: list[WarmSlot]) -> None:
        """End kept processes that the memory has no room for, the one not used for longest first, of a key as well."""
        used = sorted((slot for slot in unclaimed if slot.owner is not None), key=lambda each: each.kept_at)
        room = max(0, self._deps.config.warm_memory // SLOT_BYTES - (len(unclaimed) - len(used)))
        of_key = Counter(slot.owner[0] for slot in used if slot.owner is not None)
        for slot in used:
            key_id = "" if slot.owner is None else slot.owner[0]
            is_beyond = len(used) > room or of_key[key_id] > self._deps.config.max_kept_per_key
            if is_beyond and not slot.released.is_set():
                self._drop(iter([slot]))
                used = [each for each in used if each is not slot]
                of_key[key_id] -= 1

    def _plan(self, now: float) -> dict[tuple[SlotKey, bool], int]:
        """Return how many slots of each key and kind there are to be."""
        room = self._deps.config.warm_memory // SLOT_BYTES
        plan: dict[tuple[SlotKey, bool], int] = {}
        for name, demand in self._demand.items():
            agent = self._deps.catalog.agent(name)
            base = self._key_of(demand.plain_job)
            if base is None:
                continue
            for wanted, count in demand.plan(base, agent.warm, now).items():
                plan[wanted] = min(count, room)
                room -= plan[wanted]
        return plan

    def _next_wanted(self) -> tuple[SlotKey, bool, Job] | None:
        if any(slot.agent is None and not slot.released.is_set() for slot in self._slots):
            return None  # one at a time
        now = time.monotonic()
        plan = self._plan(now)
        for slot in self._slots:
            wanted = (slot.key, slot.initialise)
            if not slot.is_claimed and slot.owner is None and plan.get(wanted, 0) > 0:
                plan[wanted] -= 1
        for (key, initialise), count in plan.items():
            if count > 0 and self._retry_at.get(key, (0.0, 0.0))[0] <= now:
                return key, initialise, self._demand[key.agent].template(key)
        return None

    def _is_short_of_memory(self) -> bool:
        available = self._available()
        return available is not None and available < MIN_AVAILABLE_BYTES

    def _free_number(self) -> int:
        used = {slot.number for slot in self._slots}
        return next(
            number for number in range(self._deps.config.first_warm_slot, 1 << 30) if number not in used
        )

    # --- one slot --------------------------------------------------------------------------

    async def _keep(self, slot: WarmSlot, template: Job) -> None:
        """Own a slot from its start to its end."""
        log = self._log.bind(slot_id=slot.id, slot=slot.number, agent=slot.key.agent)
        try:
            async with AsyncExitStack() as stack:
                await self._open(slot, template, stack)
                if slot.agent is not None:
                    self.counts.refills += 1
                    self._retry_at.pop(slot.key, None)
                    self._update_priority()
                    slot.agent.pause()
                    log.debug(
                        "warm.ready",
                        seconds=round(time.monotonic() - slot.began, 3),
                        supervisor=slot.agent.supervisor[0],
                        initialised=slot.agent.is_initialised,
                    )
                    self._changed.set()
                    await self._until_released(slot, slot.agent)
                    while slot.is_kept and await self._make_ready(slot, slot.agent):
                        self._changed.set()
                        await self._until_released(slot, slot.agent)
        except (SteadyhandError, OSError, TimeoutError) as error:
            self.counts.failures += 1
            pause = min(
                max(self._retry_at.get(slot.key, (0, 0))[1] * 2, _FIRST_RETRY_SECONDS), _LAST_RETRY_SECONDS
            )
            self._retry_at[slot.key] = (time.monotonic() + pause, pause)
            log.warning("warm.failed", error=str(error), retry_seconds=pause)
        finally:
            slot.released.set()
            slot.settled.set()
            self._slots.remove(slot)
            log.debug("warm.ended", job=slot.job_id)
            slot.ended.set()
            self._changed.set()

    def _on_spawned(self, slot: WarmSlot, paths: JobPaths, pid: int, started: int) -> None:
        write_supervisor(paths, pid, started)
        slot.supervisor = pid
        self._update_priority()

    def _update_priority(self) -> None:
        """Let preparations run in the background while a job runs."""
        for slot in self._slots:
            is_background = slot.agent is None and self._running_jobs > 0
            if slot.supervisor is not None and slot.is_background != is_background:
                slot.is_background = is_background
                runner = self._deps.warm_runners[self._deps.catalog.agent(slot.key.agent).runner]
                runner.set_background(slot.supervisor, is_background=is_background)

    async def _make_ready(self, slot: WarmSlot, agent: WarmAgent) -> bool:
        """Make a kept process ready for its next job; return False if it has to end."""
        slot.is_kept = False
        if self._closed or slot.checkout is None:
            return False
        if slot.live_job is None and not (await agent.wake() and await agent.reset(slot.checkout)):
            return False
        agent.pause()
        slot.released.clear()
        slot.is_claimed = False
        self._log.debug("warm.kept", slot_id=slot.id, job=slot.settling, is_live=slot.live_job is not None)
        slot.settling = None
        slot.settled.set()
        return True

    async def _until_released(self, slot: WarmSlot, agent: WarmAgent) -> None:
        async with asyncio.TaskGroup() as group:
            exited = group.create_task(agent.exited())
            released = group.create_task(slot.released.wait())
            await asyncio.wait({exited, released}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done() and not slot.is_claimed:
                slot.released.set()
            await asyncio.wait({released})  # a job that runs in it ends it
            exited.cancel()

    async def _open(self, slot: WarmSlot, template: Job, stack: AsyncExitStack) -> None:
        deps, agent = self._deps, self._deps.catalog.agent(slot.key.agent)
        runner: WarmRunner = deps.warm_runners[agent.runner]
        job = replace(template, id=slot.id)
        slot.checkout = await deps.checkouts.prepare_ahead(job, self._workspace_of(job), slot.number)
        # Of a checkout that a job has by then, this removes only what leads to it.
        stack.push_async_callback(deps.checkouts.release, slot.checkout)
        if agent.definition is None and agent.name in slot.checkout.definitions:
            agent = replace(agent, definition=agent.name)
        initialise = slot.initialise and runner.may_initialise(agent, slot.checkout)
        if slot.checkout.full_trust or slot.released.is_set():
            return
        assert deps.gateway is not None  # noqa: S101  # a runner without one has no keys
        slot.access = await stack.enter_async_context(deps.gateway.hold_access(agent, slot.checkout))
        spec = RunSpec(
            job=job,
            number=1,
            agent=agent,
            checkout=slot.checkout,
            environment=deps.config.environment_for(agent, slot.checkout),
            on_spawned=partial(self._on_spawned, slot, slot.checkout.paths),
            model_access=slot.access.model_access,
            on_listening=slot.access.on_listening,
        )
        rehearsing = slot.access.rehearsing if slot.access.can_rehearse else None
        slot.agent = await stack.enter_async_context(runner.prepare(spec, rehearsing, initialise=initialise))

    def _plain_job(self, agent: Agent) -> Job:
        """Return a job of an agent as a caller makes it who sets nothing but the prompt."""
        catalog = self._deps.catalog
        defaults, name = catalog.defaults, catalog.default_workspace_name(agent)
        workspace = catalog.workspace(name)
        return Job(
            id="warm",
            spec=JobSpec("", model=agent.model, max_turns=agent.max_turns, effort=agent.effort),
            agent=agent.name,
            runner=agent.runner,
            api_key_id="",
            created_at=self._deps.config.clock(),
            budget_micros=defaults.budget_micros if agent.budget_micros is None else agent.budget_micros,
            timeout_seconds=agent.timeout_seconds or defaults.timeout_seconds,
            idle_timeout_seconds=agent.idle_timeout_seconds or defaults.idle_timeout_seconds,
            workspace=name,
            ref=workspace.ref,
            publish=workspace.publish or defaults.publish,
        )


def _key_after(deps: WorkerDeps, job: Job) -> WarmKey | None:
    return deps.warm_runners[job.runner].turn_key(
        replace(job, runs=(), begin="fresh"), deps.catalog.agent(job.agent)
    )


def _template(job: Job) -> Job:
    """Return a job without what belongs to its caller alone."""
    spec: Any = replace(
        job.spec,
        prompt="",
        content=(),
        request=None,
        metadata=None,
        title=None,
        command=None,
        session_name=None,
    )
    return replace(job, spec=spec, api_key_id="", conversation=None, session_id=None, warnings=())
