"""An agent that leaves things behind: `unruly.py KIND DEAF ENDING`.

KIND is `plain`, `setsid`, `daemon` (forked twice) or `reforking`; DEAF is `deaf` or `mortal`; ENDING is `end` (leave
and exit 0) or `stay`. It says `ready` once its children run. Everything here ends by itself after 30 seconds.
"""

import os
import signal
import sys
import time

LIFETIME_SECONDS = 30.0


def stay_alive(*, ignore_signals: bool) -> None:
    if ignore_signals:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def keep_forking(until: float) -> None:
    # Each generation lives for a moment only, so that whoever looks for it finds its predecessor.
    while time.monotonic() < until:
        if os.fork() != 0:
            os._exit(0)
        time.sleep(0.0005)
    os._exit(0)


def spawn_leftover(kind: str, ready: int, *, deaf: bool) -> None:
    pid = os.fork()
    if pid != 0:
        if kind == "daemon":
            os.waitpid(pid, 0)
        return
    stay_alive(ignore_signals=deaf)
    if kind in ("setsid", "daemon"):
        os.setsid()
    if kind == "daemon" and os.fork() != 0:
        os._exit(0)
    os.write(ready, b"x")
    if kind == "reforking":
        keep_forking(time.monotonic() + LIFETIME_SECONDS)
    time.sleep(LIFETIME_SECONDS)
    os._exit(0)


def main() -> None:
    kind, deaf, ending = sys.argv[1], sys.argv[2] == "deaf", sys.argv[3]
    reader, writer = os.pipe()
    spawn_leftover(kind, writer, deaf=deaf)
    os.read(reader, 1)
    stay_alive(ignore_signals=deaf)
    os.write(1, b"ready\n")
    if ending == "stay":
        time.sleep(LIFETIME_SECONDS)


main()
