"""The way to the model: takes the agent's placeholder off a request, puts the real credential on, and streams.

An ASGI app. `scope["state"]` has the `line` that says whose connection it is, and the `target` as it was written.
Only the routes of the visit's provider pass. What costs is let through by the budgets, read as it passes, and settled
when it has; a service that is busy for a moment is asked again before the agent has heard of it.
"""

import asyncio
import contextlib
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send

from steadyhand.gateway.http_messages import end_to_end
from steadyhand.gateway.model.http_client import Answer, Ask, Pieces, Unreachable, Upstream
from steadyhand.gateway.model.metered_run import OpenCall, Visit
from steadyhand.gateway.model.provider_rate_limits import Pause, Wall, Walls
from steadyhand.gateway.model.providers import Provider, Route
from steadyhand.gateway.model.usage_meter import Meter
from steadyhand.gateway.money.budgets import Crowded, Exhausted

HEAD_BYTES = 64 * 1024
MOST_BODY_BYTES = 64 * 1024 * 1024
KEPT_BODY_BYTES = 4 * 1024 * 1024
"""A body up to this size is kept until its answer comes, so that it can be sent again."""

_VERSIONS = frozenset({"1.0", "1.1"})
_METHODS = frozenset({"GET", "POST"})
_PATH = re.compile(rb"[A-Za-z0-9._~:@%/-]{1,2048}")
_QUERY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]{0,8192}")
_FIRST_KEY = re.compile(rb'\s*\{\s*"model"\s*:\s*"([A-Za-z0-9._:@/\[\]-]{1,200})"')
_LEAST_ANSWER, _MOST_ANSWER = 200, 599
_TURNED_BYTES = 64 * 1024
_DROPPED_BACK = frozenset({b"set-cookie", b"transfer-encoding", b"alt-svc"})


@dataclass(frozen=True, slots=True)
class Line:
    """One connection of an agent: whose it is, and how it is cut."""

    visit: Visit
    cut: Callable[[], None]
    lost: "Lost"


class Lost:
    """Ends what is done for a connection when the agent has closed it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Say that it is closed."""
        if self.task is not None:
            self.task.cancel()


class Turned(Exception):
    """A request that is answered here, in the words of the Messages API."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers or {}


class Gone(Exception):
    """The agent's end of the connection is closed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may pass; `length` is null when its body has none or says none."""

    method: str
    target: bytes
    route: Route
    headers: list[tuple[bytes, bytes]]
    length: int | None
    has_body: bool


