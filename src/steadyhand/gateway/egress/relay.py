"""Bytes between an agent and a host that it may reach: a tunnel as it comes, plain HTTP one request at a time."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

from steadyhand.gateway.http_messages import Answer, Request, Unreadable

PIECE = 64 * 1024
Ends = tuple[StreamReader, StreamWriter]


async def relay(client: Ends, host: Ends, *, idle: float) -> None:
    """Carry bytes both ways until both are at their end, one has failed, or nothing came for `idle` seconds."""
    try:
        async with asyncio.timeout(idle) as bound, asyncio.TaskGroup() as group:
            alive = _keeping(bound, idle)
            group.create_task(_pump(client[0], host[1], alive))
            group.create_task(_pump(host[0], client[1], alive))
    except* OSError:
        pass  # one side went away or both were idle (a `TimeoutError` is one): so does the other


def _keeping(bound: asyncio.Timeout, idle: float) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    return lambda: bound.reschedule(loop.time() + idle)


async def _pump(source: StreamReader, sink: StreamWriter, alive: Callable[[], None]) -> None:
    while data := await source.read(PIECE):
        alive()
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


async def exchange(request: Request, answer: Answer, client: Ends, host: Ends, *, idle: float) -> bool:
    """Carry a request's body to the host and its answer back; the connection is not used again.

    When a side fails or is silent for `idle` seconds the answer is cut. False when there was none at all.
    """
    answered = False

    async def bring() -> None:
        nonlocal answered
        while not answer.complete and (data := await host[0].read(PIECE)):
            alive()
            answered = True
            answer.feed(data)
            client[1].write(data)
            await client[1].drain()

    try:
        async with asyncio.timeout(idle) as bound, asyncio.TaskGroup() as group:
            alive = _keeping(bound, idle)
            sending = group.create_task(_send_body(request, client[0], host[1], alive))
            await bring()
            sending.cancel()
    except* (OSError, Unreadable):
        pass  # one side failed; what the answer lacks is seen by the client, whose connection ends
    return answered


async def _send_body(
    request: Request, client: StreamReader, host: StreamWriter, alive: Callable[[], None]
) -> None:
    while not request.complete:
        data = await client.read(PIECE)
        if not data:
            raise ConnectionResetError("the client went away in the middle of its request")
        alive()
        host.write(request.feed(data))
        try:
            await host.drain()
        except OSError:
            return  # it may have answered before it had read all
