"""Notices that a run's calls of the model keep failing: some agents would repeat them for as long as they are let."""

import asyncio

MAX_FAILURES = 3
"""The failed answers in a row after which an agent that goes on is not waited for."""


class FailedCalls:
    """The failed answers of one run."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._are_hopeless = asyncio.Event()

    def note_answer(self, status: int | None, *, is_final: bool = False) -> None:
        """Count an answer; None is one that broke off. With `is_final` the same call would be refused again."""
        if status is None:
            return
        self._in_a_row = self._in_a_row + 1 if status >= 400 else 0  # noqa: PLR2004  # the first status of an error
        if is_final or self._in_a_row >= MAX_FAILURES:
            self._are_hopeless.set()

    async def wait(self) -> None:
        """Wait until the calls keep failing."""
        await self._are_hopeless.wait()
