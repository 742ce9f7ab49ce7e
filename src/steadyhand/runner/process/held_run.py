"""The supervisor's part of a run that may outlive its service.

This file runs inside the supervisor before its own code (`supervisor.py`), whose rules on imports hold here, too.

The supervisor has copies of the service's ends of the agent's pipes, so the agent notices nothing when the service
dies. From then on it moves the agent's output to the same files (the spool) to which the service moved it before, and
listens on a socket. A service that sends the secret of the run there receives all descriptors, and takes its place. If
none comes in time, the run is ended. Once the agent has ended, the rest of its output and its end are written to files:
a later service needs no supervisor for them.

The spec has `first` (the index of the first descriptor: the service's ends of stdin, stdout and stderr, the files of
stdout and stderr, the socket, the file for the end, and the gateway's listening socket if there is one), `seconds`,
`secret` and `limit` (the bytes of a file, at which the output is read no more). The service sends `{"keep": bool}`:
only between a true and a false one is the run held. `{"close_input": True}` closes the copy of stdin.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums
import _socket
import marshal
import os
import select
import sys
import time
from _operator import _compare_digest

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from steadyhand.runner.process.process_tree import descendants, drain_pipe, reap_children, send_signal
    from steadyhand.runner.process.spawn import SpawnedAgent
    from steadyhand.runner.process.supervisor import kill_main, signal_target

_SPLICE_BYTES = 1 << 20
_SECRET_MS = 1000
"""Milliseconds in which a service that connects has to send the secret."""
_TERM_MS = 500
_SO_PEERCRED = 17
_BACKLOG_LENGTH = 4


class HeldRun:
    """The descriptors of a run that may outlive its service, and the wait for the next one."""

    def __init__(self, spec: dict[str, Any], descriptors: list[int]) -> None:
        self._input, stdout, stderr, stdout_file, stderr_file, self._socket, self._exit_file, *gateway = (
            descriptors
        )
        self._files = {stdout: stdout_file, stderr: stderr_file}
        self._gateway_listener = gateway
        self._spec = spec
        self._input_open = True
        self._is_kept = False
        self._is_expired = False
        self.sandbox_listeners: list[int] = []
        """The sockets that listen in the network of a sandbox."""
        self.state: dict[str, Any] = {}
        """The message about the run's start, for the next service."""

    @property
    def descriptors(self) -> list[int]:
        """Return all descriptors: no other process may keep them open."""
        own = [self._input, *self._files, *self._files.values(), self._socket, self._exit_file]
        return [*own, *self._gateway_listener, *self.sandbox_listeners]

    @property
    def is_kept(self) -> bool:
        """True if the run goes on when the service dies."""
        return self._is_kept

    def handle(self, request: dict[str, Any]) -> bool:
        """Handle a request about holding the run; return False for any other."""
        if "keep" in request:
            self._is_kept = request["keep"]
            return True
        if "close_input" in request:
            if self._input_open:
                # The number stays taken, so that it never means another file.
                null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null_fd, self._input, inheritable=False)
                os.close(null_fd)
            self._input_open = False
            return True
        return False

    # --- without a service ---------------------------------------------------------------------------

    def await_service(self, run: SpawnedAgent, channel: int, sigchld_fd: int) -> int | None:
        """Wait for the next service, which takes the place of the last one on `channel`; then return None.

        Return the agent's wait status if it has ended, by itself or because the time is over.
        """
        listener = _socket.socket(fileno=os.dup(self._socket))
        listener.setblocking(False)
        listener.listen(_BACKLOG_LENGTH)  # again each time: a service that connects sees by it who listens
        poll = select.poll()
        for descriptor in (listener.fileno(), sigchld_fd, *self._files):
            poll.register(descriptor, select.POLLIN)
        until = time.monotonic() + self._spec["seconds"]
        memory_ms = None if run.sandbox is None else run.sandbox.memory_poll_ms
        try:
            while (left := until - time.monotonic()) > 0:
                ready = poll.poll(left * 1000 if memory_ms is None else min(left * 1000, memory_ms))
                if (
                    not ready
                    and memory_ms is not None
                    and run.sandbox.exceeds_memory(descendants(os.getpid()))
                ):
                    return kill_main(run)
                for descriptor, _ in ready:
                    if descriptor == sigchld_fd:
                        drain_pipe(sigchld_fd)
                        wait_status = reap_children(run.pid)
                        if wait_status is not None:
                            return wait_status
                    elif descriptor != listener.fileno():
                        if not self._spool(descriptor, self._spec["limit"]):
                            poll.unregister(descriptor)  # at its end, or the agent has to wait
                    elif self._hand_over(listener, channel):
                        return None
        finally:
            listener.close()
        self._is_expired = True
        return self._stop(run, sigchld_fd)

    def _stop(self, run: SpawnedAgent, sigchld_fd: int) -> int:
        """End the agent by the steps by which a service ends it; return its wait status."""
        send_signal(signal_target(run), _signal.SIGTERM)
        until = time.monotonic() + _TERM_MS / 1000
        poll = select.poll()
        poll.register(sigchld_fd, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            poll.poll(left * 1000)
            drain_pipe(sigchld_fd)
            wait_status = reap_children(run.pid)
            if wait_status is not None:
                return wait_status
        return kill_main(run)

    def _spool(self, pipe: int, limit: int | None) -> bool:
        """Move output to its file; return False at its end, at the limit, or if the file cannot be written."""
        file = self._files[pipe]
        size = os.fstat(file).st_size
        if limit is not None and size >= limit:
            return False
        try:
            return os.splice(pipe, file, _SPLICE_BYTES, offset_dst=size) > 0
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _hand_over(self, listener: _socket.socket, channel: int) -> bool:
        """Accept a connection, and if it proves itself, send it everything and make it the channel."""
        try:
            connection = _socket.socket(fileno=listener._accept()[0])  # type: ignore[attr-defined]  # noqa: SLF001  # `socket` is large
        except OSError:
            return False
        try:
            if not self._is_from_service(connection):
                return False
            sockets = [*self._gateway_listener, *self.sandbox_listeners]
            descriptors = [self._input, *self._files, *sockets]
            frame = marshal.dumps(
                {
                    **self.state,
                    "here": os.getpid(),
                    "input_open": self._input_open,
                    "gateway": len(self._gateway_listener),
                }
            )
            numbers = b"".join(each.to_bytes(4, sys.byteorder) for each in descriptors)
            data = len(frame).to_bytes(4, "little") + frame
            connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
            connection.setblocking(True)
            os.dup2(connection.fileno(), channel, inheritable=False)
        except OSError:
            return False
        else:
            return True
        finally:
            connection.close()

    def _is_from_service(self, connection: _socket.socket) -> bool:
        """Return True if a connection is of the service's user and sends the secret in time."""
        credentials = connection.getsockopt(_socket.SOL_SOCKET, _SO_PEERCRED, 12)
        if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
            return False
        connection.setblocking(False)
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(_SECRET_MS):
            return False
        return bool(_compare_digest(os.read(connection.fileno(), 256), self._spec["secret"]))

    # --- after the agent -----------------------------------------------------------------------------

    def finish(self, channel: int, ended: dict[str, Any]) -> None:
        """Wait until the service has read everything or has died; store the rest of the output and the end."""
        try:
            while os.read(channel, 4096):
                pass
        except OSError:
            pass
        if not self._is_kept or self._is_expired:
            return
        for pipe in self._files:
            while self._spool(pipe, None):
                if select.select([pipe], [], [], 0) == ([], [], []):
                    break  # somebody else holds the pipe, and writes nothing
        os.write(self._exit_file, marshal.dumps(ended))
