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


AS_WITHOUT_A_SANDBOX = frozenset(
    {
        "test_every_way_to_fail_is_told_apart",
        "test_an_agent_that_stays_after_its_result_is_ended_and_its_result_counts",
        "test_prompts_that_look_like_options_arrive_as_text",
        "test_a_flood_of_any_kind_leaves_the_service_within_fifty_megabytes",
        "test_silence_beyond_the_idle_limit_is_a_stall",
        "test_text_comes_in_pieces_before_the_whole_message",
        "test_tools_are_seen_to_start_and_to_finish",
        "test_earlier_turns_are_given_as_turns",
        "test_bytes_that_are_not_utf8_become_replacement_characters",
        "test_what_is_printed_beside_messages_comes_before_the_result_within_a_bound",
        "test_the_answer_and_the_cost_come_as_events",
        "test_the_output_ends_with_the_result_object_on_one_line",
        "test_a_structured_answer_is_an_object",
    }
)
"""Tests of what is read from an agent: the sandbox has no part in it."""


class TestSealedPlainRunner(_Sealed, RunnerContract):
    long_tests = AS_WITHOUT_A_SANDBOX | {
        "test_every_reason_to_stop_ends_all_of_a_deaf_agent_in_time",
        "test_what_a_good_run_leaves_behind_is_ended_before_it_returns",
        "test_a_tool_that_ignores_being_asked_is_ended_with_its_agent",
        "test_a_prompt_of_two_megabytes_arrives_whole",
    }

    def runner(self, cli: Path) -> Runner:
        return PlainRunner(cli, sandbox(cli), NO_REDACTION)


class TestSealedClaudeRunner(_Sealed, RunnerContract, StreamContract):
    long_tests = AS_WITHOUT_A_SANDBOX

    def runner(self, cli: Path) -> Runner:
        return ClaudeRunner(cli, sandbox(cli), NO_REDACTION)


def test_a_sandbox_that_bwrap_cannot_make_is_no_failure_of_the_agent(world_dir: Path) -> None:
    cli = world_dir / "claude"
    cli.write_text("#!/bin/sh\n")  # which nobody may run
    with pytest.raises(SpawnError, match="The sandbox could not be created: bwrap: execvp"):
        TestSealedPlainRunner().run_prompt(cli, world_dir, "hello")
