"""Jobs that nobody holds after an outage: each gets its holder while the service lives, and nothing is started anew."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.store.faults import Fault, FaultClock, StandingClock
from tests.worker.failing_store import (
    CALLER,
    STEP_SECONDS,
    FailingService,
)
from tests.worker.fakes import SUCCESS
from tests.worker.scenes import run_scene, stay

from steadyhand.agents import Workspace
from steadyhand.clock import utc_now
from steadyhand.control import ResumeOptions, Submission
from steadyhand.errors import StoreUnavailable, WorkspaceError
from steadyhand.events import Message
from steadyhand.job import ENDED, Job, JobSpec, JobWarning, OnInterrupt, OutcomeType, Run, State
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import RunEvidence, StopReason
from steadyhand.ports import (
    Checkout,
    Emit,
    Harvest,
    RunReport,
    RunSpec,
    StopSignal,
    UsageQuery,
    UsageRow,
)
from steadyhand.testing.contracts.samples import accepted_draft, make_job

__all__ = ["run_scene"]  # a fixture, taken in

SUPERVISOR = (4242, 17)
LONG_OUTAGE_SECONDS = 20.0


async def have_an_outage(service: FailingService) -> None:
    """Let the next write fail once, and see it made all the same."""
    fault = service.fault
    before = service.store.failures
    fault.fail_next()
    await service.store.append_events((await stored(service)).id, (), hold=True)
    assert service.store.failures > before


async def stored(service: FailingService, state: State = State.CANCELLED, **fields: Any) -> Job:
    """Store a job behind the service's back."""
    job = make_job(state=state, prompt="work", **fields)
    await service.insist(lambda: service.store.add(job, accepted_draft()))
    return job


def run_without_worker() -> tuple[Run, ...]:
    pid, started = SUPERVISOR
    return (Run(1, State.RUNNING, supervisor=pid, supervisor_started=started),)


def test_a_queued_job_that_the_queue_does_not_have_runs_after_an_outage(
    run_scene: Callable[..., None],
) -> None:
    async def scene(service: FailingService) -> None:
        job = await stored(service, State.QUEUED)
        await have_an_outage(service)
        ended = await service.wait_for_state(job.id, State.COMPLETED)
        assert ended.run == 1

    run_scene(scene)


def test_a_parked_job_that_nobody_waits_for_continues_after_an_outage(run_scene: Callable[..., None]) -> None:
    async def scene(service: FailingService) -> None:
        run = Run(1, State.PARKED)
        job = await stored(
            service,
            State.PARKED,
            runs=(run,),
            parked_until=make_job().created_at,
            begin="resume",
            created_at=utc_now() - timedelta(minutes=1),
        )
        await have_an_outage(service)
        assert (await service.wait_for_state(job.id, State.COMPLETED)).run == 2

    run_scene(scene)


@pytest.mark.parametrize(("on_interrupt", "runs"), [("auto", 1), ("fail", 1), ("resume", 2), ("restart", 2)])
def test_a_running_job_without_a_worker_is_interrupted_and_runs_again_only_by_its_on_interrupt(
    run_scene: Callable[..., None], on_interrupt: OnInterrupt, runs: int
) -> None:
    async def scene(service: FailingService) -> None:
        job = await stored(service, State.RUNNING, on_interrupt=on_interrupt, runs=run_without_worker())
        await have_an_outage(service)
        ended = await service.wait_for_state(job.id, State.INTERRUPTED if runs == 1 else State.COMPLETED)
        assert service.killed == [SUPERVISOR]
        assert ended.run == runs
        assert ended.runs[0].outcome is not None
        assert ended.runs[0].outcome.type == OutcomeType.INTERRUPTED

    run_scene(scene)


