"""HTTP/1.1 connections to one model provider over asyncio, kept open and shared by all runs.

The client is our own, because it adds to the time to the first token of every call. With httpx2's pool in its place
`gateway-ttft` of docs/bench.md was 4.8 ms at p50 and 13.6 ms at p99; this client has 1.0 and 2.2 (the goals are 3 and
10). The processor time per megabyte was 10.5 times a relay's; this client takes 4.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from steadyhand.errors import ConfigError

CONNECT_SECONDS = 10.0
RESPONSE_SECONDS = 600.0
"""How long the service may be silent, before its answer and in it."""
WRITE_SECONDS = 60.0
MAX_IDLE_CONNECTIONS = 32
KEEP_ALIVE_SECONDS = 30.0
MAX_HEAD_BYTES = 256 * 1024

_HIGH_WATER, _LOW_WATER = 256 * 1024, 64 * 1024
"""Bytes that wait for a slow agent: above the first the service is not listened to until they are below the second."""
_FIRST_FINAL_STATUS = 200
_STATUSES_WITHOUT_BODY = frozenset({204, 304})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class UpstreamError(Exception):
    """The provider was not reached, or the connection broke. `asked` is false when it cannot have seen the request."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request without its body. Header names are in lower case; framing and host are made here."""

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None = None
    """The length of the body, if known; None with `has_body` means a chunked body."""
    has_body: bool = False


class RequestBody:
    """The source of a request body: all of it if `whole` is not None, else chunk by chunk."""

    @property
    def buffered(self) -> bytes | None:
        """Return the whole body, if it is in memory."""
        raise NotImplementedError

    @property
    def replayable(self) -> bool:
        """Return True if the body can be sent again from its beginning."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the chunks."""
        raise NotImplementedError


class HttpClient:
    """The address of one model's service, and the connections to it that are open and idle."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ConfigError(f"{url!r} is no http(s) address of a model's service.")
        self._host, self._port = parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme]
        self._secure = parts.scheme == "https"
        self.base_path = parts.path.rstrip("/").encode()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._host_header = (host if parts.port is None else f"{host}:{parts.port}").encode()
        self._tls_context: ssl.SSLContext | None = None
        self._idle: list[UpstreamConnection] = []

    def close(self) -> None:
        """Close the idle connections."""
        for connection in list(self._idle):
            connection.abort()
        self._idle.clear()

    async def send(self, request: UpstreamRequest, body: RequestBody | None = None) -> "UpstreamResponse":
        """Send a request and return its response once the head arrived. Raises `UpstreamError` and `body`'s errors."""
        while self._idle:
            connection = self._idle.pop()
            connection.cancel_idle_timer()
            try:
                return await self._send_on(connection, request, body)
            except UpstreamError:
                # The service closes idle connections when it likes; if it was that, nothing of this was looked at.
                if connection.received_any or not (body is None or body.replayable):
                    raise
        return await self._send_on(await self._connect(), request, body)

    async def _connect(self) -> "UpstreamConnection":
        loop = asyncio.get_running_loop()
        if self._secure and self._tls_context is None:
            self._tls_context = await asyncio.to_thread(_default_tls_context)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self._idle), self._host, self._port, ssl=self._tls_context
                )
        except TimeoutError as error:
            raise UpstreamError("it did not answer in time", sent=False) from error
        except OSError as error:  # TLS that fails is one as well
            raise UpstreamError(f"{type(error).__name__}: {error}", sent=False) from error
        return connection

    async def _send_on(
        self, connection: "UpstreamConnection", request: UpstreamRequest, body: RequestBody | None
    ) -> "UpstreamResponse":
        try:
            connection.begin()
            await self._write_request(connection, request, body)
            await connection.wait_headers()
        except BaseException:  # also when cancelled: half a request is on it, so no other may follow
            connection.abort()
            raise
        return UpstreamResponse(connection)

    async def _write_request(
        self, connection: "UpstreamConnection", request: UpstreamRequest, body: RequestBody | None
    ) -> None:
        lines = [
            b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.target),
            b"host: " + self._host_header,
        ]
        lines += [b"%b: %b" % header for header in request.headers]
        if request.has_body:
            length = b"transfer-encoding: chunked"
            lines.append(length if request.length is None else b"content-length: %d" % request.length)
        head = b"\r\n".join([*lines, b"", b""])
        if body is None or not request.has_body:
            connection.write(head)
        elif body.buffered is not None:
            end = b"" if request.length is not None else b"\r\n0\r\n\r\n"
            start = b"" if request.length is not None or not body.buffered else b"%x\r\n" % len(body.buffered)
            connection.write(
                head + start + body.buffered + (end if start or request.length is not None else end[2:])
            )
            await connection.wait_writable()
        else:
            connection.write(head)
            await self._stream_body(connection, body, chunked=request.length is None)

    @staticmethod
    async def _stream_body(connection: "UpstreamConnection", body: RequestBody, *, chunked: bool) -> None:
        """Send a body as it comes, for as long as the service has not answered."""

        async def send() -> Exception | None:
            try:
                async for chunk in body:
                    connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                    await connection.wait_writable()
            except Exception as error:  # noqa: BLE001  # raised below, as it is: the group would wrap it
                return error
            if chunked:
                connection.write(b"0\r\n\r\n")
            return None

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send())
            waiting: set[asyncio.Future[Any]] = {sending, connection.headers_received}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            answered_early = not sending.done()
            if answered_early:
                connection.mark_unusable()  # what it has of this request is not all
                sending.cancel()
        if not answered_early and (error := sending.result()) is not None:
            raise error


