"""Processes that are started for a job, as without a slot, and stay after it for the next turn of its conversation.

Their slot is claimed from the beginning. The job makes the checkout and starts the process; the pool owns both.
"""

from dataclasses import dataclass

from steadyhand.errors import SpawnError
from steadyhand.job import Job
from steadyhand.ports import Checkout, Emit, Runner, RunReport, RunSpec, StopSignal, WarmRunner
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_slot import WarmSlot


async def adopt_checkout(deps: WorkerDeps, slot: WarmSlot, job: Job, checkout: Checkout) -> None:
    """Let a slot have the checkout that was made for its job, and an access of the gateway for its process.

    Raise `SpawnError`.
    """
    assert slot.stack is not None  # noqa: S101  # it is a slot of this kind
    assert deps.gateway is not None  # noqa: S101  # a runner without one has no keys
    slot.checkout, slot.job_id = checkout, job.id
    agent = deps.catalog.agent(job.agent)
    try:
        slot.access = await slot.stack.enter_async_context(deps.gateway.hold_access(agent, checkout))
    except OSError as error:
        raise SpawnError(f"The access to the model could not be opened: {error.strerror}.") from error


def runner_of(deps: WorkerDeps, slot: WarmSlot | None, name: str) -> Runner:
    """Return the runner of a job: the process in its slot, one that starts it there, or the runner of this name."""
    if slot is None:
        return deps.runners[name]
    return _LiveStart(slot, deps.warm_runners[name]) if slot.agent is None else slot.agent


@dataclass(frozen=True, slots=True)
class _LiveStart:
    """Starts the process of a slot with its first run; a `ports.Runner`."""

    slot: WarmSlot
    runner: WarmRunner

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        assert self.slot.stack is not None  # noqa: S101  # it is a slot of this kind
        self.slot.agent = await self.slot.stack.enter_async_context(self.runner.start(spec, stop))
        return await self.slot.agent.run(spec, emit, stop)
