"""Tests of every queue: claims that wait for clients, and jobs that need a directory for themselves."""

import asyncio

from steadyhand.outcome import StopReason
from steadyhand.testing.contracts.queue_harness import QueueFactory
from steadyhand.testing.contracts.samples import async_test, long_text, make_job


class QueueDirectoryContract(QueueFactory):
    """Jobs that need a directory for themselves."""

    @async_test
    async def test_of_the_jobs_in_one_directory_one_is_claimed_and_the_others_hold_up_nobody(self) -> None:
        async with self.open(capacity=3, directories={"site": "/srv/site", "copy": "/srv/site"}) as bench:
            first = await bench.enqueue_job(workspace="site")
            second = await bench.enqueue_job(workspace="copy", priority=-1)
            third = await bench.enqueue_job(workspace="site", priority=-2)
            others = [await bench.enqueue_job(workspace="else", priority=-3), await bench.enqueue_job()]
            claim = await bench.claim()
            assert claim.job == first
            assert [(await bench.claim()).job for _ in others] == [others[1], others[0]]
            assert await bench.has_nothing_to_claim()
            assert [bench.queue.position(job.id) for job in (second, third)] == [1, 2]
            await bench.queue.release(claim)
            following = await bench.claim()
            assert following.job == second
            await bench.queue.release(following)
            assert (await bench.claim()).job == third

    @async_test
    async def test_a_suspended_job_keeps_its_directory(self) -> None:
        async with self.open(capacity=1, max_suspended=1, directories={"site": "/srv/site"}) as bench:
            await bench.enqueue_job(workspace="site")
            waiting = await bench.enqueue_job(workspace="site")
            claim = await bench.claim()
            bench.queue.suspend(claim)
            assert await bench.has_nothing_to_claim()
            assert bench.queue.position(waiting.id) == 1
            await bench.queue.release(claim)
            assert (await bench.claim()).job == waiting

    @async_test
    async def test_a_directory_may_have_the_longest_path(self) -> None:
        path = long_text(2048, "/srv/")
        async with self.open(capacity=2, directories={path: path}) as bench:
            jobs = [await bench.enqueue_job(workspace=path) for _ in range(2)]
            for job in jobs:
                claim = await bench.claim()
                assert claim.job == job
                assert await bench.has_nothing_to_claim()
                await bench.queue.release(claim)


class QueueAdoptionContract(QueueFactory):
    """Claims of jobs that run already when the queue is opened."""

    @async_test
    async def test_an_adopted_job_has_its_slot_and_leaves_the_others_to_new_jobs(self) -> None:
        async with self.open(capacity=2, directories={"site": "/srv/site"}) as bench:
            running = make_job(id="running", workspace="site")
            claim = bench.queue.adopt(running, 1)
            assert claim is not None
            assert (claim.job, claim.slot) == (running, 1)
            assert bench.queue.holds(running.id)
            assert bench.queue.adopt(make_job(id="other"), 1) is None, "the slot is taken"
            assert bench.queue.adopt(make_job(id="other"), 99) is None, "there is no such slot"
            await bench.enqueue_job(workspace="site")
            assert await bench.has_nothing_to_claim(), "its directory is in use"
            others = [await bench.enqueue_job() for _ in range(2)]
            first = await bench.claim()
            assert (first.job, first.slot) == (others[0], 0)
            assert await bench.has_nothing_to_claim()
            assert await bench.queue.cancel(running.id) == "stopping"
            assert claim.stop.reason is StopReason.CANCEL
            await bench.queue.release(claim)
            assert (await bench.claim()).slot == 1


