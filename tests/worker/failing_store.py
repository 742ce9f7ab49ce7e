"""A service in one process whose store fails at a chosen write: the real store, queue, gateway, worker and control.

The agents and the checkouts are small ones of the test. The clients do as they are told: after `StoreUnavailable`,
which is a 503 with `Retry-After`, they try again.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from tests.store.faults import Fault, open_failing_store
from tests.worker.fakes import IN_PLACE, FakeCheckouts

from steadyhand.admission import Admission
from steadyhand.agents import BUILT_IN_AGENTS, Catalog, Workspace
from steadyhand.cancellations import Cancellations
from steadyhand.control import Caller, Control
from steadyhand.errors import StoreUnavailable
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import Event
from steadyhand.gateway import BillingDeps, ModelGateway, Prices, job_limits
from steadyhand.gateway.gateway import GrantedAccess
from steadyhand.gateway.model.metered_run import MeteredRun
from steadyhand.gateway.model.usage_meter import MeasuredUsage
from steadyhand.job import Job, State
from steadyhand.ports import (
    ALL_SCOPES,
    NO_LIMITS,
    Checkout,
    Checkouts,
    Emit,
    Harvest,
    OrphanedRun,
    RunContext,
    RunReport,
    RunSpec,
    StopSignal,
    TokenCounts,
    UsageQuery,
)
from steadyhand.queue import LocalQueue
from steadyhand.redact import Redactor
from steadyhand.store import SqlStore, open_store
from steadyhand.tool_calls import ToolCallBroker
from steadyhand.worker import ParkedJobs, Worker, WorkerConfig, WorkerDeps

CALLER = Caller("k_one", ALL_SCOPES)
PRICES = Prices.load(
    {"claude-*": dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), "1")}
)
CLIENT_PAUSE_SECONDS = 0.01
"""What a client waits after a 503; a real one waits for `Retry-After`."""
STEP_SECONDS = 0.004
"""What an agent does between two outputs takes so long, so that they are seldom stored together."""

T = TypeVar("T")
Agent = Callable[["FailingService", RunSpec, Emit, StopSignal], Awaitable[RunReport]]


class RecordingGateway(ModelGateway):
    """The gateway, with the runs that it lets out at hand: the agents of the test make their calls by them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.runs: dict[str, MeteredRun] = {}

    @asynccontextmanager
    async def open_run(
        self, work: RunContext, emit: Emit, orphan: OrphanedRun | None = None
    ) -> AsyncIterator[GrantedAccess]:
        async with super().open_run(work, emit, orphan) as access:
            self.runs[work.job.id] = access.run
            yield access


@dataclass
class ServiceCheckouts(FakeCheckouts):
    """Checkouts of a service; `calls` has each harvest and deletion as well."""

    spared: set[str] = field(default_factory=set)
    """The jobs that the newest retention left alone."""

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        paths = self.job_paths(job.id)
        paths.config_dir.mkdir(parents=True, exist_ok=True)
        return Checkout(workspace, paths, self.root, self.root, None, None, "a" * 40, slot=slot)

    async def harvest(self, checkout: Checkout) -> Harvest:
        self.calls.append(("harvest", checkout.paths.root.name))
        return Harvest(None)

    async def reopen(self, job: Job, workspace: Workspace) -> Checkout | None:  # noqa: ARG002  # the port's signature
        return None

    async def list_retained(self) -> Mapping[str, datetime]:
        return {}

    async def remove_leftovers(self, spared: object = ()) -> None:
        pass

    async def apply_retention(self, *arguments: Any) -> None:
        self.spared = set(arguments[3])

    async def delete_job(self, job_id: str) -> None:
        self.calls.append(("delete", job_id))


@dataclass
class FakeRunner:
    """Runs `agents[prompt]` in place of an agent's process."""

    service: "FailingService | None" = None
    agents: dict[str, Agent] = field(default_factory=dict)

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        assert self.service is not None
        return await self.agents[spec.job.spec.prompt](self.service, spec, emit, stop)


