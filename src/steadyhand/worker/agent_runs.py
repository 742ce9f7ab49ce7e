"""The agent of one run, from its start to its end, with its way to the model."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from steadyhand.agents import Agent
from steadyhand.errors import Conflict, NotFound, RunError
from steadyhand.events import WarningEvent
from steadyhand.job import Job
from steadyhand.outcome import RunEvidence
from steadyhand.ports import CallClientTools, Checkout, RunAccess, RunContext, RunReport, RunSpec
from steadyhand.worker.answered import EarlyAnswer, may_answer_early
from steadyhand.worker.client_tool_caller import ClientToolCaller
from steadyhand.worker.deps import WorkerDeps
from steadyhand.worker.hold import hold_spec
from steadyhand.worker.job_end import RUNNING
from steadyhand.worker.live_start import runner_of
from steadyhand.worker.parents import find_earlier_files
from steadyhand.worker.results import RunResult, require_run, update_run
from steadyhand.worker.run_cost import reported_call, with_metered_usage
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.run_progress import progress_saved
from steadyhand.worker.run_scope import RunScope
from steadyhand.worker.stoppable import catch_run_error, read_patiently
from steadyhand.worker.waiting_runs import WaitingRuns
from steadyhand.worker.warm_pool import WarmPool
from steadyhand.worker.warm_slot import WarmSlot

ASK_AGAIN_AFTER = timedelta(seconds=60)
"""The wait of a job that met a rate limit whose end nobody knows; the model's service may refuse it again then."""


