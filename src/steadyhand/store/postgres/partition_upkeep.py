"""The upkeep of the partitions of events: it makes them ahead, drops the old ones, and deletes single events of others.

One node does it at a time. It has transactions of its own, on the connection of the writer between two batches. A batch
with a lock of the whole table would hold up other nodes as long as it lasts.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import TimeoutError as NoConnection

from steadyhand.errors import StoreError
from steadyhand.store import leftover_events
from steadyhand.store.driver import execute, fetch_all, is_database_error
from steadyhand.store.outage import outage_reason, postgres_code, unavailable
from steadyhand.store.postgres import event_partitions
from steadyhand.store.postgres.event_partitions import Partition

LOCK_MILLISECONDS: Final = 100
"""How long a statement waits for a lock of a table. Others wait behind it, so it is short: a long read, such as a
backup, only puts the work off."""
_UPKEEP_LOCK: Final = 0x5374_6561_6479_0003
"""The number of the advisory lock of the node that does this work."""
_POSTPONED: Final = frozenset({"23514", "40P01", "55P03"})
"""The codes of a change that is tried again in the next round: the default partition got events of the range meanwhile,
or a lock was not to be had."""
_NO_RIGHT: Final = "42501"


class PartitionUpkeep:
    """The work of one process on one database, in any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._mutex = threading.Lock()
        self._is_closed = False
        self._log = structlog.get_logger("steadyhand.store")

    def run(self) -> bool:
        """Do a piece of the work; return True if there is more of it to do at once. Raise `StoreError`. Blocks."""
        with self._mutex:
            if self._is_closed:
                return False
            try:
                return self._run()
            except NoConnection:  # the writer has it, for long
                return False
            except Exception as error:  # of a driver that is not imported here; others are raised again
                if isinstance(error, StoreError) or not (is_database_error(error) or outage_reason(error)):
                    raise
                reason = outage_reason(error)
                if reason is not None:
                    raise unavailable(reason, error) from error
                raise StoreError(f"The partitions could not be kept: {type(error).__name__}.") from error

    def close(self) -> None:
        """Wait for the piece of work that goes on, and do no other one."""
        with self._mutex:
            self._is_closed = True

    def _run(self) -> bool:
        with self._transaction() as connection:
            if connection is None:
                return False
            newest = event_partitions.newest_sequence(connection)
            partitions = event_partitions.list_partitions(connection)
            closed = [each for each in partitions if each.is_closed(newest)]
            empty = event_partitions.list_empty(connection, closed)
            first = event_partitions.first_open(partitions, newest)
            has_more = leftover_events.delete_some(connection, first)
        for missing in event_partitions.missing_partitions(partitions, newest):
            self._make(missing)
        for each in empty:
            self._drop(each)
        return has_more

    @contextmanager
    def _transaction(self) -> Iterator[Connection | None]:
        """Begin a transaction of the node that does the work; another one gets None."""
        with self._engine.begin() as connection:
            if not fetch_all(connection, f"SELECT 1 WHERE pg_try_advisory_xact_lock({_UPKEEP_LOCK:d})"):
                yield None
                return
            execute(connection, f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS:d}")
            yield connection

    def _make(self, partition: Partition) -> None:
        def make(connection: Connection) -> bool:
            if partition in event_partitions.list_partitions(connection):
                return False
            event_partitions.attach(connection, partition)
            return True

        if self._change(make, partition):
            self._log.info("store.partition_made", partition=partition.name)

    def _drop(self, partition: Partition) -> None:
        def drop(connection: Connection) -> bool:
            if partition not in event_partitions.list_partitions(connection):
                return False
            is_dropped = event_partitions.drop(connection, partition)
            if is_dropped:
                leftover_events.forget(connection, partition.first, partition.end)
            return is_dropped

        if self._change(drop, partition):
            self._log.info("store.partition_dropped", partition=partition.name)

    def _change(self, change: Callable[[Connection], bool], partition: Partition) -> bool:
        """Run a change in a transaction; return False if it changed nothing, also if something is in its way now."""
        try:
            with self._transaction() as connection:
                return connection is not None and change(connection)
        except Exception as error:  # of the driver; others are raised again
            code = postgres_code(error)
            if code not in _POSTPONED and code != _NO_RIGHT:
                raise
            if code == _NO_RIGHT:
                self._log.warning("store.partition_postponed", partition=partition.name, error=str(error))
            else:
                self._log.debug("store.partition_postponed", partition=partition.name, error=str(error))
            return False
