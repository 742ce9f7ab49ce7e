"""The caller's own tools: with the real CLI and the scripted model, and what an agent may not do with them."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent
from steadyhand.job import ClientTool
from steadyhand.ports import ClientToolCall, IsInSession, is_never_in_session
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.mcp_tools import MAX_REQUESTS, McpToolServer
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.contracts.runner_harness import RecordedRun, RunnerHarness
from steadyhand.testing.model import ScriptedModel

WEATHER = ClientTool(
    "get_weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}}
)


def _stage(cli: Path, world: Path, model: ScriptedModel, **fields: Any) -> RunnerHarness:
    runner = ClaudeRunner(cli, NoSandbox(), NO_REDACTION)
    stage = RunnerHarness.make(
        runner, world, "[[scenario:client-tools]] weather?", tools=(WEATHER,), **fields
    )
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    stage.spec = replace(stage.spec, environment={**stage.spec.environment, **granted})
    return stage


class Caller:
    """Makes calls, the first after as long as it takes."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.turns: list[list[Mapping[str, Any]]] = []
        self._seconds = seconds
        self.looks_until_in_session = False

    async def __call__(
        self, calls: Sequence[ClientToolCall], is_in_session: IsInSession = is_never_in_session
    ) -> Mapping[str, str]:
        if self.looks_until_in_session:
            while not await is_in_session():  # noqa: ASYNC110  # the CLI writes its session when it likes
                await asyncio.sleep(0.02)
        assert all(call.name == "get_weather" for call in calls)
        self.turns.append([call.arguments for call in calls])
        await asyncio.sleep(self._seconds if len(self.turns) == 1 else 0.0)
        return {call.id: f"sun in {call.arguments['city']}" for call in calls}


Gathered = tuple[RecordedRun, Caller, ScriptedModel]


def _gather(cli: Path, world: Path, model: ScriptedModel, *, lean: bool) -> Gathered:
    stage = _stage(cli, world, model, idle_timeout_seconds=20.0)
    caller = Caller()
    caller.looks_until_in_session = not lean
    agent = Agent("chat", tools=(), lean=True) if lean else stage.spec.agent
    stage.spec = replace(stage.spec, call_client_tools=caller, agent=agent)
    return asyncio.run(stage.run()), caller, model


@pytest.fixture(scope="module")
def gathered(real_cli: Path) -> Iterator[Gathered]:
    """Return a run of an agent that is not lean; its caller looks into the session before it answers."""
    world = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    world.chmod(0o755)
    with ScriptedModel() as model:
        yield _gather(real_cli, world, model, lean=False)
    shutil.rmtree(world)


@pytest.mark.parametrize("lean", [False, pytest.param(True, marks=pytest.mark.long)])
def test_calls_of_one_turn_are_gathered_and_their_results_reach_the_model(
    request: pytest.FixtureRequest,
    real_cli: Path,
    world_dir: Path,
    scripted_model: ScriptedModel,
    *,
    lean: bool,
) -> None:
    played: Gathered = (
        _gather(real_cli, world_dir, scripted_model, lean=True)
        if lean
        else request.getfixturevalue("gathered")
    )
    ran, caller, model = played
    assert ran.outcome == "success"
    assert caller.turns == [[{"city": "Paris"}, {"city": "Rome"}], [{"city": "Oslo"}]]
    assert ran.result["result"] == "The last one said: sun in Oslo"
    # The model is told of the tool itself, not of a search for it.
    names = [tool["name"] for tool in model.requests[0].body["tools"]]
    assert "mcp__client__get_weather" in names
    assert ("Bash" in names) != lean
    told = json.dumps(model.requests[1].body["messages"])
    assert "sun in Paris" in told
    assert "sun in Rome" in told


def test_the_session_of_the_real_cli_comes_to_hold_every_call_that_it_waits_for(
    gathered: Gathered,
) -> None:
    ran, caller, _ = gathered
    assert ran.outcome == "success"
    assert caller.turns == [[{"city": "Paris"}, {"city": "Rome"}], [{"city": "Oslo"}]]


