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


class TestLevelBwrapWithClones(_WithoutOverlay):
    shares = True
