"""The whole way of a run, at each level of isolation and with each kind of checkout that it has."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import sandbox_exec_in

from steadyhand.ports import Checkouts, Sandbox
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.isolation import IsolationContract
from steadyhand.workspace import GitCheckouts


class _Here(IsolationContract):
    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.root = world_dir
        (world_dir / "data").mkdir()


class TestLevelNone(_Here):
    long_tests = frozenset(  # what the level with a sandbox has to hold as well
        {
            "test_what_a_command_did_is_harvested_whether_it_ended_or_was_killed",
            "test_two_runs_at_once_know_nothing_of_each_other",
            "test_a_second_run_of_a_job_finds_nothing_of_the_first",
            "test_bytes_go_in_and_come_out_as_they_are",
            "test_nothing_is_alive_after_a_run_that_ended_by[a kill]",
        }
    )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Checkouts, Sandbox]]:
        yield (
            GitCheckouts(
                self.root / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
            ),
            NoSandbox(),
        )


class TestLevelBwrap(_Here):
    overlay = os.geteuid() == 0
    shares = False
    long_tests = frozenset(
        {
            "test_bytes_go_in_and_come_out_as_they_are",  # the runner has such a test of its own
            "test_nothing_is_alive_after_a_run_that_ended_by[itself]",
            "test_nothing_is_alive_after_a_run_that_ended_by[a task that is cancelled]",
        }
    )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Checkouts, Sandbox]]:
        errands = sandbox_exec_in(self.root)
        checkouts = GitCheckouts(
            self.root / "data",
            debounce_seconds=0,
            sandbox_exec=errands,
            overlay=self.overlay,
            shares_objects=self.shares,
            agent_files=ClaudeFiles(),
            redactor=NO_REDACTION,
        )
        yield checkouts, errands.sandbox


class _WithoutOverlay(TestLevelBwrap):
    overlay = False


@pytest.mark.long
class TestLevelBwrapWithCopies(_WithoutOverlay):
    """A private copy, which differs from a clone by its objects alone."""


@pytest.mark.long
class TestLevelBwrapWithClones(_WithoutOverlay):
    """A clone, whose process is that of any other checkout in the sandbox."""

    shares = True
