"""Schedules over a real store, a real queue and a real `Control`, with a clock that the test moves and no worker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from steadyhand.admission import Admission
from steadyhand.agents import BUILT_IN_AGENTS, Catalog
from steadyhand.control import Control
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import EventDraft, StateChanged
from steadyhand.job import Cost, Job, JobSpec, Outcome, OutcomeType, Run, State
from steadyhand.ports import (
    ALL_SCOPES,
    NO_LIMITS,
    ApiKey,
    JobFilter,
    JobTemplate,
    KeyLimits,
    Schedule,
    ScheduleSpec,
    ScheduleTick,
)
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.schedules.ended_jobs import EndedJobs
from steadyhand.schedules.firing import ScheduleDeps
from steadyhand.schedules.registry import ScheduleRegistry
from steadyhand.schedules.scheduler import Scheduler
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import FakeClock
from steadyhand.workspace.checkout import GitCheckouts

MIDNIGHT = datetime(2026, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = ApiKey("k_one", "one", "0" * 64, ALL_SCOPES, MIDNIGHT)


def make_spec(cron: str = "* * * * *", prompt: str = "Look.", **fields: Any) -> ScheduleSpec:
    """Return a schedule's spec; `job` may be fields of its template."""
    template = JobTemplate(JobSpec(prompt, origin="schedule"), **fields.pop("job", {}))
    return ScheduleSpec(cron, template, **fields)


@dataclass
class ScheduleWorld:
    """One service without a worker: jobs run and end when the test says so."""

    store: SqlStore
    clock: FakeClock
    control: Control
    event_log: EventLog
    registry: ScheduleRegistry
    scheduler: Scheduler
    keys: dict[str, ApiKey]
    counted: list[tuple[str, int]] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)

    async def make(self, name: str = "s", key: str = KEY.id, **fields: Any) -> Schedule:
        """Create a schedule and return it."""
        return (await self.registry.create(name, key, make_spec(**fields))).schedule

    async def pass_time(self, length: timedelta = MINUTE) -> None:
        """Let time pass, then let the loop run until it waits for a later tick."""
        self.clock.advance(length)
        await self.scheduler.step()

    async def jobs(self) -> list[Job]:
        """Return all jobs, oldest first."""
        page = await self.store.list_jobs(JobFilter(), 200)
        return [job for brief in reversed(page.jobs) if (job := await self.store.get(brief.id)) is not None]

    async def ticks(self, name: str = "s") -> list[ScheduleTick]:
        """Return the whole history of a schedule, oldest first."""
        page = await self.registry.history(name, None, 200)
        return list(reversed(page.ticks))

    async def lines(self, name: str = "s") -> list[str]:
        """Return the history in words."""
        return [f"{each.kind} {each.result} {each.reason or ''}".rstrip() for each in await self.ticks(name)]

    async def schedule(self, name: str = "s") -> Schedule:
        """Return a schedule as it is stored."""
        return (await self.registry.get(name, None)).schedule

    async def end(self, job: Job, outcome: OutcomeType = OutcomeType.SUCCESS, micros: int = 100_000) -> None:
        """Let a job run and end, without a step of the loop."""
        state = {
            OutcomeType.SUCCESS: State.COMPLETED,
            OutcomeType.CANCELLED: State.CANCELLED,
        }.get(outcome, State.FAILED)
        now = self.clock()
        steps = ((State.QUEUED, State.RUNNING), (State.RUNNING, state))
        for source, target in steps if job.state is State.QUEUED else steps[1:]:
            await self.event_log.update_job(
                job.id,
                frozenset({source}),
                lambda old, to=target: replace(  # type: ignore[misc]  # bound at once
                    old,
                    state=to,
                    runs=(Run(1, to),),
                    outcome=Outcome(outcome) if to.ended else None,
                    cost=Cost(micros) if to.ended else Cost(),
                    finished_at=now if to.ended else None,
                ),
                [EventDraft(1, now, StateChanged(source, target))],
            )

    async def end_newest(self, outcome: OutcomeType = OutcomeType.SUCCESS, micros: int = 100_000) -> None:
        """Let the newest job run and end, and the loop settle it."""
        await self.end((await self.jobs())[-1], outcome, micros)
        await self.scheduler.step()


OpenStore = Callable[[Path], Awaitable[SqlStore]]


def database_url(root: Path) -> str:
    """Return the address of the database of a world."""
    return f"sqlite:///{root}/d.db"


async def _open(root: Path) -> SqlStore:
    return await open_store(database_url(root))


@asynccontextmanager
async def schedule_world(
    root: Path,
    *,
    clock: FakeClock | None = None,
    max_queued: int = 50,
    limits: KeyLimits = NO_LIMITS,
    open_at: OpenStore = _open,
    keys: tuple[ApiKey, ...] = (KEY,),
) -> AsyncIterator[ScheduleWorld]:
    """Open the service on the data of a directory; a second one goes on where the first stopped."""
    clock = clock or FakeClock(MIDNIGHT + timedelta(seconds=30))
    store = await open_at(root)
    try:
        feed, ended = EventFeed(), EndedJobs()
        queue = LocalQueue(store, capacity=0, max_queued=max_queued)
        known = {key.id: key for key in keys}
        control = Control(
            store=store,
            queue=queue,
            checkouts=GitCheckouts(root / "data", agent_files=ClaudeFiles(), redactor=NO_REDACTION),
            feed=feed,
            ledger=store,
            catalog=Catalog(dict(BUILT_IN_AGENTS)),
            clock=clock,
            observer=ended,
            admission=Admission(get_limits=lambda _: limits, get_backlog=queue.backlog, clock=clock),
        )
        counted: list[tuple[str, int]] = []
        pauses: list[str] = []
        deps = ScheduleDeps(
            control,
            store.schedules,
            store.get,
            known.get,
            clock,
            on_ticks=lambda result, count: counted.append((result, count)),
            on_pause=pauses.append,
        )
        yield ScheduleWorld(
            store,
            clock,
            control,
            EventLog(store, feed, NO_REDACTION, observer=ended),
            ScheduleRegistry(deps, ended.wake),
            Scheduler(deps, ended, monotonic=lambda: clock().timestamp()),
            known,
            counted,
            pauses,
        )
    finally:
        await store.close()


def in_schedule_world(root: Path, scene: Callable[[ScheduleWorld], Awaitable[None]], **options: Any) -> None:
    """Play a scene in a world, for a minute at most."""

    async def play() -> None:
        async with asyncio.timeout(60), schedule_world(root, **options) as world:
            await scene(world)

    asyncio.run(play())