class UpstreamResponse:
    """An answer whose head is there. Close it: then its connection can serve the next request, or is cut."""

    def __init__(self, connection: "UpstreamConnection") -> None:
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        """Names are in lower case."""

    def pass_on(self, consume: Callable[[bytes], bool]) -> None:
        """Send each part of the body to `consume` as it arrives, while `next_chunk` waits for one.

        A task that is woken for each part costs more than the part itself. If `consume` returns False, it has not taken
        the part, and `next_chunk` returns it.
        """
        self._connection.consume = consume

    async def next_chunk(self) -> bytes:
        """Return the next part of the body as it arrives; empty at its end. Raise `UpstreamError` if it breaks off."""
        connection = self._connection
        while not (data := connection.read_available()) and not connection.complete:
            await connection.wait_data()
        return data

    async def read_up_to(self, max_bytes: int) -> bytes:
        """Return the first bytes of the body, or all of it if it is shorter."""
        return (await self._read(max_bytes))[:max_bytes]

    async def peek(self, max_bytes: int) -> bytes:
        """Return the same, for a body that may be passed on: `next_chunk` returns all of it again."""
        data = await self._read(max_bytes)
        self._connection.put_back(data)
        return data[:max_bytes]

    async def _read(self, least: int) -> bytes:
        data = b""
        with contextlib.suppress(UpstreamError):
            while len(data) < least and (chunk := await self.next_chunk()):
                data += chunk
        return data

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.release()


