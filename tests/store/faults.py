"""Faults of the store at a chosen write, with a clock that the test or the machine moves."""

import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, event

from steadyhand.clock import utc_now
from steadyhand.store import SqlStore
from steadyhand.store.sqlite import open_sqlite_engines, parse_sqlite_url
from steadyhand.store.writer import BatchWriter

FaultMode = Literal["refused", "full", "unwritten", "written"]
"""How a write fails: at its begin, in the middle, at its commit, or at a commit that was made all the same."""
MODES: tuple[FaultMode, ...] = ("refused", "full", "unwritten", "written")
_CODES: Mapping[FaultMode, int] = {
    "refused": sqlite3.SQLITE_BUSY,
    "full": sqlite3.SQLITE_FULL,
    "unwritten": sqlite3.SQLITE_IOERR,
    "written": sqlite3.SQLITE_IOERR,
}


@dataclass
class FaultClock:
    """The clock of the writer's pauses. Without `real` a pause takes no time, and the clock says that it did."""

    real: bool = False
    now: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() if self.real else self.now

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        if self.real:
            condition.wait(seconds)
        else:
            self.now += seconds
            condition.wait(0.001)  # gives the lock away for a moment


@dataclass
class StandingClock(FaultClock):
    """A clock that stands, so that an outage lasts until the test ends it."""

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        condition.wait(0.001)
        if self.now:
            self.now += seconds

    def end_outage(self) -> None:
        """Let all time pass that the outage was to last."""
        self.now = 1e6


@dataclass
class Fault:
    """Makes the `at`th transaction fail, and all others for so many seconds; `at` counts from 1, 0 is never."""

    clock: FaultClock
    at: int = 0
    seconds: float = 0.0
    mode: FaultMode = "refused"
    armed: bool = False
    """True once the service has started."""
    count: int = 0
    failed: int = 0
    _until: float | None = None
    _is_next: bool = False

    def fail_next(self) -> None:
        """Make the transaction fail that begins next, whoever makes it: the writer's thread may begin one just now."""
        self._is_next = True

    def install(self, engine: Engine) -> None:
        commit = engine.dialect.do_commit

        def failing_commit(connection: Any) -> None:
            if self._fails("unwritten"):
                raise self._error()
            if self._fails("written"):
                commit(connection)
                raise self._error()
            commit(connection)

        event.listen(engine, "begin", lambda _: self._begin())
        event.listen(engine, "before_cursor_execute", self._execute)
        engine.dialect.do_commit = failing_commit  # type: ignore[method-assign,assignment]  # of this engine alone

    @property
    def fired(self) -> bool:
        return self.failed > 0

    def _begin(self) -> None:
        self.count += self.armed
        if self.armed and self._is_next:
            self.at, self._is_next = self.count, False
        if self.armed and self.count == self.at:
            self._until = self.clock() + self.seconds
        if self._fails("refused"):
            raise self._error()

    def _execute(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("PRAGMA user_version =") and self._fails("full"):
            raise self._error()

    def _fails(self, mode: FaultMode) -> bool:
        if self._until is None or self.mode != mode:
            return False
        return self.count == self.at or self.clock() < self._until

    def _error(self) -> sqlite3.OperationalError:
        self.failed += 1
        error = sqlite3.OperationalError("a fault of the test")
        error.sqlite_errorcode = _CODES[self.mode]
        return error


def open_failing_store(path: Path, fault: Fault) -> SqlStore:
    """Open a store as the service does, with a fault in its writes and the fault's clock."""
    write_engine, read_engine = open_sqlite_engines(parse_sqlite_url(f"sqlite:///{path}"))
    fault.install(write_engine)
    writer = BatchWriter(write_engine, linger_seconds=0.0, clock=fault.clock, wait=fault.clock.wait)
    return SqlStore(write_engine, read_engine, clock=utc_now, writer=writer)
