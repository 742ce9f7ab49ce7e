"""Tests of every store for the files of jobs that nodes share."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from steadyhand.errors import Conflict, NotFound
from steadyhand.job import Job, Run, State
from steadyhand.ports import Store
from steadyhand.ports.artifacts import Artifacts
from steadyhand.testing.contracts.samples import NOON, accepted_draft, async_test, expect_error, make_job

RUNNING = frozenset({State.RUNNING})
LARGE_BYTES = 3_000_000
"""More than one part of anything: of the database, of an upload, of a download."""


def running_job() -> Job:
    """Return a job in its first run."""
    return make_job(state=State.RUNNING, runs=(Run(1, State.RUNNING),))


class ArtifactsContract:
    """Subclass it and define `open`. A store of files belongs to a store of jobs."""

    root: Path
    """A directory for files of the tests."""

    def open(
        self, clock: Callable[[], datetime] = lambda: NOON
    ) -> AbstractAsyncContextManager[tuple[Store, Artifacts]]:
        """Open empty stores for one test."""
        raise NotImplementedError

    async def count_contents(self, store: Store) -> int:
        """Return the number of stored contents: pieces in the database and objects."""
        raise NotImplementedError

    def file(self, content: bytes) -> Path:
        """Return the path of a new file with this content."""
        path = self.root / os.urandom(8).hex()
        path.write_bytes(content)
        return path

    async def read(self, artifacts: Artifacts, job_id: str, name: str) -> bytes:
        """Return the content of a stored file."""
        target = self.root / os.urandom(8).hex()
        await artifacts.load((await artifacts.list_stored(job_id))[name], target)
        return target.read_bytes()

    async def add(self, store: Store, job: Job) -> str:
        """Store a job and return its id."""
        await store.add(job, accepted_draft())
        return job.id

    @async_test
    async def test_files_of_any_size_come_back_as_they_were(self) -> None:
        large = os.urandom(LARGE_BYTES)
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            assert await artifacts.list_stored(job_id) == {}
            files = {"diff": self.file(b""), "bundle": self.file(large), "session": self.file(b"\x00\xffs")}
            await artifacts.save(job_id, 1, {**files, "transcript": None})
            assert set(await artifacts.list_stored(job_id)) == {"diff", "bundle", "session"}
            assert await self.read(artifacts, job_id, "diff") == b""
            assert await self.read(artifacts, job_id, "bundle") == large
            assert await self.read(artifacts, job_id, "session") == b"\x00\xffs"

    @async_test
    async def test_a_file_takes_the_place_of_the_one_before_and_nothing_of_that_is_left(self) -> None:
        first, second = os.urandom(LARGE_BYTES), os.urandom(LARGE_BYTES)
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            await artifacts.save(job_id, 1, {"bundle": self.file(first), "diff": self.file(b"one")})
            count = await self.count_contents(store)
            old = await artifacts.list_stored(job_id)
            await artifacts.save(job_id, 1, {"bundle": self.file(second), "diff": self.file(b"two")})
            while await artifacts.remove_unused():
                pass
            assert await self.read(artifacts, job_id, "bundle") == second
            assert await self.read(artifacts, job_id, "diff") == b"two"
            assert await self.count_contents(store) == count
            target = self.root / "late"
            for each in old.values():
                await expect_error(NotFound, artifacts.load(each, target))
                assert not target.exists()
            await artifacts.save(job_id, 1, {"bundle": None, "diff": None})
            await artifacts.remove_unused()
            assert await artifacts.list_stored(job_id) == {}
            assert await self.count_contents(store) == 0

    @async_test
    async def test_what_has_not_changed_is_not_written_again(self) -> None:
        large = os.urandom(LARGE_BYTES)
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            await artifacts.save(job_id, 1, {"bundle": self.file(large), "diff": self.file(b"same")})
            before = await artifacts.list_stored(job_id)
            runs = (Run(1, State.INTERRUPTED), Run(2, State.RUNNING))
            await store.update_job(job_id, RUNNING, lambda job: replace(job, runs=runs))
            await artifacts.save(job_id, 2, {"bundle": self.file(large), "diff": self.file(b"same")})
            stored = await artifacts.list_stored(job_id)
            assert stored == {name: replace(each, run=2) for name, each in before.items()}

    @async_test
    async def test_a_run_that_another_has_followed_stores_nothing(self) -> None:
        large = os.urandom(LARGE_BYTES)
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            await artifacts.save(job_id, 1, {"session": self.file(b"one"), "bundle": self.file(large)})
            runs = (Run(1, State.INTERRUPTED), Run(2, State.RUNNING))
            await store.update_job(job_id, RUNNING, lambda job: replace(job, runs=runs))
            for late in ({"session": self.file(b"late")}, {"session": self.file(large)}, {"session": None}):
                error = await expect_error(Conflict, artifacts.save(job_id, 1, late))
                assert error.code == "run_is_over"
            assert await self.read(artifacts, job_id, "session") == b"one"
            await artifacts.save(job_id, 2, {"session": self.file(b"two")})
            assert await self.read(artifacts, job_id, "session") == b"two"
            assert await self.read(artifacts, job_id, "bundle") == large

    @async_test
    async def test_files_go_with_their_job(self) -> None:
        ended = {"state": State.COMPLETED, "finished_at": NOON, "runs": (Run(1, State.COMPLETED),)}
        async with self.open() as (store, artifacts):
            gone, other = await self.add(store, make_job(**ended)), await self.add(store, make_job(**ended))
            for job_id in (gone, other):
                files = {"diff": self.file(b"x"), "bundle": self.file(os.urandom(LARGE_BYTES))}
                await artifacts.save(job_id, 1, files)
            count = await self.count_contents(store)
            await store.delete(gone)
            assert await artifacts.list_stored(gone) == {}
            await artifacts.remove_unused()
            assert await self.count_contents(store) == count // 2
            assert await self.read(artifacts, other, "diff") == b"x"
            for late in (b"small", os.urandom(LARGE_BYTES)):
                await expect_error(NotFound, artifacts.save(gone, 1, {"diff": self.file(late)}))
            assert await self.count_contents(store) == count // 2

    @async_test
    async def test_old_files_of_some_names_are_removed_but_not_those_of_spared_jobs(self) -> None:
        now = NOON
        async with self.open(lambda: now) as (store, artifacts):
            job_ids = [await self.add(store, running_job()) for _ in range(3)]
            for job_id in job_ids:
                if job_id == job_ids[2]:
                    now += timedelta(hours=1)
                await artifacts.save(job_id, 1, {"session": self.file(b"s"), "diff": self.file(b"d")})
            await artifacts.remove_older(("session",), now, job_ids[:1])
            await artifacts.remove_unused()
            names = [set(await artifacts.list_stored(job_id)) for job_id in job_ids]
            assert names == [{"session", "diff"}, {"diff"}, {"session", "diff"}]