class UpstreamConnection(asyncio.Protocol):
    """One connection, with one request at a time and the received part of its response."""

    def __init__(self, idle: "list[UpstreamConnection]") -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._paused = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._read_waiter: asyncio.Future[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._reusable = True
        self._in_use = False
        self._headers_complete = False
        self._head_bytes = 0
        self._has_framing = False
        self._keep_alive = False
        self._last_received_at = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None
        self.headers_received: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received_any = False
        self.complete = False
        self.consume: Callable[[bytes], bool] | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    # --- one exchange ----------------------------------------------------------------------

    def begin(self) -> None:
        """Get ready for the next answer."""
        self._in_use = True
        self.consume = None
        self._headers_complete = self.received_any = self.complete = self._has_framing = False
        self._head_bytes = self.status = 0
        self.headers = []
        self._last_received_at = asyncio.get_running_loop().time()
        if self._silence_timer is None:
            self._silence_timer = asyncio.get_running_loop().call_later(RESPONSE_SECONDS, self._check_silence)
        if self.headers_received.done():
            self.headers_received = asyncio.get_running_loop().create_future()
        if self._error is not None:
            self._fail_waiters()

    def write(self, data: bytes) -> None:
        """Write, or drop it when the connection is lost."""
        if self._transport is not None and self._error is None:
            self._transport.write(data)

    async def wait_writable(self) -> None:
        """Wait until the provider has accepted enough of the written data."""
        if self._drain_waiter is not None:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await asyncio.shield(self._drain_waiter)
            except TimeoutError as error:
                raise UpstreamError("it does not take the request", sent=True) from error

    async def wait_headers(self) -> None:
        """Wait for the head of the answer."""
        await self.headers_received

    def read_available(self) -> bytes:
        """Return the data that arrived since the last call; empty if none did."""
        if not self._chunks:
            return b""
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def put_back(self, data: bytes) -> None:
        """Let the next read return data again that was read."""
        if data:
            self._chunks.appendleft(data)
            self._buffered_bytes += len(data)

    async def wait_data(self) -> None:
        """Wait until more of the body has come. Raises `Unreachable` when none will."""
        if self._chunks or self.complete:
            return
        if self._error is not None:
            raise UpstreamError("it broke off", sent=True) from self._error
        self._read_waiter = self._loop.create_future()
        await self._read_waiter

    def mark_unusable(self) -> None:
        """Mark this connection as unusable for another request."""
        self._reusable = False

    def release(self) -> None:
        """Keep the connection for the next request, if its answer is all here."""
        finished = self.complete and not self._chunks and self._reusable and self._error is None
        if not (finished and self._keep_alive and len(self._idle) < MAX_IDLE_CONNECTIONS):
            self.abort()
            return
        self._in_use = False
        self._idle_timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_SECONDS, self.abort)
        self._idle.append(self)

    def cancel_idle_timer(self) -> None:
        """Make an idle connection active."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def abort(self) -> None:
        """Cut the connection."""
        self.cancel_idle_timer()
        self._reusable = False
        if self in self._idle:
            self._idle.remove(self)
        if self._transport is not None:
            self._transport.abort()
        if self.headers_received.done() and not self.headers_received.cancelled():
            self.headers_received.exception()  # looked at, whoever else does
        else:
            self.headers_received.cancel()

    # --- what asyncio calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._in_use or self.complete:
            self.abort()  # nobody asked
            return
        self.received_any = True
        self._last_received_at = self._loop.time()
        if not self._headers_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._deliver()
            self._abort_with(error)
            return
        self._deliver()
        if not self._headers_complete and self._head_bytes > MAX_HEAD_BYTES:
            self._abort_with(ValueError("the head is too long"))
        elif self._buffered_bytes > _HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.cancel_idle_timer()
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self in self._idle:
            self._idle.remove(self)
        if self._headers_complete and not self._has_framing and not self.complete and error is None:
            self._error = ConnectionResetError("closed")
            self.on_message_complete()  # such a body ends with its connection
            self._deliver()
            return
        self._error = self._error or error or ConnectionResetError("closed")
        self._fail_waiters()

    def pause_writing(self) -> None:
        self._drain_waiter = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        self._drain_waiter = None

    def _check_silence(self) -> None:
        """End an exchange in which nothing was heard for too long; a timer for each piece would cost more than it."""
        loop = asyncio.get_running_loop()
        silence = loop.time() - self._last_received_at
        # An agent that is slow to take what there is keeps the service silent, too.
        if self._in_use and not self._paused and not self._chunks and silence >= RESPONSE_SECONDS:
            self._abort_with(TimeoutError("it was silent for too long"))
            return
        self._silence_timer = loop.call_later(max(RESPONSE_SECONDS - silence, 1.0), self._check_silence)

    def _abort_with(self, error: Exception) -> None:
        self._error = error
        self._fail_waiters()
        if self._transport is not None:
            self._transport.abort()

    def _fail_waiters(self) -> None:
        self.resume_writing()
        error = UpstreamError("it broke off", sent=True)
        error.__cause__ = self._error
        if self._in_use and not self.headers_received.done():
            self.headers_received.set_exception(error)
        if self._read_waiter is not None and not self._read_waiter.done():
            self._read_waiter.set_exception(error)

    # --- what the parser calls -------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head: the answer's, or a word before it."""
        if not self._headers_complete:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. Trailers, which come after the head, are ignored."""
        if not self._headers_complete:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Note that the head is complete, unless it is only a word before the answer."""
        self.status = self._parser.get_status_code()
        if self.status < _FIRST_FINAL_STATUS:
            return
        self._headers_complete = True
        framing = {b"content-length", b"transfer-encoding"}
        self._has_framing = self.status in _STATUSES_WITHOUT_BODY or any(
            name in framing for name, _ in self.headers
        )
        if not self.headers_received.done():
            self.headers_received.set_result(None)

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body."""
        self._chunks.append(body)
        self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if self._headers_complete:
            self.complete = True
            self._keep_alive = self._has_framing and self._parser.should_keep_alive()  # it knows only now

    def _deliver(self) -> None:
        """Send the data that arrived to the reader that waits for it."""
        waiter = self._read_waiter
        if waiter is None or waiter.done():  # what came before is still on its way
            return
        chunks, consume = self._chunks, self.consume
        if chunks and consume is not None and consume(chunks[0] if len(chunks) == 1 else b"".join(chunks)):
            chunks.clear()
            self._buffered_bytes = 0
        if chunks or self.complete:
            waiter.set_result(None)


def _default_tls_context() -> ssl.SSLContext:
    """Return the TLS context that trusts the certificates of the system, or those of the libraries."""
    import httpx2  # noqa: PLC0415  # loaded after the service listens (`serve/late_imports.py`)

    return httpx2.create_ssl_context(trust_env=False)
