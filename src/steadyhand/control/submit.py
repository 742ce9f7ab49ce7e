"""The verbs that ask for work: a job, or the next turn of one."""

import asyncio
import re
from dataclasses import replace

from steadyhand.admission import Charge
from steadyhand.agents import SCRATCH, Agent
from steadyhand.control.queries import Reading
from steadyhand.control.requests import Caller, Submission, first_of, going_on_from, nearest
from steadyhand.errors import Conflict, Forbidden, InvalidRequest
from steadyhand.events import Draft, StateChanged
from steadyhand.job import (
    ENDED,
    MICROS,
    Job,
    State,
)
from steadyhand.ports import (
    Added,
    Filter,
    Idempotency,
)

_NEWEST = 20
"""How many jobs of a session are looked through for one that has left it."""
_URL = re.compile(r"(https?|ssh|git|file)://.+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")


class Asking(Reading):
    """What makes jobs."""

    # --- asking for work -------------------------------------------------------------------

    async def submit(
        self, caller: Caller, submission: Submission, idempotency: Idempotency | None = None
    ) -> Added:
        """Accept a job: it is durable when this returns.

        Raises `InvalidRequest`, `Forbidden`, and `TryLater` when there is no room or a limit of the key is
        reached; then nothing is stored.
        """
        caller.require("submit")
        if idempotency is not None:
            known = await self._store.replay(caller.key_id, idempotency)
            if known is not None:
                return Added(known, replayed=True)
        named = submission.session or submission.session_name
        if named is None:
            return await self._accept(caller, submission, idempotency)
        # One after another: each goes on with the one before it, which it would not find while that is on its way.
        async with self._by_session.setdefault((caller.key_id, named), asyncio.Lock()):
            return await self._accept(caller, submission, idempotency)

    async def _accept(self, caller: Caller, submission: Submission, idempotency: Idempotency | None) -> Added:
        parent = await self._parent_of(caller, submission)
        if parent is not None:
            submission = going_on_from(parent, submission)
        name = submission.agent or self.catalogue.defaults.agent
        agent = self.catalogue.agent(name)
        workspace = parent.workspace if parent is not None else self._workspace_of(caller, submission, agent)
        self._admission.permit(caller.key_id, name, workspace)
        if submission.strict and name not in self.catalogue.agents:
            await self._require_defined(name, workspace)
        job = self._job_of(caller, submission, agent, workspace)
        if parent is not None:
            job = replace(
                job,
                parent_job_id=parent.id,
                begin="resume",
                session_id=parent.session_id,
                commit=parent.commit,
                ref=parent.ref,
            )
        accepted = Draft(0, job.created_at, StateChanged(None, State.QUEUED))
        charge = await self._admission.charge(caller.key_id)
        try:
            added = await self._queue.admit(job, [accepted], idempotency)
        except BaseException:
            charge.undo()
            raise
        if added.replayed:
            charge.undo()
        return added

    async def admit(self, caller: Caller, agent: str, workspace: str | None) -> Charge:
        """Let a request for more work through by the limits of its key; what comes of it may be undone.

        Raises `Forbidden` (`agent_not_allowed`, `workspace_not_allowed`) and `TryLater` (`rate_limited`,
        `too_many_jobs`, `budget_exhausted`).
        """
        self._admission.permit(caller.key_id, agent, workspace)
        return await self._admission.charge(caller.key_id)

    async def _parent_of(self, caller: Caller, asked: Submission) -> Job | None:
        """Give the job that a new one goes on with, if it goes on with any.

        A name that nobody used yet begins a conversation; an unknown session is refused.
        """
        if asked.parent is not None:
            parent = await self.get(caller, asked.parent)
            if not await self.has_session(parent):
                raise Conflict("The job has left no session to go on with.")
            return parent
        if asked.session is None and asked.session_name is None:
            return None
        wanted = [Filter(session_id=asked.session, session_name=asked.session_name)]
        if asked.session is None:
            wanted.append(Filter(session_id=asked.session_name))  # by the id that the caller was told
        for which in wanted:
            newest = (await self._store.page(replace(which, api_key_id=caller.key_id), _NEWEST)).jobs
            for job in newest:
                # One that was cancelled before it ran has left nothing: the session is where it was before it.
                if await self.has_session(job):
                    return await self._store.get(job.id)
        if asked.session is not None:
            raise InvalidRequest.at("/session", "no job of this key has that session")
        return None

    async def has_session(self, job: Job) -> bool:
        """Say whether a job's session is there to be gone on with, or may be once it has ended."""
        config = self._checkouts.files(job.id).config
        return not job.state.ended or await asyncio.to_thread(config.is_dir)

    async def conversation(self, caller: Caller, digest: str) -> Job | None:
        """Give the one job of this key whose conversation this is, all that was said; null when there is no one.

        Of two that are alike to the letter neither is taken: they may have done different things.
        """
        found = (await self._store.page(Filter(api_key_id=caller.key_id, conversation=digest), 2)).jobs
        return await self.continuable(caller, found[0].id) if len(found) == 1 else None

    async def continuable(self, caller: Caller, job_id: str) -> Job | None:
        """Give a completed job of this very key whose session is there to be gone on with; else null."""
        job = await self._store.get(job_id)
        if job is None or job.api_key_id != caller.key_id or job.state is not State.COMPLETED:
            return None
        return job if await self.has_session(job) else None

    async def note_conversation(self, job_id: str, digest: str) -> None:
        """Note all that was said up to a job's answer, so that the caller may come back with it."""
        await self._store.change(job_id, ENDED, lambda old: replace(old, conversation=digest))

    def _job_of(self, caller: Caller, asked: Submission, agent: Agent, workspace: str | None) -> Job:
        defaults, limits = self.catalogue.defaults, self.catalogue.limits
        budget = first_of(asked.budget_micros, agent.budget_micros, defaults.budget_micros)
        timeout = first_of(asked.timeout_seconds, agent.timeout_seconds, defaults.timeout_seconds)
        self._within_budget(budget)
        if limits.max_timeout_seconds is not None and timeout > limits.max_timeout_seconds:
            most = limits.max_timeout_seconds
            raise InvalidRequest.at(
                "/timeout_seconds", f"is above the limit of {most:g}", code="limit_exceeded"
            )
        now = self._clock()
        return Job(
            id=self._new_id(),
            prompt=asked.prompt,
            agent=agent.name,
            runner=agent.runner,
            api_key_id=caller.key_id,
            created_at=now,
            queued_at=now,
            budget_micros=budget,
            timeout_seconds=timeout,
            idle_timeout_seconds=first_of(
                asked.idle_timeout_seconds, agent.idle_timeout_seconds, defaults.idle_timeout_seconds
            ),
            origin=asked.origin,
            model=asked.model or agent.model,
            workspace=workspace,
            ref=asked.ref or self.catalogue.workspace(workspace).ref,
            priority=asked.priority,
            metadata=asked.metadata,
            title=asked.title,
            output_schema=asked.output_schema,
            on_interrupt=asked.on_interrupt or defaults.on_interrupt,
            publish=asked.publish or self.catalogue.workspace(workspace).publish or defaults.publish,
            expires_in_seconds=asked.expires_in_seconds,
            max_turns=asked.max_turns or agent.max_turns,
            effort=asked.effort or agent.effort,
            append_system_prompt=asked.append_system_prompt,
            history=asked.history,
            session_name=asked.session_name,
            content=asked.content,
            request=asked.request,
            tools=asked.tools,
            one_call=asked.one_call,
        )

    def _within_budget(self, micros: int) -> None:
        most = self.catalogue.limits.max_budget_micros
        if most is not None and micros > most:
            raise InvalidRequest.at(
                "/budget_usd", f"is above the limit of {most / MICROS:g}", code="limit_exceeded"
            )

    def _workspace_of(self, caller: Caller, asked: Submission, agent: Agent) -> str | None:
        name = asked.workspace
        if name is None:
            name = self.catalogue.workspace_name(agent)
            if name is None and asked.ref is not None:
                raise InvalidRequest.at("/ref", "needs a workspace; this agent has none")
            return name
        if name in self.catalogue.workspaces:
            return name
        if name == SCRATCH:
            return None
        if not (name.startswith("/") or _URL.fullmatch(name)):
            known = sorted(self.catalogue.workspaces)
            raise InvalidRequest.at(
                "/workspace", f"is not known{nearest(name, known)}", code="unknown_workspace"
            )
        if not caller.may("workspace:any"):
            raise Forbidden(
                "A path or a URL as workspace needs the scope 'workspace:any'.", code="workspace_not_allowed"
            )
        return name

    async def _require_defined(self, name: str, workspace: str | None) -> None:
        definitions = await self._checkouts.definitions(self.catalogue.workspace(workspace))
        if name not in definitions:
            known = sorted({*self.catalogue.agents, *definitions})
            raise InvalidRequest.at("/agent", f"is not known{nearest(name, known)}", code="unknown_agent")
