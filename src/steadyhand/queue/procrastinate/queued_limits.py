"""The limit of a key on its waiting jobs, checked in the transaction that stores a new one or queues one again.

One lock orders these transactions of all nodes, so that two nodes never both take the last place. It is asked for only
if a job is of a key with such a limit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import sqlalchemy

from steadyhand.admission import queued_refusal
from steadyhand.job import Job
from steadyhand.queue.procrastinate.lease import DEAD_SECONDS

_LOCK: Final = "SELECT pg_advisory_xact_lock(386706)"
_QUEUED_AT: Final = (
    "timestamptz 'epoch' + (job.record::json ->> 'queued_at')::bigint * interval '1 microsecond'"
)
_COUNT: Final = f"""SELECT
    (SELECT count(*) FROM queue_places WHERE key_id = %(key)s AND (again OR state IN ('waiting', 'ready')))
    + (SELECT count(*) FROM jobs AS job LEFT JOIN queue_places AS place ON place.job_id = job.id
        WHERE job.state = 'queued' AND job.api_key_id = %(key)s AND job.id <> ALL(%(new)s)
        AND (place.job_id IS NULL OR NOT (again OR place.state IN ('waiting', 'ready'))
            AND place.queued_at < {_QUEUED_AT})),
    (SELECT count(*) FROM queue_places WHERE key_id = %(key)s AND state = 'running'),
    (SELECT coalesce(sum(capacity), 0) FROM queue_nodes WHERE greatest(lease_at, pg_postmaster_start_time())
        >= clock_timestamp() - make_interval(secs => {DEAD_SECONDS!r}))
    - (SELECT count(*) FROM queue_places WHERE state = 'running')"""  # noqa: S608  # our own words
"""A job that was queued again has no place of its new run for a moment: it is counted by its own state."""


def check_queued(
    connection: sqlalchemy.Connection,
    jobs: Sequence[Job],
    *,
    queued_limit: Callable[[str], int | None],
    running_limit: Callable[[str], int | None],
    retry_after: int,
) -> None:
    """Raise `RetryLater` (`too_many_jobs`) if one of these jobs is one too many of its key on all nodes."""
    new = Counter(job.api_key_id for job in jobs if queued_limit(job.api_key_id) is not None)
    if not new:
        return
    connection.exec_driver_sql(_LOCK)
    new_ids = [job.id for job in jobs]
    for key_id, count in new.items():
        limit, running_most = queued_limit(key_id), running_limit(key_id)
        values = {"key": key_id, "new": new_ids}
        waiting, running, free = connection.exec_driver_sql(_COUNT, values).one()
        startable = max(0, free if running_most is None else min(free, running_most - running))
        if limit is not None and waiting + count - startable > limit:
            raise queued_refusal(limit, retry_after)
