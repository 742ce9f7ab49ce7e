"""Threads that read. A query of unknown length never stands before a short one.

Reads of one job have threads of their own. A list or a sum runs on others, where it has a tenth of a second. If that
is not enough, it is interrupted and runs again on a thread for long queries, up to the time limit of all queries.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from steadyhand.errors import QueryTooSlow, StoreError, StoreUnavailable
from steadyhand.read_patience import read_patience
from steadyhand.store.driver import (
    HAS_TIMEOUT,
    POSTGRES,
    NeedsTransaction,
    alone,
    execute,
    is_database_error,
)
from steadyhand.store.outage import is_interrupted, outage_reason, unavailable
from steadyhand.store.writer import COMMIT_TIMEOUT_SECONDS

READER_THREADS = 3
QUERY_THREADS = 2
SHORT_SECONDS = 0.1
"""The time of a query before it is moved out of the way of others."""
QUERY_SECONDS = 2.0
"""The time of a query, from its begin on the thread for long ones."""
MAX_LONG_QUERIES = 4
"""The long queries that may run or wait; further ones are refused."""
CONNECTIONS = READER_THREADS + QUERY_THREADS + 1

_CHECK_INTERVAL = 10_000
"""Instructions of SQLite between two looks at the clock: well below a millisecond."""

_ADVICE = "Filter by more, or by a shorter time."

_LIMIT = "steadyhand.limit"

T = TypeVar("T")
Read = Callable[[Connection], T]


@dataclass(frozen=True, slots=True)
class _Limit:
    """A time of the monotonic clock at which a query is interrupted."""

    deadline: float

    def is_over(self) -> int:
        """Return 1 to interrupt the query; SQLite calls this."""
        return int(time.monotonic() > self.deadline)


class OutOfTime(Exception):
    """A query that was interrupted at its limit."""


class Readers:
    """The threads that read from one engine, which has at least `CONNECTIONS` connections."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._short_reads = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="store-reader")
        self._queries = ThreadPoolExecutor(QUERY_THREADS, thread_name_prefix="store-query")
        self._long_queries = ThreadPoolExecutor(1, thread_name_prefix="store-long-query")
        self._waiting_long = 0
        self._answered_at = -math.inf

    async def read(self, read: Read[T]) -> T:
        """Run a read that takes about the same time however much is stored. It has no limit of its own."""
        return await self._run(self._short_reads, _read_in_transaction, read, None)

    async def read_alone(self, read: Read[T]) -> T:
        """Run a read that is one statement, or begins with one that mostly finds nothing.

        On Postgres this statement is a transaction by itself. If another one follows, all of it runs again in one.
        """
        return await self._run(self._short_reads, _read_alone, read, None)

    async def query(self, read: Read[T]) -> T:
        """Run a query of unknown length. Raise `QueryTooSlow` if it exceeds its time, or if too many such ones wait."""
        try:
            return await self._run(self._queries, _read_in_transaction, read, SHORT_SECONDS)
        except OutOfTime:
            if self._waiting_long >= MAX_LONG_QUERIES:
                raise QueryTooSlow(
                    f"{MAX_LONG_QUERIES} long queries are running already. {_ADVICE}"
                ) from None
        self._waiting_long += 1
        try:
            return await self._run(self._long_queries, _read_in_transaction, read, QUERY_SECONDS)
        except OutOfTime:
            raise QueryTooSlow(f"The query took longer than {QUERY_SECONDS:g} s. {_ADVICE}") from None
        finally:
            self._waiting_long -= 1

    def close(self) -> None:
        """Wait for the reads that run, and end the threads. Blocks."""
        for threads in (self._short_reads, self._queries, self._long_queries):
            threads.shutdown()

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        run: Callable[[Engine, Read[T], float | None], T],
        read: Read[T],
        seconds: float | None,
    ) -> T:
        loop = asyncio.get_running_loop()
        answer = loop.run_in_executor(threads, _translated, run, self._engine, read, seconds)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                patience = read_patience() if self._engine.dialect.name == POSTGRES else None
                if patience is not None:
                    await self._wait_while_server_answers(answer, patience)
                result = await answer
        except OutOfTime:
            self._answered_at = loop.time()
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The store did not answer within {COMMIT_TIMEOUT_SECONDS:.0f} s."
            ) from error
        finally:
            answer.cancel()  # one that no thread has begun is not needed any more
        self._answered_at = loop.time()
        return result

    async def _wait_while_server_answers(self, answer: asyncio.Future[T], seconds: float) -> None:
        """Wait for a read. Raise `StoreUnavailable` if the server answers nothing at all for so long.

        A server that is frozen refuses no connection and ends no statement. One that is busy answers other reads.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not answer.done():
            left = max(began, self._answered_at) + seconds - loop.time()
            if left <= 0:
                raise unavailable("the database does not answer", verb="read")
            await asyncio.wait((answer,), timeout=left)


def _read_in_transaction(engine: Engine, read: Read[T], seconds: float | None) -> T:
    with engine.begin() as connection:
        return read(connection) if seconds is None else _read_within(connection, read, seconds)


def _read_alone(engine: Engine, read: Read[T], seconds: float | None) -> T:
    if engine.dialect.name == POSTGRES:
        with engine.connect() as connection, suppress(NeedsTransaction):
            if not connection.info.get(HAS_TIMEOUT):
                with alone(connection):
                    return read(connection)
    return _read_in_transaction(engine, read, seconds)


def _translated(
    run: Callable[[Engine, Read[T], float | None], T], engine: Engine, read: Read[T], seconds: float | None
) -> T:
    """Run a read, and raise its error as one of the store."""
    try:
        return run(engine, read, seconds)
    except Exception as error:  # of a driver that is not imported here; others are raised again
        if isinstance(error, StoreError) or not (is_database_error(error) or outage_reason(error)):
            raise
        is_late = is_interrupted(error)
        if is_late and seconds is not None:
            raise OutOfTime from error
        reason = "the server ended a statement" if is_late else outage_reason(error)
        if reason is not None:
            raise unavailable(reason, error, verb="read") from error
        raise StoreError(f"The store could not be read: {type(error).__name__}.") from error


def _read_within(connection: Connection, read: Read[T], seconds: float) -> T:
    limit = _Limit(time.monotonic() + seconds)
    if connection.dialect.name == POSTGRES:
        # For the rest of the transaction; the server counts the time of each statement by itself.
        execute(connection, f"SET LOCAL statement_timeout = {max(1, round(seconds * 1000)):d}")
        connection.info[_LIMIT] = limit
        try:
            return read(connection)
        finally:
            del connection.info[_LIMIT]
    driver: Any = connection.connection.dbapi_connection
    driver.set_progress_handler(limit.is_over, _CHECK_INTERVAL)
    connection.info[_LIMIT] = limit
    try:
        return read(connection)
    finally:
        driver.set_progress_handler(None, 0)
        del connection.info[_LIMIT]


def check_time(connection: Connection) -> None:
    """Interrupt a query at its limit. A query of many short statements calls it: SQLite looks only in a long one."""
    limit: _Limit | None = connection.info.get(_LIMIT)
    if limit is not None and limit.is_over():
        raise OutOfTime
