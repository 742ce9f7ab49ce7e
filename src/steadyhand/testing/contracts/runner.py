"""Tests of every runner, with the stand-in agent; those of runners with a stream are in `StreamContract`.

A subclass makes the runner; the fixtures `standin` (the program) and `world_dir` (a directory that any user can enter)
come from pytest. The processes of a run are found by a mark in their environment.
"""

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

from steadyhand.events import (
    Message,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)
from steadyhand.job import Turn
from steadyhand.outcome import StopReason
from steadyhand.ports import (
    ModelAccess,
)
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.contracts.runner_harness import (
    RunnerFactory,
    RunnerHarness,
    resident_bytes,
)
from steadyhand.testing.contracts.samples import change_job
from steadyhand.testing.processes import pids_with_mark, wait_until_gone

CANCEL_SECONDS = 2.0
"""The longest time to cancel a running job, with nothing left alive."""
FLOOD_BYTES = "128M"
"""The output of a run in which memory must stay within `MAX_MEMORY_GROWTH`."""
MAX_MEMORY_GROWTH = 50 * 1024 * 1024
IGNORE_SIGNALS = (
    "[[standin: deaf spawn=child:deaf spawn=setsid:deaf spawn=daemon:deaf lifetime=30 {signal} sleep=60]]"
)


class RunnerOutcomeContract(RunnerFactory):
    """The end of a run, and its outcome."""

    def test_a_good_run_has_its_answer_its_usage_and_its_cost(self, standin: Path, world_dir: Path) -> None:
        prompt = "[[standin: text=done cost=0.0412 input=7 output=9 cache_read=3 cache_creation=2 turns=4]]"
        ran = self.run_prompt(standin, world_dir, prompt)
        assert ran.outcome == "success"
        result = ran.report.evidence.result
        assert result is not None
        assert (result.text, result.cost_micros) == ("done", 41_200)
        assert result.usage is not None
        usage = result.usage
        assert (usage.input_tokens, usage.output_tokens, usage.turns) == (7, 9, 4)
        assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (3, 2)
        assert (ran.report.evidence.exit_code, ran.report.evidence.signal) == (0, None)
        assert ran.report.session_id == result.session_id
        assert ran.report.warnings == ()

    def test_the_answer_and_the_cost_come_as_events(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: text=done cost=0.0412]]")
        assert [each.text for each in ran.events_of(Message)] == ["done"]
        assert ran.events_of(UsageReported)[-1].cost_usd == "0.041200"

    def test_the_output_ends_with_the_result_object_on_one_line(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: text=done]]")
        assert ran.report.output.output[-1].endswith("}\n")
        assert ran.result["result"] == "done"
        assert ran.result["type"] == "result"

    def test_every_way_to_fail_is_told_apart(self, standin: Path, world_dir: Path) -> None:
        expected = {
            "result=error": "agent_error",
            "is_error": "agent_error",
            "exit=1": "agent_error",
            "result=refusal": "refused",
            "result=empty": "empty",
            "result=none": "no_result",
            "result=truncated": "no_result",
            "result=max_turns": "max_turns",
            "result=max_budget": "budget",
            "api_error=402": "budget",
            "api_error=401": "unauthorized",
            "api_error=429": "rate_limited",
            "api_error=500": "model_error",
            "exit_now=7": "agent_error",
            "exit_now=0": "no_result",
            "die=KILL": "killed",
            "die=SEGV": "killed",
        }
        judged = {
            words: self.run_prompt(standin, world_dir, f"[[standin: {words}]]").outcome for words in expected
        }
        assert judged == expected

    def test_a_signal_that_was_not_ours_is_in_the_evidence(self, standin: Path, world_dir: Path) -> None:
        evidence = self.run_prompt(standin, world_dir, "[[standin: die=SEGV]]").report.evidence
        assert (evidence.exit_code, evidence.signal, evidence.stop_reason) == (None, 11, None)

    def test_stderr_is_kept(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, '[[standin: stderr="something is odd" exit_now=3]]')
        assert ran.report.evidence.stderr == "something is odd\n"
        assert ran.report.output.stderr == "something is odd\n"
        assert ran.report.evidence.exit_code == 3

    def test_an_agent_that_stays_after_its_result_is_ended_and_its_result_counts(
        self, standin: Path, world_dir: Path
    ) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: text=done deaf hang=50]]")
        assert ran.outcome == "success"
        assert ran.report.evidence.exit_code is None
        assert [notice.code for notice in ran.report.warnings] == ["agent_lingered"]

    def test_a_structured_answer_is_an_object(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, """[[standin: structured='{"a":[1,"b"]}']]""")
        result = ran.report.evidence.result
        assert result is not None
        assert result.structured_output == {"a": [1, "b"]}

    def test_an_agent_that_nobody_defined_is_not_run(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "hello", agent="nobody", definition="nobody")
        assert ran.outcome == "unknown_agent"
        assert ran.report.evidence.exit_code == 1
        assert ran.report.evidence.stderr.startswith("--agent 'nobody' not found. Available agents:")
        assert ran.report.output.stderr == ran.report.evidence.stderr
        assert ran.report.evidence.result is None
        assert ran.events_of(Message) == []


