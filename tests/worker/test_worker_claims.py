"""The claims of a worker: of one job, one run at a time."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from tests.worker.failing_store import CALLER, FailingService
from tests.worker.fakes import SUCCESS
from tests.worker.scenes import run_scene

from steadyhand.control import Submission
from steadyhand.job import Job, JobSpec, Run, State
from steadyhand.outcome import StopReason
from steadyhand.ports import Claim, Emit, RunReport, RunSpec, StopSignal
from steadyhand.queue import LocalQueue

__all__ = ["run_scene"]  # a fixture, taken in


@pytest.fixture
def more_claims(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[Claim]:
    """Claims that the queue hands out beside its own, as one of many nodes may do after it was taken for dead."""
    more: asyncio.Queue[Claim] = asyncio.Queue()
    claim = LocalQueue.claim

    async def claim_any(queue: LocalQueue) -> Claim:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(claim(queue)), group.create_task(more.get())]
            done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for each in others:
                each.cancel()
        return done.pop().result()

    monkeypatch.setattr(LocalQueue, "claim", claim_any)
    return more


def as_others_decided(job: Job) -> Job:
    """A running job whose node was taken for dead, queued for its next run."""
    return replace(job, state=State.QUEUED, runs=(Run(1, State.INTERRUPTED),))


def test_a_run_begins_once_the_run_of_its_job_that_was_taken_from_this_node_has_ended(
    run_scene: Callable[..., None], more_claims: asyncio.Queue[Claim]
) -> None:
    order: list[tuple[str, int]] = []
    may_end = asyncio.Event()

    async def agent(_service: FailingService, spec: RunSpec, _emit: Emit, stop: StopSignal) -> RunReport:
        order.append(("begins", spec.number))
        if spec.number == 1:
            await stop.wait()
            await may_end.wait()
        order.append(("ends", spec.number))
        return SUCCESS

    async def scene(service: FailingService) -> None:
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        while not order:  # noqa: ASYNC110  # the job runs before its agent does
            await asyncio.sleep(0.01)
        with capture_logs() as logs:
            queued, _ = await service.store.update_job(job.id, frozenset({State.RUNNING}), as_others_decided)
            more_claims.put_nowait(Claim(queued, 1, StopSignal()))
            while not any(each["event"] == "run.waits_for_earlier" for each in logs):  # noqa: ASYNC110  # a list of lines
                await asyncio.sleep(0.01)
        service.queue.stop_all(StopReason.SHUTDOWN)
        may_end.set()
        await service.wait_for_state(job.id, State.COMPLETED)

    run_scene(scene, agent)
    assert order == [("begins", 1), ("ends", 1), ("begins", 2), ("ends", 2)]