class Forwarder:
    """The app. It keeps connections to the models' services open for the next request, whoever's that is."""

    def __init__(self, walls: Walls) -> None:
        self._walls = walls
        self._upstreams: dict[str, Upstream] = {}
        self._log = structlog.get_logger("steadyhand.gateway")

    def add(self, provider: Provider) -> None:
        """Know the way to a provider. Raises `ConfigError` for an address that is none."""
        self._upstreams[provider.name] = Upstream(provider.url)

    def close(self) -> None:
        """Close the connections to the models' services."""
        for upstream in self._upstreams.values():
            upstream.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry one request there and its answer back; ends early when the agent goes away."""
        line: Line = scope["state"]["line"]
        body = _Body(receive, line.visit)
        line.lost.task = asyncio.current_task()
        try:
            await self._handle(scope, line, body, _Sending(send))
        except Exception:  # noqa: BLE001  # the boundary of a request: logged, and never a half answer that looks whole
            self._log.exception("gateway.failed")
            line.cut()
        finally:
            line.lost.task = None
            body.let_go()

    async def _handle(self, scope: Scope, line: Line, body: "_Body", send: "_Sending") -> None:
        try:
            asked = await self._asked(scope, line)
            if not asked.has_body:
                body.none()
            await self._pass(asked, line.visit, body, send)
            await line.visit.tell()
        except Turned as turned:
            if send.started:
                line.cut()
            else:
                await _answer(send, turned)
        except Unreachable as error:
            self._log.warning("gateway.upstream_failed", error=str(error))
            if send.started:
                line.cut()
            else:
                text = "The model's service could not be reached, or broke off."
                await _answer(send, Turned(502, "api_error", text))
        except Gone:
            pass

    async def _asked(self, scope: Scope, line: Line) -> Asked:
        """Judge a request by its head. Raises `Turned`."""
        method, target = scope["method"], scope["state"]["target"]
        path, _, query = target.partition(b"?")
        provider = line.visit.provider
        well_formed = method in _METHODS and _PATH.fullmatch(path) and _QUERY.fullmatch(query)
        route = provider.route(method, path) if well_formed else None
        if route is None:
            await line.visit.reports.refused_path(method, path.decode("latin-1"))
            raise Turned(403, "permission_error", f"This gateway passes {provider.passes} only.")
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
        headers = provider.headers(scope["headers"])
        return Asked(method, target, route, headers, length, chunked or bool(length))

    # --- one call --------------------------------------------------------------------------

    async def _pass(self, asked: Asked, visit: Visit, body: "_Body", send: "_Sending") -> None:
        """Let a request through: past the wall and the budgets, there and back. Raises `Turned`, `Unreachable`."""
        missing = visit.provider.missing
        if missing is not None:
            # 403 is what makes the CLI stop at once; 401 it would try again.
            raise Turned(403, "permission_error", missing, {b"x-should-retry": b"false"})
        self._check_wall(visit)
        costs = asked.route.form != "none"
        await body.begin(asked.length, names_model=costs and asked.route.model is None)
        if not costs:
            await self._exchange(asked, visit, body, send, None)
            return
        model = asked.route.model or _model_of(body.first)
        try:
            call = await visit.begin(model, asked.length if asked.length is not None else len(body.first))
        except Exhausted as exhausted:
            raise Turned(402, "billing_error", exhausted.text, {b"x-should-retry": b"false"}) from exhausted
        except Crowded as crowded:
            raise Turned(529, "overloaded_error", "Too many calls wait for this budget.") from crowded
        if asked.length is None:
            body.watch_size(call)
        try:
            await self._exchange(asked, visit, body, send, call)
        except Unreachable as error:
            call.settle(None, None, asked=error.asked)
            raise
        except Turned as turned:
            call.settle(None, turned.status, asked=False)
            raise
        finally:
            call.settle(None, None, asked=call.asked)

    def _check_wall(self, visit: Visit) -> None:
        until = self._walls.until(visit.provider.account)
        if until is not None:
            visit.wall = until
            left = math.ceil((until - self._walls.clock()).total_seconds())
            raise Turned(
                429,
                "rate_limit_error",
                f"The model's rate limit holds until {until:%Y-%m-%dT%H:%M:%SZ}.",
                {b"x-should-retry": b"false", b"retry-after": b"%d" % left},
            )

    async def _exchange(
        self, asked: Asked, visit: Visit, body: "_Body", send: "_Sending", call: OpenCall | None
    ) -> None:
        """Ask, again after a pause where the service is busy for a moment, and pass the answer on."""
        upstream = self._upstreams[visit.provider.name]
        ask = Ask(asked.method, upstream.base + asked.target, asked.headers, asked.length, asked.has_body)
        waited = 0.0
        tries = 0
        while True:
            if call is not None:
                call.asked = True
            answer = await upstream.ask(ask, body)
            try:
                verdict = self._walls.judge(answer.status, answer.headers, tries, waited)
                again = isinstance(verdict, Pause) and (not asked.has_body or body.again)
                if verdict is None or not (again or isinstance(verdict, Wall)):
                    await self._back(answer, asked.route, send, call)
                    return
                await answer.short(_TURNED_BYTES)
            finally:
                answer.close()
            if isinstance(verdict, Wall):
                until = self._walls.rise(visit.provider.account, verdict.until)
                self._log.warning("gateway.wall", provider=visit.provider.name, until=until.isoformat())
                self._check_wall(visit)
                continue  # it fell in this very moment
            if call is not None:
                call.asked = False  # what was turned away costs nothing
            await self._walls.sleep(verdict.seconds)
            waited += verdict.seconds
            tries += 1
            self._check_wall(visit)

    async def _back(self, answer: Answer, route: Route, send: "_Sending", call: OpenCall | None) -> None:
        """Pass an answer on, each piece when it comes, and read it on the way."""
        if not _LEAST_ANSWER <= answer.status <= _MOST_ANSWER:
            raise Turned(502, "api_error", f"The model's service answered {answer.status}.")
        headers = [(name, value) for name, value in end_to_end(answer.headers) if name not in _DROPPED_BACK]
        meter = None if call is None else Meter(answer.status, answer.headers, route.form)
        whole = False
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for piece in answer.pieces():
                try:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                finally:
                    if meter is not None:
                        meter.feed(piece)
            whole = True
        finally:
            # Settled before the agent can know that it is over: what it asks next is judged by what this cost.
            if meter is not None and call is not None:
                call.settle(meter.finish(cut=not whole), answer.status)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Sending:
    """Sends, and knows whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)


