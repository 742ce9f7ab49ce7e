"""The ledger over SQLite, and what of it outlives a process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.example_counts import examples

from steadyhand.ports import Ledger, UsageQuery, UsageTotal
from steadyhand.store import open_store
from steadyhand.testing.contracts.ledger import LedgerContract
from steadyhand.testing.contracts.samples import accepted_draft, make_call, make_job


class TestSqliteLedger(LedgerContract):
    questions = examples(250, quick=80)

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/jobs.db"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ledger]:
        store = await open_store(self.url)
        try:
            yield store
        finally:
            await store.close()

    def test_what_was_spent_is_known_after_the_job_was_forgotten_and_the_store_opened_anew(self) -> None:
        async def main() -> UsageTotal:
            store = await open_store(self.url)
            job = make_job()
            await store.add(job, accepted_draft())
            await store.save_call(make_call(job_id=job.id, micros=7))
            await store.close()
            store = await open_store(self.url)
            try:
                (row,) = await store.usage(UsageQuery(job_id=job.id))
            finally:
                await store.close()
            return row.total

        assert asyncio.run(main()).micros == 7
