"""Messages to a running turn: with the real CLI and a scripted model, and the queue by itself."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.events import (
    EventBody,
    Message,
    SteerAccepted,
    SteerDropped,
    SteerUsed,
    TextDelta,
    ToolStarted,
)
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import StopReason
from steadyhand.ports import DeliverSteer, SteerMessage
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude import steer_queue
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.claude.steer_queue import SteerQueue, steer_uuid
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RecordedRun, RunnerHarness
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelToolCall, ModelTurn, Scenario

WAITS = ModelTurn(
    tool=(ModelToolCall("Bash", {"command": "until [ -e go-on ]; do sleep 0.05; done; echo went on"}),)
)
SLOW_WORDS = ModelTurn(text="one two three four five six seven", pace_ms=200, chunk_chars=4)
STEERS = (SteerAccepted, SteerUsed, SteerDropped)


class Inbox:
    """A `ports.SteerInbox` that a test looks into."""

    def __init__(self) -> None:
        self.deliver: DeliverSteer | None = None
        self.is_refused = False

    @contextmanager
    def open(self, deliver: DeliverSteer) -> Iterator[None]:
        self.deliver = deliver
        yield
        self.deliver = None

    def refuse(self) -> None:
        self.is_refused = True


@pytest.fixture
def stage(real_cli: Path, world_dir: Path, scripted_model: ScriptedModel) -> RunnerHarness:
    made = RunnerHarness.make(ClaudeRunner(real_cli, NoSandbox(), NO_REDACTION), world_dir, "go")
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": scripted_model.url}
    made.spec = replace(made.spec, environment={**made.spec.environment, **granted})
    return made


def run_steered(
    stage: RunnerHarness,
    when: type[EventBody | TextDelta],
    *texts: str,
    after: Callable[[], None] = lambda: None,
) -> tuple[RecordedRun, list[bool]]:
    """Run an agent, send messages at the first event of a type, and do something after them."""
    inbox, answers = Inbox(), list[bool]()
    stage.spec = replace(stage.spec, steers=inbox)

    async def send() -> None:
        await stage.wait_until(lambda: any(isinstance(each, when) for each in stage.events))
        assert inbox.deliver is not None
        for number, text in enumerate(texts):
            answers.append(await inbox.deliver(SteerMessage(f"st_{number}", text)))
        after()

    ran = asyncio.run(stage.run_with(send))
    assert inbox.deliver is None
    return ran, answers


def play(model: ScriptedModel, *turns: ModelTurn) -> None:
    model.scenario = Scenario("steered", "", turns)


def go_on(stage: RunnerHarness) -> Callable[[], None]:
    return (stage.spec.checkout.directory / "go-on").touch


def said(model: ScriptedModel, request: int) -> str:
    return str(model.requests[request].body["messages"][-2:])


def steers(ran: RecordedRun) -> list[EventBody | TextDelta]:
    return [each for each in ran.events if isinstance(each, STEERS)]


def test_a_message_while_a_tool_runs_reaches_the_model_in_the_same_turn(
    stage: RunnerHarness, scripted_model: ScriptedModel
) -> None:
    play(scripted_model, WAITS, ModelTurn(text="as you like"))
    ran, answers = run_steered(stage, ToolStarted, "left, not right", "/clear", after=go_on(stage))
    assert answers == [True, True]
    assert (ran.outcome, ran.result["num_turns"]) == ("success", 2)
    assert len(scripted_model.requests) == 2
    assert "left, not right" in said(scripted_model, 1)
    assert "/clear" in said(scripted_model, 1)  # text, and no command of the CLI
    found = steers(ran)
    assert found[:2] == [SteerAccepted("st_0", "left, not right"), SteerAccepted("st_1", "/clear")]
    assert set(map(str, found[2:])) == {str(SteerUsed("st_0")), str(SteerUsed("st_1"))}
    assert ran.report.warnings == ()


def test_a_message_that_comes_with_the_last_words_begins_another_turn_of_the_run(
    stage: RunnerHarness, scripted_model: ScriptedModel
) -> None:
    play(scripted_model, SLOW_WORDS)
    ran, answers = run_steered(stage, TextDelta, "one more thing")
    assert answers == [True]
    assert ran.outcome == "success"
    assert len(scripted_model.requests) == 2
    assert "one more thing" in said(scripted_model, 1)
    assert steers(ran) == [SteerAccepted("st_0", "one more thing"), SteerUsed("st_0")]
    result = ran.report.evidence.result
    assert result is not None
    assert result.usage is not None
    assert result.usage.turns == 2  # of both


def test_a_message_after_the_answer_is_refused(stage: RunnerHarness, scripted_model: ScriptedModel) -> None:
    play(scripted_model, ModelTurn(text="done"))
    inbox = Inbox()
    late: list[bool] = []
    stage.spec = replace(stage.spec, steers=inbox)

    async def run() -> RecordedRun:
        deliver: list[DeliverSteer] = []

        async def remember() -> None:
            await stage.wait_until(lambda: any(isinstance(each, Message) for each in stage.events))
            if inbox.deliver is not None:
                deliver.append(inbox.deliver)

        ran = await stage.run_with(remember)
        late.extend([await each(SteerMessage("st_late", "too late")) for each in deliver])
        return ran

    ran = asyncio.run(run())
    assert True not in late
    assert steers(ran) == []
    assert len(scripted_model.requests) == 1


def test_a_message_that_a_stop_overtakes_is_told_to_be_unused(
    stage: RunnerHarness, scripted_model: ScriptedModel
) -> None:
    play(scripted_model, WAITS, ModelTurn(text="never"))
    ran, answers = run_steered(
        stage, ToolStarted, "wait", after=lambda: stage.stop.request(StopReason.CANCEL)
    )
    assert answers == [True]
    assert steers(ran) == [SteerAccepted("st_0", "wait"), SteerDropped("st_0")]
    assert [warning.code for warning in ran.report.warnings] == [WarningCode.STEER_DROPPED]


def test_the_plain_mode_refuses_all_messages(standin: Path, world_dir: Path) -> None:
    stage = RunnerHarness.make(PlainRunner(standin, NoSandbox(), NO_REDACTION), world_dir, "hello")
    inbox = Inbox()
    stage.spec = replace(stage.spec, steers=inbox)
    assert asyncio.run(stage.run()).outcome == "success"
    assert inbox.is_refused


# --- the queue by itself -----------------------------------------------------------------------


class Wire:
    """The input of an agent that never reads what a test does not let it read."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.lines: list[bytes] = []
        self.is_open = is_open
        self.written = asyncio.Event()
        self.queue = SteerQueue(self.write, lambda: self.is_open)

    async def write(self, data: bytes) -> bool:
        self.lines.append(data)
        self.written.set()
        return self.is_open

    def tell(self, steer_id: str, state: str) -> list[EventBody]:
        message = {"type": "command_lifecycle", "command_uuid": steer_uuid(steer_id), "state": state}
        events = list(self.queue.observe(message))
        self.queue.confirm(message)
        return events


