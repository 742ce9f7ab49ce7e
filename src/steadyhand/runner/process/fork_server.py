"""The service's side of the fork server: the process that supervisors are forked from (`fork_server_main.py`).

It is started once. For each run the service sends it one message on a socket. It sends no reply: the new supervisor
announces itself on its own channel. The fork server ends with the service, when the socket closes. If it is killed, the
next run starts a new one; active runs do not need it.
"""

import asyncio
import contextlib
import errno
import functools
import marshal
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from steadyhand.errors import SpawnError
from steadyhand.runner.process import (
    cgroups,
    fork_server_main,
    held_run,
    mounts,
    process_tree,
    sandbox_child,
    spawn,
    supervisor,
)

SUPERVISOR_MODULES = (process_tree, spawn, held_run, supervisor, fork_server_main)
"""The modules that the supervisor runs in one namespace, in this order: a name at their top level is in one only."""
SANDBOX_MODULES = (mounts, sandbox_child)
"""The modules that it runs in a second namespace."""
_FORK_SECONDS = 5.0
_PAUSE_SECONDS = 0.002
_REAP_SECONDS = 0.1
_REQUEST_FD = 3  # the descriptor of the socket in the fork server
_LOADER = """
import marshal, sys
module, sandbox_code = marshal.load(sys.stdin.buffer)
for part in module:
    exec(part)
"""


@dataclass(frozen=True, slots=True)
class _ForkServer:
    """A running fork server, started by the process with the pid `owner`."""

    pid: int
    request_socket: socket.socket
    owner: int

    @classmethod
    def start(cls) -> "_ForkServer":
        """Start a fork server. Raises `OSError`."""
        service_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = os.memfd_create("supervisor")
        try:
            with os.fdopen(os.dup(program), "wb") as file:
                file.write(_supervisor_code())
            os.lseek(program, 0, os.SEEK_SET)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _LOADER, str(_REQUEST_FD)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, program, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, server_end.fileno(), _REQUEST_FD),
                ],
                setsid=True,
            )
        except BaseException:  # nobody else has this end yet, and no descriptor may stay open
            service_end.close()
            raise
        finally:
            server_end.close()
            os.close(program)
        service_end.setblocking(False)
        return cls(pid, service_end, os.getpid())

    def close(self) -> None:
        """Close the socket and kill the process, which may hang. The supervisors that it forked continue."""
        self.request_socket.close()
        if self.owner == os.getpid():
            cgroups.leave_freezer(self.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _unreaped.append(self.pid)
            _reap_killed(_REAP_SECONDS)


_unreaped: list[int] = []
"""Fork servers that were killed. One that hangs in the kernel is reaped later: no call waits for it."""


def _reap_killed(seconds: float = 0.0) -> None:
    """Reap the fork servers that were killed. Block for at most `seconds`."""
    until = time.monotonic() + seconds
    while _unreaped:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(_unreaped[-1], os.WNOHANG)[0] == 0:
                if time.monotonic() > until:
                    return
                time.sleep(_PAUSE_SECONDS)
                continue
        _unreaped.pop()


_servers: list[_ForkServer] = []
"""The current fork server, if any; it is kept for the life of the process."""


async def fork_supervisor(descriptors: Sequence[int]) -> int:
    """Request a supervisor with copies of the descriptors: three streams, its channel, and others.

    Return the pid of the fork server that got the request, for `discard`. Raises `SpawnError` if it fails.
    """
    try:
        async with asyncio.timeout(_FORK_SECONDS):
            while (server_pid := _request_fork(descriptors)) is None:  # noqa: ASYNC110  # its queue is full, a hundred runs long
                await asyncio.sleep(_PAUSE_SECONDS)
            return server_pid
    except TimeoutError as error:
        discard()
        raise SpawnError("The supervisor could not be started in time.") from error
    except OSError as error:
        raise SpawnError(f"The supervisor could not be started: {error.strerror}.") from error


def discard(pid: int | None = None) -> None:
    """Close the current fork server, which failed, so that the next run starts a new one.

    With a `pid`, close it only if it has that pid: if several runs waited for it, the first has replaced it already.
    """
    while _servers and pid in (None, _servers[0].pid):
        _servers.pop().close()


def _request_fork(descriptors: Sequence[int]) -> int | None:
    """Send one request and return the fork server's pid; None if its queue is full or it was killed."""
    server = _current_server()
    try:
        socket.send_fds(server.request_socket, [b"fork"], list(descriptors))
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in {errno.EPIPE, errno.ECONNRESET}:
            raise
        discard(server.pid)  # it was killed
        return None
    return server.pid


def _current_server() -> _ForkServer:
    if _servers and _servers[0].owner != os.getpid():
        discard()  # inherited by a fork: two services must not share a fork server
    _reap_killed()
    if not _servers:
        _servers.append(_ForkServer.start())
    return _servers[0]


@functools.cache
def _supervisor_code() -> bytes:
    """Return the marshalled code of both namespaces, compiled once."""
    return marshal.dumps((_compile(*SUPERVISOR_MODULES), _compile(*SANDBOX_MODULES)))


def _compile(*modules: ModuleType) -> tuple[CodeType, ...]:
    paths = [Path(str(module.__file__)) for module in modules]
    return tuple(compile(path.read_bytes(), str(path), "exec", dont_inherit=True) for path in paths)