class _Body(Pieces):
    """A request's body on its way, bounded: each piece goes on as it comes; those of a small one are kept as well.

    `begin` waits for the first piece, and for all of a small body only when that does not say which model is meant.
    """

    def __init__(self, receive: Receive, visit: Visit) -> None:
        self._receive = receive
        self._visit = visit
        self._total = 0
        self._over = False
        self._room = 0
        self._call: OpenCall | None = None
        self._kept: list[bytes] | None = None
        self.first = b""

    @property
    def whole(self) -> bytes | None:
        """All of it, when it is there and kept."""
        if self._kept is None or not self._over:
            return None
        if len(self._kept) > 1:
            self._kept = [b"".join(self._kept)]
        return self._kept[0] if self._kept else b""

    @property
    def again(self) -> bool:
        """Whether it can be sent once more: it is kept from its beginning."""
        return self._kept is not None

    async def begin(self, length: int | None, *, names_model: bool) -> None:
        """Take what has to be known before it may pass; `names_model` when it is wanted for its model."""
        if self._over or (length is not None and length <= min(KEPT_BODY_BYTES, self._visit.room)):
            self._room = length or 0
            self._visit.room -= self._room
            self._kept = []
        while not (self.first or self._over):
            self.first = await self._next()
        if self.again and names_model and _FIRST_KEY.match(self.first) is None:
            while not self._over:
                await self._next()
            self.first = self.whole or b""

    def watch_size(self, call: OpenCall) -> None:
        """Tell a call how large its body turned out to be."""
        self._call = call

    def let_go(self) -> None:
        """Give back the room that was taken for it."""
        self._visit.room += self._room
        self._room = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._kept is None:
            piece = self.first
            while piece or not self._over:
                if piece:
                    yield piece
                piece = b"" if self._over else await self._next()
        else:
            kept, given = self._kept, 0
            while given < len(kept) or not self._over:
                if given == len(kept):
                    await self._next()
                else:
                    yield kept[given]
                    given += 1
        if self._call is not None:
            self._call.grew(self._total)

    async def _next(self) -> bytes:
        """Give the next piece. Raises `Gone`, and `Turned` when the body is larger than may be."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        piece: bytes = message["body"]
        self._total += len(piece)
        if self._total > MOST_BODY_BYTES:
            raise _too_large()
        self._over = not message["more_body"]
        if self._kept is not None and piece:
            self._kept.append(piece)
        return piece

    def none(self) -> None:
        """Say that there is none to be read."""
        self._over = True


def _model_of(body: bytes) -> str | None:
    """Give the model that a request names, as far as its beginning or all of it says so."""
    found = _FIRST_KEY.match(body)
    if found is not None:
        return found[1].decode("ascii")
    try:
        read: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    model = read.get("model") if isinstance(read, dict) else None
    return model if isinstance(model, str) else None


def _too_large() -> Turned:
    return Turned(413, "request_too_large", f"A request has at most {MOST_BODY_BYTES >> 20} MiB.")


async def _answer(send: _Sending, turned: Turned) -> None:
    body = json.dumps({"type": "error", "error": {"type": turned.kind, "message": turned.message}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *turned.headers.items(),
        (b"connection", b"close"),
    ]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": turned.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
