"""The pool of waiting processes, with a runner that starts none: when slots are filled, replaced and given up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.async_tests import in_loop
from tests.worker.fakes import FakeCheckouts

from steadyhand.agents import BUILT_IN_AGENTS, Agent, Catalog, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import Job
from steadyhand.ports import Checkout, RunSpec, WarmKey
from steadyhand.testing.contracts.samples import make_job
from steadyhand.worker import warm_pool
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_pool import MIN_AVAILABLE_BYTES, SLOT_BYTES, WarmPool
from steadyhand.worker.warm_slot import WarmSlot

SECONDS = 10.0
PLENTY = 64 << 30


@dataclass(eq=False)
class _Agent:
    session_id: str = "0b0e6c06-9c0e-4f3a-8a0c-6d9f5f6f0001"
    is_initialised: bool = True
    supervisor: tuple[int, int] = (0, 0)
    answers: bool = True
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    paused: bool = False
    root: Path | None = None
    resets: int = 0
    may_reset: bool = True

    async def reset(self, _checkout: Checkout) -> bool:
        self.resets += 1
        return self.may_reset

    def pause(self) -> None:
        self.paused = True

    async def wake(self) -> bool:
        self.paused = False
        return self.answers

    async def exited(self) -> None:
        await self.ended.wait()


@dataclass
class _Runner:
    """Counts the processes that it starts. `program` is a part of every key, as the CLI's version is."""

    program: str = "1"
    started: list[_Agent] = field(default_factory=list)
    alive: int = 0
    most_alive: int = 0
    failing: bool = False
    background: list[tuple[int, bool]] = field(default_factory=list)
    gate: asyncio.Event | None = None

    def warm_key(self, job: Job, agent: Agent) -> WarmKey | None:
        return WarmKey(f"{self.program} {agent.name}", str(job.spec.append_system_prompt))

    turn_key = warm_key

    def may_initialise(self, agent: Agent, checkout: Checkout) -> bool:  # noqa: ARG002  # the port's signature
        return not agent.secrets

    def set_background(self, supervisor: int, *, is_background: bool) -> None:
        self.background.append((supervisor, is_background))

    @asynccontextmanager
    async def prepare(self, spec: RunSpec, rehearsing: Any, *, initialise: bool) -> AsyncIterator[_Agent]:  # noqa: ARG002
        if self.failing:
            raise SpawnError("No program.")
        spec.checkout.paths.root.mkdir(parents=True, exist_ok=True)
        spec.on_spawned(7, 8)
        if self.gate is not None:
            await self.gate.wait()
        agent = _Agent(is_initialised=initialise)
        self.started.append(agent)
        self.alive += 1
        self.most_alive = max(self.alive, self.most_alive)
        try:
            yield agent
        finally:
            self.alive -= 1


class _Gateway:
    @asynccontextmanager
    async def hold_access(self, _agent: Agent, _place: Checkout) -> AsyncIterator[Any]:
        class Held:
            model_access = None
            can_rehearse = False
            on_listening = None

        yield Held()


@dataclass
class _Config:
    first_warm_slot: int = 40
    warm_memory: int = 10 * SLOT_BYTES
    max_kept_per_key: int = 2
    clock: Callable[[], Any] = field(default_factory=lambda: lambda: make_job().created_at)
    environment_for: Callable[..., Any] = field(default_factory=lambda: lambda *_: {})


class _Checkouts(FakeCheckouts):
    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:  # noqa: ARG002
        return replace(checkout, paths=self.job_paths(job.id))

    async def take_back(self, checkout: Checkout, checkout_id: str) -> Checkout | None:
        paths = self.job_paths(checkout_id)
        paths.root.mkdir(parents=True, exist_ok=True)
        return replace(checkout, paths=paths)


@dataclass
class World:
    pool: WarmPool
    runner: _Runner
    memory: list[int]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():  # noqa: ASYNC110  # the pool looks again by itself
                await asyncio.sleep(0.005)

    def job(self, **fields: Any) -> Job:
        return make_job(agent="chat", workspace=None, **fields)


@asynccontextmanager
async def world(
    tmp_path: Path,
    warm: Any = 1,
    *,
    memory: int = 10 * SLOT_BYTES,
    runner: _Runner | None = None,
    **agent: Any,
) -> AsyncIterator[World]:
    runner = runner or _Runner()
    chat = replace(BUILT_IN_AGENTS["chat"], warm=warm, **agent)
    fakes: Any = {
        "catalog": Catalog({"chat": chat, "claude": BUILT_IN_AGENTS["claude"]}),
        "checkouts": _Checkouts(tmp_path),
        "warm_runners": {"claude": runner},
        "gateway": _Gateway(),
        "config": _Config(warm_memory=memory),
    }
    deps = cast("WorkerDeps", type("Deps", (), fakes)())
    available = [PLENTY]
    pool = WarmPool(deps, lambda _job: Workspace("scratch"), available=lambda: available[0])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.run())
        yield World(pool, runner, available)
        task.cancel()


