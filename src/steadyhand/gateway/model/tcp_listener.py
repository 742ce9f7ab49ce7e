"""The way to the model where agents are not sealed off: a port of loopback, and a token for each run.

The token lives as long as its run. An agent sends it where its credential would be, so that the credential itself is in
no agent's environment here either.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from steadyhand.errors import ConfigError
from steadyhand.gateway.model.metered_run import Visit
from steadyhand.gateway.model.providers import RUN_HEADER
from steadyhand.gateway.model.reverse_proxy import Line
from steadyhand.gateway.model.unix_listener import (
    CLOSING_SECONDS,
    MOST_CONNECTIONS,
    Connection,
    Unwelcome,
    cut_all,
    serving_config,
)

HOST = "127.0.0.1"
_KEY, _BEARER, _RUN = b"x-api-key", b"authorization", RUN_HEADER.encode()


class Loopback:
    """One port for all runs of a node."""

    def __init__(self, app: ASGIApp, slots: int) -> None:
        self._app = app
        self._most = slots * MOST_CONNECTIONS
        self._state = ServerState()
        self._visits: dict[str, tuple[str, Visit]] = {}
        """By the token's beginning, which only finds it: the token, and whose it is."""
        self._config = serving_config(self._ask)
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen on a free port for the length of the block. Raises `ConfigError` when it cannot."""
        # asyncio turns Nagle's delay off only for a socket that names its protocol.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.bind((HOST, 0))
        except OSError as error:
            sock.close()
            raise ConfigError(f"The gateway cannot listen on {HOST}: {error.strerror}.") from error
        self.port = sock.getsockname()[1]
        server = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=512)
        try:
            yield
        finally:
            server.close()
            cut_all(self._state)
            if self._state.tasks:
                await asyncio.wait(self._state.tasks, timeout=CLOSING_SECONDS)

    @contextmanager
    def held(self, visit: Visit) -> Iterator[str]:
        """Let a run in for the length of the block; gives its token. Its requests are cut at the end."""
        token = f"sk-ant-run-{secrets.token_urlsafe(32)}"
        name = _name(token)
        self._visits[name] = (token, visit)
        try:
            yield token
        finally:
            del self._visits[name]
            for connection in list(self._state.connections):
                if isinstance(connection, _Guest) and connection.visit is visit:
                    connection.transport.abort()

    def _accept(self) -> asyncio.Protocol:
        if len(self._state.connections) >= self._most:
            return Unwelcome()
        return _Guest(self._config, self._state, lambda cut, lost: {"cut": cut, "lost": lost})

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out whose request it is, and carry it to the model; nobody's is refused."""
        visit = self._visit_of(scope)
        state = scope["state"]
        if visit is None:
            await _refuse(send)
            return
        state["line"] = Line(visit, state["cut"], state["lost"])
        state["guest"](visit)
        await self._app(scope, receive, send)

    def _visit_of(self, scope: Scope) -> Visit | None:
        for name, value in scope["headers"]:
            token = value.removeprefix(b"Bearer ") if name == _BEARER else value
            if name in (_KEY, _BEARER, _RUN):
                found = self._visits.get(_name(token.decode("latin-1")))
                if found is not None and hmac.compare_digest(found[0].encode(), token):
                    return found[1]
        return None


class _Guest(Connection):
    """A connection, which belongs to the run that it was last used by."""

    visit: Visit | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let each request say whose the connection is."""
        self.app_state["guest"] = self._belongs
        super().connection_made(transport)

    def _belongs(self, visit: Visit) -> None:
        self.visit = visit


def _name(token: str) -> str:
    return token[:24]


async def _refuse(send: Send) -> None:
    message = "This is no token of a run that is under way."
    body = json.dumps(
        {"type": "error", "error": {"type": "authentication_error", "message": message}}
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
