"""The store on SQLAlchemy Core: SQLite in WAL mode, one writer thread and a few reader threads.

A read is one call in a thread; a whole batch of writes is one call. Nothing here blocks the event loop.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from steadyhand.clock import utc_now
from steadyhand.errors import ConfigError, StoreError, StoreUnavailable
from steadyhand.events import Event, EventDraft
from steadyhand.job import Job, State
from steadyhand.ports import (
    AddResult,
    ApiKey,
    IdempotencyKey,
    JobFilter,
    JobPage,
    ModelCall,
    RunOutput,
    UsageQuery,
    UsageRow,
)
from steadyhand.store import reads, upkeep, usage_sums, writes
from steadyhand.store.migrate import migrate
from steadyhand.store.outage import unavailable
from steadyhand.store.readers import CONNECTIONS, Readers
from steadyhand.store.writer import LINGER_SECONDS, BatchWriter

BUSY_TIMEOUT_MS = 5000
"""The time that SQLite waits for the file lock of another process, such as a backup or a shell."""

OPTIMIZE_SECONDS = 3600.0
"""The time between two refreshes of the statistics; the first one is that long after the start."""

T = TypeVar("T")


class SqlStore:
    """`ports.Store` and `ports.Ledger` on SQLite. It belongs to the event loop in which `open_store` created it."""

    def __init__(
        self,
        write_engine: Engine,
        read_engine: Engine,
        *,
        clock: Callable[[], datetime],
        linger_seconds: float = LINGER_SECONDS,
        writer: BatchWriter | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write_engine = write_engine
        self._read_engine = read_engine
        self._clock = clock
        self._writer = writer or BatchWriter(write_engine, linger_seconds=linger_seconds)
        self._failed_reads = 0
        self._readers = Readers(read_engine)
        self._closed = False
        self._has_older_jobs = True
        self._monotonic = monotonic
        self._optimized_at = monotonic()

    @property
    def outage(self) -> str | None:
        """The reason why nothing can be written now, or None."""
        return self._writer.outage

    @property
    def failures(self) -> int:
        """The number of outages so far, with the reads that failed."""
        return self._writer.outages + self._failed_reads

    def add(
        self, job: Job, drafts: Sequence[EventDraft], idempotency: IdempotencyKey | None = None
    ) -> asyncio.Future[AddResult]:
        """Store a new job with its first events; see `ports.Store.add`."""
        if idempotency is None:
            return self._writer.submit_grouped(writes.add_jobs, (job, drafts))
        now = self._clock()
        return self._writer.submit(lambda at: writes.add_job(at, job, drafts, idempotency, now))

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
        return await self._read(lambda at: reads.list_jobs(at, which, limit, cursor), run)

    async def update_job(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[EventDraft] = (),
        *,
        hold: bool = False,
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job and append events, if its state is one of `expected`."""
        return await self._writer.submit(
            lambda at: writes.update_job(at, job_id, expected, update, drafts), hold=hold
        )

    async def append_events(
        self, job_id: str, drafts: Sequence[EventDraft], *, hold: bool = False
    ) -> Sequence[Event]:
        """Store events with their numbers. Raise `NotFound` if the job does not exist."""
        return await self._writer.submit(
            lambda at: writes.append_events(at, job_id, drafts), events=len(drafts), hold=hold
        )

    async def list_events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Return the events with numbers above `after`, in order."""
        return await self._read(lambda at: reads.list_events(at, job_id, after, limit))

    async def save_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Store the output of a run, after an outage if need be. Raise `NotFound` if the job does not exist."""
        await self._writer.submit(lambda at: writes.save_output(at, job_id, run, output), hold=True)

    async def get_output(self, job_id: str) -> RunOutput | None:
        """Return the output of the newest run that has any."""
        return await self._read(lambda at: reads.get_output(at, job_id))

    async def list_in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Return every job in these states, in the order of acceptance."""
        return await self._read(lambda at: reads.list_in_states(at, states))

    async def list_restarted(self) -> Sequence[Job]:
        """Return the interrupted jobs that the next start queues again, in the order of acceptance."""
        return await self._read(reads.list_restarted)

    async def list_ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Return ids of jobs that ended before `moment` and that no turn needs, oldest first."""
        return await self._read(lambda at: reads.list_ended_before(at, moment, limit))

    async def list_awaited(self) -> Mapping[str, str]:
        """Return the jobs whose session a turn still needs for its start, each with the id of such a turn."""
        return await self._read(reads.list_awaited)

    async def delete(self, job_id: str) -> bool:
        """Delete an ended job with its runs, events and output, unless a turn needs its session."""
        return await self._writer.submit(lambda at: writes.delete_job(at, job_id))

    async def delete_all(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Delete those of these jobs that may be deleted; return the ids of the others."""
        return await self._writer.submit(lambda at: writes.delete_jobs(at, job_ids))

    async def maintain(self) -> bool:
        """Add older jobs to the search index, or refresh statistics; return True if there is more to do at once."""
        if self._has_older_jobs:
            self._has_older_jobs = await self._writer.submit(upkeep.index_older_jobs)
            return self._has_older_jobs
        if self._monotonic() - self._optimized_at >= OPTIMIZE_SECONDS:
            self._optimized_at = self._monotonic()
            await self._writer.submit(upkeep.optimize)
        return False

    async def list_keys(self) -> Sequence[ApiKey]:
        """Return the stored keys, oldest first."""
        return await self._read(reads.list_keys)

    async def save_key(self, key: ApiKey) -> None:
        """Store a key; it replaces one with the same id."""
        await self._writer.submit(lambda at: writes.save_key(at, key))

    async def save_call(self, call: ModelCall) -> None:
        """Store a call of a model, after an outage if need be. Calls within a few milliseconds share a commit."""
        await self._writer.submit_grouped(writes.save_calls, call, events=1, hold=True)

    async def settle_open_calls(self) -> int:
        """Settle the calls that an earlier process left open, and return their number."""
        return await self._writer.submit(writes.settle_open_calls)

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Return the sums of settled calls, one row for each group."""
        # Only a page for a caller has a limit; the service's own sums are short, and must not fail for a long one.
        run = self._readers.read if query.limit is None else self._readers.query
        return await self._read(lambda at: usage_sums.sum_usage(at, query), run)

    async def check(self) -> None:
        """Return if the store can be used. Raise `StoreError` if it cannot be read, or if an outage lasts."""
        if self.outage is not None:
            raise unavailable(self.outage)
        await self._read(reads.check_readable)

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
    url: str, *, clock: Callable[[], datetime] = utc_now, linger_seconds: float = LINGER_SECONDS
) -> SqlStore:
    """Return the store at a URL such as `sqlite:////var/lib/steadyhand/steadyhand.db`; create or migrate it if needed.

    `clock` returns the time of use of an idempotency key. `linger_seconds` is the time for which events may wait to
    share a commit. Raise `ConfigError` for an unsupported URL and `StoreError` if the database cannot be used.
    """
    parsed_url = parse_database_url(url)
    write_engine, read_engine = await asyncio.to_thread(_open_engines, parsed_url)
    return SqlStore(write_engine, read_engine, clock=clock, linger_seconds=linger_seconds)