class RunnerStopContract(RunnerFactory):
    """Being stopped, and leaving nothing behind."""

    def test_every_reason_to_stop_ends_all_of_a_deaf_agent_in_time(
        self, standin: Path, world_dir: Path
    ) -> None:
        verdicts = {}
        for reason in StopReason:
            stage, signal = self._start_signal_ignoring(standin, world_dir)
            seconds = asyncio.run(self._stop_and_wait(stage, signal, reason))
            assert seconds < CANCEL_SECONDS
            verdicts[reason] = self.verdict
        assert verdicts == {
            StopReason.DEADLINE: "timeout",
            StopReason.IDLE: "stalled",
            StopReason.CANCEL: "cancelled",
            StopReason.SHUTDOWN: "interrupted",
            StopReason.UNANSWERED: "unanswered",
            StopReason.DISPLACED: "unanswered",
            StopReason.STORE: "interrupted",
        }

    verdict = ""

    def _start_signal_ignoring(self, cli: Path, world: Path) -> tuple[RunnerHarness, Path]:
        stage = RunnerHarness.make(self.runner(cli), world, "")
        signal = stage.spec.checkout.directory / "there"
        prompt = IGNORE_SIGNALS.format(signal="touch=there")
        stage.spec = replace(stage.spec, job=change_job(stage.spec.job, prompt=prompt))
        return stage, signal

    async def _stop_and_wait(self, stage: RunnerHarness, signal: Path, reason: StopReason) -> float:
        asked = 0.0

        async def ask() -> None:
            nonlocal asked
            await stage.wait_until(signal.exists)
            assert len(pids_with_mark(stage.mark)) >= 4
            asked = time.monotonic()
            stage.stop.request(reason)

        ran = await stage.run_with(ask)
        self.verdict = ran.outcome
        return time.monotonic() - asked

    def test_a_stop_before_the_prompt_was_read_stops_it_too(self, standin: Path, world_dir: Path) -> None:
        stage = RunnerHarness.make(self.runner(standin), world_dir, "[[standin: sleep=60]]")
        stage.stop.request(StopReason.CANCEL)
        assert asyncio.run(stage.run()).outcome == "cancelled"

    def test_a_tool_that_ignores_being_asked_is_ended_with_its_agent(
        self, standin: Path, world_dir: Path
    ) -> None:
        stage = RunnerHarness.make(
            self.runner(standin), world_dir, '[[standin: run_deaf="touch there; sleep 60"]]'
        )

        async def ask() -> None:
            await stage.wait_until((stage.spec.checkout.directory / "there").exists)
            stage.stop.request(StopReason.CANCEL)

        assert asyncio.run(stage.run_with(ask)).outcome == "cancelled"

    def test_cancelling_the_call_ends_the_agent(self, standin: Path, world_dir: Path) -> None:
        stage, signal = self._start_signal_ignoring(standin, world_dir)

        async def scenario() -> None:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(stage.run())
                await stage.wait_until(signal.exists)
                running.cancel()

        asyncio.run(scenario())
        assert wait_until_gone(stage.mark)

    def test_what_a_good_run_leaves_behind_is_ended_before_it_returns(
        self, standin: Path, world_dir: Path
    ) -> None:
        for kind in ("child", "setsid", "daemon", "refork"):
            for manner in ("", ":deaf"):
                prompt = f"[[standin: spawn={kind}{manner} lifetime=30 text=done]]"
                ran = self.run_prompt(standin, world_dir, prompt)
                assert ran.outcome == "success"
                assert wait_until_gone(ran.mark)

    def test_the_supervisor_is_told_as_soon_as_it_is_there(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "hello")
        assert len(ran.supervisors) == 1
        pid, ticks = ran.supervisors[0]
        assert pid > 0
        assert ticks > 0


