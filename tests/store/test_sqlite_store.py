from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from tests.example_counts import examples

from steadyhand.ports import Store
from steadyhand.store import open_store
from steadyhand.testing.contracts.samples import FakeClock
from steadyhand.testing.contracts.store import StoreContract


class TestSqliteStore(StoreContract):
    filters = examples(120, quick=40)

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/jobs.db"

    @asynccontextmanager
    async def open(self, clock: Callable[[], datetime] = FakeClock()) -> AsyncIterator[Store]:  # noqa: B008  # as its base
        store = await open_store(self.url, clock=clock)
        try:
            yield store
        finally:
            await store.close()
