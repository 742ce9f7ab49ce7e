"""When a delivery is tried again, and when a circuit opens."""

from datetime import timedelta

import pytest

from steadyhand.callbacks.backoff import (
    CIRCUIT_FAILURES,
    FIRST_OPEN,
    LONGEST_OPEN,
    AnswerKind,
    Circuit,
    classify_answer,
    next_attempt,
    parse_retry_after,
)
from steadyhand.testing.contracts.samples import NOON

SECOND = timedelta(seconds=1)
END = NOON + timedelta(hours=24)


def middle() -> float:
    return 0.5


@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [
        (200, None, AnswerKind.DELIVERED),
        (204, "7", AnswerKind.DELIVERED),
        (301, None, AnswerKind.RETRY),
        (404, None, AnswerKind.RETRY),
        (410, None, AnswerKind.GONE),
        (429, None, AnswerKind.BUSY),
        (429, "7", AnswerKind.BUSY),
        (500, None, AnswerKind.UNREACHABLE),
        (503, None, AnswerKind.UNREACHABLE),
        (503, "7", AnswerKind.BUSY),
        (None, None, AnswerKind.UNREACHABLE),
    ],
)
def test_each_answer_has_its_verdict(status: int | None, retry_after: str | None, kind: AnswerKind) -> None:
    assert classify_answer(status, retry_after) is kind


def test_the_pause_doubles_up_to_an_hour_and_ends_after_a_day() -> None:
    now, pauses, attempts = NOON, [], 1
    while (due := next_attempt(attempts, None, now, END, middle)) is not None:
        pauses.append((due - now).total_seconds())
        now, attempts = due, attempts + 1
    assert pauses[:5] == [5, 10, 20, 40, 80]
    assert max(pauses) == 3600
    assert now == END  # the last attempt
    assert 30 < attempts < 40


def test_the_pause_is_spread_by_a_fifth() -> None:
    pauses = [next_attempt(1, None, NOON, END, lambda value=value: value) for value in (0.0, 1.0)]  # type: ignore[misc]
    assert pauses == [NOON + 4 * SECOND, NOON + 6 * SECOND]


def test_a_retry_after_is_waited_for_and_a_shorter_one_does_not_hurry() -> None:
    assert next_attempt(1, 60 * SECOND, NOON, END, middle) == NOON + 60 * SECOND
    assert next_attempt(1, SECOND, NOON, END, middle) == NOON + 5 * SECOND
    assert next_attempt(1, timedelta(days=9), NOON, END, middle) == END
    assert next_attempt(10**9, None, NOON, END, middle) == NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("0", 0),
        (" 7 ", 7),
        ("999999999", 86_400),
        ("9" * 40, None),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 59.876544),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sun, 01 Mar 2027 12:00:00 GMT", 86_400),
    ],
)
def test_a_retry_after_is_read_within_bounds(text: str | None, seconds: float | None) -> None:
    pause = parse_retry_after(text, NOON)
    assert (None if pause is None else pause.total_seconds()) == seconds


def test_a_circuit_opens_after_failures_in_a_row_and_longer_each_time() -> None:
    circuit = Circuit("one", look_at=NOON)
    for _ in range(CIRCUIT_FAILURES - 1):
        circuit.note(AnswerKind.UNREACHABLE, None, NOON)
    assert circuit.ready_at() == NOON
    lengths = []
    for _ in range(8):
        circuit.note(AnswerKind.UNREACHABLE, None, NOON)
        assert circuit.closed_at is not None
        lengths.append(circuit.closed_at - NOON)
    assert lengths[:3] == [FIRST_OPEN, 2 * FIRST_OPEN, 4 * FIRST_OPEN]
    assert lengths[-1] == LONGEST_OPEN
    assert circuit.is_failing
    circuit.note(AnswerKind.RETRY, None, NOON)  # it answers again
    assert (circuit.is_failing, circuit.ready_at()) == (False, NOON)


def test_a_busy_receiver_gets_nothing_for_the_time_that_it_names() -> None:
    circuit = Circuit("one", look_at=NOON)
    circuit.note(AnswerKind.BUSY, 30 * SECOND, NOON)
    assert circuit.ready_at() == NOON + 30 * SECOND
    assert not circuit.is_failing
