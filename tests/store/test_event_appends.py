"""Events of many jobs that are appended at once are stored by few statements, and each append is still on its own."""

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from tests.async_tests import in_loop

from steadyhand.errors import NotFound
from steadyhand.store import SqlStore, open_store
from steadyhand.store.bulk_insert import MAX_ROWS_PER_STATEMENT
from steadyhand.testing.contracts.samples import accepted_draft, make_job, message_drafts

JOBS = 20


async def store_with_jobs(folder: Path) -> tuple[SqlStore, list[str]]:
    store = await open_store(f"sqlite:///{folder / 'steadyhand.db'}")
    added = [await store.add(make_job(), accepted_draft()) for _ in range(JOBS)]
    return store, [each.job.id for each in added]


@in_loop
async def test_the_events_of_many_jobs_take_one_query_and_few_statements(tmp_path: Path) -> None:
    store, job_ids = await store_with_jobs(tmp_path)
    statements: list[str] = []

    def trace(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.set_trace_callback(statements.append)

    await store._writer.submit(trace)
    statements.clear()
    appended = await asyncio.gather(
        *(
            store.append_events(job_id, message_drafts(f"{number} a", "b"))
            for number, job_id in enumerate(job_ids)
        ),
        *(store.append_events(job_id, message_drafts("c")) for job_id in job_ids),
    )
    kinds = Counter(text.split()[0] for text in statements)
    assert kinds["SELECT"] == kinds["BEGIN"] == 1
    assert kinds["INSERT"] == math.ceil(3 * JOBS / MAX_ROWS_PER_STATEMENT)
    for number, job_id in enumerate(job_ids):
        events = await store.list_events(job_id, after=1)
        assert [(each.seq, each.data["text"]) for each in events] == [(2, f"{number} a"), (3, "b"), (4, "c")]
        assert [*appended[number], *appended[JOBS + number]] == events
    await store.close()


@in_loop
async def test_an_append_to_a_deleted_job_fails_alone(tmp_path: Path) -> None:
    store, job_ids = await store_with_jobs(tmp_path)
    answers = await asyncio.gather(
        *(store.append_events(job_id, message_drafts("x")) for job_id in [*job_ids, "0" * 12, *job_ids]),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers].count(NotFound) == 1
    with pytest.raises(NotFound):
        await store.append_events("0" * 12, message_drafts("x"))
    for job_id in job_ids:
        assert [each.seq for each in await store.list_events(job_id)] == [1, 2, 3]
    await store.close()
