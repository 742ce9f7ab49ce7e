"""The jobs before a job in its session: the one that it continues, and the files of their turns."""

from collections.abc import Mapping
from typing import Any

from steadyhand.job import Job
from steadyhand.ports import Checkouts, Store

MAX_ANCESTORS = 100
"""The maximum number of earlier jobs in which files and a session are looked for."""
MAX_FILE_CHARACTERS = 64 * 1024 * 1024
"""The maximum size of the files of earlier turns together, in base64; the newest ones are used."""


async def find_parent(store: Store, checkouts: Checkouts, job: Job) -> Job | None:
    """Return the job that this one continues, read anew: it may have run after this one was accepted.

    If that job never ran it has no session; then return the nearest ancestor with one.
    """
    ancestor = parent = await _get_parent(store, job)
    for _ in range(MAX_ANCESTORS):
        if ancestor is None or await checkouts.has_session(ancestor.id):
            break
        ancestor = await _get_parent(store, ancestor)
    return ancestor or parent


async def find_earlier_files(store: Store, job: Job) -> tuple[Mapping[str, Any], ...]:
    """Return the files of the turns before this job's own; a job with a history has all of them in it."""
    files: list[Mapping[str, Any]] = []
    size, current = 0, job
    for _ in range(MAX_ANCESTORS):
        if current.spec.history or (parent := await _get_parent(store, current)) is None:
            break
        current = parent
        size += sum(len(str(block["data"])) for block in current.spec.attachments)
        if size > MAX_FILE_CHARACTERS:
            break
        files = [*current.spec.attachments, *files]
    return tuple(files)


async def _get_parent(store: Store, job: Job) -> Job | None:
    return None if job.parent_job_id is None else await store.get(job.parent_job_id)
