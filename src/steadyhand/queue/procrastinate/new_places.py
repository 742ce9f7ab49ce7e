"""The places of jobs that are stored: what is in them, their insert, and the room that all nodes have for new ones."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import LiteralString, NamedTuple

import sqlalchemy

from steadyhand.errors import StoreError
from steadyhand.job import Job, State
from steadyhand.placement import Placement
from steadyhand.queue.procrastinate.engine import Connection
from steadyhand.queue.procrastinate.handed_runs import PlacesStore
from steadyhand.queue.procrastinate.place import Place
from steadyhand.queue.procrastinate.places import INSERT, PlacesTransaction, list_unplaced, values_of
from steadyhand.queue.procrastinate.queued_limits import check_queued
from steadyhand.retry import continues_parent

_COUNT: LiteralString = """SELECT
        count(*) FILTER (WHERE place.state = 'running' AND NOT again AND node <> %s
            AND job.state IN ('queued', 'running')) AS active,
        count(*) FILTER (WHERE again OR place.state IN ('waiting', 'ready')) AS queued
    FROM queue_places AS place LEFT JOIN jobs AS job ON job.id = place.job_id"""
"""A place stays until its slot is free; for a new job it is free as soon as its job has ended, in that transaction."""


class StoredLoad(NamedTuple):
    """The jobs that run on other nodes, and those that wait."""

    active: int
    queued: int


async def read_load(node: str, connection: Connection) -> StoredLoad:
    """Return the load as it is stored now, for a node. A job whose end a caller may have seen does not count."""
    row = await (await connection.execute(_COUNT, (node,))).fetchone()
    assert row is not None  # noqa: S101  # counts without groups are one row
    return StoredLoad(int(row["active"]), int(row["queued"]))


class NewPlaces:
    """Makes places of jobs; see `ProcrastinateQueue` for the parameters."""

    def __init__(
        self,
        store: PlacesStore,
        *,
        running_limit: Callable[[str], int | None],
        queued_limit: Callable[[str], int | None],
        directory_of: Callable[[Job], str | None],
        placement_of: Callable[[Job], Placement],
    ) -> None:
        self._store = store
        self._running_limit = running_limit
        self._queued_limit = queued_limit
        self._directory_of = directory_of
        self._placement_of = placement_of
        self.retry_after = 1
        """The seconds after which a caller that is refused may try again; the writer's thread reads it."""

    def place_of(self, job: Job, *, goes_on: bool = False) -> Place:
        """Return the place of a job that waits."""
        placement = self._placement_of(job)
        return Place(
            job_id=job.id,
            key_id=job.api_key_id,
            goes_on=goes_on,
            priority=job.spec.priority,
            sequence=job.sequence,
            directory=self._directory_of(job),
            parent_id=job.parent_job_id if continues_parent(job) else None,
            queued_at=job.queued_at or job.created_at,
            expires_in_seconds=job.spec.expires_in_seconds,
            labels=placement.labels,
            not_on_nodes=placement.not_on_nodes,
        )

    def insert(self, connection: sqlalchemy.Connection, jobs: Sequence[Job]) -> None:
        """Insert the places of new jobs in the store's transaction, in its thread."""
        self.check(connection, jobs)
        connection.exec_driver_sql(INSERT, [values_of(self.place_of(job)) for job in jobs])

    def check(self, connection: sqlalchemy.Connection, jobs: Sequence[Job]) -> None:
        """Raise `RetryLater` if one of these jobs, which have no places yet, is one too many of its key."""
        check_queued(
            connection,
            jobs,
            queued_limit=self._queued_limit,
            running_limit=self._running_limit,
            retry_after=self.retry_after,
        )

    async def put_unplaced(self, turn: PlacesTransaction) -> None:
        """Queue the jobs that are stored as queued and have no place: their node died between the two."""
        for job_id in await list_unplaced(turn.connection):
            job = None
            with suppress(StoreError):  # the next repair finds it again
                job = await self._store.get(job_id)
            if job is not None and job.state is State.QUEUED:
                await turn.put(self.place_of(job))
