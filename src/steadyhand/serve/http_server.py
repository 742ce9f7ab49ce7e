"""The HTTP server: uvicorn, with deadlines and bounds for its connections.

uvicorn has no deadline for a request's head or body and no bound for connections. It closes a connection while a body
is still on its way, and drops the response of a client that has ended its input.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from socket import socket
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from steadyhand.api.transport.middleware import REFUSED_SCOPE_KEY
from steadyhand.api.transport.sse import WRITE_CHUNK_SCOPE_KEY
from steadyhand.serve.connection_table import ConnectionLimits, ConnectionTable

SHUTDOWN_SECONDS = 5
BACKLOG = 128
"""The most connections that are accepted before another event is handled."""
LISTEN_BACKLOG = 2_048
"""The most connections that wait in the kernel; above it a client waits a second and more for its next try."""
MAX_HELD_BYTES = 16 * 1024
"""The most bytes of a response that are held until the end of a step of the event loop."""
_CHECK_TICKS = 5
"""The deadlines are checked once in so many ticks of uvicorn, which count tenths of a second."""
_TICK_SECONDS = 0.1


class _ResponseTransport(asyncio.Transport):
    """A transport that sends small pieces of one step together, and whose `close` is the protocol's.

    uvicorn writes a head and its body apart: two system calls, and two packets, of one response. The `close` of the
    protocol first reads what the client still sends.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "ServiceProtocol") -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._held_bytes = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._protocol.is_closing or self._transport.is_closing()

    def close(self) -> None:
        self._protocol.close_after_body()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces:
            self._protocol.loop.call_soon(self.flush)
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self.flush()  # a body without an end waits for its reader, by the transport's own bound

    def write_now(self, data: bytes) -> None:
        """Send this and what is held before it."""
        if self._pieces:
            self.flush()
        self._transport.write(data)

    def flush(self) -> None:
        """Send what is held."""
        pieces, self._pieces, self._held_bytes = self._pieces, [], 0
        if pieces:
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


