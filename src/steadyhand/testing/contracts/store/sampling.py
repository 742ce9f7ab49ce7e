"""Tests of every store: samples of ended jobs, for forecasts."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from steadyhand.errors import InvalidRequest
from steadyhand.events import EventDraft, ToolFinished, ToolStarted
from steadyhand.job import Cost, Job, Run, State
from steadyhand.ports import JobFilter, JobSample, Store, ToolSample, ToolUsage
from steadyhand.testing.contracts.samples import NOON, accepted_draft, async_test, expect_error, make_job
from steadyhand.testing.contracts.store.harness import StoreFactory

COUNTED = Cost(41_200, "ledger")
FAILED = frozenset({State.FAILED})


def ended_job(*seconds: float | None, cost: Cost = COUNTED, **changes: Any) -> Job:
    """Return a completed job with a run of each length; None is a run without an end."""
    runs = tuple(
        Run(
            number,
            State.COMPLETED,
            started_at=NOON,
            finished_at=None if length is None else NOON + timedelta(seconds=length),
        )
        for number, length in enumerate(seconds, 1)
    )
    return make_job(**{"state": State.COMPLETED, "finished_at": NOON, "runs": runs, "cost": cost} | changes)


def tool_call(
    tool_id: str,
    name: str,
    *,
    run: int = 1,
    failed: bool = False,
    finished: bool = True,
    milliseconds: int | None = 250,
) -> list[EventDraft]:
    """Return the events of a call of a tool."""
    started = EventDraft(run, NOON, ToolStarted(tool_id, name, {"command": "make"}))
    result = EventDraft(run, NOON, ToolFinished(tool_id, failed, "out \udc80\0", False, milliseconds))
    return [started, result] if finished else [started]


async def add_with(store: Store, drafts: list[EventDraft], **changes: Any) -> str:
    """Store a job with these events and return its id."""
    job = ended_job(1, **changes)
    await store.add(job, [*accepted_draft(), *drafts])
    return job.id


class StoreSamplesContract(StoreFactory):
    """Samples of jobs."""

    @async_test
    async def test_a_sample_has_the_cost_and_the_time_of_all_runs_of_the_newest_jobs(self) -> None:
        async with self.open() as store:
            for seconds, micros in ((1, 1), (2.5, 2), (30, 3)):
                job = ended_job(seconds, 10, cost=Cost(micros, "ledger"), agent="reviewer")
                await store.add(job, accepted_draft())
            found = await store.sample_jobs(JobFilter(agent="reviewer"), 2)
            assert found == [JobSample(3, 40.0), JobSample(2, 12.5)]

    @async_test
    async def test_a_cost_that_nobody_can_tell_is_none_and_never_zero(self) -> None:
        unpriced = Cost(9_000, "ledger", priced=False)
        async with self.open() as store:
            for cost in (Cost(), unpriced, Cost(0, "ledger"), Cost(70, "reported", reported_micros=70)):
                await store.add(ended_job(1, cost=cost), accepted_draft())
            found = await store.sample_jobs(JobFilter(), 10)
            assert [sample.micros for sample in found] == [70, 0, None, None]

    @async_test
    async def test_the_time_of_a_job_whose_runs_have_no_end_is_none(self) -> None:
        async with self.open() as store:
            for lengths in ((), (None,), (None, 4)):
                await store.add(ended_job(*lengths), accepted_draft())
            found = await store.sample_jobs(JobFilter(), 10)
            assert [sample.seconds for sample in found] == [4.0, None, None]

    @async_test
    async def test_a_sample_has_only_jobs_that_match_the_filter_and_the_model(self) -> None:
        async with self.open() as store:
            differences: Sequence[dict[str, Any]] = (
                {"model": "claude-sonnet-5"},
                {"model": "claude-haiku-5"},
                {"state": State.FAILED},
                {"api_key_id": "k_two"},
                {"workspace": "infra", "created_at": NOON + timedelta(days=1)},
            )
            for number, changes in enumerate(differences):
                await store.add(ended_job(1, cost=Cost(number, "ledger"), **changes), accepted_draft())

            async def micros(job_filter: JobFilter, model: str | None = None) -> list[int | None]:
                return [sample.micros for sample in await store.sample_jobs(job_filter, 10, model)]

            assert await micros(JobFilter(api_key_id="k_one")) == [4, 2, 1, 0]
            assert await micros(JobFilter(states=FAILED)) == [2]
            assert await micros(JobFilter(workspace="infra")) == [4]
            assert await micros(JobFilter(created_after=NOON)) == [4]
            assert await micros(JobFilter(), "claude-haiku-5") == [1]
            assert await micros(JobFilter(), "unknown") == []

    @async_test
    async def test_a_job_whose_title_no_text_of_a_database_can_hold_is_in_the_sample(self) -> None:
        async with self.open() as store:
            job = ended_job(1, title="half \udc80", model="half \udc80\0", cost=Cost(7, "ledger"))
            await store.add(job, accepted_draft())
            assert await store.sample_jobs(JobFilter(), 1) == [JobSample(7, 1.0)]
            assert await store.sample_jobs(JobFilter(), 1, "half \udc80\0") == [JobSample(7, 1.0)]

    @async_test
    async def test_a_sample_is_whole_if_it_is_longer_than_one_read(self) -> None:
        async with self.open() as store:
            jobs = [ended_job(1, cost=Cost(number, "ledger")) for number in range(600)]
            await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
            found = await store.sample_jobs(JobFilter(), 550)
            assert [sample.micros for sample in found] == list(range(599, 49, -1))

    @async_test
    async def test_a_sample_of_a_wrong_search_is_refused(self) -> None:
        async with self.open() as store:
            await expect_error(InvalidRequest, store.sample_jobs(JobFilter(search="..."), 1))

    @async_test
    async def test_calls_of_tools_are_counted_by_job_with_failures_and_time(self) -> None:
        async with self.open() as store:
            reviewed = await add_with(store, [*tool_call("t1", "Read")], agent="reviewer", api_key_id="k_two")
            ran = await add_with(
                store,
                [
                    *tool_call("t1", "Bash"),
                    *tool_call("t2", "Bash", failed=True, milliseconds=1_000),
                    *tool_call("t3", "Bash", finished=False),
                    *tool_call("t4", "Read", milliseconds=None),
                ],
            )
            await add_with(store, [])
            sample = await store.sample_tools(JobFilter(), 10)
            assert sample.jobs == 3
            assert sorted(sample.rows, key=lambda row: (row.agent, row.tool)) == [
                ToolUsage(ran, "k_one", "claude", "Bash", 3, 1, 1, 1_250),
                ToolUsage(ran, "k_one", "claude", "Read", 1, 0, 0, 0),
                ToolUsage(reviewed, "k_two", "reviewer", "Read", 1, 0, 0, 250),
            ]

    @async_test
    async def test_a_result_belongs_to_the_call_of_its_own_run(self) -> None:
        async with self.open() as store:
            first = tool_call("t1", "Bash", finished=False)
            second = tool_call("t1", "Read", run=2, failed=True)
            late = tool_call("t1", "Gone", run=3)[1:]  # a result without its call
            job_id = await add_with(store, [*first, *second, *late])
            rows = (await store.sample_tools(JobFilter(id_prefix=job_id), 1)).rows
            assert [(row.tool, row.calls, row.failures, row.unfinished) for row in rows] == [
                ("Bash", 1, 0, 1),
                ("Read", 1, 1, 0),
            ]

    @async_test
    async def test_only_the_newest_jobs_that_match_are_looked_at_for_tools(self) -> None:
        async with self.open() as store:
            job_ids = [await add_with(store, tool_call("t1", "Bash")) for _ in range(45)]
            await add_with(store, tool_call("t1", "Other"), api_key_id="k_two")
            sample = await store.sample_tools(JobFilter("k_one"), 42)
            assert sample.jobs == 42
            assert [row.job_id for row in sample.rows] == job_ids[:2:-1]
            assert await store.sample_tools(JobFilter("k_three"), 5) == ToolSample(0, [])

    @async_test
    async def test_the_name_of_a_tool_may_be_what_no_text_of_a_database_can_hold(self) -> None:
        hostile = "half \udc80\0 \x1b[31m' OR 1=1 --"
        async with self.open() as store:
            await add_with(store, tool_call("\udc81\0", hostile))
            (row,) = (await store.sample_tools(JobFilter(), 1)).rows
            assert (row.tool, row.calls, row.unfinished) == (hostile, 1, 0)
