"""Reads of the store that those share who need the same at the same moment, such as the followers of one job."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


class SharedReads:
    """Runs one read for all who ask for it in the same step of the event loop.

    A read is shared only before it begins, so that nobody gets a value from before they asked.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[asyncio.Future[_Outcome | None]]] = {}

    async def run(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Return the value of a read; equal keys stand for equal reads. Raise as `read` does."""
        while (waiting := self._waiting.get(key)) is not None:
            future: asyncio.Future[_Outcome | None] = asyncio.get_running_loop().create_future()
            waiting.append(future)
            outcome = await future
            if outcome is None:  # who read for all was cancelled
                continue
            if outcome.error is not None:
                raise outcome.error
            return outcome.value  # type: ignore[no-any-return]
        return await self._read_for_all(key, read)

    async def _read_for_all(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        waiting = self._waiting[key] = []
        outcome = None
        try:
            try:
                await asyncio.sleep(0)
            finally:
                del self._waiting[key]
            outcome = _Outcome(await read())
        except Exception as error:  # of any kind; each who waits for this read gets it
            outcome = _Outcome(error=error)
            raise
        else:
            return outcome.value  # type: ignore[no-any-return]
        finally:
            for future in waiting:
                if not future.done():
                    future.set_result(outcome)
