"""The commits of a run: its start, its checkout and its end. Events share them, and nothing waits for an event."""

import asyncio
from dataclasses import replace
from pathlib import Path

from tests.worker.fakes import SUCCESS
from tests.worker.test_run_executor import FakeGateway, World, world_at

from steadyhand.agents import Workspace
from steadyhand.errors import SpawnError
from steadyhand.events import Message
from steadyhand.job import Job, JobWarning, OutcomeType, State
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, Emit, Harvest, RunReport, RunSpec, StopSignal, report_phase

AN_HOUR = 3600.0
"""The time for which an event waits for others: so long that who waits for one would run into the test's limit."""
WARNING = JobWarning(WarningCode.SUBMODULES_EMPTY, "A part is not there.")


class Commits:
    """Counts the commits of a store."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, _operations: int, _seconds: float) -> None:
        self.count += 1


async def event_names(world: World, job_id: str) -> list[str]:
    events = await world.store.list_events(job_id)
    return [str(event.data.get("phase") or event.data.get("to") or event.type) for event in events]


def in_repository(world: World) -> None:
    """Let each checkout have a commit and a warning, after two phases."""
    prepare = world.checkouts.prepare

    async def prepare_in_repository(job: Job, workspace: Workspace, slot: int) -> Checkout:
        await report_phase("fetching")
        await report_phase("checking_out")
        return replace(await prepare(job, workspace, slot), commit="a" * 40, warnings=(WARNING,))

    world.checkouts.prepare = prepare_in_repository  # type: ignore[method-assign]


def test_a_run_waits_for_the_commits_of_its_start_and_its_end_alone(tmp_path: Path) -> None:
    started = asyncio.Event()
    commits = Commits()
    at_start: list[int] = []

    async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        at_start.append(commits.count)
        assert spec.job.commit == "a" * 40
        spec.on_spawned(1, 2)
        await emit(Message("assistant", "one"))
        started.set()
        return SUCCESS

    async def scene() -> None:
        async with world_at(tmp_path, agent, linger_seconds=AN_HOUR, on_commit=commits.add) as world:
            in_repository(world)
            claim = await world.claim()
            before = commits.count
            await world.executor.execute(claim)
            assert at_start == [before + 1]  # that the job runs is stored before its agent is
            # The start; the checkout with its events and the process; the end with the rest.
            assert commits.count <= before + 3
            job = await world.job(claim)
            assert (job.state, job.commit, job.warnings) == (State.COMPLETED, "a" * 40, (WARNING,))
            assert job.runs[0].supervisor == 1
            assert await event_names(world, job.id) == [
                "queued", "running", "fetching", "checking_out", "warning", "starting", "running", "message",
                "harvesting", "completed",
            ]  # fmt: skip

    asyncio.run(scene())


def test_the_events_before_the_end_of_a_run_are_stored_before_it(tmp_path: Path) -> None:
    """Whatever ends it, and although nobody waits for them."""

    async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        for number in range(100):  # more than are passed to the store at once
            await emit(Message("assistant", str(number)))
        raise SpawnError("It does not go on.")

    async def scene() -> None:
        gateway = FakeGateway()
        async with world_at(tmp_path, agent, gateway, linger_seconds=AN_HOUR) as world:
            claim = await world.claim()
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.outcome is not None
            assert job.outcome.type == OutcomeType.NOT_STARTED
            names = await event_names(world, job.id)
            assert names[-1] == "error"
            assert names.count("message") == 100

    asyncio.run(scene())


def test_the_harvest_does_not_wait_for_the_events_of_the_agent(tmp_path: Path) -> None:
    stored: list[list[str]] = []

    async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        await asyncio.sleep(0)
        await emit(Message("assistant", "one"))
        return SUCCESS

    async def scene() -> None:
        async with world_at(tmp_path, agent, linger_seconds=AN_HOUR) as world:
            claim = await world.claim()

            async def harvest() -> Harvest:
                stored.append(await event_names(world, claim.job.id))
                return Harvest(None)

            world.checkouts.on_harvest = harvest
            await world.executor.execute(claim)
            assert "message" not in stored[0]
            names = await event_names(world, claim.job.id)
            assert names[-3:] == ["message", "harvesting", "completed"]

    asyncio.run(scene())
