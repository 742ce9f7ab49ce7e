"""Operations that read: jobs, their files and events, agents, workspaces, usage."""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import SCRATCH_WORKSPACE, Agent, AgentDefinition, Workspace
from steadyhand.control.ceilings import Ceilings
from steadyhand.control.deps import ControlDeps
from steadyhand.control.requests import AvailableAgent, Caller, did_you_mean, first_set, is_path_or_url
from steadyhand.control.shared_reads import SharedReads
from steadyhand.errors import Conflict, InvalidRequest, NotFound, WorkspaceError
from steadyhand.event_log import FeedItem, JobChanges, Pulse, WriteItems
from steadyhand.events import Event, LiveProgress, LiveText, PhaseStarted, StateChanged
from steadyhand.job import ENDED, Job, State
from steadyhand.ports import JobFilter, JobPage, ModelCall, QueueLoad, RunOutput, UsageQuery, UsageRow
from steadyhand.ports.artifacts import FileName

FollowedItems = Sequence[Event | LiveText | LiveProgress]


class JobQueries:
    """Reads jobs, their events and files, and the catalog. Changes nothing."""

    def __init__(self, deps: ControlDeps) -> None:
        self._deps = deps
        self._shared_reads = SharedReads()

    async def get(self, caller: Caller, job_id: str) -> Job:
        """Return a job that the caller may see, or raise `NotFound`."""
        caller.require_scope("read")
        return _visible_job(caller, await self._deps.store.get(job_id))

    async def list_jobs(
        self, caller: Caller, job_filter: JobFilter, limit: int, cursor: str | None
    ) -> JobPage:
        """List jobs that the caller may see, newest first."""
        caller.require_scope("read")
        if not caller.has_scope("read:all"):
            if job_filter.api_key_id not in (None, caller.key_id):
                return JobPage([], None)
            job_filter = replace(job_filter, api_key_id=caller.key_id)
        return await self._deps.store.list_jobs(job_filter, limit, cursor)

    def position(self, job: Job) -> int | None:
        """Return the position of a queued job, 1 for the next one; None for any other job."""
        return self._deps.queue.position(job.id) if job.state is State.QUEUED else None

    def load(self) -> QueueLoad:
        """Return the number of jobs that run and that wait, and the capacity."""
        return self._deps.queue.load()

    async def wait(self, caller: Caller, job_id: str, seconds: float) -> Job:
        """Return the job once it has ended, or its current state after that many seconds."""
        with self._deps.feed.subscribe(job_id) as subscription:
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
        """Return a page of a job's events."""
        await self.get(caller, job_id)
        return await self._deps.store.list_events(job_id, after, limit)

    async def list_newest_events(
        self, caller: Caller, job_id: str, types: frozenset[str], tools: frozenset[str], limit: int
    ) -> Sequence[Event]:
        """Return the newest events of some types, and the calls of some tools; see `Store.list_newest_events`."""
        await self.get(caller, job_id)
        return await self._deps.store.list_newest_events(job_id, types, tools, limit)

    async def list_model_calls(self, caller: Caller, job_id: str, limit: int) -> Sequence[ModelCall]:
        """Return the newest calls of the model in a job, the oldest of them first."""
        await self.get(caller, job_id)
        return await self._deps.ledger.list_calls(job_id, limit)

    async def follow(
        self, caller: Caller, job_id: str, after: int = 0
    ) -> AsyncGenerator[Event | LiveText, None]:
        """Yield a job's events after the number `after`, then new events and live text, until its answer is stored."""
        async with aclosing(self.follow_answer(caller, job_id, after)) as batches:
            async for batch in batches:
                for item in batch:
                    if not isinstance(item, LiveProgress):
                        yield item

    def follow_answer(
        self, caller: Caller, job_id: str, after: int = 0
    ) -> AsyncGenerator[FollowedItems, None]:
        """Return what `follow` yields, and the progress of phases: those together that are there together."""
        return self._follow(caller, job_id, after, lambda job: job.as_answered.state.ended)

    def follow_job(
        self,
        caller: Caller,
        job_id: str,
        after: int = 0,
        write: WriteItems | None = None,
        pulse: Pulse | None = None,
    ) -> AsyncGenerator[FollowedItems, None]:
        """Return the same until the job has ended. Items that `write` sends are not yielded.

        With a `pulse` the items of its time are yielded together.
        """
        return self._follow(caller, job_id, after, lambda job: job.state.ended, write, pulse=pulse)

    async def _follow(
        self,
        caller: Caller,
        job_id: str,
        after: int,
        is_done: Callable[[Job], bool],
        write: WriteItems | None = None,
        *,
        pulse: Pulse | None = None,
    ) -> AsyncGenerator[FollowedItems, None]:
        sent = _SentEvents(after, write)
        with self._deps.feed.subscribe(job_id, write and sent.write_next, pulse) as subscription:
            while True:
                subscription.lagged = False
                job = await self._get_shared(caller, job_id)
                # Later events than the job's last one come by the subscription, which is older than this read.
                while sent.last < job.last_event and (
                    stored := await self._list_events_shared(job_id, sent.last)
                ):
                    sent.last = stored[-1].seq
                    yield stored
                if subscription.closed or (is_done(job) and sent.last >= job.last_event):
                    return
                recheck = False
                while not recheck:
                    batch: list[Event | LiveText | LiveProgress] = []
                    for item in await subscription.receive():
                        if isinstance(item, LiveText | LiveProgress):
                            batch.append(item)
                        elif item.seq == sent.last + 1:
                            sent.last = item.seq
                            batch.append(item)
                            recheck = recheck or _may_end(item)
                        elif item.seq > sent.last:
                            subscription.lagged = True
                            break
                        elif _may_end(item):
                            recheck = True  # read from the store, after the job itself was read
                    if batch:
                        yield batch
                    recheck = recheck or subscription.lagged or subscription.closed

    @contextlib.contextmanager
    def watch_jobs(self, caller: Caller, since: int | None = None) -> Iterator[JobChanges]:
        """Watch for jobs that are accepted or change their state; also for those that the caller may not see.

        The first change comes at once if there was one after `since`, a `change_number`.
        """
        caller.require_scope("read")
        with self._deps.feed.watch_jobs(since) as changes:
            yield changes

    def change_number(self) -> int:
        """Return the number of the last change of a job: read it before a list, to watch for what comes after."""
        return self._deps.feed.change_number

    async def _get_shared(self, caller: Caller, job_id: str) -> Job:
        """Return a job as `get` does. All followers of a job ask for it at its end; one read is enough for them."""
        caller.require_scope("read")
        return _visible_job(
            caller, await self._shared_reads.run(job_id, lambda: self._deps.store.get(job_id))
        )

    async def _list_events_shared(self, job_id: str, after: int) -> Sequence[Event]:
        store = self._deps.store
        return await self._shared_reads.run((job_id, after), lambda: store.list_events(job_id, after))

    async def get_output(self, caller: Caller, job_id: str) -> RunOutput | None:
        """Return the output of a job's newest run with any, or None."""
        await self.get(caller, job_id)
        return await self._deps.store.get_output(job_id)

    async def diff(self, caller: Caller, job_id: str) -> Path:
        """Return the path of the job's diff. Raise `Conflict` (`not_ready`) before the job's end."""
        return await self._find_file(caller, job_id, "diff")

    async def bundle(self, caller: Caller, job_id: str) -> Path:
        """Return the path of the git bundle with the job's commits. Raise `Conflict` (`not_ready`) before its end."""
        return await self._find_file(caller, job_id, "bundle")

    async def transcript(self, caller: Caller, job_id: str) -> Path:
        """Return the path of the agent's transcript. Raise `Conflict` (`not_ready`) before the job's end."""
        return await self._find_file(caller, job_id, "transcript")

    async def _find_file(self, caller: Caller, job_id: str, name: FileName) -> Path:
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(
                f"The job is {job.state}; its {name} is available after its end.", code="not_ready"
            )
        path = await self._deps.checkouts.find_file(job_id, name)
        if path is None:
            raise NotFound(f"This job has no {name}.")
        return path

    # --- agents and workspaces -------------------------------------------------------------

    async def list_agents(self, caller: Caller) -> Sequence[AvailableAgent]:
        """Return the agents that a job may name: configured, built in, and defined in the default workspace."""
        caller.require_scope("read")
        agents = dict(self._deps.catalog.agents)
        for name, definition in (await self._default_definitions()).items():
            known = agents.get(name)
            if known is None:
                agents[name] = Agent(name, definition.description, definition=name)
            elif not known.description:
                agents[name] = replace(known, description=definition.description)
        return [self._available_agent(caller, agents[name]) for name in sorted(agents)]

    async def check_key_limits(self, agents: Sequence[str] | None, workspaces: Sequence[str] | None) -> None:
        """Raise `InvalidRequest` (`unknown_agent`, `unknown_workspace`) if the limits of a key name what is not there.

        Agents are searched in these workspaces, without any in all configured ones; one that cannot be read has none.
        """
        catalog = self._deps.catalog
        for index, name in enumerate(workspaces or ()):
            if not (name in catalog.workspaces or name == SCRATCH_WORKSPACE or is_path_or_url(name)):
                raise _unknown_name(
                    f"/limits/workspaces/{index}", name, catalog.workspaces, "unknown_workspace"
                )
        known = set(catalog.agents)
        for workspace in (None, *(catalog.workspaces if workspaces is None else workspaces)):
            if known.issuperset(agents or ()):
                return
            with contextlib.suppress(WorkspaceError):
                known |= set(await self._deps.checkouts.agent_definitions(catalog.workspace(workspace)))
        for index, name in enumerate(agents or ()):
            if name not in known:
                raise _unknown_name(f"/limits/agents/{index}", name, known, "unknown_agent")

    async def _default_definitions(self) -> dict[str, AgentDefinition]:
        workspace = self._deps.catalog.workspace(self._deps.catalog.defaults.workspace)
        try:
            return dict(await self._deps.checkouts.agent_definitions(workspace))
        except WorkspaceError:
            return {}  # the list still has the configured agents; the error of a job names the problem

    def _available_agent(self, caller: Caller, agent: Agent) -> AvailableAgent:
        defaults = self._deps.catalog.defaults
        ceilings = Ceilings(self._deps.catalog.limits, agent, self._deps.admission.limits_of(caller.key_id))
        max_budget, max_timeout = ceilings.budget.nearest, ceilings.timeout.nearest
        return AvailableAgent(
            agent=agent,
            workspace=self._deps.catalog.default_workspace_name(agent),
            budget_micros=ceilings.budget.lower(first_set(agent.budget_micros, defaults.budget_micros)),
            timeout_seconds=ceilings.timeout.lower(
                first_set(agent.timeout_seconds, defaults.timeout_seconds)
            ),
            idle_timeout_seconds=first_set(agent.idle_timeout_seconds, defaults.idle_timeout_seconds),
            max_budget_micros=None if max_budget is None else max_budget[1],
            max_timeout_seconds=None if max_timeout is None else max_timeout[1],
            models=ceilings.models,
        )

    def list_workspaces(self, caller: Caller) -> Sequence[Workspace]:
        """Return the configured workspaces, sorted by name."""
        caller.require_scope("read")
        return [self._deps.catalog.workspaces[name] for name in sorted(self._deps.catalog.workspaces)]

    async def usage(self, caller: Caller, query: UsageQuery) -> Sequence[UsageRow]:
        """Return the usage by group; a key without `admin` sees its own alone."""
        caller.require_scope("read")
        if not caller.has_scope("admin"):
            if query.api_key_id not in (None, caller.key_id):
                return []
            query = replace(query, api_key_id=caller.key_id)
        return await self._deps.ledger.usage(query)

    async def check(self) -> None:
        """Return if the store can be read, else raise `StoreError`. For readiness."""
        await self._deps.store.check()


