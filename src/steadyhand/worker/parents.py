"""What a job has of those before it in its session: the one that it goes on with, and the files of their turns."""

from collections.abc import Mapping
from typing import Any

from steadyhand.job import Job
from steadyhand.ports import Checkouts, Store

MAX_ANCESTORS = 100
"""How many jobs back files are looked for, and a session."""
MAX_FILE_CHARACTERS = 64 * 1024 * 1024
"""How large the files of earlier turns may be together, in base64; the newest ones are taken."""


async def find_parent(store: Store, checkouts: Checkouts, job: Job) -> Job | None:
    """Give the job that this one goes on with, as it ended: it may have run only since this one was accepted.

    One that never ran has left no session; then it is the one that it would have gone on with itself.
    """
    ancestor = parent = await _get_parent(store, job)
    for _ in range(MAX_ANCESTORS):
        if ancestor is None or checkouts.job_paths(ancestor.id).config_dir.is_dir():
            break
        ancestor = await _get_parent(store, ancestor)
    return ancestor or parent


async def find_earlier_files(store: Store, job: Job) -> tuple[Mapping[str, Any], ...]:
    """Give the files that came with turns before this job's own; the history that came with a job has them all."""
    files: list[Mapping[str, Any]] = []
    size, current = 0, job
    for _ in range(MAX_ANCESTORS):
        if current.history or (parent := await _get_parent(store, current)) is None:
            break
        current = parent
        size += sum(len(str(block["data"])) for block in current.attachments)
        if size > MAX_FILE_CHARACTERS:
            break
        files = [*current.attachments, *files]
    return tuple(files)


async def _get_parent(store: Store, job: Job) -> Job | None:
    return None if job.parent_job_id is None else await store.get(job.parent_job_id)
