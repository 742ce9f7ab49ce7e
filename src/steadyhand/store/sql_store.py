"""The store on SQLAlchemy Core, over SQLite or Postgres: one writer thread and a few reader threads.

A read is one call in a thread; a whole batch of writes is one call. Nothing here blocks the event loop.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine

from steadyhand.clock import utc_now
from steadyhand.errors import StoreError, StoreUnavailable
from steadyhand.events import Event, EventDraft
from steadyhand.job import Job, State
from steadyhand.ports import (
    AddResult,
    ApiKey,
    AttemptResult,
    Delivery,
    DeliveryFilter,
    DeliveryPage,
    IdempotencyKey,
    JobFilter,
    JobPage,
    JobSample,
    ModelCall,
    PlanDeliveries,
    PlanPauseDeliveries,
    RunOutput,
    SavedItem,
    SavedKind,
    StoredEndpoint,
    TickClaim,
    ToolSample,
    UsageQuery,
    UsageRow,
)
from steadyhand.ports.artifacts import Artifacts
from steadyhand.store import (
    callback_endpoints,
    job_samples,
    open_calls,
    outbox,
    reads,
    saved_items,
    upkeep,
    usage_sums,
    writes,
)
from steadyhand.store.brief_jobs import BriefJobs
from steadyhand.store.changed_jobs import ChangedJobs
from steadyhand.store.commit_marks import create_marks
from steadyhand.store.database_url import DEFAULT_NODE, is_postgres_url, require_psycopg
from steadyhand.store.drained_nodes import SqlDrainedNodes
from steadyhand.store.driver import SQLITE
from steadyhand.store.job_sequences import JobSequences
from steadyhand.store.outage import unavailable
from steadyhand.store.page_sessions import SqlPageSessions
from steadyhand.store.readers import Readers
from steadyhand.store.repeated_calls import settle_repeated_calls
from steadyhand.store.schedule_store import SqlScheduleStore
from steadyhand.store.sqlite import open_sqlite_engines, parse_sqlite_url
from steadyhand.store.writer import LINGER_SECONDS, BatchWriter

if TYPE_CHECKING:
    from steadyhand.store.shared_artifacts import Objects

OPTIMIZE_SECONDS = 3600.0
"""The time between two refreshes of the statistics; the first one is that long after the start."""
PARTITION_SECONDS = 60.0
"""The time between two looks at the partitions of Postgres; a hundred thousand jobs have room until the next one."""

T = TypeVar("T")


class SqlStore:
    """`ports.Store`, `ports.Ledger`, `ports.Outbox` and `ports.SavedItems` on a database.

    It belongs to the event loop in which `open_store` created it.
    """

    def __init__(
        self,
        write_engine: Engine,
        read_engine: Engine,
        *,
        clock: Callable[[], datetime],
        linger_seconds: float = LINGER_SECONDS,
        on_commit: Callable[[int, float], None] = lambda _operations, _seconds: None,
        writer: BatchWriter | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        on_close: Callable[[], None] = lambda: None,
        node: str | None = None,
        partition_upkeep: Callable[[], bool] | None = None,
    ) -> None:
        """Create it. `node` is the name of this service if others may use the database as well, else None.

        `partition_upkeep` does a piece of the upkeep of partitions and returns True if there is more of it; it blocks.
        """
        self._node = node
        self._write_engine = write_engine
        self._read_engine = read_engine
        self._clock = clock
        changes = ChangedJobs()
        self.origin = secrets.token_hex(8)
        """The name of this store in its announcements to other nodes."""
        self._writer = writer or BatchWriter(
            write_engine,
            linger_seconds=linger_seconds,
            on_commit=on_commit,
            before_commit=changes.publish,
            marks=create_marks(write_engine.dialect.name, self.origin),
        )
        self._failed_reads = 0
        self._readers = Readers(read_engine)
        # Another writer, or another node, does not tell of its changes.
        is_told = writer is None and write_engine.dialect.name == SQLITE
        self._brief_jobs = BriefJobs(changes if is_told else None)
        self._on_close = on_close
        self._closed = False
        self._has_older_jobs = True
        self._sequences = JobSequences()
        self._plan_deliveries: PlanDeliveries | None = None
        self._on_deliveries: Callable[[frozenset[str]], None] = lambda _circuits: None
        self.page_sessions = SqlPageSessions(self._writer.submit, self._read)
        self.schedules = SqlScheduleStore(self._writer.submit, self._read, self._read_alone, clock)
        self.drained_nodes = SqlDrainedNodes(self._writer.submit, self._read)
        self._insert_with_jobs: Callable[[Connection, Sequence[Job]], None] = lambda _connection, _jobs: None
        self._check_change: Callable[[bool, Connection, Job, Job], None] | None = None
        self._monotonic = monotonic
        self._optimized_at = monotonic()
        self._partition_upkeep = partition_upkeep
        self._partitions_at = monotonic()

    @property
    def outage(self) -> str | None:
        """The reason why nothing can be written now, or None."""
        return self._writer.outage

    @property
    def failures(self) -> int:
        """The number of outages so far, with the reads that failed."""
        return self._writer.outages + self._failed_reads

    def add(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None = None,
        *,
        claim: TickClaim | None = None,
    ) -> asyncio.Future[AddResult]:
        """Store a new job with its first events; see `ports.Store.add`."""
        if idempotency is None and claim is None:
            return self._writer.submit_grouped(self._add_jobs, (job, drafts))
        return self._writer.submit(
            partial(self._add_job, job, drafts, idempotency, self._clock(), claim=claim)
        )

    def store_with_jobs(self, insert: Callable[[Connection, Sequence[Job]], None]) -> None:
        """Call this function with new jobs in the transaction that stores them, in the writer's thread."""
        self._insert_with_jobs = insert

    def check_changes(self, check: Callable[[bool, Connection, Job, Job], None]) -> None:
        """Call this function with a job before and after each change, in its transaction, in the writer's thread.

        Its first argument is True if the job counts as a new one. It raises an error to refuse the change.
        """
        self._check_change = check

    def _add_jobs(
        self, connection: Connection, jobs_with_drafts: Sequence[tuple[Job, Sequence[EventDraft]]]
    ) -> Sequence[AddResult]:
        results = writes.add_jobs(connection, jobs_with_drafts)
        self._insert_with_jobs(connection, [result.job for result in results])
        return results

    def _add_job(
        self,
        job: Job,
        drafts: Sequence[EventDraft],
        idempotency: IdempotencyKey | None,
        now: datetime,
        connection: Connection,
        *,
        claim: TickClaim | None,
    ) -> AddResult:
        result = writes.add_job(connection, job, drafts, idempotency, now, claim=claim)
        if not result.replayed:
            self._insert_with_jobs(connection, [result.job])
        return result

    async def get_replayed(self, api_key_id: str, idempotency: IdempotencyKey) -> Job | None:
        """Return the job that this idempotency key created, or `None`."""
        now = self._clock()
        return await self._read(lambda at: reads.get_replayed(at, api_key_id, idempotency, now))

    async def get(self, job_id: str) -> Job | None:
        """Return a job with its runs, or `None`."""
        return await self._read(lambda at: reads.get_job(at, job_id))

    async def list_jobs(self, which: JobFilter, limit: int, cursor: str | None = None) -> JobPage:
        """Return a page of jobs in brief, newest first."""
        is_session = which.session_id or which.session_name or which.conversation
        run = self._readers.read if is_session else self._readers.query
        return await self._read(lambda at: reads.list_jobs(at, which, limit, cursor, self._brief_jobs), run)

    async def find_conversation(self, api_key_id: str, conversation: str) -> Job | None:
        """Return the only job of a key with this conversation; None if there is none, or several."""
        return await self._read(lambda at: reads.find_conversation(at, api_key_id, conversation))

    async def sample_jobs(
        self, job_filter: JobFilter, limit: int, model: str | None = None
    ) -> Sequence[JobSample]:
        """Return cost and time of the newest jobs that match."""
        return await self._read(
            lambda at: job_samples.sample_jobs(at, job_filter, limit, model), self._readers.query
        )

    async def sample_tools(self, job_filter: JobFilter, limit: int) -> ToolSample:
        """Return the calls of tools in the newest jobs that match."""
        return await self._read(
            lambda at: job_samples.sample_tools(at, job_filter, limit), self._readers.query
        )

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
        *,
        hold: bool = False,
        as_new: bool = False,
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job and append events, if its state is one of `expected`."""
        hook = self._new_hook()
        check = None if self._check_change is None else partial(self._check_change, as_new)
        written = await self._writer.submit(
            lambda at: writes.update_job(at, job_id, expected, update, drafts, hook=hook, check_change=check),
            hold=hold,
        )
        self._report_added(hook)
        return written

    async def append_events(
        self, job_id: str, drafts: Sequence[EventDraft], *, hold: bool = False, run: int | None = None
    ) -> Sequence[Event]:
        """Store events with their numbers; see `ports.Store.append_events`."""
        hook = self._new_hook()
        append = writes.EventAppend(job_id, drafts, hook, run)
        added = await self._writer.submit_grouped(writes.append_events, append, events=len(drafts), hold=hold)
        self._report_added(hook)
        return added

    async def list_events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Return the events with numbers above `after`, in order."""
        return await self._read_alone(lambda at: reads.list_events(at, job_id, after, limit, self._sequences))

    async def list_newest_events(
        self, job_id: str, types: frozenset[str], tools: frozenset[str], limit: int
    ) -> Sequence[Event]:
        """Return the newest events of these types and the calls of these tools, with their results, in order."""
        return await self._read(
            lambda at: reads.list_newest_events(at, job_id, types, tools, limit, sequences=self._sequences)
        )

    async def save_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Store the output of a run, after an outage if need be. Raise `NotFound` if the job does not exist."""
        await self._writer.submit(lambda at: writes.save_output(at, job_id, run, output), hold=True)

    async def get_output(self, job_id: str) -> RunOutput | None:
        """Return the output of the newest run that has any."""
        return await self._read(lambda at: reads.get_output(at, job_id))

    async def list_in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Return every job in these states, in the order of acceptance."""
        return await self._read_alone(lambda at: reads.list_in_states(at, states))

    async def list_restarted(self) -> Sequence[Job]:
        """Return the interrupted jobs that the next start queues again, in the order of acceptance."""
        return await self._read_alone(reads.list_restarted)

    async def list_ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Return ids of jobs that ended before `moment` and that no turn needs, oldest first."""
        return await self._read_alone(lambda at: reads.list_ended_before(at, moment, limit))

    async def list_awaited(self) -> Mapping[str, str]:
        """Return the jobs whose session a turn still needs for its start, each with the id of such a turn."""
        return await self._read(reads.list_awaited)

    async def delete(self, job_id: str) -> bool:
        """Delete an ended job with its runs, events and output, unless a turn needs its session."""
        now = self._clock()
        return await self._writer.submit(lambda at: writes.delete_job(at, job_id, now))

    async def delete_all(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Delete those of these jobs that may be deleted; return the ids of the others."""
        now = self._clock()
        return await self._writer.submit(lambda at: writes.delete_jobs(at, job_ids, now))

    async def list_deleted(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Return those of these jobs that were deleted in the last 30 days."""
        return await self._read(lambda at: reads.list_deleted(at, job_ids))

    def open_artifacts(self, database_bytes: int, objects: "Objects | None") -> Artifacts:
        """Return the files of jobs in this database and in a bucket; see `SharedArtifacts`."""
        from steadyhand.store.shared_artifacts import SharedArtifacts  # noqa: PLC0415  # one node needs it not

        return SharedArtifacts(
            self._writer.submit, self._read, self._clock, database_bytes=database_bytes, objects=objects
        )

    async def maintain(self) -> bool:
        """Add older jobs to the search index, refresh statistics, keep partitions; return True if there is more."""
        if self._has_older_jobs:
            self._has_older_jobs = await self._writer.submit(upkeep.index_older_jobs)
            return self._has_older_jobs
        if self._monotonic() - self._optimized_at >= OPTIMIZE_SECONDS:
            self._optimized_at = self._monotonic()
            await self._writer.submit(upkeep.optimize)
        return await self._maintain_partitions()

    async def _maintain_partitions(self) -> bool:
        if self._partition_upkeep is None or self._monotonic() < self._partitions_at:
            return False
        self._partitions_at = self._monotonic() + PARTITION_SECONDS  # also if it fails
        has_more = await asyncio.to_thread(self._partition_upkeep)
        if has_more:
            self._partitions_at = self._monotonic()
        return has_more

    async def list_keys(self) -> Sequence[ApiKey]:
        """Return the stored keys, oldest first."""
        return await self._read_alone(reads.list_keys)

    async def save_key(self, key: ApiKey) -> None:
        """Store a key; it replaces one with the same id, and one that is revoked loses its saved items."""
        await self._writer.submit(lambda at: writes.save_key(at, key))

    async def save_call(self, call: ModelCall) -> None:
        """Store a call of a model, after an outage if need be. Calls within a few milliseconds share a commit."""
        await self._writer.submit_grouped(writes.save_calls, call, events=1, hold=True)

    def hasten(self) -> None:
        """Store the calls and events that wait for others at once."""
        self._writer.hasten()

    async def settle_open_calls(self) -> int:
        """Settle the calls that an earlier process of this node left open, and return their number."""
        return await self._writer.submit(lambda at: open_calls.settle_of_node(at, self._node))

    async def settle_calls_of_run(self, job_id: str, run: int) -> int:
        """Settle the open calls of a run whose node is dead, and return their number."""
        return await self._writer.submit(lambda at: open_calls.settle_of_run(at, job_id, run))

    async def settle_repeated_calls(self, runs: Collection[tuple[str, int]]) -> int:
        """See `Ledger.settle_repeated_calls`."""
        return await self._writer.submit(lambda at: settle_repeated_calls(at, runs))

    async def list_calls(self, job_id: str, limit: int) -> Sequence[ModelCall]:
        """Return the newest calls of a job, the oldest of them first."""
        return await self._read(lambda at: reads.list_calls(at, job_id, limit))

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Return the sums of settled calls, one row for each group."""
        # Only a page for a caller has a limit; the service's own sums are short, and must not fail for a long one.
        run = self._readers.read if query.limit is None else self._readers.query
        return await self._read(lambda at: usage_sums.sum_usage(at, query), run)

    async def list_endpoints(self) -> Sequence[StoredEndpoint]:
        """Return the stored endpoints of callbacks, oldest first."""
        return await self._read_alone(callback_endpoints.list_endpoints)

    async def save_endpoint(self, endpoint: StoredEndpoint) -> None:
        """Store an endpoint of callbacks; it replaces one of the same name."""
        await self._writer.submit(lambda at: callback_endpoints.save_endpoint(at, endpoint))

    async def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint of callbacks and cancel its pending deliveries."""
        await self._writer.submit(lambda at: callback_endpoints.delete_endpoint(at, name))

    async def list_saved(self, api_key_id: str, kind: SavedKind) -> Sequence[SavedItem]:
        """Return the items of a key, in the order of their names."""
        return await self._read(lambda at: saved_items.list_saved(at, api_key_id, kind))

    async def save_item(self, api_key_id: str, item: SavedItem, most: int) -> bool:
        """Store an item in place of the one of its name; return False if it were one too many."""
        return await self._writer.submit(lambda at: saved_items.save_item(at, api_key_id, item, most))

    async def delete_saved(self, api_key_id: str, kind: SavedKind, name: str) -> bool:
        """Delete an item; return False if there is none."""
        return await self._writer.submit(lambda at: saved_items.delete_saved(at, api_key_id, kind, name))

    # --- the outbox ------------------------------------------------------------------------

    def use_plan(self, plan: PlanDeliveries, on_added: Callable[[frozenset[str]], None]) -> None:
        """Store the deliveries of `plan` with the events that they tell of; see `Outbox.use_plan`."""
        self._plan_deliveries, self._on_deliveries = plan, on_added

    def use_pause_plan(self, plan: PlanPauseDeliveries) -> None:
        """Store the deliveries of `plan` with each schedule that pauses itself; see `Outbox.use_pause_plan`."""
        self.schedules.use_pause_plan(plan, self._report_circuits)

    def _report_circuits(self, circuits: frozenset[str]) -> None:
        self._on_deliveries(circuits)

    def _new_hook(self) -> outbox.OutboxHook | None:
        return (
            None if self._plan_deliveries is None else outbox.OutboxHook(self._plan_deliveries, self._clock)
        )

    def _report_added(self, hook: outbox.OutboxHook | None) -> None:
        if hook is not None and hook.circuits:
            self._on_deliveries(hook.circuits)

    async def count_waiting(self) -> Mapping[str, int]:
        """Return the number of pending deliveries of each circuit that has any."""
        return await self._read_alone(outbox.count_waiting)

    async def list_due(
        self, circuit: str, now: datetime, limit: int
    ) -> tuple[Sequence[Delivery], datetime | None]:
        """Return the due deliveries of a circuit, and the time at which the next of the others is due."""
        return await self._read(lambda at: outbox.list_due(at, circuit, now, limit))

    async def claim(self, delivery: Delivery, now: datetime, until: datetime) -> bool:
        """Let no other node send a delivery before `until`; see `ports.Outbox.claim`."""
        return await self._writer.submit(lambda at: outbox.claim(at, delivery, now, until))

    async def save_attempt(self, delivery: Delivery, result: AttemptResult) -> None:
        """Store the result of an attempt, after an outage if need be."""
        await self._writer.submit(lambda at: outbox.save_attempt(at, delivery, result), events=1, hold=True)

    async def postpone(self, delivery: Delivery, due_at: datetime) -> None:
        """Make a pending delivery due at another time, after an outage if need be."""
        await self._writer.submit(lambda at: outbox.postpone(at, delivery, due_at), events=1, hold=True)

    async def list_deliveries(
        self, delivery_filter: DeliveryFilter, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """Return a page of deliveries, newest first."""
        return await self._read(
            lambda at: outbox.list_deliveries(at, delivery_filter, limit, cursor), self._readers.query
        )

    async def get_delivery(self, delivery_id: str) -> Delivery | None:
        """Return a delivery, or `None`."""
        return await self._read(lambda at: outbox.get_delivery(at, delivery_id))

    async def replay(self, delivery_id: str, now: datetime) -> Delivery | None:
        """Make a delivery due now and return it; `None` if it does not exist."""
        delivery = await self._writer.submit(lambda at: outbox.replay(at, delivery_id, now))
        if delivery is not None:
            self._on_deliveries(frozenset({delivery.circuit}))
        return delivery

    async def check(self) -> None:
        """Return if the store can be used. Raise `StoreError` if it cannot be read, or if an outage lasts."""
        if self.outage is not None:
            raise unavailable(self.outage)
        await self._read_alone(reads.check_readable)

    async def close(self) -> None:
        """Commit pending writes and close the database. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._writer.close()
        finally:
            await asyncio.to_thread(self._dispose)

    def _dispose(self) -> None:
        self._readers.close()
        self._read_engine.dispose()
        self._write_engine.dispose()
        self._on_close()

    async def _read_alone(self, read: Callable[[Connection], T]) -> T:
        """Run a read that is one statement, or begins with one that mostly finds nothing."""
        return await self._read(read, self._readers.read_alone)

    async def _read(
        self,
        read: Callable[[Connection], T],
        run: Callable[[Callable[[Connection], T]], Awaitable[T]] | None = None,
    ) -> T:
        if self._closed:
            raise StoreError("The store is closed.")
        try:
            return await (run or self._readers.read)(read)
        except StoreUnavailable:
            self._failed_reads += 1
            raise


async def open_store(
    url: str,
    *,
    clock: Callable[[], datetime] = utc_now,
    linger_seconds: float = LINGER_SECONDS,
    on_commit: Callable[[int, float], None] = lambda _operations, _seconds: None,
    node: str = DEFAULT_NODE,
) -> SqlStore:
    """Return the store at a URL such as `sqlite:////var/lib/steadyhand/steadyhand.db`; create or migrate it if needed.

    `clock` returns the time of use of an idempotency key. `linger_seconds` is the time for which events may wait to
    share a commit. `on_commit` is called in the writer's thread after each commit, with its operations and seconds.
    A database of Postgres has an address such as `postgresql://user@host/name`; it has to exist. Several services may
    use it, each with a name of its own, `node`. Raise `ConfigError` for an unsupported URL, `StoreError` if the
    database cannot be used, and `DatabaseBusy` if another service uses it, with Postgres under the same name.
    """
    write_engine, read_engine, partition_upkeep, release = await asyncio.to_thread(_open_engines, url, node)
    return SqlStore(
        write_engine,
        read_engine,
        clock=clock,
        linger_seconds=linger_seconds,
        on_commit=on_commit,
        on_close=release,
        node=node if is_postgres_url(url) else None,
        partition_upkeep=partition_upkeep,
    )


def _open_engines(
    url: str, node: str
) -> tuple[Engine, Engine, Callable[[], bool] | None, Callable[[], None]]:
    """Return the engines for writes and for reads, the upkeep that Postgres needs, and the end of all."""
    if not is_postgres_url(url):
        return *open_sqlite_engines(parse_sqlite_url(url)), None, lambda: None
    require_psycopg()
    from steadyhand.store.postgres.engines import open_postgres_engines  # noqa: PLC0415  # it needs an extra
    from steadyhand.store.postgres.partition_upkeep import PartitionUpkeep  # noqa: PLC0415

    write_engine, read_engine, lock = open_postgres_engines(url, node)
    partitions = PartitionUpkeep(write_engine)

    def close() -> None:
        partitions.close()
        lock.release()

    return write_engine, read_engine, partitions.run, close
