from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.workspace.sealed_checkouts import Sealed

from steadyhand.ports import Checkouts, Place
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


class TestSealedCheckouts(CheckoutsContract):
    """Laid over warm checkouts, and looked at from inside the sandbox."""

    overlay = True

    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.world = world_dir
        self.sealed = Sealed(world_dir, overlay=self.overlay)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Checkouts]:
        yield self.sealed.checkouts

    async def does(self, place: Place, script: str) -> str:
        return await self.sealed.does(place, script)

    async def tree(self, place: Place) -> dict[str, str]:
        return await self.sealed.tree(place)


class TestSealedCopies(TestSealedCheckouts):
    """A private copy in the sandbox, where there is no overlay."""

    overlay = False
