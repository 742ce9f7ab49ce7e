"""The outbox over SQLite: what outlives a process, and the indexes that its queries use."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy.dialects import sqlite

from steadyhand.store import open_store, outbox
from steadyhand.testing.contracts.outbox import OutboxContract, OutboxStore, ToldEvents, change
from steadyhand.testing.contracts.samples import accepted_draft, make_job


class TestSqliteOutbox(OutboxContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs.db"

    @asynccontextmanager
    async def open(self, clock: Callable[[], object]) -> AsyncIterator[OutboxStore]:
        store = await open_store(
            f"sqlite:///{self.path}", clock=cast("Callable[[], datetime]", clock), linger_seconds=0
        )
        try:
            yield store
        finally:
            await store.close()

    def test_what_was_not_delivered_is_pending_after_the_store_was_opened_anew(self) -> None:
        async def main() -> frozenset[str]:
            async with self.opened(ToldEvents()) as store:
                job = make_job()
                await store.add(job, accepted_draft())
                await change(store, job)
            async with self.opened(ToldEvents()) as store:
                return frozenset(await store.count_waiting())

        assert asyncio.run(main()) == {"circuit one"}

    def test_no_query_of_the_deliverer_reads_deliveries_that_are_over_or_wait_for_another(self) -> None:
        async def create() -> None:
            async with self.opened(ToldEvents()):
                pass

        asyncio.run(create())
        values = {"circuit": "one", "now": 0, "most": 10}
        with closing(sqlite3.connect(self.path)) as connection:
            for query in (outbox._DUE, outbox._NEXT_DUE, outbox._WAITING):
                compiled = query.compile(dialect=sqlite.dialect(paramstyle="named"))
                plan = connection.execute(
                    f"EXPLAIN QUERY PLAN {compiled}", {**compiled.params, **values}
                ).fetchall()
                steps = [str(step[3]) for step in plan if "deliveries" in str(step[3])]
                assert steps, plan
                assert all("ix_deliveries_due" in step for step in steps), steps
