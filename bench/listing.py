"""A client in a process of its own: reads the same paths again and again, by several callers at once.

`python -m bench.listing` reads one JSON object and prints one: the milliseconds of each answer, by path, and those of
the path that one more caller reads beside them.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import defaultdict
from typing import Any

_PAUSE_SECONDS = 0.02
_TIMEOUT_SECONDS = 60


class Caller:
    """One connection that is kept open."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
        self._headers = {"authorization": f"Bearer {key}"}

    def milliseconds(self, path: str) -> float:
        """Read a path; gives how long the whole answer took."""
        began = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        taken = 1000 * (time.perf_counter() - began)
        if answer.status != 200:
            raise SystemExit(f"GET {path}: {answer.status} {body[:200]!r}")
        return taken


def main() -> None:
    """Read, and print the figures."""
    asked: dict[str, Any] = json.load(sys.stdin)
    where = (asked["host"], asked["port"], asked["key"])
    taken: dict[str, list[float]] = defaultdict(list)
    beside: list[float] = []
    over = threading.Event()

    def read(number: int) -> None:
        caller = Caller(*where)
        paths = asked["paths"]
        for at in range(asked["rounds"] * len(paths)):
            path = paths[(at + number * 7) % len(paths)]
            taken[path].append(caller.milliseconds(path))

    def look() -> None:
        caller = Caller(*where)
        while not over.is_set():
            beside.append(caller.milliseconds(asked["beside"]))
            over.wait(_PAUSE_SECONDS)

    callers = [threading.Thread(target=read, args=(number,)) for number in range(asked["callers"])]
    looker = threading.Thread(target=look) if asked["beside"] else None
    for thread in (*callers, *([looker] if looker else ())):
        thread.start()
    for thread in callers:
        thread.join()
    over.set()
    if looker:
        looker.join()
    if any(len(figures) != asked["rounds"] * asked["callers"] for figures in taken.values()):
        raise SystemExit("a caller failed")
    print(json.dumps({"taken": taken, "beside": beside}))


if __name__ == "__main__":
    main()
