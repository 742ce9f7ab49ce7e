"""What a store has to answer: the same job to a repeated request, and lists."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, Run, State, Turn
from steadyhand.ports import Filter, Idempotency
from steadyhand.testing.contracts.samples import NOON, Clock, a_job, accepted, refused, to_its_end
from steadyhand.testing.contracts.store.harness import KEY, QUEUED, Opens, ended


class StoreKnowsRepeats(Opens):
    """Idempotency keys."""

    @to_its_end
    async def test_a_repeated_request_gets_the_same_job(self) -> None:
        async with self.opened() as store:
            first = await store.add(a_job(), accepted(), KEY)
            second = await store.add(a_job(), accepted(), KEY)
            assert (first.replayed, second.replayed) == (False, True)
            assert second.job == first.job
            assert await store.replay("k_one", KEY) == first.job
            assert len((await store.page(Filter(), 10)).jobs) == 1

    @to_its_end
    async def test_a_repeated_request_gets_the_job_as_it_stands_now(self) -> None:
        async with self.opened() as store:
            first = await store.add(a_job(), accepted(), KEY)
            changed, _ = await store.change(first.job.id, QUEUED, ended(NOON))
            assert (await store.add(a_job(), accepted(), KEY)).job == changed

    @to_its_end
    async def test_twenty_callers_with_one_key_make_one_job(self) -> None:
        async with self.opened() as store:
            answers = await asyncio.gather(*(store.add(a_job(), accepted(), KEY) for _ in range(20)))
            assert len({answer.job.id for answer in answers}) == 1
            assert sum(not answer.replayed for answer in answers) == 1
            assert len((await store.page(Filter(), 50)).jobs) == 1

    @to_its_end
    async def test_a_key_with_another_request_is_refused_and_stores_nothing(self) -> None:
        other = Idempotency(KEY.key, "0" * 64)
        async with self.opened() as store:
            await store.add(a_job(), accepted(), KEY)
            job = a_job()
            for attempt in (store.add(job, accepted(), other), store.replay("k_one", other)):
                error = await refused(InvalidRequest, attempt)
                assert error.code == "idempotency_mismatch"
            assert await store.get(job.id) is None

    @to_its_end
    async def test_a_key_means_something_to_its_own_caller_only(self) -> None:
        async with self.opened() as store:
            await store.add(a_job(), accepted(), KEY)
            assert await store.replay("k_two", KEY) is None
            assert (await store.add(a_job(api_key_id="k_two"), accepted(), KEY)).replayed is False

    @to_its_end
    async def test_a_key_is_forgotten_after_a_day_and_not_before(self) -> None:
        clock = Clock()
        async with self.opened(clock) as store:
            first = await store.add(a_job(), accepted(), KEY)
            clock.pass_by(timedelta(hours=23, minutes=59))
            assert (await store.add(a_job(), accepted(), KEY)).job == first.job
            clock.pass_by(timedelta(minutes=1))
            assert await store.replay("k_one", KEY) is None
            later = await store.add(a_job(), accepted(), Idempotency(KEY.key, "another"))
            assert later.replayed is False

    @to_its_end
    async def test_a_key_is_forgotten_with_its_job(self) -> None:
        async with self.opened() as store:
            first = await store.add(a_job(), accepted(), KEY)
            await store.change(first.job.id, QUEUED, ended(NOON))
            await store.delete(first.job.id)
            assert (await store.add(a_job(), accepted(), KEY)).replayed is False


class StoreLists(Opens):
    """Pages and filters."""

    @to_its_end
    async def test_pages_give_every_job_once_newest_first_though_more_come(self) -> None:
        jobs = [a_job() for _ in range(25)]
        async with self.opened() as store:
            for job in jobs:
                await store.add(job, accepted())
            seen: list[str] = []
            cursor: str | None = None
            while True:
                page = await store.page(Filter(), 10, cursor)
                seen += [job.id for job in page.jobs]
                await store.add(a_job(), accepted())  # newer than the cursor, so never on a later page
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == [job.id for job in reversed(jobs)]

    @to_its_end
    async def test_a_last_page_that_is_full_has_no_next_one(self) -> None:
        async with self.opened() as store:
            for _ in range(4):
                await store.add(a_job(), accepted())
            first = await store.page(Filter(), 2)
            assert first.next_cursor is not None
            assert (await store.page(Filter(), 2, first.next_cursor)).next_cursor is None

    @to_its_end
    async def test_a_cursor_that_was_never_given_is_refused(self) -> None:
        async with self.opened() as store:
            await store.add(a_job(), accepted())
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
                error = await refused(InvalidRequest, store.page(Filter(), 2, cursor))
                assert error.code == "bad_cursor"
                assert error.faults[0].pointer == "?cursor"

    @to_its_end
    async def test_a_listed_job_is_brief_and_else_as_it_is(self) -> None:
        job = a_job(
            prompt="x" * 100_000,
            answer="y" * 1000,
            structured_output={"z": 1},
            history=(Turn("user", "hi"),),
            runs=(Run(1, State.RUNNING),),
            metadata={"n": 1},
        )
        async with self.opened() as store:
            added = await store.add(job, accepted())
            (found,) = (await store.page(Filter(), 1)).jobs
            brief = replace(added.job, prompt="x" * 200, answer=None, structured_output=None, history=())
            assert found == brief

    @to_its_end
    async def test_each_filter_gives_what_it_says_and_nothing_else(self) -> None:
        later = NOON + timedelta(hours=1)
        one = a_job(agent="reviewer", workspace="infra")
        two = a_job(api_key_id="k_two", created_at=later, id="abcdef012345")
        async with self.opened() as store:
            await store.add(one, accepted())
            await store.add(two, accepted())
            await store.change(two.id, QUEUED, ended(later))
            cases: Sequence[tuple[Filter, list[Job]]] = (
                (Filter(), [two, one]),
                (Filter(agent="reviewer"), [one]),
                (Filter(workspace="infra"), [one]),
                (Filter(workspace="inf"), []),
                (Filter(api_key_id="k_two"), [two]),
                (Filter(states=frozenset({State.COMPLETED, State.FAILED})), [two]),
                (Filter(states=QUEUED), [one]),
                (Filter(created_after=NOON), [two]),
                (Filter(created_before=later), [one]),
                (Filter(id_prefix="abcd"), [two]),
                (Filter(id_prefix="ABCD"), []),
                (Filter(id_prefix="ab_d"), []),
                (Filter(agent="reviewer", api_key_id="k_two"), []),
            )
            for which, wanted in cases:
                page = await store.page(which, 10)
                assert [job.id for job in page.jobs] == [job.id for job in wanted], which

    @to_its_end
    async def test_metadata_is_compared_as_text_name_by_name(self) -> None:
        texts = {"s": '50%_"é\\', "n": 5, "f": 1.5, "t": True, "z": None, "o": {"s": "deep"}, 'a"b.c': "q"}
        async with self.opened() as store:
            job = a_job(metadata=texts)
            await store.add(job, accepted())
            await store.add(a_job(metadata={"other": "5", "s": "50X_"}), accepted())
            await store.add(a_job(metadata=None), accepted())
            wanted = {"s": '50%_"é\\', "n": "5", "f": "1.5", "t": "true", "z": "null", 'a"b.c': "q"}
            for which in (wanted, *({name: value} for name, value in wanted.items())):
                page = await store.page(Filter(metadata=which), 10)
                assert [each.id for each in page.jobs] == [job.id], which
            for nothing in ({"n": "50"}, {"o": "deep"}, {"n": "5", "t": "false"}, {"S": "50%"}):
                assert (await store.page(Filter(metadata=nothing), 10)).jobs == [], nothing

    @to_its_end
    async def test_a_metadata_filter_pages_over_many_jobs_that_do_not_match(self) -> None:
        jobs = [a_job(metadata={"team": "blue" if n % 7 == 0 else "green blue"}) for n in range(1100)]
        async with self.opened() as store:
            await asyncio.gather(*(store.add(job, accepted()) for job in jobs))
            which = Filter(metadata={"team": "blue"})
            first = await store.page(which, 100)
            second = await store.page(which, 100, first.next_cursor)
            found = [job.id for job in (*first.jobs, *second.jobs)]
            assert found == [job.id for job in reversed(jobs[::7])]
            assert second.next_cursor is None
