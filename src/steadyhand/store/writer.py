"""The one writer thread. It runs all waiting operations as a batch, commits once, and resolves their futures.

An operation is a function of a connection. Operations run in the order of their submission. An urgent operation is
committed at once, together with all that wait. Events alone wait for others if the last commit was just now, so that
a lone event is durable at once and a flood needs a bounded number of commits; `hasten` ends that wait. If one operation
of a batch fails, the batch is rolled back and run again with a savepoint around each operation, so that only that one
fails. Adjacent operations of one kind may run as one: each statement costs a change of thread, which is most of its
cost.

During an outage (`store.outage`) the thread pauses between its tries. An operation fails with `StoreUnavailable` after
one of them, or at once if the outage has lasted for a second, unless it is held: a held operation is tried again, in
its order, until the database answers. A commit that failed may have been written. So each transaction has a number
(`store.commit_marks`), and after a failed commit nothing is told or repeated before the database has said what became
of that number.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine

from steadyhand.errors import SteadyhandError, StoreError, StoreUnavailable
from steadyhand.store.changed_jobs import take_changed
from steadyhand.store.commit_marks import CommitMarks, create_marks
from steadyhand.store.driver import undoes_transaction
from steadyhand.store.outage import is_conflict, next_retry_seconds, outage_reason, unavailable

LINGER_SECONDS = 0.02
"""The least time between commits of events alone; well below the 50 ms that a follower may lag."""

MAX_LINGERING_EVENTS = 64
"""The number of waiting events that starts a commit."""

COMMIT_TIMEOUT_SECONDS = 60.0
"""The time that a method waits for its commit before it raises `StoreUnavailable`; a held one waits on."""

PATIENCE_SECONDS = 1.0
"""The age of an outage from which an operation that is not held fails at once, without a try of its own."""

_CLOSE_TIMEOUT_SECONDS = 30.0
_CONFLICT_TRIES = 3

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
    hold: bool = False


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


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A batch whose commit failed and may have been written: the database knows by its `marker`."""

    marker: int
    results: Sequence[_OperationResult]

    def includes(self, operation: _Operation) -> bool:
        return any(result.operation is operation for result in self.results)


@dataclass(frozen=True, slots=True)
class _Batch:
    operations: Sequence[_Operation]
    timer: asyncio.TimerHandle | None


