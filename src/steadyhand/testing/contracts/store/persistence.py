"""Tests of what every store keeps: jobs with their runs, and their events."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

from steadyhand.errors import Conflict, NotFound, StoreError
from steadyhand.events import (
    Event,
    EventBody,
    EventDraft,
    Message,
    PhaseStarted,
    StateChanged,
    ToolFinished,
    ToolStarted,
    event_data,
)
from steadyhand.job import ClientTool, Job, Outcome, OutcomeType, Run, State, Turn, Usage
from steadyhand.ports import RunOutput
from steadyhand.testing.contracts.samples import (
    NOON,
    accepted_draft,
    async_test,
    expect_error,
    make_job,
    message_drafts,
)
from steadyhand.testing.contracts.store.harness import QUEUED, StoreFactory, complete_job


class StoreJobsContract(StoreFactory):
    """Adding, reading and changing jobs."""

    @async_test
    async def test_a_job_comes_back_as_it_went_in_with_its_place_and_event_count(self) -> None:
        job = make_job(
            metadata={"a": [1, None, "é"]},
            history=(Turn("user", "hi"), Turn("assistant", ({"type": "text", "text": "ho"},))),
            runs=(
                Run(
                    1, State.FAILED, Outcome(OutcomeType.KILLED, "signal 9"), started_at=NOON, exit_code=None
                ),
            ),
            usage=Usage(1, 2, 3, 4, 5),
            structured_output={"b": 2.5},
            outcome=Outcome(OutcomeType.SUCCESS),
        )
        with_tools = make_job(
            content=({"type": "text", "text": "look"},),
            tools=(ClientTool("get_weather", None, {"type": "object"}),),
            one_call=True,
            request={"door": "chat"},
        )
        async with self.open() as store:
            for each in (job, with_tools):
                added = await store.add(each, accepted_draft())
                assert added.replayed is False
                assert added.job.sequence > 0
                assert added.job == replace(each, sequence=added.job.sequence, last_event=1)
                assert await store.get(each.id) == added.job

    @async_test
    async def test_metadata_that_is_null_stays_apart_from_metadata_that_is_empty(self) -> None:
        async with self.open() as store:
            kinds: tuple[dict[str, str] | None, ...] = (None, {})
            for metadata in kinds:
                job = make_job(metadata=metadata)
                await store.add(job, accepted_draft())
                found = await store.get(job.id)
                assert found is not None
                assert found.spec.metadata == metadata

    @async_test
    async def test_a_prompt_of_two_megabytes_comes_back_whole(self) -> None:
        job = make_job(prompt="--version 🐘\r\n" * 140_000)
        async with self.open() as store:
            await store.add(job, accepted_draft())
            found = await store.get(job.id)
            assert found is not None
            assert found.spec.prompt == job.spec.prompt

    @async_test
    async def test_what_nobody_stored_is_null(self) -> None:
        async with self.open() as store:
            assert await store.get("0" * 12) is None
            assert await store.get_output("0" * 12) is None
            assert await store.list_events("0" * 12) == []

    @async_test
    async def test_later_jobs_have_higher_places_though_they_come_at_once(self) -> None:
        jobs = [make_job() for _ in range(50)]
        async with self.open() as store:
            added = await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
            places = [each.job.sequence for each in added]
            assert places == sorted(set(places))
            assert [each.job.id for each in added] == [job.id for job in jobs]

    @async_test
    async def test_a_change_keeps_the_job_its_runs_and_its_events_together(self) -> None:
        job = make_job()
        drafts = [EventDraft(1, NOON, StateChanged("queued", "running"))]

        def start(old: Job) -> Job:
            runs = (*old.runs, Run(1, State.RUNNING, started_at=NOON, supervisor=7, supervisor_started=9))
            return replace(old, state=State.RUNNING, started_at=NOON, runs=runs)

        async with self.open() as store:
            await store.add(job, accepted_draft())
            changed, events = await store.update_job(job.id, QUEUED, start, drafts)
            assert [event.seq for event in events] == [2]
            assert changed.last_event == 2
            assert changed.runs[0].supervisor == 7
            assert await store.get(job.id) == changed
            assert await store.list_events(job.id, after=1) == events

    @async_test
    async def test_a_run_that_a_change_replaces_or_leaves_out_is_replaced_or_gone(self) -> None:
        job = make_job(runs=(Run(1, State.RUNNING), Run(2, State.RUNNING)))
        async with self.open() as store:
            await store.add(job, accepted_draft())
            second = Run(2, State.FAILED, Outcome(OutcomeType.KILLED), NOON, NOON, 1, "n1", 5, 6)
            await store.update_job(job.id, QUEUED, lambda old: replace(old, runs=(second,)))
            found = await store.get(job.id)
            assert found is not None
            assert found.runs == (second,)

    @async_test
    async def test_a_change_in_another_state_is_refused_and_leaves_no_trace(self) -> None:
        job = make_job()
        async with self.open() as store:
            added = await store.add(job, accepted_draft())
            attempt = store.update_job(
                job.id, frozenset({State.RUNNING}), complete_job(NOON), message_drafts("lost")
            )
            error = await expect_error(Conflict, attempt)
            assert error.code == "invalid_state"
            assert await store.get(job.id) == added.job
            assert len(await store.list_events(job.id)) == 1

    @async_test
    async def test_a_change_or_event_of_a_job_that_is_gone_is_not_found(self) -> None:
        async with self.open() as store:
            await expect_error(NotFound, store.update_job("0" * 12, QUEUED, complete_job(NOON)))
            await expect_error(NotFound, store.append_events("0" * 12, message_drafts("hello")))
            await expect_error(NotFound, store.save_output("0" * 12, 1, RunOutput([], "")))

    @async_test
    async def test_an_update_that_fails_changes_nothing_and_harms_nobody_else(self) -> None:
        job, other = make_job(), make_job()

        def break_down(_: Job) -> Job:
            raise ZeroDivisionError

        async with self.open() as store:
            added = await store.add(job, accepted_draft())
            failing = store.update_job(job.id, QUEUED, break_down, message_drafts("lost"))
            error, neighbour = await asyncio.gather(
                expect_error(StoreError, failing), store.add(other, accepted_draft())
            )
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert await store.get(job.id) == added.job
            assert await store.get(other.id) == neighbour.job

    @async_test
    async def test_of_many_changes_from_one_state_only_one_happens(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            attempts = (
                store.update_job(job.id, QUEUED, complete_job(NOON), message_drafts("me")) for _ in range(20)
            )
            answers = await asyncio.gather(*attempts, return_exceptions=True)
            assert sum(isinstance(answer, tuple) for answer in answers) == 1
            assert sum(isinstance(answer, Conflict) for answer in answers) == 19
            assert len(await store.list_events(job.id)) == 2

    @async_test
    async def test_jobs_in_given_states_come_in_the_order_of_acceptance(self) -> None:
        jobs = [make_job(priority=each) for each in range(5)]
        async with self.open() as store:
            for job in jobs:
                await store.add(job, accepted_draft())
            await store.update_job(jobs[2].id, QUEUED, complete_job(NOON))
            found = await store.list_in_states(QUEUED)
            assert [job.id for job in found] == [jobs[each].id for each in (0, 1, 3, 4)]
            assert await store.list_in_states(frozenset({State.PARKED})) == []


class StoreEventsContract(StoreFactory):
    """Numbering, order and durability of events; outputs."""

    @async_test
    async def test_events_are_numbered_from_one_without_gaps_whoever_appends(self) -> None:
        job, other = make_job(), make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.add(other, accepted_draft())
            appends = [store.append_events(job.id, message_drafts(f"{n} a", f"{n} b")) for n in range(40)]
            noise = [store.append_events(other.id, message_drafts("noise")) for _ in range(40)]
            told = await asyncio.gather(*appends, *noise)
            events = await store.list_events(job.id)
            assert [event.seq for event in events] == list(range(1, 82))
            assert [event for part in told[:40] for event in part] == events[1:]
            assert [event.data["text"] for event in events[1:]] == [
                f"{n} {half}" for n in range(40) for half in "ab"
            ]

    @async_test
    async def test_an_event_that_was_returned_can_be_read_by_everybody(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            for number in range(2, 12):
                (event,) = await store.append_events(job.id, message_drafts("x"))
                assert await store.list_events(job.id, after=number - 1) == [event]

    @async_test
    async def test_an_event_keeps_its_time_run_and_data(self) -> None:
        at = NOON + timedelta(microseconds=1)
        body = ToolFinished("t1", True, "🐘\udc80\0", False, None)
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.append_events(job.id, [EventDraft(3, at, body)])
            found = await store.list_events(job.id, after=1)
            assert found == [Event(2, job.id, 3, at, "tool.finished", event_data(body))]

    @async_test
    async def test_events_are_given_after_a_number_and_no_more_than_the_limit(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.append_events(job.id, message_drafts(*(str(n) for n in range(20))))
            found = await store.list_events(job.id, after=5, limit=7)
            assert [event.seq for event in found] == list(range(6, 13))
            assert await store.list_events(job.id, after=21) == []

    @async_test
    async def test_the_newest_events_of_types_and_calls_of_tools_come_with_their_results(self) -> None:
        deep: Any = "x"
        for _ in range(600):
            deep = [deep]
        bodies: list[EventBody] = [
            ToolStarted("a", "Todo", {"n": 1}),
            ToolStarted("b", "Bash", {"deep": deep}),
            ToolFinished("a", False, "ok", False, 1),
            ToolFinished("b", False, "no", False, 1),
            PhaseStarted("running"),
            ToolStarted("\udc80", "Todo", {"n": 2}),
            Message("assistant", '{"name": "Todo"}'),
        ]
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.append_events(job.id, [EventDraft(1, NOON, body) for body in bodies])

            async def numbers(types: set[str], tools: set[str], limit: int = 9) -> list[int]:
                found = await store.list_newest_events(job.id, frozenset(types), frozenset(tools), limit)
                assert [each for each in await store.list_events(job.id) if each in found] == found
                return [event.seq for event in found]

            assert await numbers({"phase", "state.changed"}, {"Todo"}) == [1, 2, 4, 6, 7]
            assert await numbers({"phase"}, {"Todo"}, 2) == [6, 7]
            assert await numbers(set(), {"Bash"}) == [3, 5]
            assert await numbers(set(), set()) == []

    @async_test
    async def test_numbering_goes_on_over_changes_and_runs(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.append_events(job.id, message_drafts("one"))
            _, events = await store.update_job(
                job.id, QUEUED, complete_job(NOON), message_drafts("two", "three")
            )
            (last,) = await store.append_events(job.id, message_drafts("four", run=2))
            assert [event.seq for event in (*events, last)] == [3, 4, 5]
            found = await store.get(job.id)
            assert found is not None
            assert found.last_event == 5

    @async_test
    async def test_the_output_of_the_newest_run_that_has_any_is_given(self) -> None:
        job = make_job()
        async with self.open() as store:
            await store.add(job, accepted_draft())
            assert await store.get_output(job.id) is None
            await store.save_output(job.id, 2, RunOutput(("two\n", "\udcff"), "err"))
            await store.save_output(job.id, 1, RunOutput(("one\n",), ""))
            assert await store.get_output(job.id) == RunOutput(("two\n", "\udcff"), "err")
            await store.save_output(job.id, 2, RunOutput((), "again"))
            assert await store.get_output(job.id) == RunOutput((), "again")
