"""The verbs that read: jobs and what is kept of them, their events as they come, and what can be asked for."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary

from steadyhand.admission import Admission
from steadyhand.agents import Agent, Catalogue, Definition, Workspace
from steadyhand.control.requests import Caller, Offer, first_of, new_job_id
from steadyhand.errors import Conflict, NotFound, WorkspaceError
from steadyhand.event_log import Feed, Recorder
from steadyhand.events import Event, Live, StateChanged
from steadyhand.job import (
    ENDED,
    Job,
    State,
)
from steadyhand.ports import (
    NO_LIMITS,
    Checkouts,
    Filter,
    Ledger,
    Load,
    Page,
    Queue,
    RunOutput,
    Store,
    UsageQuery,
    UsageRow,
)
from steadyhand.tool_calls import Exchange


class Reading:
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
        self._by_session: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.catalogue = catalogue

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
            budget_micros=first_of(agent.budget_micros, defaults.budget_micros),
            timeout_seconds=first_of(agent.timeout_seconds, defaults.timeout_seconds),
            idle_timeout_seconds=first_of(agent.idle_timeout_seconds, defaults.idle_timeout_seconds),
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


def _ends(event: Event) -> bool:
    return event.type == StateChanged.type and event.data["to"] in ENDED
