"""The contracts of the store, the ledger, the outbox and the saved items on Postgres."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import cast

import pytest
from tests.example_counts import examples

from steadyhand.ports import Ledger, Store, UsageQuery, UsageTotal
from steadyhand.store import open_store
from steadyhand.testing.contracts.ledger import LedgerContract
from steadyhand.testing.contracts.outbox import OutboxContract, OutboxStore, ToldEvents, change
from steadyhand.testing.contracts.samples import FakeClock, accepted_draft, make_call, make_job
from steadyhand.testing.contracts.saved_items import SavedItemsContract, SavedItemStore
from steadyhand.testing.contracts.store import StoreContract


class TestPostgresStore(StoreContract):
    filters = examples(120, quick=40)

    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str) -> None:
        self.url = postgres_url

    @asynccontextmanager
    async def open(self, clock: Callable[[], datetime] = FakeClock()) -> AsyncIterator[Store]:  # noqa: B008  # as its base
        store = await open_store(self.url, clock=clock)
        try:
            yield store
        finally:
            await store.close()


class TestPostgresLedger(LedgerContract):
    questions = examples(250, quick=80)

    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str) -> None:
        self.url = postgres_url

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


class TestPostgresOutbox(OutboxContract):
    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str) -> None:
        self.url = postgres_url

    @asynccontextmanager
    async def open(self, clock: Callable[[], object]) -> AsyncIterator[OutboxStore]:
        store = await open_store(self.url, clock=cast("Callable[[], datetime]", clock), linger_seconds=0)
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


class TestPostgresSavedItems(SavedItemsContract):
    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str) -> None:
        self.url = postgres_url

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SavedItemStore]:
        store = await open_store(self.url)
        try:
            yield store
        finally:
            await store.close()