def _visible_job(caller: Caller, job: Job | None) -> Job:
    if job is None or not (job.api_key_id == caller.key_id or caller.has_scope("read:all")):
        raise NotFound("Job not found")
    return job


class _SentEvents:
    """The number of the last event that a follower has, and the way on which it gets the next ones at once."""

    def __init__(self, last: int, write: WriteItems | None) -> None:
        self.last = last
        self._write = write

    def write_next(self, items: Sequence[FeedItem]) -> bool:
        """Send items; return False if events are missing before them, or if the follower may be done with them."""
        last = self.last
        for item in items:
            if isinstance(item, Event):
                if item.seq != last + 1 or _may_end(item):
                    return False
                last = item.seq
        if self._write is None or not self._write(items):
            return False
        self.last = last
        return True


def _is_final(event: Event) -> bool:
    return event.type == StateChanged.type and event.data["to"] in ENDED


def _may_end(event: Event) -> bool:
    """Return True for an event after which a follower may be done: the end of the job, or the stored answer."""
    is_harvest = event.type == PhaseStarted.type and event.data["phase"] == "harvesting"
    return is_harvest or _is_final(event)


def _unknown_name(pointer: str, name: str, known: Iterable[str], code: str) -> InvalidRequest:
    return InvalidRequest.at(pointer, f"{name!r} is not known{did_you_mean(name, sorted(known))}", code=code)