def test_an_agent_that_does_not_read_a_message_refuses_it_and_it_is_not_sent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steer_queue, "ACK_SECONDS", 0.01)

    async def run() -> None:
        wire, message = Wire(), SteerMessage("st_1", "x")
        assert not await wire.queue.deliver(message)
        assert not wire.queue.waits
        assert not await wire.queue.deliver(message)
        assert len(wire.lines) == 1
        assert wire.tell("st_1", "queued") == [SteerAccepted("st_1", "x")]  # late, and still in the log
        assert wire.queue.waits
        assert await wire.queue.deliver(message)
        assert wire.tell("st_1", "started") == [SteerUsed("st_1")]
        assert wire.tell("st_1", "completed") == []
        assert (wire.queue.waits, wire.queue.unused(), len(wire.lines)) == (False, [], 1)

    asyncio.run(run())


def test_a_message_is_refused_when_the_agent_ends_before_it_reads_it() -> None:
    async def run() -> None:
        wire = Wire()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(wire.queue.deliver(SteerMessage("st_1", "x")))
            await wire.written.wait()
            wire.queue.close()
        assert sending.result() is False
        assert wire.queue.unused() == []
        assert not await Wire(is_open=False).queue.deliver(SteerMessage("st_2", "y"))

    asyncio.run(run())


@pytest.mark.parametrize(
    "message", [{}, {"command_uuid": 3}, {"command_uuid": steer_uuid("other"), "state": "queued"}]
)
def test_news_of_other_messages_are_passed_over(message: dict[str, object]) -> None:
    async def run() -> None:
        wire = Wire()
        assert list(wire.queue.observe(message)) == []
        wire.queue.confirm(message)

    asyncio.run(run())
