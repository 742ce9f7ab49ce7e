"""Tests of every runner, with the stand-in agent; those of runners with a stream are in `StreamContract`.

A subclass makes the runner; the fixtures `standin` (the program) and `world_dir` (a directory that any user can enter)
come from pytest. The processes of a run are found by a mark in their environment.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent, Workspace
from steadyhand.events import (
    EventBody,
    Message,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
    event_data,
)
from steadyhand.job import Job, JobSpec, Turn
from steadyhand.outcome import StopReason, decide_outcome
from steadyhand.ports import (
    AgentPaths,
    Checkout,
    JobPaths,
    ModelAccess,
    Runner,
    RunReport,
    RunSpec,
    StopSignal,
)
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.contracts.samples import change_job
from steadyhand.testing.processes import new_process_mark, pids_with_mark, wait_until_gone

AGENT_UID = 64400 if os.geteuid() == 0 else None
CANCEL_SECONDS = 2.0
"""The longest time to cancel a running job, with nothing left alive."""
TIMEOUT_SECONDS = 60.0
FLOOD_BYTES = "128M"
"""The output of a run in which memory must stay within `MAX_MEMORY_GROWTH`."""
MAX_MEMORY_GROWTH = 50 * 1024 * 1024
IGNORE_SIGNALS = (
    "[[standin: deaf spawn=child:deaf spawn=setsid:deaf spawn=daemon:deaf lifetime=30 {signal} sleep=60]]"
)


@dataclass(slots=True)
class RecordedRun:
    """The report of a run, its events and its processes."""

    report: RunReport
    events: list[EventBody | TextDelta]
    mark: str
    supervisors: list[tuple[int, int]]

    @property
    def outcome(self) -> str:
        """Return its judged outcome."""
        return decide_outcome(self.report.evidence).type

    @property
    def result(self) -> Mapping[str, Any]:
        """The result object as it stands on the last line of the output."""
        loaded: Mapping[str, Any] = json.loads(self.report.output.output[-1])
        return loaded

    def events_of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [each for each in self.events if isinstance(each, kind)]


@dataclass(slots=True)
class RunnerHarness:
    """One job in a place of its own, ready to run."""

    runner: Runner
    spec: RunSpec
    mark: str
    stop: StopSignal = field(default_factory=StopSignal)
    events: list[EventBody | TextDelta] = field(default_factory=list)
    supervisors: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def make(cls, runner: Runner, world: Path, prompt: str, **fields: Any) -> "RunnerHarness":
        """Set a job with this prompt and these fields; `definition` is its agent's."""
        root = world / f"job-{new_process_mark()}"
        files = JobPaths(root)
        for folder in (root, files.checkout, files.home, files.config_dir):
            folder.mkdir()
            if AGENT_UID is not None and folder != root:
                os.chown(folder, AGENT_UID, AGENT_UID)
        place = Checkout(
            Workspace("scratch"), files, files.checkout, files.home, files.config_dir, AGENT_UID, commit=None
        )
        definition = fields.pop("definition", None)
        job = change_job(_JOB, prompt=prompt, **fields)
        mark = new_process_mark()
        environment = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "SH_MARK": mark}
        stage = cls(
            runner,
            RunSpec(job, 1, Agent(job.agent, definition=definition), place, environment, _ignore),
            mark,
        )
        stage.spec = replace(stage.spec, on_spawned=lambda pid, ticks: stage.supervisors.append((pid, ticks)))
        return stage

    async def emit(self, body: EventBody | TextDelta) -> None:
        """Hear an event; whatever comes must be fit for the store."""
        json.dumps(event_data(body)).encode()
        self.events.append(body)

    async def run(self) -> RecordedRun:
        """Run to the end; nothing may be alive when the runner returns."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            report = await self.runner.run(self.spec, self.emit, self.stop)
        assert pids_with_mark(self.mark) == []
        return RecordedRun(report, self.events, self.mark, self.supervisors)

    async def run_with(self, action: Callable[[], Awaitable[None]]) -> RecordedRun:
        """Run, and do something beside it."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_await(action()))
            return await self.run()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so, within a bound."""
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  # what is waited for is another process's doing
                await asyncio.sleep(0.005)


_JOB = Job(
    "0123456789ab",
    JobSpec("hello"),
    "claude",
    "k_test",
    datetime(2026, 1, 1, tzinfo=UTC),
    budget_micros=5_000_000,
    timeout_seconds=60,
    idle_timeout_seconds=60,
)


def _ignore(_pid: int, _ticks: int) -> None:
    return


async def _await(work: Awaitable[None]) -> None:
    await work


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class _RunnerFactory:
    """Makes the runner under test; the tests of each adapter subclass it."""

    def runner(self, cli: Path) -> Runner:
        """Return a runner of this program."""
        raise NotImplementedError

    def agent_paths(self, place: Checkout) -> AgentPaths:
        """Return the directories as the agent sees them."""
        return place.host_paths

    def uid(self, place: Checkout) -> int:
        """Return the uid of the agent as it sees it."""
        return os.geteuid() if place.uid is None else place.uid

    def run_prompt(self, cli: Path, world: Path, prompt: str, **fields: Any) -> RecordedRun:
        """Run a prompt to its end."""
        return asyncio.run(RunnerHarness.make(self.runner(cli), world, prompt, **fields).run())


class RunnerOutcomeContract(_RunnerFactory):
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


class RunnerStopContract(_RunnerFactory):
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
        assert wait_until_gone(stage.mark, 0.5)

    def test_what_a_good_run_leaves_behind_is_ended_before_it_returns(
        self, standin: Path, world_dir: Path
    ) -> None:
        for kind in ("child", "setsid", "daemon", "refork"):
            for manner in ("", ":deaf"):
                prompt = f"[[standin: spawn={kind}{manner} lifetime=30 text=done]]"
                ran = self.run_prompt(standin, world_dir, prompt)
                assert ran.outcome == "success"
                assert wait_until_gone(ran.mark, 0.5)

    def test_the_supervisor_is_told_as_soon_as_it_is_there(self, standin: Path, world_dir: Path) -> None:
        ran = self.run_prompt(standin, world_dir, "hello")
        assert len(ran.supervisors) == 1
        pid, ticks = ran.supervisors[0]
        assert pid > 0
        assert ticks > 0


class RunnerInputContract(_RunnerFactory):
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


class StreamContract(_RunnerFactory):
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
        ran = self.run_prompt(standin, world_dir, '[[standin: run="echo hello; sleep 0.1" run="exit 3"]]')
        started, finished = ran.events_of(ToolStarted), ran.events_of(ToolFinished)
        assert [each.name for each in started] == ["Bash", "Bash"]
        assert started[0].input["command"] == "echo hello; sleep 0.1"
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
