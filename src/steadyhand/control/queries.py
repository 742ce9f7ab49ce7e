"""The verbs that read: jobs and what is kept of them, their events as they come, and what can be asked for."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary

from steadyhand.admission import Admission
from steadyhand.agents import Agent, AgentDefinition, Catalog, Workspace
from steadyhand.control.requests import AvailableAgent, Caller, first_set, new_job_id
from steadyhand.errors import Conflict, NotFound, WorkspaceError
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import Event, LiveText, StateChanged
from steadyhand.job import (
    ENDED,
    Job,
    State,
)
from steadyhand.ports import (
    NO_LIMITS,
    Checkouts,
    JobFilter,
    JobPage,
    Ledger,
    Queue,
    QueueLoad,
    RunOutput,
    Store,
    UsageQuery,
    UsageRow,
)
from steadyhand.tool_calls import ToolCallBroker


class JobQueries:
    """The verbs over the ports. Every one takes the caller and checks what that key may do."""

    def __init__(
        self,
        *,
        store: Store,
        queue: Queue,
        checkouts: Checkouts,
        feed: EventFeed,
        ledger: Ledger,
        catalogue: Catalog,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] = new_job_id,
        admission: Admission | None = None,
        tool_calls: ToolCallBroker | None = None,
    ) -> None:
        """Without `admission` no key has limits; `exchange` is the worker's."""
        self._store = store
        self._queue = queue
        self._checkouts = checkouts
        self._feed = feed
        self._ledger = ledger
        self._recorder = EventLog(store, feed)
        self._clock = clock
        self._new_id = new_id
        self._admission = admission or Admission(
            get_limits=lambda _: NO_LIMITS, get_backlog=queue.backlog, clock=clock
        )
        self._tool_calls = tool_calls or ToolCallBroker()
        self._session_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.catalogue = catalogue

    # --- reading ---------------------------------------------------------------------------

    async def get(self, caller: Caller, job_id: str) -> Job:
        """Give a job that the caller may see, else raise `NotFound`."""
        caller.require_scope("read")
        job = await self._store.get(job_id)
        if job is None or not (job.api_key_id == caller.key_id or caller.has_scope("read:all")):
            raise NotFound("Job not found")
        return job

    async def list_jobs(
        self, caller: Caller, job_filter: JobFilter, limit: int, cursor: str | None
    ) -> JobPage:
        """List jobs that the caller may see, newest first."""
        caller.require_scope("read")
        if not caller.has_scope("read:all"):
            if job_filter.api_key_id not in (None, caller.key_id):
                return JobPage([], None)
            job_filter = replace(job_filter, api_key_id=caller.key_id)
        return await self._store.list_jobs(job_filter, limit, cursor)

    def position(self, job: Job) -> int | None:
        """Give a queued job's place in the queue, 1 being next."""
        return self._queue.position(job.id) if job.state is State.QUEUED else None

    def load(self) -> QueueLoad:
        """Say how full the service is."""
        return self._queue.load()

    async def wait(self, caller: Caller, job_id: str, seconds: float) -> Job:
        """Give the job once it has ended, or as it stands after that many seconds."""
        with self._feed.subscribe(job_id) as subscription:
            job = await self.get(caller, job_id)
            try:
                async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                    while not job.state.ended and not subscription.closed:
                        items = await subscription.receive()
                        # Live text and tool calls end nothing; asking the store at each would cost more than the run.
                        ended = any(isinstance(item, Event) and _is_final(item) for item in items)
                        if ended or subscription.lagged or subscription.closed:
                            subscription.lagged = False
                            job = await self.get(caller, job_id)
            except TimeoutError:
                job = await self.get(caller, job_id)
        return job

    async def list_events(self, caller: Caller, job_id: str, after: int, limit: int) -> Sequence[Event]:
        """Give a page of a job's events."""
        await self.get(caller, job_id)
        return await self._store.list_events(job_id, after, limit)

    async def follow(self, caller: Caller, job_id: str, after: int = 0) -> AsyncIterator[Event | LiveText]:
        """Give a job's events after `after`, then those that come, with live text, until it has ended."""
        with self._feed.subscribe(job_id) as subscription:
            seen = after
            while True:
                subscription.lagged = False
                job = await self.get(caller, job_id)
                async for event in self._stored_events(job_id, seen):
                    seen = event.seq
                    yield event
                if subscription.closed or (job.state.ended and seen >= job.last_event):
                    return
                recheck = False
                while not recheck:
                    for item in await subscription.receive():
                        if isinstance(item, LiveText):
                            yield item
                        elif item.seq == seen + 1:
                            seen = item.seq
                            yield item
                            recheck = recheck or _is_final(item)
                        elif item.seq > seen:
                            subscription.lagged = True
                            break
                        elif _is_final(item):
                            recheck = (
                                True  # it was read from the store; the job was looked at before it ended
                            )
                    recheck = recheck or subscription.lagged or subscription.closed

    async def _stored_events(self, job_id: str, after: int) -> AsyncIterator[Event]:
        while batch := await self._store.list_events(job_id, after):
            for event in batch:
                yield event
            after = batch[-1].seq

    async def get_output(self, caller: Caller, job_id: str) -> RunOutput | None:
        """Give what a job's newest run printed."""
        await self.get(caller, job_id)
        return await self._store.get_output(job_id)

    async def diff(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the job's diff; raises `Conflict` (`not_ready`) before its end."""
        return await self._artifact(caller, job_id, self._checkouts.job_paths(job_id).diff, "diff")

    async def bundle(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the job's commits; raises `Conflict` (`not_ready`) before its end."""
        return await self._artifact(caller, job_id, self._checkouts.job_paths(job_id).bundle, "bundle")

    async def transcript(self, caller: Caller, job_id: str) -> Path:
        """Give the file with the agent's own record; raises `Conflict` (`not_ready`) before its end."""
        return await self._artifact(
            caller, job_id, self._checkouts.job_paths(job_id).transcript, "transcript"
        )

    async def _artifact(self, caller: Caller, job_id: str, path: Path, kind: str) -> Path:
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(
                f"The job is {job.state}; its {kind} is there when it has ended.", code="not_ready"
            )
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"This job has no {kind}.")
        return path

    # --- what can be asked for -------------------------------------------------------------

    async def list_agents(self, caller: Caller) -> Sequence[AvailableAgent]:
        """Give the agents that can be asked for: configured, built in, and defined in the default workspace."""
        caller.require_scope("read")
        agents = dict(self.catalogue.agents)
        for name, definition in (await self._default_definitions()).items():
            known = agents.get(name)
            if known is None:
                agents[name] = Agent(name, definition.description, definition=name)
            elif not known.description:
                agents[name] = replace(known, description=definition.description)
        return [self._available_agent(agents[name]) for name in sorted(agents)]

    async def _default_definitions(self) -> dict[str, AgentDefinition]:
        workspace = self.catalogue.workspace(self.catalogue.defaults.workspace)
        try:
            return dict(await self._checkouts.agent_definitions(workspace))
        except WorkspaceError:
            return {}  # the list still names what is configured; the job itself will say what is wrong

    def _available_agent(self, agent: Agent) -> AvailableAgent:
        defaults = self.catalogue.defaults
        return AvailableAgent(
            agent=agent,
            workspace=self.catalogue.default_workspace_name(agent),
            budget_micros=first_set(agent.budget_micros, defaults.budget_micros),
            timeout_seconds=first_set(agent.timeout_seconds, defaults.timeout_seconds),
            idle_timeout_seconds=first_set(agent.idle_timeout_seconds, defaults.idle_timeout_seconds),
        )

    def list_workspaces(self, caller: Caller) -> Sequence[Workspace]:
        """Give the configured workspaces."""
        caller.require_scope("read")
        return [self.catalogue.workspaces[name] for name in sorted(self.catalogue.workspaces)]

    async def usage(self, caller: Caller, query: UsageQuery) -> Sequence[UsageRow]:
        """Add up what was spent; a key without `admin` sees its own alone."""
        caller.require_scope("read")
        if not caller.has_scope("admin"):
            if query.api_key_id not in (None, caller.key_id):
                return []
            query = replace(query, api_key_id=caller.key_id)
        return await self._ledger.usage(query)

    async def check(self) -> None:
        """Return when the service can work; raises what stands in the way. For readiness."""
        await self._store.check()


def _is_final(event: Event) -> bool:
    return event.type == StateChanged.type and event.data["to"] in ENDED
