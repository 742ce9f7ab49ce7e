"""The service's side of the process that supervisors are forked from (`fork_server_main.py`).

It is started once and asked for each run.

It is asked by one message on a socket and says nothing itself: a supervisor says on its own channel that it is there.
It ends with the service, at the end of that socket, and when somebody kills it the next run starts another; runs under
way do not need it.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from steadyhand.errors import SpawnError
from steadyhand.runner.process import (
    fork_server_main,
    mounts,
    process_tree,
    sandbox_child,
    spawn,
    supervisor,
)

SUPERVISOR_MODULES = (process_tree, spawn, supervisor, fork_server_main)
"""The modules that the supervisor runs in one namespace, in this order: a name at their top level is in one only."""
SANDBOX_MODULES = (mounts, sandbox_child)
"""The modules that it runs in a second namespace."""
_FORK_SECONDS = 5.0
_PAUSE_SECONDS = 0.002
_REQUEST_FD = 3  # the number of the socket over there
_LOADER = """
import marshal, sys
module, sandbox_code = marshal.load(sys.stdin.buffer)
for part in module:
    exec(part)
"""


@dataclass(frozen=True, slots=True)
class _ForkServer:
    """One that was started, by the process `owner`."""

    pid: int
    request_socket: socket.socket
    owner: int

    @classmethod
    def start(cls) -> "_ForkServer":
        """Start one. Raises `OSError`."""
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
        except BaseException:
            service_end.close()
            raise
        finally:
            server_end.close()
            os.close(program)
        service_end.setblocking(False)
        return cls(pid, service_end, os.getpid())

    def close(self) -> None:
        """Let go of it; what it forked goes on. It is killed, since one that hangs would not notice."""
        self.request_socket.close()
        if self.owner == os.getpid():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


_servers: list[_ForkServer] = []
"""The one that is there, if any; it stays for the life of the process."""


async def fork_supervisor(descriptors: Sequence[int]) -> int:
    """Ask for a supervisor, which gets copies of the descriptors: three streams, its channel, and others.

    Gives the pid of the one that was asked, for `replace`. Raises `SpawnError` when none can be had.
    """
    try:
        async with asyncio.timeout(_FORK_SECONDS):
            while (server_pid := _request_fork(descriptors)) is None:  # noqa: ASYNC110  # it is a hundred runs behind
                await asyncio.sleep(_PAUSE_SECONDS)
            return server_pid
    except TimeoutError as error:
        discard()
        raise SpawnError("The supervisor could not be started in time.") from error
    except OSError as error:
        raise SpawnError(f"The supervisor could not be started: {error.strerror}.") from error


def discard(pid: int | None = None) -> None:
    """Let go of the one that is there, which did not do as asked: the next run starts another.

    With a `pid` only of that one: of several runs that waited for it, the first has replaced it, and the others' runs
    may come from the new one by now.
    """
    while _servers and pid in (None, _servers[0].pid):
        _servers.pop().close()


def _request_fork(descriptors: Sequence[int]) -> int | None:
    """Send one message and give whom it was for; null when there is no room yet, or nobody to take it any more."""
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
        discard()  # a copy of another process's: that one's runs are not to share a parent with ours
    if not _servers:
        _servers.append(_ForkServer.start())
    return _servers[0]


@functools.cache
def _supervisor_code() -> bytes:
    """Give the code of both sides of a run over there, compiled once."""
    return marshal.dumps((_compile(*SUPERVISOR_MODULES), _compile(*SANDBOX_MODULES)))


def _compile(*modules: ModuleType) -> tuple[CodeType, ...]:
    paths = [Path(str(module.__file__)) for module in modules]
    return tuple(compile(path.read_bytes(), str(path), "exec", dont_inherit=True) for path in paths)