def test_calls_of_one_turn_are_handed_out_one_after_another_when_asked_for(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    stage = _stage(real_cli, world_dir, scripted_model, idle_timeout_seconds=20.0, one_call=True)
    caller = Caller()
    stage.spec = replace(stage.spec, call_client_tools=caller)
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    assert caller.turns == [[{"city": "Paris"}], [{"city": "Rome"}], [{"city": "Oslo"}]]
    assert ran.result["result"] == "The last one said: sun in Oslo"


def test_the_idle_limit_does_not_run_while_the_caller_makes_a_call(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    stage = _stage(real_cli, world_dir, scripted_model, idle_timeout_seconds=10.0)
    stage.spec = replace(stage.spec, call_client_tools=Caller(seconds=11.0))
    assert asyncio.run(stage.run()).outcome == "success"


def test_a_run_whose_caller_does_not_come_back_ends_as_unanswered(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    async def nobody(
        calls: Sequence[ClientToolCall], is_in_session: IsInSession = is_never_in_session
    ) -> Mapping[str, str]:
        raise TimeoutError(f"{len(calls)} calls")

    stage = _stage(real_cli, world_dir, scripted_model)
    stage.spec = replace(stage.spec, call_client_tools=nobody)
    ran = asyncio.run(stage.run())
    assert ran.outcome == "unanswered"
    assert ran.report.session_id is not None


# --- what is read, without a process -------------------------------------------------------------


def _use(identity: str, **given: Any) -> dict[str, Any]:
    block = {"type": "tool_use", "id": identity, "name": "mcp__client__get_weather", "input": given}
    return {"type": "assistant", "parent_tool_use_id": None, "message": {"content": [block]}}


def _event(kind: str) -> dict[str, Any]:
    return {"type": "stream_event", "parent_tool_use_id": None, "event": {"type": kind}}


def _asked(number: int, method: str, **params: Any) -> dict[str, Any]:
    said = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    request = {"subtype": "mcp_message", "server_name": "client", "message": said}
    return {"type": "control_request", "request_id": f"r{number}", "request": request}


def _call(number: int, use: str | None, name: str = "get_weather", **given: Any) -> dict[str, Any]:
    meta = {} if use is None else {"_meta": {"claudecode/toolUseId": use}}
    return _asked(number, "tools/call", name=name, arguments=given, **meta)


async def _written(calls: McpToolServer, count: int) -> list[Any]:
    """Give so many replies, as the agent reads them."""
    lines: list[bytes] = []

    async def to(line: bytes) -> bool:
        lines.append(line)
        return len(lines) < count

    async with asyncio.timeout(20):
        await calls.write_replies(to)
    return [json.loads(line)["response"]["response"]["mcp_response"] for line in lines]


def test_a_call_that_the_agent_makes_later_gets_the_result_that_is_there_already() -> None:
    # A tool of the agent's own between two calls of one turn keeps the second back until the first has its result.
    async def scenario() -> None:
        calls = McpToolServer((WEATHER,), "call_x")
        for message in (_event("message_start"), _use("t1", city="Paris")):
            calls.observe(message)
        assert calls.handle_request(_call(1, "t1", city="Paris"), 100)
        calls.observe(_use("t2", city="Rome"))
        calls.observe(_event("message_stop"))
        turn = await asyncio.wait_for(calls.next_turn(), 5)
        assert [call.arguments for call in turn.values()] == [{"city": "Paris"}, {"city": "Rome"}]
        calls.set_results(turn, {call.id: str(call.arguments["city"]) for call in turn.values()})
        calls.handle_request(_call(2, "t2", city="Rome"), 100)
        replies = await _written(calls, 2)
        assert [(reply["id"], reply["result"]["content"][0]["text"]) for reply in replies] == [
            (1, "Paris"),
            (2, "Rome"),
        ]

    asyncio.run(scenario())


def test_what_is_no_call_of_a_known_tool_is_answered_and_handed_to_nobody() -> None:
    async def scenario() -> None:
        calls = McpToolServer((WEATHER,), "call_x")
        calls.handle_request(_call(1, "t1", name="rm"), 100)
        calls.handle_request(_asked(2, "resources/list"), 100)
        calls.handle_request(_call(3, "t3"), 2 * 1024 * 1024)
        unknown, no_method, large = await _written(calls, 3)
        assert unknown["result"]["isError"] is True
        assert no_method["error"]["code"] == -32601
        assert large["error"]["message"] == "The call is too large."
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls.next_turn(), 0.05)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "message",
    [
        {"type": "control_request", "request_id": "r", "request": {"subtype": "other"}},
        {"type": "control_request", "request_id": "r", "request": "x"},
        {"type": "control_request", "request_id": 1, "request": {"subtype": "mcp_message", "message": {}}},
    ],
)
def test_other_requests_are_not_taken(message: dict[str, Any]) -> None:
    async def scenario() -> bool:
        return McpToolServer((WEATHER,), "call_x").handle_request(message, 100)

    assert asyncio.run(scenario()) is False


def test_requests_above_the_limit_are_not_answered() -> None:
    async def scenario() -> None:
        calls = McpToolServer((WEATHER,), "call_x")
        for number in range(MAX_REQUESTS + 10):
            assert calls.handle_request(_asked(number, "ping"), 100)
        await _written(calls, MAX_REQUESTS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await _written(calls, 1)

    asyncio.run(scenario())
