"""Connections to one model's service: HTTP/1.1 over asyncio, kept open for the next request, whoever's that is.

A thin client of our own: what stands between an agent and its model's first word is this and the agent's own
connection. With httpx2's pool in its place `gateway-ttft` of docs/bench.md was 4.8 ms at p50 and 13.6 ms at p99 where
this has 1.0 and 2.2 (the goals are 3 and 10), and the processor's time for a megabyte 10.5 times a relay's where this
takes 4.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools
import httpx2

from steadyhand.errors import ConfigError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0
"""How long the service may be silent, before its answer and in it."""
WRITE_SECONDS = 60.0
MOST_KEPT = 32
KEEP_SECONDS = 30.0
MOST_HEAD_BYTES = 256 * 1024

_FULL, _LOW = 256 * 1024, 64 * 1024
"""Bytes that wait for a slow agent: above the first the service is not listened to until they are below the second."""
_FINAL = 200
_BODILESS = frozenset({204, 304})
_PORTS = {"http": 80, "https": 443}


class Unreachable(Exception):
    """The service was not reached, or broke off. `asked` is false when it cannot have seen the request."""

    def __init__(self, text: str, *, asked: bool) -> None:
        super().__init__(text)
        self.asked = asked


@dataclass(frozen=True, slots=True)
class Ask:
    """A request without its body. Header names are in lower case; framing and host are made here."""

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None = None
    """The length of the body when it is known; null with `has_body` is one that comes in chunks."""
    has_body: bool = False


class Pieces:
    """What a body is read from: all of it when `whole` is not null, else piece by piece."""

    @property
    def whole(self) -> bytes | None:
        """All of it, when it is there and kept."""
        raise NotImplementedError

    @property
    def again(self) -> bool:
        """Whether it can be given from its beginning once more."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces."""
        raise NotImplementedError


class Upstream:
    """Where one model's service is, and the connections to it that are open and idle."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigError(f"{url!r} is no http(s) address of a model's service.")
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._secure = parts.scheme == "https"
        self.base = parts.path.rstrip("/").encode()
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._name = (shown if parts.port is None else f"{shown}:{parts.port}").encode()
        self._context: ssl.SSLContext | None = None
        self._idle: list[_Wire] = []

    def close(self) -> None:
        """Close the idle connections."""
        for wire in list(self._idle):
            wire.abort()
        self._idle.clear()

    async def ask(self, ask: Ask, body: Pieces | None = None) -> "Answer":
        """Send a request and give its answer once its head is there. Raises `Unreachable`, and what `body` raises."""
        while self._idle:
            wire = self._idle.pop()
            wire.wake()
            try:
                return await self._over(wire, ask, body)
            except Unreachable:
                # The service closes idle connections when it likes; if it was that, nothing of this was looked at.
                if wire.heard or not (body is None or body.again):
                    raise
        return await self._over(await self._connect(), ask, body)

    async def _connect(self) -> "_Wire":
        loop = asyncio.get_running_loop()
        if self._secure and self._context is None:
            self._context = await asyncio.to_thread(_trusting)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, wire = await loop.create_connection(
                    lambda: _Wire(self._idle), self._host, self._port, ssl=self._context
                )
        except TimeoutError as error:
            raise Unreachable("it did not answer in time", asked=False) from error
        except OSError as error:  # TLS that fails is one as well
            raise Unreachable(f"{type(error).__name__}: {error}", asked=False) from error
        return wire

    async def _over(self, wire: "_Wire", ask: Ask, body: Pieces | None) -> "Answer":
        try:
            wire.begin()
            await self._send(wire, ask, body)
            await wire.head()
        except BaseException:
            wire.abort()
            raise
        return Answer(wire)

    async def _send(self, wire: "_Wire", ask: Ask, body: Pieces | None) -> None:
        lines = [b"%b %b HTTP/1.1" % (ask.method.encode("ascii"), ask.target), b"host: " + self._name]
        lines += [b"%b: %b" % header for header in ask.headers]
        if ask.has_body:
            length = b"transfer-encoding: chunked"
            lines.append(length if ask.length is None else b"content-length: %d" % ask.length)
        head = b"\r\n".join([*lines, b"", b""])
        if body is None or not ask.has_body:
            wire.write(head)
        elif body.whole is not None:
            end = b"" if ask.length is not None else b"\r\n0\r\n\r\n"
            start = b"" if ask.length is not None or not body.whole else b"%x\r\n" % len(body.whole)
            wire.write(head + start + body.whole + (end if start or ask.length is not None else end[2:]))
            await wire.drained()
        else:
            wire.write(head)
            await self._send_pieces(wire, body, chunked=ask.length is None)

    @staticmethod
    async def _send_pieces(wire: "_Wire", body: Pieces, *, chunked: bool) -> None:
        """Send a body as it comes, for as long as the service has not answered."""

        async def send() -> None:
            async for piece in body:
                wire.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await wire.drained()
            if chunked:
                wire.write(b"0\r\n\r\n")

        sending = asyncio.ensure_future(send())
        try:
            await asyncio.wait({sending, wire.answered}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                wire.spoil()  # what it has of this request is not all
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sending


class Answer:
    """An answer whose head is there. Close it: then its connection can serve the next request, or is cut."""

    def __init__(self, wire: "_Wire") -> None:
        self._wire = wire
        self.status = wire.status
        self.headers = wire.headers
        """Names are in lower case."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the body as it comes. Raises `Unreachable` when it breaks off."""
        wire = self._wire
        while True:
            data = wire.take()
            if data:
                yield data
            elif wire.complete:
                return
            else:
                await wire.more()

    async def short(self, most: int) -> bytes:
        """Give the first `most` bytes of the body, or what there is of it."""
        found = b""
        with contextlib.suppress(Unreachable):
            async for piece in self.pieces():
                found += piece
                if len(found) >= most:
                    break
        return found[:most]

    def close(self) -> None:
        """Let go of the connection."""
        self._wire.release()


