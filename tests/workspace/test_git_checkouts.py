from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts

from steadyhand.errors import WorkspaceError
from steadyhand.ports import Checkout, Checkouts
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import CheckoutsContract, make_repository
from steadyhand.testing.contracts.samples import async_test, make_job
from steadyhand.workspace import GitCheckouts


class TestGitCheckouts(CheckoutsContract):
    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.root = world_dir
        (world_dir / "data").mkdir()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Checkouts]:
        yield GitCheckouts(
            self.root / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
        )


class TestSealedCheckouts(CheckoutsContract):
    """Laid over warm checkouts, and looked at from inside the sandbox."""

    overlay = True
    shares = False

    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.root = world_dir
        self.sealed = SandboxedCheckouts(world_dir, overlay=self.overlay, shares_objects=self.shares)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Checkouts]:
        yield self.sealed.checkouts

    async def run_as_agent(self, place: Checkout, script: str) -> str:
        return await self.sealed.run_as_agent(place, script)

    async def tree(self, place: Checkout) -> dict[str, str]:
        return await self.sealed.tree(place)


class _WithoutOverlay(TestSealedCheckouts):
    overlay = False


@pytest.mark.long  # copies without a sandbox and clones within one have the whole contract in `make test`
class TestSealedCopies(_WithoutOverlay):
    """A private copy in the sandbox, where there is no overlay."""


class TestSealedClones(_WithoutOverlay):
    """A clone in the sandbox that shares the mirror's objects."""

    shares = True

    @async_test
    async def test_a_clone_has_no_object_of_the_mirrors_and_cannot_write_there(self) -> None:
        repository = make_repository(self.root / "repository")
        place = await self.sealed.prepare(repository.workspace())
        assert await self.run_as_agent(place, "find .git/objects -type f") == ".git/objects/info/alternates\n"
        await self.sealed.run_as_agent(place, "echo x > /mirror/x", fails=True)
        await self.run_as_agent(place, "echo x > x && git add x && git commit -qm x && git fsck")
        harvest = await self.sealed.checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert harvest.changes.files == 1

    @async_test
    async def test_one_that_was_kept_is_gone_on_in_from_another_slot(self) -> None:
        repository, job = make_repository(self.root / "repository"), make_job()
        first = await self.sealed.prepare(repository.workspace(), 0, job)
        await self.run_as_agent(first, "echo x > x && git add x && git commit -qm Mine && echo y > y")
        await self.sealed.checkouts.retain(first)
        again = await self.sealed.prepare(repository.workspace(), 1, replace(job, begin="resume"))
        assert again.uid != first.uid or again.uid is None
        assert (
            await self.run_as_agent(again, "cat y && git log --format=%s | head -2")
            == "y\nMine\nChange code.txt\n"
        )
        # Where the mirror's objects cannot be shown, there is nothing that it could be gone on in.
        elsewhere = SandboxedCheckouts(self.root, overlay=False)
        with pytest.raises(WorkspaceError, match="shares the mirror's objects"):
            await elsewhere.prepare(repository.workspace(), 1, replace(job, begin="resume"))