class QueueSuspensionContract(QueueFactory):
    """Claims whose runs wait for their clients."""

    @async_test
    async def test_another_job_runs_in_place_of_a_suspended_one_in_a_slot_of_its_own(self) -> None:
        async with self.open(capacity=1, max_suspended=2) as bench:
            jobs = [await bench.enqueue_job() for _ in range(4)]
            slots = []
            for job in jobs[:2]:
                claim = await bench.claim()
                assert claim.job == job
                assert await bench.has_nothing_to_claim()
                slots.append(claim.slot)
                bench.queue.suspend(claim)
                assert bench.queue.load().active == 0
                assert bench.queue.holds(job.id)
            slots.append((await bench.claim()).slot)
            assert sorted(slots) == [0, 1, 2]
            assert bench.queue.load().active == 1
            assert await bench.has_nothing_to_claim()

    @async_test
    async def test_a_job_that_goes_on_runs_before_any_that_waits(self) -> None:
        async with self.open(capacity=1, max_suspended=2) as bench:
            for _ in range(3):
                await bench.enqueue_job()
            waiting = await bench.enqueue_job(priority=9)
            first = await bench.claim()
            assert first.job == waiting
            claims = [first]
            for _ in range(2):
                bench.queue.suspend(claims[-1])
                claims.append(await bench.claim())
            # The second asks first, then the first; both come before the job that waits.
            assert [bench.queue.resume(claims[1]), bench.queue.resume(claims[0])] == [False, False]
            async with asyncio.TaskGroup() as group:
                going = [group.create_task(bench.queue.wait_until_resumed(claims[at])) for at in (1, 0)]
                assert await bench.has_nothing_to_claim()
                assert [task.done() for task in going] == [False, False]
                await bench.queue.release(claims[2])
                assert await bench.has_nothing_to_claim()
                assert [task.done() for task in going] == [True, False]
                await bench.queue.release(claims[1])
                assert await bench.has_nothing_to_claim()
                assert going[1].done()
            assert bench.queue.load().active == 1
            await bench.queue.release(claims[0])
            assert (await bench.claim()).job.spec.priority == 0

    @async_test
    async def test_a_job_that_goes_on_when_a_slot_is_free_runs_at_once(self) -> None:
        async with self.open(capacity=1, max_suspended=1) as bench:
            await bench.enqueue_job()
            claim = await bench.claim()
            assert bench.queue.resume(claim)  # it was not suspended
            bench.queue.suspend(claim)
            bench.queue.suspend(claim)
            assert bench.queue.load().active == 0
            assert bench.queue.resume(claim)
            assert bench.queue.load().active == 1
            async with asyncio.timeout(20):
                await bench.queue.wait_until_resumed(claim)
            await bench.enqueue_job()
            assert await bench.has_nothing_to_claim()

    @async_test
    async def test_a_request_to_go_on_can_be_withdrawn(self) -> None:
        async with self.open(capacity=1, max_suspended=1) as bench:
            for _ in range(3):
                await bench.enqueue_job()
            first = await bench.claim()
            bench.queue.suspend(first)
            second = await bench.claim()
            assert not bench.queue.resume(first)
            bench.queue.suspend(first)
            await bench.queue.release(second)
            third = await bench.claim()
            assert not bench.queue.resume(first)
            await bench.queue.release(first)  # its process has ended
            async with asyncio.timeout(20):
                await bench.queue.wait_until_resumed(first)
            await bench.queue.release(third)
            assert bench.queue.load().active == 0

    @async_test
    async def test_a_suspended_job_does_not_count_against_its_key_until_it_goes_on(self) -> None:
        async with self.open(capacity=3, max_suspended=3, most_running={"k_small": 1}) as bench:
            for _ in range(3):
                await bench.enqueue_job(api_key_id="k_small")
            first = await bench.claim()
            assert await bench.has_nothing_to_claim()
            bench.queue.suspend(first)
            assert bench.queue.backlog("k_small").startable == 1
            second = await bench.claim()
            assert not bench.queue.resume(first)
            other = await bench.enqueue_job()
            assert (await bench.claim()).job == other  # the key's limit holds up its own jobs alone
            await bench.queue.release(second)
            async with asyncio.timeout(20):
                await bench.queue.wait_until_resumed(first)
            assert await bench.has_nothing_to_claim()

    @async_test
    async def test_a_suspended_job_leaves_room_for_a_new_one(self) -> None:
        async with self.open(capacity=1, max_queued=0, max_suspended=1) as bench:
            await bench.enqueue_job()
            claim = await bench.claim()
            await bench.refusal()
            bench.queue.suspend(claim)
            assert not bench.queue.load().busy
            await bench.enqueue_job()
            await bench.refusal()

    @async_test
    async def test_a_suspended_job_can_be_stopped_and_goes_on_while_draining(self) -> None:
        async with self.open(capacity=1, max_suspended=2) as bench:
            for _ in range(2):
                await bench.enqueue_job()
            one = await bench.claim()
            bench.queue.suspend(one)
            other = await bench.claim()
            bench.queue.suspend(other)
            bench.queue.drain()
            assert bench.queue.resume(one)
            assert await bench.queue.cancel(other.job.id) == "stopping"
            bench.queue.stop_all(StopReason.SHUTDOWN)
            assert [one.stop.reason, other.stop.reason] == [StopReason.SHUTDOWN, StopReason.CANCEL]

    @async_test
    async def test_a_job_that_is_queued_to_go_on_comes_before_all_others(self) -> None:
        async with self.open(capacity=1) as bench:
            ended = await bench.enqueue_job(priority=-5)
            await bench.queue.release(await bench.claim())
            urgent = await bench.enqueue_job(priority=9)
            await bench.queue.requeue(ended, goes_on=True)
            assert [bench.queue.position(job.id) for job in (ended, urgent)] == [1, 2]
            assert (await bench.claim()).job == ended
