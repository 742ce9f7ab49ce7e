"""The sign that the calls of a run keep failing."""

import asyncio

import pytest

from steadyhand.gateway.model.failed_calls import MAX_FAILURES, FailedCalls


def is_told(calls: FailedCalls) -> bool:
    """Return True if who waits for the sign has it now."""

    async def look() -> bool:
        waiting = asyncio.create_task(calls.wait())
        await asyncio.sleep(0)
        done = waiting.done()
        waiting.cancel()
        return done

    return asyncio.run(look())


def test_some_failed_answers_in_a_row_are_the_sign() -> None:
    calls = FailedCalls()
    for _ in range(MAX_FAILURES - 1):
        calls.note_answer(500)
    assert not is_told(calls)
    calls.note_answer(404)
    assert is_told(calls)


def test_a_good_answer_begins_the_row_anew_and_one_that_broke_off_counts_for_nothing() -> None:
    calls = FailedCalls()
    for status in (500, 500, 200, 500, None, 500):
        calls.note_answer(status)
    assert not is_told(calls)


@pytest.mark.parametrize("status", [403, 429])
def test_a_refusal_that_would_come_again_is_the_sign_at_once(status: int) -> None:
    calls = FailedCalls()
    calls.note_answer(status, is_final=True)
    assert is_told(calls)
