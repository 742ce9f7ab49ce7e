"""The store fails at any write of a job's life: no job is lost, stuck or run twice, and no restart is needed.

Each kind of job is played once without a fault. With a fault it must come to exactly the same end: the same state,
events, cost and clean-up.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.store.faults import MODES, Fault, FaultClock, FaultMode
from tests.worker import fakes
from tests.worker.failing_store import (
    CALLER,
    STEP_SECONDS,
    Agent,
    FailingService,
    failing_service,
    make_template,
)
from tests.worker.fakes import IN_PLACE

from steadyhand.control import ResumeOptions, Submission
from steadyhand.events import Event, Message
from steadyhand.job import ClientTool, Job, JobSpec, OutcomeType, State, output_text
from steadyhand.outcome import AgentResult, RunEvidence
from steadyhand.ports import ClientToolCall, Emit, RunOutput, RunReport, RunSpec, StopSignal

OUTAGE_SECONDS = 20.0
BOUND_SECONDS = 60.0
MIN_WRITES = 5
"""Each kind has at least so many writes: accepted, started, an event, a call, ended."""
SUCCESS = replace(fakes.SUCCESS, output=RunOutput(["a line\n"], ""))
FAILURE = RunReport(RunEvidence(exit_code=1), RunOutput((), "it broke"))
RATE_LIMITED = replace(
    FAILURE,
    evidence=RunEvidence(
        result=AgentResult(OutcomeType.AGENT_ERROR, is_error=True, text="limit", api_error_status=429)
    ),
)


# --- the agents --------------------------------------------------------------------------------


async def say(emit: Emit, text: str) -> None:
    await emit(Message("assistant", text))
    await asyncio.sleep(STEP_SECONDS)


async def work(service: FailingService, spec: RunSpec, emit: Emit, _stop: StopSignal) -> RunReport:
    """Say something, ask the model, say something else."""
    spec.on_spawned(2**22 + 1, 1)
    await say(emit, f"begin {spec.number}")
    await service.call_model(spec.job.id)
    await say(emit, f"end {spec.number}")
    return SUCCESS


async def fail_first(service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
    report = await work(service, spec, emit, stop)
    return FAILURE if spec.number == 1 else report


async def limit_first(service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
    report = await work(service, spec, emit, stop)
    if spec.number > 1:
        return report
    service.gateway.runs[spec.job.id].rate_limited_until = spec.job.created_at
    return RATE_LIMITED


async def stay(service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
    await work(service, spec, emit, stop)
    return replace(FAILURE, evidence=RunEvidence(stop_reason=await stop.wait()))


async def ask_client(service: FailingService, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
    assert spec.call_client_tools is not None
    results = await spec.call_client_tools([ClientToolCall("c1", "look", {"at": "this"})])
    await say(emit, output_text(results["c1"]))
    return await work(service, spec, emit, stop)


AGENTS: Mapping[str, Agent] = {
    "work": work,
    "fail first": fail_first,
    "limit first": limit_first,
    "stay": stay,
    "ask": ask_client,
}


# --- the kinds of job, as their clients see them -----------------------------------------------


async def submit(service: FailingService, prompt: str, **fields: Any) -> Job:
    spec_fields = {"tools": fields.pop("tools", ())}
    submission = Submission(JobSpec(prompt, **spec_fields), **fields)
    return (await service.insist(lambda: service.control.submit(CALLER, submission))).job


async def end_of(service: FailingService, job: Job) -> Job:
    """Wait as a chat does: until the job's end is published."""
    return await service.control.wait(CALLER, job.id, float("inf"))


async def fresh(service: FailingService) -> list[Job]:
    return [await end_of(service, await submit(service, "work"))]


async def resumed(service: FailingService) -> list[Job]:
    job = await end_of(service, await submit(service, "fail first"))
    options = ResumeOptions(prompt="Go on.", after_run=1)
    await service.insist(lambda: service.control.resume(CALLER, job.id, options))
    return [await end_of(service, job)]