class _Wire(asyncio.Protocol):
    """One connection: one request at a time, and what of its answer has come."""

    def __init__(self, idle: "list[_Wire]") -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._lost: Exception | None = None
        self._good = True
        self._in_use = False
        self._headed = False
        self._head_bytes = 0
        self._framed = False
        self._kept = False
        self._heard_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = False
        self.complete = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    # --- one exchange ----------------------------------------------------------------------

    def begin(self) -> None:
        """Get ready for the next answer."""
        self._in_use = True
        self._headed = self.heard = self.complete = self._framed = False
        self._head_bytes = self.status = 0
        self.headers = []
        self._heard_at = asyncio.get_running_loop().time()
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._look)
        if self.answered.done():
            self.answered = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            self._fail()

    def write(self, data: bytes) -> None:
        """Write, or drop it when the connection is lost."""
        if self._transport is not None and self._lost is None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the service has taken enough of what was written."""
        if self._writable is not None:
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await asyncio.shield(self._writable)
            except TimeoutError as error:
                raise Unreachable("it does not take the request", asked=True) from error

    async def head(self) -> None:
        """Wait for the head of the answer."""
        await self.answered

    def take(self) -> bytes:
        """Give what has come of the body since; empty when nothing has."""
        if not self._pieces:
            return b""
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def more(self) -> None:
        """Wait until more of the body has come. Raises `Unreachable` when none will."""
        if self._pieces or self.complete:
            return
        if self._lost is not None:
            raise Unreachable("it broke off", asked=True) from self._lost
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def spoil(self) -> None:
        """Say that this connection is good for no other request."""
        self._good = False

    def release(self) -> None:
        """Keep the connection for the next request, if its answer is all here."""
        whole = self.complete and not self._pieces and self._good and self._lost is None
        if not (whole and self._kept and len(self._idle) < MOST_KEPT):
            self.abort()
            return
        self._in_use = False
        self._expiry = asyncio.get_running_loop().call_later(KEEP_SECONDS, self.abort)
        self._idle.append(self)

    def wake(self) -> None:
        """Take the connection out of its rest."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def abort(self) -> None:
        """Cut the connection."""
        self.wake()
        self._good = False
        if self in self._idle:
            self._idle.remove(self)
        if self._transport is not None:
            self._transport.abort()
        if self.answered.done() and not self.answered.cancelled():
            self.answered.exception()  # looked at, whoever else does
        else:
            self.answered.cancel()

    # --- what asyncio calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._in_use or self.complete:
            self.abort()  # nobody asked
            return
        self.heard = True
        self._heard_at = asyncio.get_running_loop().time()
        if not self._headed:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(error)
            return
        if not self._headed and self._head_bytes > MOST_HEAD_BYTES:
            self._end(ValueError("the head is too long"))
        elif self._held > _FULL and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.wake()
        if self._watch is not None:
            self._watch.cancel()
        if self in self._idle:
            self._idle.remove(self)
        if self._headed and not self._framed and not self.complete and error is None:
            self._lost = ConnectionResetError("closed")
            self.on_message_complete()  # such a body ends with its connection
            return
        self._lost = self._lost or error or ConnectionResetError("closed")
        self._fail()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _look(self) -> None:
        """End an exchange in which nothing was heard for too long; a timer for each piece would cost more than it."""
        loop = asyncio.get_running_loop()
        silent = loop.time() - self._heard_at
        # An agent that is slow to take what there is keeps the service silent, too.
        if self._in_use and not self._paused and not self._pieces and silent >= ANSWER_SECONDS:
            self._end(TimeoutError("it was silent for too long"))
            return
        self._watch = loop.call_later(max(ANSWER_SECONDS - silent, 1.0), self._look)

    def _end(self, error: Exception) -> None:
        self._lost = error
        self._fail()
        if self._transport is not None:
            self._transport.abort()

    def _fail(self) -> None:
        self.resume_writing()
        told = Unreachable("it broke off", asked=True)
        told.__cause__ = self._lost
        if self._in_use and not self.answered.done():
            self.answered.set_exception(told)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(told)

    # --- what the parser calls -------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head: the answer's, or a word before it."""
        if not self._headed:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes after the head is a trailer and is left out."""
        if not self._headed:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Take note that the head is there, unless it is only a word before the answer."""
        self.status = self._parser.get_status_code()
        if self.status < _FINAL:
            return
        self._headed = True
        framing = {b"content-length", b"transfer-encoding"}
        self._framed = self.status in _BODILESS or any(name in framing for name, _ in self.headers)
        if not self.answered.done():
            self.answered.set_result(None)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(body)
        self._held += len(body)
        self._wake_reader()

    def on_message_complete(self) -> None:
        """Take note of the end of the answer."""
        if self._headed:
            self.complete = True
            self._kept = self._framed and self._parser.should_keep_alive()  # it knows only now
            self._wake_reader()

    def _wake_reader(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _trusting() -> ssl.SSLContext:
    """Give what says whom to believe: the certificates that the system, or the libraries, bring along."""
    return httpx2.create_ssl_context(trust_env=False)
