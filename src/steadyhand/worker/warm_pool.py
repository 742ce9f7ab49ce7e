"""Processes that wait for jobs: started ahead, kept by key, bound to a job at its claim, and replaced.

A slot is a checkout, an access of the gateway, and a process of the agent in them. It has a number, and so a user and a
socket, that no claim of the queue has.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SteadyhandError
from steadyhand.job import Job, JobSpec
from steadyhand.ports import Checkout, HeldAccess, JobPaths, RunSpec, WarmAgent, WarmKey, WarmRunner
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.machine_memory import available_memory
from steadyhand.worker.warm_demand import AgentDemand, SlotKey

CHECK_SECONDS = 0.5
MAX_AGE_SECONDS = 3600.0
"""The age at which a waiting process is replaced."""
SLOT_BYTES = 100 << 20
"""The memory that a process is taken to need."""
MIN_AVAILABLE_BYTES = 256 << 20
"""Below this much memory of the machine no process waits."""
CLOSE_SECONDS = 60.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 2.0, 300.0


SUPERVISOR_FILE = "supervisor"
"""The record of a process in the folder of a checkout that has no job; the store has that of a job's process."""


def write_supervisor(paths: JobPaths, pid: int, started: int) -> None:
    """Write down the supervisor of a waiting process."""
    (paths.root / SUPERVISOR_FILE).write_text(f"{pid} {started}", "ascii")


def read_supervisor(paths: JobPaths) -> tuple[int, int] | None:
    """Return the pid and the start time in the record of a folder, or None."""
    try:
        pid, started = (paths.root / SUPERVISOR_FILE).read_text("ascii").split()
        return int(pid), int(started)
    except (OSError, ValueError):
        return None


@dataclass(eq=False, slots=True)
class WarmSlot:
    """One waiting process, from the making of its checkout to its end."""

    key: SlotKey
    number: int
    initialise: bool
    id: str = field(default_factory=lambda: f"warm-{uuid.uuid4().hex}")
    began: float = field(default_factory=time.monotonic)
    checkout: Checkout | None = None
    access: HeldAccess | None = None
    agent: WarmAgent | None = None
    supervisor: int | None = None
    is_background: bool = False
    is_claimed: bool = False
    job_id: str | None = None
    """The job that has the checkout."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_ready(self) -> bool:
        """True if a job can have it."""
        return self.agent is not None and not self.is_claimed and not self.released.is_set()


@dataclass(slots=True)
class WarmCounts:
    """Counts of the waiting processes since the start."""

    hits: int = 0
    misses: int = 0
    refills: int = 0
    failures: int = 0
    dropped: int = 0
    """The processes that were ended without a job."""


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
        slot = self._take(job)
        self._running_jobs += 1
        self._update_priority()
        try:
            yield slot
        finally:
            self._running_jobs -= 1
            self._update_priority()
            if slot is not None:
                await self._end(slot)

    def _take(self, job: Job) -> WarmSlot | None:
        demand = self._demand.get(job.agent)
        key = None if demand is None or self._closed else self._key_of(job)
        if demand is None or key is None:
            return None
        demand.record(key, _template(job), time.monotonic())
        self._changed.set()
        fits = [slot for slot in self._slots if slot.is_ready and slot.key.fits(key, exactly=slot.initialise)]
        if not fits:
            self.counts.misses += 1
            return None
        slot = max(fits, key=lambda each: (each.initialise, -each.began))
        slot.is_claimed = True
        self.counts.hits += 1
        self._log.debug(
            "warm.taken", slot_id=slot.id, job=job.id, age_seconds=round(time.monotonic() - slot.began, 1)
        )
        return slot

    def _key_of(self, job: Job) -> SlotKey | None:
        agent = self._deps.catalog.agent(job.agent)
        runner = self._deps.warm_runners.get(agent.runner)
        key: WarmKey | None = None if runner is None else runner.warm_key(job, agent)
        workspace = self._workspace_of(job)
        if key is None or workspace.mode == "in_place":
            return None
        return SlotKey(agent.name, key.process, key.details, repr((workspace, job.publish)))

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
        return await self._deps.checkouts.hand_over(slot.checkout, job, slot.agent.root)

    def slot_of(self, job_id: str) -> WarmSlot | None:
        """Return the slot whose checkout a job has."""
        return next((slot for slot in self._slots if slot.job_id == job_id), None)

    async def _end(self, slot: WarmSlot) -> None:
        slot.released.set()
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
        self._drop(slot for slot in unclaimed if now - slot.began > MAX_AGE_SECONDS)
        plan = self._plan(now)
        for slot in unclaimed:
            wanted = (slot.key, slot.initialise)
            if plan.get(wanted, 0) > 0:
                plan[wanted] -= 1
            elif slot.is_ready:
                self._drop(iter([slot]))

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
            if not slot.is_claimed and plan.get(wanted, 0) > 0:
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
        except (SteadyhandError, OSError, TimeoutError) as error:
            self.counts.failures += 1
            pause = min(
                max(self._retry_at.get(slot.key, (0, 0))[1] * 2, _FIRST_RETRY_SECONDS), _LAST_RETRY_SECONDS
            )
            self._retry_at[slot.key] = (time.monotonic() + pause, pause)
            log.warning("warm.failed", error=str(error), retry_seconds=pause)
        finally:
            slot.released.set()
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
