"""The files of jobs in SQLite and Postgres, in a directory of objects, and in a real object store."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from steadyhand.errors import ArtifactTooLarge, ConfigError, StoreError, StoreUnavailable
from steadyhand.ports import Store
from steadyhand.ports.artifacts import Artifacts
from steadyhand.store import SqlStore, open_store
from steadyhand.store.object_store import ObjectBucket
from steadyhand.store.shared_artifacts import MeasuredFile, Objects, SharedArtifacts
from steadyhand.testing.contracts.artifacts import LARGE_BYTES, RUNNING, ArtifactsContract, running_job
from steadyhand.testing.contracts.samples import NOON, accepted_draft, async_test, expect_error
from steadyhand.testing.contracts.store.harness import complete_job
from steadyhand.testing.object_server import ObjectServer, object_server

DATABASE_BYTES = 8 << 20


def _count(connection: Connection) -> int:
    rows = connection.exec_driver_sql("SELECT count(DISTINCT artifact) FROM artifact_chunks").scalar()
    return int(rows or 0)


class TestArtifactsInSqlite(ArtifactsContract):
    database_bytes = DATABASE_BYTES
    bucket: Objects | None = None

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.url = f"sqlite:///{tmp_path / 'jobs.db'}"

    @asynccontextmanager
    async def open(
        self, clock: Callable[[], datetime] = lambda: NOON
    ) -> AsyncIterator[tuple[Store, Artifacts]]:
        store = await open_store(self.url, clock=clock)
        try:
            yield store, store.open_artifacts(self.database_bytes, self.bucket)
        finally:
            await store.close()

    async def count_contents(self, store: Store) -> int:
        assert isinstance(store, SqlStore)
        return await store._read(_count)

    async def damage(self, store: SqlStore) -> None:
        """Change the contents that are stored, but not their sizes."""
        data = "CAST('as it is.' AS BLOB)" if self.url.startswith("sqlite") else "'as it is.'::bytea"
        change = f"UPDATE artifact_chunks SET data = {data}"  # noqa: S608  # our own words
        await store._writer.submit(lambda at: at.exec_driver_sql(change))

    @async_test
    async def test_a_damaged_file_is_not_given_out(self) -> None:
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            await artifacts.save(job_id, 1, {"diff": self.file(b"as it was")})
            assert isinstance(store, SqlStore)
            await self.damage(store)
            (stored,) = (await artifacts.list_stored(job_id)).values()
            error = await expect_error(StoreError, artifacts.load(stored, self.root / "target"))
            assert "damaged" in str(error)
            assert not (self.root / "target").exists()

    @async_test
    async def test_what_a_killed_service_was_writing_is_removed_after_a_day(self) -> None:
        now = NOON
        async with self.open(lambda: now) as (store, artifacts):
            assert isinstance(artifacts, SharedArtifacts)
            job_id = await self.add(store, running_job())
            file = MeasuredFile("bundle", self.file(os.urandom(LARGE_BYTES)), LARGE_BYTES, "0" * 64)
            await artifacts._write_file(job_id, 1, file, [])  # and it dies here
            assert await artifacts.list_stored(job_id) == {}
            await artifacts.remove_unused()
            assert await self.count_contents(store) == 1
            now += timedelta(days=1)
            await artifacts.remove_unused()
            assert await self.count_contents(store) == 0


class TestArtifactsInPostgres(TestArtifactsInSqlite):
    @pytest.fixture(autouse=True)
    def server(self, place: None, postgres_url: str) -> None:  # noqa: ARG002  # after it
        self.url = postgres_url


class TestArtifactsInADirectory(TestArtifactsInSqlite):
    """Small files in the database, large ones in a directory that the nodes share."""

    database_bytes = 100

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.objects_dir = tmp_path / "objects"
        self.bucket = ObjectBucket(f"file://{self.objects_dir}")

    async def count_contents(self, store: Store) -> int:
        objects = [path for path in self.objects_dir.rglob("*") if path.is_file()]
        return await super().count_contents(store) + len(objects)


class TestArtifactsInAnObjectStore(TestArtifactsInSqlite):
    """All files in a real object store, which cannot put an object only if it is not there."""

    database_bytes = 0

    @pytest.fixture(autouse=True)
    def bucket_of_server(self, server: ObjectServer) -> None:
        self.server = server
        self.bucket = ObjectBucket(server.url, server.options)
        self.before = len(server.objects())

    async def count_contents(self, store: Store) -> int:
        assert await super().count_contents(store) == 0
        return len(self.server.objects()) - self.before

    async def damage(self, store: SqlStore) -> None:
        del store
        for path in self.server.objects():
            path.write_bytes(b"as it is.")

    @async_test
    async def test_while_the_object_store_is_away_nothing_is_stored_and_nothing_is_forgotten(self) -> None:
        small, large = b"small", os.urandom(LARGE_BYTES)
        async with self.open() as (store, artifacts):
            job_id = await self.add(store, running_job())
            await artifacts.save(job_id, 1, {"diff": self.file(small), "bundle": self.file(large)})
            self.server.stop()
            try:
                for content in (small, large):
                    late = {"diff": self.file(content + b"!"), "session": self.file(content)}
                    await expect_error(StoreUnavailable, artifacts.save(job_id, 1, late))
                stored = await artifacts.list_stored(job_id)
                assert set(stored) == {"diff", "bundle"}
                target = self.root / "target"
                await expect_error(StoreUnavailable, artifacts.load(stored["bundle"], target))
                assert not target.exists()
                await store.update_job(job_id, RUNNING, complete_job(NOON))
                await store.delete(job_id)
                await expect_error(StoreUnavailable, artifacts.remove_unused())
            finally:
                self.server.start()
            await artifacts.remove_unused()
            assert await self.count_contents(store) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(tmp_path_factory.mktemp("objects") / "served") as running:
        yield running


class TestBucket:
    """What is refused before anything is stored."""

    def test_a_file_that_is_not_on_this_machine_is_no_missing_object(self, tmp_path: Path) -> None:
        bucket = ObjectBucket(f"file://{tmp_path / 'bucket'}")
        put = bucket.put("jobs/a/session", tmp_path / "away")
        asyncio.run(expect_error(StoreUnavailable, put))

    @pytest.mark.parametrize("url", ["http://example.org/x", "/var/lib/x", "memory:///", "s3x://b/"])
    def test_another_kind_of_url_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"begins with one of file://, s3://"):
            ObjectBucket(url)

    def test_an_unknown_option_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="cannot be used"):
            ObjectBucket("s3://bucket/x", {"aws_endpiont": "http://127.0.0.1:1"})

    def test_without_a_bucket_a_large_file_is_refused_and_named(self, tmp_path: Path) -> None:
        async def main() -> ArtifactTooLarge:
            store = await open_store(f"sqlite:///{tmp_path / 'jobs.db'}")
            try:
                artifacts, job = store.open_artifacts(10, None), running_job()
                await store.add(job, accepted_draft())
                (tmp_path / "large").write_bytes(b"x" * 11)
                return await expect_error(
                    ArtifactTooLarge, artifacts.save(job.id, 1, {"bundle": tmp_path / "large"})
                )
            finally:
                await store.close()

        error = asyncio.run(main())
        assert error.name == "bundle"
        assert "11 bytes" in str(error)