class RunnerInputContract(RunnerFactory):
    """Input and output: prompts, the checkout, floods."""

    def test_prompts_that_look_like_options_arrive_as_text(self, standin: Path, world_dir: Path) -> None:
        for prompt in (
            "--version",
            "--mcp-config=/etc/passwd",
            "-p",
            "-- x",
            "\n--help",
            "'; exit 9",
            "$(id)",
        ):
            ran = self.run_prompt(standin, world_dir, prompt)
            assert ran.outcome == "success"
            assert ran.report.evidence.result is not None
            assert ran.report.evidence.result.text == f"ok: {prompt}"

    def test_a_prompt_of_two_megabytes_arrives_whole(self, standin: Path, world_dir: Path) -> None:
        prompt = "[[standin: digest]]" + "αβ\n" * 400_000
        ran = self.run_prompt(standin, world_dir, prompt)
        result = ran.report.evidence.result
        assert result is not None
        seen = json.loads(result.text or "")
        data = prompt.encode()
        assert seen == {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def test_an_agent_gets_its_user_its_place_and_what_was_granted(
        self, standin: Path, world_dir: Path
    ) -> None:
        stage = RunnerHarness.make(self.runner(standin), world_dir, "[[standin: report]]")
        agent = replace(stage.spec.agent, env={"OF_THE_AGENT": "yes"})
        stage.spec = replace(stage.spec, agent=agent, model_access=ModelAccess(api_key="a-placeholder"))
        ran = asyncio.run(stage.run())
        result = ran.report.evidence.result
        assert result is not None
        seen = json.loads(result.text or "")
        view = self.agent_paths(stage.spec.checkout)
        assert seen["uid"] == self.uid(stage.spec.checkout)
        assert seen["cwd"] == str(view.directory)
        expected = {
            "HOME": str(view.home),
            "PWD": str(view.directory),
            "CLAUDE_CONFIG_DIR": str(view.config_dir),
            "PATH": SYSTEM_PATH,
            "SH_MARK": stage.mark,
            "DISABLE_AUTOUPDATER": "1",
            "ANTHROPIC_API_KEY": "a-placeholder",
            "OF_THE_AGENT": "yes",
        }
        assert {name: seen["environment"].get(name) for name in expected} == expected
        assert Path(seen["environment"]["TMPDIR"]).is_relative_to(view.home)

    def test_bytes_that_are_not_utf8_become_replacement_characters(
        self, standin: Path, world_dir: Path
    ) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: bad_utf8 text=done]]")
        assert ran.outcome == "success"
        assert "\N{REPLACEMENT CHARACTER}" in "".join(ran.report.output.output[:-1])

    def test_what_is_printed_beside_messages_comes_before_the_result_within_a_bound(
        self, standin: Path, world_dir: Path
    ) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: flood_raw=10M text=done]]")
        output = ran.report.output.output
        assert ran.result["result"] == "done"
        size = sum(len(line) for line in output[:-1])
        assert 1024 * 1024 <= size < 1024 * 1024 + 200
        gaps = [line for line in output if "bytes left out" in line]
        assert gaps == [f"[{10 * 1024 * 1024 - 1024 * 1024} bytes left out]\n"]

    def test_a_flood_of_any_kind_leaves_the_service_within_fifty_megabytes(
        self, standin: Path, world_dir: Path
    ) -> None:
        self.run_flood(standin, world_dir, FLOOD_BYTES)

    def run_flood(self, standin: Path, world_dir: Path, amount: str) -> None:
        """Print so much as messages, as lines and as one line without end, and look at memory and disk."""
        for kind in ("flood", "flood_raw", "flood_line"):
            before = resident_bytes()
            ran = self.run_prompt(standin, world_dir, f"[[standin: {kind}={amount} text=done]]")
            assert resident_bytes() - before < MAX_MEMORY_GROWTH
            assert ran.report.evidence.exit_code == 0
            kept = sum(path.stat().st_size for path in world_dir.rglob("stdout*"))
            assert kept < 32 * 1024 * 1024
            for path in world_dir.rglob("stdout*"):
                path.unlink()


