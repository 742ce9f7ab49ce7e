"""Bytes between an agent and a host that it may reach: a tunnel as it comes, plain HTTP one request at a time."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterable

import h11

from steadyhand.gateway.rules import Target

PIECE = 64 * 1024
HTTPS = 443
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
"""Headers that speak of one connection and not of the message (RFC 9110, 7.6.1); the framing is not among them."""

Headers = Iterable[tuple[bytes, bytes]]
Ends = tuple[StreamReader, StreamWriter]


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Leave out what belongs to one connection, what `connection` names included. Names are in lower case."""
    headers = list(headers)
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    framing = {b"content-length", b"transfer-encoding"}
    dropped = HOP_BY_HOP | (named - framing)
    return [(name, value) for name, value in headers if name not in dropped]


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


async def exchange(
    conn: h11.Connection, request: h11.Request, target: Target, client: Ends, host: Ends, *, idle: float
) -> None:
    """Carry one request to the host and its answer back; the connection is not used again.

    When a side fails or is silent for `idle` seconds the answer is cut; `conn` shows how far it came.
    """
    out = h11.Connection(h11.CLIENT, max_incomplete_event_size=PIECE)
    if conn.they_are_waiting_for_100_continue:
        client[1].write(conn.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
    host[1].write(out.send(_onward(request, target)) or b"")
    try:
        async with asyncio.timeout(idle) as bound, asyncio.TaskGroup() as group:
            alive = _keeping(bound, idle)
            sending = group.create_task(_send_body(conn, out, client[0], host[1], alive))
            await _bring_answer(conn, out, host[0], client[1], alive)
            sending.cancel()
    except* (OSError, h11.ProtocolError):
        pass  # one side failed; what the answer lacks is seen by the client, whose connection ends


def _onward(request: h11.Request, target: Target) -> h11.Request:
    """Give the request as the host is to see it: origin form, its own name, one request per connection."""
    _scheme, _separator, rest = request.target.partition(b"://")
    cut = min((at for mark in b"/?" if (at := rest.find(mark)) >= 0), default=len(rest))
    path = rest[cut:].partition(b"#")[0]
    name = str(target) if target.port != HTTPS else f"{target}:{HTTPS}"
    headers = [(b"host", name.encode())]
    headers += [(n, v) for n, v in end_to_end(request.headers) if n not in (b"host", b"expect")]
    headers.append((b"connection", b"close"))
    return h11.Request(
        method=request.method,
        target=path if path.startswith(b"/") else b"/" + path,
        headers=headers,
    )


async def _send_body(
    conn: h11.Connection,
    out: h11.Connection,
    client: StreamReader,
    host: StreamWriter,
    alive: Callable[[], None],
) -> None:
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await client.read(PIECE))
            alive()
        elif isinstance(event, h11.Data):
            host.write(out.send(h11.Data(data=event.data)) or b"")
            try:
                await host.drain()
            except OSError:
                return  # it may have answered before it had read all
        else:
            if isinstance(event, h11.EndOfMessage):
                host.write(out.send(h11.EndOfMessage()) or b"")
            return


async def _bring_answer(
    conn: h11.Connection,
    out: h11.Connection,
    host: StreamReader,
    client: StreamWriter,
    alive: Callable[[], None],
) -> None:
    while True:
        event = out.next_event()
        if event is h11.NEED_DATA:
            out.receive_data(await host.read(PIECE))
            alive()
        elif isinstance(event, h11.Response):
            headers = [*end_to_end(event.headers), (b"connection", b"close")]
            answer = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
            client.write(conn.send(answer) or b"")
        elif isinstance(event, h11.Data):
            client.write(conn.send(h11.Data(data=event.data)) or b"")
            await client.drain()
        elif isinstance(event, h11.EndOfMessage):
            client.write(conn.send(h11.EndOfMessage()) or b"")
            await client.drain()
            return
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the host went away in the middle of its answer")
