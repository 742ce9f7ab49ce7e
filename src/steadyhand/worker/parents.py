"""The jobs before a job in its session: the one that it continues, and the files of their turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steadyhand.errors import SessionGone
from steadyhand.job import Job
from steadyhand.ports import Checkouts, Store
from steadyhand.retry import MAX_ANCESTORS, continues_parent, has_started_agent

MAX_FILE_CHARACTERS = 64 * 1024 * 1024
"""The maximum size of the files of earlier turns together, in base64; the newest ones are used."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """The job that a turn continues. Without a session it never ran, and the turn begins the conversation."""

    job: Job
    has_session: bool


async def find_ancestor(
    store: Store, checkouts: Checkouts, job: Job, held: str | None = None
) -> Ancestor | None:
    """Return the job whose conversation the next run continues, read anew: it may have run after the turn was accepted.

    A process holds the session of the job `held`, so nobody looks for its files. If the parent never ran it has no
    session; then return the nearest ancestor with one. Raise `SessionGone` if one of them is deleted, or the files of
    one that ran; return None if the job has the whole conversation itself.
    """
    if not continues_parent(job):
        return None
    try:
        return await _nearest_ancestor(store, checkouts, job, held)
    except SessionGone:
        if job.spec.history:
            return None
        raise


async def _nearest_ancestor(store: Store, checkouts: Checkouts, job: Job, held: str | None) -> Ancestor:
    parent = await _require_parent(store, job)
    ancestor = parent
    for _ in range(MAX_ANCESTORS):
        if ancestor.id == held or await checkouts.has_session(ancestor.id):
            return Ancestor(ancestor, has_session=True)
        if has_started_agent(ancestor):
            raise SessionGone(f"The files of the job {ancestor.id} are deleted.")
        if ancestor.parent_job_id is None:
            break
        ancestor = await _require_parent(store, ancestor)
    return Ancestor(parent, has_session=False)


async def _require_parent(store: Store, job: Job) -> Job:
    parent = await _get_parent(store, job)
    if parent is None:
        raise SessionGone(f"The job {job.parent_job_id} is deleted.")
    return parent


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
