"""The fork server: supervisors are forked from it, so no run waits for an interpreter to start (13 ms on 3.11).

Run by `fork_server.py` as `python -I -S -c LOADER FD`, after the code of `process_tree.py`, `spawn.py`,
`held_run.py` and `supervisor.py`, as one module with them; FD is a socket, and each message on it requests one
supervisor. The message carries descriptors: the agent's stdin, stdout and stderr, the supervisor's channel, and those
that the sandbox and a held run need. When the socket closes (the service died) this process ends; the supervisors
notice that by themselves.

It has one thread and no other work, so a forked supervisor has no memory of the service.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums
import _socket
import os
import sys

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

    from steadyhand.runner.process.supervisor import supervise

    sandbox_code: tuple[CodeType, ...] = ()
    """The code of `mounts.py` and `sandbox_child.py`, set by the loader."""

_INT_BYTES = 4
_MAX_DESCRIPTORS = 253  # the kernel's own limit for one message


def main() -> None:
    """Fork supervisors until the service is gone; in each child, supervise one run."""
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)  # only the service ends this process
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel reaps children
    request_fd = int(sys.argv[1])
    os.closerange(
        request_fd + 1, os.sysconf("SC_OPEN_MAX")
    )  # descriptors that the service left open for its own children
    sandbox_runtime = _load_sandbox_runtime()
    descriptors = _fork_on_request(_socket.socket(fileno=request_fd))
    if descriptors is not None:
        supervise(descriptors[0], descriptors[1:], sandbox_runtime)


def _load_sandbox_runtime() -> Any:
    """Return `SandboxRuntime`, loaded into a namespace of its own."""
    namespace: dict[str, Any] = {"__name__": "sandbox_child"}
    for part in sandbox_code:
        exec(part, namespace)  # noqa: S102  # from the service that started us, as is our own code
    return namespace["SandboxRuntime"]


def _fork_on_request(request_socket: _socket.socket) -> list[int] | None:
    """Return in each new child with its channel and the other descriptors; return None when the service is gone."""
    ancillary_bytes = _socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT_BYTES)
    while True:
        data, messages, _, _ = request_socket.recvmsg(16, ancillary_bytes, _socket.MSG_CMSG_CLOEXEC)
        descriptors = [descriptor for message in messages for descriptor in _unpack_descriptors(message[2])]
        if not data:
            return None
        try:
            is_child = os.fork() == 0
        except OSError:
            is_child = False  # its channel closes, and the service notices
        if is_child:
            request_socket.close()
            _install_streams(descriptors[:3])
            return descriptors[3:]
        for descriptor in descriptors:
            os.close(descriptor)


def _unpack_descriptors(data: bytes) -> list[int]:
    return [
        int.from_bytes(data[at : at + _INT_BYTES], sys.byteorder)
        for at in range(0, len(data) - _INT_BYTES + 1, _INT_BYTES)
    ]


def _install_streams(streams: list[int]) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)


if __name__ == "__main__":
    main()
    os._exit(0)  # nothing needs cleanup, and the service waits