class AgentRuns:
    """Runs the agents of jobs; each call of `run` runs one to its end."""

    def __init__(self, deps: WorkerDeps, warm_pool: WarmPool, waiting_runs: WaitingRuns) -> None:
        self._deps = deps
        self._warm_pool = warm_pool
        self._waiting_runs = waiting_runs
        self._clock = deps.config.clock
        self.leave_functions: dict[str, Callable[[], bool]] = {}
        """The functions that leave the runs that are held now, by the ids of their jobs; see `RunSpec.on_kept`."""
        self.changed = asyncio.Event()
        """Set when a run is held, or ends."""
        self._log = structlog.get_logger("steadyhand.worker")

    async def run(self, job: Job, checkout: Checkout, scope: RunScope) -> RunResult:
        """Run the agent and return its result. The gateway and the tasks end with this."""
        deps, claim, events, slot = self._deps, scope.claim, scope.events, self._warm_pool.slot_of(job.id)
        agent = deps.catalog.agent(job.agent)
        if agent.definition is None and agent.name in checkout.definitions:
            agent = replace(agent, definition=agent.name)
        await _emit_warnings(checkout, events)
        job = _with_checkout(job, checkout)
        context = RunContext(job, agent, checkout)
        session_files = await self._earlier_files(job, scope, slot)
        async with asyncio.TaskGroup() as group:
            if scope.orphan is None:
                group.create_task(self._save_checkout(job, checkout, events), name=f"checkout {job.id}")

            storing: list[asyncio.Task[None]] = []
            async with AsyncExitStack() as open_gateway:
                note_holder = await open_gateway.enter_async_context(
                    progress_saved(
                        deps.checkouts, job, checkout, deps.config.progress_seconds, orphan=scope.orphan
                    )
                )
                # It reads what the job has spent.
                access = await read_patiently(
                    lambda: open_gateway.enter_async_context(self._open_gateway(context, scope, slot))
                )
                if access is not None:
                    scope.secrets.enter_context(deps.event_log.redactor.lent(access.secrets))
                spec = self._run_spec(
                    context,
                    access,
                    ClientToolCaller(deps, self._waiting_runs, claim, events, scope.deadline, scope.taken_up),
                    on_spawned=partial(self._spawned, group, job, note_holder),
                    earlier_files=session_files,
                )
                spec = replace(
                    spec,
                    orphan=scope.orphan,
                    hold=hold_spec(deps, context, access, scope, slot),
                    on_kept=partial(self._note_kept, job.id),
                )
                early = EarlyAnswer(events, job, access, self._clock)

                def answered(evidence: RunEvidence) -> None:
                    self._warm_pool.expect_reset(job)
                    storing.append(group.create_task(early.store(evidence), name=f"answer {job.id}"))

                if may_answer_early(job):
                    spec = replace(spec, on_answer=answered)
                await scope.begin_phase("starting")
                runner = runner_of(deps, slot, agent.runner)
                count_prompt = partial(self._warm_pool.count_prompt, job)
                emit = scope.emit_from_agent(partial(count_prompt, taken=True))
                with deps.steers.run(job.id) as steers:
                    running = runner.run(replace(spec, steers=steers), emit, claim.stop)
                    try:
                        report = await catch_run_error(running)
                    finally:
                        self.leave_functions.pop(job.id, None)
                if claim.stop.reason is None:
                    count_prompt(taken=False)
                if storing:
                    await asyncio.wait(storing)
                if early.outcome is None:
                    await scope.begin_phase("harvesting")
                result = report if isinstance(report, RunError) else await with_metered_usage(report, access)
        if isinstance(result, RunError):
            raise result
        if result.usage is None:
            await self._save_reported_call(job, agent, result.report)
        return replace(
            result,
            asks_again_at=None if scope.orphan is None else deps.config.clock() + ASK_AGAIN_AFTER,
            waited_seconds=scope.deadline.waited_seconds,
            early_outcome=early.outcome,
            before_early=early.before,
        )

    def _note_kept(self, job_id: str, leave: Callable[[], bool]) -> None:
        self.leave_functions[job_id] = leave
        self.changed.set()

    async def _earlier_files(
        self, job: Job, scope: RunScope, slot: WarmSlot | None
    ) -> Sequence[Mapping[str, Any]]:
        """Return the files of the conversation for a process that starts: one that ran already has them."""
        if scope.orphan is not None or (slot is not None and slot.agent is not None):
            return ()
        return await read_patiently(lambda: find_earlier_files(self._deps.store, job))

    def _run_spec(
        self,
        context: RunContext,
        access: RunAccess | None,
        call_client_tools: CallClientTools,
        *,
        on_spawned: Callable[[int, int], None],
        earlier_files: Sequence[Mapping[str, Any]],
    ) -> RunSpec:
        job, agent, checkout = context.job, context.agent, context.checkout
        return RunSpec(
            job=job,
            number=job.run,
            agent=agent,
            checkout=checkout,
            environment={
                **self._deps.config.environment_for(agent, checkout),
                **self._deps.tracing.environment(job),
            },
            on_spawned=on_spawned,
            model_access=None if access is None else access.model_access,
            on_listening=None if access is None else access.on_listening,
            until_calls_fail=None if access is None else access.until_calls_fail,
            call_client_tools=call_client_tools if job.spec.tools else None,
            keep_process=self._warm_pool.may_keep(job),
            earlier_files=earlier_files,
            background_seconds=(
                self._deps.catalog.defaults.background_seconds
                if agent.background_seconds is None
                else agent.background_seconds
            ),
        )

    async def _save_reported_call(self, job: Job, agent: Agent, report: RunReport) -> None:
        """Store the cost that the agent reports of a run without the gateway, and count it against shared budgets."""
        call = reported_call(job, agent, report, self._clock())
        if call is None:
            return
        await self._deps.ledger.save_call(call)
        self._deps.metrics.call_counted(call)
        if self._deps.gateway is not None:
            self._deps.gateway.count_unmetered_call(call)

    def _open_gateway(
        self, context: RunContext, scope: RunScope, slot: WarmSlot | None
    ) -> AbstractAsyncContextManager[RunAccess | None]:
        emit, gateway = scope.emit_from_gateway(), self._deps.gateway
        if slot is not None and slot.access is not None:
            return slot.access.open_run(context, emit)
        return nullcontext() if gateway is None else gateway.open_run(context, emit, scope.orphan)

    def _spawned(
        self,
        group: asyncio.TaskGroup,
        job: Job,
        note_holder: Callable[[int, int], None],
        pid: int,
        started: int,
    ) -> None:
        group.create_task(self._save_supervisor(job, pid, started), name=f"supervisor {job.id}")
        note_holder(pid, started)

    async def _save_supervisor(self, job: Job, pid: int, started: int) -> None:
        try:
            await self._deps.store.update_job(
                job.id,
                RUNNING,
                lambda old: update_run(old, job.run, supervisor=pid, supervisor_started=started),
                hold=True,
            )
        except (Conflict, NotFound):
            self._log.debug("supervisor.not_noted", job=job.id)

    async def _save_checkout(self, job: Job, checkout: Checkout, events: RunEventWriter) -> None:
        """Store the commit and the warnings of a checkout. The start of the agent does not wait for it."""
        if checkout.commit is None and not checkout.warnings:
            return
        try:
            await events.update_job(RUNNING, lambda old: _with_checkout_of(old, job.run, checkout), ())
        except (Conflict, NotFound):
            self._log.debug("checkout.not_noted", job=job.id)


async def _emit_warnings(checkout: Checkout, events: RunEventWriter) -> None:
    for warning in checkout.warnings:
        await events.emit(WarningEvent(warning.code, warning.message))


def _with_checkout_of(job: Job, run: int, checkout: Checkout) -> Job:
    """Return a job with the commit and the warnings of the checkout of a run, if that is its newest."""
    require_run(job, run)
    return _with_checkout(job, checkout)


def _with_checkout(job: Job, checkout: Checkout) -> Job:
    """Return a job with the commit and the warnings of its checkout."""
    return replace(job, commit=checkout.commit or job.commit, warnings=(*job.warnings, *checkout.warnings))
