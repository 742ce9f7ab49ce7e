"""The start of one waiting process: its checkout, its access to the model, and the job that it is started for."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from steadyhand.agents import Agent, Workspace
from steadyhand.job import Job, JobSpec
from steadyhand.ports import JobPaths, RunSpec, WarmRunner
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.warm_records import FullTrustError
from steadyhand.worker.warm_slot import WarmSlot

OnSpawned = Callable[[JobPaths, int, int], None]
"""Called with the folder of the checkout, and the pid and start time of the supervisor."""


async def open_slot(
    deps: WorkerDeps,
    slot: WarmSlot,
    job: Job,
    workspace: Workspace,
    stack: AsyncExitStack,
    *,
    on_spawned: OnSpawned,
) -> None:
    """Start the process of a slot for jobs like `job`. It ends with `stack`. Raise `FullTrustError` with full trust."""
    agent = deps.catalog.agent(slot.key.agent)
    runner: WarmRunner = deps.warm_runners[agent.runner]
    slot.checkout = await deps.checkouts.prepare_ahead(job, workspace, slot.number)
    # Of a checkout that a job has by then, this removes only what leads to it.
    stack.push_async_callback(deps.checkouts.release, slot.checkout)
    if agent.definition is None and agent.name in slot.checkout.definitions:
        agent = replace(agent, definition=agent.name)
    initialise = slot.initialise and runner.may_initialise(agent, slot.checkout)
    if slot.released.is_set():
        return
    if slot.checkout.full_trust:
        raise FullTrustError("The workspace has full trust: nothing of it runs before a job.")
    assert deps.gateway is not None  # noqa: S101  # a runner without one has no keys
    slot.access = await stack.enter_async_context(deps.gateway.hold_access(agent, slot.checkout))
    spec = RunSpec(
        job=job,
        number=1,
        agent=agent,
        checkout=slot.checkout,
        environment=deps.config.environment_for(agent, slot.checkout),
        on_spawned=partial(on_spawned, slot.checkout.paths),
        model_access=slot.access.model_access,
        on_listening=slot.access.on_listening,
        hold=None
        if deps.held_runs is None or not runner.is_sandboxed
        else deps.held_runs.idle_spec(slot.access.listener),
    )
    rehearsing = slot.access.rehearsing if slot.access.can_rehearse else None
    slot.agent = await stack.enter_async_context(runner.prepare(spec, rehearsing, initialise=initialise))


def plain_job(deps: WorkerDeps, agent: Agent) -> Job:
    """Return a job of an agent as a caller makes it who sets nothing but the prompt."""
    catalog = deps.catalog
    defaults, name = catalog.defaults, catalog.default_workspace_name(agent)
    workspace = catalog.workspace(name)
    return Job(
        id="warm",
        spec=JobSpec("", model=agent.model, max_turns=agent.max_turns, effort=agent.effort),
        agent=agent.name,
        runner=agent.runner,
        api_key_id="",
        created_at=deps.config.clock(),
        budget_micros=defaults.budget_micros if agent.budget_micros is None else agent.budget_micros,
        timeout_seconds=agent.timeout_seconds or defaults.timeout_seconds,
        idle_timeout_seconds=agent.idle_timeout_seconds or defaults.idle_timeout_seconds,
        workspace=name,
        ref=workspace.ref,
        publish=workspace.publish or defaults.publish,
    )


def template_of(job: Job) -> Job:
    """Return a job without what belongs to its caller alone."""
    spec: Any = replace(
        job.spec,
        prompt="",
        content=(),
        request=None,
        metadata=None,
        title=None,
        command=None,
        session_name=None,
    )
    return replace(job, spec=spec, api_key_id="", conversation=None, session_id=None, warnings=())
