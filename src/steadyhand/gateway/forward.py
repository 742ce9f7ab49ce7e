"""The way to the model: takes the agent's placeholder off a request, puts the real credential on, and streams.

An ASGI app. `scope["state"]` has the `line` that says whose connection it is, and the `target` as it was written.
Only `/v1/messages` and `/v1/models` and what is below them pass; bodies go through as they come, both ways.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import httpx2
import structlog
from starlette.types import Message, Receive, Scope, Send

from steadyhand.gateway.heads import end_to_end
from steadyhand.gateway.reports import Reports

DEFAULT_UPSTREAM = "https://api.anthropic.com"
HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 64 * 1024 * 1024
OAUTH_BETA = b"oauth-2025-04-20"
"""The flag that the model's service wants with an OAuth token; a CLI that holds an API key does not send it."""

_VERSIONS = frozenset({"1.0", "1.1"})
_METHODS = frozenset({"GET", "POST", "DELETE"})
_PATH = re.compile(rb"/v1/(messages|models)(/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)*")
_QUERY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]{0,8192}")
_TIMEOUT = {"connect": 10.0, "read": 600.0, "write": 60.0, "pool": 10.0}
_KEPT_CONNECTIONS = 32
_KEEP_SECONDS = 30
_LEAST_ANSWER, _MOST_ANSWER = 200, 599

_DROPPED = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"cookie",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"forwarded",
    }
)
"""Of the agent's headers: what could speak for somebody, and the framing, which is made anew."""
_DROPPED_BACK = frozenset({b"set-cookie", b"transfer-encoding", b"alt-svc"})


@dataclass(frozen=True, slots=True)
class Credential:
    """The service's own credential; it is on the way to the model and nowhere else."""

    kind: Literal["api_key", "oauth"]
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One connection of an agent: where its run is told things, and how the connection is cut."""

    reports: Reports
    cut: Callable[[], None]


class Turned(Exception):
    """A request that is answered here, in the words of the Messages API."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


