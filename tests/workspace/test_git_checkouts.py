from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from steadyhand.ports import Checkouts
from steadyhand.testing.contracts.checkouts import CheckoutsContract
from steadyhand.workspace import GitCheckouts


class TestGitCheckouts(CheckoutsContract):
    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.world = world_dir
        (world_dir / "data").mkdir()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Checkouts]:
        yield GitCheckouts(self.world / "data", debounce_seconds=0)
