"""Tests of the answers of every store: the same job to a repeated request, and lists."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, Run, State, Turn
from steadyhand.ports import IdempotencyKey, JobFilter
from steadyhand.testing.contracts.samples import (
    NOON,
    FakeClock,
    accepted_draft,
    async_test,
    change_job,
    expect_error,
    make_job,
)
from steadyhand.testing.contracts.store.harness import KEY, QUEUED, StoreFactory, complete_job


class StoreIdempotencyContract(StoreFactory):
    """Idempotency keys."""

    @async_test
    async def test_a_repeated_request_gets_the_same_job(self) -> None:
        async with self.open() as store:
            first = await store.add(make_job(), accepted_draft(), KEY)
            second = await store.add(make_job(), accepted_draft(), KEY)
            assert (first.replayed, second.replayed) == (False, True)
            assert second.job == first.job
            assert await store.get_replayed("k_one", KEY) == first.job
            assert len((await store.list_jobs(JobFilter(), 10)).jobs) == 1

    @async_test
    async def test_a_repeated_request_gets_the_job_as_it_stands_now(self) -> None:
        async with self.open() as store:
            first = await store.add(make_job(), accepted_draft(), KEY)
            changed, _ = await store.update_job(first.job.id, QUEUED, complete_job(NOON))
            assert (await store.add(make_job(), accepted_draft(), KEY)).job == changed

    @async_test
    async def test_twenty_callers_with_one_key_make_one_job(self) -> None:
        async with self.open() as store:
            answers = await asyncio.gather(*(store.add(make_job(), accepted_draft(), KEY) for _ in range(20)))
            assert len({answer.job.id for answer in answers}) == 1
            assert sum(not answer.replayed for answer in answers) == 1
            assert len((await store.list_jobs(JobFilter(), 50)).jobs) == 1

    @async_test
    async def test_a_key_with_another_request_is_refused_and_stores_nothing(self) -> None:
        other = IdempotencyKey(KEY.key, "0" * 64)
        async with self.open() as store:
            await store.add(make_job(), accepted_draft(), KEY)
            job = make_job()
            for attempt in (store.add(job, accepted_draft(), other), store.get_replayed("k_one", other)):
                error = await expect_error(InvalidRequest, attempt)
                assert error.code == "idempotency_mismatch"
            assert await store.get(job.id) is None

    @async_test
    async def test_a_key_means_something_to_its_own_caller_only(self) -> None:
        async with self.open() as store:
            await store.add(make_job(), accepted_draft(), KEY)
            assert await store.get_replayed("k_two", KEY) is None
            assert (await store.add(make_job(api_key_id="k_two"), accepted_draft(), KEY)).replayed is False

    @async_test
    async def test_a_key_is_forgotten_after_a_day_and_not_before(self) -> None:
        clock = FakeClock()
        async with self.open(clock) as store:
            first = await store.add(make_job(), accepted_draft(), KEY)
            clock.advance(timedelta(hours=23, minutes=59))
            assert (await store.add(make_job(), accepted_draft(), KEY)).job == first.job
            clock.advance(timedelta(minutes=1))
            assert await store.get_replayed("k_one", KEY) is None
            later = await store.add(make_job(), accepted_draft(), IdempotencyKey(KEY.key, "another"))
            assert later.replayed is False

    @async_test
    async def test_a_key_is_forgotten_with_its_job(self) -> None:
        async with self.open() as store:
            first = await store.add(make_job(), accepted_draft(), KEY)
            await store.update_job(first.job.id, QUEUED, complete_job(NOON))
            await store.delete(first.job.id)
            assert (await store.add(make_job(), accepted_draft(), KEY)).replayed is False


class StoreListingContract(StoreFactory):
    """Pages and filters."""

    @async_test
    async def test_pages_give_every_job_once_newest_first_though_more_come(self) -> None:
        jobs = [make_job() for _ in range(25)]
        async with self.open() as store:
            for job in jobs:
                await store.add(job, accepted_draft())
            seen: list[str] = []
            cursor: str | None = None
            while True:
                page = await store.list_jobs(JobFilter(), 10, cursor)
                seen += [job.id for job in page.jobs]
                await store.add(
                    make_job(), accepted_draft()
                )  # newer than the cursor, so never on a later page
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == [job.id for job in reversed(jobs)]

    @async_test
    async def test_a_last_page_that_is_full_has_no_next_one(self) -> None:
        async with self.open() as store:
            for _ in range(4):
                await store.add(make_job(), accepted_draft())
            first = await store.list_jobs(JobFilter(), 2)
            assert first.next_cursor is not None
            assert (await store.list_jobs(JobFilter(), 2, first.next_cursor)).next_cursor is None

    @async_test
    async def test_a_cursor_that_was_never_given_is_refused(self) -> None:
        async with self.open() as store:
            await store.add(make_job(), accepted_draft())
            for cursor in (
                "",
                "!",
                "é",
                "MA",
                "LTE",
                "MTA=",
                "MTA\n",
                "x" * 5000,
                "OTk5OTk5OTk5OTk5OTk5OTk5OTk5",
            ):
                error = await expect_error(InvalidRequest, store.list_jobs(JobFilter(), 2, cursor))
                assert error.code == "bad_cursor"
                assert error.field_errors[0].pointer == "?cursor"

    @async_test
    async def test_a_listed_job_is_brief_and_else_as_it_is(self) -> None:
        job = make_job(
            prompt="x" * 100_000,
            answer="y" * 1000,
            structured_output={"z": 1},
            history=(Turn("user", "hi"),),
            runs=(Run(1, State.RUNNING),),
            metadata={"n": 1},
        )
        async with self.open() as store:
            added = await store.add(job, accepted_draft())
            (found,) = (await store.list_jobs(JobFilter(), 1)).jobs
            brief = change_job(added.job, prompt="x" * 200, answer=None, structured_output=None, history=())
            assert found == brief

    @async_test
    async def test_each_filter_gives_what_it_says_and_nothing_else(self) -> None:
        later = NOON + timedelta(hours=1)
        one = make_job(agent="reviewer", workspace="infra")
        two = make_job(api_key_id="k_two", created_at=later, id="abcdef012345")
        async with self.open() as store:
            await store.add(one, accepted_draft())
            await store.add(two, accepted_draft())
            await store.update_job(two.id, QUEUED, complete_job(later))
            cases: Sequence[tuple[JobFilter, list[Job]]] = (
                (JobFilter(), [two, one]),
                (JobFilter(agent="reviewer"), [one]),
                (JobFilter(workspace="infra"), [one]),
                (JobFilter(workspace="inf"), []),
                (JobFilter(api_key_id="k_two"), [two]),
                (JobFilter(states=frozenset({State.COMPLETED, State.FAILED})), [two]),
                (JobFilter(states=QUEUED), [one]),
                (JobFilter(created_after=NOON), [two]),
                (JobFilter(created_before=later), [one]),
                (JobFilter(id_prefix="abcd"), [two]),
                (JobFilter(id_prefix="ABCD"), []),
                (JobFilter(id_prefix="ab_d"), []),
                (JobFilter(agent="reviewer", api_key_id="k_two"), []),
            )
            for which, wanted in cases:
                page = await store.list_jobs(which, 10)
                assert [job.id for job in page.jobs] == [job.id for job in wanted], which

    @async_test
    async def test_metadata_is_compared_as_text_name_by_name(self) -> None:
        texts = {"s": '50%_"é\\', "n": 5, "f": 1.5, "t": True, "z": None, "o": {"s": "deep"}, 'a"b.c': "q"}
        async with self.open() as store:
            job = make_job(metadata=texts)
            await store.add(job, accepted_draft())
            await store.add(make_job(metadata={"other": "5", "s": "50X_"}), accepted_draft())
            await store.add(make_job(metadata=None), accepted_draft())
            wanted = {"s": '50%_"é\\', "n": "5", "f": "1.5", "t": "true", "z": "null", 'a"b.c': "q"}
            for which in (wanted, *({name: value} for name, value in wanted.items())):
                page = await store.list_jobs(JobFilter(metadata=which), 10)
                assert [each.id for each in page.jobs] == [job.id], which
            for nothing in ({"n": "50"}, {"o": "deep"}, {"n": "5", "t": "false"}, {"S": "50%"}):
                assert (await store.list_jobs(JobFilter(metadata=nothing), 10)).jobs == [], nothing

    @async_test
    async def test_a_metadata_filter_pages_over_many_jobs_that_do_not_match(self) -> None:
        jobs = [make_job(metadata={"team": "blue" if n % 7 == 0 else "green blue"}) for n in range(1100)]
        async with self.open() as store:
            await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
            which = JobFilter(metadata={"team": "blue"})
            first = await store.list_jobs(which, 100)
            second = await store.list_jobs(which, 100, first.next_cursor)
            found = [job.id for job in (*first.jobs, *second.jobs)]
            assert found == [job.id for job in reversed(jobs[::7])]
            assert second.next_cursor is None
