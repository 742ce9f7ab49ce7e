"""Retention of jobs and their files, and the upkeep of the store: small pieces, so that no request waits for them."""

import asyncio
import time

import structlog

from steadyhand.errors import SteadyhandError, StoreUnavailable, WorkspaceError
from steadyhand.retry import is_resumable
from steadyhand.worker.deps import WorkerDeps

PAUSE_SECONDS = 1.0
FILES_INTERVAL_SECONDS = 300.0
"""The longest time between two looks for files that are too old, or too large in all."""
DELETED_AT_ONCE = 25
"""The jobs that one transaction deletes."""
ASKED_AT_ONCE = 500
"""The jobs about which one query asks."""
WORK_SECONDS = 0.5
"""The time after which deletions and upkeep pause for `PAUSE_SECONDS`."""
LONGEST_LOOK_SECONDS = 10.0
"""The longest time between two looks for jobs that are too old: each costs statements, also of an idle service."""
_PAUSE_AFTER_FAILURE = 60.0


class Retention:
    """Deletes jobs and files that are too old, and gives the store time for its own upkeep."""

    def __init__(self, deps: WorkerDeps) -> None:
        self._deps = deps
        self._store = deps.store
        self._checkouts = deps.checkouts
        self._clock = deps.config.clock
        self._deleting: set[str] = set()
        """The jobs that the store may have deleted in the last round."""
        self._look_at = float("-inf")
        """The time of the monotonic clock before which no job is looked for."""
        self._log = structlog.get_logger("steadyhand.worker")

    async def run(self) -> None:
        """Work until cancelled."""
        interval = self._files_interval()
        files_at = -interval
        while True:
            pause = PAUSE_SECONDS
            try:
                if time.monotonic() - files_at >= interval:
                    await self._look_at_files()
                    files_at = time.monotonic()
                await self._work()
            except StoreUnavailable as error:
                self._log.debug("tidy.postponed", reason=error.detail)  # the store has logged the outage
            except (SteadyhandError, OSError):
                self._log.exception("tidy.failed")
                pause = _PAUSE_AFTER_FAILURE
            await asyncio.sleep(pause)

    def _files_interval(self) -> float:
        """Return the seconds between two looks at the files: no longer than the time that a checkout is kept."""
        kept = self._deps.config.keep_checkouts
        return FILES_INTERVAL_SECONDS if kept is None else min(FILES_INTERVAL_SECONDS, kept.total_seconds())

    async def _work(self) -> None:
        began = time.monotonic()
        has_more = True
        await self._checkouts.save_pending()
        while has_more and time.monotonic() - began < WORK_SECONDS:
            has_more = await self._look_for_old_jobs()
            has_more = await self._store.maintain() or has_more

    async def _look_for_old_jobs(self) -> bool:
        """Delete some of the old jobs if it is time to look for them; return True if there may be more of them."""
        keep_jobs = self._deps.config.keep_jobs
        if keep_jobs is None or time.monotonic() < self._look_at:
            return False
        has_more = await self.delete_old_jobs()
        if not has_more:
            self._look_at = time.monotonic() + min(LONGEST_LOOK_SECONDS, keep_jobs.total_seconds())
        return has_more

    async def _look_at_files(self) -> None:
        """Apply the rules to files. Files that cannot be removed now wait for the next look, and nothing for them."""
        try:
            await self.remove_files_of_deleted_jobs()
            await self.apply_to_files()
        except (WorkspaceError, OSError):
            self._log.exception("files.left")

    async def remove_files_of_deleted_jobs(self) -> None:
        """Remove the rest of jobs that the store has deleted, by an earlier service, or from another node.

        The store has to say so itself. A job that it does not know may be one of another database, or newer than the
        backup that somebody restored.
        """
        job_ids = await self._checkouts.list_job_ids()
        for at in range(0, len(job_ids), ASKED_AT_ONCE):
            for job_id in await self._store.list_deleted(job_ids[at : at + ASKED_AT_ONCE]):
                await self._remove_files(job_id)

    async def _remove_files(self, job_id: str) -> None:
        """Remove the files of a deleted job; the next look at the files removes the rest."""
        try:
            await self._checkouts.delete_job(job_id)
        except (WorkspaceError, OSError) as error:
            self._log.warning("files.left", job=job_id, error=str(error))

    async def apply_to_files(self) -> None:
        """Remove checkouts, transcripts and other files that are too old or too large in all."""
        await self._discard_old_checkouts()
        config = self._deps.config
        awaited = await self._store.list_awaited()
        await self._checkouts.apply_retention(
            self._clock(), config.keep_transcripts, config.max_bytes, awaited
        )

    async def _discard_old_checkouts(self) -> None:
        """Remove the retained checkouts of ended jobs that are too old or not resumable."""
        max_age = self._deps.config.keep_checkouts
        if max_age is None:
            return
        for job_id in await self._checkouts.list_retained():
            job = await self._store.get(job_id)
            if job is None or not job.state.ended or job.finished_at is None:
                continue
            if not is_resumable(job) or job.finished_at < self._clock() - max_age:
                try:
                    await self._checkouts.discard(job_id)
                except (WorkspaceError, OSError) as error:
                    self._log.warning("files.left", job=job_id, error=str(error))

    async def delete_old_jobs(self) -> bool:
        """Delete the oldest of the jobs that ended too long ago; return True if there may be more of them."""
        keep_jobs = self._deps.config.keep_jobs
        if keep_jobs is None:
            return False
        found = await self._store.list_ended_before(self._clock() - keep_jobs, DELETED_AT_ONCE)
        # Known before the store answers: an answer may be lost, and the files of a job that is gone must go too.
        self._deleting.update(found)
        if not self._deleting:
            return False
        # The store first: it refuses if a turn was accepted meanwhile. What fails is tried again.
        self._deleting.difference_update(await self._store.delete_all(sorted(self._deleting)))
        for job_id in sorted(self._deleting):
            await self._remove_files(job_id)
            self._deleting.discard(job_id)
        return len(found) == DELETED_AT_ONCE
