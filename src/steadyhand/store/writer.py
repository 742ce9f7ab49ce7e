"""The one writer thread. It runs all waiting operations as a batch, commits once, and resolves their futures.

An operation is a function of a connection. Operations run in the order of their submission. An urgent operation is
committed at once, together with all that wait. Events alone wait for others if the last commit was just now, so that
a lone event is durable at once and a flood needs a bounded number of commits. If one operation of a batch fails, the
batch is rolled back and run again with a savepoint around each operation, so that only that one fails. Adjacent
operations of one kind may run as one: each statement costs a change of thread, which is most of its cost.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from steadyhand.errors import SteadyhandError, StoreError

LINGER_SECONDS = 0.02
"""The least time between commits of events alone; well below the 50 ms that a follower may lag."""

MAX_LINGERING_EVENTS = 64
"""The number of waiting events that starts a commit."""

COMMIT_TIMEOUT_SECONDS = 60.0
"""The time that a method waits for its commit before it raises `StoreError`."""

_CLOSE_TIMEOUT_SECONDS = 30.0

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item
GroupedOperation = Callable[[Connection, Sequence[I]], Sequence[T]]
"""Runs many operations of one kind: maps their items to their results, in the same order."""


@dataclass(slots=True, eq=False)
class _Operation:
    run: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    group: GroupedOperation[Any, Any] | None = None
    item: Any = None
    timeout_handle: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class _OperationResult:
    operation: _Operation
    value: Any = None
    error: Exception | None = None

    def deliver(self) -> None:
        future = self.operation.future
        if future.done():  # its caller has stopped waiting
            return
        if self.error is None:
            future.set_result(self.value)
        else:
            future.set_exception(self.error)


class BatchWriter:
    """Runs operations on one connection of `engine`, for callers on the event loop that created it."""

    def __init__(self, engine: Engine, *, linger_seconds: float = LINGER_SECONDS) -> None:
        self._engine = engine
        self._linger = linger_seconds
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._waiting: list[_Operation] = []
        self._committed_at = -math.inf
        self._events = 0
        self._urgent = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Callable[[Connection], T], *, events: int | None = None) -> asyncio.Future[T]:
        """Run an operation in a transaction and return a future that resolves when it is durable.

        `events` is the number of events that it appends if it may wait for others; `None` is urgent. An error of
        `steadyhand.errors` is raised as it is, any other as `StoreError`.
        """
        return self._enqueue(_Operation(operation, self._loop.create_future()), events)

    def submit_grouped(
        self, group: GroupedOperation[I, T], item: I, *, events: int | None = None
    ) -> asyncio.Future[T]:
        """Run an operation as `submit` does, but together with adjacent operations of the same `group`."""
        operation = _Operation(lambda at: group(at, (item,))[0], self._loop.create_future(), group, item)
        return self._enqueue(operation, events)

    def _enqueue(self, operation: _Operation, events: int | None) -> asyncio.Future[Any]:
        with self._condition:
            if self._closing:
                operation.future.set_exception(StoreError("The store is closed."))
                return operation.future
            was_due = self._is_due()
            first = not self._waiting
            self._waiting.append(operation)
            if first:
                # One timer bounds the wait of the whole batch; a timer for each operation costs more than an insert.
                operation.timeout_handle = self._loop.call_later(
                    COMMIT_TIMEOUT_SECONDS, _fail_with_timeout, self._waiting
                )
            self._events += events or 0
            self._urgent = self._urgent or events is None
            if first or (self._is_due() and not was_due):
                # Not at once: the thread would take this one alone and contend with the loop for the interpreter,
                # while other operations of this round of the loop are about to follow and can share the commit.
                self._loop.call_soon(self._notify)
        return operation.future

    def _notify(self) -> None:
        with self._condition:
            self._condition.notify()

    def _is_due(self) -> bool:
        return self._urgent or self._closing or self._events >= MAX_LINGERING_EVENTS

    async def close(self) -> None:
        """Commit pending operations and end the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            raise StoreError("The store did not finish its last commit.")

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            # Nobody waits for operations that timed out before their turn, so they do not run.
            results = self._commit([each for each in batch if not each.future.cancelled()])
            self._committed_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(_deliver_results, results, batch[0].timeout_handle)
            except RuntimeError:  # the loop is closed and nobody waits any more
                return

    def _next_batch(self) -> list[_Operation] | None:
        """Wait until a batch is due and return it; `None` if the store is closed and no operation waits."""
        with self._condition:
            while not self._waiting:
                if self._closing:
                    return None
                self._condition.wait()
            while not self._is_due():
                seconds_left = self._committed_at + self._linger - time.monotonic()
                if seconds_left <= 0:
                    break
                self._condition.wait(seconds_left)
            batch, self._waiting = self._waiting, []
            self._events, self._urgent = 0, False
        return batch

    def _commit(self, batch: Sequence[_Operation]) -> list[_OperationResult]:
        if not batch:
            return []
        try:
            with self._engine.begin() as connection:
                return [
                    result
                    for group_function, operations in groupby(batch, key=attrgetter("group"))
                    for result in _run_grouped(connection, group_function, list(operations))
                ]
        except Exception:  # noqa: BLE001  # the separate commits below raise it again for its operation
            return self._commit_separately(batch)

    def _commit_separately(self, batch: Sequence[_Operation]) -> list[_OperationResult]:
        try:
            with self._engine.begin() as connection:
                return [_run_in_savepoint(connection, operation) for operation in batch]
        except Exception as error:  # noqa: BLE001  # the boundary of the thread: every caller gets it
            return [_OperationResult(operation, error=_as_store_error(error)) for operation in batch]


def _run_grouped(
    connection: Connection,
    group_function: GroupedOperation[Any, Any] | None,
    operations: Sequence[_Operation],
) -> list[_OperationResult]:
    if group_function is None:
        return [_OperationResult(operation, operation.run(connection)) for operation in operations]
    values = group_function(connection, [operation.item for operation in operations])
    return [_OperationResult(operation, value) for operation, value in zip(operations, values, strict=True)]


def _run_in_savepoint(connection: Connection, operation: _Operation) -> _OperationResult:
    """Run one operation in a savepoint. Raise only if the transaction itself is lost."""
    try:
        with connection.begin_nested():
            return _OperationResult(operation, operation.run(connection))
    except (IntegrityError, DataError) as error:
        return _OperationResult(operation, error=_as_store_error(error))
    except DBAPIError:
        # A full disk or an input error rolls everything back in SQLite: no operation may report success.
        raise
    except Exception as error:  # noqa: BLE001  # the caller of this operation gets it
        return _OperationResult(operation, error=_as_store_error(error))


def _deliver_results(results: Sequence[_OperationResult], timeout_handle: asyncio.TimerHandle | None) -> None:
    if timeout_handle is not None:
        timeout_handle.cancel()
    for answer in results:
        answer.deliver()


def _fail_with_timeout(batch: Sequence[_Operation]) -> None:
    error = StoreError(f"The store did not answer within {COMMIT_TIMEOUT_SECONDS:.0f} s.")
    for operation in batch:
        _OperationResult(operation, error=error).deliver()


def _as_store_error(error: Exception) -> Exception:
    if isinstance(error, SteadyhandError):
        return error
    store_error = StoreError(f"The store could not write this: {type(error).__name__}.")
    store_error.__cause__ = error
    return store_error
