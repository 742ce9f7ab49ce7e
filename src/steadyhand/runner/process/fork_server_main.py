"""The process that supervisors are forked from: a run then waits for no interpreter to start (13 ms, seen on 3.11).

Run by `fork_server.py` as `python -I -S -c LOADER FD`, after the code of `process_tree.py`, `spawn.py` and
`supervisor.py`, as one module with them; FD is a socket, and each message on it asks for one supervisor. With the
message come descriptors: the agent's stdin, stdout and stderr, the supervisor's channel, and what its run is given
besides. At the end of the socket (the service died) this ends; the supervisors notice that by themselves.

It has one thread and no work of its own: what is forked here has nothing of the service's in its memory.
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

    stage_parts: tuple[CodeType, ...] = ()
    """The code of `mounts.py` and `sandbox_child.py`, which the loader leaves here."""

_INT = 4
_MOST_DESCRIPTORS = 253  # the kernel's own limit for one message


def main() -> None:
    """Fork until the service is gone; in each child, supervise one run."""
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)  # the service alone says when this ends
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # the kernel takes away what has ended
    door = int(sys.argv[1])
    os.closerange(
        door + 1, os.sysconf("SC_OPEN_MAX")
    )  # what the service left open for its children is not for ours
    surroundings = _stage()
    given = _await_birth(_socket.socket(fileno=door))
    if given is not None:
        supervise(given[0], given[1:], surroundings)


def _stage() -> Any:
    """Give `stage.Stage`, whose module has names of its own."""
    space: dict[str, Any] = {"__name__": "stage"}
    for part in stage_parts:
        exec(part, space)  # noqa: S102  # from the service that started us, as is our own code
    return space["Stage"]


def _await_birth(door: _socket.socket) -> list[int] | None:
    """Return in each new child, with its channel and what comes with that; None when the service is gone."""
    space = _socket.CMSG_SPACE(_MOST_DESCRIPTORS * _INT)
    while True:
        said, messages, _, _ = door.recvmsg(16, space, _socket.MSG_CMSG_CLOEXEC)
        given = [descriptor for message in messages for descriptor in _descriptors(message[2])]
        if not said:
            return None
        try:
            born = os.fork() == 0
        except OSError:
            born = False  # its channel closes: the service sees that nobody is there
        if born:
            door.close()
            _take_streams(given[:3])
            return given[3:]
        for descriptor in given:
            os.close(descriptor)


def _descriptors(data: bytes) -> list[int]:
    return [
        int.from_bytes(data[at : at + _INT], sys.byteorder) for at in range(0, len(data) - _INT + 1, _INT)
    ]


def _take_streams(streams: list[int]) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)


if __name__ == "__main__":
    main()
    os._exit(0)  # there is nothing to tidy, and somebody waits
