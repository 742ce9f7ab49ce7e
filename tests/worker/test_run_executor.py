"""A run of a claimed job: its lock, its deadline and its secrets each last as long as they must, and no longer."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.worker.fakes import IN_PLACE, SUCCESS, FakeCheckouts

from steadyhand.agents import Catalog, Workspace
from steadyhand.errors import RunError, SessionGone, SpawnError, WorkspaceError
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import Message
from steadyhand.job import ENDED, Job, JobWarning, OutcomeType, Run, State, Turn
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import AgentResult, RunEvidence, StopReason
from steadyhand.ports import (
    Checkout,
    Checkouts,
    Claim,
    Emit,
    Gateway,
    Harvest,
    ModelAccess,
    OrphanedRun,
    RunAccess,
    RunContext,
    RunReport,
    RunSpec,
    StopSignal,
    UsageTotal,
)
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import Redactor
from steadyhand.retry import continues_parent, requeued
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import NOON, accepted_draft, make_job
from steadyhand.worker import WorkerConfig, WorkerDeps
from steadyhand.worker.run_executor import RunExecutor

SECRET = "credential-of-this-run-alone-0123456789"


@dataclass
class HookedCheckouts(FakeCheckouts):
    """Checkouts whose beginning and harvest the test plays."""

    on_prepare: Callable[[Job], Awaitable[None]] | None = None
    on_harvest: Callable[[], Awaitable[Harvest]] | None = None
    reopened: Checkout | None = None

    async def reopen(self, job: Job, workspace: Workspace) -> Checkout | None:  # noqa: ARG002  # the port's signature
        return self.reopened

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        if self.on_prepare is not None:
            await self.on_prepare(job)
        return Checkout(workspace, self.job_paths(job.id), self.root, self.root, None, None, None, slot=slot)

    async def harvest(self, checkout: Checkout) -> Harvest:  # noqa: ARG002  # the port's signature
        return Harvest(None) if self.on_harvest is None else await self.on_harvest()


@dataclass
class FakeRunner:
    """Runs `agent` in place of an agent's process."""

    agent: Callable[[RunSpec, Emit, StopSignal], Awaitable[RunReport]]
    specs: list[RunSpec] = field(default_factory=list)

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        self.specs.append(spec)
        return await self.agent(spec, emit, stop)


@dataclass
class FakeAccess:
    model_access: ModelAccess
    secrets: Collection[str]
    on_listening: None = None
    rate_limited_until: None = None
    credential_rejected_until: None = None
    exhausted_budget: str | None = None
    last_status: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    listener: int = -1

    async def until_calls_fail(self) -> None:
        await asyncio.Event().wait()

    async def final_usage(self) -> UsageTotal:
        return UsageTotal(calls=1, micros=5)


@dataclass
class FakeGateway:
    """Lets every run out with one secret. `log` has when it opens and closes."""

    log: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def open_run(
        self,
        context: RunContext,  # noqa: ARG002  # the port's signature
        emit: Emit,  # noqa: ARG002
        orphan: OrphanedRun | None = None,  # noqa: ARG002
    ) -> AsyncIterator[RunAccess]:
        self.log.append("open")
        yield FakeAccess(ModelAccess(api_key=SECRET), [SECRET])
        self.log.append("closed")


