"""The runner's contract behind the sandbox: what holds without it holds with it."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.runner.sandboxed_process import shared_etc

from steadyhand.errors import SpawnError
from steadyhand.ports import AgentPaths, Checkout, Runner
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.sandbox.sandbox import BwrapSandbox
from steadyhand.testing.contracts.runner import RunnerContract, StreamContract

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@functools.cache
def _data() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    (folder / "stage").mkdir()
    return folder


def sandbox(cli: Path) -> BwrapSandbox:
    return BwrapSandbox.detect(
        _data(), cli, program_name="claude", config_dir_name=".claude", etc_dir=shared_etc()
    )


class _Sealed:
    def agent_paths(self, place: Checkout) -> AgentPaths:  # noqa: ARG002  # the suite's signature
        return AgentPaths(Path("/workspace"), Path("/home/agent"), Path("/home/agent/.claude"))

    def uid(self, place: Checkout) -> int:  # noqa: ARG002  # the same
        return 1000


class TestSealedPlainRunner(_Sealed, RunnerContract):
    def runner(self, cli: Path) -> Runner:
        return PlainRunner(cli, sandbox(cli), NO_REDACTION)


class TestSealedClaudeRunner(_Sealed, RunnerContract, StreamContract):
    def runner(self, cli: Path) -> Runner:
        return ClaudeRunner(cli, sandbox(cli), NO_REDACTION)


def test_a_sandbox_that_bwrap_cannot_make_is_no_failure_of_the_agent(world_dir: Path) -> None:
    cli = world_dir / "claude"
    cli.write_text("#!/bin/sh\n")  # which nobody may run
    with pytest.raises(SpawnError, match="The sandbox could not be created: bwrap: execvp"):
        TestSealedPlainRunner().run_prompt(cli, world_dir, "hello")
