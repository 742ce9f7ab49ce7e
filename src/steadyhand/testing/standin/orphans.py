"""Processes that outlive the agent: a child, a setsid child, a double-forked daemon, one that forks again and again.

Each writes its pid as a line to a file and ends by itself when its lifetime is over, so that a test that fails to kill
them leaves nothing behind for long.
"""

from __future__ import annotations

import os
import signal
import time

KINDS = ("child", "setsid", "daemon", "refork")
REFORK_SECONDS = 30.0
_REFORK_PAUSE = 0.05


def spawn(kind: str, *, ignore_signals: bool, pids: str, lifetime: float) -> None:
    """Start one process of this kind and return when its pid has been written."""
    if kind not in KINDS:
        raise ValueError(f"the stand-in spawns {', '.join(KINDS)}, not {kind!r}")
    ready, pipe = os.pipe()
    if os.fork():
        os.close(pipe)
        os.read(ready, 1)
        os.close(ready)
        return
    os.close(ready)
    try:
        if kind in ("setsid", "daemon"):
            os.setsid()
        if kind == "daemon" and os.fork():
            os._exit(0)
        _stay_alive(kind, deaf=ignore_signals, pids=pids, lifetime=lifetime, told=pipe)
    finally:
        os._exit(1)  # after an error (no process left, a full disk) a copy of the agent would go on


def _stay_alive(kind: str, *, deaf: bool, pids: str, lifetime: float, told: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if deaf else signal.SIG_DFL)
    # The agent's stdin and stdout are let go, as a real daemon does; else their reader waits for the daemon.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    _append_pid(pids)
    os.write(told, b".")
    os.close(told)
    if kind == "refork":
        _refork(pids, min(lifetime, REFORK_SECONDS))
    time.sleep(lifetime)
    os._exit(0)


def _refork(pids: str, seconds: float) -> None:
    """Leave by way of a child every 50 ms, so that whoever kills by pid comes too late."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_REFORK_PAUSE)
        if os.fork():
            os._exit(0)
        _append_pid(pids)
    os._exit(0)


def _append_pid(pids: str) -> None:
    if pids:
        line = os.open(pids, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(line, b"%d\n" % os.getpid())
        os.close(line)
