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
from steadyhand.gateway.model.metered_run import MeteredRun
from steadyhand.gateway.model.providers import RUN_HEADER
from steadyhand.gateway.model.rehearsal import answer_rehearsal
from steadyhand.gateway.model.reverse_proxy import AgentConnection
from steadyhand.gateway.model.unix_listener import (
    CLOSING_SECONDS,
    MAX_CONNECTIONS,
    HttpConnection,
    RejectedConnection,
    abort_connections,
    uvicorn_config,
)

HOST = "127.0.0.1"
_API_KEY_HEADER, _AUTHORIZATION_HEADER, _RUN_HEADER = b"x-api-key", b"authorization", RUN_HEADER.encode()


class TokenHolder:
    """The owner of a token: a run, or a process that waits for its next run."""

    def __init__(self, listener: "TcpListener", token: str) -> None:
        self._listener = listener
        self.token = token
        self.run: MeteredRun | None = None
        self.is_rehearsing = False

    @contextmanager
    def serve_run(self, run: MeteredRun) -> Iterator[None]:
        """Accept a run for the length of the block. Its requests are aborted at the end."""
        self.run = run
        try:
            yield
        finally:
            self.run = None
            self._listener.abort_run(run)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Answer the calls of a waiting process here for the length of the block; none goes to a provider."""
        self.is_rehearsing = True
        try:
            yield
        finally:
            self.is_rehearsing = False


class TcpListener:
    """One port for all runs of a node."""

    def __init__(self, app: ASGIApp, slots: int) -> None:
        self._app = app
        self._max_connections = slots * MAX_CONNECTIONS
        self._state = ServerState()
        self._holders: dict[str, TokenHolder] = {}
        """By the token's beginning, which only finds it: whose the token is."""
        self._config = uvicorn_config(self._authenticate)
        self.port = 0

    @property
    def address(self) -> str:
        """Return the address of the listener."""
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
            abort_connections(self._state)
            if self._state.tasks:
                await asyncio.wait(self._state.tasks, timeout=CLOSING_SECONDS)

    @contextmanager
    def serve_run(self, run: MeteredRun) -> Iterator[str]:
        """Accept a run for the length of the block and return its token. Its requests are aborted at the end."""
        with self.hold() as holder, holder.serve_run(run):
            yield holder.token

    @contextmanager
    def hold(self) -> Iterator[TokenHolder]:
        """Create a token for the length of the block. It is worth something while a run is served with it."""
        token = f"sk-ant-run-{secrets.token_urlsafe(32)}"
        holder = self._holders[_token_prefix(token)] = TokenHolder(self, token)
        try:
            yield holder
        finally:
            del self._holders[_token_prefix(token)]

    def abort_run(self, run: MeteredRun) -> None:
        """Abort the connections of a run."""
        for connection in list(self._state.connections):
            if isinstance(connection, _RunConnection) and connection.run is run:
                connection.transport.abort()

    def _accept(self) -> asyncio.Protocol:
        if len(self._state.connections) >= self._max_connections:
            return RejectedConnection()
        return _RunConnection(
            self._config, self._state, lambda abort, on_close: {"abort": abort, "on_close": on_close}
        )

    async def _authenticate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the run of a request and forward it; reject a request without one."""
        holder = self._holder_of(scope)
        run = None if holder is None else holder.run
        state = scope["state"]
        if run is None:
            if holder is not None and holder.is_rehearsing:
                await answer_rehearsal(scope, receive, send)
            else:
                await _send_unauthorized(send)
            return
        state["connection"] = AgentConnection(run, state["abort"], state["on_close"])
        state["set_run"](run)
        await self._app(scope, receive, send)

    def _holder_of(self, scope: Scope) -> TokenHolder | None:
        for name, value in scope["headers"]:
            token = value.removeprefix(b"Bearer ") if name == _AUTHORIZATION_HEADER else value
            if name in (_API_KEY_HEADER, _AUTHORIZATION_HEADER, _RUN_HEADER):
                holder = self._holders.get(_token_prefix(token.decode("latin-1")))
                if holder is not None and hmac.compare_digest(holder.token.encode(), token):
                    return holder
        return None


class _RunConnection(HttpConnection):
    """A connection, which belongs to the run that it was last used by."""

    run: MeteredRun | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Add the run of the connection to each request."""
        self.app_state["set_run"] = self._set_run
        super().connection_made(transport)

    def _set_run(self, run: MeteredRun) -> None:
        self.run = run


def _token_prefix(token: str) -> str:
    return token[:24]


async def _send_unauthorized(send: Send) -> None:
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
