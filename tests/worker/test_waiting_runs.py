"""Runs that wait for results of their clients' tools: their slots, their deadlines, and how many of them may stay."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.store.faults import Fault, FaultClock
from tests.worker.failing_store import (
    CALLER,
    CLIENT_PAUSE_SECONDS,
    FailingService,
    failing_service,
    make_template,
)
from tests.worker.fakes import IN_PLACE, SUCCESS

from steadyhand.control import ResumeOptions, Submission
from steadyhand.errors import RetryLater
from steadyhand.events import Message
from steadyhand.job import ClientTool, Job, JobSpec, OutcomeType, State
from steadyhand.outcome import RunEvidence, StopReason
from steadyhand.ports import Claim, ClientToolCall, Emit, RunReport, RunSpec, StopSignal
from steadyhand.testing.contracts.samples import make_job
from steadyhand.tool_calls import PendingCalls
from steadyhand.worker import waiting_runs
from steadyhand.worker.waiting_runs import WaitingRuns

LOOK = ClientTool("look", None, {"type": "object"})


@dataclass
class Agents:
    """Agents by their prompts: `ask` calls a tool and says its result, `hold` works until it may end."""

    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    may_stop: asyncio.Event = field(default_factory=asyncio.Event)
    in_session: set[str] = field(default_factory=set)
    """The jobs whose sessions hold their calls."""
    started: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    prompts: list[str | None] = field(default_factory=list)
    """The prompts of resumed runs."""
    stops: dict[str, StopReason] = field(default_factory=dict)

    async def ask(self, _service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """Call the tool in the first run; say what a later one is told."""
        self.started.append(spec.job.id)
        if spec.job.begin == "resume":
            self.prompts.append(spec.job.continue_prompt)
            return SUCCESS
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask(spec, emit))
            stopping = group.create_task(stop.wait())
            await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                stopping.cancel()
                return SUCCESS
            asking.cancel()
            self.stops[spec.job.id] = stopping.result()
            await self.may_stop.wait()
        return replace(SUCCESS, evidence=RunEvidence(stop_reason=stop.reason))

    async def _ask(self, spec: RunSpec, emit: Emit) -> None:
        async def is_in_session() -> bool:
            return spec.job.id in self.in_session

        assert spec.call_client_tools is not None
        results = await spec.call_client_tools([ClientToolCall("c1", "look", {})], is_in_session)
        self.said.append(str(results["c1"]))
        await emit(Message("assistant", str(results["c1"])))
        if results["c1"] == "work on":
            await asyncio.Event().wait()

    async def hold(
        self, _service: FailingService, spec: RunSpec, _emit: Emit, _stop: StopSignal
    ) -> RunReport:
        """Hold a slot."""
        self.started.append(spec.job.id)
        await self.may_end.wait()
        return SUCCESS


Scene = Callable[[FailingService, Agents], Awaitable[None]]
RunScene = Callable[..., None]


@pytest.fixture
def run_scene(tmp_path: Path) -> RunScene:
    """Play a scene in a service with these agents."""

    def run(scene: Scene, **options: int) -> None:
        async def play() -> None:
            await make_template(tmp_path / "empty.db")
            agents, root = Agents(), Path(tempfile.mkdtemp(dir=tmp_path))
            agents.may_stop.set()
            async with (
                asyncio.timeout(60),
                failing_service(
                    root,
                    tmp_path / "empty.db",
                    Fault(FaultClock()),
                    {"ask": agents.ask, "hold": agents.hold},
                    **{"capacity": 1, **options},
                ) as service,
            ):
                await scene(service, agents)

        asyncio.run(play())

    return run


async def submit(service: FailingService, prompt: str, **fields: object) -> Job:
    tools = (LOOK,) if prompt == "ask" else ()
    submission = Submission(JobSpec(prompt, tools=tools), **fields)  # type: ignore[arg-type]  # as the test says
    return (await service.control.submit(CALLER, submission)).job


async def submit_waiting(service: FailingService, **fields: object) -> Job:
    """Submit a job and return it once its agent waits for the result of its call."""
    job = await submit(service, "ask", **fields)
    while not await service.control.open_tool_calls(CALLER, job.id):  # noqa: ASYNC110  # as a client asks
        await asyncio.sleep(CLIENT_PAUSE_SECONDS)
    return job


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(CLIENT_PAUSE_SECONDS)


def test_a_run_that_waits_for_its_client_gives_its_slot_up_and_goes_on_before_the_queue(
    run_scene: RunScene,
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        waiting = [await submit_waiting(service) for _ in range(3)]
        await until(lambda: not service.queue.load().active)
        held = await submit(service, "hold")
        await service.wait_for_state(held.id, State.RUNNING)
        queued = await submit(service, "hold")
        for number in (1, 0):
            await service.control.submit_tool_results(CALLER, waiting[number].id, {"c1": f"result {number}"})
        assert agents.said == []
        agents.may_end.set()
        for job in (*waiting[:2], held, queued):
            await service.wait_for_state(job.id, State.COMPLETED)
        # Each goes on in its process, in the order of the results, before the job that was queued.
        assert agents.said == ["result 1", "result 0"]
        assert agents.started == [*(job.id for job in waiting), held.id, queued.id]
        events = await service.store.list_events(waiting[0].id)
        started = (await service.store.list_events(queued.id))[1]
        assert started.at >= next(event.at for event in events if event.type == "message")
        await service.control.cancel(CALLER, waiting[2].id)
        ended = await service.wait_for_state(waiting[2].id, State.CANCELLED)
        assert (ended.run, agents.stops) == (1, {waiting[2].id: StopReason.CANCEL})

    run_scene(scene)


def test_the_deadline_stands_still_while_a_run_waits_for_its_client(
    run_scene: RunScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later
        timers: list[tuple[float, float, asyncio.TimerHandle]] = []

        def spy(delay: float, callback: Callable[..., object], *arguments: Any, **options: Any) -> Any:
            if arguments != (StopReason.DEADLINE,):
                return call_later(delay, callback, *arguments, **options)
            # The second one, which is set when the clock goes on, comes at once.
            handle = call_later(0 if timers else delay, callback, *arguments, **options)
            timers.append((loop.time(), delay, handle))
            return handle

        monkeypatch.setattr(loop, "call_later", spy)
        job = await submit_waiting(service, timeout_seconds=60.0)
        await until(lambda: not service.queue.load().active)
        began = loop.time()
        assert [handle.cancelled() for _, _, handle in timers] == [True]
        await asyncio.sleep(0.3)  # a wait that can be told from none
        waited = loop.time() - began
        assert len(timers) == 1
        await service.control.submit_tool_results(CALLER, job.id, {"c1": "work on"})
        ended = await service.wait_for_state(job.id, State.TIMEOUT)
        assert ended.outcome is not None
        assert (ended.outcome.type, agents.said) == (OutcomeType.TIMEOUT, ["work on"])
        (first_at, seconds, _), (second_at, seconds_left, _) = timers
        assert seconds == 60
        assert seconds_left >= seconds - (second_at - first_at) + waited

    run_scene(scene)


def test_too_many_processes_wait_and_the_oldest_ends_once_its_session_holds_its_calls(
    run_scene: RunScene,
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        first, second = [await submit_waiting(service) for _ in range(2)]
        third = await submit_waiting(service)
        # No session holds a call yet: the newest run keeps its slot, and no process is ended.
        queued = await submit(service, "hold")
        agents.may_end.set()
        for _ in range(20):
            await asyncio.sleep(CLIENT_PAUSE_SECONDS)
        assert (agents.stops, service.queue.load().active) == ({}, 1)
        agents.in_session |= {first.id, second.id, third.id}
        ended = await service.wait_for_state(first.id, State.INTERRUPTED)
        assert ended.outcome is not None
        assert ended.outcome.type == OutcomeType.UNANSWERED
        assert str(ended.outcome.detail).startswith("The process ended to make room")
        await service.wait_for_state(queued.id, State.COMPLETED)
        assert agents.stops == {first.id: StopReason.DISPLACED}
        # The results of the oldest resume its session, those of the others reach their processes.
        for job in (first, second, third):
            await service.control.submit_tool_results(CALLER, job.id, {"c1": f"of {job.id}"})
            done = await service.wait_for_state(job.id, State.COMPLETED)
            assert done.run == (2 if job is first else 1)
        assert agents.said == [f"of {second.id}", f"of {third.id}"]
        (prompt,) = agents.prompts
        assert f"of {first.id}" in str(prompt)

    run_scene(scene, max_waiting_runs=2)


def test_without_room_for_waiting_processes_each_ends_as_soon_as_its_session_holds_its_calls(
    run_scene: RunScene,
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        job = await submit_waiting(service)
        assert service.queue.load().active == 1
        agents.in_session.add(job.id)
        await service.wait_for_state(job.id, State.INTERRUPTED)
        await service.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
        done = await service.wait_for_state(job.id, State.COMPLETED)
        assert (done.run, len(agents.prompts)) == (2, 1)

    run_scene(scene, max_waiting_runs=0)


def test_the_oldest_process_of_a_key_ends_if_more_of_its_jobs_come_to_wait_than_it_may_have(
    run_scene: RunScene,
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        # All are accepted before the first of them waits.
        jobs = [await submit(service, "ask") for _ in range(3)]
        for job in jobs:
            agents.in_session.add(job.id)
            while not await service.control.open_tool_calls(CALLER, job.id):  # noqa: ASYNC110  # as a client asks
                await asyncio.sleep(CLIENT_PAUSE_SECONDS)
        await service.wait_for_state(jobs[0].id, State.INTERRUPTED)
        assert agents.stops == {jobs[0].id: StopReason.DISPLACED}
        for job in jobs[1:]:
            await service.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
            assert (await service.wait_for_state(job.id, State.COMPLETED)).run == 1

    run_scene(scene, max_waiting_runs=8, max_waiting_runs_per_key=2)


def test_results_that_come_while_the_process_is_being_ended_resume_the_session_before_the_queue(
    run_scene: RunScene,
) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        agents.may_stop.clear()
        first, _ = [await submit_waiting(service) for _ in range(2)]
        agents.in_session.add(first.id)
        await until(lambda: agents.stops)
        answering = asyncio.ensure_future(
            service.control.submit_tool_results(CALLER, first.id, {"c1": "in the midst"})
        )
        held = await submit(service, "hold")
        for _ in range(10):
            await asyncio.sleep(CLIENT_PAUSE_SECONDS)
        assert not answering.done()
        agents.may_stop.set()
        answer = await answering
        assert (answer.number, answer.job.begin) == (1, "resume")
        agents.may_end.set()
        for job in (first, held):
            await service.wait_for_state(job.id, State.COMPLETED)
        assert "in the midst" in str(agents.prompts)

    run_scene(scene, max_waiting_runs=1)


def test_results_that_wait_for_a_slot_are_kept_over_a_stop_of_the_service(run_scene: RunScene) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        stopped, going = [await submit_waiting(service) for _ in range(2)]
        held = await submit(service, "hold")
        await service.wait_for_state(held.id, State.RUNNING)
        for job in (stopped, going):
            await service.control.submit_tool_results(CALLER, job.id, {"c1": f"of {job.id}"})
        assert await service.queue.cancel(stopped.id, StopReason.SHUTDOWN) == "stopping"
        ended = await service.wait_for_state(stopped.id, State.INTERRUPTED)
        assert (ended.at_start, agents.said) == ("resume", [])
        agents.may_end.set()
        # One that gets its results is not told them again by a later run.
        done = await service.wait_for_state(going.id, State.COMPLETED)
        assert (agents.said, done.undelivered_results) == ([f"of {going.id}"], None)
        await service.control.resume(CALLER, stopped.id, ResumeOptions())
        await service.wait_for_state(stopped.id, State.COMPLETED)
        (prompt,) = agents.prompts
        assert f"of {stopped.id}" in str(prompt)

    run_scene(scene)


def test_a_key_with_its_number_of_waiting_runs_starts_no_more_jobs_with_tools(run_scene: RunScene) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        waiting = [await submit_waiting(service) for _ in range(2)]
        with pytest.raises(RetryLater, match="2 runs of this key wait for results") as refused:
            await submit(service, "ask")
        assert (refused.value.code, 1 <= refused.value.retry_after <= 600) == ("too_many_jobs", True)
        await service.wait_for_state((await submit(service, "hold")).id, State.RUNNING)
        agents.may_end.set()
        await service.control.submit_tool_results(CALLER, waiting[0].id, {"c1": "yes"})
        await service.wait_for_state(waiting[0].id, State.COMPLETED)
        await service.control.cancel(CALLER, (await submit_waiting(service)).id)
        await service.control.cancel(CALLER, waiting[1].id)

    run_scene(scene, max_waiting_runs_per_key=2)


def test_jobs_of_one_directory_run_one_after_another_and_hold_no_slot_before(run_scene: RunScene) -> None:
    async def scene(service: FailingService, agents: Agents) -> None:
        first, second = [await submit(service, "hold", workspace=IN_PLACE.name) for _ in range(2)]
        other = await submit(service, "hold")
        await until(lambda: agents.started == [first.id, other.id])
        assert service.queue.position(second.id) == 1
        agents.may_end.set()
        await service.wait_for_state(second.id, State.COMPLETED)
        (start,) = [
            each for each in await service.store.list_events(second.id) if each.type == "state.changed"
        ][1:2]
        (end,) = [each for each in await service.store.list_events(first.id) if each.type == "state.changed"][
            -1:
        ]
        assert start.at >= end.at
        assert ("release", first.id) in service.checkouts.calls

    run_scene(scene, capacity=2)


class _Queue:
    def __init__(self) -> None:
        self.suspended: list[str] = []

    def suspend(self, claim: Claim) -> None:
        self.suspended.append(claim.job.id)


def test_without_memory_the_runs_that_wait_longest_end_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_runs, "MEMORY_SECONDS", 0.01)
    surplus, looks = [0], [0]

    def count_surplus() -> int:
        looks[0] += 1
        return surplus[0]

    async def is_in_session() -> bool:
        return True

    async def play() -> None:
        queue: Any = _Queue()
        runs = WaitingRuns(queue, 8, 8, count_surplus=count_surplus)
        claims = [Claim(make_job(id=f"job-{number}"), number, StopSignal()) for number in range(2)]
        pending = [PendingCalls([], "k_one") for _ in claims]
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(runs.run())
            with (
                runs.entered(claims[1], pending[1], is_in_session),
                runs.entered(claims[0], pending[0], is_in_session),
            ):
                assert queue.suspended == ["job-1", "job-0"]
                assert len(runs.staying()) == 2
                await until(lambda: looks[0] > 2)
                assert not pending[1].closed
                surplus[0] = 1
                await until(lambda: pending[1].closed)
                assert claims[1].stop.reason is StopReason.DISPLACED
                assert (len(runs.staying()), pending[0].closed) == (1, False)
            task.cancel()

    asyncio.run(play())
