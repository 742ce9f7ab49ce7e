"""The contract on the local queue; and what only it has: pausing, its guess when to come back, any history."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.example_counts import examples

from steadyhand.errors import RetryLater
from steadyhand.job import Job
from steadyhand.ports import AddResult, Claim
from steadyhand.queue import LocalQueue, local
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.queue import QueueContract, QueueHarness
from steadyhand.testing.contracts.samples import NOON, accepted_draft, make_job


class TestLocalQueue(QueueContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/jobs.db"

    @asynccontextmanager
    async def open(
        self,
        *,
        capacity: int = 1,
        max_queued: int = 100,
        max_suspended: int = 0,
        most_running: Mapping[str, int] | None = None,
        directories: Mapping[str | None, str] | None = None,
    ) -> AsyncIterator[QueueHarness]:
        store = await open_store(self.url)
        limits, directories = most_running or {}, directories or {}
        try:
            queue = LocalQueue(
                store,
                capacity=capacity,
                max_queued=max_queued,
                max_suspended=max_suspended,
                running_limit=limits.get,
                directory_of=lambda job: directories.get(job.workspace),
            )
            yield QueueHarness(queue, store)
        finally:
            await store.close()


@asynccontextmanager
async def a_store(directory: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{directory}/jobs.db")
    try:
        yield store
    finally:
        await store.close()


def test_a_paused_queue_admits_and_never_claims(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with a_store(tmp_path) as store:
            bench = QueueHarness(LocalQueue(store, capacity=2, max_queued=5, paused=True), store)
            for _ in range(7):
                await bench.enqueue_job()
            assert await bench.has_nothing_to_claim()
            load = bench.queue.load()
            assert (load.active, load.queued) == (0, 7)

    asyncio.run(scenario())


def test_a_suspended_job_is_not_among_those_that_run_and_its_wait_does_not_make_runs_look_longer(
    tmp_path: Path,
) -> None:
    now = 1000.0

    async def scenario() -> None:
        nonlocal now
        async with a_store(tmp_path) as store:
            queue = LocalQueue(store, capacity=1, max_queued=0, max_suspended=1, clock=lambda: now)
            await queue.enqueue(make_job(), accepted_draft())
            claim = await queue.claim()
            assert queue.active_jobs() == [claim.job]
            now += 10
            queue.suspend(claim)
            assert queue.active_jobs() == []
            now += 500
            assert queue.resume(claim)
            assert queue.active_jobs() == [claim.job]
            now += 5
            with pytest.raises(RetryLater) as refused:
                await queue.enqueue(make_job(), accepted_draft())
            assert refused.value.retry_after == 15  # of the 30 s that a run takes by default
            await queue.release(claim)
            await queue.enqueue(make_job(), accepted_draft())
            await queue.claim()
            with pytest.raises(RetryLater) as refused:
                await queue.enqueue(make_job(), accepted_draft())
            assert refused.value.retry_after == 15  # as long as the run before

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("lengths", "elapsed", "wanted"),
    [((), 0, 30), ((10, 20), 0, 15), ((10, 20), 5, 10), ((10,), 500, 1), ((9000,), 0, 600), ((0.2,), 0, 1)],
)
def test_a_refused_caller_is_told_when_the_next_run_may_end(
    tmp_path: Path, lengths: tuple[float, ...], elapsed: float, wanted: int
) -> None:
    now = 1000.0

    async def scenario() -> None:
        nonlocal now
        async with a_store(tmp_path) as store:
            queue = LocalQueue(store, capacity=1, max_queued=0, clock=lambda: now)
            for length in lengths:
                await queue.enqueue(make_job(), accepted_draft())
                claim = await queue.claim()
                now += length
                await queue.release(claim)
            await queue.enqueue(make_job(), accepted_draft())
            await queue.claim()
            now += elapsed
            with pytest.raises(RetryLater) as refused:
                await queue.enqueue(make_job(), accepted_draft())
            assert refused.value.retry_after == wanted
            assert str(refused.value) == f"Every slot is taken (1 job). Try again in {wanted} s."

    asyncio.run(scenario())


def test_a_queue_closes_also_while_its_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.queue.new_jobs.CLOSE_SECONDS", 0.01)

    async def scenario() -> None:
        async with a_store(tmp_path) as store:
            answer: asyncio.Future[AddResult] = asyncio.get_running_loop().create_future()
            monkeypatch.setattr(store, "add", lambda *_, **_options: answer)
            queue = LocalQueue(store, capacity=1, max_queued=5)
            job = make_job()
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                adding = group.create_task(queue.enqueue(job, accepted_draft()))
                await asyncio.sleep(0)
                await queue.close()
            assert adding.cancelled()
            assert not queue.holds(job.id)

    asyncio.run(scenario())


class Unused:
    """Stands for the store where a verb must not touch it: asking it for anything fails."""


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("readmit"), st.integers(-2, 2)),
        st.tuples(st.just("readmit_other"), st.integers(-2, 2)),
        st.tuples(st.just("claim"), st.just(0)),
        st.tuples(st.just("suspend"), st.integers(0, 5)),
        st.tuples(st.just("resume"), st.integers(0, 5)),
        st.tuples(st.just("done"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=60,
)
MAX_SUSPENDED = 2


@dataclass
class ClaimModel:
    """The claims that are held, as they should be."""

    capacity: int
    running: list[Claim] = field(default_factory=list)
    suspended: list[Claim] = field(default_factory=list)
    resuming: list[Claim] = field(default_factory=list)

    @property
    def held(self) -> list[Claim]:
        return self.running + self.suspended

    @property
    def free_slots(self) -> set[int]:
        return set(range(self.capacity + MAX_SUSPENDED)) - {claim.slot for claim in self.held}

    def settle(self) -> None:
        """Let the claims run again that come first, while there is room."""
        while self.resuming and len(self.running) < self.capacity:
            claim = self.resuming.pop(0)
            self.suspended.remove(claim)
            self.running.append(claim)

    def remove(self, claim: Claim) -> None:
        for claims in (self.running, self.suspended, self.resuming):
            if claim in claims:
                claims.remove(claim)


@settings(deadline=None, max_examples=examples(200, quick=60))
@given(capacity=st.integers(1, 3), steps=STEPS)
def test_whatever_happens_the_order_is_that_of_a_heap_and_no_slot_is_given_twice(
    capacity: int, steps: list[tuple[str, int]]
) -> None:
    async def scenario() -> None:
        store: SqlStore = Unused()  # type: ignore[assignment]  # readmit and claim must not need it
        queue = LocalQueue(store, capacity=capacity, max_queued=0, max_suspended=MAX_SUSPENDED)
        model: list[tuple[int, int]] = []
        jobs: dict[int, Job] = {}
        claims = ClaimModel(capacity)
        for what, number in steps:
            if what.startswith("readmit"):
                sequence = len(jobs) + 1
                jobs[sequence] = replace(make_job(priority=number, api_key_id=what), sequence=sequence)
                heapq.heappush(model, (-number, sequence))
                await queue.requeue(jobs[sequence])
            elif what == "claim" and model and claims.free_slots and len(claims.running) < capacity:
                async with asyncio.timeout(20):
                    claim = await queue.claim()
                assert claim.job is jobs[heapq.heappop(model)[1]]
                assert claim.slot == min(claims.free_slots)
                claims.running.append(claim)
            elif what == "suspend" and claims.held:
                claim = claims.held[number % len(claims.held)]
                queue.suspend(claim)
                claims.remove(claim)
                claims.suspended.append(claim)
            elif what == "resume" and claims.held:
                claim = claims.held[number % len(claims.held)]
                resumed = queue.resume(claim)
                if claim in claims.suspended and claim not in claims.resuming:
                    claims.resuming.append(claim)
                claims.settle()
                assert resumed == (claim in claims.running)
            elif what == "done" and claims.held:
                claim = claims.held[number % len(claims.held)]
                await queue.release(claim)
                claims.remove(claim)
            elif what == "cancel" and model:
                gone = model.pop(number % len(model))
                heapq.heapify(model)
                assert await queue.cancel(jobs[gone[1]].id) == "withdrawn"
            claims.settle()
            load = queue.load()
            assert (load.active, load.queued) == (len(claims.running), len(model))
            for place, (_, sequence) in enumerate(sorted(model), 1):
                assert queue.position(jobs[sequence].id) == place

    asyncio.run(scenario())


def test_a_look_for_expired_jobs_looks_at_those_alone_that_may_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    is_expired = local._is_expired

    def spy(job: Job, now: datetime) -> bool:
        looked_at.append(job.id)
        return is_expired(job, now)

    async def scenario() -> None:
        async with a_store(tmp_path) as store:
            queue = LocalQueue(store, capacity=1, max_queued=100, paused=True)
            for number in range(50):
                await queue.requeue(make_job(sequence=number + 1))
            late, later = (
                make_job(sequence=sequence, expires_in_seconds=seconds)
                for sequence, seconds in ((91, 60.0), (92, 120.0))
            )
            await queue.requeue(later)
            await queue.requeue(late)
            assert await queue.list_expired(NOON + timedelta(seconds=61)) == [late.id]
            assert sorted(looked_at) == sorted((late.id, later.id))
            await queue.cancel(late.id)
            assert await queue.list_expired(NOON + timedelta(seconds=121)) == [later.id]

    monkeypatch.setattr(local, "_is_expired", spy)
    asyncio.run(scenario())