def test_jobs_that_are_held_are_left_alone(run_scene: Callable[..., None]) -> None:
    async def scene(service: FailingService) -> None:
        jobs = [(await service.control.submit(CALLER, Submission(JobSpec("stay")))).job for _ in range(2)]
        await service.wait_for_state(jobs[0].id, State.RUNNING)
        for _ in range(3):
            await have_an_outage(service)
        canary = await stored(service, State.RUNNING, runs=run_without_worker())
        await have_an_outage(service)
        await service.wait_for_state(canary.id, State.INTERRUPTED)  # so the worker has looked
        assert service.control.position(jobs[1]) == 1
        for job in jobs:
            await service.control.cancel(CALLER, job.id)
        ended = [await service.wait_for_state(job.id, State.CANCELLED) for job in jobs]
        assert [job.run for job in ended] == [1, 0]

    run_scene(scene, capacity=1)


def test_nothing_is_queued_again_while_the_service_drains(run_scene: Callable[..., None]) -> None:
    async def scene(service: FailingService) -> None:
        running = (await service.control.submit(CALLER, Submission(JobSpec("stay")))).job
        await service.wait_for_state(running.id, State.RUNNING)
        job = await stored(service, State.QUEUED)
        draining = asyncio.ensure_future(service.worker.drain())
        await asyncio.sleep(0)
        await have_an_outage(service)
        service.queue.stop_all(StopReason.SHUTDOWN)
        await draining
        ended = await service.wait_for_state(running.id, State.INTERRUPTED)
        assert ended.at_start == "resume"
        await asyncio.sleep(10 * STEP_SECONDS)
        assert not service.queue.holds(job.id)

    run_scene(scene)


