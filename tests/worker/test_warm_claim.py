"""A run in a process that waited for it: what is done before its prompt, and what beside something else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.async_tests import in_loop
from tests.worker.test_run_executor import World, succeed, world_at

from steadyhand.agents import Workspace
from steadyhand.job import ENDED, Job, State
from steadyhand.ports import Checkout, Emit, RunReport, RunSpec, StopSignal, WarmAgent
from steadyhand.worker.warm_demand import SlotKey
from steadyhand.worker.warm_slot import WarmSlot

SCRATCH = Workspace("scratch")
Wake = Callable[[], Awaitable[bool]]


async def _answer() -> bool:
    return True


@dataclass
class _Agent:
    """A process that waited. `root` is looked for among all processes, so each look is counted."""

    wake: Wake = _answer
    session_id: str = "0b0e6c06-9c0e-4f3a-8a0c-6d9f5f6f0001"
    supervisor: tuple[int, int] = (0, 0)
    looks: int = 0
    specs: list[RunSpec] = field(default_factory=list)
    roots: list[Path | None] = field(default_factory=list)

    @property
    def root(self) -> Path:
        self.looks += 1
        return Path("/proc/1/root")

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        self.specs.append(spec)
        return await succeed(spec, emit, stop)


@asynccontextmanager
async def _waiting(root: Path, agent: _Agent, workspace: Workspace = SCRATCH) -> AsyncIterator[World]:
    """A world whose next job gets this process; the slot ends with the job."""
    async with world_at(root) as world:
        pool = world.executor.warm_pool
        checkout = await world.checkouts.prepare_ahead(cast("Job", _Named("warm-1")), workspace, 40)
        slot = WarmSlot(SlotKey("claude", "", "", ""), 40, True, checkout=checkout)
        slot.agent = cast("WarmAgent", agent)
        pool._slots.append(slot)

        @asynccontextmanager
        async def claimed(_job: Job) -> AsyncIterator[WarmSlot]:
            yield slot

        async def hand_over(checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout:
            agent.roots.append(agent_root)
            paths = world.checkouts.job_paths(job.id)
            paths.root.mkdir(parents=True)
            return replace(checkout, paths=paths)

        async def end(slot: WarmSlot) -> None:
            slot.released.set()

        patched: dict[str, Any] = {"claimed": claimed, "end_process": end}
        for name, value in patched.items():
            setattr(pool, name, value)
        world.checkouts.hand_over = hand_over  # type: ignore[method-assign]
        yield world


@dataclass
class _Named:
    id: str


@in_loop
async def test_a_process_wakes_while_the_begin_of_its_run_is_stored(tmp_path: Path) -> None:
    woken, storing = asyncio.Event(), asyncio.Event()

    async def wake() -> bool:
        await storing.wait()
        woken.set()
        return True

    agent = _Agent(wake)
    async with _waiting(tmp_path, agent) as world:
        update_job = world.store.update_job

        async def update(*arguments: Any, **fields: Any) -> Any:
            storing.set()
            await woken.wait()
            return await update_job(*arguments, **fields)

        world.store.update_job = update  # type: ignore[method-assign]
        claim = await world.claim()
        await world.executor.execute(claim)
        assert (await world.job(claim)).state is State.COMPLETED
        assert len(agent.specs) == 1


@in_loop
async def test_a_job_whose_begin_cannot_be_stored_runs_nothing_in_the_process(tmp_path: Path) -> None:
    agent = _Agent()
    async with _waiting(tmp_path, agent) as world:
        claim = await world.claim()
        await world.store.update_job(
            claim.job.id, frozenset({State.QUEUED}), lambda old: replace(old, state=State.CANCELLED)
        )
        await world.executor.execute(claim)
        assert (await world.job(claim)).state is State.CANCELLED
        assert (await world.job(claim)).runs == ()
    assert agent.specs == []


@in_loop
async def test_a_process_that_does_not_wake_is_asked_once_and_the_job_has_one_of_its_own(
    tmp_path: Path,
) -> None:
    asked = 0

    async def wake() -> bool:
        nonlocal asked
        asked += 1
        return False

    agent = _Agent(wake)
    async with _waiting(tmp_path, agent) as world:
        claim = await world.claim()
        await world.executor.execute(claim)
        assert (await world.job(claim)).state is State.COMPLETED
        assert asked == 1
        assert agent.specs == []
        assert len(world.runner.specs) == 1


@pytest.mark.parametrize(("workspace", "looks"), [("scratch", 0), ("site", 1)])
@in_loop
async def test_the_root_of_a_process_is_looked_for_only_if_a_repository_needs_it(
    tmp_path: Path, workspace: str, looks: int
) -> None:
    agent = _Agent()
    repository = None if workspace == "scratch" else "/srv/site"
    async with _waiting(tmp_path, agent, Workspace(workspace, repository=repository)) as world:
        await world.executor.execute(await world.claim())
        assert agent.looks == looks
        assert agent.roots == ([Path("/proc/1/root")] if looks else [None])


@in_loop
async def test_a_turn_in_a_waiting_process_reads_no_more_for_a_longer_conversation(tmp_path: Path) -> None:
    counts = []
    for turns in (1, 6):
        root = tmp_path / str(turns)
        root.mkdir()
        async with _waiting(root, _Agent()) as world:
            parent = None
            for number in range(turns):
                earlier = await world.claim(id=f"turn-{number}", parent_job_id=parent, session_id="s")
                await world.store.update_job(
                    earlier.job.id, frozenset({State.QUEUED}), lambda old: replace(old, state=State.COMPLETED)
                )
                assert (await world.job(earlier)).state in ENDED
                world.checkouts.job_paths(earlier.job.id).config_dir.mkdir(parents=True)
                parent = earlier.job.id
            get, reads = world.store.get, list[str]()

            async def counted(job_id: str, get: Any = get, reads: list[str] = reads) -> Job | None:
                reads.append(job_id)
                return cast("Job | None", await get(job_id))

            world.store.get = counted  # type: ignore[method-assign]
            claim = await world.claim(id="newest", parent_job_id=parent, begin="resume", session_id="s")
            await world.executor.execute(claim)
            counts.append(len(reads))
            world.store.get = get  # type: ignore[method-assign]
            assert (await world.job(claim)).state is State.COMPLETED
    assert counts[0] == counts[1]
    assert counts[0] > 0