async def retried(service: FailingService) -> list[Job]:
    job = await end_of(service, await submit(service, "fail first"))
    await service.insist(lambda: service.control.retry(CALLER, job.id, 1))
    return [await end_of(service, job)]


async def parked(service: FailingService) -> list[Job]:
    return [await end_of(service, await submit(service, "limit first"))]


async def cancelled(service: FailingService) -> list[Job]:
    """Cancel a job that runs, and two that wait for its slot."""
    running = await submit(service, "stay")
    await service.wait_for_state(running.id, State.RUNNING)
    waiting = [await submit(service, "stay") for _ in range(3)]
    for job in (waiting[1], waiting[2], waiting[0], running):
        await service.insist(lambda job_id=job.id: service.control.cancel(CALLER, job_id))  # type: ignore[misc]
    return [await end_of(service, job) for job in (running, *waiting)]


async def client_tools(service: FailingService) -> list[Job]:
    job = await submit(service, "ask", tools=(ClientTool("look", None, {"type": "object"}),))
    while not await service.control.open_tool_calls(CALLER, job.id):  # noqa: ASYNC110  # as a client asks
        await asyncio.sleep(STEP_SECONDS)
    await service.insist(lambda: service.control.submit_tool_results(CALLER, job.id, {"c1": "a wall"}))
    return [await end_of(service, job)]


async def client_tools_without_a_slot(service: FailingService) -> list[Job]:
    """Bring results while another job runs in the only slot: they wait for it in the job."""
    asking = await submit(service, "ask", tools=(ClientTool("look", None, {"type": "object"}),))
    while not await service.control.open_tool_calls(CALLER, asking.id):  # noqa: ASYNC110  # as a client asks
        await asyncio.sleep(STEP_SECONDS)
    holder = await submit(service, "stay")
    await service.wait_for_state(holder.id, State.RUNNING)
    await service.insist(lambda: service.control.submit_tool_results(CALLER, asking.id, {"c1": "a wall"}))
    await service.insist(lambda: service.control.cancel(CALLER, holder.id))
    jobs = [await end_of(service, job) for job in (asking, holder)]
    assert [job.undelivered_results for job in jobs] == [None, None]
    return jobs


async def chat(service: FailingService) -> list[Job]:
    """Wait for the answer and a stream at once, and keep the conversation."""
    job = await submit(service, "work")
    events: list[Event] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(service.follow(job.id, events))
        ended = await end_of(service, job)
    assert [event.seq for event in events] == list(range(1, ended.last_event + 1))
    await service.control.save_conversation(job.id, "digest")
    found = await service.control.find_conversation(CALLER, "digest")
    assert found is not None
    return [found]


async def in_place(service: FailingService) -> list[Job]:
    jobs = [await submit(service, "work", workspace=IN_PLACE.name) for _ in range(2)]
    return [await end_of(service, job) for job in jobs]


Scene = Callable[[FailingService], Awaitable[list[Job]]]
KINDS: Mapping[str, tuple[Scene, int]] = {
    "fresh": (fresh, 2),
    "resumed": (resumed, 2),
    "retried": (retried, 2),
    "parked": (parked, 2),
    "cancelled": (cancelled, 2),
    "client tools": (client_tools, 2),
    "client tools without a slot": (client_tools_without_a_slot, 1),
    "chat": (chat, 2),
    "in place": (in_place, 2),
}
"""Each kind of job, and the number of slots."""
LIKE_OTHERS = ("retried", "client tools")
"""Kinds that write as others do: a retry as a resumption, and results with a slot as results without one."""


# --- playing them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """All of a job that has to be the same with and without a fault."""

    state: State
    outcomes: list[Any]
    answer: str | None
    events: list[tuple[int, str, Any]]
    spent: int
    cost: int
    output: Any


@dataclass(frozen=True)
class Played:
    jobs: list[Ended]
    stored: int
    clean_up: list[str]
    fired: bool


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    asyncio.run(make_template(folder / "empty.db"))
    yield folder / "empty.db"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _quick_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyhand.worker.worker.MAINTENANCE_SECONDS", 0.01)
    monkeypatch.setattr("steadyhand.gateway.money.ledger_writer.WRITE_DELAY_SECONDS", 0.0)


