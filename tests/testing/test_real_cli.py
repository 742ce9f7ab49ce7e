"""The real CLI against the scripted model: what the service relies on, so that a change in it is noticed."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steadyhand.errors import ConfigError
from steadyhand.testing import scenario
from steadyhand.testing.cli import DUMMY_API_KEY, isolated_env
from steadyhand.testing.example import make_repository
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest

from .conftest import AGENT_UID, ROOT, AgentHarness, Conversation, agent_world, kind_of

SCHEMA = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})


@dataclass(frozen=True, slots=True)
class StreamScene:
    """One process that was talked to: a history and a question, a greeting, then a prompt whose model is limited."""

    greeting: dict[str, Any]
    receipts: list[dict[str, Any]]
    remembered: dict[str, Any]
    requests_of_history: list[ModelRequest]
    answered: list[dict[str, Any]]
    limited: list[dict[str, Any]]
    calls_of_limited: int
    code: int


@pytest.fixture(scope="module")
def stream(real_cli: Path) -> Iterator[StreamScene]:
    """A conversation with the real CLI in JSON lines, with an agent that nobody defined."""
    with agent_world() as (world, model):
        yield play_stream(world.start_conversation(real_cli, "--agent", "nobody"), model)


def play_stream(talk: Conversation, model: ScriptedModel) -> StreamScene:
    greeting = talk.control("initialize")
    receipts = []
    for asked, answered in (("first question", "first answer"), ("second question", "second answer")):
        talk.say("user", asked, shouldQuery=False)
        receipts.append(talk.until("result"))
        talk.say("assistant", answered)
    remembered = talk.ask("third question")
    requests = list(model.requests)
    start = len(talk.seen)
    talk.ask("hello")
    middle, calls = len(talk.seen), model.calls
    talk.ask("[[scenario:rate-limited-once]]")
    return StreamScene(
        greeting,
        receipts,
        remembered,
        requests,
        talk.seen[start:middle],
        talk.seen[middle:],
        model.calls - calls,
        talk.finish(),
    )


@pytest.mark.long  # `test_standin_fidelity.py` has a plain prompt, too
def test_a_plain_prompt_is_answered_with_one_json_result(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    answer = world.run(real_cli, "[[scenario:echo]] --version")
    assert (answer.code, answer.err) == (0, "")
    assert answer.result["result"] == "You said: [[scenario:echo]] --version"
    assert answer.result["usage"]["input_tokens"] == 10
    assert len(scripted_model.requests) == 1


def test_stream_json_gives_the_text_in_pieces_and_then_whole(stream: StreamScene) -> None:
    pieces = [
        m["event"]["delta"].get("text", "")
        for m in stream.answered
        if kind_of(m).endswith("content_block_delta")
    ]
    whole = [m["message"]["content"][0]["text"] for m in stream.answered if m["type"] == "assistant"]
    assert len(pieces) > 1
    assert "".join(pieces) == whole[0] == stream.answered[-1]["result"]
    assert stream.code == 0


@pytest.mark.long  # the example's agent runs commands and changes files, too
def test_a_bash_call_really_runs_as_the_agents_user(world: AgentHarness, real_cli: Path) -> None:
    answer = world.run(real_cli, "[[scenario:bash]]")
    made = world.work / "made-by-bash.txt"
    assert answer.result["result"] == "The command said: hello from bash"
    assert made.read_text() == "hello from bash\n"
    assert made.stat().st_uid == AGENT_UID


@pytest.mark.long
def test_write_and_edit_change_the_file(world: AgentHarness, real_cli: Path) -> None:
    answer = world.run(real_cli, "[[scenario:edit]]")
    assert "updated successfully" in answer.result["result"]
    assert (world.work / "notes.txt").read_text() == "colour: green\n"


def test_the_example_repositorys_test_fails_until_the_scenario_has_fixed_it(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    world.work = world.root / "shop"
    make_repository(world.work)
    for path in [world.work, *world.work.rglob("*")]:
        if ROOT:
            os.chown(path, AGENT_UID, AGENT_UID)
    answer = world.run(real_cli, "[[scenario:fix-the-test]]", "--setting-sources", "user")
    results = [request.last_result for request in scripted_model.requests]
    assert "FAILED" in results[1]
    assert re.search(r"^OK$", results[-1], re.MULTILINE)
    assert answer.result["result"].startswith("Fixed:")
    assert "item.price_cents * item.quantity" in (world.work / "shop.py").read_text()


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_schema_gives_a_structured_output(world: AgentHarness, real_cli: Path, *, streaming: bool) -> None:
    if streaming:
        result = world.start_conversation(real_cli, "--json-schema", SCHEMA).ask("hello")
    else:
        result = world.run(real_cli, "hello", "--json-schema", SCHEMA).result
    assert result["structured_output"] == {"n": 1}
    assert json.loads(result["result"]) == {"n": 1}


def test_a_rate_limit_that_says_no_retry_stops_it_after_one_call(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    answer = world.run(real_cli, "[[scenario:rate-limited-no-retry]]")
    assert scripted_model.calls == 1
    assert (answer.code, answer.result["api_error_status"]) == (1, 429)


def test_a_rate_limit_with_retry_after_is_waited_for(stream: StreamScene) -> None:
    assert stream.limited[-1]["result"] == "ok, after waiting."
    assert stream.calls_of_limited == 2
    retry = next(m for m in stream.limited if m.get("subtype") == "api_retry")
    assert retry["error_status"] == 429


def test_a_stream_that_is_cut_is_asked_for_again_and_never_a_success(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    answer = world.run(real_cli, "[[scenario:cut]]", CLAUDE_CODE_MAX_RETRIES="1")
    assert scripted_model.calls >= 2
    assert answer.code == 1
    assert answer.result["is_error"] is True


def test_a_history_goes_in_as_turns_when_each_receipt_is_waited_for(stream: StreamScene) -> None:
    assert [receipt["num_turns"] for receipt in stream.receipts] == [0, 0]
    assert stream.remembered["num_turns"] == 1
    [request] = stream.requests_of_history
    turns = [(role, text.rsplit("\n", 1)[-1]) for role, text in request.turns if role != "system"]
    assert turns == [
        ("user", "first question"),
        ("assistant", "first answer"),
        ("user", "second question"),
        ("assistant", "second answer"),
        ("user", "third question"),
    ]


def test_an_unknown_agent_is_passed_over_in_stream_mode(stream: StreamScene) -> None:
    assert "nobody" not in [agent["name"] for agent in stream.greeting["response"]["agents"]]
    assert stream.answered[-1]["is_error"] is False


def test_the_agents_environment_holds_nothing_of_this_shell_and_only_loopback_addresses(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-canary-for-a-real-key")
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "a-canary-for-a-real-token")
    monkeypatch.setenv("SOME_SETTING_OF_THIS_SHELL", "a-canary-for-anything-else")
    tool = {"name": "Bash", "input": {"command": "env", "description": "Show the environment"}}
    script = scenario.parse("env", {"turn": [{"tool": [tool]}, {"text": "{last_result}"}]})
    with ScriptedModel(script) as model:
        world.base_url = model.url
        shown = world.run(real_cli, "show it").result["result"]
        assert [request.headers["x-api-key"] for request in model.requests] == [DUMMY_API_KEY] * 2
    assert f"ANTHROPIC_API_KEY={DUMMY_API_KEY}" in shown
    assert "canary" not in shown
    assert "OAUTH" not in shown
    hosts = re.findall(r"https?://([^\s:/]+)", shown)
    assert hosts
    assert set(hosts) == {"127.0.0.1"}


def test_an_environment_is_never_made_for_an_address_beyond_loopback(world_dir: Path) -> None:
    addresses = ["https://example.org", "http://127.0.0.1.example.org:80", "http://127.0.0.1:80@example.org"]
    for address in (*addresses, "http://10.0.0.1:8080"):
        with pytest.raises(ConfigError):
            isolated_env(world_dir, address)


def test_what_it_refuses_on_the_command_line_it_says_on_stderr(
    world: AgentHarness, real_cli: Path, standin: Path, scripted_model: ScriptedModel
) -> None:
    refused: list[tuple[str, ...]] = [
        ("--bogus",),
        ("--max-budget-usd", "0"),
        ("--max-turns", "x"),
        ("--session-id", "nope"),
        ("--resume", "00000000-0000-4000-8000-000000000000"),
        ("--setting-sources", "bogus"),
        ("--agent", "nobody"),
        ("--output-format", "bogus"),
    ]
    for options in refused:
        answers: list[Any] = [world.run(cli, "hello", *options) for cli in (real_cli, standin)]
        assert [(a.code, a.out, a.err) for a in answers[:1]] == [(a.code, a.out, a.err) for a in answers[1:]]
        assert answers[0].code == 1
        assert answers[0].err
        if options[0] == "--agent":
            assert answers[0].out == b""
            assert answers[0].err.startswith("--agent 'nobody' not found. Available agents: claude, ")
    assert scripted_model.calls == 0


def used(result: dict[str, Any]) -> dict[str, int]:
    """What the CLI counted over all its calls, by the API's names."""
    names = {
        "input_tokens": "inputTokens",
        "output_tokens": "outputTokens",
        "cache_read_input_tokens": "cacheReadInputTokens",
        "cache_creation_input_tokens": "cacheCreationInputTokens",
        "ephemeral_5m_input_tokens": "cacheCreationEphemeral5mInputTokens",
        "ephemeral_1h_input_tokens": "cacheCreationEphemeral1hInputTokens",
    }
    models = result["modelUsage"].values()
    return {name: sum(model[theirs] for model in models) for name, theirs in names.items()}


def test_three_subagents_run_side_by_side_and_the_cli_counts_what_the_model_told_them(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    result = world.run(real_cli, "[[scenario:subagents]]").result
    assert result["result"] == "All three are back."
    assert result["subagent_stats"]["completed"] == 3
    assert len(scripted_model.requests) == 2 + 2 + 3 + 1
    assert used(result) == scripted_model.all_totals
    assert used(result)["ephemeral_1h_input_tokens"] == 1234 + 99


def test_a_limit_in_the_middle_ends_it_and_a_resumption_goes_on_without_a_repeated_call(
    world: AgentHarness, real_cli: Path, scripted_model: ScriptedModel
) -> None:
    session = "22222222-2222-4222-8222-222222222222"
    stopped = world.run(
        real_cli, "[[scenario:rate-limited-midway]]", "--session-id", session, CLAUDE_CODE_MAX_RETRIES="0"
    )
    assert (stopped.code, stopped.result["api_error_status"]) == (1, 429)
    resumed = world.run(real_cli, "Go on.", "--resume", session, CLAUDE_CODE_MAX_RETRIES="0")
    assert resumed.result["result"] == "Done. The marks are: mark"
    assert (world.work / "marks.txt").read_text() == "mark\n"
    assert scripted_model.calls == 3
