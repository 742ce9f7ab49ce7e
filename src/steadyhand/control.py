"""The verbs: what callers can ask of the service, whatever door they come through."""

import asyncio
import difflib
import json
import math
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from steadyhand.admission import Admission, Charge
from steadyhand.agents import SCRATCH, Agent, Catalogue, Definition, Workspace
from steadyhand.calls import Exchange
from steadyhand.errors import Conflict, Forbidden, InvalidRequest, NotFound, WorkspaceError
from steadyhand.events import CallsWaiting, Draft, Event, Live, StateChanged
from steadyhand.job import (
    ENDED,
    MICROS,
    ClientTool,
    Job,
    OnInterrupt,
    Origin,
    Publish,
    State,
    Turn,
    Verdict,
    advance,
)
from steadyhand.outcome import fault_of
from steadyhand.ports import (
    NO_LIMITS,
    Added,
    Checkouts,
    Filter,
    Idempotency,
    Ledger,
    Load,
    Page,
    Queue,
    RunOutput,
    Scope,
    Store,
    UsageQuery,
    UsageRow,
)
from steadyhand.record import Feed, Recorder
from steadyhand.rerun import again, goes_on

_T = TypeVar("_T")
_URL = re.compile(r"(https?|ssh|git|file)://.+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:.+")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the id of the key and what it may do."""

    key_id: str
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` (`scope_missing`) without this scope; `admin` holds them all."""
        if not self.may(scope):
            raise Forbidden(f"This key lacks the scope {scope!r}.")

    def may(self, scope: Scope) -> bool:
        """Say whether this key has the scope."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for work, already of the right types. Null falls to the agent's value, then the service's.

    `strict` refuses an agent that nobody defined; the classic routes accept it and let the run fail.
    """

    prompt: str
    agent: str | None = None
    model: str | None = None
    workspace: str | None = None
    ref: str | None = None
    budget_micros: int | None = None
    timeout_seconds: float | None = None
    idle_timeout_seconds: float | None = None
    priority: int = 0
    metadata: dict[str, Any] | None = None
    title: str | None = None
    output_schema: dict[str, Any] | None = None
    on_interrupt: OnInterrupt | None = None
    publish: Publish | None = None
    expires_in_seconds: float | None = None
    max_turns: int | None = None
    effort: str | None = None
    append_system_prompt: str | None = None
    history: tuple[Turn, ...] = ()
    parent: str | None = None
    """The job whose session and work this one goes on with; `session` and `session_name` mean the newest of theirs."""
    session: str | None = None
    session_name: str | None = None
    content: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, Any] | None = None
    tools: tuple[ClientTool, ...] = ()
    origin: Origin = "api"
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Continuation:
    """How an ended job is to go on: a new budget in all, what to say in place of going on; a repeat is harmless."""

    budget_micros: int | None = None
    prompt: str | None = None
    after_run: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """An agent that can be asked for, with what a job of it gets when it does not say."""

    agent: Agent
    workspace: str | None
    budget_micros: int
    timeout_seconds: float
    idle_timeout_seconds: float


def new_job_id() -> str:
    """Make an id: 12 lower-case hexadecimal digits."""
    return secrets.token_hex(6)


