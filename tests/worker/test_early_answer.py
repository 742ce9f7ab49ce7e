"""An answer that is stored before its run has ended: for callers who wait for the answer alone."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.worker.fakes import IN_PLACE
from tests.worker.test_run_executor import FakeGateway, World, world_at

from steadyhand.events import Message
from steadyhand.job import Changes, Job, OutcomeType, State, Usage
from steadyhand.outcome import AgentResult, RunEvidence, StopReason
from steadyhand.ports import Checkout, Emit, Harvest, RunOutput, RunReport, RunSpec, StopSignal

RESULT = AgentResult(OutcomeType.SUCCESS, is_error=False, text="All is well.", usage=Usage(turns=1))
EVIDENCE = RunEvidence(exit_code=0, result=RESULT)
CHANGES = Changes("a" * 40, "b" * 40, 1, 2, 3)
Agent = Callable[[RunSpec, Emit, StopSignal], Awaitable[RunReport]]


def report(evidence: RunEvidence) -> RunReport:
    return RunReport(evidence, RunOutput(["All is well.\n"], ""))


def answers(
    early: RunEvidence, ending: Callable[[StopSignal], Awaitable[RunEvidence]]
) -> tuple[Agent, asyncio.Event]:
    """Return an agent that gives its result and then ends in some way, and an event that is set before its end."""
    told = asyncio.Event()

    async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        await emit(Message("assistant", "All is well."))
        if spec.on_answer is not None:
            spec.on_answer(early)
        told.set()
        return report(await ending(stop))

    return agent, told


async def answered(world: World, job_id: str) -> Job:
    while True:
        job = await world.store.get(job_id)
        assert job is not None
        if job.as_answered.state.ended:
            return job
        await asyncio.sleep(0.005)


async def phases(world: World, job_id: str) -> list[str]:
    events = await world.store.list_events(job_id, 0)
    return [event.data.get("phase", event.type) for event in events]


@pytest.mark.parametrize("gateway", [None, FakeGateway()], ids=["no gateway", "gateway"])
def test_answer_and_outcome_are_stored_while_the_run_goes_on(
    tmp_path: Path, gateway: FakeGateway | None
) -> None:
    async def scene() -> None:
        end = asyncio.Event()

        async def ending(_: StopSignal) -> RunEvidence:
            await end.wait()
            return EVIDENCE

        agent, _ = answers(EVIDENCE, ending)

        async def harvest() -> Harvest:
            return Harvest(CHANGES)

        async with world_at(tmp_path, agent, gateway) as world, asyncio.TaskGroup() as group:
            world.checkouts.on_harvest = harvest
            claim = await world.claim(origin="openai")
            run = group.create_task(world.executor.execute(claim))
            job = await answered(world, claim.job.id)
            assert (job.state, job.answer, job.changes) == (State.RUNNING, "All is well.", None)
            assert job.outcome is not None
            assert job.outcome.type == OutcomeType.SUCCESS
            counted = (job.usage, job.cost)
            # All that came before it is stored too, in order.
            assert (await phases(world, job.id))[-2:] == ["message", "harvesting"]
            end.set()
            await run
            job = await world.job(claim)
            assert (job.state, job.answer, job.changes) == (State.COMPLETED, "All is well.", CHANGES)
            assert (await phases(world, job.id)).count("harvesting") == 1
            assert job.usage.turns == 1
            assert (job.usage, job.cost) == counted  # the end counts nothing twice

    asyncio.run(scene())


def test_other_callers_are_told_of_the_end_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        async def ending(_: StopSignal) -> RunEvidence:
            return EVIDENCE

        agent, _ = answers(EVIDENCE, ending)
        async with world_at(tmp_path, agent) as world:
            claim = await world.claim()
            await world.executor.execute(claim)
            assert world.runner.specs[0].on_answer is None
            assert (await phases(world, claim.job.id))[-2:] == ["harvesting", "state.changed"]

    asyncio.run(scene())


@pytest.mark.parametrize(
    "evidence",
    [
        replace(EVIDENCE, result=replace(RESULT, is_error=True)),
        replace(EVIDENCE, result=replace(RESULT, text="")),
        replace(EVIDENCE, schema_error="no object"),
    ],
    ids=["error", "empty", "schema"],
)
def test_what_is_no_success_waits_for_the_end(tmp_path: Path, evidence: RunEvidence) -> None:
    async def scene() -> None:
        seen: list[Job] = []

        async def ending(_: StopSignal) -> RunEvidence:
            return evidence

        agent, _ = answers(evidence, ending)
        async with world_at(tmp_path, agent) as world:
            claim = await world.claim(origin="openai")

            async def harvest() -> Harvest:
                seen.append(await world.job(claim))
                return Harvest(None)

            world.checkouts.on_harvest = harvest
            await world.executor.execute(claim)
            assert seen[0].outcome is None
            assert seen[0].answer is None
            assert (await world.job(claim)).state is State.FAILED

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("end", "warnings"),
    [
        (replace(EVIDENCE, exit_code=1), ["failed_after_answer"]),
        (replace(EVIDENCE, exit_code=None, signal=9), ["failed_after_answer"]),
        (replace(EVIDENCE, stop_reason=StopReason.CANCEL), []),
        (replace(EVIDENCE, stop_reason=StopReason.DEADLINE), []),
    ],
    ids=["exit code", "killed", "cancelled", "deadline"],
)
def test_what_happens_after_the_answer_is_no_other_outcome(
    tmp_path: Path, end: RunEvidence, warnings: list[str]
) -> None:
    async def scene() -> None:
        go = asyncio.Event()

        async def ending(_: StopSignal) -> RunEvidence:
            await go.wait()
            return end

        agent, _ = answers(EVIDENCE, ending)
        async with world_at(tmp_path, agent) as world, asyncio.TaskGroup() as group:
            claim = await world.claim(origin="openai")
            run = group.create_task(world.executor.execute(claim))
            await answered(world, claim.job.id)
            go.set()
            await run
            job = await world.job(claim)
            assert job.state is State.COMPLETED
            assert job.error is None
            assert [warning.code for warning in job.warnings] == warnings

    asyncio.run(scene())


def test_a_stop_before_the_answer_is_stored_decides(tmp_path: Path) -> None:
    async def scene() -> None:
        async def agent(spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
            stop.request(StopReason.CANCEL)
            return report(replace(EVIDENCE, stop_reason=StopReason.CANCEL))

        async with world_at(tmp_path, agent) as world:
            claim = await world.claim(origin="openai")
            await world.executor.execute(claim)
            assert (await world.job(claim)).state is State.CANCELLED

    asyncio.run(scene())


@pytest.mark.parametrize("left", [True, False], ids=["checkout", "no checkout"])
def test_a_job_lost_after_its_answer_is_harvested_or_tells_what_is_lost(
    tmp_path: Path, *, left: bool
) -> None:
    async def scene() -> None:
        async def ending(stop: StopSignal) -> RunEvidence:
            await stop.wait()
            return EVIDENCE

        async def harvest() -> Harvest:
            return Harvest(CHANGES)

        agent, _ = answers(EVIDENCE, ending)
        async with world_at(tmp_path, agent) as world:
            world.checkouts.on_harvest = harvest
            claim = await world.claim(origin="openai", workspace=IN_PLACE.name)
            run = asyncio.ensure_future(world.executor.execute(claim))
            job = await answered(world, claim.job.id)
            run.cancel()  # as the service's death does
            await asyncio.wait({run})
            if left:
                paths = world.checkouts.job_paths(job.id)
                world.checkouts.reopened = Checkout(IN_PLACE, paths, tmp_path, tmp_path, None, None, "a" * 40)
            await world.executor.ender.end_answered(job)
            job = await world.job(claim)
            assert job.state is State.COMPLETED
            assert job.answer == "All is well."
            assert job.changes == (CHANGES if left else None)
            assert [warning.code for warning in job.warnings] == ([] if left else ["harvest_failed"])

    asyncio.run(scene())
