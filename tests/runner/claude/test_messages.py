"""The CLI's messages as events: golden transcripts of the real one, and shapes that nobody should trust."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.events import (
    Message,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
    WarningEvent,
    event_data,
)
from steadyhand.job import OutcomeType, Usage
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars
from steadyhand.runner.claude.messages import MessageReader, parse_dollars, parse_result
from steadyhand.runner.process import event_limits
from steadyhand.runner.process.event_limits import MAX_INPUT_BYTES, MAX_OUTPUT_BYTES
from steadyhand.runner.process.output import parse_message

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_a_transcript_of_the_real_cli_means_these_events(case: str) -> None:
    lines = (GOLDEN / case / "transcript.jsonl").read_text(encoding="utf-8").splitlines()
    conversation = MessageReader()
    events = []
    for number, line in enumerate(lines):
        message = parse_message(line.encode())
        assert message is not None
        events += [
            {"type": event.type, "data": event_data(event)}
            for event in conversation.feed(message, number / 10)
        ]
    expected = json.loads((GOLDEN / case / "events.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(events)) == expected
    assert conversation.session_id == json.loads(lines[-1])["session_id"]


def test_the_golden_cases_are_there() -> None:
    assert {"answer", "tool", "structured", "no-credit", "retry", "max-turns"} <= set(CASES)


def _assistant(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    inner = {"id": "msg_1", "content": list(blocks), "usage": {"input_tokens": 3, "output_tokens": 5}}
    return {"type": "assistant", "message": inner, **more}


def test_a_message_sent_again_for_each_block_is_counted_once() -> None:
    conversation = MessageReader()
    first = conversation.feed(_assistant({"type": "text", "text": "a"}), 0)
    second = conversation.feed(_assistant({"type": "text", "text": "b"}), 0)
    assert [type(each) for each in first] == [Message, UsageReported]
    assert [type(each) for each in second] == [Message]
    assert (conversation.usage.input_tokens, conversation.usage.turns) == (3, 1)


def test_a_subagents_words_are_not_the_agents_but_its_tools_are_seen() -> None:
    conversation = MessageReader()
    blocks = (
        {"type": "text", "text": "inner"},
        {"type": "tool_use", "id": "t", "name": "Bash", "input": {}},
    )
    events = conversation.feed(_assistant(*blocks, parent_tool_use_id="toolu_9"), 0)
    assert [type(each) for each in events] == [ToolStarted, UsageReported]
    assert events[0] == ToolStarted("t", "Bash", {}, parent_tool_id="toolu_9")
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}
    assert conversation.feed({"type": "stream_event", "event": delta, "parent_tool_use_id": "t"}, 0) == []
    assert conversation.feed({"type": "stream_event", "event": delta, "parent_tool_use_id": None}, 0) == [
        TextDelta("", "x")
    ]


def test_what_the_cli_writes_itself_is_a_warning_and_no_answer() -> None:
    message = _assistant({"type": "text", "text": "API Error: 402"}, error="billing_error")
    assert MessageReader().feed(message, 0) == [WarningEvent(WarningCode.MODEL_ERROR, "API Error: 402")]


def test_a_tools_time_is_the_clocks_and_its_output_is_cut() -> None:
    conversation = MessageReader()
    conversation.feed(
        _assistant({"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "x"}}), 10.0
    )
    block = {"type": "tool_result", "tool_use_id": "t", "content": "ä" * MAX_OUTPUT_BYTES, "is_error": True}
    (finished,) = conversation.feed({"type": "user", "message": {"content": [block]}}, 12.5)
    assert isinstance(finished, ToolFinished)
    assert (finished.duration_ms, finished.is_error, finished.truncated) == (2500, True, True)
    assert len(finished.output.encode()) == MAX_OUTPUT_BYTES


def test_a_tool_result_of_blocks_is_its_text_and_names_the_rest() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image", "source": {}}, {"type": "text", "text": "b"}]
    block = {"type": "tool_result", "tool_use_id": "unheard of", "content": content}
    (finished,) = MessageReader().feed({"type": "user", "message": {"content": [block]}}, 0)
    assert finished == ToolFinished("unheard of", False, "a\n[image]\nb", False, None)


def test_an_input_too_large_for_the_record_is_described() -> None:
    block = {"type": "tool_use", "id": "t", "name": "Write", "input": {"content": "x" * MAX_INPUT_BYTES}}
    started = MessageReader().feed(_assistant(block), 0)[0]
    assert isinstance(started, ToolStarted)
    assert list(started.input) == ["left_out"]


def test_a_flood_of_events_is_cut_with_one_warning_and_the_end_still_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_limits, "MAX_EVENTS", 500)
    conversation = MessageReader()
    events: list[Any] = []
    for number in range(500):
        inner = {"id": f"m{number}", "content": "x", "usage": {}}
        events += conversation.feed({"type": "assistant", "message": inner}, 0)
    assert conversation.limit_reached
    assert len(events) == 501
    assert [each.code for each in events if isinstance(each, WarningEvent)] == ["events_left_out"]
    assert conversation.feed({"type": "result", "usage": {}, "total_cost_usd": 1}, 0) != []


@pytest.mark.parametrize(
    ("dollars", "micros"),
    [
        (0.0412, 41_200),
        (0.1, 100_000),
        (1e-7, 0),
        (1.5e-6, 2),
        (5, 5_000_000),
        (0, 0),
        (1.1000000000000001, 1_100_000),
        (-1, None),
        (1e300, None),
        (float("nan"), None),
        (True, None),
        ("1", None),
        (None, None),
    ],
)
def test_money_is_read_as_the_text_it_was(dollars: Any, micros: int | None) -> None:
    assert parse_dollars(dollars) == micros


@given(st.decimals(0, 1000, places=6))
def test_every_amount_of_micro_dollars_survives_json(amount: Decimal) -> None:
    micros = parse_dollars(json.loads(str(amount)))
    assert micros is not None
    assert Decimal(format_dollars(micros)) == amount


@pytest.mark.parametrize(
    ("subtype", "outcome"),
    [
        ("success", OutcomeType.SUCCESS),
        ("error_max_turns", OutcomeType.MAX_TURNS),
        ("error_max_budget_usd", OutcomeType.BUDGET),
        ("error_max_structured_output_retries", OutcomeType.INVALID_OUTPUT),
        ("error_during_execution", OutcomeType.AGENT_ERROR),
    ],
)
def test_a_result_is_read_into_the_outcome_that_its_subtype_names(subtype: str, outcome: OutcomeType) -> None:
    result = parse_result({"type": "result", "subtype": subtype})
    assert (result.reported, result.label) == (outcome, subtype)


def test_a_result_of_wrong_types_is_read_as_far_as_it_goes() -> None:
    result = parse_result(
        {
            "type": "result",
            "subtype": 3,
            "is_error": "yes",
            "result": [1],
            "usage": [],
            "errors": ["a", 2],
            "num_turns": -4,
            "total_cost_usd": {},
            "api_error_status": True,
            "stop_reason": 1,
        }
    )
    assert (result.reported, result.label) == (OutcomeType.AGENT_ERROR, "")
    assert (result.is_error, result.text, result.usage) == (False, None, None)
    assert (result.errors, result.cost_micros, result.api_error_status) == (("a",), None, None)


_KEYS = st.sampled_from(
    "type message content id usage event delta text input name tool_use_id input_tokens error subtype result".split()  # noqa: SIM905  # read more easily
    + "tasks task_id description kind reason key hook_id costUSD".split()  # noqa: SIM905  # the same
)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_TYPES = st.sampled_from(
    "assistant user system result stream_event rate_limit_event text tool_use tool_result message_start".split()  # noqa: SIM905  # the same
)

_SUBTYPES = st.sampled_from(
    "init hook_started hook_response informational notification background_tasks_changed".split()  # noqa: SIM905  # the same
)
_FIELDS = (
    *("message", "event", "usage", "tasks", "terminal_reason", "prompt_submit_outcome", "key"),
    "model_usage_since_last_result",
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"type": _TYPES}, optional=dict.fromkeys(_FIELDS, _ANY) | {"subtype": _SUBTYPES}
        )
    )
)
def test_no_shape_whatever_raises(messages: list[dict[str, Any]]) -> None:
    conversation = MessageReader()
    for message in messages:
        for event in conversation.feed(message, 0):
            json.dumps(event_data(event))


@pytest.mark.parametrize("given", ["\ud800", "a\x00b", "x" * 65, "", "../up", 7, None])
def test_an_id_of_a_session_that_cannot_be_one_is_none(given: Any) -> None:
    conversation = MessageReader()
    list(conversation.feed({"type": "system", "subtype": "init", "session_id": given}, 0.0))
    assert conversation.session_id is None
    found = parse_result({"type": "result", "subtype": "success", "session_id": given})
    assert found is not None
    assert found.session_id is None


def _result(cost: Any, total: float = 5.0) -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 5}
    message = {"type": "result", "subtype": "success", "result": "done", "usage": usage, "num_turns": 1}
    models = {"opus": {"costUSD": cost}, "haiku": {"costUSD": 0.25}, "odd": 7}
    return message | {"total_cost_usd": total, "model_usage_since_last_result": models}


def test_the_cost_of_a_result_is_what_was_added_since_the_one_before_and_not_the_sessions() -> None:
    assert parse_result(_result(0.5)).cost_micros == 750_000
    assert parse_result(_result("much")).cost_micros == 250_000
    assert parse_result({**_result(0.5), "model_usage_since_last_result": None}).cost_micros == 5_000_000


def test_the_last_of_several_results_has_the_usage_and_the_cost_of_all() -> None:
    reader = MessageReader()
    events = [event for cost in (0.5, 0.25) for event in reader.feed(_result(cost), 0.0)]
    assert reader.result is not None
    assert reader.result.usage == Usage(input_tokens=20, output_tokens=10, turns=2)
    assert reader.result.cost_micros == 1_250_000
    assert [event.cost_usd for event in events if isinstance(event, UsageReported)] == [
        "0.750000",
        "1.250000",
    ]


def test_the_work_in_the_background_is_what_was_listed_last_and_its_number_is_bounded() -> None:
    reader = MessageReader()
    changed = {"type": "system", "subtype": "background_tasks_changed"}
    task = {"task_id": "b1", "task_type": "local_bash", "description": "Build"}
    list(reader.feed({**changed, "tasks": [task, {**task, "task_id": "b2", "description": ""}, 7]}, 0.0))
    assert reader.background == {"b1": "Build", "b2": "local_bash"}
    list(reader.feed({**changed, "tasks": [{"task_id": str(number)} for number in range(5000)]}, 0.0))
    assert len(reader.background) == 100
    list(reader.feed({**changed, "tasks": []}, 0.0))
    assert reader.background == {}


def test_a_hook_is_known_from_its_start_to_its_end() -> None:
    reader = MessageReader()
    hook = {"type": "system", "hook_id": "h", "hook_name": "SessionStart:startup"}
    list(reader.feed({**hook, "subtype": "hook_started"}, 0.0))
    assert reader.running_hook == "The hook SessionStart:startup has not ended."
    # The CLI ends it when it is stopped; if it goes on instead, the hook is over.
    list(reader.feed({**hook, "subtype": "hook_response", "outcome": "error"}, 0.0))
    assert reader.running_hook is not None
    list(reader.feed({"type": "system", "subtype": "init"}, 0.0))
    assert reader.running_hook is None
    for subtype in ("hook_started", "hook_response"):
        list(reader.feed({**hook, "subtype": subtype, "outcome": "success"}, 0.0))
    assert reader.running_hook is None
