"""The migration of a table of events to partitions (0016) while other nodes, also of the version before, are at work.

Three transactions, of which each waits a third of a second at most for its locks, and then begins again a second later:

1. A constraint says that all events belong to jobs below a limit. It is not checked, so the table is locked for a
   moment.
2. The constraint is checked: the whole table is read under a lock that stops neither reads nor writes.
3. The migrations, under a lock of `events` and of `jobs` against everybody. With the constraint the table becomes
   the first partition without being read.

The limit is far above the newest job, so nodes of the version before go on for long if this is broken off. If the
migration fails, the constraint goes.
"""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final, TypeVar

from sqlalchemy import Connection

from steadyhand.errors import StoreError
from steadyhand.store.driver import fetch_all
from steadyhand.store.migrate import load_alembic
from steadyhand.store.outage import postgres_code
from steadyhand.store.postgres.event_partitions import RANGE, newest_sequence
from steadyhand.store.schema_support import check_old_nodes

REVISION: Final = "0016"
RANGES_AHEAD: Final = 10
"""How far the limit is above the newest job, in ranges: a million jobs, a week of 1,000 agents."""
LOCK_MILLISECONDS: Final = 300
"""Below the second after which the server looks for a ring of waits: a statement in one waits no longer than this."""
PAUSE_SECONDS: Final = 1.0
TRIES: Final = 60
_LOCK_TIMEOUT: Final = "55P03"
_CONFLICTS: Final = frozenset({_LOCK_TIMEOUT, "40P01"})
_TABLE: Final = "SELECT 1 FROM pg_class WHERE oid = to_regclass('events') AND relkind = 'r'"
_REVISION: Final = "SELECT version_num FROM alembic_version"
_HAS_REVISION: Final = "SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL"
_LIMITS: Final = (
    "SELECT conname, convalidated FROM pg_constraint WHERE conrelid = to_regclass('events') AND contype = 'c' "
    "AND starts_with(conname, 'ck_events_below_')"
)

Begin = Callable[[], AbstractContextManager[Connection]]
"""Begins a transaction of the one node that migrates."""
T = TypeVar("T")


def migrate_with_events(begin: Begin, migrate: Callable[[Connection], None]) -> None:
    """Migrate a database; `migrate` runs the migrations in a transaction.

    Raise `StoreError` if another program, such as a backup, uses the events for a minute.
    """
    with begin() as connection:
        if not _is_to_be_partitioned(connection):
            migrate(connection)
            return
    load_alembic()  # no lock is to last while it loads
    is_done = False
    try:
        while not is_done:
            _try_again(begin, _add_limit)
            with begin() as connection:
                _check_limit(connection)
            is_done = _try_again(begin, lambda at: _migrate(at, migrate))
    except BaseException:  # whatever ends the migration: the limit must not outlive it
        with suppress(Exception):  # the first error counts
            _try_again(begin, _remove_limits)
        raise


def _try_again(begin: Begin, work: Callable[[Connection], T]) -> T:
    for tries_left in reversed(range(TRIES)):
        try:
            with begin() as connection:
                return work(connection)
        except Exception as error:  # of the driver; others are raised again
            if postgres_code(error) not in _CONFLICTS:
                raise
            if not tries_left:
                raise StoreError(
                    "The database cannot be migrated while another program, such as a backup, uses its events. "
                    "Start again later."
                ) from error
        time.sleep(PAUSE_SECONDS)
    raise AssertionError


def _is_to_be_partitioned(connection: Connection) -> bool:
    """Return True for a database of ours in which the events are one table."""
    if not fetch_all(connection, _TABLE) or not fetch_all(connection, _HAS_REVISION):
        return False
    revisions = [revision for (revision,) in fetch_all(connection, _REVISION)]
    return len(revisions) == 1 and revisions[0].isdigit() and revisions[0] < REVISION


def _limit_locks(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS:d}")


def _limits(connection: Connection) -> dict[int, bool]:
    """Return the limits that the table has, each with True if it is checked."""
    found = (
        (re.fullmatch(r"ck_events_below_(\d+)", name), done) for name, done in fetch_all(connection, _LIMITS)
    )
    return {int(each[1]): done for each, done in found if each}


def _add_limit(connection: Connection) -> None:
    if not _is_to_be_partitioned(connection):
        return
    check_old_nodes(connection)
    _limit_locks(connection)
    newest = newest_sequence(connection)
    limits = _limits(connection)
    if len(limits) == 1 and min(limits) > newest + RANGE:
        return  # of a start that was broken off
    _remove_limits(connection)
    limit = (newest // RANGE + 1 + RANGES_AHEAD) * RANGE
    connection.exec_driver_sql(
        f"ALTER TABLE events ADD CONSTRAINT ck_events_below_{limit:d} CHECK (job < {limit:d}::bigint) NOT VALID"
    )


def _check_limit(connection: Connection) -> None:
    if _is_to_be_partitioned(connection):
        for limit, is_checked in _limits(connection).items():
            if not is_checked:
                connection.exec_driver_sql(
                    f"ALTER TABLE events VALIDATE CONSTRAINT ck_events_below_{limit:d}"
                )


def _remove_limits(connection: Connection) -> None:
    if _is_to_be_partitioned(connection):
        _limit_locks(connection)
        for limit in _limits(connection):
            connection.exec_driver_sql(f"ALTER TABLE events DROP CONSTRAINT ck_events_below_{limit:d}")


def _migrate(connection: Connection, migrate: Callable[[Connection], None]) -> bool:
    """Migrate; return False if another start that failed has removed the limit."""
    if _is_to_be_partitioned(connection):
        if not any(_limits(connection).values()):
            return False
        # Both at once, before earlier migrations take one of them: others use them in either order.
        _limit_locks(connection)
        connection.exec_driver_sql("LOCK TABLE jobs, events IN ACCESS EXCLUSIVE MODE")
        connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
    migrate(connection)
    return True
