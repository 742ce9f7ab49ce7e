"""The transactions of one node: what its queue asks for at the same time shares one."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
from psycopg import AsyncConnection, Error, InterfaceError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout
from psycopg.rows import dict_row

from steadyhand.errors import StoreError, StoreUnavailable
from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.place import Place
from steadyhand.queue.procrastinate.places import (
    EngineJobs,
    PlacesTransaction,
    read_all,
    read_change,
    read_some,
    turn,
)

CONNECT_SECONDS = 2
"""The time to connect, and to close a connection."""

TURN_SECONDS = 20.0
"""The time after which a transaction counts as one of a broken connection, and is run again."""

_RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _PlacesOperation:
    run: Callable[[PlacesTransaction], Awaitable[Any]]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    read: Callable[[Connection], Awaitable[Any]]
    future: asyncio.Future[Any]


_LOST_CONNECTION = (OperationalError, InterfaceError, IdleInTransactionSessionTimeout)
"""The last one is of a transaction in which this node was frozen: the server has ended its session."""


class Turns:
    """Runs operations in transactions, in their order, each with all that wait by then.

    `finish_turn` is called at the end of each transaction, and `on_changes` after its commit. An outage of the database
    is waited for: each operation names its run number, so that a repeat changes nothing.
    """

    def __init__(
        self,
        url: str,
        engine: EngineJobs,
        *,
        finish_turn: Callable[[PlacesTransaction], Awaitable[None]],
        on_changes: Callable[[int | None, Mapping[str, Place | None]], None],
        on_all: Callable[[int, Sequence[Place]], None],
        is_behind: Callable[[int], bool],
        dead_seconds: float,
    ) -> None:
        self._is_behind = is_behind
        self._on_all = on_all
        self._dead_seconds = dead_seconds
        self._stale: dict[int, Collection[str]] = {}
        self._all_stale = False
        self._url = url
        self._connection: Connection | None = None
        self._engine = engine
        self._finish_turn = finish_turn
        self._on_changes = on_changes
        self._waiting: list[_PlacesOperation] = []
        self._in_turn: Sequence[_PlacesOperation] = ()
        self._looks: list[_Look] = []
        self._asked = asyncio.Event()
        self._due = False
        self._closed = False
        self._log = structlog.get_logger("steadyhand.queue")

    def submit(self, operation: Callable[[PlacesTransaction], Awaitable[T]]) -> asyncio.Future[T]:
        """Run an operation in a transaction and return a future that resolves after its commit."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(StoreUnavailable("The queue is closed."))
            future.exception()  # not everybody waits for it
            return future
        self._waiting.append(_PlacesOperation(operation, future))
        self.ask()
        return future

    async def look(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        """Return what a statement reads, between two transactions, without one of its own.

        Equal reads that have not begun are one.
        """
        if self._closed:
            raise StoreUnavailable("The queue is closed.")
        # The first one may have begun, so it may not see what its later callers have seen.
        look = next((each for each in self._looks[1:] if each.read is read), None)
        if look is None:
            look = _Look(read, asyncio.get_running_loop().create_future())
            self._looks.append(look)
            self._asked.set()
        result: T = await asyncio.shield(look.future)
        return result

    def ask(self) -> None:
        """Run a transaction soon, for what changed outside of it."""
        self._due = True
        self._asked.set()

    def refresh(self, job_ids: Collection[str] | None = None, change: int = 0) -> None:
        """Read these places soon, those of another node's change; or all, if any change was missed."""
        if job_ids is None:
            self._all_stale = True
        else:
            self._stale[change] = job_ids
        self._asked.set()

    async def run(self) -> None:
        """Run transactions until the task is cancelled."""
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                if self._stale or self._all_stale:
                    await self._until_it_works(self._refresh)
                if self._due:
                    self._due = False
                    self._in_turn, self._waiting = self._waiting, []
                    await self._run_until_committed(self._in_turn)
                    self._in_turn = ()
                if self._looks:
                    await self._until_it_works(self._look)
        finally:
            self._closed = True
            await self._disconnect()
            waiting = [each.future for each in (*self._in_turn, *self._waiting)]
            for future in (*waiting, *(look.future for look in self._looks)):
                future.cancel()

    async def _run_until_committed(self, operations: Sequence[_PlacesOperation]) -> None:
        try:
            results = await self._until_it_works(partial(self._run_once, operations))
        except Error as error:
            self._log.exception("queue.turn_failed")
            for operation in operations:
                if not operation.future.done():
                    operation.future.set_exception(StoreError(f"The queue cannot be changed: {error}"))
                    operation.future.exception()  # not everybody waits for it
            return
        for operation, result in zip(operations, results, strict=True):
            if not operation.future.done():
                operation.future.set_result(result)

    async def _until_it_works(self, attempt: Callable[[Connection], Awaitable[T]]) -> T:
        """Repeat this until the database answers."""
        pauses = iter(_RETRY_SECONDS)
        is_first = True
        while True:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    if self._connection is None:
                        self._connection = await connect(self._url, autocommit=True)
                    return await attempt(self._connection)
            except (*_LOST_CONNECTION, TimeoutError) as error:
                if is_first:
                    self._log.warning("queue.outage", error=str(error))
            is_first = False
            await self._disconnect()
            await asyncio.sleep(next(pauses, _RETRY_SECONDS[-1]))

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Error, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.close()

    async def _refresh(self, connection: Connection) -> None:
        """Read what others changed, between two transactions of this node: so it is never older than one."""
        stale = dict(self._stale)
        if self._all_stale and self._is_behind(await read_change(connection)):
            async with connection.transaction():
                change, everything = await read_all(connection)
            self._on_all(change, everything)
        elif stale:
            job_ids = {job_id for names in stale.values() for job_id in names}
            places = {place.job_id: place for place in await read_some(connection, job_ids)}
            for number, names in stale.items():
                self._on_changes(number, {job_id: places.get(job_id) for job_id in names})
        for number in stale:
            self._stale.pop(number)
        self._all_stale = False

    async def _look(self, connection: Connection) -> None:
        while self._looks:
            look = self._looks[0]
            try:
                result = await look.read(connection)
            except _LOST_CONNECTION:
                raise
            except Error as error:
                if not look.future.done():
                    look.future.set_exception(StoreError(f"The queue cannot be read: {error}"))
                    look.future.exception()  # its caller may have given up
            else:
                if not look.future.done():
                    look.future.set_result(result)
            self._looks.pop(0)

    async def _run_once(
        self, operations: Sequence[_PlacesOperation], connection: Connection
    ) -> Sequence[Any]:
        async with turn(connection, self._engine, dead_seconds=self._dead_seconds) as it:
            results = [await operation.run(it) for operation in operations]
            await self._finish_turn(it)
            places = {place.job_id: place for place in await it.read(it.touched)}
        if it.touched:
            self._on_changes(it.change, {job_id: places.get(job_id) for job_id in it.touched})
        return results


async def connect(url: str, *, autocommit: bool = False) -> Connection:
    """Return a new connection whose rows are dicts."""
    return await AsyncConnection.connect(
        url,
        autocommit=autocommit,
        row_factory=dict_row,
        connect_timeout=CONNECT_SECONDS,
        prepare_threshold=None,  # PgBouncer may stand between
    )
