"""Bytes between an agent and a host that it may reach: a tunnel as it comes, plain HTTP one request at a time."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

from steadyhand.gateway.http_messages import MalformedMessage, ProxyRequest, ProxyResponse

CHUNK_BYTES = 64 * 1024
Streams = tuple[StreamReader, StreamWriter]


async def relay(client: Streams, host: Streams, *, idle: float) -> None:
    """Carry bytes both ways until both are at their end, one has failed, or nothing came for `idle` seconds."""
    try:
        async with asyncio.timeout(idle) as bound, asyncio.TaskGroup() as group:
            reset_idle = _idle_reset(bound, idle)
            group.create_task(_pump(client[0], host[1], reset_idle))
            group.create_task(_pump(host[0], client[1], reset_idle))
    except* OSError:
        pass  # one side went away or both were idle (a `TimeoutError` is one): so does the other


def _idle_reset(bound: asyncio.Timeout, idle: float) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    return lambda: bound.reschedule(loop.time() + idle)


async def _pump(source: StreamReader, sink: StreamWriter, reset_idle: Callable[[], None]) -> None:
    while data := await source.read(CHUNK_BYTES):
        reset_idle()
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


async def relay_request(
    request: ProxyRequest, response: ProxyResponse, client: Streams, host: Streams, *, idle: float
) -> bool:
    """Carry a request's body to the host and its answer back; the connection is not used again.

    When a side fails or is silent for `idle` seconds the answer is cut. False when there was none at all.
    """
    received_any = False

    async def relay_response() -> None:
        nonlocal received_any
        while not response.complete and (data := await host[0].read(CHUNK_BYTES)):
            reset_idle()
            received_any = True
            response.feed(data)
            client[1].write(data)
            await client[1].drain()

    try:
        async with asyncio.timeout(idle) as bound, asyncio.TaskGroup() as group:
            reset_idle = _idle_reset(bound, idle)
            sending = group.create_task(_send_body(request, client[0], host[1], reset_idle))
            await relay_response()
            sending.cancel()
    except* (OSError, MalformedMessage):
        pass  # one side failed; what the answer lacks is seen by the client, whose connection ends
    return received_any


async def _send_body(
    request: ProxyRequest, client: StreamReader, host: StreamWriter, reset_idle: Callable[[], None]
) -> None:
    while not request.complete:
        data = await client.read(CHUNK_BYTES)
        if not data:
            raise ConnectionResetError("the client went away in the middle of its request")
        reset_idle()
        host.write(request.feed(data))
        try:
            await host.drain()
        except OSError:
            return  # it may have answered before it had read all
