"""The one thread that writes: it takes all that waits, commits once, and answers everybody.

An operation is a function of a connection. Operations run in the order in which they were handed in. What is urgent
is committed at once, together with whatever waits; events alone wait for company if the last commit was just now, so
that a lone event is durable at once and a flood costs a bounded number of commits. When one operation of a
batch fails, the batch is rolled back and done again with a savepoint around each, so that only the one fails.
Neighbours of one kind may be done as one: each statement costs a change of thread, which is most of what it costs.
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
"""The least time between commits of events alone; well below the 50 ms that a follower may be behind."""

LINGER_EVENTS = 64
"""How many waiting events are company enough."""

ANSWER_SECONDS = 60.0
"""How long a verb waits for its commit before it gives the store up."""

_CLOSE_SECONDS = 30.0

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  # an item
Join = Callable[[Connection, Sequence[I]], Sequence[T]]
"""Does many operations of one kind: takes their items, gives their answers in the same order."""


@dataclass(slots=True, eq=False)
class _Operation:
    run: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    join: Join[Any, Any] | None = None
    item: Any = None
    watch: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    operation: _Operation
    value: Any = None
    error: Exception | None = None

    def deliver(self) -> None:
        future = self.operation.future
        if future.done():  # its caller has gone
            return
        if self.error is None:
            future.set_result(self.value)
        else:
            future.set_exception(self.error)


class Writer:
    """Runs operations on one connection of `engine`, for callers on the event loop that made it."""

    def __init__(self, engine: Engine, *, linger_seconds: float = LINGER_SECONDS) -> None:
        self._engine = engine
        self._linger = linger_seconds
        self._loop = asyncio.get_running_loop()
        self._change = threading.Condition()
        self._waiting: list[_Operation] = []
        self._committed_at = -math.inf
        self._events = 0
        self._urgent = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def do(self, run: Callable[[Connection], T], *, events: int | None = None) -> asyncio.Future[T]:
        """Run an operation in a transaction and answer when it is durable.

        `events` is how many events it appends when it may wait for company; null is urgent. What the operation
        raises of ours comes out as it is, anything else as `StoreError`.
        """
        return self._hand_in(_Operation(run, self._loop.create_future()), events)

    def do_joined(self, join: Join[I, T], item: I, *, events: int | None = None) -> asyncio.Future[T]:
        """As `do`, for an operation that is done together with neighbours of the same `join`."""
        alone = _Operation(lambda at: join(at, (item,))[0], self._loop.create_future(), join, item)
        return self._hand_in(alone, events)

    def _hand_in(self, operation: _Operation, events: int | None) -> asyncio.Future[Any]:
        with self._change:
            if self._closing:
                operation.future.set_exception(StoreError("The store is closed."))
                return operation.future
            was_due = self._due()
            first = not self._waiting
            self._waiting.append(operation)
            if first:
                # One clock bounds the wait of all that share the batch; one for each costs more than an insert.
                operation.watch = self._loop.call_later(ANSWER_SECONDS, _give_up, self._waiting)
            self._events += events or 0
            self._urgent = self._urgent or events is None
            if first or (self._due() and not was_due):
                # Not at once: the thread would take this one alone and contend with the loop for the interpreter,
                # while what the loop has at hand in this round is about to follow and can share the commit.
                self._loop.call_soon(self._wake)
        return operation.future

    def _wake(self) -> None:
        with self._change:
            self._change.notify()

    def _due(self) -> bool:
        return self._urgent or self._closing or self._events >= LINGER_EVENTS

    async def close(self) -> None:
        """Commit what waits and end the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)
        if self._thread.is_alive():
            raise StoreError("The store did not finish its last commit.")

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            # Nobody waits for what was given up before its turn, so it is left undone.
            answers = self._commit([each for each in batch if not each.future.cancelled()])
            self._committed_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(_deliver, answers, batch[0].watch)
            except RuntimeError:  # the loop is closed and nobody waits any more
                return

    def _take(self) -> list[_Operation] | None:
        """Wait until a batch is due and take it; null when the store was closed and nothing waits."""
        with self._change:
            while not self._waiting:
                if self._closing:
                    return None
                self._change.wait()
            while not self._due():
                left = self._committed_at + self._linger - time.monotonic()
                if left <= 0:
                    break
                self._change.wait(left)
            batch, self._waiting = self._waiting, []
            self._events, self._urgent = 0, False
        return batch

    def _commit(self, batch: Sequence[_Operation]) -> list[_Answer]:
        if not batch:
            return []
        try:
            with self._engine.begin() as connection:
                return [
                    answer
                    for join, group in groupby(batch, key=attrgetter("join"))
                    for answer in _run_together(connection, join, list(group))
                ]
        except Exception:  # noqa: BLE001  # whatever it was, it comes up again below and is told then
            return self._commit_apart(batch)

    def _commit_apart(self, batch: Sequence[_Operation]) -> list[_Answer]:
        try:
            with self._engine.begin() as connection:
                return [_run_apart(connection, operation) for operation in batch]
        except Exception as error:  # noqa: BLE001  # the boundary of the thread: every caller gets it
            return [_Answer(operation, error=_translated(error)) for operation in batch]


def _run_together(
    connection: Connection, join: Join[Any, Any] | None, group: Sequence[_Operation]
) -> list[_Answer]:
    if join is None:
        return [_Answer(operation, operation.run(connection)) for operation in group]
    values = join(connection, [operation.item for operation in group])
    return [_Answer(operation, value) for operation, value in zip(group, values, strict=True)]


def _run_apart(connection: Connection, operation: _Operation) -> _Answer:
    """Run one operation in a savepoint; raises only when the transaction itself is lost."""
    try:
        with connection.begin_nested():
            return _Answer(operation, operation.run(connection))
    except (IntegrityError, DataError) as error:
        return _Answer(operation, error=_translated(error))
    except DBAPIError:
        # A full disk or an input error rolls everything back in SQLite: nobody may be told "kept".
        raise
    except Exception as error:  # noqa: BLE001  # the caller of this operation gets it
        return _Answer(operation, error=_translated(error))


def _deliver(answers: Sequence[_Answer], watch: asyncio.TimerHandle | None) -> None:
    if watch is not None:
        watch.cancel()
    for answer in answers:
        answer.deliver()


def _give_up(batch: Sequence[_Operation]) -> None:
    error = StoreError(f"The store did not answer within {ANSWER_SECONDS:.0f} s.")
    for operation in batch:
        _Answer(operation, error=error).deliver()


def _translated(error: Exception) -> Exception:
    if isinstance(error, SteadyhandError):
        return error
    told = StoreError(f"The store could not keep this: {type(error).__name__}.")
    told.__cause__ = error
    return told
