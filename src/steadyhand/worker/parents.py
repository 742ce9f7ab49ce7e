"""What a job has of those before it in its session: the one that it goes on with, and the files of their turns."""

from collections.abc import Mapping
from typing import Any

from steadyhand.job import Job
from steadyhand.ports import Checkouts, Store

MOST_BEFORE = 100
"""How many jobs back files are looked for, and a session."""
MOST_CHARACTERS = 64 * 1024 * 1024
"""How large the files of earlier turns may be together, in base64; the newest ones are taken."""


async def before(store: Store, checkouts: Checkouts, job: Job) -> Job | None:
    """Give the job that this one goes on with, as it ended: it may have run only since this one was accepted.

    One that never ran has left no session; then it is the one that it would have gone on with itself.
    """
    found = first = await _parent(store, job)
    for _ in range(MOST_BEFORE):
        if found is None or checkouts.files(found.id).config.is_dir():
            break
        found = await _parent(store, found)
    return found or first


async def earlier_files(store: Store, job: Job) -> tuple[Mapping[str, Any], ...]:
    """Give the files that came with turns before this job's own; the history that came with a job has them all."""
    found: list[Mapping[str, Any]] = []
    size, at = 0, job
    for _ in range(MOST_BEFORE):
        if at.history or (parent := await _parent(store, at)) is None:
            break
        at = parent
        size += sum(len(str(block["data"])) for block in at.files)
        if size > MOST_CHARACTERS:
            break
        found = [*at.files, *found]
    return tuple(found)


async def _parent(store: Store, job: Job) -> Job | None:
    return None if job.parent_job_id is None else await store.get(job.parent_job_id)
