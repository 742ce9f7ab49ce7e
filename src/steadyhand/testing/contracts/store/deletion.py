"""Tests of every store: deletion and retention, the keys beside the jobs, and its end."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from steadyhand.errors import Conflict, NotFound, StoreError
from steadyhand.job import ENDED, Job, Run, State
from steadyhand.ports import AddResult, ApiKey, JobFilter, KeyLimits, RunOutput, Store
from steadyhand.testing.contracts.samples import (
    NOON,
    accepted_draft,
    async_test,
    expect_error,
    make_job,
    message_drafts,
)
from steadyhand.testing.contracts.store.harness import QUEUED, StoreFactory, complete_job

RUNNING = frozenset({State.RUNNING})


async def _add(store: Store, job: Job) -> AddResult:
    return await store.add(job, accepted_draft())


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
    async def test_of_jobs_that_are_deleted_together_those_that_may_not_be_are_named(self) -> None:
        ended = [make_job(state=State.COMPLETED, finished_at=NOON) for _ in range(4)]
        waiting = make_job()
        turn = make_job(parent_job_id=ended[3].id)
        async with self.open() as store:
            for job in (*ended, waiting, turn):
                await store.add(job, accepted_draft())
            refused = await store.delete_all([*(job.id for job in ended), waiting.id, "0" * 12])
            assert set(refused) == {waiting.id, ended[3].id}
            left = await store.list_jobs(JobFilter(), 10)
            assert [job.id for job in left.jobs] == [turn.id, waiting.id, ended[3].id]
            assert await store.delete_all([]) == []

    @async_test
    async def test_the_store_remembers_for_thirty_days_that_it_has_deleted_a_job(self) -> None:
        jobs = [make_job(state=State.COMPLETED, finished_at=NOON) for _ in range(3)]
        waiting = make_job()
        now = NOON
        async with self.open(clock=lambda: now) as store:
            for job in (*jobs, waiting):
                await store.add(job, accepted_draft())
            ids = [*(job.id for job in jobs), waiting.id, "0" * 12]
            assert await store.list_deleted(ids) == []
            await store.delete(jobs[0].id)
            await store.delete_all([jobs[1].id, waiting.id, "0" * 12])
            assert set(await store.list_deleted(ids)) == {jobs[0].id, jobs[1].id}
            assert await store.list_deleted([jobs[2].id]) == []
            now += timedelta(days=30)
            await store.delete(jobs[2].id)
            assert await store.list_deleted(ids) == [jobs[2].id]

    @async_test
    async def test_the_interrupted_jobs_that_the_next_start_queues_again_come_in_the_order_of_acceptance(
        self,
    ) -> None:
        hostile = {"at_start": "fresh", "x": '"at_start":"fresh"'}
        interrupted = {"state": State.INTERRUPTED, "finished_at": NOON}
        jobs = [
            make_job(**interrupted, at_start="resume"),
            make_job(**interrupted),
            make_job(**interrupted, output_schema=hostile, title='"at_start":"fresh"'),
            make_job(at_start="fresh"),
            make_job(**interrupted, at_start="fresh", output_schema={"at_start": None}),
        ]
        async with self.open() as store:
            for job in jobs:
                await store.add(job, accepted_draft())
            assert [job.id for job in await store.list_restarted()] == [jobs[0].id, jobs[4].id]
            await store.update_job(
                jobs[0].id,
                frozenset({State.INTERRUPTED}),
                lambda job: replace(job, state=State.QUEUED, at_start=None),
            )
            assert [job.id for job in await store.list_restarted()] == [jobs[4].id]

    @async_test
    async def test_a_job_that_a_turn_waits_for_is_neither_deleted_nor_listed_as_old(self) -> None:
        root = make_job(
            state=State.COMPLETED, finished_at=NOON, runs=(Run(1, State.COMPLETED, supervisor=7),)
        )
        never_ran = make_job(state=State.CANCELLED, finished_at=NOON, parent_job_id=root.id)
        turn = make_job(parent_job_id=never_ran.id, begin="resume")
        async with self.open() as store:
            for job in (root, never_ran, turn):
                await store.add(job, accepted_draft())
            assert await store.list_awaited() == {root.id: turn.id, never_ran.id: turn.id}
            assert await store.list_ended_before(NOON + timedelta(days=1), 10) == []
            for job in (root, never_ran):
                error = await expect_error(Conflict, store.delete(job.id))
                assert turn.id in error.detail
            first_run = (Run(1, State.RUNNING),)
            await store.update_job(
                turn.id, QUEUED, lambda job: replace(job, state=State.RUNNING, runs=first_run)
            )
            await expect_error(Conflict, store.delete(root.id))  # its session may not be copied yet
            has_agent = (replace(first_run[0], supervisor=8),)
            await store.update_job(turn.id, RUNNING, lambda job: replace(job, runs=has_agent))
            assert await store.list_awaited() == {}
            await store.update_job(turn.id, RUNNING, complete_job(NOON))
            assert set(await store.list_ended_before(NOON + timedelta(days=1), 10)) == {
                root.id,
                never_ran.id,
                turn.id,
            }
            assert await store.delete(root.id) is True

    @async_test
    async def test_a_turn_that_resumes_its_own_session_waits_for_no_other_job(self) -> None:
        ran = {
            "state": State.COMPLETED,
            "finished_at": NOON,
            "runs": (Run(1, State.COMPLETED, supervisor=7),),
        }
        before, root = make_job(**ran), make_job(**ran)
        root = replace(root, parent_job_id=before.id)
        turns = [
            make_job(parent_job_id=root.id, begin=begin, runs=(Run(1, State.INTERRUPTED),))
            for begin in ("resume", "fresh")
        ]
        async with self.open() as store:
            for job in (before, root, turns[0]):
                await store.add(job, accepted_draft())
            assert await store.list_awaited() == {}
            await store.add(turns[1], accepted_draft())  # a retry starts from the beginning again
            assert await store.list_awaited() == {root.id: turns[1].id}
            assert await store.delete(before.id) is True  # the newer session has all of it

    @async_test
    async def test_a_turn_of_a_job_that_is_deleted_is_not_stored(self) -> None:
        parent = make_job(state=State.COMPLETED, finished_at=NOON)
        turn, other = make_job(parent_job_id=parent.id), make_job()
        async with self.open() as store:
            await store.add(parent, accepted_draft())
            async with asyncio.TaskGroup() as group:  # one commit
                group.create_task(store.delete(parent.id))
                refused = group.create_task(expect_error(NotFound, _add(store, turn)))
                added = group.create_task(_add(store, other))
            assert refused.result().detail == "Job not found"
            assert added.result().job.id == other.id
            assert await store.get(turn.id) is None

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