def test_an_agent_that_says_more_than_can_be_held_is_stopped_harvested_and_resumed(
    run_scene: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.worker.run_event_writer.MAX_HELD_EVENTS", 50)
    clock = StandingClock()
    fault = Fault(clock, seconds=LONG_OUTAGE_SECONDS)

    async def talk(_service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        if spec.number > 1:
            assert spec.job.begin == "resume"
            return SUCCESS
        fault.fail_next()
        said = 0
        while stop.reason is None:
            await emit(Message("assistant", str(said)))
            said += 1
            await asyncio.sleep(0)
        clock.end_outage()
        return replace(SUCCESS, evidence=RunEvidence(stop_reason=stop.reason))

    async def scene(service: FailingService) -> None:
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        ended = await service.wait_for_state(job.id, State.COMPLETED)
        first = ended.runs[0].outcome
        assert ended.run == 2
        assert first is not None
        assert first.type == OutcomeType.INTERRUPTED
        assert "held" in (first.detail or "")
        assert service.checkouts.calls[:2] == [("harvest", job.id), ("retain", job.id)]
        events = await service.store.list_events(job.id, limit=10_000)
        texts = [event.data["text"] for event in events if event.type == "message"]
        assert texts == [str(number) for number in range(len(texts))]
        warnings = [event.data["code"] for event in events if event.type == "warning"]
        assert warnings == [WarningCode.EVENTS_LEFT_OUT]

    run_scene(scene, talk, fault)


def test_a_harvest_that_an_outage_prevented_is_tried_again_after_it(run_scene: Callable[..., None]) -> None:
    fault = Fault(FaultClock(), seconds=LONG_OUTAGE_SECONDS, mode="full")

    async def scene(service: FailingService) -> None:
        attempts = 0

        async def harvest(_checkout: Checkout) -> Harvest:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                fault.fail_next()
                raise WorkspaceError("The disk is full.")
            return Harvest(None)

        service.checkouts.harvest = harvest  # type: ignore[method-assign,assignment]  # of this one alone
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        ended = await service.wait_for_state(job.id, State.COMPLETED)
        assert attempts == 2
        assert ended.warnings == ()

    run_scene(scene, fault=fault)


def test_a_checkout_that_an_outage_prevented_is_made_after_it(run_scene: Callable[..., None]) -> None:
    fault = Fault(FaultClock(), seconds=LONG_OUTAGE_SECONDS, mode="full")

    async def scene(service: FailingService) -> None:
        attempts = 0
        prepare = service.checkouts.prepare

        async def fail_first(job: Job, workspace: Workspace, slot: int) -> Checkout:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                fault.fail_next()
                raise WorkspaceError("The disk is full.")
            return await prepare(job, workspace, slot)

        service.checkouts.prepare = fail_first  # type: ignore[method-assign]  # of this one alone
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        assert (await service.wait_for_state(job.id, State.COMPLETED, State.ERROR)).state is State.COMPLETED
        assert attempts == 2

    run_scene(scene, fault=fault)


def test_a_budget_that_cannot_be_read_in_an_outage_is_read_after_it(run_scene: Callable[..., None]) -> None:
    async def scene(service: FailingService) -> None:
        usage, attempts = service.store.usage, 0

        async def fail_twice(query: UsageQuery) -> Sequence[UsageRow]:
            nonlocal attempts
            attempts += 1
            if attempts <= 2:
                raise StoreUnavailable("The store cannot be read: an error of the disk.")
            return await usage(query)

        # A first run has spent nothing; one that goes on reads what was spent before.
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        await service.wait_for_state(job.id, State.COMPLETED)
        service.checkouts.job_paths(job.id).config_dir.mkdir(parents=True, exist_ok=True)
        service.store.usage = fail_twice  # type: ignore[method-assign]  # of this one alone
        await service.control.resume(CALLER, job.id, ResumeOptions())
        ended = await service.wait_for_state(job.id, *ENDED)
        assert attempts > 2
        assert ended.state is State.COMPLETED

    run_scene(scene)


def test_a_harvest_that_fails_although_the_store_answers_is_a_warning_at_once(
    run_scene: Callable[..., None],
) -> None:
    async def scene(service: FailingService) -> None:
        async def harvest(_checkout: Checkout) -> Harvest:
            raise WorkspaceError("The repository is broken.")

        service.checkouts.harvest = harvest  # type: ignore[method-assign,assignment]  # of this one alone
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        ended = await service.wait_for_state(job.id, State.COMPLETED)
        expected = JobWarning(WarningCode.HARVEST_FAILED, "The agent's changes could not be kept.")
        assert ended.warnings == (expected,)

    run_scene(scene)


def test_a_cancel_whose_caller_goes_away_during_an_outage_still_holds(run_scene: Callable[..., None]) -> None:
    clock = StandingClock()
    fault = Fault(clock, seconds=LONG_OUTAGE_SECONDS)

    async def scene(service: FailingService) -> None:
        running, waiting = [
            (await service.control.submit(CALLER, Submission(JobSpec("stay")))).job for _ in range(2)
        ]
        await service.wait_for_state(running.id, State.RUNNING)
        fault.fail_next()
        cancel = asyncio.ensure_future(service.control.cancel(CALLER, waiting.id))
        while service.control.position(waiting) is not None:  # noqa: ASYNC110  # until it is at the store
            await asyncio.sleep(0)
        cancel.cancel()
        await asyncio.wait({cancel})
        clock.end_outage()
        assert service.control.position(waiting) is None
        ended = await service.wait_for_state(waiting.id, State.CANCELLED)
        assert ended.run == 0
        await service.control.cancel(CALLER, running.id)

    run_scene(scene, fault=fault, capacity=1)


def test_a_running_agent_is_killed_at_once_during_an_outage_and_its_cancel_is_stored_later(
    run_scene: Callable[..., None],
) -> None:
    clock = StandingClock()
    fault = Fault(clock, seconds=LONG_OUTAGE_SECONDS)
    started, stopped = asyncio.Event(), asyncio.Event()

    async def agent(service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        started.set()
        report = await stay(service, spec, emit, stop)
        assert service.store.outage is not None
        stopped.set()
        return report

    async def scene(service: FailingService) -> None:
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        await started.wait()  # the job is running before, with writes of its start under way
        fault.fail_next()
        held = asyncio.ensure_future(service.store.append_events(job.id, (), hold=True))
        while service.store.outage is None:  # noqa: ASYNC110  # the writer's thread has no event for it
            await asyncio.sleep(STEP_SECONDS)
        answer = await service.control.cancel(CALLER, job.id)
        assert answer.state is State.RUNNING
        await stopped.wait()
        clock.end_outage()
        await held
        await service.wait_for_state(job.id, State.CANCELLED)

    run_scene(scene, agent, fault)