class ServiceProtocol(HttpToolsProtocol):
    """One connection of uvicorn, with deadlines for heads, bodies and reading clients, and an end that is not a reset.

    A response that is sent before the body was read ends with reading the rest of it, within bounds. The end of a
    client's input does not end a request that has arrived as a whole; a route that waits for something gets it as a
    disconnect.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        table: ConnectionTable,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._table = table
        self._limits = table.limits
        self._inner_app: ASGIApp = self.app
        self.app = self._run_app
        self._socket: asyncio.Transport | None = None
        self._response: _ResponseTransport | None = None
        self._receives_head = True
        self._message_complete = True
        self._head_bytes = 0
        self._drained_bytes = 0
        self._input_ended = False
        self._deadline: float | None = None
        self._write_deadline: float | None = None
        self.is_closing = False
        self.is_aborted = False
        self.is_refused = False
        self.had_request = False
        self._leaves = False

    @property
    def _responds(self) -> bool:
        return self.had_request and not self.cycle.response_complete

    @property
    def is_evictable(self) -> bool:
        """Return true if the connection may be closed for another one: no request of it is being answered."""
        return not self._responds

    # --- the life of a connection ----------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the deadline of the first head."""
        self._socket = transport
        self._response = _ResponseTransport(transport, self)
        super().connection_made(self._response)
        self._deadline = self.loop.time() + self._limits.head_seconds
        self._table.add(self, self.client[0] if self.client else "")
        if self._table.pass_on is not None:
            self.loop.call_soon(self.shutdown)  # accepted just before nothing more was

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the table."""
        self._table.discard(self)
        self.is_closing = True
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection at once, without sending what is left."""
        self.is_closing = self.is_aborted = True
        if self._socket is not None:
            self._socket.abort()

    def close_after_body(self) -> None:
        """Close the connection; if a message is incomplete, first read the rest of it, within bounds."""
        if self.is_closing or self._socket is None:
            return
        self._flush()
        self.is_closing = True
        self._deadline = self.loop.time() + self._limits.drain_seconds
        if self._message_complete or self._input_ended:
            self._socket.close()
            return
        if self._socket.can_write_eof():
            self._socket.write_eof()
        self.flow.resume_reading()

    def close_if_expired(self, now: float) -> None:
        """Close the connection if it is past a deadline."""
        if self._write_deadline is not None and now >= self._write_deadline:
            self.abort()
        if self._deadline is None or now < self._deadline:
            return
        if self.is_closing:
            self.abort()
        elif self._responds and (self._receives_head or self._message_complete):
            self._deadline = now + self._limits.head_seconds  # the next request, behind one that is answered
        elif self._receives_head and self._head_bytes:
            self._refuse(408)
        else:
            self.abort()

    def _flush(self) -> None:
        if self._response is not None:
            self._response.flush()

    def _refuse(self, status: int) -> None:
        assert self._socket is not None  # noqa: S101  # there is one from `connection_made` on
        reason = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[status]
        head = b"HTTP/1.1 %d %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % (status, reason)
        self._flush()
        self._socket.write(head)
        self._message_complete = status == 408  # noqa: PLR2004  # what does not come need not be read
        self.close_after_body()

    def shutdown(self) -> None:
        """Close the connection once its request is answered, or at once; or pass it on, if somebody takes it."""
        if self._table.pass_on is not None:
            self._leaves = True
            self._pass_on_if_idle()
        elif self._responds:
            super().shutdown()
        elif self._socket is not None:
            self.is_closing = True
            self._unset_keepalive_if_required()
            self._flush()
            self._socket.close()

    def _pass_on_if_idle(self) -> None:
        """Pass the connection on if nothing of a request has been read, and the response has been written."""
        pass_on, connection = self._table.pass_on, self._socket
        has_read_part = not self._message_complete or (self._receives_head and self._head_bytes > 0)
        if pass_on is None or connection is None or self.is_closing or self._responds or has_read_part:
            return
        self._flush()
        sock = connection.get_extra_info("socket")
        if sock is None or self._input_ended:
            self.close_after_body()
            return
        pass_on(sock.dup())
        self.is_closing = True
        self._unset_keepalive_if_required()
        connection.close()  # this copy alone; what is left to write is written first

    # --- input -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse data; after the response, only read it, up to a bound."""
        if self.is_closing:
            self._drain(data)
            return
        if self._receives_head:
            self._head_bytes += len(data)
        elif not self._responds:
            self._count_drained(data)
        super().data_received(data)
        if self.is_closing:
            return
        if self._receives_head and self._head_bytes > self._limits.head_bytes:
            self._refuse(431)
        elif self._deadline is None and not self._responds and self.timeout_keep_alive_task is None:
            self._deadline = self.loop.time() + self._limits.head_seconds

    def _drain(self, data: bytes) -> None:
        self._count_drained(data)
        if self.is_aborted or self.parser is None:
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return  # until the client ends it, or the deadline

    def _count_drained(self, data: bytes) -> None:
        self._drained_bytes += len(data)
        if self._drained_bytes > self._limits.drain_bytes:
            self.abort()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection open if a whole request is being answered."""
        self._input_ended = True
        self._flush()  # asyncio closes the connection if this is None
        if self.is_closing or not self._responds or not self._message_complete:
            return None
        self.cycle.keep_alive = False
        self.cycle.message_event.set()
        return True

    def on_message_begin(self) -> None:
        """Begin the deadline of a head."""
        super().on_message_begin()
        self._message_complete = False
        self._receives_head = True
        if self._deadline is None:
            self._deadline = self.loop.time() + self._limits.head_seconds

    def on_headers_complete(self) -> None:
        """Begin the deadline of a body."""
        self._receives_head = False
        self._head_bytes = self._drained_bytes = 0
        self._deadline = self.loop.time() + self._limits.body_seconds
        if self.is_closing:
            return
        super().on_headers_complete()
        self.had_request = True
        if self.is_refused:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the response was sent."""
        if not self.is_closing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the deadline of a request; close the connection if that was waited for."""
        self._message_complete = True
        self._receives_head = False
        if self.is_closing:
            if self._socket is not None:
                self._flush()
                self._socket.close()
            return
        self._deadline = None
        super().on_message_complete()
        if self._leaves:
            self._pass_on_if_idle()

    # --- output ----------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Begin the deadline of the rest of a body that was not read."""
        super().on_response_complete()
        if not self.is_closing and not self._message_complete and not self._responds:
            self._deadline = self.loop.time() + self._limits.drain_seconds
        if self._leaves:
            self._pass_on_if_idle()

    def pause_writing(self) -> None:
        """Begin the deadline of a client that does not read."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + self._limits.write_seconds

    def resume_writing(self) -> None:
        """End that deadline."""
        super().resume_writing()
        self._write_deadline = None

    def _write_chunk(self, cycle: RequestResponseCycle, chunk: bytes) -> bool:
        """Write a framed chunk of a response at once; return False if it cannot be, or if the client is slow."""
        response = self._response
        is_open = cycle.chunked_encoding and not cycle.response_complete and not cycle.disconnected
        if response is None or not is_open or self.flow.write_paused or self.is_closing:
            return False
        response.write_now(chunk)
        return True

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body_received = False

        async def receive_or_disconnect() -> Message:
            nonlocal body_received
            if body_received and self._input_ended:
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] != "http.request":
                return message
            if body_received and self._input_ended:
                return {"type": "http.disconnect"}
            body_received = body_received or not message["more_body"]
            return message

        if self.is_refused:
            scope[REFUSED_SCOPE_KEY] = True
        newest: object = self.cycle.scope
        if newest is scope:  # no other request has come behind it
            scope[WRITE_CHUNK_SCOPE_KEY] = partial(self._write_chunk, self.cycle)
        await self._inner_app(scope, receive_or_disconnect, send)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: a stop drains the jobs first, and this package starts it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        on_started: Callable[[], None],
        connections: Sequence[socket] = (),
    ) -> None:
        """Create it. `connections` are those of the service before this one, on which no request is under way."""
        self._inherited = list(connections)
        self._table = ConnectionTable(limits)
        protocol: Any = partial(ServiceProtocol, table=self._table)
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self._on_started = on_started
        self._stopped = asyncio.Event()
        self.listening = asyncio.Event()
        """Set once connections are accepted and `on_started` has been called."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, then call `on_started`."""
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(LISTEN_BACKLOG)  # asyncio has one number for both backlogs
        await self._adopt_connections()
        if self.started:
            self._on_started()
            self.listening.set()

    async def _adopt_connections(self) -> None:
        loop = asyncio.get_running_loop()
        create: Any = self.config.http_protocol_class  # uvicorn's types name a class
        create_protocol = partial(
            create,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        while self._inherited:
            connection = self._inherited.pop()
            try:
                connection.setblocking(False)
                await loop.connect_accepted_socket(create_protocol, connection)
            except OSError:
                connection.close()

    def stop(self) -> None:
        """Accept no more connections, and end `serve` once the requests are answered."""
        self.should_exit = True
        self._stopped.set()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Accept no more connections, then close, pass on or finish those that are there.

        CPython 3.11 loses a connection that it accepts in the turn of its loop before the listening ends: the client
        waits, and is reset once the process ends.
        """
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for sock in server.sockets:
                loop.remove_reader(sock.fileno())
        await asyncio.sleep(0)  # what was accepted becomes a connection
        await super().shutdown(sockets)

    async def main_loop(self) -> None:
        """Tick until `stop`. uvicorn's own loop wakes for each tick: that is a fifth of the time of an idle service."""
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + _CHECK_TICKS) % 10
            with suppress(TimeoutError):
                async with asyncio.timeout(_CHECK_TICKS * _TICK_SECONDS):
                    await self._stopped.wait()

    def pass_connections_to(self, receiver: Callable[[socket], None]) -> None:
        """Let the stop pass each connection to `receiver` once no request is on it, instead of closing it."""
        self._table.pass_on = receiver

    async def on_tick(self, counter: int) -> bool:
        """Close the connections that are past a deadline; return true if the server is to stop."""
        self._table.close_expired(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals."""
        yield
