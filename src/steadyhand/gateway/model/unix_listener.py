"""The model sockets, one for each slot: the socket of a request identifies its run.

`<data-dir>/run/slot-N/model.sock` belongs to the user of the run that holds the slot, and to the service in between.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from steadyhand.errors import ConfigError, RunError
from steadyhand.gateway.model.error_response import Rejected, send_error
from steadyhand.gateway.model.metered_run import MeteredRun
from steadyhand.gateway.model.rehearsal import answer_rehearsal
from steadyhand.gateway.model.reverse_proxy import MAX_HEAD_BYTES, AgentConnection, CancelOnClose

SOCKET_NAME = "model.sock"
MAX_CONNECTIONS = 64
_KEEP_ALIVE_SECONDS = 120
CLOSING_SECONDS = 5
EXPECTED_SECONDS = 30.0
"""Seconds for which a call of an earlier service's run waits for that run to be taken up."""


def slot_dir(data_dir: Path, slot: int) -> Path:
    """Return the directory that is bound into the sandbox of the run in a slot."""
    return data_dir / "run" / f"slot-{slot}"


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """Return the configuration for uvicorn's protocol."""
    config = uvicorn.Config(
        app,
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    config.load()
    return config


class UnixListener:
    """One slot's socket. Connections are taken only while a run holds the slot, and end with it."""

    def __init__(self, folder: Path, app: ASGIApp, adopted: socket.socket | None = None) -> None:
        """Create it. `adopted` is the socket of an earlier service in the folder, on which its run connects."""
        self._folder = folder
        self._adopted = adopted
        self._server: asyncio.Server | None = None
        self._is_left = False
        self.descriptor = -1
        """The descriptor of the socket."""
        self._state = ServerState()
        self._run: MeteredRun | None = None
        self._config = uvicorn_config(app)
        self._is_held = False
        self._run_opened = asyncio.Event()
        self._awaiting_config = uvicorn_config(self._forward_later) if adopted is not None else None
        self._app = app
        self._rehearsal_config: uvicorn.Config | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Create the socket anew and accept on it for the length of the block. Raises `ConfigError`."""
        sock = self._bind() if self._adopted is None else self._adopted
        self.descriptor = sock.fileno()
        server = await asyncio.get_running_loop().create_unix_server(self._accept, sock=sock)
        self._server = server
        try:
            yield
        finally:
            server.close()
            self._abort_connections()
            if self._state.tasks:
                await asyncio.wait(self._state.tasks, timeout=CLOSING_SECONDS)
            if not self._is_left:
                with contextlib.suppress(OSError):
                    (self._folder / SOCKET_NAME).unlink()

    @contextmanager
    def serve_run(self, run: MeteredRun, user: int | None) -> Iterator[None]:
        """Let the run of this user in for the length of the block. Raises `RunError` when the slot is taken."""
        if self._run is not None:
            raise RunError("The slot's way to the model is taken by another run.", code="slot_taken")
        self._run = run
        self._awaiting_config = None
        self._run_opened.set()
        if not self._is_held:
            self._set_owner(user)
        try:
            yield
        finally:
            self._run = None
            self._abort_connections()
            if not self._is_held:
                self._set_owner(None)

    async def serve_port(self, listener: socket.socket) -> None:
        """Serve the run in the slot on a socket that listens in its own network, too, until cancelled."""
        server = await asyncio.get_running_loop().create_server(self._accept, sock=listener)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    @contextmanager
    def hold(self, user: int | None) -> Iterator["SocketHolder"]:
        """Keep the socket for a process of this user that waits for jobs. Between its runs no connection is taken."""
        self._is_held = True
        self._set_owner(user)
        try:
            yield SocketHolder(self)
        finally:
            self._is_held = False
            self._abort_connections()
            self._set_owner(None)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Answer the calls of a waiting process here for the length of the block; none goes to a provider."""
        self._rehearsal_config = uvicorn_config(answer_rehearsal)
        try:
            yield
        finally:
            self._rehearsal_config = None
            self._abort_connections()

    def _set_owner(self, user: int | None) -> None:
        if os.geteuid() == 0 and not self._is_left:
            owner = 0 if user is None else user
            os.chown(self._folder / SOCKET_NAME, owner, owner, follow_symlinks=False)

    def _bind(self) -> socket.socket:
        """Bind the socket by a descriptor of its folder: the kernel takes 107 bytes of path, and ours may be longer."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(exist_ok=True)
                folder.chmod(0o711)
            (self._folder / SOCKET_NAME).unlink(missing_ok=True)
            dir_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.bind(f"/proc/self/fd/{dir_fd}/{SOCKET_NAME}")
            finally:
                os.close(dir_fd)
            (self._folder / SOCKET_NAME).chmod(0o600)  # before it listens: until then nobody can connect
        except OSError as error:
            sock.close()
            raise ConfigError(
                f"The gateway's socket in {self._folder} cannot be made: {error.strerror}."
            ) from error
        return sock

    def _accept(self) -> asyncio.Protocol:
        run = self._run
        if len(self._state.connections) >= MAX_CONNECTIONS:
            return RejectedConnection()
        if run is None and self._awaiting_config is not None:
            return HttpConnection(
                self._awaiting_config,
                self._state,
                lambda abort, on_close: {"abort": abort, "on_close": on_close},
            )
        if run is None:
            if self._rehearsal_config is None:
                return RejectedConnection()
            return HttpConnection(self._rehearsal_config, self._state, lambda _abort, _on_close: {})
        return HttpConnection(
            self._config,
            self._state,
            lambda abort, on_close: {"connection": AgentConnection(run, abort, on_close)},
        )

    def leave(self) -> None:
        """Accept no more connections, and leave the socket to the run in the slot and the next service."""
        self._is_left = True
        if self._server is not None:
            self._server.close()

    async def _forward_later(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request of an earlier service's run once that run is taken up; reject it if that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPECTED_SECONDS):
                await self._run_opened.wait()
        run, state = self._run, scope["state"]
        if run is None:
            await send_error(send, Rejected(503, "api_error", "The run was not taken up."))
            return
        state["connection"] = AgentConnection(run, state["abort"], state["on_close"])
        await self._app(scope, receive, send)

    def _abort_connections(self) -> None:
        abort_connections(self._state)


class SocketHolder:
    """A process that waits for its next run on a socket of its own."""

    def __init__(self, listener: UnixListener) -> None:
        self._listener = listener

    def serve_run(self, run: MeteredRun) -> AbstractContextManager[None]:
        """Let a run in for the length of the block."""
        return self._listener.serve_run(run, None)

    def rehearsing(self) -> AbstractContextManager[None]:
        """Answer the calls of the process here for the length of the block."""
        return self._listener.rehearsing()


def abort_connections(state: ServerState) -> None:
    """Abort every connection and cancel its work."""
    for connection in list(state.connections):
        connection.transport.abort()
    for task in list(state.tasks):
        task.cancel()


class RejectedConnection(asyncio.Protocol):
    """A connection at a time when no run may connect."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class HttpConnection(HttpToolsProtocol):
    """uvicorn's protocol with the connection's run, a bound on request heads, and no log of agents' requests.

    It uses the parser in C: with the other one, a flood of tiny headers or chunks would block the whole service.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        initial_state: Callable[[Callable[[], None], CancelOnClose], dict[str, Any]],
    ) -> None:
        """Create a protocol; the factory makes each request's initial `state` from its abort and close callbacks."""
        self._on_close = CancelOnClose()
        super().__init__(config, state, initial_state(self._abort, self._on_close))
        self._framing_bytes = 0
        # What an agent does to its own socket is no news for the service's log, and it could do it without end.
        self.logger = logging.getLogger("steadyhand.gateway.http")
        self.logger.disabled = True
        self.access_log = False

    def data_received(self, data: bytes) -> None:
        """Read on, unless it has been nothing but heads and framing for too long."""
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the work at once: no client is left to receive a response."""
        super().connection_lost(exc)
        self._on_close()

    def on_headers_complete(self) -> None:
        """Store the target as it was written, so that the checks see the sent form and not a parsed one."""
        state = self.scope["state"]
        state["target"] = self.url
        state["write_body"] = partial(self._write_body, self.scope)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request; the size of the next head is counted from zero."""
        self._framing_bytes = 0
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body."""
        self._framing_bytes = 0
        super().on_body(body)

    def _write_body(self, scope: object, data: bytes) -> bool:
        """Write a part of a response's body at once; return False if it cannot be, or if the agent reads slowly."""
        cycle = self.cycle
        is_open = cycle.chunked_encoding and not cycle.response_complete and not cycle.disconnected
        if not is_open or cycle.scope is not scope or self.flow.write_paused:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _abort(self) -> None:
        self.transport.abort()
