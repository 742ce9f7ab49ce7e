"""The usage of OpenAI's APIs and of Gemini's: the same counts of whatever wire, and never too low without a mark."""

import json
from collections.abc import Iterator

import pytest
from tests.gateway.model_responses import JSON, MODEL, TEXT, read_with_meter
from tests.gateway.wire_bodies import (
    CHAT_USAGE,
    GEMINI_USAGE,
    RESPONSES_USAGE,
    WIRE_USAGE,
    WIRES,
    Event,
    Wire,
    chat_body,
    chat_chunk,
    chat_events,
    gemini_chunk,
    gemini_events,
    response,
    responses_delta,
    responses_events,
    to_sse,
    wire_body,
    wire_events,
    wire_stream,
)

from steadyhand.gateway.model import usage_meter
from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

each_wire = pytest.mark.parametrize("wire", WIRES)


@pytest.fixture(scope="module", autouse=True)
def _each_piece_is_read_when_it_comes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_meter, "BATCH_BYTES", 1)
        yield


# --- cut ---------------------------------------------------------------------------------------


@each_wire
def test_a_stream_cut_at_any_byte_is_marked_unless_all_was_told(wire: Wire) -> None:
    stream = wire_stream(wire)
    found = [read_with_meter(stream[:at], form=wire, cut=True) for at in range(len(stream))]
    assert all(each.tokens == WIRE_USAGE for each in found if each.complete)
    assert not any(each.complete for each in found[: stream.index(b"765") if wire != "gemini" else None])
    assert {each.complete for each in found[-2:]} == {
        wire != "gemini"
    }  # only the end of the body is Gemini's


@each_wire
def test_two_pieces_are_read_as_one_wherever_they_are_parted(wire: Wire) -> None:
    for body in (wire_stream(wire), wire_body(wire)):
        whole = read_with_meter(body, form=wire)
        assert (whole.tokens, whole.complete) == (WIRE_USAGE, True)
        for at in range(len(body)):
            assert read_with_meter([body[:at], body[at:]], form=wire) == whole


@each_wire
def test_an_answer_in_one_piece_cut_at_any_byte_is_marked(wire: Wire) -> None:
    body = wire_body(wire)
    for at in range(len(body)):
        reading = read_with_meter(body[:at], JSON, form=wire, cut=True)
        assert not reading.complete
        assert reading.estimated_output == -(-at // 4)


@each_wire
def test_the_output_of_a_stream_that_breaks_off_is_estimated_by_its_text(wire: Wire) -> None:
    events = wire_events(wire, 300)
    broken = to_sse(wire, events[:-2] if wire != "responses" else events[:-3], done=False)
    reading = read_with_meter(broken, form=wire, cut=True)
    assert not reading.complete
    assert reading.has_usage == (wire == "gemini")
    assert abs(reading.estimated_output - 300 * len(TEXT) / 4) < 20
    assert reading.model == MODEL
    assert reading.billable_tokens.output == reading.estimated_output


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        ("responses", responses_delta('say "x" \\ ' * 50, "response.function_call_arguments.delta")),
        ("responses", responses_delta('say "x" \\ ' * 50, "response.reasoning_summary_text.delta")),
        ("chat", chat_chunk({"reasoning_content": 'say "x" \\ ' * 50})),
        ("chat", chat_chunk({"tool_calls": [{"function": {"arguments": 'say "x" \\ ' * 50}}]})),
        ("gemini", gemini_chunk('say "x" \\ ' * 50)),
    ],
)
def test_thinking_and_tool_input_with_quotes_are_part_of_the_estimate(wire: Wire, event: Event) -> None:
    written = len(json.dumps('say "x" \\ ' * 50)) - 2
    assert read_with_meter(to_sse(wire, [event], done=False), form=wire, cut=True).estimated_output == -(
        -written // 4
    )


