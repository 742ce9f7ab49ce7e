"""The descendants of a process: list them, and kill them until none is left.

This file runs inside the supervisor before its own code (`supervisor.py`), whose rules on imports hold here, too. The
service itself also uses it to list descendants.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums
import os
import select

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_POLL_MS = 5  # between two rounds; the death of a child ends the wait
_BUSY_ROUNDS = 50  # rounds without a pause, for processes that fork fast


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def reap_children(main_pid: int) -> int | None:
    """Reap every child that has died; return the wait status of `main_pid` if it was among them, else None."""
    main_status = None
    while True:
        try:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return main_status
        if pid == 0:
            return main_status
        if pid == main_pid:
            main_status = wait_status


def kill_all(cgroup: str | None, sigchld_fd: int) -> None:
    """Kill every descendant and every process in the group until none is left.

    `sigchld_fd` becomes readable when a child dies.
    """
    poll = select.poll()
    poll.register(sigchld_fd, select.POLLIN)
    rounds = 0
    while True:
        if cgroup is not None:
            _kill_cgroup(cgroup)
        drain_pipe(sigchld_fd)
        reap_children(0)
        try:
            # WNOWAIT reaps nothing; the call only fails if there is no child at all.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            break
        _kill_descendants()
        rounds += 1
        if rounds > _BUSY_ROUNDS:
            poll.poll(_POLL_MS)
    if cgroup is not None:
        remove_cgroup(cgroup)


def _kill_descendants() -> None:
    """Kill every descendant that is visible, and each direct child at the moment it is listed.

    An orphan becomes our child, so a process that forks and ends repeatedly always is one. Killing the newest first and
    at once catches it.
    """
    own_pid = os.getpid()
    children: dict[int, list[int]] = {}
    for pid, parent in parents():
        if parent == own_pid:
            send_signal(pid, _signal.SIGKILL)
        children.setdefault(parent, []).append(pid)
    for pid in _descendants_of(own_pid, children):
        send_signal(pid, _signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Return the pid of every process below `root`."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents():
        children.setdefault(parent, []).append(pid)
    return _descendants_of(root, children)


def _descendants_of(root: int, children: dict[int, list[int]]) -> list[int]:
    pids: list[int] = []
    rest = list(children.get(root, ()))
    while rest:
        pid = rest.pop()
        pids.append(pid)
        rest.extend(children.get(pid, ()))
    return pids


def parents(only: Iterable[int] | None = None) -> Iterator[tuple[int, int]]:
    """Return (pid, parent) of every process, newest first; not every kernel has `/proc/PID/children`.

    With `only`, look at those processes alone.
    """
    if only is None:
        only = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # pathlib is large
    for pid in sorted(only, reverse=True):
        try:
            descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        except OSError:
            continue
        try:
            fields = os.read(descriptor, 1024)
        except OSError:
            continue  # it died in between
        finally:
            os.close(descriptor)
        yield pid, int(fields[fields.rindex(b")") + 2 :].split()[1])


def _kill_cgroup(group: str) -> None:
    try:
        descriptor = os.open(f"{group}/cgroup.kill", os.O_WRONLY)
        os.write(descriptor, b"1")
        os.close(descriptor)
    except OSError:
        return  # the walk alone must kill them


def remove_cgroup(group: str) -> None:
    """Remove an empty control group."""
    try:
        os.rmdir(group)  # noqa: PTH106  # pathlib is large
    except OSError:
        return  # an empty group left behind holds nothing


def drain_pipe(descriptor: int) -> None:
    """Read and discard the available data."""
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        return
