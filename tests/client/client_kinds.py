"""Both clients in one form: a test calls the asynchronous one as it calls the other."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, cast

from steadyhand import AsyncClient, Client

END = object()
MakeClient = Callable[..., Client]
"""Makes a client from the arguments of `Client`; used as a context manager."""


class BlockingAsyncClient:
    """An `AsyncClient` whose methods are called and whose iterators are read without `await`, in a loop of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = AsyncClient(*arguments, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return self._blocking(found) if callable(found) else found

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result: Any = method(*arguments, **options)
            is_iterator: bool = inspect.isasyncgen(result)
            return self._iterate(result) if is_iterator else self._runner.run(result)

        return call

    def _iterate(self, source: AsyncGenerator[Any, None]) -> Generator[Any, None, None]:
        async def read() -> Any:
            return await anext(source, END)

        try:
            while (value := self._runner.run(read())) is not END:
                yield value
        finally:
            self._runner.run(self._close(source))

    async def _close(self, source: AsyncGenerator[Any, None]) -> None:
        async with aclosing(source):
            pass


def make_blocking_async_client(*arguments: Any, **options: Any) -> Client:
    """Make an asynchronous client that is used like the other one."""
    return cast("Client", BlockingAsyncClient(*arguments, **options))