def test_deltas_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    loads = json.loads

    def noted(data: bytes) -> object:
        parsed.append(data)
        return loads(data)

    monkeypatch.setattr(json, "loads", noted)
    for wire in WIRES[:2]:
        body = wire_stream(wire, 500)
        parsed.clear()
        assert read_with_meter(body, form=wire).complete
        assert len(parsed) == 3


# --- what services do differently --------------------------------------------------------------


@each_wire
def test_figures_that_the_agent_makes_the_model_say_count_for_nothing(wire: Wire) -> None:
    lie = to_sse("chat", chat_events(1, {"prompt_tokens": 0, "completion_tokens": 0})).decode()
    lie += json.dumps({"usage": {"input_tokens": 0, "output_tokens": 0}, "finish_reason": "stop"})
    events = {
        "responses": [responses_events()[0], responses_delta(lie)],
        "chat": [chat_chunk({"content": lie}), chat_chunk({"content": lie})],
        "gemini": [gemini_chunk(lie)],
    }[wire]
    assert not read_with_meter(to_sse(wire, events, done=False), form=wire).complete
    last = wire_events(wire, 0)
    reading = read_with_meter(to_sse(wire, [*events, *last]), form=wire)
    assert (reading.tokens, reading.complete) == (WIRE_USAGE, True)


@pytest.mark.parametrize("end", ["completed", "incomplete", "failed"])
def test_each_end_of_a_response_has_its_usage(end: str) -> None:
    for reading in (
        read_with_meter(to_sse("responses", responses_events(end=end)), form="responses", cut=True),
        read_with_meter(json.dumps(response(end, RESPONSES_USAGE)).encode(), JSON, form="responses"),
    ):
        assert (reading.tokens, reading.complete) == (WIRE_USAGE, True)


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_that_goes_on_in_the_background_is_incomplete(status: str) -> None:
    assert not read_with_meter(json.dumps(response(status)).encode(), JSON, form="responses").complete


def test_a_last_event_with_a_large_response_is_read() -> None:
    body = to_sse("responses", responses_events(instructions="x" * (3 << 20)))
    reading = read_with_meter(
        (body[at : at + 60_000] for at in range(0, len(body), 60_000)), form="responses"
    )
    assert (reading.tokens, reading.complete) == (WIRE_USAGE, True)


def test_searches_and_the_priority_tier_are_told() -> None:
    searches = [
        {"type": "web_search_call", "action": {"type": "search", "query": "q"}},
        {"type": "web_search_call", "action": {"type": "open_page", "url": "u"}},
        {"type": "web_search_call"},
    ]
    events = responses_events(output=searches, service_tier="priority")
    reading = read_with_meter(to_sse("responses", events), form="responses")
    assert reading.extras == UsageExtras(searches=2, fast=True)
    for tier in ("priority", "fast", "ultrafast"):
        assert read_with_meter(chat_body(service_tier=tier), JSON, form="chat").extras.fast
    assert not read_with_meter(chat_body(service_tier="default"), JSON, form="chat").extras.fast


def test_written_caches_are_counted_apart_from_the_input() -> None:
    details = {"cached_tokens": 4000, "cache_write_tokens": 600}
    wanted = TokenCounts(input=90, output=765, cache_read=4000, cache_write_5m=600)
    usage = {**RESPONSES_USAGE, "input_tokens_details": details}
    assert (
        read_with_meter(to_sse("responses", responses_events(usage=usage)), form="responses").tokens == wanted
    )
    usage = {**CHAT_USAGE, "prompt_tokens_details": details}
    assert read_with_meter(chat_body(usage), JSON, form="chat").tokens == wanted


@pytest.mark.parametrize("name", ["cached_tokens", "prompt_cache_hit_tokens"])
def test_cached_input_is_found_where_some_services_put_it(name: str) -> None:
    usage = {"prompt_tokens": 4690, "completion_tokens": 765, name: 4567, "prompt_tokens_details": None}
    assert read_with_meter(chat_body(usage), JSON, form="chat").tokens == WIRE_USAGE


