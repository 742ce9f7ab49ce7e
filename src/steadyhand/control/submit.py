"""Operations that create a job, or the next turn of a session."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from steadyhand.admission import RateCharge
from steadyhand.agents import SCRATCH_WORKSPACE, Agent
from steadyhand.control.ceilings import Ceilings
from steadyhand.control.deps import ControlDeps
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import (
    Caller,
    Submission,
    did_you_mean,
    first_set,
    inherit_from_parent,
    is_path_or_url,
)
from steadyhand.errors import CallbackRefused, Conflict, Forbidden, InvalidRequest, NotFound, SteadyhandError
from steadyhand.event_log import log_state_change
from steadyhand.events import EventDraft, StateChanged, WarningEvent
from steadyhand.job import (
    ENDED,
    Job,
    JobWarning,
    State,
)
from steadyhand.ports import (
    AddResult,
    IdempotencyKey,
    JobFilter,
    TickClaim,
)

_MAX_SESSION_JOBS = 20
"""The number of jobs of a session, newest first, in which a session is looked for."""
_MAX_LOOKUPS = 3
"""The number of times that the job to continue is looked for, if each is deleted before the turn is stored."""
_SERVICE_REFS = "refs/steadyhand/"


class JobSubmitter:
    """Accepts requests for jobs and finds the session that they continue."""

    def __init__(self, deps: ControlDeps, queries: JobQueries) -> None:
        self._deps = deps
        self._queries = queries
        self._session_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def submit(
        self,
        caller: Caller,
        submission: Submission,
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> AddResult:
        """Accept a job: it is durable when this returns.

        With a `claim` of a schedule's tick, raise `Conflict` (`tick_taken`) as `Store.add` does.
        Raise `InvalidRequest`, `Forbidden`, or `RetryLater` if the queue is full or a limit of the key is
        reached; then nothing is stored.
        """
        caller.require_scope("submit")
        if idempotency is not None:
            replayed = await self._deps.store.get_replayed(caller.key_id, idempotency)
            if replayed is not None:
                return AddResult(replayed, replayed=True)
        session = submission.session or submission.spec.session_name
        if session is None:
            return await self._accept_turn(caller, submission, idempotency, claim)
        # One after another: each job continues the one before it, and must find it in the store.
        async with self._session_locks.setdefault((caller.key_id, session), asyncio.Lock()):
            return await self._accept_turn(caller, submission, idempotency, claim)

    async def check_submission(self, caller: Caller, submission: Submission) -> Job:
        """Return the job that `submit` would accept now, and accept none. Raise as `submit` does, but for limits."""
        caller.require_scope("submit")
        return await self._prepare(caller, submission)

    async def _accept_turn(
        self,
        caller: Caller,
        submission: Submission,
        idempotency: IdempotencyKey | None,
        claim: TickClaim | None,
    ) -> AddResult:
        """Accept a job. If the job that it continues is deleted at the same time, look for the conversation again."""
        for _ in range(_MAX_LOOKUPS - 1):
            try:
                return await self._accept(caller, submission, idempotency, claim)
            except NotFound:
                if submission.parent is not None and not submission.spec.history:
                    raise
                submission = replace(submission, parent=None, parent_job=None)
        return await self._accept(caller, submission, idempotency, claim)

    async def _prepare(self, caller: Caller, submission: Submission) -> Job:
        """Return the job of a request, which the caller may submit."""
        parent = await self._find_parent(caller, submission)
        requested_model = submission.spec.model
        if parent is not None:
            submission = inherit_from_parent(parent, submission)
        name = submission.agent or self._deps.catalog.defaults.agent
        agent = self._deps.catalog.agent(name)
        workspace = (
            parent.workspace if parent is not None else self._resolve_workspace(caller, submission, agent)
        )
        self._deps.admission.check_allowed(caller.key_id, name, workspace)
        await self._check_callback(submission, parent)
        if submission.spec.uncommitted is not None:
            self._check_uncommitted(submission, workspace, parent)
        if submission.strict and name not in self._deps.catalog.agents:
            await self._require_known_agent(name, workspace)
        job = self._build_job(caller, submission, agent, workspace, requested_model)
        if parent is not None:
            job = replace(
                job,
                parent_job_id=parent.id,
                begin="resume",
                session_id=parent.session_id,
                commit=parent.commit,
                ref=parent.ref,
            )
        if job.is_on_uncommitted:
            if submission.publish == "branch":
                raise InvalidRequest.at("/publish", "cannot be 'branch' for work on uncommitted changes")
            job = replace(job, publish="none")
        return job

    async def _accept(
        self,
        caller: Caller,
        submission: Submission,
        idempotency: IdempotencyKey | None,
        claim: TickClaim | None,
    ) -> AddResult:
        job = await self._prepare(caller, submission)
        drafts = [EventDraft(0, job.created_at, StateChanged(None, State.QUEUED))]
        drafts += [
            EventDraft(0, job.created_at, WarningEvent(warning.code, warning.message))
            for warning in job.warnings
        ]
        if job.spec.tools:
            self._deps.admission.check_waiting_runs(caller.key_id)
        charge = await self._deps.admission.charge(caller.key_id)
        try:
            added = await self._deps.queue.enqueue(job, drafts, idempotency, claim=claim)
        except SteadyhandError:  # not if the caller is gone: its job may be stored all the same
            charge.undo()
            raise
        if added.replayed:
            charge.undo()
        else:
            log_state_change(added.job, State.QUEUED)
            self._deps.feed.announce(added.job.id)
        return added

    async def _check_callback(self, submission: Submission, parent: Job | None) -> None:
        """Raise `InvalidRequest` (`callback_refused`) for a receiver of this request that may not be called."""
        callback = submission.spec.callback
        if callback is None or (parent is not None and callback is parent.spec.callback):
            return
        try:
            await self._deps.check_callback(callback.url)
        except CallbackRefused as error:
            raise InvalidRequest.at("/callback_url", error.detail, code="callback_refused") from error

    async def charge_request(self, caller: Caller, agent: str, workspace: str | None) -> RateCharge:
        """Count a request for a run against the limits of its key; the charge that is returned can be undone.

        Raise `Forbidden` (`agent_not_allowed`, `workspace_not_allowed`) or `RetryLater` (`rate_limited`,
        `too_many_jobs`, `budget_exhausted`).
        """
        self._deps.admission.check_allowed(caller.key_id, agent, workspace)
        return await self._deps.admission.charge(caller.key_id)

    async def _find_parent(self, caller: Caller, submission: Submission) -> Job | None:
        """Return the job that a new one continues, or None.

        A session name without a job begins a session; an unknown session id is an error.
        """
        if submission.parent_job is not None and submission.parent_job.api_key_id == caller.key_id:
            caller.require_scope("read")
            return submission.parent_job
        if submission.parent is not None:
            parent = await self._queries.get(caller, submission.parent)
            if not await self.has_session(parent):
                raise Conflict("The job has left no session to continue.")
            return parent
        if submission.session is None and submission.spec.session_name is None:
            return None
        filters = [JobFilter(session_id=submission.session, session_name=submission.spec.session_name)]
        if submission.session is None:
            # A name may be a session id that the caller has read in a job.
            filters.append(JobFilter(session_id=submission.spec.session_name))
        for job_filter in filters:
            newest = (
                await self._deps.store.list_jobs(
                    replace(job_filter, api_key_id=caller.key_id), _MAX_SESSION_JOBS
                )
            ).jobs
            for job in newest:
                # A job that was cancelled before it ran has left no session: the job before it has the newest one.
                found = await self._deps.store.get(job.id) if await self.has_session(job) else None
                if found is not None:
                    return found
        if submission.session is not None:
            raise InvalidRequest.at("/session", "no job of this key has that session")
        return None

    async def has_session(self, job: Job) -> bool:
        """Return True if a job's session can be continued; a job that has not ended may still leave one."""
        return not job.state.ended or await self._deps.checkouts.has_session(job.id)

    async def find_conversation(self, caller: Caller, digest: str) -> Job | None:
        """Return the only job of this key whose whole conversation has this digest, or None.

        Of two jobs with equal conversations neither is returned: they may have done different things.
        """
        return await self._continuable(
            caller, await self._deps.store.find_conversation(caller.key_id, digest)
        )

    async def get_continuable(self, caller: Caller, job_id: str) -> Job | None:
        """Return a completed job of this key whose session can be continued, or None."""
        return await self._continuable(caller, await self._deps.store.get(job_id))

    async def _continuable(self, caller: Caller, job: Job | None) -> Job | None:
        if job is None or job.api_key_id != caller.key_id or job.as_answered.state is not State.COMPLETED:
            return None
        return job if await self.has_session(job) else None

    async def save_conversation(self, job_id: str, digest: str) -> None:
        """Store the digest of the conversation up to a job's answer, so that the caller can continue it.

        During an outage of the store it waits: the caller waits for an answer that exists.
        """
        await self._deps.store.update_job(
            job_id, ENDED | {State.RUNNING}, lambda old: replace(old, conversation=digest), hold=True
        )

    def _build_job(
        self,
        caller: Caller,
        submission: Submission,
        agent: Agent,
        workspace: str | None,
        requested_model: str | None,
    ) -> Job:
        defaults, ceilings = self._deps.catalog.defaults, self.ceilings(caller, agent)
        warnings: list[JobWarning] = []
        unlimited = submission.may_be_unlimited
        if submission.max_budget:
            budget = ceilings.budget.require(agent.name, warnings, may_be_unlimited=unlimited)
        elif submission.budget_micros is not None:
            budget = ceilings.budget.check(submission.budget_micros)
        else:
            budget = ceilings.budget.lower(
                first_set(submission.default_budget_micros, agent.budget_micros, defaults.budget_micros)
            )
        if submission.max_timeout:
            timeout = ceilings.timeout.require(agent.name, warnings, may_be_unlimited=unlimited)
        elif submission.timeout_seconds is not None:
            timeout = ceilings.timeout.check(submission.timeout_seconds)
        else:
            timeout = ceilings.timeout.lower(
                first_set(submission.default_timeout_seconds, agent.timeout_seconds, defaults.timeout_seconds)
            )
        if requested_model is not None:
            ceilings.check_model(requested_model)
        now, spec, job_id = self._deps.clock(), submission.spec, self._deps.new_id()
        return Job(
            id=job_id,
            spec=replace(
                spec,
                model=requested_model or ceilings.default_model(spec.model, agent.model),
                max_turns=spec.max_turns or agent.max_turns,
                effort=spec.effort or agent.effort,
            ),
            agent=agent.name,
            runner=agent.runner,
            api_key_id=caller.key_id,
            created_at=now,
            queued_at=now,
            budget_micros=budget,
            timeout_seconds=timeout,
            idle_timeout_seconds=first_set(
                submission.idle_timeout_seconds, agent.idle_timeout_seconds, defaults.idle_timeout_seconds
            ),
            workspace=workspace,
            ref=_requested_ref(submission) or self._deps.catalog.workspace(workspace).ref,
            on_interrupt=submission.on_interrupt or defaults.on_interrupt,
            publish=submission.publish or self._deps.catalog.workspace(workspace).publish or defaults.publish,
            warnings=tuple(warnings),
            traceparent=caller.traceparent or self._deps.tracing.begin_trace(job_id),
        )

    def ceilings(self, caller: Caller, agent: Agent) -> Ceilings:
        """Return the ceilings of a caller's requests for an agent."""
        return Ceilings(self._deps.catalog.limits, agent, self._deps.admission.limits_of(caller.key_id))

    def _check_uncommitted(self, submission: Submission, workspace: str | None, parent: Job | None) -> None:
        """Raise `InvalidRequest` unless uncommitted changes can be the commit of the job."""
        if parent is not None:
            raise InvalidRequest.at(
                "/uncommitted", "cannot come with a later turn; its commit is that of the first"
            )
        if submission.ref is not None:
            raise InvalidRequest.at("/uncommitted", "cannot stand beside a ref")
        target = self._deps.catalog.workspace(workspace)
        if target.repository is None:
            raise InvalidRequest.at("/uncommitted", "needs a workspace with a repository")
        if target.mode == "in_place":
            raise InvalidRequest.at("/uncommitted", "cannot go to a workspace that is used in place")

    def _resolve_workspace(self, caller: Caller, submission: Submission, agent: Agent) -> str | None:
        if submission.ref is not None and submission.ref.startswith(_SERVICE_REFS):
            raise InvalidRequest.at(
                "/ref", f"begins with {_SERVICE_REFS}, where the service has refs of its own"
            )
        name = submission.workspace
        if name is None:
            name = self._deps.catalog.default_workspace_name(agent)
            if name is None and submission.ref is not None:
                raise InvalidRequest.at("/ref", "needs a workspace; this agent has none")
            return name
        if name in self._deps.catalog.workspaces:
            return name
        if name == SCRATCH_WORKSPACE:
            return None
        if not is_path_or_url(name):
            raise InvalidRequest.at(
                "/workspace",
                f"is not known{_known_workspaces(name, sorted(self._deps.catalog.workspaces))}",
                code="unknown_workspace",
            )
        if not caller.has_scope("workspace:any"):
            raise Forbidden(
                "A path or a URL as workspace needs the scope 'workspace:any'.", code="workspace_not_allowed"
            )
        return name

    async def _require_known_agent(self, name: str, workspace: str | None) -> None:
        definitions = await self._deps.checkouts.agent_definitions(self._deps.catalog.workspace(workspace))
        if name not in definitions:
            known = sorted({*self._deps.catalog.agents, *definitions})
            raise InvalidRequest.at(
                "/agent", f"is not known{did_you_mean(name, known)}", code="unknown_agent"
            )


def _requested_ref(submission: Submission) -> str | None:
    uncommitted = submission.spec.uncommitted
    return submission.ref if uncommitted is None else uncommitted.ref


def _known_workspaces(name: str, known: Sequence[str]) -> str:
    """Return the end of an error text: the nearest name and the list, or that there is none."""
    if not known:
        return "; no workspace is configured, a path or a URL is accepted too"
    suggestion = did_you_mean(name, known)
    return (
        suggestion if suggestion.startswith("; there are") else f"{suggestion} There are: {', '.join(known)}"
    )
