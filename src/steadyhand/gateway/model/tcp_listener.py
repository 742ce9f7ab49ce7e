"""The way to the model where agents are not sealed off: a port of loopback, and a token for each run.

The token lives as long as its run. An agent sends it where its credential would be, so that the credential itself is in
no agent's environment here either.
"""

import asyncio
import contextlib
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from steadyhand.errors import ConfigError
from steadyhand.gateway.model.error_response import Rejected, error_format_of_target, send_error
from steadyhand.gateway.model.metered_run import MeteredRun
from steadyhand.gateway.model.providers import GEMINI_KEY_HEADER, RUN_HEADER
from steadyhand.gateway.model.rehearsal import answer_rehearsal
from steadyhand.gateway.model.reverse_proxy import AgentConnection
from steadyhand.gateway.model.unix_listener import (
    CLOSING_SECONDS,
    EXPECTED_SECONDS,
    MAX_CONNECTIONS,
    HttpConnection,
    RejectedConnection,
    abort_connections,
    uvicorn_config,
)

HOST = "127.0.0.1"
_UNKNOWN_RUN = "This is no token of a run that is under way."
_AUTHORIZATION_HEADER = b"authorization"
_TOKEN_HEADERS = frozenset(
    {b"x-api-key", b"api-key", GEMINI_KEY_HEADER, RUN_HEADER.encode(), _AUTHORIZATION_HEADER}
)


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
        self._listener.note_served(self.token)
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

    def __init__(
        self,
        app: ASGIApp,
        slots: int,
        adopted: socket.socket | None = None,
        expected_tokens: Collection[str] = (),
    ) -> None:
        """Create it.

        `adopted` is the socket of an earlier service, on which its runs connect. They have the `expected_tokens`: their
        calls wait until the runs are served.
        """
        self._app = app
        self._adopted = adopted
        self._expected_tokens = set(expected_tokens)
        self._token_added = asyncio.Event()
        self._max_connections = slots * MAX_CONNECTIONS
        self._state = ServerState()
        self._holders: dict[str, TokenHolder] = {}
        """By the token's beginning, which only finds it: whose the token is."""
        self._config = uvicorn_config(self._authenticate)
        self.port = 0
        self._server: asyncio.Server | None = None
        self.descriptor = -1
        """The descriptor of the socket."""

    @property
    def address(self) -> str:
        """Return the address of the listener."""
        return f"http://{HOST}:{self.port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen on a free port for the length of the block. Raises `ConfigError` when it cannot."""
        sock = self._bind() if self._adopted is None else self._adopted
        self.port, self.descriptor = sock.getsockname()[1], sock.fileno()
        server = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=512)
        self._server = server
        try:
            yield
        finally:
            server.close()
            abort_connections(self._state)
            if self._state.tasks:
                await asyncio.wait(self._state.tasks, timeout=CLOSING_SECONDS)

    def _bind(self) -> socket.socket:
        # asyncio turns Nagle's delay off only for a socket that names its protocol.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.bind((HOST, 0))
        except OSError as error:
            sock.close()
            raise ConfigError(f"The gateway cannot listen on {HOST}: {error.strerror}.") from error
        return sock

    @contextmanager
    def serve_run(self, run: MeteredRun, token: str | None = None) -> Iterator[str]:
        """Accept a run for the length of the block and return its token. Its requests are aborted at the end.

        A run of an earlier service has a `token` already.
        """
        with self.hold(token) as holder, holder.serve_run(run):
            yield holder.token

    @contextmanager
    def hold(self, token: str | None = None) -> Iterator[TokenHolder]:
        """Create a token for the length of the block. It is worth something while a run is served with it."""
        token = token or f"sk-ant-run-{secrets.token_urlsafe(32)}"
        holder = self._holders[_token_prefix(token)] = TokenHolder(self, token)
        try:
            yield holder
        finally:
            del self._holders[_token_prefix(token)]

    def leave(self) -> None:
        """Accept no more connections. New ones wait for the next service, if somebody else holds the socket."""
        if self._server is not None:
            self._server.close()

    def note_served(self, token: str) -> None:
        """Let the calls go on that wait for a run with this token."""
        self._expected_tokens.discard(token)
        self._token_added.set()

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
        holder = await self._await_holder(scope)
        run = None if holder is None else holder.run
        state = scope["state"]
        if run is None:
            if holder is not None and holder.is_rehearsing:
                await answer_rehearsal(scope, receive, send)
            else:
                rejected = Rejected(401, "authentication_error", _UNKNOWN_RUN)
                await send_error(send, rejected, error_format_of_target(state["target"]))
            return
        state["connection"] = AgentConnection(run, state["abort"], state["on_close"])
        state["set_run"](run)
        await self._app(scope, receive, send)

    async def _await_holder(self, scope: Scope) -> TokenHolder | None:
        """Return the owner of a request's token. A run of an earlier service may have to be waited for."""
        if self._expected_tokens.isdisjoint(token.decode("latin-1") for token in _tokens_of(scope)):
            return self._holder_of(scope)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPECTED_SECONDS):
                while (holder := self._holder_of(scope)) is None or holder.run is None:
                    self._token_added.clear()
                    await self._token_added.wait()
        return self._holder_of(scope)

    def _holder_of(self, scope: Scope) -> TokenHolder | None:
        for token in _tokens_of(scope):
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


def _tokens_of(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        if name in _TOKEN_HEADERS:
            yield value.removeprefix(b"Bearer ") if name == _AUTHORIZATION_HEADER else value


def _token_prefix(token: str) -> str:
    return token[:24]