def test_usage_within_the_last_choice_is_read() -> None:
    events = chat_events()[:-2]
    last = chat_chunk({}, "stop")
    last["choices"][0]["usage"] = CHAT_USAGE
    reading = read_with_meter(to_sse("chat", [*events, last]), form="chat", cut=True)
    assert (reading.tokens, reading.complete) == (WIRE_USAGE, True)


def test_usage_on_each_chunk_is_complete_with_the_end_alone() -> None:
    growing = [chat_chunk({"content": TEXT}, None, {**CHAT_USAGE, "completion_tokens": n}) for n in (1, 400)]
    last = chat_chunk({}, "stop", CHAT_USAGE)
    assert not read_with_meter(to_sse("chat", growing, done=False), form="chat").complete
    for done in (True, False):
        reading = read_with_meter(to_sse("chat", [*growing, last], done=done), form="chat")
        assert (reading.tokens, reading.complete) == (WIRE_USAGE, True)
    cut = read_with_meter(to_sse("chat", [*growing, last], done=False), form="chat", cut=True)
    assert not cut.complete  # another choice may have gone on


def test_a_service_that_names_no_model_is_read_all_the_same() -> None:
    events = [event | {"model": ""} for event in chat_events(50)]
    reading = read_with_meter(to_sse("chat", events), form="chat")
    assert (reading.model, reading.tokens, reading.complete) == (None, WIRE_USAGE, True)


def test_a_prompt_that_gemini_blocks_costs_its_input() -> None:
    usage = {"promptTokenCount": 12, "totalTokenCount": 12}
    refused = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": MODEL}
    reading = read_with_meter(json.dumps(refused).encode(), JSON, form="gemini")
    assert (reading.tokens, reading.complete) == (TokenCounts(input=12), True)


def test_a_total_above_its_parts_marks_that_one_lacks() -> None:
    usage = {name: value for name, value in GEMINI_USAGE.items() if name != "thoughtsTokenCount"}
    assert not read_with_meter(to_sse("gemini", gemini_events(1, usage)), form="gemini").complete
    without = {name: value for name, value in GEMINI_USAGE.items() if name != "totalTokenCount"}
    assert not read_with_meter(to_sse("gemini", gemini_events(0, without)), form="gemini").complete


# --- hostile figures ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["5", 1.0, -1, 10**30, True, [], {"a": 1}, None])
@each_wire
def test_a_figure_that_is_no_count_is_marked(wire: Wire, value: object) -> None:
    names = {"responses": "output_tokens", "chat": "completion_tokens", "gemini": "candidatesTokenCount"}
    broken = {names[wire]: value}
    body = {
        "responses": to_sse("responses", responses_events(usage=RESPONSES_USAGE | broken)),
        "chat": to_sse("chat", chat_events(usage=CHAT_USAGE | broken)),
        "gemini": to_sse("gemini", gemini_events(usage=GEMINI_USAGE | broken)),
    }[wire]
    reading = read_with_meter(body, form=wire)
    assert not reading.complete
    assert reading.tokens.input == 123


@each_wire
def test_more_cached_than_sent_is_marked_and_never_below_zero(wire: Wire) -> None:
    body = {
        "responses": to_sse("responses", responses_events(usage=RESPONSES_USAGE | {"input_tokens": 9})),
        "chat": chat_body(CHAT_USAGE | {"prompt_tokens": 9}),
        "gemini": json.dumps(
            gemini_chunk(TEXT, "STOP", GEMINI_USAGE | {"promptTokenCount": 9, "totalTokenCount": 784})
        ).encode(),
    }[wire]
    reading = read_with_meter(body, form=wire)
    assert not reading.complete
    assert reading.tokens.input in (0, 10)


@each_wire
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"<html>busy</html>", b'{"usage":null}'])
def test_a_success_without_usage_is_incomplete_and_an_error_costs_nothing(wire: Wire, body: bytes) -> None:
    assert not read_with_meter(body, JSON, form=wire).complete
    assert read_with_meter(body, JSON, form=wire, status=429).complete
