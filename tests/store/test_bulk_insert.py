"""Jobs that are added at once go into the database by few statements, and each is still on its own."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from steadyhand.errors import StoreError
from steadyhand.job import Run, State
from steadyhand.ports import AddResult
from steadyhand.store import open_store
from steadyhand.store.bulk_insert import MAX_ROWS_PER_STATEMENT
from steadyhand.testing.contracts.samples import NOON, accepted_draft, make_job

MANY = 2 * MAX_ROWS_PER_STATEMENT + 5


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'steadyhand.db'}"


def test_many_jobs_added_at_once_share_a_commit_and_come_back_in_order_each_with_what_is_its_own(
    url: str,
) -> None:
    async def main() -> None:
        store = await open_store(url)
        commits: list[Any] = []
        event.listen(store._write_engine, "commit", commits.append)
        wanted = [
            make_job(
                prompt=f"number {number}", runs=(Run(1, State.RUNNING, started_at=NOON, node=f"n{number}"),)
            )
            for number in range(MANY)
        ]
        added = await asyncio.gather(
            *(store.add(job, (accepted_draft() * 2)[: 1 + n % 2]) for n, job in enumerate(wanted))
        )
        assert len(commits) == 1
        assert [each.job.sequence for each in added] == sorted(each.job.sequence for each in added)
        for number, (job, each) in enumerate(zip(wanted, added, strict=True)):
            kept = await store.get(job.id)
            assert kept == each.job == replace(job, sequence=each.job.sequence, last_event=1 + number % 2)
            assert [one.seq for one in await store.list_events(job.id)] == [1, 2][: 1 + number % 2]
        await store.close()

    asyncio.run(main())


def test_a_job_that_is_there_already_fails_alone_among_jobs_added_at_once(url: str) -> None:
    async def main() -> None:
        store = await open_store(url)
        there = make_job()
        await store.add(there, accepted_draft())
        wanted = [make_job() for _ in range(MANY)]
        wanted[MANY // 2] = there
        answers = await asyncio.gather(
            *(store.add(job, accepted_draft()) for job in wanted), return_exceptions=True
        )
        assert [number for number, each in enumerate(answers) if not isinstance(each, AddResult)] == [
            MANY // 2
        ]
        assert isinstance(answers[MANY // 2], StoreError)
        for job in wanted:
            kept = await store.get(job.id)
            assert kept is not None
            assert [one.seq for one in await store.list_events(job.id)] == [1]
        await store.close()

    asyncio.run(main())