async def succeed(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:  # the port's signature
    return SUCCESS


@dataclass
class World:
    store: SqlStore
    checkouts: HookedCheckouts
    runner: FakeRunner
    redactor: Redactor
    gateway: FakeGateway | None
    executor: RunExecutor

    async def claim(self, **fields: Any) -> Claim:
        """Store a queued job and return a claim of it."""
        job = make_job(**fields)
        await self.store.add(job, accepted_draft())
        return Claim(job, 0, StopSignal())

    async def job(self, claim: Claim) -> Job:
        job = await self.store.get(claim.job.id)
        assert job is not None
        return job


async def _kill_nothing(pid: int, started: int) -> None:
    raise AssertionError(f"no process {pid} of {started} is left")


@asynccontextmanager
async def world_at(
    root: Path,
    agent: Callable[[RunSpec, Emit, StopSignal], Awaitable[RunReport]] = succeed,
    gateway: FakeGateway | None = None,
    **store_options: Any,
) -> AsyncIterator[World]:
    store = await open_store(f"sqlite:///{root / 'd.db'}", **store_options)
    try:
        checkouts, runner, redactor = HookedCheckouts(root), FakeRunner(agent), Redactor()
        config = WorkerConfig(
            node="n1", clock=lambda: NOON, environment_for=lambda *_: {}, kill_leftovers=_kill_nothing
        )
        deps = WorkerDeps(
            store=store,
            queue=LocalQueue(store, capacity=2, max_queued=8),
            checkouts=cast("Checkouts", checkouts),
            runners={"claude": runner},
            event_log=EventLog(store, EventFeed(), redactor),
            catalog=Catalog(workspaces={IN_PLACE.name: IN_PLACE}),
            config=config,
            ledger=store,
            gateway=cast("Gateway | None", gateway),
        )
        async with asyncio.timeout(60):
            yield World(store, checkouts, runner, redactor, gateway, RunExecutor(deps))
    finally:
        await store.close()


def test_the_deadline_does_not_count_the_harvest_of_a_run_that_ended_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        deadlines: list[asyncio.TimerHandle] = []
        call_later = loop.call_later

        def spy(delay: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
            handle = call_later(delay, callback, *args, **kwargs)
            if args == (StopReason.DEADLINE,):
                deadlines.append(handle)
            return handle

        monkeypatch.setattr(loop, "call_later", spy)
        cancelled: list[bool] = []

        async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
            cancelled.append(deadlines[0].cancelled())
            return SUCCESS

        async def harvest() -> Harvest:
            cancelled.append(deadlines[0].cancelled())
            return Harvest(None)

        async with world_at(tmp_path, agent) as world:
            world.checkouts.on_harvest = harvest
            claim = await world.claim()
            await world.executor.execute(claim)
            assert (await world.job(claim)).state is State.COMPLETED
        assert cancelled == [False, True]
        assert len(deadlines) == 1

    asyncio.run(scene())


def test_a_deadline_that_passes_during_the_run_stops_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
            return replace(SUCCESS, evidence=RunEvidence(stop_reason=await stop.wait()))

        async with world_at(tmp_path, agent) as world:
            claim = await world.claim(timeout_seconds=5.0, used_seconds=5.0)
            await world.executor.execute(claim)
            assert (await world.job(claim)).state is State.TIMEOUT

    asyncio.run(scene())


def test_the_secrets_of_a_run_are_removed_from_all_that_is_stored_of_it_and_then_forgotten(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        gateway = FakeGateway()

        async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
            assert spec.model_access == ModelAccess(api_key=SECRET)
            await emit(Message("assistant", f"I read {SECRET}."))
            result = AgentResult(OutcomeType.SUCCESS, is_error=False, text=f"It is {SECRET}.")
            return replace(SUCCESS, evidence=RunEvidence(exit_code=0, result=result))

        async def harvest() -> Harvest:
            gateway.log.append("harvest")
            return Harvest(None, (JobWarning(WarningCode.HARVEST_FAILED, f"A file has {SECRET}."),))

        async with world_at(tmp_path, agent, gateway) as world:
            world.checkouts.on_harvest = harvest
            claim = await world.claim()
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.state is State.COMPLETED
            assert job.answer is not None
            assert job.answer.startswith("It is ")
            assert [warning.code for warning in job.warnings] == [WarningCode.HARVEST_FAILED]
            events = await world.store.list_events(job.id)
            assert "message" in [event.type for event in events]
            assert SECRET not in f"{job}{events}"
            # After the run its secrets mean nothing here: nobody is to pay for the search.
            assert world.redactor.text(SECRET) == SECRET
        assert gateway.log == ["open", "closed", "harvest"]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "outcome", "released"),
    [
        (WorkspaceError("The disk is full."), OutcomeType.WORKSPACE, False),
        (WorkspaceError("It is not there.", retryable=False), OutcomeType.WORKSPACE, False),
        (SpawnError("There is no such program."), OutcomeType.NOT_STARTED, True),
    ],
)
def test_an_agent_that_does_not_start_ends_its_job_with_the_reason(
    tmp_path: Path, error: RunError, outcome: OutcomeType, *, released: bool
) -> None:
    async def scene() -> None:
        gateway = FakeGateway()

        async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
            raise error

        async with world_at(tmp_path, agent, gateway) as world:
            claim = await world.claim(workspace=IN_PLACE.name)
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.outcome is not None
            assert (job.outcome.type, job.outcome.detail) == (outcome, str(error))
            assert job.error is not None
            assert job.error.retryable is error.retryable
            assert world.checkouts.calls == ([("release", job.id)] if released else [])
            assert world.redactor.text(SECRET) == SECRET
            # The workspace is free for the next job.
            world.runner.agent = succeed
            following = await world.claim(workspace=IN_PLACE.name)
            await world.executor.execute(following)
            assert (await world.job(following)).state is State.COMPLETED

    asyncio.run(scene())


def ended(**fields: Any) -> Job:
    """Return a job whose agent ran."""
    runs = (Run(1, State.COMPLETED, supervisor=7, supervisor_started=1),)
    return make_job(state=State.COMPLETED, finished_at=NOON, **{"runs": runs, **fields})


async def claim_turn(world: World, *jobs: Job, **fields: Any) -> Claim:
    """Store jobs that each continue the one before, and claim a turn of the last."""
    parent = None
    for job in jobs:
        await world.store.add(replace(job, parent_job_id=parent), accepted_draft())
        parent = job.id
    return await world.claim(parent_job_id=parent, begin="resume", **fields)


@pytest.mark.parametrize("lost", ["job", "files", "job before one that never ran"])
def test_a_turn_whose_conversation_is_deleted_ends_without_a_run(tmp_path: Path, lost: str) -> None:
    async def scene() -> None:
        async with world_at(tmp_path) as world:
            root, never_ran = ended(), make_job(state=State.CANCELLED, finished_at=NOON)
            jobs = [root, never_ran] if "never ran" in lost else [root]
            claim = await claim_turn(world, *jobs)
            if lost != "files":  # as an earlier release did: now the store refuses it
                with sqlite3.connect(tmp_path / "d.db") as database:
                    database.execute("DELETE FROM jobs WHERE id = ?", (root.id,))
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.outcome is not None
            assert (job.state, job.outcome.type, job.run) == (State.ERROR, OutcomeType.NO_SESSION, 0)
            assert root.id in (job.outcome.detail or "")
            assert job.error is not None
            assert not job.error.retryable
            assert world.runner.specs == []

    asyncio.run(scene())


def test_a_turn_whose_conversation_vanishes_as_it_starts_ends_without_an_agent(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world_at(tmp_path) as world:
            root = ended()
            world.checkouts.job_paths(root.id).config_dir.mkdir(parents=True)

            async def prepare(job: Job) -> None:
                raise SessionGone(f"The files of the job {root.id} are deleted.")

            world.checkouts.on_prepare = prepare
            claim = await claim_turn(world, root)
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.outcome is not None
            assert job.outcome.type == OutcomeType.NO_SESSION
            assert world.runner.specs == []

    asyncio.run(scene())


def test_a_turn_that_has_the_whole_conversation_runs_without_the_earlier_job(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world_at(tmp_path) as world:
            claim = await claim_turn(world, ended(), history=(Turn("user", "hello"),))
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert (job.state, job.warnings) == (State.COMPLETED, ())
            assert world.runner.specs[0].job.begin == "fresh"

    asyncio.run(scene())


def test_a_turn_of_a_job_that_never_ran_begins_the_conversation_and_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        async with world_at(tmp_path) as world:
            claim = await claim_turn(world, make_job(state=State.CANCELLED, finished_at=NOON))
            await world.executor.execute(claim)
            job = await world.job(claim)
            assert job.state is State.COMPLETED
            assert [warning.code for warning in job.warnings] == [WarningCode.SESSION_LOST]

    asyncio.run(scene())


def test_a_retried_turn_starts_from_the_conversation_again_and_a_resumed_one_from_its_own(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        async with world_at(tmp_path) as world:
            root = ended(session_id="s-root")
            world.checkouts.job_paths(root.id).config_dir.mkdir(parents=True)
            claim = await claim_turn(world, root)
            for start_mode in (None, "fresh", "resume"):
                if start_mode is not None:
                    job, _ = await world.store.update_job(
                        claim.job.id,
                        ENDED,
                        lambda old, mode=start_mode: requeued(old, mode, NOON),  # type: ignore[misc]  # bound at once
                    )
                    claim = Claim(job, 0, StopSignal())
                await world.executor.execute(claim)
            jobs = [spec.job for spec in world.runner.specs]
            assert [job.session_id for job in jobs] == ["s-root"] * 3
            assert [job.begin for job in jobs] == ["resume"] * 3
            assert [job.since_run for job in jobs] == [1, 2, 2]
            assert [continues_parent(job) for job in jobs] == [True, True, False]

    asyncio.run(scene())
