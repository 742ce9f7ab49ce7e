"""Tests of every queue, over a store that passes its own tests."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from steadyhand.errors import InvalidRequest, RetryLater
from steadyhand.job import Job, State
from steadyhand.outcome import StopReason
from steadyhand.ports import IdempotencyKey
from steadyhand.testing.contracts.queue_claims import (
    QueueAdoptionContract,
    QueueDirectoryContract,
    QueueSuspensionContract,
)
from steadyhand.testing.contracts.queue_harness import QueueFactory, QueueHarness
from steadyhand.testing.contracts.samples import NOON, accepted_draft, async_test, expect_error, make_job

__all__ = ["QueueContract", "QueueHarness"]

KEY = IdempotencyKey("again", "f" * 64)


class QueueOrderContract(QueueFactory):
    """The order of jobs, and their slots."""

    @async_test
    async def test_a_job_that_was_admitted_is_stored_and_claimed_as_stored(self) -> None:
        async with self.open() as bench:
            added = await bench.enqueue()
            assert await bench.store.get(added.job.id) == added.job
            claim = await bench.claim()
            assert (claim.job, claim.slot, claim.stop.reason) == (added.job, 0, None)

    @async_test
    async def test_a_higher_priority_goes_first_and_among_equals_the_earlier_one(self) -> None:
        async with self.open() as bench:
            jobs = [await bench.enqueue_job(priority=each) for each in (0, 5, -3, 5, 0)]
            places = [bench.queue.position(job.id) for job in jobs]
            assert places == [3, 1, 5, 2, 4]
            claimed = []
            for _ in jobs:
                claim = await bench.claim()
                claimed.append(claim.job.id)
                await bench.queue.release(claim)
            assert claimed == [jobs[each].id for each in (1, 3, 0, 4, 2)]

    @async_test
    async def test_a_readmitted_job_takes_the_place_of_its_first_acceptance(self) -> None:
        async with self.open() as bench:
            first = await bench.enqueue_job()
            second = await bench.enqueue_job()
            claim = await bench.claim()
            assert claim.job == first
            await bench.queue.release(claim)
            await bench.queue.requeue(first)
            assert bench.queue.position(first.id) == 1
            assert bench.queue.position(second.id) == 2
            assert (await bench.claim()).job == first

    @async_test
    async def test_a_job_that_is_readmitted_twice_is_claimed_once(self) -> None:
        async with self.open(capacity=2) as bench:
            job = await bench.enqueue_job()
            await bench.queue.requeue(job)
            await bench.queue.requeue(job)
            claim = await bench.claim()
            assert claim.job == job
            await bench.queue.release(claim)
            assert await bench.has_nothing_to_claim()
            other = await bench.enqueue_job()
            assert (await bench.claim()).job == other

    @async_test
    async def test_a_retried_job_waits_until_its_old_run_is_put_away(self) -> None:
        async with self.open(capacity=2) as bench:
            job = await bench.enqueue_job()
            claim = await bench.claim()
            await bench.queue.requeue(job)
            assert await bench.has_nothing_to_claim()
            other = await bench.enqueue_job()
            assert (await bench.claim()).job == other
            await bench.queue.release(claim)
            assert (await bench.claim()).job == job

    @async_test
    async def test_the_lowest_free_slot_is_given(self) -> None:
        async with self.open(capacity=3) as bench:
            for _ in range(5):
                await bench.enqueue_job()
            claims = [await bench.claim() for _ in range(3)]
            assert [claim.slot for claim in claims] == [0, 1, 2]
            await bench.queue.release(claims[2])
            await bench.queue.release(claims[1])
            assert [(await bench.claim()).slot, (await bench.claim()).slot] == [1, 2]

    @async_test
    async def test_a_hundred_jobs_with_capacity_two_all_run_in_order_and_never_three_at_a_time(self) -> None:
        async with self.open(capacity=2) as bench:
            jobs = [make_job(priority=n % 3) for n in range(100)]
            admitted = await asyncio.gather(*(bench.queue.enqueue(job, accepted_draft()) for job in jobs))
            claimed: list[Job] = []
            running: set[int] = set()
            most = 0
            both_run = asyncio.Event()
            all_done = asyncio.Event()

            async def work() -> None:
                nonlocal most
                while len(claimed) < len(jobs):
                    claim = await bench.claim()
                    assert claim.slot not in running
                    claimed.append(claim.job)
                    running.add(claim.slot)
                    most = max(most, len(running), bench.queue.load().active)
                    if len(running) == 2:
                        both_run.set()
                    await both_run.wait()  # the first one waits for the second
                    for _ in range(len(claimed) % 5):
                        await asyncio.sleep(0)
                    running.remove(claim.slot)
                    await bench.queue.release(claim)
                    if len(claimed) == len(jobs) and not running:
                        all_done.set()

            async with asyncio.timeout(150), asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(4)]
                await all_done.wait()
                for worker in workers:
                    worker.cancel()
            assert most == 2
            stored = [added.job for added in admitted]
            assert claimed == sorted(stored, key=lambda job: (-job.spec.priority, job.sequence))


class QueueBoundsContract(QueueFactory):
    """Room, refusals and repeats."""

    @async_test
    async def test_as_many_jobs_are_admitted_as_may_run_and_wait(self) -> None:
        async with self.open(capacity=2, max_queued=3) as bench:
            for _ in range(5):
                await bench.enqueue_job()
            error = await bench.refusal()
            assert error.code == "queue_full"
            assert 1 <= error.retry_after <= 600
            assert error.detail == f"The queue is full (3 jobs). Try again in {error.retry_after} s."
            claim = await bench.claim()
            await bench.refusal()
            await bench.queue.release(claim)
            await bench.enqueue_job()
            await bench.refusal()

    @async_test
    async def test_without_a_queue_a_free_slot_still_admits(self) -> None:
        async with self.open(capacity=1, max_queued=0) as bench:
            for _ in range(3):
                await bench.enqueue_job()
                assert (await bench.refusal()).code == "queue_full"
                claim = await bench.claim()
                assert (await bench.refusal()).code == "queue_full"
                await bench.queue.release(claim)

    @async_test
    async def test_a_slot_whose_job_is_about_to_end_has_room_and_is_claimed_when_given_back(self) -> None:
        async with self.open(capacity=1, max_queued=0) as bench:
            await bench.enqueue_job()
            first = await bench.claim()
            bench.queue.mark_ending(first.job.id)
            assert not bench.queue.load().busy
            second = await bench.enqueue_job()
            assert (await bench.refusal()).code == "queue_full"
            assert await bench.has_nothing_to_claim()
            await bench.queue.release(first)
            claim = await bench.claim()
            assert (claim.job.id, claim.slot) == (second.id, 0)
            assert bench.queue.load().active == 1

    @async_test
    async def test_of_many_at_once_no_more_are_admitted_than_there_is_room_for(self) -> None:
        async with self.open(capacity=2, max_queued=3) as bench:
            answers = await asyncio.gather(*(bench.enqueue_job() for _ in range(40)), return_exceptions=True)
            assert sum(isinstance(answer, Job) for answer in answers) == 5
            assert sum(isinstance(answer, RetryLater) for answer in answers) == 35
            assert await bench.stored() == 5

    @async_test
    async def test_a_repeat_gets_its_job_though_the_queue_is_full_and_is_queued_once(self) -> None:
        async with self.open(capacity=1, max_queued=0) as bench:
            first = await bench.enqueue(KEY)
            again = await bench.enqueue(KEY)
            assert (first.replayed, again.replayed) == (False, True)
            assert again.job == first.job
            await bench.refusal(IdempotencyKey("other", KEY.fingerprint))
            await bench.claim()
            assert bench.queue.load().queued == 0

    @async_test
    async def test_a_repeat_with_room_is_not_queued_again(self) -> None:
        async with self.open(capacity=2) as bench:
            await bench.enqueue_job(KEY)
            assert (await bench.enqueue(KEY)).replayed is True
            claim = await bench.claim()
            assert await bench.has_nothing_to_claim()
            await bench.queue.release(claim)
            assert (await bench.enqueue(KEY)).replayed is True
            assert await bench.has_nothing_to_claim()

    @async_test
    async def test_a_job_that_the_store_refuses_takes_no_room(self) -> None:
        async with self.open(capacity=1, max_queued=1) as bench:
            await bench.enqueue_job(KEY)
            for _ in range(5):
                error = await expect_error(
                    InvalidRequest, bench.enqueue_job(IdempotencyKey(KEY.key, "0" * 64))
                )
                assert error.code == "idempotency_mismatch"
            await bench.enqueue_job()
            assert bench.queue.load().queued == 2

    @async_test
    async def test_readmitted_jobs_are_taken_though_there_is_no_room(self) -> None:
        jobs = [replace(make_job(), sequence=each + 1) for each in range(5)]
        async with self.open(capacity=1, max_queued=1) as bench:
            for job in jobs:
                await bench.queue.requeue(job)
            assert bench.queue.load().queued == 5
            await bench.refusal()

    @async_test
    async def test_the_load_says_whether_a_new_job_would_start_at_once(self) -> None:
        async with self.open(capacity=2) as bench:
            loads = [bench.queue.load()]
            for _ in range(2):
                await bench.enqueue_job()
                await bench.claim()
                loads.append(bench.queue.load())
            assert [(load.active, load.queued, load.capacity) for load in loads] == [
                (0, 0, 2),
                (1, 0, 2),
                (2, 0, 2),
            ]
            assert [load.busy for load in loads] == [False, False, True]

    @async_test
    async def test_the_load_has_the_time_since_which_the_oldest_job_waits(self) -> None:
        async with self.open() as bench:
            assert bench.queue.oldest_queued_at() is None
            await bench.enqueue_job(queued_at=NOON + timedelta(seconds=9), priority=5)
            await bench.enqueue_job(queued_at=NOON + timedelta(seconds=3))
            assert bench.queue.oldest_queued_at() == NOON + timedelta(seconds=3)
            for _ in range(2):
                await bench.queue.release(await bench.claim())
            assert bench.queue.oldest_queued_at() is None

    @async_test
    async def test_jobs_that_waited_too_long_are_told(self) -> None:
        async with self.open() as bench:
            await bench.enqueue_job()
            one = await bench.enqueue_job(expires_in_seconds=60.0)
            requeued = await bench.enqueue_job(
                queued_at=NOON + timedelta(seconds=30), expires_in_seconds=60.0
            )
            never_queued_at = await bench.enqueue_job(queued_at=None, expires_in_seconds=60.0)
            await bench.enqueue_job(expires_in_seconds=1e300)
            assert await bench.queue.list_expired(NOON + timedelta(seconds=60)) == []
            found = await bench.queue.list_expired(NOON + timedelta(seconds=61))
            assert sorted(found) == sorted([one.id, never_queued_at.id])
            assert requeued.id in await bench.queue.list_expired(NOON + timedelta(seconds=91))


class QueueStopContract(QueueFactory):
    """Cancelling, draining, and callers that go away."""

    @async_test
    async def test_a_cancelled_job_is_withdrawn_and_never_claimed(self) -> None:
        async with self.open() as bench:
            first, second = await bench.enqueue_job(), await bench.enqueue_job()
            assert await bench.queue.cancel(first.id) == "withdrawn"
            assert bench.queue.position(first.id) is None
            assert (await bench.claim()).job == second
            assert await bench.queue.cancel(first.id) == "unknown"

    @async_test
    async def test_a_job_is_held_from_its_admission_until_its_slot_is_given_back(self) -> None:
        async with self.open() as bench:
            job = make_job()
            assert not bench.queue.holds(job.id)
            async with asyncio.TaskGroup() as group:
                group.create_task(bench.queue.enqueue(job, accepted_draft()))
                await asyncio.sleep(0)
                assert bench.queue.holds(job.id)
            assert bench.queue.holds(job.id)
            claim = await bench.claim()
            assert bench.queue.holds(job.id)
            await bench.queue.release(claim)
            assert not bench.queue.holds(job.id)
            withdrawn = await bench.enqueue_job()
            await bench.queue.cancel(withdrawn.id)
            assert not bench.queue.holds(withdrawn.id)

    @async_test
    async def test_a_running_job_is_asked_to_stop_and_the_first_reason_counts(self) -> None:
        async with self.open(capacity=2) as bench:
            await bench.enqueue_job()
            await bench.enqueue_job()
            one, other = await bench.claim(), await bench.claim()
            assert await bench.queue.cancel(one.job.id, StopReason.DEADLINE) == "stopping"
            assert await bench.queue.cancel(one.job.id) == "stopping"
            assert one.stop.reason is StopReason.DEADLINE
            assert other.stop.reason is None
            assert bench.queue.load().active == 2
            await bench.queue.release(one)
            assert await bench.queue.cancel(one.job.id) == "unknown"

    @async_test
    async def test_giving_a_slot_back_twice_gives_it_back_once(self) -> None:
        async with self.open() as bench:
            for _ in range(3):
                await bench.enqueue_job()
            first = await bench.claim()
            await bench.queue.release(first)
            second = await bench.claim()
            await bench.queue.release(first)
            assert bench.queue.load().active == 1
            assert await bench.has_nothing_to_claim()
            await bench.queue.release(second)
            assert (await bench.claim()).slot == 0

    @async_test
    async def test_a_claim_that_is_cancelled_loses_no_job_and_no_slot(self) -> None:
        async with self.open(capacity=1) as bench:
            for turns in range(12):
                async with asyncio.TaskGroup() as group:
                    claiming = group.create_task(bench.queue.claim())
                    await asyncio.sleep(0)
                    admitting = group.create_task(bench.enqueue_job())
                    if turns % 3 == 2:  # cancelled in the very turn in which it was woken
                        await asyncio.wait((admitting,))
                    for _ in range(turns // 3):
                        await asyncio.sleep(0)
                    claiming.cancel()
                claim = await bench.claim() if claiming.cancelled() else claiming.result()
                assert (claim.job.id, claim.slot) == (admitting.result().id, 0)
                await bench.queue.release(claim)
            assert bench.queue.load() == replace(bench.queue.load(), active=0, queued=0)

    @async_test
    async def test_a_caller_who_goes_away_leaves_a_job_both_stored_and_queued_or_neither(self) -> None:
        async with self.open(capacity=1, max_queued=100) as bench:
            for turns in range(8):
                async with asyncio.TaskGroup() as group:
                    admitting = group.create_task(bench.enqueue_job())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    admitting.cancel()
            await bench.enqueue_job()  # whatever was under way is committed before this one
            stored = await bench.store.list_in_states(frozenset({State.QUEUED}))
            assert [bench.queue.position(job.id) for job in stored] == list(range(1, len(stored) + 1))
            assert bench.queue.load().queued == len(stored)

    @async_test
    async def test_a_closed_queue_has_stored_each_new_job_also_if_its_caller_went_away(self) -> None:
        async with self.open() as bench:
            job = make_job()
            async with asyncio.TaskGroup() as group:
                adding = group.create_task(bench.queue.enqueue(job, accepted_draft()))
                await asyncio.sleep(0)
                adding.cancel()
            assert bench.queue.position(job.id) is None
            await bench.queue.close()
            assert bench.queue.position(job.id) == 1
            assert (await bench.refusal()).code == "draining"

    @async_test
    async def test_while_draining_nothing_is_admitted_or_claimed_and_nothing_is_lost(self) -> None:
        async with self.open(capacity=2) as bench:
            jobs: Sequence[Job] = [await bench.enqueue_job() for _ in range(3)]
            claim = await bench.claim()
            bench.queue.drain()
            error = await bench.refusal()
            assert (error.code, error.retry_after > 0) == ("draining", True)
            assert await bench.has_nothing_to_claim()
            await bench.queue.release(claim)
            assert await bench.has_nothing_to_claim()
            assert [bench.queue.position(job.id) for job in jobs] == [None, 1, 2]

    @async_test
    async def test_before_a_hand_over_jobs_are_admitted_and_none_is_claimed(self) -> None:
        async with self.open(capacity=2) as bench:
            bench.queue.drain(accepts_jobs=True)
            job = await bench.enqueue_job()
            assert await bench.has_nothing_to_claim()
            assert bench.queue.position(job.id) == 1
            bench.queue.drain()
            assert (await bench.refusal()).code == "draining"

    @async_test
    async def test_a_claim_that_waits_when_the_drain_begins_gets_nothing(self) -> None:
        async with self.open() as bench:
            job = await bench.enqueue_job()
            await bench.claim()
            async with asyncio.TaskGroup() as group:
                claiming = group.create_task(bench.queue.claim())
                await asyncio.sleep(0)
                bench.queue.drain()
                await bench.queue.requeue(job)
                for _ in range(100):
                    await asyncio.sleep(0)
                assert not claiming.done()
                claiming.cancel()

    @async_test
    async def test_every_run_that_is_held_is_asked_to_stop(self) -> None:
        async with self.open(capacity=2) as bench:
            for _ in range(3):
                await bench.enqueue_job()
            claims = [await bench.claim(), await bench.claim()]
            claims[0].stop.request(StopReason.CANCEL)
            bench.queue.stop_all(StopReason.SHUTDOWN)
            assert [claim.stop.reason for claim in claims] == [StopReason.CANCEL, StopReason.SHUTDOWN]
            async with asyncio.timeout(20):
                assert await claims[1].stop.wait() is StopReason.SHUTDOWN
            assert bench.queue.load().queued == 1


class QueueFairnessContract(QueueFactory):
    """The share of each key."""

    @async_test
    async def test_a_key_at_its_limit_waits_and_holds_up_nobody_else(self) -> None:
        async with self.open(capacity=3, most_running={"k_small": 1}) as bench:
            mine = [await bench.enqueue_job(api_key_id="k_small", priority=9) for _ in range(3)]
            other = await bench.enqueue_job()
            first = await bench.claim()
            assert first.job == mine[0]
            assert (await bench.claim()).job == other
            assert await bench.has_nothing_to_claim()
            assert [bench.queue.position(job.id) for job in mine] == [None, 1, 2]
            await bench.queue.release(first)
            assert (await bench.claim()).job == mine[1]
            assert await bench.has_nothing_to_claim()

    @async_test
    async def test_a_job_taken_out_of_a_line_leaves_the_rest_of_it_in_order(self) -> None:
        async with self.open(capacity=2, most_running={"k_small": 1}) as bench:
            mine = [await bench.enqueue_job(api_key_id="k_small") for _ in range(4)]
            held = await bench.claim()
            assert await bench.queue.cancel(mine[1].id) == "withdrawn"
            assert await bench.queue.cancel(mine[3].id) == "withdrawn"
            await bench.queue.requeue(replace(mine[3]))
            await bench.queue.release(held)
            claim = await bench.claim()
            assert claim.job == mine[2]
            await bench.queue.release(claim)
            assert (await bench.claim()).job == mine[3]
            assert bench.queue.load().queued == 0

    @async_test
    async def test_the_backlog_of_a_key_is_its_own(self) -> None:
        async with self.open(capacity=3, most_running={"k_small": 2}) as bench:
            assert bench.queue.backlog("k_small").startable == 2
            assert bench.queue.backlog("k_one").startable == 3
            for _ in range(4):
                await bench.enqueue_job(api_key_id="k_small")
            claims = [await bench.claim(), await bench.claim()]
            small, one = bench.queue.backlog("k_small"), bench.queue.backlog("k_one")
            assert (small.waiting, small.startable) == (2, 0)
            assert (one.waiting, one.startable) == (0, 1)
            assert small.retry_after >= 1
            bench.queue.mark_ending(claims[0].job.id)
            assert bench.queue.backlog("k_small").startable == 1
            assert bench.queue.backlog("k_one").startable == 2

    @async_test
    async def test_what_is_on_its_way_into_the_store_counts_as_waiting(self) -> None:
        async with self.open(capacity=1) as bench:
            async with asyncio.TaskGroup() as group:
                for key_id in ("k_one", "k_two", "k_two"):
                    group.create_task(bench.enqueue_job(api_key_id=key_id))
                await asyncio.sleep(0)  # lets them hand themselves in
                assert bench.queue.backlog("k_two").waiting == 2
                assert bench.queue.backlog("k_one").waiting == 1
            assert bench.queue.backlog("k_two").waiting == 2
            assert bench.queue.load().queued == 3

    @async_test
    async def test_overdue_jobs_of_all_keys_are_told_next_first(self) -> None:
        async with self.open(capacity=1) as bench:
            late = [
                await bench.enqueue_job(api_key_id=key_id, priority=priority, expires_in_seconds=1.0)
                for key_id, priority in (("k_one", 0), ("k_two", 1), ("k_one", 2))
            ]
            wanted = [late[2].id, late[1].id, late[0].id]
            assert list(await bench.queue.list_expired(NOON + timedelta(seconds=2))) == wanted


class QueueContract(
    QueueOrderContract,
    QueueBoundsContract,
    QueueFairnessContract,
    QueueAdoptionContract,
    QueueDirectoryContract,
    QueueSuspensionContract,
    QueueStopContract,
):
    """All of it."""
