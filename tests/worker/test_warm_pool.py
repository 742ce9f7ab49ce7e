"""The pool of waiting processes, with a runner that starts none: when slots are filled, replaced and given up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.async_tests import in_loop
from tests.worker.fakes import FakeCheckouts

from steadyhand.agents import BUILT_IN_AGENTS, Agent, Catalog, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import Job, Run, State
from steadyhand.ports import Checkout, RunSpec, WarmKey
from steadyhand.testing.contracts.samples import NOON, make_job
from steadyhand.worker import warm_owner, warm_plan, warm_pool, warm_records
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.parents import Ancestor
from steadyhand.worker.warm_plan import MIN_AVAILABLE_BYTES
from steadyhand.worker.warm_pool import WarmPool
from steadyhand.worker.warm_slot import SLOT_BYTES, WarmSlot

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

    def end_hold(self) -> None:
        pass


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
    is_sandboxed: bool = True

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
    max_waiting_runs: int = 0
    clock: Callable[[], Any] = field(default_factory=lambda: lambda: make_job().created_at)
    environment_for: Callable[..., Any] = field(default_factory=lambda: lambda *_: {})


class _Checkouts(FakeCheckouts):
    full_trust = False

    async def prepare_ahead(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        self.calls.append(("prepare_ahead", job.id))
        checkout = await super().prepare_ahead(job, workspace, slot)
        return replace(checkout, full_trust=self.full_trust)

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
    checkouts: _Checkouts
    waiting_runs: list[tuple[float, str]]

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
    full_trust: bool = False,
    **agent: Any,
) -> AsyncIterator[World]:
    runner, checkouts = runner or _Runner(), _Checkouts(tmp_path)
    checkouts.full_trust = full_trust
    chat = replace(BUILT_IN_AGENTS["chat"], warm=warm, **agent)
    fakes: Any = {
        "catalog": Catalog({"chat": chat, "claude": BUILT_IN_AGENTS["claude"]}),
        "checkouts": checkouts,
        "warm_runners": {"claude": runner},
        "gateway": _Gateway(),
        "config": _Config(warm_memory=memory),
        "orphans": (),
        "held_runs": None,
    }
    deps = cast("WorkerDeps", type("Deps", (), fakes)())
    available = [PLENTY]
    runs: list[tuple[float, str]] = []
    pool = WarmPool(
        deps, lambda _job: Workspace("scratch"), available=lambda: available[0], waiting_runs=lambda: runs
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.run())
        yield World(pool, runner, available, checkouts, runs)
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
            assert made.pool.counts.hits == 0  # the prompt is not taken yet
            made.pool.count_prompt(made.job(id="the-job"), taken=True)
            made.pool.count_prompt(made.job(id="the-job"), taken=False)  # it is counted once
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
        counts = made.pool.counts
        assert (counts.hits, counts.misses, counts.lost) == (0, 1, 1)
        (report,) = made.pool.agent_reports().values()
        assert (report["hits"], report["misses"]) == (0, 1)


@in_loop
async def test_a_process_that_ends_before_it_takes_the_prompt_is_a_miss(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        job = made.job(id="the-job")
        async with made.pool.claimed(job) as slot:
            assert slot is not None
            assert await made.pool.hand_over(slot, job) is not None
            made.pool.count_prompt(job, taken=False)
        counts = made.pool.counts
        assert (counts.hits, counts.misses, counts.lost) == (0, 1, 1)


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
        monkeypatch.setattr(warm_plan, "MAX_AGE_SECONDS", 0.0)
        await made.until(lambda: made.pool.counts.dropped >= 1)
        monkeypatch.setattr(warm_plan, "MAX_AGE_SECONDS", 3600.0)
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
async def test_one_look_at_the_memory_ends_all_that_waits_and_looks_are_half_a_second_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float | None] = []
    timeout = asyncio.timeout

    def recorded(seconds: float | None) -> asyncio.Timeout:
        pauses.append(seconds)
        return timeout(seconds)

    async with world(tmp_path, 3) as made:
        await made.until(lambda: len(made.pool.waiting) == 3)
        slots, looks = made.pool.waiting, []

        def available() -> int:
            looks.append([slot.released.is_set() for slot in slots])
            return MIN_AVAILABLE_BYTES - 1

        monkeypatch.setattr(asyncio, "timeout", recorded)
        monkeypatch.setattr(made.pool._plan, "_available", available)
        async with timeout(SECONDS):
            await asyncio.wait([asyncio.ensure_future(slot.ended.wait()) for slot in slots])
        # One round looks twice: before it drops processes, and before it starts any.
        assert looks[:2] == [[False] * 3, [True] * 3]
        assert made.runner.alive == 0
        # The pool waits for nothing but its next look: with the end of the processes that is far below 2 s.
        assert warm_pool.CHECK_SECONDS <= 0.5
        assert set(pauses) == {warm_pool.CHECK_SECONDS}


@in_loop
async def test_without_memory_a_process_ends_also_while_it_is_made_ready(tmp_path: Path) -> None:
    runner = _Runner(gate=asyncio.Event())  # it is never ready
    async with world(tmp_path, runner=runner) as made:
        await made.until(lambda: any(slot.supervisor == 7 for slot in made.pool._slots))
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        await made.until(lambda: not made.pool._slots)
        assert ("release", made.checkouts.calls[0][1]) in made.checkouts.calls
        assert (made.pool.counts.dropped, made.pool.counts.failures) == (1, 0)
        made.memory[0] = PLENTY
        assert runner.gate is not None
        runner.gate.set()
        await made.until(lambda: len(made.pool.waiting) == 1)  # at once: nothing has failed


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
async def test_with_full_trust_nothing_waits_and_no_checkout_is_made_again_and_again(tmp_path: Path) -> None:
    async with world(tmp_path, full_trust=True) as made:
        await made.until(lambda: made.pool.counts.failures == 1)
        for _ in range(5):  # each arrival wakes the pool
            async with made.pool.claimed(made.job()) as slot:
                assert slot is None
            await asyncio.sleep(0)
        made_ahead = [each for each in made.checkouts.calls if each[0] == "prepare_ahead"]
        assert (len(made_ahead), made.runner.started) == (1, [])
        assert made.pool.agent_reports()["chat"]["shortage"]["reason"] == "trust"


@in_loop
async def test_the_report_of_an_agent_tells_how_many_wait_and_what_its_jobs_had(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as made:
        await made.until(lambda: len(made.pool.waiting) == 2)
        job = made.job()
        async with made.pool.claimed(job) as slot:
            assert slot is not None
            await made.pool.hand_over(slot, job)
            made.pool.count_prompt(job, taken=True)
        other = made.job()
        other = replace(other, spec=replace(other.spec, append_system_prompt="Be brief."))
        async with made.pool.claimed(other):
            pass
        await made.until(lambda: len(made.pool.waiting) == 2)
        report = {"configured": 2, "waiting": 2, "kept": 0, "hits": 1, "misses": 1, "shortage": None}
        assert made.pool.agent_reports() == {"chat": report}
        summary = made.pool.summary()
        assert summary is not None
        assert (summary["configured"], summary["waiting"], summary["hits"]) == (2, 2, 1)
        assert "shortage" not in summary


@in_loop
async def test_the_report_tells_why_fewer_processes_wait_than_are_configured(tmp_path: Path) -> None:
    runner = _Runner(failing=True)

    def told(made: World) -> tuple[str, str]:
        why, summary = made.pool.agent_reports()["chat"]["shortage"], made.pool.summary()
        assert summary is not None
        assert summary["shortage"] == why["reason"]
        return why["reason"], why["detail"]

    async with world(tmp_path, runner=runner) as made:
        await made.until(lambda: made.pool.counts.failures == 1)
        assert told(made) == ("process", "No program.")
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        assert told(made)[0] == "memory"
    async with world(tmp_path, runner=_Runner(), memory=SLOT_BYTES - 1) as made:
        assert told(made)[0] == "warm_memory"
        assert made.pool.agent_reports()["chat"]["configured"] == 1


@in_loop
async def test_a_process_that_is_ready_ends_the_report_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_records, "FIRST_RETRY_SECONDS", 0.05)
    runner = _Runner(failing=True)
    async with world(tmp_path, runner=runner) as made:
        await made.until(lambda: made.pool.counts.failures >= 1)
        runner.failing = False
        await made.until(lambda: len(made.pool.waiting) == 1)
        assert made.pool.agent_reports()["chat"]["shortage"] is None


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
async def test_on_a_drained_node_no_process_waits_or_stays_and_once_undrained_they_come_back(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 2, live_seconds=60) as made:
        await made.until(lambda: len(made.pool.waiting) == 2)
        job, is_drained = made.job(), True
        async with made.pool.claimed(job) as slot:
            assert slot is not None
            assert await made.pool.hand_over(slot, job) is not None
            assert made.pool.may_keep(job)
            made.pool.is_drained = lambda: is_drained
            assert not made.pool.may_keep(job)
            await made.until(lambda: made.runner.alive == 1)  # that of the running job
            assert not slot.released.is_set()
        await made.until(lambda: made.runner.alive == 0)
        started = len(made.runner.started)
        is_drained = False
        await made.until(lambda: len(made.pool.waiting) == 2)
        assert len(made.runner.started) == started + 2


@in_loop
async def test_without_an_agent_that_asks_for_it_nothing_is_started(tmp_path: Path) -> None:
    async with world(tmp_path, 0) as made:
        async with made.pool.claimed(made.job()) as slot:
            assert slot is None
        assert made.runner.started == []


# --- processes that stay ---------------------------------------------------------------------------


@asynccontextmanager
async def _answered(made: World, job: Job) -> AsyncIterator[Callable[[], Any]]:
    """Run a job in the only slot up to its answer; what this yields keeps the process, which is then reset."""
    await made.until(lambda: len(made.pool.waiting) == 1)
    made.runner.gate = asyncio.Event()  # no other is ready before it is set
    async with AsyncExitStack() as stack:
        slot = await stack.enter_async_context(made.pool.claimed(job))
        assert slot is not None
        assert await made.pool.hand_over(slot, job) is not None

        async def keep() -> None:
            made.pool.expect_turn(job)
            assert await made.pool.keep(slot, job)
            await stack.aclose()

        made.pool.count_prompt(job, taken=True)
        made.pool.expect_reset(job)
        yield keep
    made.runner.gate.set()


@in_loop
async def test_a_job_waits_for_the_process_of_its_caller_that_is_being_reset(tmp_path: Path) -> None:
    async with world(tmp_path) as made, asyncio.TaskGroup() as group:
        async with _answered(made, made.job(id="first")) as keep:
            asked = group.create_task(_run(made, made.job(id="second")))
            await made.until(lambda: made.pool._waiting_for_reset.total() == 1)
            assert await _run(made, made.job(id="third")) is None  # one is reset, so one waits
            assert await _run(made, made.job(id="other", api_key_id="k_other")) is None
            assert not asked.done()
            await keep()
            assert await asked is not None
        assert made.runner.started[0].resets == 1
        assert made.pool.counts.hits == 2
        assert not made.pool._waiting_for_reset


@in_loop
async def test_a_job_that_waited_in_vain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_pool, "SETTLE_SECONDS", 0.05)
    async with world(tmp_path) as made, _answered(made, made.job(id="first")):
        assert await _run(made, made.job(id="second")) is None
        assert not made.pool._waiting_for_reset


@in_loop
async def test_a_job_whose_expected_process_ends_goes_on_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as made, asyncio.TaskGroup() as group:
        async with _answered(made, made.job(id="first")):
            asked = group.create_task(_run(made, made.job(id="second")))
            await made.until(lambda: made.pool._waiting_for_reset.total() == 1)
        assert await asked is None  # the process was not kept


@pytest.mark.parametrize("processors", [1, 8])
@in_loop
async def test_on_a_busy_machine_a_job_waits_for_a_reset_rather_than_have_a_process_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    monkeypatch.setattr(warm_pool, "PROCESSORS", processors)
    async with world(tmp_path) as made, asyncio.TaskGroup() as group:
        async with _answered(made, made.job(id="first")) as keep:
            assert made.runner.gate is not None
            made.runner.gate.set()
            await made.until(lambda: len(made.pool.waiting) == 1)
            asked = group.create_task(_run(made, made.job(id="second")))
            await made.until(lambda: asked.done() or made.pool._waiting_for_reset.total() == 1)
            assert asked.done() is (processors == 8)
            await keep()
            await asked
        await made.until(lambda: made.runner.started[0].resets == 1)


async def _run(made: World, job: Job) -> WarmSlot | None:
    """Run a job in the slot that it gets, and keep the process if it may be kept; return the slot."""
    async with made.pool.claimed(job) as slot:
        if slot is None or await made.pool.hand_over(slot, replace(job, begin="resume")) is None:
            return None
        made.pool.count_prompt(job, taken=True)
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
@pytest.mark.parametrize(
    ("seconds", "tools", "lingers"), [(600.0, (), True), (0.0, (), False), (600.0, ("Bash",), False)]
)
async def test_a_live_process_without_tools_goes_on_for_a_while_after_a_turn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    tools: tuple[str, ...],
    *,
    lingers: bool,
) -> None:
    monkeypatch.setattr(warm_owner, "LINGER_SECONDS", seconds)
    async with world(tmp_path, live_seconds=60.0, tools=tools) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        slot = await _run(made, _of(made, "k_one", id="parent"))
        assert slot is not None
        await made.until(lambda: slot.is_ready)
        if seconds == 0:
            await made.until(lambda: made.runner.started[0].paused)
        assert made.runner.started[0].paused is not lingers


@in_loop
async def test_a_live_process_that_does_not_answer_after_its_turn_does_not_stay(tmp_path: Path) -> None:
    async with world(tmp_path, live_seconds=60.0) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        async with made.pool.claimed(job := _of(made, "k_one", id="parent")) as slot:
            assert slot is not None
            assert await made.pool.hand_over(slot, job) is not None
            made.runner.started[0].answers = False
            assert await made.pool.keep(slot, job)
        await made.until(slot.ended.is_set)


@in_loop
async def test_a_live_process_does_not_know_of_a_later_run_of_its_job(tmp_path: Path) -> None:
    async with world(tmp_path, live_seconds=60.0) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        ran = Run(1, State.COMPLETED, started_at=NOON)
        parent = _of(made, "k_one", id="parent", runs=(ran,))
        slot = await _run(made, parent)
        assert slot is not None
        assert slot.holds(Ancestor(parent, has_session=True))
        resumed = replace(parent, runs=(ran, replace(ran, number=2)))
        assert not slot.holds(Ancestor(resumed, has_session=True))
        assert not slot.holds(Ancestor(_of(made, "k_one", id="another", runs=(ran,)), has_session=True))
        assert not slot.holds(None)
        turn = _of(made, "k_one", begin="resume", parent_job_id="parent")
        async with made.pool.claimed(turn) as claimed:
            assert claimed is slot
            slot.released.set()  # as the run does, which reads the parent
            assert await made.pool.hand_over(slot, turn) is None


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
        monkeypatch.setattr(warm_plan, "KEPT_SECONDS", 0.0)
        await made.until(lambda: not used() and len(made.pool.waiting) == 5)
        monkeypatch.setattr(warm_plan, "KEPT_SECONDS", 60.0)
        await _run(made, _of(made, "k_two"))
        await made.until(lambda: len(used()) == 1)
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        await made.until(lambda: made.runner.alive == 0)


@in_loop
async def test_runs_that_wait_for_their_clients_share_the_memory_and_the_oldest_goes_first(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, memory=3 * SLOT_BYTES, live_seconds=60.0) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        kept = await _run(made, _of(made, "k_one", id="parent"))
        await made.until(lambda: len(made.pool.waiting) == 2)
        assert kept is not None
        made.waiting_runs += [(kept.kept_at - 1, "k_two")]
        assert made.pool.surplus_runs() == 0
        made.waiting_runs += [(kept.kept_at + 1, "k_two")]
        assert made.pool.surplus_runs() == 1  # it has waited for longer than the process that stays
        made.waiting_runs[:] = [(kept.kept_at + 1, "k_two")] * 2
        assert made.pool.surplus_runs() == 0
        await made.until(kept.ended.is_set)


@in_loop
async def test_the_processes_of_a_key_are_bounded_with_its_runs_that_wait(tmp_path: Path) -> None:
    async with world(tmp_path, live_seconds=60.0) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        kept = await _run(made, _of(made, "k_one", id="parent"))
        await made.until(lambda: len(made.pool.waiting) == 2)
        assert kept is not None
        made.waiting_runs += [(kept.kept_at + 1, "k_one")] * 2
        await made.until(kept.ended.is_set)
        assert made.pool.surplus_runs() == 0


@in_loop
async def test_without_memory_what_waits_for_a_job_ends_before_a_run_that_waits_for_its_client(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as made:
        await made.until(lambda: len(made.pool.waiting) == 1)
        made.waiting_runs += [(0.0, "k_one")] * 2
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        assert made.pool.surplus_runs() == 0
        await made.until(lambda: made.runner.alive == 0)
        assert made.pool.surplus_runs() == 1  # one after the other: each may be enough


@in_loop
async def test_an_agent_without_waiting_processes_has_a_slot_in_which_a_job_starts_its_own(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 0, live_seconds=60.0) as made:
        await asyncio.sleep(0)
        async with made.pool.claimed(_of(made, "k_one")) as slot:
            assert slot is not None
            assert slot.agent is None
            assert slot.number >= 40
            assert made.pool.waiting == []
        assert slot.ended.is_set()
        resumed = replace(_of(made, "k_one"), runs=(Run(1, State.INTERRUPTED),))
        async with made.pool.claimed(resumed) as slot:
            assert slot is None
        made.memory[0] = MIN_AVAILABLE_BYTES - 1
        async with made.pool.claimed(_of(made, "k_one")) as slot:
            assert slot is None
