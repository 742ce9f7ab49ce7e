"""The stand-in beside the real CLI: the same messages with the same keys."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steadyhand.testing.live_folders import contents_below, files_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import wait_until
from steadyhand.testing.standin.frames import VERSION

from .conftest import STREAM_OPTIONS, AgentHarness, Conversation, agent_world, kind_of

ANSWER = "ok: the scripted model has read the prompt."
PROMPT = f'hello [[standin: text="{ANSWER}" chunk=12]]'
TOOL = 'hello [[scenario:bash]] [[standin: say="Look." run="echo hi > made && cat made"]]'


def keys_by_kind(messages: list[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for message in messages:
        found.setdefault(kind_of(message), set()).update(message)
    return found


def without_repeats(kinds: list[str]) -> list[str]:
    return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]


@pytest.fixture(scope="module")
def plain_talks(real_cli: Path, standin: Path) -> Iterator[list[list[dict[str, Any]]]]:
    """All that the real CLI, then the stand-in, says in a conversation of one prompt."""
    with agent_world() as (world, _):
        yield [talk_of(world, cli, PROMPT) for cli in (real_cli, standin)]


def talk_of(world: AgentHarness, cli: Path, prompt: str) -> list[dict[str, Any]]:
    talk = world.start_conversation(cli)
    talk.control("initialize")
    talk.ask(prompt)
    assert talk.finish() == 0
    return talk.seen


def test_a_plain_json_result_has_the_same_keys_at_every_depth(
    world: AgentHarness, real_cli: Path, standin: Path
) -> None:
    real, ours = (world.run(cli, PROMPT).result for cli in (real_cli, standin))
    assert set(ours) == set(real)
    assert set(ours["usage"]) == set(real["usage"])
    [(real_model, real_use)], [(our_model, our_use)] = real["modelUsage"].items(), ours["modelUsage"].items()
    assert (our_model, set(our_use)) == (real_model, set(real_use))
    for key in (
        "type",
        "subtype",
        "is_error",
        "num_turns",
        "stop_reason",
        "terminal_reason",
        "api_error_status",
        "result",
    ):
        assert ours[key] == real[key], key


@pytest.mark.parametrize("prompt", [PROMPT, TOOL])
def test_a_conversation_has_the_same_messages_in_the_same_order_with_the_same_keys(
    world: AgentHarness,
    real_cli: Path,
    standin: Path,
    plain_talks: list[list[dict[str, Any]]],
    prompt: str,
) -> None:
    seen = plain_talks
    if prompt != PROMPT:
        seen = [talk_of(world, cli, prompt) for cli in (real_cli, standin)]
    real, ours = seen
    wanted, found = keys_by_kind(real), keys_by_kind(ours)
    assert set(found) <= set(wanted)
    # The first event of a message also carries timings in the real one, which nobody should rely on.
    optional = {"ttft_ms", "thinking_display"}
    assert {
        kind: (found[kind] ^ wanted[kind]) - optional
        for kind in found
        if (found[kind] ^ wanted[kind]) - optional
    } == {}
    if prompt == PROMPT:
        real_kinds, our_kinds = ([kind_of(message) for message in messages] for messages in seen)
        assert without_repeats(our_kinds) == without_repeats(real_kinds)
    said = [[m["message"] for m in messages if m["type"] == "assistant"] for messages in seen]
    assert set(said[1][0]) == set(said[0][0])
    told = [[m["message"]["content"][0] for m in messages if m["type"] == "user"] for messages in seen]
    assert [set(block) for block in told[1]] == [set(block) for block in told[0]]


def test_control_requests_and_a_turn_that_is_only_remembered_are_answered_alike(
    world: AgentHarness, real_cli: Path, standin: Path
) -> None:
    greetings, answers, receipts = [], [], []
    for cli in (real_cli, standin):
        talk = world.start_conversation(cli)
        greetings.append(talk.control("initialize"))
        sent = [talk.control("nonsense"), talk.control("set_model", model="haiku"), talk.control("interrupt")]
        answers.append([{**answer, "request_id": ""} for answer in sent])
        talk.say("user", "remember this", shouldQuery=False)
        receipts.append(talk.until("result"))
    assert answers[1] == answers[0]
    real, ours = greetings
    assert set(ours) == set(real)
    assert set(ours["response"]) == set(real["response"])
    assert [a["name"] for a in ours["response"]["agents"]] == [a["name"] for a in real["response"]["agents"]]
    real, ours = receipts
    assert set(ours) == set(real)
    for key in ("subtype", "is_error", "num_turns", "result", "stop_reason", "usage"):
        assert ours[key] == real[key], key


READS_STATE = {"CLAUDE_CODE_SDK_READS_SESSION_STATE": "1"}


def until_idle(talk: Conversation) -> list[dict[str, Any]]:
    """Read until the turn is over; return its messages."""
    before = len(talk.seen)
    while talk.until("system").get("state") != "idle":
        pass
    return talk.seen[before:]


def session_entries(world: AgentHarness, session: str) -> list[dict[str, Any]]:
    (path,) = files_below(world.config, f"{session}.jsonl")
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]  # the last may be half a line


def written(world: AgentHarness, session: str, name: str, value: str) -> dict[str, Any]:
    """Wait until an entry of a session has a field with this value, and return it."""

    def look() -> dict[str, Any] | None:
        if not files_below(world.config, f"{session}.jsonl"):
            return None
        return next((each for each in session_entries(world, session) if each.get(name) == value), None)

    return wait_until(look)


def test_the_state_of_a_session_is_told_alike_and_only_if_it_is_read(
    world: AgentHarness, real_cli: Path, standin: Path, plain_talks: list[list[dict[str, Any]]]
) -> None:
    for quiet in plain_talks:
        assert not any(each.get("subtype") == "session_state_changed" for each in quiet)
    seen = []
    for cli in (real_cli, standin):
        talk = world.start_conversation(cli, **READS_STATE)
        talk.say("user", PROMPT)
        turn = [each for each in until_idle(talk) if each["type"] != "command_lifecycle"]
        seen.append([kind_of(each) for each in (*turn[:2], *turn[-2:])])
        assert {each["state"] for each in (turn[0], turn[-1])} == {"running", "idle"}
        shape = set(turn[-1])
        assert shape == {"type", "subtype", "state", "sdk_host_only", "uuid", "session_id"}
    assert seen[1] == seen[0]


def test_a_turn_that_is_taken_back_is_answered_and_recorded_alike(
    world: AgentHarness, real_cli: Path, standin: Path
) -> None:
    answers, cuts = [], []
    for cli in (real_cli, standin):
        talk = world.start_conversation(cli, **READS_STATE)
        cost = talk.control("get_session_cost")["response"]
        cost["text"] = re.sub(r"(Total duration \(\w+\):).*", r"\1", cost["text"])  # times differ under load
        first, second = str(uuid.uuid4()), str(uuid.uuid4())
        for ident in (first, second):
            talk.say("user", PROMPT, uuid=ident, client_composed=True)
            turn = until_idle(talk)
        session = str(turn[-1]["session_id"])
        said = [each for each in turn if each["type"] == "assistant"][-1]
        assert written(world, session, "uuid", said["uuid"])["type"] == "assistant"
        sent = [
            talk.control("rewind_conversation", target_message_uuid=second),
            talk.control("rewind_conversation", target_message_uuid=second),
            talk.control("rewind_conversation"),
        ]
        replies = [{**each, "request_id": ""} for each in sent]
        for name in ("targetMessageUuid", "precedingAssistantUuid"):
            if replies[0]["response"].pop(name) is None:
                raise AssertionError(f"{name} is not there")
        answers.append([cost, *replies])
        cut = written(world, session, "cutUuid", second)
        ((_, entries),) = contents_below(world.config, f"{session}.jsonl")
        assert b'"cutUuid":"%s"' % second.encode() in entries
        cuts.append(
            {key: value for key, value in cut.items() if key not in ("cutUuid", "sessionId", "lastPrompt")}
        )
    assert answers[1] == answers[0]
    assert set(cuts[1]) <= set(cuts[0])
    assert (
        (cuts[0]["type"], cuts[0]["rewound"])
        == (cuts[1]["type"], cuts[1]["rewound"])
        == ("last-prompt", True)
    )


def test_what_was_taken_back_is_not_known_any_more(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin, **READS_STATE)
    ident = str(uuid.uuid4())
    for text, fields in (("kept", {}), ("taken back", {"uuid": ident})):
        talk.say("user", text, **fields)
        until_idle(talk)
    talk.control("rewind_conversation", target_message_uuid=ident)
    result = talk.ask("[[standin: history]]")["result"]
    assert "kept" in result
    assert "taken back" not in result


def test_a_cleared_conversation_is_told_and_recorded_alike(
    world: AgentHarness, real_cli: Path, standin: Path
) -> None:
    messages, records, results = [], [], []
    for cli in (real_cli, standin):
        talk = world.start_conversation(cli, **READS_STATE)
        talk.say("user", PROMPT)
        before = str(until_idle(talk)[-1]["session_id"])
        talk.say("user", "/clear")
        turn = until_idle(talk)
        messages.append([(kind_of(each), set(each)) for each in turn if each["type"] != "result"])
        (result,) = [each for each in turn if each["type"] == "result"]
        assert result["session_id"] != before
        results.append(result)
        ident = str(next(each for each in turn if each["type"] == "conversation_reset")["user_message_uuid"])
        written(world, result["session_id"], "uuid", ident)
        users = [each for each in session_entries(world, result["session_id"]) if each["type"] == "user"]
        records.append([each["uuid"] == ident for each in users])
        stale, answer = (
            talk.control("rewind_conversation", target_message_uuid=users[0]["uuid"], **last_seen)
            for last_seen in ({}, {"last_seen_user_message_uuid": ident})
        )
        assert stale["response"]["reason"] == "stale_target"
        assert answer["response"]["rewound"] is True
        # The words alone are no command if the client says so.
        talk.say("user", "/clear", client_composed=True)
        assert [each["session_id"] for each in until_idle(talk)][-1] == result["session_id"]
        assert talk.finish() == 0
    real, ours = messages
    assert [kind for kind, _ in ours] == [kind for kind, _ in real]
    assert [keys for kind, keys in ours if kind == "conversation_reset"] == [
        keys for kind, keys in real if kind == "conversation_reset"
    ]
    assert records[1] == records[0] == [False, True]
    assert set(results[1]) == set(results[0])
    for key in ("subtype", "is_error", "num_turns", "result", "total_cost_usd", "modelUsage"):
        assert results[1][key] == results[0][key], key


def test_a_second_initialize_changes_nothing(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    talk.control("initialize")
    assert talk.control("initialize", jsonSchema=schema)["subtype"] == "success"
    assert "structured_output" not in talk.ask("hello")


def test_the_command_lines_name_their_version_and_leave_their_own_sandbox_off(
    plain_talks: list[list[dict[str, Any]]],
) -> None:
    for messages in plain_talks:
        answer = next(each for each in messages if each["type"] == "control_response")["response"]["response"]
        start = next(each for each in messages if each["type"] == "system")
        for told in (answer, start):
            assert told["claude_code_version"] == VERSION
            assert told["sandbox_enabled"] is False


@pytest.mark.parametrize(
    ("scenario", "directive"),
    [
        ("no-credit", "api_error=402"),
        ("costly", "result=max_budget"),
        ("loop", "result=max_turns"),
        ("refusal", "result=refusal"),
        ("empty", "result=empty"),
    ],
)
def test_results_of_failed_runs_are_alike(
    world: AgentHarness,
    real_cli: Path,
    standin: Path,
    scripted_model: ScriptedModel,
    *,
    scenario: str,
    directive: str,
) -> None:
    prompt = f"[[scenario:{scenario}]] [[standin: {directive}]]"
    real, ours = (
        world.run(cli, prompt, "--max-budget-usd", "0.5", "--max-turns", "2") for cli in (real_cli, standin)
    )
    assert ours.code == real.code
    if scenario == "no-credit":  # a spent credit stops it after one call
        assert (scripted_model.calls, real.code, real.result["subtype"]) == (1, 1, "success")
        assert (real.result["is_error"], real.result["api_error_status"]) == (True, 402)
    if scenario == "costly":  # the budget ends it after the call that spent it
        assert (scripted_model.calls, real.code) == (1, 1)
        assert real.result["subtype"] == "error_max_budget_usd"
        assert real.result["total_cost_usd"] > 0.5
        assert "result" not in real.result
    # How quickly the first words came is told only when some came.
    timings = {"ttft_ms", "first_content_frame_ms", "ttft_stream_ms", "time_to_request_ms"}
    assert set(ours.result) - timings == set(real.result) - timings
    for key in ("subtype", "is_error", "terminal_reason", "stop_reason", "api_error_status", "errors"):
        assert ours.result.get(key) == real.result.get(key), key


def test_an_interrupted_tool_ends_the_turn_alike(world: AgentHarness, real_cli: Path, standin: Path) -> None:
    prompt = '[[scenario:deaf-tool]] [[standin: run="sleep 60"]]'
    results, kinds = [], []
    for cli in (real_cli, standin):
        talk = world.start_conversation(cli)
        talk.control("initialize")
        talk.say("user", prompt)
        while talk.until("assistant")["message"]["content"][0]["type"] != "tool_use":
            pass
        talk.until("stream_event")
        talk.control("interrupt")
        results.append(talk.until("result"))
        kinds.append([kind_of(message) for message in talk.seen[-3:]])
    real, ours = results
    assert set(ours) <= set(real)
    for key in ("subtype", "is_error", "terminal_reason"):
        assert ours[key] == real[key], key
    assert kinds[1] == kinds[0]


def test_agents_in_the_config_directory_and_the_repository_are_known_alike(
    world: AgentHarness, real_cli: Path, standin: Path, scripted_model: ScriptedModel
) -> None:
    world.write("home/.claude/agents/one.md", "---\nname: mine\ndescription: of the user\n---\nBe mine.\n")
    world.write("home/.claude/agents/two.md", "no frontmatter, no agent\n")
    world.write(
        "work/.claude/agents/three.md", "---\nname: theirs\ndescription: of the repository\n---\nBe theirs.\n"
    )
    for sources in ((), ("--setting-sources", "user")):
        real, ours = (world.run(cli, "hello", "--agent", "nobody", *sources) for cli in (real_cli, standin))
        assert sorted(ours.err.strip().split(": ")[1].split(", ")) == sorted(
            real.err.strip().split(": ")[1].split(", ")
        )
        assert ("theirs" in ours.err) == (not sources)
    assert scripted_model.calls == 0


def test_streaming_out_only_has_the_same_messages(world: AgentHarness, real_cli: Path, standin: Path) -> None:
    base = tuple(option for option in STREAM_OPTIONS if option != "--input-format")
    at = STREAM_OPTIONS.index("--input-format")
    base = (*STREAM_OPTIONS[:at], *STREAM_OPTIONS[at + 2 :])
    real, ours = (world.run(cli, PROMPT, base=base).lines for cli in (real_cli, standin))
    assert without_repeats([kind_of(m) for m in ours]) == without_repeats([kind_of(m) for m in real])