class Gone(Exception):
    """The agent's end of the connection is closed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may pass; `length` is null when its body has none or says none."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None
    has_body: bool


class Forwarder:
    """The app. It keeps connections to the model's service open for the next request, whoever's that is."""

    def __init__(self, upstream: str | None, credential: Credential | None) -> None:
        self._upstream = httpx2.URL(upstream or DEFAULT_UPSTREAM)
        self._base = self._upstream.raw_path.partition(b"?")[0].rstrip(b"/")
        self._credential = credential
        # A transport, not a client: that would keep one agent's cookies for the next and add headers of its own.
        self._transport = httpx2.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=None,
                max_keepalive_connections=_KEPT_CONNECTIONS,
                keepalive_expiry=_KEEP_SECONDS,
            ),
        )
        self._log = structlog.get_logger("steadyhand.gateway")

    async def close(self) -> None:
        """Close the connections to the model's service."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry one request there and its answer back; ends early when the agent goes away."""
        line: Line = scope["state"]["line"]
        sending = _Sending(send)
        body = _Body(receive)
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._handle(scope, line, body, sending))
                watch = group.create_task(body.gone())
                await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
                watch.cancel()
                if not sending.finished:
                    work.cancel()
        except Exception:  # noqa: BLE001  # the boundary of a request: logged, and never a half answer that looks whole
            self._log.exception("gateway.failed")
            line.cut()

    async def _handle(self, scope: Scope, line: Line, body: "_Body", send: "_Sending") -> None:
        try:
            asked = await self._asked(scope, line)
            if not asked.has_body:
                body.none()
            await self._exchange(asked, body, send)
        except Turned as turned:
            if send.started:
                line.cut()
            else:
                await _answer(send, turned)
        except httpx2.TransportError as error:
            self._log.warning("gateway.upstream_failed", error=f"{type(error).__name__}: {error}")
            if send.started:
                line.cut()
            else:
                await _answer(send, Turned(502, "api_error", _why(error)))
        except Gone:
            pass

    async def _asked(self, scope: Scope, line: Line) -> Asked:
        """Judge a request by its head. Raises `Turned`."""
        method, target = scope["method"], scope["state"]["target"]
        path, _, query = target.partition(b"?")
        if method not in _METHODS or _PATH.fullmatch(path) is None or _QUERY.fullmatch(query) is None:
            await line.reports.refused_path(method, path.decode("latin-1"))
            raise Turned(403, "permission_error", "This gateway passes /v1/messages and /v1/models only.")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            raise Turned(431, "invalid_request_error", "The headers are too long.")
        if scope["http_version"] not in _VERSIONS:
            raise Turned(400, "invalid_request_error", "This gateway speaks HTTP/1.1.")
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if len(lengths) + chunked > 1:
            raise Turned(400, "invalid_request_error", "A request has one length.")
        length = int(lengths[0]) if lengths else None
        if length is not None and length > MOST_BODY_BYTES:
            raise _too_large()
        return Asked(method, path, query, self._headers(scope["headers"]), length, chunked or bool(length))

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Give the headers for the model's service, with the real credential."""
        kept = [
            (name, value)
            for name, value in end_to_end(headers)
            if name not in _DROPPED and not name.startswith((b"x-forwarded-", b"proxy-"))
        ]
        if self._credential is None:
            return kept
        secret = self._credential.secret.encode("latin-1", "replace")
        if self._credential.kind == "api_key":
            return [*kept, (b"x-api-key", secret)]
        flags = [v.strip() for n, value in kept if n == b"anthropic-beta" for v in value.split(b",")]
        if OAUTH_BETA not in flags:
            flags.append(OAUTH_BETA)
        kept = [(name, value) for name, value in kept if name != b"anthropic-beta"]
        return [
            *kept,
            (b"anthropic-beta", b",".join(flag for flag in flags if flag)),
            (b"authorization", b"Bearer " + secret),
        ]

    async def _exchange(self, asked: Asked, body: "_Body", send: "_Sending") -> None:
        target = self._base + asked.path + (b"?" + asked.query if asked.query else b"")
        headers = list(asked.headers)
        if asked.has_body and asked.length is not None:
            headers.append((b"content-length", b"%d" % asked.length))
        request = httpx2.Request(
            asked.method,
            self._upstream.copy_with(raw_path=target),
            headers=headers,
            content=body.pieces() if asked.has_body else None,
            extensions={"timeout": _TIMEOUT},
        )
        response = await self._transport.handle_async_request(request)
        try:
            await _stream(response, send)
        finally:
            await response.aclose()


async def _stream(response: httpx2.Response, send: "_Sending") -> None:
    """Pass an answer on, each piece when it comes."""
    if not _LEAST_ANSWER <= response.status_code <= _MOST_ANSWER:
        raise Turned(502, "api_error", f"The model's service answered {response.status_code}.")
    raw = [(name.lower(), value) for name, value in response.headers.raw]
    headers = [(name, value) for name, value in end_to_end(raw) if name not in _DROPPED_BACK]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        raise TypeError("the transport gave an answer that cannot be awaited")
    async for piece in response.stream:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Sending:
    """Sends, and knows how far the answer is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.finished = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        self.finished = message["type"] == "http.response.body" and not message.get("more_body")
        await self._send(message)


class _Body:
    """A request's body on its way, bounded; then the watch for the agent going away."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._taken = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the body piece by piece. Raises `Gone`, and `Turned` when it is larger than may be."""
        total = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            total += len(message["body"])
            if total > MOST_BODY_BYTES:
                raise _too_large()
            if message["body"]:
                yield message["body"]
            if not message["more_body"]:
                self._taken.set()
                return

    def none(self) -> None:
        """Say that there is none to be read."""
        self._taken.set()

    async def gone(self) -> None:
        """Wait until the agent has closed its end, or has the whole answer."""
        await self._taken.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large() -> Turned:
    return Turned(413, "request_too_large", f"A request has at most {MOST_BODY_BYTES >> 20} MiB.")


def _why(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "The model's service did not answer in time."
    return "The model's service could not be reached, or broke off."


async def _answer(send: _Sending, turned: Turned) -> None:
    body = json.dumps({"type": "error", "error": {"type": turned.kind, "message": turned.message}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": turned.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
