"""What an answer used is read to the token, whole or broken, and never too low without a mark."""

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.example_counts import examples
from tests.gateway.model_responses import (
    BLOCK_START,
    BLOCK_STOP,
    FRAMES,
    JSON,
    MESSAGE_STOP,
    MODEL,
    PING,
    REPORTED_USAGE,
    SSE,
    TEXT,
    USAGE,
    content_delta,
    event_stream_frame,
    event_stream_frames,
    format_sse,
    message_body,
    message_delta,
    message_start,
    read_with_meter,
    typical_events,
)
from tests.gateway.wire_bodies import WIRE_BODIES, WIRE_USAGE

from steadyhand.gateway.model import response_parsers, usage_meter
from steadyhand.gateway.model.usage_meter import MeasuredUsage, ResponseFormat, UsageMeter
from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

STREAM = format_sse(typical_events())
BEDROCK = event_stream_frames(typical_events())
BODIES: list[tuple[bytes, list[tuple[bytes, bytes]], ResponseFormat]] = [
    (STREAM, SSE, "messages"),
    (format_sse(typical_events(), spaced=True), SSE, "messages"),
    (format_sse(typical_events(), newline=b"\r\n"), SSE, "messages"),
    (format_sse(typical_events(), newline=b"\r"), SSE, "messages"),
    (message_body(), JSON, "messages"),
    (BEDROCK, FRAMES, "bedrock"),
    (message_body(), JSON, "bedrock"),
    *WIRE_BODIES,
]
each_body = pytest.mark.parametrize(("body", "headers", "form"), BODIES)