async def play(kind: str, template: Path, fault: Fault) -> Played:
    scene, capacity = KINDS[kind]
    root = Path(tempfile.mkdtemp(prefix="sh-"))
    try:
        async with (
            asyncio.timeout(BOUND_SECONDS),
            failing_service(root, template, fault, AGENTS, capacity=capacity) as service,
        ):
            jobs = await scene(service)
            await service.idle()
            assert service.store.outage is None
            assert service.killed == []
            assert service.queue.load().queued == 0
            return Played(
                [await ended(service, job.id) for job in jobs],
                len(await service.store.list_in_states(frozenset(State))),
                sorted(name for name, _ in service.checkouts.calls),
                fault.fired,
            )
    finally:
        shutil.rmtree(root)


async def ended(service: FailingService, job_id: str) -> Ended:
    job = await service.store.get(job_id)
    assert job is not None
    events = await service.store.list_events(job_id)
    return Ended(
        job.state,
        [job.outcome, *(run.outcome for run in job.runs)],
        job.answer,
        [(event.seq, event.type, event.data) for event in events],
        await service.spent(job_id),
        job.cost.micros,
        await service.store.get_output(job_id),
    )


def comparable(played: Played) -> Played:
    """Leave out what says when it was."""

    def without_time(data: Any) -> Any:
        return {name: value for name, value in data.items() if name != "parked_until"}

    jobs = [
        replace(job, events=[(seq, kind, without_time(data)) for seq, kind, data in job.events])
        for job in played.jobs
    ]
    return replace(played, jobs=jobs, fired=False)


async def check_each_write(
    kind: str, template: Path, choose: Callable[[int], tuple[FaultMode, float]], step: int = 1
) -> int:
    """Fail the first write, then the one `step` later, and so on to the last; return the number of the last or more."""
    expected = comparable(await play(kind, template, Fault(FaultClock())))
    assert all(job.state.ended for job in expected.jobs)
    for at in itertools.count(1, step):
        mode, seconds = choose(at)
        fault = Fault(FaultClock(), at, seconds, mode)
        played = await play(kind, template, fault)
        assert comparable(played) == expected, f"write {at} of {kind}: {mode} for {seconds} s"
        if not played.fired:
            return at - 1
    raise AssertionError("not reached")


@pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] if kind in LIKE_OTHERS else []) for kind in KINDS]
)
def test_a_job_comes_to_the_same_end_whichever_of_its_writes_fails_for_20_seconds(
    kind: str, step: int, template: Path
) -> None:
    # Each position has another way to fail than the one before; `make test-long` tries them all at each.
    writes = asyncio.run(
        check_each_write(kind, template, lambda at: (MODES[at // step % len(MODES)], OUTAGE_SECONDS), step)
    )
    assert writes >= MIN_WRITES


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seconds", [0.0, OUTAGE_SECONDS])
def test_a_job_comes_to_the_same_end_however_any_of_its_writes_fails(
    kind: str, mode: FaultMode, seconds: float, template: Path
) -> None:
    writes = asyncio.run(check_each_write(kind, template, lambda _: (mode, seconds)))
    assert writes >= MIN_WRITES


@pytest.mark.long  # the same with a clock of its own is above
def test_each_kind_of_job_survives_20_real_seconds_without_a_store(template: Path) -> None:
    async def scene() -> None:
        async def check(kind: str, at: int) -> None:
            expected = comparable(await play(kind, template, Fault(FaultClock())))
            fault = Fault(FaultClock(real=True), at, OUTAGE_SECONDS, MODES[at % len(MODES)])
            played = await play(kind, template, fault)
            assert played.fired
            assert comparable(played) == expected, kind

        async with asyncio.TaskGroup() as group:
            for number, kind in enumerate(KINDS):
                group.create_task(check(kind, 2 + number % MIN_WRITES), name=kind)

    asyncio.run(scene())
