"""The partitions of `events`: ranges of the sequence of jobs, which grows with time, so that old events go whole.

`events_N` begins with the job N. `events_default` takes what has no partition, so an insert never fails; it is empty as
long as partitions are made ahead. The table has no reference to the jobs: with one, the end of a job would delete its
events one by one. A trigger notes the jobs whose events are left; see `store.leftover_events`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from steadyhand.store.driver import fetch_all

RANGE: Final = 100_000
"""The jobs of a partition. 1,000 agents that take 10 minutes for a job fill it in 17 hours. A service with a thousand
jobs a day has one for three months, beside the one that is made ahead. With the 90 days for which jobs are kept, a
thousand agents have 130 partitions, which a query that names its job neither plans for nor locks."""

CREATE_FUNCTION: Final = """
CREATE FUNCTION note_leftover_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO leftover_events (job, removed_at)
    SELECT sequence, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM deleted ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$
"""
CREATE_TRIGGER: Final = """
CREATE TRIGGER note_leftover_events AFTER DELETE ON jobs REFERENCING OLD TABLE AS deleted
FOR EACH STATEMENT EXECUTE FUNCTION note_leftover_events()
"""
_PARTITIONS: Final = (
    "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_inherits JOIN pg_class ON oid = inhrelid "
    "WHERE inhparent = to_regclass('events')"
)
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \((?:MINVALUE|'?(\d+)'?)\) TO \('?(\d+)'?\)")
_NEWEST: Final = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('jobs', 'sequence')), 0)"
_EMPTY: Final = (
    "SELECT first FROM unnest(?::bigint[], ?::bigint[]) AS ranges (first, past) "
    "WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE sequence >= first AND sequence < past)"
)


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A partition with the jobs from `first` up to, but without, `end`."""

    first: int
    end: int
    name: str

    def is_closed(self, newest: int) -> bool:
        """Return True if no job gets a sequence of the range any more."""
        return self.end <= newest


def newest_sequence(connection: Connection) -> int:
    """Return the greatest sequence that any transaction has taken for a job, 0 if there is none."""
    ((newest,),) = fetch_all(connection, _NEWEST)
    return int(newest)


def list_partitions(connection: Connection) -> Sequence[Partition]:
    """Return the partitions in their order, without the one for what has none."""
    found = ((name, _BOUNDS.fullmatch(bounds)) for name, bounds in fetch_all(connection, _PARTITIONS))
    return sorted(Partition(int(each[1] or 0), int(each[2]), name) for name, each in found if each)


def first_open(partitions: Sequence[Partition], newest: int) -> int:
    """Return the first job of the first partition that is not closed, or the first one after all of them."""
    end = max((each.end for each in partitions), default=0)
    return min((each.first for each in partitions if not each.is_closed(newest)), default=end)


def missing_partitions(partitions: Sequence[Partition], newest: int) -> Iterator[Partition]:
    """Yield the partitions to make, so that there is one after that of the newest job."""
    first = max((each.end for each in partitions), default=0)
    if newest >= first:
        # The events of the last jobs are in the default partition. There they stay: a new one must be above them.
        first = (newest // RANGE + 1) * RANGE
    while first <= newest + RANGE:
        yield Partition(first, first + RANGE, f"events_{first}")
        first += RANGE


def create_partitions(connection: Connection) -> None:
    """Create the first partitions and the trigger beside the new, empty tables of the store."""
    connection.exec_driver_sql(
        f"CREATE TABLE events_0 PARTITION OF events FOR VALUES FROM (MINVALUE) TO ({RANGE:d})"
    )
    connection.exec_driver_sql("CREATE TABLE events_default PARTITION OF events DEFAULT")
    for each in missing_partitions(list_partitions(connection), 0):
        attach(connection, each)
    connection.exec_driver_sql(CREATE_FUNCTION)
    connection.exec_driver_sql(CREATE_TRIGGER)


def attach(connection: Connection, partition: Partition) -> None:
    """Make a partition.

    `CREATE TABLE .. PARTITION OF` would lock the whole table against everybody. A table that is made apart and attached
    locks `events` against changes of its definition alone. The default partition is locked while it is searched for
    jobs of the range: it is empty, and a statement that names its jobs does not use it.
    """
    connection.exec_driver_sql(f"CREATE TABLE {partition.name} (LIKE events INCLUDING STORAGE)")
    connection.exec_driver_sql(
        f"ALTER TABLE events ATTACH PARTITION {partition.name} "
        f"FOR VALUES FROM ({partition.first:d}) TO ({partition.end:d})"
    )


def drop(connection: Connection, partition: Partition) -> bool:
    """Drop a closed partition, unless a job of its range is there; return True if it is dropped.

    Nobody uses `events` then. A transaction that has inserted events of such a job is over, and its job is seen. One
    that has not yet will insert them into the default partition.
    """
    connection.exec_driver_sql("LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE")
    if not list_empty(connection, [partition]):
        return False
    connection.exec_driver_sql(f"DROP TABLE {partition.name}")
    return True


def list_empty(connection: Connection, partitions: Sequence[Partition]) -> Sequence[Partition]:
    """Return those of these partitions in whose range no job is left."""
    if not partitions:
        return ()
    firsts, ends = [each.first for each in partitions], [each.end for each in partitions]
    found = {first for (first,) in fetch_all(connection, _EMPTY, (firsts, ends))}
    return [each for each in partitions if each.first in found]
