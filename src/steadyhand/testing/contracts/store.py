"""What every store must do."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta

from steadyhand.errors import Conflict, InvalidRequest, NotFound, StoreError
from steadyhand.events import Draft, Event, StateChanged, ToolFinished, data_of
from steadyhand.job import ENDED, Job, Run, State, Turn, Usage, Verdict
from steadyhand.ports import ApiKey, Filter, Idempotency, KeyLimits, RunOutput, Store
from steadyhand.testing.contracts.samples import NOON, Clock, a_job, accepted, refused, said, to_its_end

QUEUED = frozenset({State.QUEUED})
KEY = Idempotency("again", "f" * 64)


def ended(at: datetime) -> Callable[[Job], Job]:
    """Give the change that completes a job."""
    return lambda job: replace(job, state=State.COMPLETED, finished_at=at)


class _Opens:
    """How a suite gets its store; a subclass for an adapter says it."""

    def opened(self, clock: Callable[[], datetime] = Clock()) -> AbstractAsyncContextManager[Store]:  # noqa: B008  # never moved
        """Give an empty store for one test, closed at its end."""
        raise NotImplementedError


class StoreKeepsJobs(_Opens):
    """Adding, reading and changing jobs."""

    @to_its_end
    async def test_a_job_comes_back_as_it_went_in_with_its_place_and_event_count(self) -> None:
        job = a_job(
            metadata={"a": [1, None, "é"]},
            history=(Turn("user", "hi"), Turn("assistant", ({"type": "text", "text": "ho"},))),
            runs=(Run(1, State.FAILED, Verdict("killed", "signal 9"), started_at=NOON, exit_code=None),),
            usage=Usage(1, 2, 3, 4, 5),
            structured_output={"b": 2.5},
            outcome=Verdict("success"),
        )
        async with self.opened() as store:
            added = await store.add(job, accepted())
            assert added.replayed is False
            assert added.job.sequence > 0
            assert added.job == replace(job, sequence=added.job.sequence, last_event=1)
            assert await store.get(job.id) == added.job

    @to_its_end
    async def test_metadata_that_is_null_stays_apart_from_metadata_that_is_empty(self) -> None:
        async with self.opened() as store:
            kinds: tuple[dict[str, str] | None, ...] = (None, {})
            for metadata in kinds:
                job = a_job(metadata=metadata)
                await store.add(job, accepted())
                found = await store.get(job.id)
                assert found is not None
                assert found.metadata == metadata

    @to_its_end
    async def test_a_prompt_of_two_megabytes_comes_back_whole(self) -> None:
        job = a_job(prompt="--version 🐘\r\n" * 140_000)
        async with self.opened() as store:
            await store.add(job, accepted())
            found = await store.get(job.id)
            assert found is not None
            assert found.prompt == job.prompt

    @to_its_end
    async def test_what_nobody_stored_is_null(self) -> None:
        async with self.opened() as store:
            assert await store.get("0" * 12) is None
            assert await store.output("0" * 12) is None
            assert await store.events("0" * 12) == []

    @to_its_end
    async def test_later_jobs_have_higher_places_though_they_come_at_once(self) -> None:
        jobs = [a_job() for _ in range(50)]
        async with self.opened() as store:
            added = await asyncio.gather(*(store.add(job, accepted()) for job in jobs))
            places = [each.job.sequence for each in added]
            assert places == sorted(set(places))
            assert [each.job.id for each in added] == [job.id for job in jobs]

    @to_its_end
    async def test_a_change_keeps_the_job_its_runs_and_its_events_together(self) -> None:
        job = a_job()
        drafts = [Draft(1, NOON, StateChanged("queued", "running"))]

        def start(old: Job) -> Job:
            runs = (*old.runs, Run(1, State.RUNNING, started_at=NOON, supervisor=7, supervisor_started=9))
            return replace(old, state=State.RUNNING, started_at=NOON, runs=runs)

        async with self.opened() as store:
            await store.add(job, accepted())
            changed, events = await store.change(job.id, QUEUED, start, drafts)
            assert [event.seq for event in events] == [2]
            assert changed.last_event == 2
            assert changed.runs[0].supervisor == 7
            assert await store.get(job.id) == changed
            assert await store.events(job.id, after=1) == events

    @to_its_end
    async def test_a_run_that_a_change_replaces_or_leaves_out_is_replaced_or_gone(self) -> None:
        job = a_job(runs=(Run(1, State.RUNNING), Run(2, State.RUNNING)))
        async with self.opened() as store:
            await store.add(job, accepted())
            second = Run(2, State.FAILED, Verdict("killed"), NOON, NOON, 1, "n1", 5, 6)
            await store.change(job.id, QUEUED, lambda old: replace(old, runs=(second,)))
            found = await store.get(job.id)
            assert found is not None
            assert found.runs == (second,)

    @to_its_end
    async def test_a_change_in_another_state_is_refused_and_leaves_no_trace(self) -> None:
        job = a_job()
        async with self.opened() as store:
            added = await store.add(job, accepted())
            attempt = store.change(job.id, frozenset({State.RUNNING}), ended(NOON), said("lost"))
            error = await refused(Conflict, attempt)
            assert error.code == "invalid_state"
            assert await store.get(job.id) == added.job
            assert len(await store.events(job.id)) == 1

    @to_its_end
    async def test_a_change_or_event_of_a_job_that_is_gone_is_not_found(self) -> None:
        async with self.opened() as store:
            await refused(NotFound, store.change("0" * 12, QUEUED, ended(NOON)))
            await refused(NotFound, store.append("0" * 12, said("hello")))
            await refused(NotFound, store.keep_output("0" * 12, 1, RunOutput([], "")))

    @to_its_end
    async def test_an_update_that_fails_changes_nothing_and_harms_nobody_else(self) -> None:
        job, other = a_job(), a_job()

        def break_down(_: Job) -> Job:
            raise ZeroDivisionError

        async with self.opened() as store:
            added = await store.add(job, accepted())
            failing = store.change(job.id, QUEUED, break_down, said("lost"))
            error, neighbour = await asyncio.gather(
                refused(StoreError, failing), store.add(other, accepted())
            )
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert await store.get(job.id) == added.job
            assert await store.get(other.id) == neighbour.job

    @to_its_end
    async def test_of_many_changes_from_one_state_only_one_happens(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            attempts = (store.change(job.id, QUEUED, ended(NOON), said("me")) for _ in range(20))
            answers = await asyncio.gather(*attempts, return_exceptions=True)
            assert sum(isinstance(answer, tuple) for answer in answers) == 1
            assert sum(isinstance(answer, Conflict) for answer in answers) == 19
            assert len(await store.events(job.id)) == 2

    @to_its_end
    async def test_jobs_in_given_states_come_in_the_order_of_acceptance(self) -> None:
        jobs = [a_job(priority=each) for each in range(5)]
        async with self.opened() as store:
            for job in jobs:
                await store.add(job, accepted())
            await store.change(jobs[2].id, QUEUED, ended(NOON))
            found = await store.in_states(QUEUED)
            assert [job.id for job in found] == [jobs[each].id for each in (0, 1, 3, 4)]
            assert await store.in_states(frozenset({State.PARKED})) == []


class StoreKeepsEvents(_Opens):
    """Numbering, order and durability of events; outputs."""

    @to_its_end
    async def test_events_are_numbered_from_one_without_gaps_whoever_appends(self) -> None:
        job, other = a_job(), a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.add(other, accepted())
            appends = [store.append(job.id, said(f"{n} a", f"{n} b")) for n in range(40)]
            noise = [store.append(other.id, said("noise")) for _ in range(40)]
            told = await asyncio.gather(*appends, *noise)
            events = await store.events(job.id)
            assert [event.seq for event in events] == list(range(1, 82))
            assert [event for part in told[:40] for event in part] == events[1:]
            assert [event.data["text"] for event in events[1:]] == [
                f"{n} {half}" for n in range(40) for half in "ab"
            ]

    @to_its_end
    async def test_an_event_that_was_returned_can_be_read_by_everybody(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            for number in range(2, 12):
                (event,) = await store.append(job.id, said("x"))
                assert await store.events(job.id, after=number - 1) == [event]

    @to_its_end
    async def test_an_event_keeps_its_time_run_and_data(self) -> None:
        at = NOON + timedelta(microseconds=1)
        body = ToolFinished("t1", True, "🐘\udc80\0", False, None)
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.append(job.id, [Draft(3, at, body)])
            found = await store.events(job.id, after=1)
            assert found == [Event(2, job.id, 3, at, "tool.finished", data_of(body))]

    @to_its_end
    async def test_events_are_given_after_a_number_and_no_more_than_the_limit(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.append(job.id, said(*(str(n) for n in range(20))))
            found = await store.events(job.id, after=5, limit=7)
            assert [event.seq for event in found] == list(range(6, 13))
            assert await store.events(job.id, after=21) == []

    @to_its_end
    async def test_numbering_goes_on_over_changes_and_runs(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.append(job.id, said("one"))
            _, events = await store.change(job.id, QUEUED, ended(NOON), said("two", "three"))
            (last,) = await store.append(job.id, said("four", run=2))
            assert [event.seq for event in (*events, last)] == [3, 4, 5]
            found = await store.get(job.id)
            assert found is not None
            assert found.last_event == 5

    @to_its_end
    async def test_the_output_of_the_newest_run_that_has_any_is_given(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            assert await store.output(job.id) is None
            await store.keep_output(job.id, 2, RunOutput(("two\n", "\udcff"), "err"))
            await store.keep_output(job.id, 1, RunOutput(("one\n",), ""))
            assert await store.output(job.id) == RunOutput(("two\n", "\udcff"), "err")
            await store.keep_output(job.id, 2, RunOutput((), "again"))
            assert await store.output(job.id) == RunOutput((), "again")


class StoreKnowsRepeats(_Opens):
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


class StoreLists(_Opens):
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


class StoreForgetsAndCloses(_Opens):
    """Retention, keys, and the store's end."""

    @to_its_end
    async def test_jobs_that_ended_before_a_moment_are_given_oldest_first(self) -> None:
        jobs = [a_job() for _ in range(4)]
        async with self.opened() as store:
            for hours, job in zip((3, 1, 2), jobs, strict=False):
                await store.add(job, accepted())
                await store.change(job.id, QUEUED, ended(NOON + timedelta(hours=hours)))
            await store.add(jobs[3], accepted())
            moment = NOON + timedelta(hours=3)
            assert await store.ended_before(moment, 10) == [jobs[1].id, jobs[2].id]
            assert await store.ended_before(moment, 1) == [jobs[1].id]

    @to_its_end
    async def test_a_deleted_job_leaves_nothing_behind(self) -> None:
        job = a_job(runs=(Run(1, State.RUNNING),))
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.keep_output(job.id, 1, RunOutput(("x",), ""))
            await store.change(job.id, QUEUED, ended(NOON))
            assert await store.delete(job.id) is True
            assert await store.get(job.id) is None
            assert await store.events(job.id) == []
            assert await store.output(job.id) is None
            assert await store.delete(job.id) is False

    @to_its_end
    async def test_a_job_that_has_not_ended_is_not_deleted(self) -> None:
        async with self.opened() as store:
            for state in State:
                job = a_job(state=state)
                await store.add(job, accepted())
                if state in ENDED:
                    assert await store.delete(job.id) is True
                else:
                    await refused(Conflict, store.delete(job.id))
                    assert await store.get(job.id) is not None

    @to_its_end
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
        async with self.opened() as store:
            assert await store.keys() == []
            await store.keep_key(two)
            await store.keep_key(one)
            await store.keep_key(replace(one, name="make"))
            assert await store.keys() == [replace(one, name="make"), two]

    @to_its_end
    async def test_closing_commits_what_waits_and_refuses_what_comes_after(self) -> None:
        job = a_job()
        async with self.opened() as store:
            await store.add(job, accepted())
            await store.check()
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(store.append(job.id, said("last words")))
                await asyncio.sleep(0)  # lets the append hand itself in
                await store.close()
            assert [event.seq for event in waiting.result()] == [2]
            await store.close()
            for attempt in (
                store.get(job.id),
                store.add(a_job(), accepted()),
                store.append(job.id, said("x")),
                store.check(),
            ):
                await refused(StoreError, attempt)


class StoreContract(StoreKeepsJobs, StoreKeepsEvents, StoreKnowsRepeats, StoreLists, StoreForgetsAndCloses):
    """All of it."""
