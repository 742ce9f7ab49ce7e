"""The jobs that the last transactions have changed, so that a list reads no rows of a job that it has in memory.

Each transaction of the writer stores a number, its marker, in the database. It tells of the jobs that it has changed
before it commits. A reader reads the marker in its own transaction, and so knows which changes it sees.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

from sqlalchemy import Connection

from steadyhand.store.driver import fetch_all

MAX_CHANGED = 10_000
"""The changed jobs that are remembered."""
MAX_TRANSACTIONS = 1_000
"""The transactions that are remembered: the marker of an earlier one says nothing."""

_CHANGED = "steadyhand.changed_jobs"


def note_changed(connection: Connection, sequences: Iterable[int]) -> None:
    """Note that this transaction changes jobs, or their runs or events."""
    connection.info.setdefault(_CHANGED, set()).update(sequences)


def take_changed(connection: Connection) -> Iterable[int]:
    """Return the jobs that were noted since the last transaction, and forget them.

    Jobs of a transaction that was rolled back may be among them: their rows are read once more.
    """
    changed: Iterable[int] = connection.info.pop(_CHANGED, ())
    return changed


class ChangedJobs:
    """The last change of each job, as the ordinal of a transaction. Several threads use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordinals: OrderedDict[int, int] = OrderedDict()
        self._last = 0
        self._changed: OrderedDict[int, int] = OrderedDict()
        self._forgotten = 0

    def publish(self, marker: int, changed: Iterable[int]) -> None:
        """Publish the jobs that a transaction changes, before it is committed with this marker."""
        with self._lock:
            self._last += 1
            self._ordinals[marker] = self._last
            if len(self._ordinals) > MAX_TRANSACTIONS:
                self._ordinals.popitem(last=False)
            for sequence in changed:
                self._changed[sequence] = self._last
                self._changed.move_to_end(sequence)
            while len(self._changed) > MAX_CHANGED:
                self._forgotten = self._changed.popitem(last=False)[1]

    def snapshot(self, connection: Connection) -> int | None:
        """Return the ordinal of the last transaction that a connection's transaction sees; None if it is not known."""
        ((marker,),) = fetch_all(connection, "PRAGMA user_version")
        with self._lock:
            if not self._last and not self._ordinals:  # of the process before this one, or of none
                self._ordinals[marker] = 0
            return self._ordinals.get(marker)

    def is_unchanged(self, sequence: int, one: int, other: int) -> bool:
        """Return True if a job is the same in two snapshots."""
        earlier = min(one, other)
        with self._lock:
            return max(self._forgotten, self._changed.get(sequence, 0)) <= earlier