class RunnerContract(RunnerOutcomeContract, RunnerStopContract, RunnerInputContract):
    """All that a runner must do in either mode."""


class StreamContract(RunnerFactory):
    """Runs with a stream."""

    def test_silence_beyond_the_idle_limit_is_a_stall(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "[[standin: sleep=60]]", idle_timeout_seconds=0.5)
        assert ran.outcome == "stalled"

    def test_text_comes_in_pieces_before_the_whole_message(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, '[[standin: chunk=3 text="one two three"]]')
        kinds = [each for each in ran.events if isinstance(each, TextDelta | Message)]
        assert isinstance(kinds[0], TextDelta)
        assert isinstance(kinds[-1], Message)
        assert "".join(each.text for each in ran.events_of(TextDelta)) == "one two three"
        assert len({each.message_id for each in ran.events_of(TextDelta)}) == 1

    def test_tools_are_seen_to_start_and_to_finish(self, standin: Path, world_dir: Path) -> None:
        command = "echo hello; while ! test -e go; do sleep 0.01; done"
        prompt = f'[[standin: run="{command}" run="exit 3"]]'
        stage = RunnerHarness.make(self.runner(standin), world_dir, prompt)
        go = stage.spec.checkout.directory / "go"

        async def let_it_end() -> None:
            await stage.wait_until(lambda: any(isinstance(each, ToolStarted) for each in stage.events))
            await asyncio.sleep(0.1)
            go.touch()

        ran = asyncio.run(stage.run_with(let_it_end))
        started, finished = ran.events_of(ToolStarted), ran.events_of(ToolFinished)
        assert [each.name for each in started] == ["Bash", "Bash"]
        assert started[0].input["command"] == command
        assert [each.tool_id for each in finished] == [each.tool_id for each in started]
        assert [each.is_error for each in finished] == [False, True]
        assert finished[0].output == "hello"
        assert finished[0].duration_ms >= 90

    def test_earlier_turns_are_given_as_turns(self, standin: Path, world_dir: Path) -> None:
        history = (Turn("user", "U1"), Turn("assistant", "A1"), Turn("user", "U2"), Turn("assistant", "A2"))
        prompt = "[[standin: history]]"
        session = "7b8a2f0e-6f9b-4c58-9d5a-0d6c7a1b2c3d"
        ran = self.run_prompt(standin, world_dir, prompt, history=history, session_id=session)
        result = ran.report.evidence.result
        assert result is not None
        expected = [[each.role, each.content] for each in history]
        assert json.loads(result.text or "") == [*expected, ["user", prompt]]
        assert ran.report.session_id == session

    def test_a_stopped_run_still_says_what_it_used(self, standin: Path, world_dir: Path) -> None:
        stage = RunnerHarness.make(
            self.runner(standin), world_dir, "[[standin: say=working cost=0.5 sleep=60]]"
        )

        async def ask() -> None:
            await stage.wait_until(lambda: any(isinstance(each, Message) for each in stage.events))
            stage.stop.request(StopReason.CANCEL)

        ran = asyncio.run(stage.run_with(ask))
        assert ran.outcome == "cancelled"
        assert ran.report.evidence.result is not None
        assert ran.report.evidence.result.cost_micros == 500_000

    def test_the_session_is_the_jobs(self, standin: Path, world_dir: Path) -> None:
        session = "7b8a2f0e-6f9b-4c58-9d5a-0d6c7a1b2c3d"
        assert self.run_prompt(standin, world_dir, "hello", session_id=session).report.session_id == session
