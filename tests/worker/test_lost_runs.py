"""The runs of dead nodes that this node ends: the lost run alone, however late it comes to that."""

import asyncio
from collections.abc import Callable

from tests.worker.failing_store import CALLER, FailingService
from tests.worker.fakes import SUCCESS
from tests.worker.scenes import run_scene

from steadyhand.control import Submission
from steadyhand.job import JobSpec, State
from steadyhand.ports import Emit, RunReport, RunSpec, StopSignal

__all__ = ["run_scene"]  # a fixture, taken in


def test_a_node_that_was_frozen_before_it_ended_a_lost_run_leaves_the_later_run_alone(
    run_scene: Callable[..., None],
) -> None:
    """Found by chaos: others had ended the lost run meanwhile, and the job's next run was at work."""
    at_work, may_end = asyncio.Event(), asyncio.Event()

    async def agent(_service: FailingService, _spec: RunSpec, _emit: Emit, _stop: StopSignal) -> RunReport:
        at_work.set()
        await may_end.wait()
        return SUCCESS

    async def scene(service: FailingService) -> None:
        job = (await service.control.submit(CALLER, Submission(JobSpec("work")))).job
        await at_work.wait()
        await service.worker.end_lost_run(job.id, 0)
        may_end.set()
        ended = await service.wait_for_state(job.id, State.COMPLETED, State.INTERRUPTED)
        assert (ended.state, ended.run) == (State.COMPLETED, 1)

    run_scene(scene, agent)


def test_a_lost_run_is_ended_and_says_so(run_scene: Callable[..., None]) -> None:
    at_work = asyncio.Event()

    async def agent(_service: FailingService, _spec: RunSpec, _emit: Emit, stop: StopSignal) -> RunReport:
        at_work.set()
        await stop.wait()
        return SUCCESS

    async def scene(service: FailingService) -> None:
        job = (await service.control.submit(CALLER, Submission(JobSpec("work"), on_interrupt="fail"))).job
        await at_work.wait()
        await service.worker.end_lost_run(job.id, 1)
        ended = await service.wait_for_state(job.id, State.INTERRUPTED)
        assert ended.outcome is not None
        assert str(ended.outcome.detail).endswith("died.")

    run_scene(scene, agent)
