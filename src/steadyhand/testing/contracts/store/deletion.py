"""What a store has to forget, the keys that it keeps beside its jobs, and its end."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from steadyhand.errors import Conflict, StoreError
from steadyhand.job import ENDED, Run, State
from steadyhand.ports import ApiKey, KeyLimits, RunOutput
from steadyhand.testing.contracts.samples import (
    NOON,
    accepted_draft,
    async_test,
    expect_error,
    make_job,
    message_drafts,
)
from steadyhand.testing.contracts.store.harness import QUEUED, StoreFactory, complete_job


class StoreRetentionContract(StoreFactory):
    """Retention, keys, and the store's end."""

    @async_test
    async def test_jobs_that_ended_before_a_moment_are_given_oldest_first(self) -> None:
        jobs = [make_job() for _ in range(4)]
        async with self.open() as store:
            for hours, job in zip((3, 1, 2), jobs, strict=False):
                await store.add(job, accepted_draft())
                await store.update_job(job.id, QUEUED, complete_job(NOON + timedelta(hours=hours)))
            await store.add(jobs[3], accepted_draft())
            moment = NOON + timedelta(hours=3)
            assert await store.list_ended_before(moment, 10) == [jobs[1].id, jobs[2].id]
            assert await store.list_ended_before(moment, 1) == [jobs[1].id]

    @async_test
    async def test_a_deleted_job_leaves_nothing_behind(self) -> None:
        job = make_job(runs=(Run(1, State.RUNNING),))
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.save_output(job.id, 1, RunOutput(("x",), ""))
            await store.update_job(job.id, QUEUED, complete_job(NOON))
            assert await store.delete(job.id) is True
            assert await store.get(job.id) is None
            assert await store.list_events(job.id) == []
            assert await store.get_output(job.id) is None
            assert await store.delete(job.id) is False

    @async_test
    async def test_a_job_that_has_not_ended_is_not_deleted(self) -> None:
        async with self.open() as store:
            for state in State:
                job = make_job(state=state)
                await store.add(job, accepted_draft())
                if state in ENDED:
                    assert await store.delete(job.id) is True
                else:
                    await expect_error(Conflict, store.delete(job.id))
                    assert await store.get(job.id) is not None

    @async_test
    async def test_keys_are_kept_and_one_with_the_same_id_is_replaced(self) -> None:
        one = ApiKey("k_1", "n8n", "a" * 64, frozenset({"submit", "read"}), NOON)
        limits = KeyLimits(("claude",), ("infra", "scratch"), 60, 2, 0, 5_000_000, 2**53)
        two = ApiKey(
            "k_2",
            "cron",
            "b" * 64,
            frozenset(),
            NOON + timedelta(seconds=1),
            limits,
            NOON + timedelta(days=1),
            "c" * 64,
            NOON + timedelta(days=2),
        )
        async with self.open() as store:
            assert await store.list_keys() == []
            await store.save_key(two)
            await store.save_key(one)
            await store.save_key(replace(one, name="make"))
            assert await store.list_keys() == [replace(one, name="make"), two]

    @async_test
    async def test_closing_commits_what_waits_and_refuses_what_comes_after(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.check()
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(store.append_events(job.id, message_drafts("last words")))
                await asyncio.sleep(0)  # lets the append hand itself in
                await store.close()
            assert [event.seq for event in waiting.result()] == [2]
            await store.close()
            for attempt in (
                store.get(job.id),
                store.add(make_job(), accepted_draft()),
                store.append_events(job.id, message_drafts("x")),
                store.check(),
            ):
                await expect_error(StoreError, attempt)
