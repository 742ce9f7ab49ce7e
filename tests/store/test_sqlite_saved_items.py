"""The saved items over SQLite."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from steadyhand.store import open_store
from steadyhand.testing.contracts.saved_items import SavedItemsContract, SavedItemStore


class TestSqliteSavedItems(SavedItemsContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "jobs.db"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SavedItemStore]:
        store = await open_store(f"sqlite:///{self.path}")
        try:
            yield store
        finally:
            await store.close()
