"""The listening sockets of one run, each with what serves it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager

from steadyhand.ports import OnListening

Serve = Callable[[socket.socket], Coroutine[None, None, None]]
"""Serves the connections of a listening socket until it is cancelled."""


@asynccontextmanager
async def serve_run_sockets(serves: Sequence[Serve]) -> AsyncIterator[OnListening]:
    """Return a callback for a run's listening sockets, and serve them for the length of the block.

    The first of `serves` gets the first socket, and so on. A run may have fewer sockets.
    """
    failed: Exception | None = None
    with contextlib.ExitStack() as sockets:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            closed = False

            def listening(descriptors: Sequence[int]) -> None:
                for serve, descriptor in zip(serves[: len(descriptors)], descriptors, strict=True):
                    listener = sockets.enter_context(socket.socket(fileno=descriptor))
                    listener.setblocking(False)
                    if closed:
                        listener.close()
                    else:
                        tasks.append(group.create_task(serve(listener), name="listener of a run"))

            try:
                yield listening
            except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
                failed = error
            finally:
                closed = True
                for task in tasks:
                    task.cancel()
    if failed is not None:
        raise failed
