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
    long_tests = frozenset(  # an overlay in the sandbox is harder
        {
            "test_the_diff_applies_and_gives_the_tree_that_the_agent_left",
            "test_a_file_a_link_and_a_folder_that_took_each_others_place_are_kept_without_a_warning",
        }
    )

    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.root = world_dir
        (world_dir / "data").mkdir()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Checkouts]:
        yield GitCheckouts(
            self.root / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
        )


AS_WITHOUT_A_SANDBOX = frozenset(
    {
        "test_an_unknown_ref_is_named_in_the_error",
        "test_a_repository_that_is_not_there_is_an_error_without_its_path",
        "test_the_next_job_sees_a_new_commit",
        "test_uncommitted_work_of_the_repository_is_not_in_a_checkout",
        "test_commits_and_uncommitted_work_are_kept_when_the_checkout_is_gone",
        "test_a_job_that_changes_nothing_has_no_changes",
        "test_release_keeps_what_was_kept_and_forget_keeps_nothing",
        "test_sweep_removes_checkouts_that_an_earlier_life_left_and_keeps_the_rest",
        "test_definitions_come_by_the_trust_of_the_workspace",
        "test_a_branch_a_tag_and_a_commit_can_each_be_checked_out",
        "test_what_one_job_does_is_unknown_to_another_and_to_the_repository",
        "test_a_second_run_of_a_job_starts_over_and_leaves_nothing_of_the_first",
    }
)
"""Tests of what the sandbox has no part in, or that those of warm checkouts, refs and runs try there, too."""


class TestSealedCheckouts(CheckoutsContract):
    """Laid over warm checkouts, and looked at from inside the sandbox."""

    overlay = True
    shares = False
    long_tests = AS_WITHOUT_A_SANDBOX

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


@pytest.mark.long  # copies without a sandbox and overlays share the contract in `make test`
class TestSealedCopies(_WithoutOverlay):
    """A private copy in the sandbox, where there is no overlay."""


class TestSealedClones(_WithoutOverlay):
    """A clone in the sandbox that shares the mirror's objects."""

    shares = True
    long_tests = AS_WITHOUT_A_SANDBOX | {
        "test_the_diff_applies_and_gives_the_tree_that_the_agent_left",
        "test_a_file_a_link_and_a_folder_that_took_each_others_place_are_kept_without_a_warning",
        "test_scratch_is_an_empty_directory_of_the_agent",
    }

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
