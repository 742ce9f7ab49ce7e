"""The `traceparent` header: what of it is a trace, and what is ignored."""

import pytest

from steadyhand.api.transport.trace_context import parse_traceparent

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
GOOD = b"00-" + TRACE + b"-" + SPAN + b"-01"


@pytest.mark.parametrize(
    "value", [GOOD, b" " + GOOD + b"\t", b"01" + GOOD[2:], b"cc" + GOOD[2:] + b"-what-will-be"]
)
def test_a_trace_is_kept_in_version_00_also_of_a_later_version(value: bytes) -> None:
    assert parse_traceparent([(b"accept", b"*/*"), (b"traceparent", value)]) == GOOD.decode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD + b"0",
        GOOD + b"-more",
        b"ff" + GOOD[2:],
        GOOD.upper(),
        GOOD.replace(TRACE, b"0" * 32),
        GOOD.replace(SPAN, b"0" * 16),
        GOOD.replace(b"-", b"_"),
        GOOD[:-2] + b"\n1",
        GOOD[:-2] + b"\xd9\xa1",
        b"cc" + GOOD[2:] + b"-" + b"x" * 100_000,
        b"cc" + GOOD[2:] + b"-\nline",
    ],
)
def test_what_is_no_trace_is_ignored(value: bytes) -> None:
    assert parse_traceparent([(b"traceparent", value)]) is None


def test_no_header_and_two_headers_are_no_trace() -> None:
    assert parse_traceparent([]) is None
    assert parse_traceparent([(b"traceparent", GOOD), (b"traceparent", GOOD)]) is None