class BatchWriter:
    """Runs operations on one connection of `engine`, for callers on the event loop that created it.

    `outage` is the reason why nothing can be written now, None if all is well; `outages` counts them from their begin.
    `on_commit` is called in the thread after each commit, with its operations and seconds, and `before_commit` before
    each one, with the number of its transaction and the jobs that it changes. Tests replace `clock` and `wait`, by
    which the thread pauses during an outage.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        linger_seconds: float = LINGER_SECONDS,
        on_commit: Callable[[int, float], None] = lambda _operations, _seconds: None,
        before_commit: Callable[[int, Iterable[int]], None] = lambda _marker, _changed: None,
        marks: CommitMarks | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self._engine = engine
        self._linger = linger_seconds
        self._on_commit = on_commit
        self._before_commit = before_commit
        self._clock = clock
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._waiting: list[_Operation] = []
        self._timer: asyncio.TimerHandle | None = None
        self._committed_at = -math.inf
        self._events = 0
        self._urgent = False
        self._closing = False
        self.outage: str | None = None
        self.outages = 0
        # The rest belongs to the thread.
        self._held: list[_Operation] = []
        self._doubt: _Doubt | None = None
        self._marks = marks or create_marks(engine.dialect.name)
        self._retry_seconds = 0.0
        self._try_began = self._outage_began = 0.0
        self._log = structlog.get_logger("steadyhand.store")
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Callable[[Connection], T], *, events: int | None = None, hold: bool = False
    ) -> asyncio.Future[T]:
        """Run an operation in a transaction and return a future that resolves when it is durable.

        `events` is the number of events that it appends if it may wait for others; `None` is urgent. With `hold` it
        waits for the end of an outage. An error of `steadyhand.errors` is raised as it is, any other as `StoreError`.
        """
        return self._enqueue(_Operation(operation, self._loop.create_future(), hold=hold), events)

    def submit_grouped(
        self, group: GroupedOperation[I, T], item: I, *, events: int | None = None, hold: bool = False
    ) -> asyncio.Future[T]:
        """Run an operation as `submit` does, but together with adjacent operations of the same `group`."""
        operation = _Operation(
            lambda at: group(at, (item,))[0], self._loop.create_future(), group, item, hold
        )
        return self._enqueue(operation, events)

    def _enqueue(self, operation: _Operation, events: int | None) -> asyncio.Future[Any]:
        with self._condition:
            if self._closing:
                operation.future.set_exception(StoreError("The store is closed."))
                return operation.future
            outage = self.outage
            if outage is not None and not operation.hold and self._has_lasted():
                operation.future.set_exception(unavailable(outage))
                return operation.future
            was_due = self._is_due()
            first = not self._waiting
            self._waiting.append(operation)
            if self._timer is None:
                # One timer bounds the wait of the whole batch; a timer for each operation costs more than an insert.
                self._timer = self._loop.call_later(COMMIT_TIMEOUT_SECONDS, _fail_with_timeout, self._waiting)
            self._events += events or 0
            self._urgent = self._urgent or events is None
            if first or (self._is_due() and not was_due):
                # Not at once: the thread would take this one alone and contend with the loop for the interpreter,
                # while other operations of this round of the loop are about to follow and can share the commit.
                self._loop.call_soon(self._notify)
        return operation.future

    def hasten(self) -> None:
        """Commit what waits without waiting for more: somebody waits for it now."""
        with self._condition:
            if self._waiting and not self._is_due():
                self._urgent = True
                self._loop.call_soon(self._notify)

    def _has_lasted(self) -> bool:
        """Return True if the outage is so old that it is not worth while to wait for the next try."""
        return self._clock() - self._outage_began > PATIENCE_SECONDS

    def _notify(self) -> None:
        with self._condition:
            self._condition.notify()

    def _is_due(self) -> bool:
        return self._urgent or self._closing or self._events >= MAX_LINGERING_EVENTS

    async def close(self) -> None:
        """Commit pending operations and end the thread. During an outage they are tried once more."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            raise StoreError("The store did not finish its last commit.")

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            results = self._write(batch.operations)
            if self._closing and self.outage is not None:
                results += self._give_up()
            self._committed_at = time.monotonic()
            # Of a batch in doubt the timer goes on: somebody may wait whose operation is not held.
            timer = batch.timer if self._doubt is None else None
            try:
                self._loop.call_soon_threadsafe(_deliver_results, results, timer)
            except RuntimeError:  # the loop is closed and nobody waits any more
                return

    def _next_batch(self) -> _Batch | None:
        """Wait until a batch is due and return it; `None` if the store is closed and no operation waits.

        During an outage it is due after a pause, even if it is empty.
        """
        with self._condition:
            if self.outage is not None:
                self._pause()
            else:
                self._wait_until_due()
            if self._closing and not (self._waiting or self._held or self._doubt):
                return None
            batch = _Batch(self._waiting, self._timer)
            self._waiting, self._timer = [], None
            self._events, self._urgent = 0, False
        return batch

    def _pause(self) -> None:
        self._retry_seconds = next_retry_seconds(self._retry_seconds)
        until = self._clock() + self._retry_seconds
        while not self._closing and (seconds_left := until - self._clock()) > 0:
            self._wait(self._condition, seconds_left)

    def _wait_until_due(self) -> None:
        while not self._waiting:
            if self._closing:
                return
            self._condition.wait()
        while not self._is_due():
            seconds_left = self._committed_at + self._linger - time.monotonic()
            if seconds_left <= 0:
                break
            self._condition.wait(seconds_left)

    def _write(self, new: Sequence[_Operation]) -> list[_OperationResult]:
        """Write the held and the new operations; return the results of those that are over."""
        self._try_began = self._clock()
        results: list[_OperationResult] = []
        operations: list[_Operation] = [*self._held, *new]
        try:
            results += self._resolve_doubt()
            # Nobody waits for operations that were given up before their turn, so they do not run.
            operations = [each for each in (*self._held, *new) if not each.future.done()]
            if operations or self.outage is not None:
                results += self._commit(operations)
        except Exception as error:  # noqa: BLE001  # the boundary of the thread
            # Only the read of the marker may fail in another way: nothing is known then either.
            reason = outage_reason(error) or "the database cannot be read"
            return [*results, *self._postpone(operations, reason, error)]
        self._held = []
        self._end_outage()
        if operations:
            self._on_commit(len(operations), self._clock() - self._try_began)
        return results

    def _resolve_doubt(self) -> list[_OperationResult]:
        """Return the results of a batch whose commit failed. If it was not written, hold what is to be held."""
        if self._doubt is None:
            return []
        with self._engine.begin() as connection:
            was_committed = self._marks.was_committed(connection, self._doubt.marker)
        doubt, self._doubt = self._doubt, None
        if was_committed:
            return list(doubt.results)
        operations = [result.operation for result in doubt.results]
        self._held = [*(each for each in operations if each.hold), *self._held]
        error = unavailable(self.outage or "its last commit failed")
        return [_OperationResult(each, error=error) for each in operations if not each.hold]

    def _postpone(
        self, operations: Sequence[_Operation], reason: str, error: Exception
    ) -> list[_OperationResult]:
        """Hold what is to be held and return errors for the rest; those in doubt get neither."""
        self._begin_outage(reason)
        doubt = self._doubt
        clear = [each for each in operations if doubt is None or not doubt.includes(each)]
        self._held = [each for each in clear if each.hold]
        store_error = unavailable(reason, error)
        return [_OperationResult(each, error=store_error) for each in clear if not each.hold]

    def _give_up(self) -> list[_OperationResult]:
        operations = [
            *self._held,
            *(result.operation for result in (self._doubt.results if self._doubt else ())),
        ]
        self._held, self._doubt = [], None
        if operations:
            self._log.error("store.lost", operations=len(operations), reason=self.outage)
        error = unavailable(f"{self.outage}, and the service stops")
        return [_OperationResult(each, error=error) for each in operations]

    def _begin_outage(self, reason: str) -> None:
        if self.outage is None:
            self.outages += 1
            self._outage_began = self._try_began
            self._log.error("store.unavailable", reason=reason)
        self.outage = reason

    def _end_outage(self) -> None:
        if self.outage is not None:
            self.outage, self._retry_seconds = None, 0.0
            self._log.info("store.available", seconds=round(self._clock() - self._outage_began, 3))

    def _transact(self, work: Callable[[Connection], list[_OperationResult]]) -> list[_OperationResult]:
        """Run `work` in a transaction. If only its commit failed, and that by an outage, it is in doubt."""
        marker = 0
        results: list[_OperationResult] | None = None
        try:
            with self._engine.begin() as connection:
                written = work(connection)
                marker = self._marks.mark(connection)
                self._before_commit(marker, take_changed(connection))
                results = written
        except Exception as error:  # raised again; only here is it known that all but the commit went well
            if results is not None and outage_reason(error) is not None:
                self._doubt = _Doubt(marker, results)
            raise
        return results

    def _commit(self, batch: Sequence[_Operation]) -> list[_OperationResult]:
        """Run a batch in a transaction, and again if the database chose it to end a ring of waits."""
        for _ in range(_CONFLICT_TRIES):
            try:
                return self._commit_once(batch)
            except Exception as error:  # another node was in the way; nothing of the batch is written
                if not is_conflict(error):
                    raise
        return self._commit_once(batch)

    def _commit_once(self, batch: Sequence[_Operation]) -> list[_OperationResult]:
        try:
            return self._transact(
                lambda connection: [
                    result
                    for group_function, operations in groupby(batch, key=attrgetter("group"))
                    for result in _run_grouped(connection, group_function, list(operations))
                ]
            )
        except Exception as error:  # of any operation of the batch; one must not fail the others
            if outage_reason(error) is not None:
                raise
            return self._commit_separately(batch)  # it raises the error again, for its operation alone

    def _commit_separately(self, batch: Sequence[_Operation]) -> list[_OperationResult]:
        try:
            return self._transact(
                lambda connection: [_run_in_savepoint(connection, operation) for operation in batch]
            )
        except Exception as error:  # the boundary of the thread: every caller gets it
            if outage_reason(error) is not None:
                raise
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
    except Exception as error:  # the caller of this operation gets it
        if undoes_transaction(error) or outage_reason(error) is not None:
            raise  # no operation may report success
        return _OperationResult(operation, error=_as_store_error(error))


def _deliver_results(results: Sequence[_OperationResult], timeout_handle: asyncio.TimerHandle | None) -> None:
    if timeout_handle is not None:
        timeout_handle.cancel()
    for answer in results:
        answer.deliver()


def _fail_with_timeout(batch: Sequence[_Operation]) -> None:
    error = StoreUnavailable(f"The store did not answer within {COMMIT_TIMEOUT_SECONDS:.0f} s.")
    for operation in batch:
        if not operation.hold:
            _OperationResult(operation, error=error).deliver()


def _as_store_error(error: Exception) -> Exception:
    if isinstance(error, SteadyhandError):
        return error
    store_error = StoreError(f"The store could not write this: {type(error).__name__}.")
    store_error.__cause__ = error
    return store_error