@dataclass
class FailingService:
    """The running service, and what a test may look at inside."""

    fault: Fault
    store: SqlStore
    queue: LocalQueue
    control: Control
    gateway: RecordingGateway
    checkouts: ServiceCheckouts
    runner: FakeRunner
    worker: Worker
    group: asyncio.TaskGroup
    killed: list[tuple[int, int]]
    cancellations: Cancellations

    async def call_model(self, job_id: str, tokens: int = 100) -> None:
        """Make a call of a model, as the agent of a job does."""
        call = await self.gateway.runs[job_id].begin_call("claude-opus-5", 10)
        usage = MeasuredUsage(TokenCounts(output=tokens), "claude-opus-5", complete=True, has_usage=True)
        call.settle(usage, 200)

    async def insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Do as a client does: after a 503, try again."""
        while True:
            try:
                return await operation()
            except StoreUnavailable:
                await asyncio.sleep(CLIENT_PAUSE_SECONDS)

    async def wait_for_state(self, job_id: str, *states: State) -> Job:
        """Return a job once it is in one of these states."""
        while True:
            job = await self.store.get(job_id)
            assert job is not None
            if job.state in states:
                return job
            await asyncio.sleep(CLIENT_PAUSE_SECONDS)

    async def follow(self, job_id: str, events: list[Event]) -> None:
        """Follow a job to its end into a list."""
        items = self.control.follow(CALLER, job_id)
        events.extend([item async for item in items if isinstance(item, Event)])

    async def idle(self) -> None:
        """Wait until nothing runs, and no outage lasts."""
        while self.queue.load().active or self.store.outage is not None:  # noqa: ASYNC110  # neither has an event
            await asyncio.sleep(CLIENT_PAUSE_SECONDS)

    async def spent(self, job_id: str) -> int:
        """Return what the ledger has for a job."""
        (row,) = await self.store.usage(UsageQuery(job_id=job_id))
        return row.total.micros


async def make_template(path: Path) -> None:
    """Make an empty database, which each service gets a copy of: its migrations take longer than a job."""
    store = await open_store(f"sqlite:///{path}")
    await store.close()


@asynccontextmanager
async def failing_service(
    root: Path,
    template: Path,
    fault: Fault,
    agents: Mapping[str, Agent],
    *,
    capacity: int = 2,
    max_waiting_runs: int = 4,
    max_waiting_runs_per_key: int = 16,
) -> AsyncIterator[FailingService]:
    """Run the service for the length of the block; the fault counts from its start."""
    shutil.copyfile(template, root / "d.db")
    store = open_failing_store(root / "d.db", fault)
    gateway = RecordingGateway(
        root, slots=capacity, sandbox_socket=None, billing=BillingDeps(store, PRICES, job_limits)
    )
    try:
        async with gateway.serving(), asyncio.TaskGroup() as group:
            service = _assemble(
                root,
                fault,
                store,
                gateway,
                group,
                agents,
                capacity,
                max_waiting_runs,
                max_waiting_runs_per_key,
            )
            fault.armed = True
            working = group.create_task(service.worker.run())
            yield service
            await service.idle()
            working.cancel()
    finally:
        await store.close()


def _assemble(  # noqa: PLR0917  # the parts that are there before the rest
    root: Path,
    fault: Fault,
    store: SqlStore,
    gateway: RecordingGateway,
    group: asyncio.TaskGroup,
    agents: Mapping[str, Agent],
    capacity: int,
    max_waiting_runs: int,
    max_waiting_runs_per_key: int,
) -> FailingService:
    feed, broker, cancellations = EventFeed(), ToolCallBroker(), Cancellations()
    directories = {IN_PLACE.name: IN_PLACE.repository}
    queue = LocalQueue(
        store,
        capacity=capacity,
        max_queued=50,
        max_suspended=max_waiting_runs,
        directory_of=lambda job: directories.get(job.workspace or ""),
    )
    checkouts, runner = ServiceCheckouts(root), FakeRunner()
    catalog = Catalog(agents=dict(BUILT_IN_AGENTS), workspaces={IN_PLACE.name: IN_PLACE})
    killed: list[tuple[int, int]] = []

    async def kill_leftovers(pid: int, started: int) -> None:
        killed.append((pid, started))

    worker = Worker(
        WorkerDeps(
            store=store,
            queue=queue,
            checkouts=cast("Checkouts", checkouts),
            runners={"claude": runner},
            event_log=EventLog(store, feed, Redactor(), hold=True),
            catalog=catalog,
            config=WorkerConfig(
                node="n1",
                clock=_now,
                environment_for=lambda *_: {},
                kill_leftovers=kill_leftovers,
                max_waiting_runs=max_waiting_runs,
                max_waiting_runs_per_key=max_waiting_runs_per_key,
            ),
            ledger=store,
            gateway=gateway,
            parked=ParkedJobs(),
            tool_calls=broker,
            cancellations=cancellations,
        )
    )
    control = Control(
        store=store,
        queue=queue,
        checkouts=cast("Checkouts", checkouts),
        feed=feed,
        ledger=store,
        catalog=catalog,
        clock=_now,
        tool_calls=broker,
        cancellations=cancellations,
        admission=Admission(
            get_limits=lambda _: NO_LIMITS,
            get_backlog=queue.backlog,
            get_waiting_runs=broker.waiting_runs,
            clock=_now,
            max_waiting_runs=max_waiting_runs_per_key,
        ),
    )
    service = FailingService(
        fault, store, queue, control, gateway, checkouts, runner, worker, group, killed, cancellations
    )
    runner.service = service
    runner.agents.update(agents)
    return service


def _now() -> datetime:
    return datetime.now(UTC)