@pytest.fixture(scope="module", autouse=True)
def _each_piece_is_read_when_it_comes() -> Iterator[None]:
    """Else small answers would be put together before they are read, and how they were cut would not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_meter, "BATCH_BYTES", 1)
        yield


def parted(body: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(body) + 1) for place in at), len(body)]
    return [body[one:other] for one, other in pairwise(places)]


# --- what is told ------------------------------------------------------------------------------


@each_body
def test_an_answer_that_came_whole_is_read_to_the_token(
    body: bytes, headers: list[tuple[bytes, bytes]], form: ResponseFormat
) -> None:
    reading = read_with_meter(body, headers, form=form)
    assert (reading.tokens, reading.model, reading.complete, reading.has_usage) == (
        REPORTED_USAGE if form in ("messages", "bedrock") else WIRE_USAGE,
        MODEL,
        True,
        True,
    )


@each_body
@settings(max_examples=examples(60, quick=20), deadline=None)
@given(at=st.lists(st.integers(0, 10_000), max_size=30))
def test_the_reading_does_not_depend_on_how_the_bytes_were_cut_into_pieces(
    body: bytes, headers: list[tuple[bytes, bytes]], form: ResponseFormat, at: list[int]
) -> None:
    assert read_with_meter(parted(body, at), headers, form=form) == read_with_meter(body, headers, form=form)


@each_body
def test_byte_by_byte_is_the_same(
    body: bytes, headers: list[tuple[bytes, bytes]], form: ResponseFormat
) -> None:
    assert read_with_meter([bytes([one]) for one in body], headers, form=form) == read_with_meter(
        body, headers, form=form
    )


def test_cache_writes_that_say_no_length_are_short_ones() -> None:
    told = {"input_tokens": 1, "cache_creation_input_tokens": 50, "output_tokens": 2}
    assert read_with_meter(
        format_sse([message_start(told), message_delta(), MESSAGE_STOP])
    ).tokens == TokenCounts(1, 765, 0, 50, 0)


def test_a_split_that_the_last_figures_repeat_without_is_not_counted_twice() -> None:
    again = {name: value for name, value in USAGE.items() if name != "cache_creation"}
    assert (
        read_with_meter(
            format_sse([message_start(), message_delta({**again, "output_tokens": 765}), MESSAGE_STOP])
        ).tokens
        == REPORTED_USAGE
    )


def test_a_split_below_its_sum_leaves_the_rest_to_the_short_ones_and_one_above_it_counts_whole() -> None:
    below = {**USAGE, "cache_creation_input_tokens": 1000}
    above = {**USAGE, "cache_creation_input_tokens": 1}
    found = [
        read_with_meter(message_body({**usage, "output_tokens": 765}), JSON).tokens
        for usage in (below, above)
    ]
    assert [(tokens.cache_write_5m, tokens.cache_write_1h) for tokens in found] == [(700, 300), (590, 300)]


def test_of_cumulative_figures_the_last_counts_and_never_less_than_an_earlier_one() -> None:
    events = [
        message_start(),
        message_delta({"output_tokens": 40}, None),
        message_delta({"input_tokens": 7, "output_tokens": 900}),
    ]
    assert read_with_meter(format_sse([*events, MESSAGE_STOP])).tokens == TokenCounts(
        123, 900, 4567, 590, 300
    )
    assert (
        read_with_meter(
            format_sse([*events, message_delta({"output_tokens": 3}), MESSAGE_STOP])
        ).tokens.output
        == 900
    )


def test_input_that_only_the_last_figures_tell_counts() -> None:
    reading = read_with_meter(
        format_sse(
            [
                message_start({"output_tokens": 0}),
                message_delta({"input_tokens": 9, "output_tokens": 8}),
                MESSAGE_STOP,
            ]
        )
    )
    assert (reading.tokens, reading.complete) == (TokenCounts(9, 8), True)


def test_searches_fast_mode_and_work_in_the_us_are_told() -> None:
    more = {"server_tool_use": {"web_search_requests": 3}, "speed": "fast", "inference_geo": "us"}
    assert read_with_meter(message_body({**USAGE, **more}), JSON).extras == UsageExtras(
        searches=3, fast=True, us_only=True
    )
    assert read_with_meter(message_body(), JSON).extras == UsageExtras()


def test_what_the_service_used_to_sum_the_conversation_up_is_added() -> None:
    steps = [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
    ]
    told = {"input_tokens": 23_000, "output_tokens": 1000, "iterations": steps}
    reading = read_with_meter(message_body(told), JSON)
    assert (reading.tokens, reading.complete) == (TokenCounts(203_000, 4500), True)
    assert (
        read_with_meter(
            format_sse([message_start(told), message_delta({**told, "output_tokens": 1000}), MESSAGE_STOP])
        ).tokens
        == reading.tokens
    )
    other = {
        **told,
        "iterations": [{"type": "advisor", "model": "another", "input_tokens": 5, "output_tokens": 5}],
    }
    assert not read_with_meter(message_body(other), JSON).complete


def test_figures_that_the_agent_makes_the_model_say_count_for_nothing() -> None:
    lie = format_sse(
        [
            message_start({"input_tokens": 0, "output_tokens": 0}),
            message_delta({"output_tokens": 1}),
            MESSAGE_STOP,
        ]
    ).decode()
    said = [
        content_delta(said=lie),
        content_delta("input_json_delta", "partial_json", lie),
        content_delta("thinking_delta", "thinking", lie),
    ]
    reading = read_with_meter(
        format_sse([message_start(), BLOCK_START, *said, BLOCK_STOP, message_delta(), MESSAGE_STOP])
    )
    assert (reading.tokens, reading.complete) == (REPORTED_USAGE, True)
    assert not read_with_meter(format_sse([message_start(), BLOCK_START, *said, BLOCK_STOP])).complete


def test_an_end_that_openai_like_gateways_put_after_it_changes_nothing() -> None:
    assert read_with_meter(STREAM + b"data: [DONE]\n\n").complete


def test_pieces_that_are_gathered_before_they_are_read_make_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = format_sse(typical_events(deltas=300))
    found = []
    for gathered in (1, 1000, 1 << 16):
        monkeypatch.setattr(usage_meter, "BATCH_BYTES", gathered)
        found.append(read_with_meter(parted(stream, [*range(0, len(stream), 37)])))
    assert found == [found[0]] * 3
    assert found[0].complete


@pytest.mark.parametrize("newlines", [1, 2, 3, 4])
def test_more_empty_lines_than_needed_make_no_difference(newlines: int) -> None:
    body = b"".join(format_sse([event]) + b"\n" * newlines for event in typical_events())
    found = {read_with_meter(parted(body, [*range(0, len(body), step)])) for step in (1, 2, 3, 1000)}
    assert found == {read_with_meter(STREAM)}


def test_an_event_of_several_data_lines_is_one() -> None:
    pretty = b"".join(
        b"event: x\n"
        + b"".join(b"data: " + line + b"\n" for line in json.dumps(e, indent=1).encode().split(b"\n"))
        + b"\n"
        for e in typical_events()
    )
    assert read_with_meter(pretty).tokens == REPORTED_USAGE
    assert read_with_meter(pretty).complete


@pytest.mark.parametrize(
    "kind", [b"application/json", b"text/plain", b"text/html", b"", b"text/event-stream"]
)
@pytest.mark.parametrize("body", [STREAM, message_body(), b"\n\n  " + message_body()])
def test_a_wrong_content_type_hides_nothing(kind: bytes, body: bytes) -> None:
    reading = read_with_meter(body, [(b"Content-Type", kind)])
    assert (reading.tokens, reading.complete) == (REPORTED_USAGE, True)


def test_a_route_that_costs_nothing_reads_nothing() -> None:
    assert read_with_meter(b'{"input_tokens": 5}', JSON, form="none") == MeasuredUsage(
        TokenCounts(), None, complete=True, has_usage=False
    )


# --- compressed --------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (b"gzip", gzip.compress(STREAM)),
        (b"GZIP", gzip.compress(STREAM)),
        (b"x-gzip", gzip.compress(STREAM[:100]) + gzip.compress(STREAM[100:])),
        (b"deflate", zlib.compress(STREAM)),
        (b"deflate", raw_deflate(STREAM)),
        (b"identity", STREAM),
    ],
)
def test_gzip_and_deflate_are_read(encoding: bytes, packed: bytes) -> None:
    headers = [*SSE, (b"content-encoding", encoding)]
    for pieces in ([packed], [bytes([one]) for one in packed]):
        reading = read_with_meter(pieces, headers)
        assert (reading.tokens, reading.complete) == (REPORTED_USAGE, True)


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, gzip", b"gzip, br", b"unheard-of"])
def test_what_cannot_be_unpacked_is_incomplete(encoding: bytes) -> None:
    reading = read_with_meter(gzip.compress(STREAM), [*SSE, (b"content-encoding", encoding)])
    assert (reading.complete, reading.has_usage) == (False, False)


@pytest.mark.parametrize("kept", [0, 1, 9, 10, 30, -9, -1])
def test_packed_data_that_is_cut_or_wrong_is_incomplete_or_whole(kept: int) -> None:
    packed = gzip.compress(STREAM)
    cut = read_with_meter(packed[:kept], [*SSE, (b"content-encoding", b"gzip")], cut=True)
    assert cut.complete == (cut.tokens == REPORTED_USAGE)
    wrong = bytearray(packed)
    wrong[kept] ^= 0xFF
    reading = read_with_meter(bytes(wrong), [*SSE, (b"content-encoding", b"gzip")])
    assert not reading.complete or reading.tokens == REPORTED_USAGE


def test_a_compression_bomb_is_let_go_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_parsers, "MAX_DECOMPRESSED_BYTES", 1 << 20)
    bomb = gzip.compress(
        format_sse([message_start()]) + b" " * (1 << 24) + format_sse([message_delta(), MESSAGE_STOP])
    )
    tracemalloc.start()
    try:
        reading = read_with_meter(bomb, [*SSE, (b"content-encoding", b"gzip")])
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert not reading.complete
    assert reading.tokens.input == 123


# --- broken off --------------------------------------------------------------------------------


@pytest.mark.parametrize("spaced", [False, True])
def test_a_stream_cut_at_any_byte_is_marked_unless_all_was_told(*, spaced: bool) -> None:
    stream = format_sse(typical_events(), spaced=spaced)
    told_start = stream.index(b"\n\n") + 2
    for at in range(len(stream)):
        reading = read_with_meter(stream[:at], cut=True)
        if reading.complete:
            assert reading.tokens == REPORTED_USAGE
            assert at >= stream.index(b"message_stop")
        elif at >= told_start:
            assert reading.tokens in (REPORTED_USAGE, TokenCounts(123, 11, 4567, 590, 300))


def test_frames_cut_at_any_byte_are_marked_unless_all_was_told() -> None:
    for at in range(len(BEDROCK)):
        reading = read_with_meter(BEDROCK[:at], FRAMES, form="bedrock", cut=True)
        assert not reading.complete
    assert read_with_meter(BEDROCK, FRAMES, form="bedrock", cut=True).complete


def test_json_cut_at_any_byte_is_marked_and_its_length_taken_for_output() -> None:
    body = message_body()
    for at in range(len(body)):
        reading = read_with_meter(body[:at], JSON, cut=True)
        assert not reading.complete
        assert reading.estimated_output == -(-at // 4)


def test_of_a_cut_stream_what_was_told_stays_and_what_was_said_is_the_estimate() -> None:
    words = "word " * 400
    said = [content_delta(said=words), content_delta("thinking_delta", "thinking", words)]
    tool = content_delta("input_json_delta", "partial_json", words)
    reading = read_with_meter(
        format_sse(
            [
                message_start(),
                BLOCK_START,
                *said,
                tool,
                content_delta("signature_delta", "signature", "x" * 900),
            ]
        ),
        cut=True,
    )
    assert reading.tokens == TokenCounts(123, 11, 4567, 590, 300)
    assert abs(reading.estimated_output - 3 * len(words) / 4) < 3
    assert reading.billable_tokens.output == reading.estimated_output
    assert reading.billable_tokens.input == 123


def test_the_estimate_is_no_floor_of_a_reading_that_is_complete() -> None:
    reading = read_with_meter(
        format_sse([message_start(), content_delta(said="word " * 4000), message_delta(), MESSAGE_STOP])
    )
    assert reading.estimated_output > 4000
    assert reading.billable_tokens == reading.tokens == REPORTED_USAGE


def test_the_estimate_is_the_same_for_both_spacings_and_for_frames() -> None:
    events = [
        message_start(),
        BLOCK_START,
        *[content_delta() for _ in range(50)],
        content_delta("thinking_delta", "thinking", TEXT),
    ]
    found = {
        read_with_meter(format_sse(events)).estimated_output,
        read_with_meter(format_sse(events, newline=b"\r\n")).estimated_output,
        read_with_meter(event_stream_frames(events), FRAMES, form="bedrock").estimated_output,
    }
    assert max(found) - min(found) <= 51  # a blank beside each
    assert min(found) >= 51 * len(TEXT) // 4


def test_a_stream_that_lacks_its_end_is_complete_only_when_nobody_cut_it() -> None:
    assert read_with_meter(format_sse([message_start(), message_delta()]), cut=False).complete
    assert not read_with_meter(format_sse([message_start(), message_delta()]), cut=True).complete
    assert not read_with_meter(format_sse([message_start(), message_delta(reason=None)]), cut=False).complete
    assert read_with_meter(
        format_sse([message_start(), message_delta(reason=None), MESSAGE_STOP]), cut=True
    ).complete


@pytest.mark.parametrize(
    "events",
    [
        [],
        [PING],
        [message_start()],
        [message_start(), MESSAGE_STOP],
        [message_start(), message_delta({}), MESSAGE_STOP],
        [message_delta(), MESSAGE_STOP],
        [message_start({}), message_delta(), MESSAGE_STOP],
        [message_start({"output_tokens": 1}), message_delta(), MESSAGE_STOP],
        [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}],
        [
            message_start(),
            BLOCK_START,
            content_delta(),
            {"type": "error", "error": {"type": "overloaded_error"}},
        ],
        [{"type": "message_start", "message": None}, message_delta(), MESSAGE_STOP],
        [message_start(), message_delta("many"), MESSAGE_STOP],
    ],
)
def test_a_stream_without_a_figure_that_it_owes_is_incomplete(events: list[dict[str, object]]) -> None:
    assert not read_with_meter(format_sse(events)).complete


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{}",
        b"[]",
        b"null",
        b"<html>busy</html>",
        b'{"usage": null}',
        b'{"usage": {}}',
        b"\xff\xfe",
    ],
)
def test_a_success_without_usage_is_incomplete_and_an_error_without_it_costs_nothing(body: bytes) -> None:
    assert not read_with_meter(body, JSON).complete
    for status in (400, 402, 429, 500, 529, 304):
        assert read_with_meter(body, JSON, status=status, cut=True).complete
        assert read_with_meter(body, JSON, status=status).tokens == TokenCounts()


def test_an_error_that_tells_usage_is_charged() -> None:
    assert read_with_meter(message_body(), JSON, status=500).tokens == REPORTED_USAGE
    assert not read_with_meter(format_sse([message_start(), content_delta()]), status=500).complete


# --- hostile figures ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*[name for name in USAGE if name != "cache_creation"], "cache_creation"])
@pytest.mark.parametrize("value", ["5", 1.0, -1, 10**30, True, [], {"a": 1}, "x" * 50, 1e300, float("nan")])
def test_a_figure_that_is_no_count_is_not_counted_and_marked(name: str, value: object) -> None:
    if name == "cache_creation" and isinstance(value, dict):
        value = {"ephemeral_5m_input_tokens": -1}
    usage = {**USAGE, "output_tokens": 765, name: value}
    for reading in (
        read_with_meter(message_body(usage), JSON),
        read_with_meter(format_sse([message_start(usage), message_delta(), MESSAGE_STOP])),
    ):
        assert not reading.complete
        assert min(reading.tokens.input, reading.tokens.output, reading.tokens.cache_write_5m) >= 0
        assert reading.tokens.input in (0, 123)


def test_null_figures_are_none() -> None:
    usage = {**dict.fromkeys(USAGE), "input_tokens": 5, "output_tokens": 6, "server_tool_use": None}
    reading = read_with_meter(message_body(usage), JSON)
    assert (reading.tokens, reading.complete) == (TokenCounts(5, 6), True)


@pytest.mark.parametrize("model", [None, 7, "", "x" * 257, "a b", "a\n", "\ud800", "é", {"a": 1}])
def test_a_model_that_is_no_name_is_none(model: object) -> None:
    event = message_start()
    event["message"]["model"] = model
    body = b"data: " + json.dumps(event).encode() + b"\n\n" + format_sse([message_delta(), MESSAGE_STOP])
    reading = read_with_meter(body)
    assert (reading.model, reading.tokens, reading.complete) == (None, REPORTED_USAGE, True)


def test_json_that_is_too_deep_breaks_nothing() -> None:
    deep = b'{"type":"message_start","message":' + b"[" * 200_000 + b"\n\n"
    for body in (deep + STREAM, b'{"usage":' + b"[" * 200_000):
        assert not read_with_meter(body).complete


# --- bounds ------------------------------------------------------------------------------------


def peak(taking: UsageMeter, piece: bytes, times: int) -> int:
    tracemalloc.start()
    try:
        for _ in range(times):
            taking.feed(piece)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [64, 4096, 1 << 20])
def test_a_line_without_end_does_not_grow_memory_and_is_incomplete(size: int) -> None:
    taking = UsageMeter(200, SSE, "messages")
    taking.feed(format_sse([message_start()]) + b'event: message_delta\ndata: {"type":"message_delta","x":"')
    assert peak(taking, b"x" * size, min(20_000, (32 << 20) // size)) < 8 << 20
    taking.feed(b'"}\n\n' + format_sse([message_delta(), MESSAGE_STOP]))
    reading = taking.finish(truncated=False)
    assert not reading.complete
    assert reading.tokens == REPORTED_USAGE


def test_a_block_that_is_too_long_to_be_kept_is_no_loss() -> None:
    long = {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "web_search_tool_result", "x": "y" * (3 << 20)},
    }
    body = format_sse([message_start(), long, message_delta(), MESSAGE_STOP])
    reading = read_with_meter(body[at : at + 5000] for at in range(0, len(body), 5000))
    assert (reading.tokens, reading.complete) == (REPORTED_USAGE, True)


@pytest.mark.parametrize("extra", [-2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["message_delta", "content_block_delta"])
def test_at_the_bound_of_an_event_the_pieces_make_no_difference(
    extra: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_parsers, "MAX_EVENT_BYTES", 1000)
    head = b"event: %b\ndata: " % kind.encode() + b'{"type":"%b","x":"' % kind.encode()
    event = head + b"x" * (1000 + extra - len(head) - 2) + b'"}'
    body = format_sse([message_start()]) + event + b"\n\n\n" + format_sse([message_delta(), MESSAGE_STOP])
    assert len(event) == 1000 + extra
    found = [
        read_with_meter(piece for piece in parted(body, [*range(0, len(body), step)]))
        for step in (1, 7, 100, 10_000)
    ]
    assert found == [found[0]] * 4
    assert found[0].complete == (extra <= 0 or kind.startswith("content"))


def test_a_json_body_above_its_bound_is_let_go() -> None:
    taking = UsageMeter(200, JSON, "messages")
    taking.feed(b'{"x":"')
    assert peak(taking, b"x" * (1 << 20), 40) < 40 << 20
    reading = taking.finish(truncated=False)
    assert (reading.complete, reading.has_usage) == (False, False)


def test_frames_that_are_too_long_or_wrong_end_the_reading_with_a_mark() -> None:
    chunks = event_stream_frames([message_start(), content_delta()])
    for wrong in (
        b"\x7f\xff\xff\xff" + b"x" * 100,
        event_stream_frame(b"{}")[:-1] + b"!",
        event_stream_frame(b"not json"),
        event_stream_frame(b'{"bytes":"*"}'),
    ):
        reading = read_with_meter(
            chunks + wrong + event_stream_frames([message_delta(), MESSAGE_STOP]), FRAMES, form="bedrock"
        )
        assert not reading.complete
        assert reading.tokens.input == 123
    assert not read_with_meter(
        event_stream_frames([message_start(), message_delta()]) + b"\x7f" * 100, FRAMES, form="bedrock"
    ).complete
    other = event_stream_frame(b'{"message":"throttled"}', b"throttlingException")
    assert read_with_meter(
        chunks + other + event_stream_frames([message_delta(), MESSAGE_STOP]), FRAMES, form="bedrock"
    ).complete


# --- anything ----------------------------------------------------------------------------------


def harmed(body: bytes, seed: int) -> bytes:
    """Drop, flip, repeat and move a few bytes."""
    chance = random.Random(seed)  # noqa: S311  # harm, not a secret
    found = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if not found:
            break
        at, other = chance.randrange(len(found)), chance.randrange(len(found))
        match chance.randrange(5):
            case 0:
                del found[at]
            case 1:
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                del found[at : at + chance.randrange(200)]
            case 3:
                found[at:at] = found[other : other + chance.randrange(200)]
            case _:
                found[at] = chance.randrange(256)
    return bytes(found)


def assert_not_too_low(reading: MeasuredUsage, form: ResponseFormat = "messages") -> None:
    """A figure that is below what was told has its mark: harm that changes a figure itself cannot be seen."""
    if reading.complete:
        tokens = reading.tokens
        # The other APIs count cached input within the input: harm to one figure may make all of it cached.
        is_apart = form in ("messages", "bedrock")
        assert (tokens.input if is_apart else tokens.input + tokens.cache_read) > 0
        assert tokens.output > 0


@each_body
@settings(max_examples=examples(150, quick=40), deadline=None)
@given(seed=st.integers(0, 1 << 32), at=st.lists(st.integers(0, 10_000), max_size=5))
def test_a_harmed_answer_never_raises_never_depends_on_pieces_and_is_never_zero_without_a_mark(
    body: bytes, headers: list[tuple[bytes, bytes]], form: ResponseFormat, seed: int, at: list[int]
) -> None:
    broken = harmed(body, seed)
    reading = read_with_meter(broken, headers, form=form)
    assert_not_too_low(reading, form)
    assert read_with_meter(parted(broken, at), headers, form=form) == reading


@settings(max_examples=examples(150, quick=40), deadline=None)
@given(
    body=st.binary(max_size=400) | st.text(max_size=200).map(str.encode),
    status=st.sampled_from([200, 201, 400, 429, 529]),
    form=st.sampled_from(["messages", "bedrock", "responses", "chat", "gemini"]),
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"content-type", b"content-encoding", b"x"]),
            st.sampled_from([b"text/event-stream", b"gzip", b"deflate", b"\xff", b"", FRAMES[0][1]]),
        ),
        max_size=3,
    ),
)
@example(b"data:\n\n", 200, "messages", [])
@example(b"data: {\n\n", 200, "messages", [])
@example(b"data: [DONE]\n\n", 200, "chat", [])
@example(b'{"choices":[{"usage":7},7],"usage":[]}', 200, "chat", [])
@example(b'{"candidates":[7],"usageMetadata":7,"promptFeedback":7}', 200, "gemini", [])
def test_any_bytes_are_read_without_raising(
    body: bytes, status: int, form: ResponseFormat, headers: list[tuple[bytes, bytes]]
) -> None:
    reading = read_with_meter(body, headers, status=status, form=form)
    assert reading.complete == (status >= 400)
    assert reading.tokens == TokenCounts()


@pytest.mark.parametrize("drop", [1, 2, 5])
def test_a_stream_that_lost_bytes_anywhere_is_marked_or_right(drop: int) -> None:
    for at in range(len(STREAM)):
        reading = read_with_meter(STREAM[:at] + STREAM[at + drop :])
        assert_not_too_low(reading)


@pytest.mark.long
@each_body
def test_many_harmed_answers(body: bytes, headers: list[tuple[bytes, bytes]], form: ResponseFormat) -> None:
    for seed in range(30_000):
        broken = harmed(body, seed)
        reading = read_with_meter(broken, headers, form=form)
        assert_not_too_low(reading, form)
        assert (
            read_with_meter(parted(broken, [seed, seed * 7919, seed * 104_729]), headers, form=form)
            == reading
        )
