"""The settings and the dependencies of a worker."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from steadyhand.agents import Agent, Catalog
from steadyhand.cancellations import Cancellations
from steadyhand.event_log import EventLog
from steadyhand.metrics import ServiceMetrics
from steadyhand.ports import (
    NO_TRACING,
    Checkout,
    Checkouts,
    Gateway,
    HeldRuns,
    JobTracing,
    Ledger,
    LocalNodeCalls,
    NodeCalls,
    OrphanedRun,
    Queue,
    Runner,
    Store,
    WarmRunner,
)
from steadyhand.steering import SteerBroker
from steadyhand.tool_calls import ToolCallBroker
from steadyhand.worker.parked import ParkedJobs


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of a worker. `environment_for` returns the environment of the service for an agent's process."""

    node: str
    clock: Callable[[], datetime]
    environment_for: Callable[[Agent, Checkout], Mapping[str, str]]
    kill_leftovers: Callable[[int, int], Awaitable[object]]
    """Kills the processes that a run left before a restart, by the supervisor's pid and start time."""
    drain_seconds: float = 30
    keep_jobs: timedelta | None = timedelta(days=90)
    keep_transcripts: timedelta | None = timedelta(days=30)
    keep_checkouts: timedelta | None = timedelta(days=1)
    """How long the checkout of an ended job is kept for a run that resumes it."""
    max_bytes: int | None = None
    progress_seconds: float | None = None
    """The shortest time between two times at which the work of a run is stored for other nodes; None is never."""
    max_waiting_runs: int = 8
    """How many processes may wait for results of their clients' tools beside the jobs that run."""
    max_waiting_runs_per_key: int = 16
    first_warm_slot: int = 0
    """The number of the first slot of processes that wait for jobs; those below belong to claims of the queue."""
    max_kept_per_key: int = 16
    """How many processes of one key may wait for its next jobs."""
    warm_memory: int = 0
    """The bytes that waiting processes may take together."""


@dataclass(frozen=True, slots=True)
class WorkerDeps:
    """The dependencies of a worker. Without a gateway agents reach the model, and every other host, directly.

    `event_log` holds its writes: an outage of the store delays what a run has reached, and loses none of it.
    """

    store: Store
    queue: Queue
    checkouts: Checkouts
    runners: Mapping[str, Runner]
    event_log: EventLog
    catalog: Catalog
    config: WorkerConfig
    ledger: Ledger
    gateway: Gateway | None = None
    parked: ParkedJobs = field(default_factory=ParkedJobs)
    cancellations: Cancellations = field(default_factory=Cancellations)
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    tracing: JobTracing = NO_TRACING
    tool_calls: ToolCallBroker = field(default_factory=ToolCallBroker)
    steers: SteerBroker = field(default_factory=SteerBroker)
    held_runs: HeldRuns | None = None
    """The runs that may outlive the service; None ends each with it."""
    orphans: Sequence[OrphanedRun] = ()
    """The runs that an earlier service left."""
    lost_runs: Collection[tuple[str, int]] = ()
    """The job and the run of each run that was held and cannot be taken up."""
    ended_after_stop: Collection[tuple[str, int]] = ()
    """The job and the run of each that a stop left, and that no service took up in time."""
    warm_runners: Mapping[str, WarmRunner] = field(default_factory=dict)
    """The runners that can start processes before their jobs are there."""
    node_calls: NodeCalls = field(default_factory=LocalNodeCalls)
