"""A read of the store that an outage prevents is repeated, and any other error is raised at once."""

import asyncio

import pytest

from steadyhand.errors import StoreError, StoreUnavailable
from steadyhand.worker.stoppable import read_patiently


def test_a_read_is_repeated_until_the_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("steadyhand.worker.stoppable.asyncio.sleep", sleep)
    errors = [StoreUnavailable("not now") for _ in range(7)]

    async def read() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    assert asyncio.run(read_patiently(read)) == "answer"
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_another_error_of_the_store_is_raised_at_once() -> None:
    reads = 0

    async def read() -> str:
        nonlocal reads
        reads += 1
        raise StoreError("broken")

    with pytest.raises(StoreError, match="broken"):
        asyncio.run(read_patiently(read))
    assert reads == 1
