"""Tests of texts that are as long as a caller may make them: an index of a database may have no room for one."""

from steadyhand.errors import InvalidRequest
from steadyhand.job import State
from steadyhand.ports import IdempotencyKey, JobFilter
from steadyhand.testing.contracts.samples import (
    NOON,
    accepted_draft,
    async_test,
    expect_error,
    long_text,
    make_job,
)
from steadyhand.testing.contracts.store.harness import QUEUED, StoreFactory, complete_job

PATHS = (
    long_text(2047, "/srv/") + "1",
    long_text(2047, "/srv/") + "2",
    "/srv/" + "\\x5c'" * 400,
    "https://git.example.org/" + "a" * 2000,
    "\\",
)
"""Paths of workspaces, of which two differ in their last character alone."""


class StoreLongTextsContract(StoreFactory):
    """Paths, names and keys."""

    @async_test
    async def test_jobs_are_found_by_the_longest_paths_of_their_workspaces(self) -> None:
        async with self.open() as store:
            jobs = {path: [make_job(workspace=path, metadata={"n": 1}) for _ in range(2)] for path in PATHS}
            others = [make_job(), make_job(workspace="/srv")]
            for job in (*others, *(each for pair in jobs.values() for each in pair)):
                await store.add(job, accepted_draft())
            for path, (first, second) in jobs.items():
                for job_filter in (
                    JobFilter(workspace=path),
                    JobFilter(workspace=path, agent="claude"),
                    JobFilter(workspace=path, states=QUEUED),
                    JobFilter(workspace=path, metadata={"n": "1"}),
                    JobFilter(workspace=path, search="say"),
                ):
                    page = await store.list_jobs(job_filter, 5)
                    assert [job.id for job in page.jobs] == [second.id, first.id], job_filter
                    assert page.jobs[0].workspace == path
                await store.update_job(first.id, QUEUED, complete_job(NOON))
                await store.delete(first.id)
                ended = JobFilter(workspace=path, states=frozenset({State.COMPLETED}))
                assert (await store.list_jobs(ended, 5)).jobs == []
                (left,) = (await store.list_jobs(JobFilter(workspace=path), 5)).jobs
                assert left.id == second.id

    @async_test
    async def test_names_keys_and_metadata_may_be_as_long_as_a_caller_can_make_them(self) -> None:
        name, value = long_text(128), long_text(3000)
        key = IdempotencyKey(long_text(255), "f" * 64)
        async with self.open() as store:
            job = make_job(
                session_name=name,
                title=long_text(200),
                metadata={value: value},
                prompt=long_text(20_000),
                agent="a" * 64,
                api_key_id="k" * 64,
            )
            added = await store.add(job, accepted_draft(), key)
            assert (await store.add(job, accepted_draft(), key)).replayed
            await expect_error(
                InvalidRequest, store.get_replayed(job.api_key_id, IdempotencyKey(key.key, "0" * 64))
            )
            for job_filter in (
                JobFilter(session_name=name, api_key_id=job.api_key_id),
                JobFilter(metadata={value: value}),
                JobFilter(agent=job.agent, api_key_id=job.api_key_id),
            ):
                (found,) = (await store.list_jobs(job_filter, 5)).jobs
                assert found.id == added.job.id