def parse_database_url(url: str) -> URL:
    """Parse a database URL. Raise `ConfigError` unless it names a SQLite file."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database_url is not a URL; try sqlite:////path/to/steadyhand.db") from error
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(f"database_url: {parsed.get_backend_name()} is not supported; only sqlite is.")
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError("database_url: the store must be a file, because it outlives the process.")
    return parsed


def _open_engines(url: URL) -> tuple[Engine, Engine]:
    try:
        _create_private_file(Path(str(url.database)))
        write_engine = create_sqlite_engine(url, connections=1, begin="BEGIN IMMEDIATE")
        with write_engine.begin() as connection:
            migrate(connection)
        read_engine = create_sqlite_engine(url, connections=CONNECTIONS, begin="BEGIN", read_only=True)
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"The database cannot be opened: {error}") from error
    return write_engine, read_engine


def _create_private_file(path: Path) -> None:
    """Create the file with access for the service only; SQLite copies the mode to the files beside it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def create_sqlite_engine(url: URL, *, connections: int, begin: str, read_only: bool = False) -> Engine:
    """Return an engine whose transactions start with `begin` and whose commits are on disk when they return."""
    engine = create_engine(url, pool_size=connections, max_overflow=0, connect_args={"isolation_level": None})
    event.listen(engine, "connect", partial(_set_pragmas, read_only=read_only))
    # The driver would begin a transaction itself, too late for reads and without IMMEDIATE; this turns it off.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _set_pragmas(connection: Any, _record: Any, *, read_only: bool) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA query_only = {int(read_only)}")
    cursor.close()