@in_loop
async def test_a_slot_has_one_job_and_another_takes_its_place(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        assert made.runner.started[0].paused
        async with made.pool.claimed(made.job()) as slot:
            assert slot is not None
            assert slot.number >= 40
            checkout = await made.pool.hand_over(slot, made.job(id="the-job"))
            assert checkout is not None
            assert checkout.paths.root.name == "the-job"
            assert not made.runner.started[0].paused
            assert made.pool.slot_of("the-job") is slot
        assert made.pool.slot_of("the-job") is None
        await made.until(lambda: len(made.runner.started) == 2 and len(made.pool.waiting) == 1)
        assert made.runner.alive == 1
        assert (made.pool.counts.hits, made.pool.counts.misses) == (1, 0)


@in_loop
async def test_a_job_of_another_kind_gets_none(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        async with made.pool.claimed(make_job(agent="claude", workspace=None)) as slot:
            assert slot is None
        other = made.job()
        other = replace(other, spec=replace(other.spec, append_system_prompt="Be brief."))
        async with made.pool.claimed(other) as slot:
            assert slot is None
        assert made.pool.counts.misses == 1


@in_loop
async def test_a_process_that_does_not_answer_gives_the_job_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        made.runner.started[0].answers = False
        async with made.pool.claimed(made.job()) as slot:
            assert slot is not None
            assert await made.pool.hand_over(slot, made.job()) is None
        await made.until(lambda: len(made.pool.waiting) == 1)
        assert len(made.runner.started) == 2


@in_loop
async def test_a_process_that_ended_by_itself_is_replaced(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        made.runner.started[0].ended.set()
        await made.until(lambda: len(made.runner.started) == 2 and len(made.pool.waiting) == 1)


@in_loop
async def test_a_changed_program_replaces_the_processes_of_the_old_one(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as made:
        await made.until(lambda: len(made.pool.waiting) == 2)
        made.runner.program = "2"
        await made.until(lambda: len(made.runner.started) == 4 and made.runner.alive == 2)
        assert {slot.key.process for slot in made.pool.waiting} == {"2 chat"}


@in_loop
async def test_an_old_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        monkeypatch.setattr(warm_pool, "MAX_AGE_SECONDS", 0.0)
        await made.until(lambda: made.pool.counts.dropped >= 1)
        monkeypatch.setattr(warm_pool, "MAX_AGE_SECONDS", 3600.0)
        await made.until(lambda: len(made.pool.waiting) == 1)


@in_loop
async def test_without_memory_no_process_waits_and_with_it_they_come_back(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as made:
        await made.until(lambda: len(made.pool.waiting) == 3)
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        await made.until(lambda: made.runner.alive == 0)
        started = len(made.runner.started)
        async with made.pool.claimed(made.job()) as slot:
            assert slot is None
        made.memory[0] = PLENTY
        await made.until(lambda: len(made.pool.waiting) == 3)
        assert len(made.runner.started) == started + 3


@in_loop
async def test_the_processes_fit_in_the_memory_that_is_set(tmp_path: Path) -> None:
    async with world(tmp_path, 5, memory=2 * SLOT_BYTES) as made:
        await made.until(lambda: len(made.pool.waiting) == 2)
        for _ in range(3):
            async with made.pool.claimed(made.job()):
                pass
        await made.until(lambda: len(made.pool.waiting) == 2 and made.runner.alive == 2)
        assert made.runner.most_alive <= 3  # with that of a job


@in_loop
async def test_auto_starts_what_the_jobs_of_the_last_hours_needed(tmp_path: Path) -> None:
    async with world(tmp_path, "auto") as made:
        for _ in range(3):
            async with made.pool.claimed(made.job()) as slot:
                assert slot is None
        await made.until(lambda: len(made.pool.waiting) == 3)


@in_loop
async def test_a_failed_start_is_tried_again_after_a_pause(tmp_path: Path) -> None:
    runner = _Runner(failing=True)
    async with world(tmp_path, runner=runner) as made:
        await made.until(lambda: made.pool.counts.failures == 1)
        for _ in range(5):  # each arrival wakes the pool
            async with made.pool.claimed(made.job()) as slot:
                assert slot is None
            await asyncio.sleep(0)
        assert made.pool.counts.failures == 1


@in_loop
async def test_an_agent_with_secrets_has_a_process_that_is_only_started(tmp_path: Path) -> None:
    async with world(tmp_path, secrets=("/etc/secret",)) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        assert not made.runner.started[0].is_initialised


@in_loop
async def test_preparations_run_in_the_background_while_a_job_runs(tmp_path: Path) -> None:
    runner = _Runner(gate=asyncio.Event())
    async with world(tmp_path, runner=runner) as made:
        await made.until(lambda: any(slot.supervisor == 7 for slot in made.pool._slots))
        assert runner.background == []
        async with made.pool.claimed(made.job()):
            assert runner.background == [(7, True)]
        assert runner.background == [(7, True), (7, False)]


@in_loop
async def test_a_closed_pool_ends_what_waits_and_starts_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as made:
        await made.until(lambda: len(made.pool.waiting) == 2)
        async with made.pool.claimed(made.job()) as slot:
            made.pool.close()
            await made.until(lambda: made.runner.alive == 1)  # that of the running job
            assert slot is not None
            assert not slot.released.is_set()
        await made.until(lambda: made.runner.alive == 0)
        assert len(made.runner.started) == 2


@in_loop
async def test_without_an_agent_that_asks_for_it_nothing_is_started(tmp_path: Path) -> None:
    async with world(tmp_path, 0) as made:
        async with made.pool.claimed(made.job()) as slot:
            assert slot is None
        assert made.runner.started == []


# --- processes that stay ---------------------------------------------------------------------------


async def _run(made: World, job: Job) -> WarmSlot | None:
    """Run a job in the slot that it gets, and keep the process if it may be kept; return the slot."""
    async with made.pool.claimed(job) as slot:
        if slot is None or await made.pool.hand_over(slot, replace(job, begin="resume")) is None:
            return None
        if made.pool.may_keep(job):
            made.pool.expect_turn(job)
            assert await made.pool.keep(slot, job)
        return slot


def _of(made: World, key: str, user: str | None = None, **fields: Any) -> Job:
    return made.job(api_key_id=key, metadata=None if user is None else {"user": user}, **fields)


@in_loop
async def test_a_process_without_tools_is_reset_for_its_caller_and_for_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        first = await _run(made, _of(made, "k_one", "ada"))
        await made.until(lambda: len(made.pool.waiting) == 2)  # it, and a new one
        for key, user in (("k_one", "grace"), ("k_two", "ada"), ("k_one", None)):
            async with made.pool.claimed(_of(made, key, user)) as slot:
                assert slot is not first
            await made.until(lambda: len(made.pool.waiting) == 2)
        assert await _run(made, _of(made, "k_one", "ada")) is first
        await made.until(lambda: made.runner.started[0].resets == 2)


@in_loop
async def test_a_process_that_cannot_be_reset_ends(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        made.runner.started[0].may_reset = False
        slot = await _run(made, _of(made, "k_one"))
        assert slot is not None
        await made.until(slot.ended.is_set)


@in_loop
async def test_a_process_with_tools_does_not_stay(tmp_path: Path) -> None:
    async with world(tmp_path, tools=("Bash",)) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        slot = await _run(made, _of(made, "k_one"))
        assert slot is not None
        assert slot.ended.is_set()


@in_loop
async def test_a_live_process_is_for_the_turn_after_its_job_alone(tmp_path: Path) -> None:
    async with world(tmp_path, live_seconds=60.0) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        parent = _of(made, "k_one", id="parent")
        first = await _run(made, parent)
        turn = {"begin": "resume", "parent_job_id": "parent"}
        stranger = _of(made, "k_two", **turn)
        async with made.pool.claimed(stranger) as slot:
            assert slot is not first
        other_details = _of(made, "k_one", append_system_prompt="Be brief.", **turn)
        async with made.pool.claimed(other_details) as slot:
            assert slot is not first
        assert await _run(made, _of(made, "k_one", **turn)) is first
        assert made.runner.started[0].resets == 0
        assert made.pool.counts.live_hits == 1


@in_loop
async def test_kept_processes_are_bounded_by_key_and_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, 5) as made:
        await made.until(lambda: len(made.pool.waiting) == 5)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(_run(made, _of(made, "k_one")))

        def used() -> list[WarmSlot]:
            return [slot for slot in made.pool.waiting if slot.owner is not None]

        await made.until(lambda: len(used()) == 2 and len(made.pool.waiting) == 7)
        monkeypatch.setattr(warm_pool, "KEPT_SECONDS", 0.0)
        await made.until(lambda: not used() and len(made.pool.waiting) == 5)
        monkeypatch.setattr(warm_pool, "KEPT_SECONDS", 60.0)
        await _run(made, _of(made, "k_two"))
        await made.until(lambda: len(used()) == 1)
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        await made.until(lambda: made.runner.alive == 0)
