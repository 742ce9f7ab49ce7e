"""A crash at any write between the claim of a tick and the end of its job, and a second service, double nothing."""

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tests.schedules.schedule_world import MIDNIGHT, MINUTE, ScheduleWorld, schedule_world
from tests.store.faults import Fault, FaultClock, FaultMode, open_failing_store

from steadyhand.errors import StoreError
from steadyhand.job import OutcomeType, State
from steadyhand.store import SqlStore
from steadyhand.testing.contracts.samples import FakeClock

TICKS = 2
COST = 100_000


async def make(root: Path) -> None:
    """Make a store with a schedule, which pauses itself after its last failure."""
    async with schedule_world(root) as world:
        await world.make(missed="all", overlap="queue", max_failures=TICKS)


async def play(root: Path, fault: Fault) -> int:
    """Fire the ticks and end their jobs; begin anew from the disk alone after each failed write.

    Return the number of writes.
    """
    clock = FakeClock(MIDNIGHT + timedelta(seconds=30))

    async def open_at(path: Path) -> SqlStore:
        return open_failing_store(path / "d.db", fault)

    for _ in range(20):
        async with schedule_world(root, clock=clock, open_at=open_at) as world:
            fault.armed = True
            try:
                if await go_on(world, clock):
                    break
            except StoreError:
                continue  # as after `kill -9`: nothing in memory is left
            finally:
                fault.armed = False
    async with schedule_world(root, clock=clock) as world:
        await world.scheduler.step()
        await check(world)
    return fault.count


async def go_on(world: ScheduleWorld, clock: FakeClock) -> bool:
    """Do the next steps; return True once all ticks have fired and their jobs have ended."""
    while True:
        await world.scheduler.step()
        for job in await world.jobs():
            if not job.state.ended:
                await world.end(job, OutcomeType.KILLED, COST)
        await world.scheduler.step()
        if (await world.schedule()).paused is not None:
            return True
        clock.advance(MINUTE)


async def check(world: ScheduleWorld) -> None:
    """Check that each tick has one job, that each job has one tick, and that the sums are those of the jobs."""
    ticks, jobs, schedule = await world.ticks(), await world.jobs(), await world.schedule()
    assert [tick.scheduled_at for tick in ticks] == [MIDNIGHT + n * MINUTE for n in range(1, TICKS + 1)]
    assert [(tick.result, tick.settled, tick.micros) for tick in ticks] == [("fired", True, COST)] * TICKS
    assert [tick.job_id for tick in ticks] == [job.id for job in jobs]
    assert (schedule.runs, schedule.spent_micros, schedule.failures) == (TICKS, TICKS * COST, TICKS)
    assert schedule.paused is not None
    assert schedule.paused.reason == "max_failures"


@pytest.mark.parametrize("mode", [pytest.param("unwritten", marks=pytest.mark.long), "written"])
def test_a_fault_at_any_write_loses_and_doubles_nothing(tmp_path: Path, mode: FaultMode) -> None:
    async def every_write() -> None:
        made = tmp_path / "made"
        made.mkdir()
        await make(made)
        writes, at = 1, 0
        while at <= writes:  # the first time without a fault, to count them
            root = tmp_path / str(at)
            shutil.copytree(made, root)
            fault = Fault(FaultClock(), at=at, mode=mode)
            count = await play(root, fault)
            writes = max(writes, count) if at == 0 else writes
            assert fault.fired == (at > 0)
            at += 1
        assert writes >= 4 * TICKS  # a claim, a start, an end and a settlement for each

    asyncio.run(asyncio.wait_for(every_write(), 120))


def test_two_services_on_one_store_fire_each_tick_once(tmp_path: Path) -> None:
    clock = FakeClock(MIDNIGHT + timedelta(seconds=30))

    async def play() -> None:
        async with (
            asyncio.timeout(60),
            schedule_world(tmp_path, clock=clock) as one,
            schedule_world(tmp_path, clock=clock) as two,
        ):
            await one.make(overlap="queue", missed="all")
            for _ in range(10):
                clock.advance(MINUTE)
                await asyncio.gather(one.scheduler.step(), two.scheduler.step())
                for job in await one.jobs():
                    if job.state is State.QUEUED:
                        await one.end(job)
            clock.advance(timedelta(seconds=40))  # the other one finds by itself what ended elsewhere
            for _ in range(3):
                await asyncio.gather(one.scheduler.step(), two.scheduler.step())
            ticks = await one.ticks()
            fired = [each for each in ticks if each.result == "fired"]
            assert [each.scheduled_at for each in ticks] == [MIDNIGHT + n * MINUTE for n in range(1, 12)]
            assert len({each.job_id for each in fired}) == len(fired) == len(await one.jobs())

    asyncio.run(play())
