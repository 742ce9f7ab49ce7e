"""The store over SQLAlchemy Core: SQLite in WAL mode, one writer thread, a few threads that read.

A read is one hop to a thread and back; a write is one hop for a whole batch. Nothing here blocks the event loop.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from steadyhand.errors import ConfigError, StoreError
from steadyhand.events import Draft, Event
from steadyhand.job import Job, State
from steadyhand.ports import Added, ApiKey, Call, Filter, Idempotency, Page, RunOutput, UsageQuery, UsageRow
from steadyhand.store import reads, usage_sums, writes
from steadyhand.store.migrate import migrate
from steadyhand.store.writer import ANSWER_SECONDS, LINGER_SECONDS, Writer

BUSY_MILLISECONDS = 5000
"""How long SQLite waits for another process (a backup, a shell) to let go of the file."""

_READERS = 3

T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


class SqlStore:
    """`ports.Store` and `ports.Ledger` on SQLite; it belongs to the event loop that `open_store` made it in."""

    def __init__(
        self,
        writing: Engine,
        reading: Engine,
        *,
        clock: Callable[[], datetime],
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._clock = clock
        self._writer = Writer(writing, linger_seconds=linger_seconds)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._closed = False

    def add(
        self, job: Job, drafts: Sequence[Draft], idempotency: Idempotency | None = None
    ) -> asyncio.Future[Added]:
        """Keep a new job with its first events; see `ports.Store.add`."""
        if idempotency is None:
            return self._writer.do_joined(writes.add_jobs, (job, drafts))
        now = self._clock()
        return self._writer.do(lambda at: writes.add_job(at, job, drafts, idempotency, now))

    async def replay(self, api_key_id: str, idempotency: Idempotency) -> Job | None:
        """Give the job that this key already made."""
        now = self._clock()
        return await self._read(lambda at: reads.replayed_job(at, api_key_id, idempotency, now))

    async def get(self, job_id: str) -> Job | None:
        """Give a job with its runs, or null."""
        return await self._read(lambda at: reads.job(at, job_id))

    async def page(self, which: Filter, limit: int, cursor: str | None = None) -> Page:
        """List jobs in brief, newest first."""
        return await self._read(lambda at: reads.page(at, which, limit, cursor))

    async def change(
        self,
        job_id: str,
        expected: frozenset[State],
        update: Callable[[Job], Job],
        drafts: Sequence[Draft] = (),
    ) -> tuple[Job, Sequence[Event]]:
        """Replace a job and append events, if its state is one of `expected`."""
        return await self._writer.do(lambda at: writes.change_job(at, job_id, expected, update, drafts))

    async def append(self, job_id: str, drafts: Sequence[Draft]) -> Sequence[Event]:
        """Number and keep events. Raises `NotFound` when the job is gone."""
        return await self._writer.do(lambda at: writes.append_events(at, job_id, drafts), events=len(drafts))

    async def events(self, job_id: str, after: int = 0, limit: int = 500) -> Sequence[Event]:
        """Give the events numbered above `after`, in order."""
        return await self._read(lambda at: reads.job_events(at, job_id, after, limit))

    async def keep_output(self, job_id: str, run: int, output: RunOutput) -> None:
        """Keep what a run printed. Raises `NotFound` when the job is gone."""
        await self._writer.do(lambda at: writes.keep_output(at, job_id, run, output))

    async def output(self, job_id: str) -> RunOutput | None:
        """Give what the newest run with any output printed."""
        return await self._read(lambda at: reads.newest_output(at, job_id))

    async def in_states(self, states: frozenset[State]) -> Sequence[Job]:
        """Give every job in these states, in the order of acceptance."""
        return await self._read(lambda at: reads.jobs_in(at, states))

    async def ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """Give ids of jobs that ended before `moment`, oldest first."""
        return await self._read(lambda at: reads.ended_before(at, moment, limit))

    async def delete(self, job_id: str) -> bool:
        """Forget an ended job and all that the store has of it."""
        return await self._writer.do(lambda at: writes.delete_job(at, job_id))

    async def keys(self) -> Sequence[ApiKey]:
        """Give the keys that are kept, oldest first."""
        return await self._read(reads.all_keys)

    async def keep_key(self, key: ApiKey) -> None:
        """Keep a key; one with the same id is replaced."""
        await self._writer.do(lambda at: writes.keep_key(at, key))

    async def keep_call(self, call: Call) -> None:
        """Keep a call of a model; it shares its commit with what comes within a few milliseconds."""
        await self._writer.do_joined(writes.keep_calls, call, events=1)

    async def settle_open(self) -> int:
        """Settle what an earlier life left open; give how many."""
        return await self._writer.do(writes.settle_open)

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Add up settled calls, a row for each group."""
        return await self._read(lambda at: usage_sums.usage(at, query))

    async def check(self) -> None:
        """Answer when the store can be read."""
        await self._read(reads.probe)

    async def close(self) -> None:
        """Commit what waits and let go of the database; harmless when done twice."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._writer.close()
        finally:
            await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._readers.shutdown()
        self._reading.dispose()
        self._writing.dispose()

    async def _read(self, read: Callable[[Connection], T]) -> T:
        if self._closed:
            raise StoreError("The store is closed.")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await loop.run_in_executor(self._readers, _in_transaction, self._reading, read)
        except TimeoutError as error:
            raise StoreError(f"The store did not answer within {ANSWER_SECONDS:.0f} s.") from error


def _in_transaction(engine: Engine, read: Callable[[Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return read(connection)
    except SQLAlchemyError as error:
        raise StoreError(f"The store could not be read: {type(error).__name__}.") from error


async def open_store(
    url: str, *, clock: Callable[[], datetime] = _now, linger_seconds: float = LINGER_SECONDS
) -> SqlStore:
    """Open the database at a URL such as `sqlite:////var/lib/steadyhand/steadyhand.db`, made or migrated if need be.

    `clock` tells when an idempotency key was used; `linger_seconds` is how long events may wait to share a commit.
    Raises `ConfigError` for a URL that is none of ours and `StoreError` when the database cannot be used.
    """
    place = database_url(url)
    writing, reading = await asyncio.to_thread(_open, place)
    return SqlStore(writing, reading, clock=clock, linger_seconds=linger_seconds)


def database_url(url: str) -> URL:
    """Read a database URL. Raises `ConfigError` unless it names a SQLite file."""
    try:
        place = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database_url is not a URL; try sqlite:////path/to/steadyhand.db") from error
    if place.get_backend_name() != "sqlite":
        raise ConfigError(f"database_url: {place.get_backend_name()} is not built yet; only sqlite is.")
    if place.database in (None, "", ":memory:"):
        raise ConfigError("database_url: a store must outlive the process; name a file.")
    return place


def _open(place: URL) -> tuple[Engine, Engine]:
    try:
        _make_file(Path(str(place.database)))
        writing = sqlite_engine(place, connections=1, begin="BEGIN IMMEDIATE")
        with writing.begin() as connection:
            migrate(connection)
        reading = sqlite_engine(place, connections=_READERS, begin="BEGIN", read_only=True)
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"The database cannot be opened: {error}") from error
    return writing, reading


def _make_file(path: Path) -> None:
    """Make the file readable for the service alone, as SQLite will make those that go with it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def sqlite_engine(place: URL, *, connections: int, begin: str, read_only: bool = False) -> Engine:
    """Give an engine whose transactions start with `begin` and whose commits are on the disk when they return."""
    engine = create_engine(
        place, pool_size=connections, max_overflow=0, connect_args={"isolation_level": None}
    )
    event.listen(engine, "connect", partial(_prepare, read_only=read_only))
    # The driver would begin by itself, too late for reads and without IMMEDIATE; so it is told not to.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _prepare(connection: Any, _record: Any, *, read_only: bool) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA query_only = {int(read_only)}")
    cursor.close()