class Control:
    """The verbs over the ports. Every one takes the caller and checks what that key may do."""

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        checkouts: Checkouts,
        feed: Feed,
        ledger: Ledger,
        catalogue: Catalogue,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] = new_job_id,
        admission: Admission | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """Without `admission` no key has limits; `exchange` is the worker's."""
        self._store = store
        self._queue = queue
        self._checkouts = checkouts
        self._feed = feed
        self._ledger = ledger
        self._recorder = Recorder(store, feed)
        self._clock = clock
        self._new_id = new_id
        self._admission = admission or Admission(
            limits_of=lambda _: NO_LIMITS, backlog_of=queue.backlog, clock=clock
        )
        self._exchange = exchange or Exchange()
        self.catalogue = catalogue

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
            if parent.state.ended and parent.session_id is None:
                raise Conflict("The job has left no session to go on with.")
            return parent
        if asked.session is None and asked.session_name is None:
            return None
        wanted = [Filter(session_id=asked.session, session_name=asked.session_name)]
        if asked.session is None:
            wanted.append(Filter(session_id=asked.session_name))  # by the id that the caller was told
        for which in wanted:
            newest = (await self._store.page(replace(which, api_key_id=caller.key_id), 1)).jobs
            if newest:
                return await self._store.get(newest[0].id)
        if asked.session is not None:
            raise InvalidRequest.at("/session", "no job of this key has that session")
        return None

    async def conversation(self, caller: Caller, digest: str) -> Job | None:
        """Give the one job of this key whose conversation this is, all that was said; null when there is no one.

        Of two that are alike to the letter neither is taken: they may have done different things.
        """
        found = (await self._store.page(Filter(api_key_id=caller.key_id, conversation=digest), 2)).jobs
        if len(found) != 1:
            return None
        there = await asyncio.to_thread(self._checkouts.files(found[0].id).config.is_dir)
        return await self._store.get(found[0].id) if there else None

    async def note_conversation(self, job_id: str, digest: str) -> None:
        """Note all that was said up to a job's answer, so that the caller may come back with it."""
        await self._store.change(job_id, ENDED, lambda old: replace(old, conversation=digest))

    def _job_of(self, caller: Caller, asked: Submission, agent: Agent, workspace: str | None) -> Job:
        defaults, limits = self.catalogue.defaults, self.catalogue.limits
        budget = _first(asked.budget_micros, agent.budget_micros, defaults.budget_micros)
        timeout = _first(asked.timeout_seconds, agent.timeout_seconds, defaults.timeout_seconds)
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
            idle_timeout_seconds=_first(
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
            append_system_prompt=asked.append_system_prompt or agent.append_system_prompt,
            history=asked.history,
            session_name=asked.session_name,
            content=asked.content,
            request=asked.request,
            tools=asked.tools,
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
                "/workspace", f"is not known{_nearest(name, known)}", code="unknown_workspace"
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
            raise InvalidRequest.at("/agent", f"is not known{_nearest(name, known)}", code="unknown_agent")

    # --- reading ---------------------------------------------------------------------------

    async def get(self, caller: Caller, job_id: str) -> Job:
        """Give a job that the caller may see, else raise `NotFound`."""
        caller.require("read")
        job = await self._store.get(job_id)
        if job is None or not (job.api_key_id == caller.key_id or caller.may("read:all")):
            raise NotFound("Job not found")
        return job

    async def page(self, caller: Caller, which: Filter, limit: int, cursor: str | None) -> Page:
        """List jobs that the caller may see, newest first."""
        caller.require("read")
        if not caller.may("read:all"):
            if which.api_key_id not in (None, caller.key_id):
                return Page([], None)
            which = replace(which, api_key_id=caller.key_id)
        return await self._store.page(which, limit, cursor)

    def position(self, job: Job) -> int | None:
        """Give a queued job's place in the queue, 1 being next."""
        return self._queue.position(job.id) if job.state is State.QUEUED else None

    def load(self) -> Load:
        """Say how full the service is."""
        return self._queue.load()

    async def wait(self, caller: Caller, job_id: str, seconds: float) -> Job:
        """Give the job once it has ended, or as it stands after that many seconds."""
        with self._feed.subscribe(job_id) as subscription:
            job = await self.get(caller, job_id)
            try:
                async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                    while not job.state.ended and not subscription.closed:
                        items = await subscription.take()
                        # Live text and tool calls end nothing; asking the store at each would cost more than the run.
                        ended = any(isinstance(item, Event) and _ends(item) for item in items)
                        if ended or subscription.lagged or subscription.closed:
                            subscription.lagged = False
                            job = await self.get(caller, job_id)
            except TimeoutError:
                job = await self.get(caller, job_id)
        return job

    async def events(self, caller: Caller, job_id: str, after: int, limit: int) -> Sequence[Event]:
        """Give a page of a job's events."""
        await self.get(caller, job_id)
        return await self._store.events(job_id, after, limit)

    async def follow(self, caller: Caller, job_id: str, after: int = 0) -> AsyncIterator[Event | Live]:
        """Give a job's events after `after`, then those that come, with live text, until it has ended."""
        with self._feed.subscribe(job_id) as subscription:
            seen = after
            while True:
                subscription.lagged = False
                job = await self.get(caller, job_id)
                async for event in self._stored(job_id, seen):
                    seen = event.seq
                    yield event
                if subscription.closed or (job.state.ended and seen >= job.last_event):
                    return
                again = False
                while not again:
                    for item in await subscription.take():
                        if isinstance(item, Live):
                            yield item
                        elif item.seq == seen + 1:
                            seen = item.seq
                            yield item
                            again = again or _ends(item)
                        elif item.seq > seen:
                            subscription.lagged = True
                            break
                        elif _ends(item):
                            again = True  # it was read from the store; the job was looked at before it ended
                    again = again or subscription.lagged or subscription.closed

    async def _stored(self, job_id: str, after: int) -> AsyncIterator[Event]:
        while batch := await self._store.events(job_id, after):
            for event in batch:
                yield event
            after = batch[-1].seq

    async def output(self, caller: Caller, job_id: str) -> RunOutput | None:
        """Give what a job's newest run printed."""
        await self.get(caller, job_id)
        return await self._store.output(job_id)

    async def diff(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the job's diff; raises `Conflict` (`not_ready`) before its end."""
        return await self._kept(caller, job_id, self._checkouts.files(job_id).diff, "diff")

    async def bundle(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the job's commits; raises `Conflict` (`not_ready`) before its end."""
        return await self._kept(caller, job_id, self._checkouts.files(job_id).bundle, "bundle")

    async def transcript(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the agent's own record; raises `Conflict` (`not_ready`) before its end."""
        return await self._kept(caller, job_id, self._checkouts.files(job_id).transcript, "transcript")

    async def _kept(self, caller: Caller, job_id: str, path: Path, what: str) -> Path:
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(
                f"The job is {job.state}; its {what} is there when it has ended.", code="not_ready"
            )
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"This job has no {what}.")
        return path

    # --- moving ----------------------------------------------------------------------------

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel: a queued job at once, a running one as soon as nothing of it is alive."""
        caller.require("cancel")
        job = await self.get(caller, job_id)
        if job.state.ended:
            return job
        found = await self._queue.cancel(job_id)
        if found == "stopping":
            return await self.get(caller, job_id)
        return await self._cancelled(job)

    async def _cancelled(self, job: Job) -> Job:
        verdict = Verdict("cancelled")
        now = self._clock()
        drafts = [Draft(job.run, now, StateChanged(job.state, State.CANCELLED, outcome=verdict.type))]
        try:
            changed = await self._recorder.change(
                job.id,
                frozenset({State.QUEUED, State.PARKED, State.WAITING}),
                lambda old: replace(
                    old,
                    state=advance(old.state, State.CANCELLED),
                    outcome=verdict,
                    error=fault_of(verdict),
                    finished_at=now,
                ),
                drafts,
            )
        except Conflict:
            return await self._store.get(job.id) or job
        if goes_on(job):
            await self._checkouts.drop(job.id)
        return changed

    async def retry(self, caller: Caller, job_id: str, after_run: int | None = None) -> Job:
        """Queue an ended job for a new run from the start; with `after_run` a repeat of the call is harmless."""
        caller.require("submit")
        job = await self.get(caller, job_id)
        if _is_repeat(job, after_run):
            return job
        return await self._run_again(caller, job, "retry", lambda old, now: again(old, "fresh", now))

    async def resume(self, caller: Caller, job_id: str, asked: Continuation) -> Job:
        """Queue an ended job for a new run in the same session and checkout, perhaps with more to spend or to say.

        Raises `Conflict` (`invalid_state`) when it has not ended or has no session, `InvalidRequest` for a budget
        that is no more than was spent.
        """
        caller.require("submit")
        job = await self.get(caller, job_id)
        if _is_repeat(job, asked.after_run):
            return job
        budget = job.budget_micros if asked.budget_micros is None else asked.budget_micros
        self._within_budget(budget)
        if budget <= job.cost.micros and job.cost.source == "ledger":
            spent = f"{job.cost.micros / MICROS:.6f}"
            raise InvalidRequest.at("/budget_usd", f"has to be above the {spent} that the job has spent")
        if not job.run or not await asyncio.to_thread(self._checkouts.files(job_id).config.is_dir):
            raise Conflict("The job has left no session to go on with; retry it.")

        def resumed(old: Job, now: datetime) -> Job:
            return replace(again(old, "resume", now), budget_micros=budget, continue_prompt=asked.prompt)

        return await self._run_again(caller, job, "resume", resumed)

    async def answer_calls(self, caller: Caller, job_id: str, results: Mapping[str, str]) -> tuple[Job, int]:
        """Give an agent the results of the calls that it waits for, by their ids; a repeat is harmless.

        Gives the job and the number of its newest event before that. When the agent's process is not there any more,
        its session is resumed. Raises `NotFound`, `InvalidRequest` for ids that are not those that it waits for.
        """
        caller.require("submit")
        job = await self.get(replace(caller, scopes=frozenset({"read"})), job_id)
        after = self._exchange.given(job_id, results)
        if after is not None:
            return job, after
        wanted = self._exchange.wanted(job_id)
        if wanted:
            _are_those(results, wanted)
            if self._exchange.answer(job_id, results, job.last_event):
                return job, job.last_event
        if job.outcome is None or job.outcome.type not in _TAKES_LATE_RESULTS:
            raise InvalidRequest(
                "The agent does not wait for the results of these calls any more.", code=_UNKNOWN_CALL
            )
        calls: Sequence[Mapping[str, Any]] = ()
        async for event in self._stored(job_id, 0):
            if event.type == CallsWaiting.type and event.run == job.run:
                calls = event.data["calls"]
        _are_those(results, frozenset(call["id"] for call in calls))
        told = _told_late(calls, results)
        resumed = await self.resume(caller, job_id, Continuation(prompt=told, after_run=job.run))
        self._exchange.remember(job_id, results, job.last_event)
        return resumed, job.last_event

    async def _run_again(
        self, caller: Caller, job: Job, reason: str, change: Callable[[Job, datetime], Job]
    ) -> Job:
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
        await self.admit(caller, job.agent, job.workspace)
        now = self._clock()
        drafts = [Draft(job.run, now, StateChanged(job.state, State.QUEUED, reason=reason))]
        job = await self._recorder.change(job.id, ENDED, lambda old: change(old, now), drafts)
        await self._queue.readmit(job)
        return job

    async def delete(self, caller: Caller, job_id: str) -> None:
        """Forget an ended job and all that was kept of it."""
        caller.require("cancel")
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; cancel it first.")
        await self._store.delete(job_id)
        await self._checkouts.forget(job_id)

    # --- what can be asked for -------------------------------------------------------------

    async def agents(self, caller: Caller) -> Sequence[Offer]:
        """Give the agents that can be asked for: configured, built in, and defined in the default workspace."""
        caller.require("read")
        found = dict(self.catalogue.agents)
        for name, definition in (await self._definitions()).items():
            known = found.get(name)
            if known is None:
                found[name] = Agent(name, definition.description, definition=name)
            elif not known.description:
                found[name] = replace(known, description=definition.description)
        return [self._offer(found[name]) for name in sorted(found)]

    async def _definitions(self) -> dict[str, Definition]:
        workspace = self.catalogue.workspace(self.catalogue.defaults.workspace)
        try:
            return dict(await self._checkouts.definitions(workspace))
        except WorkspaceError:
            return {}  # the list still names what is configured; the job itself will say what is wrong

    def _offer(self, agent: Agent) -> Offer:
        defaults = self.catalogue.defaults
        return Offer(
            agent=agent,
            workspace=self.catalogue.workspace_name(agent),
            budget_micros=_first(agent.budget_micros, defaults.budget_micros),
            timeout_seconds=_first(agent.timeout_seconds, defaults.timeout_seconds),
            idle_timeout_seconds=_first(agent.idle_timeout_seconds, defaults.idle_timeout_seconds),
        )

    def workspaces(self, caller: Caller) -> Sequence[Workspace]:
        """Give the configured workspaces."""
        caller.require("read")
        return [self.catalogue.workspaces[name] for name in sorted(self.catalogue.workspaces)]

    async def usage(self, caller: Caller, which: UsageQuery) -> Sequence[UsageRow]:
        """Add up what was spent; a key without `admin` sees its own alone."""
        caller.require("read")
        if not caller.may("admin"):
            if which.api_key_id not in (None, caller.key_id):
                return []
            which = replace(which, api_key_id=caller.key_id)
        return await self._ledger.usage(which)

    async def check(self) -> None:
        """Return when the service can work; raises what stands in the way. For readiness."""
        await self._store.check()


def going_on_from(parent: Job, asked: Submission) -> Submission:
    """Give a request for the next turn with what it takes over from the turn before.

    Raises `InvalidRequest` for what would be another session.
    """
    for name, given, before in (
        ("agent", asked.agent, parent.agent),
        ("workspace", asked.workspace, parent.workspace),
        ("ref", asked.ref, parent.ref),
    ):
        if given is not None and given != before:
            raise InvalidRequest.at(
                f"/{name}", f"is another than that of the session, which keeps its {name}"
            )
    return replace(
        asked,
        agent=parent.agent,
        model=asked.model or parent.model,
        append_system_prompt=asked.append_system_prompt or parent.append_system_prompt,
        strict=False,
    )


_UNKNOWN_CALL = "unknown_call"
_TAKES_LATE_RESULTS = frozenset({"unanswered", "interrupted", "timeout"})


def _are_those(results: Mapping[str, str], wanted: frozenset[str]) -> None:
    if others := sorted(results.keys() - wanted):
        raise InvalidRequest(
            f"The agent does not wait for the result of the call {others[0][:64]!r}.", code=_UNKNOWN_CALL
        )
    if missing := sorted(wanted - results.keys()):
        raise InvalidRequest(
            f"The result of the call {missing[0]!r}, made in the same turn, is missing.", code=_UNKNOWN_CALL
        )


def _told_late(calls: Sequence[Mapping[str, Any]], results: Mapping[str, str]) -> str:
    """Give the results as what a resumed agent is told."""
    parts = ["Your last tool calls were made after all. Their results:"]
    for call in calls:
        given = json.dumps(call["arguments"], ensure_ascii=False)
        parts.append(f"{call['name']}({given}):\n{results[call['id']]}")
    return "\n\n".join([*parts, "Go on with them."])


def _is_repeat(job: Job, after_run: int | None) -> bool:
    """Say whether a job was run again already since the run that the caller knows of.

    Raises `Conflict` when that very run is under way.
    """
    if after_run is None or job.run < after_run:
        return False
    if job.run > after_run or job.state is State.QUEUED:
        return True
    if not job.state.ended:
        raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
    return False


def _ends(event: Event) -> bool:
    return event.type == StateChanged.type and event.data["to"] in ENDED


def _first(*values: _T | None) -> _T:
    return next(value for value in values if value is not None)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else ""
