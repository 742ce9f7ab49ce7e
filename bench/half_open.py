"""How long `/health` takes while 1,500 connections begin a request and never end it, and when each is closed."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.rows import Row, percentile
from bench.worlds import Broken, made_in
from steadyhand.serve.connection_table import ConnectionLimits
from steadyhand.testing.cli import SYSTEM_PATH, install_standin
from steadyhand.testing.service import Service

CONNECTIONS = 1_500
SECONDS = 60.0
_PAUSE_SECONDS = 0.02
_REOPEN_SECONDS = 1.0
_LATE_SECONDS = 3.0
"""How much later than its deadline a connection may be closed: deadlines are checked twice a second."""
_HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: "


def measure(world: Path, pairs: int) -> Row:
    """Measure the p99 of `/health`, each time on a connection of its own, during the attack."""
    root = made_in(world, "half-open")
    agent = install_standin(root / "agent")
    figures: list[float] = []
    notes: list[str] = []
    with Service(root, agent) as service:
        for _ in range(pairs):
            with _attack(service.url) as attack:
                looks = list(_looks(service, attack))
                report = json.loads(attack.communicate(timeout=SECONDS)[0] or "{}")
            if attack.returncode or not report or report["most"] < CONNECTIONS // 2:
                raise Broken(f"the attack came to {report}")
            bound = ConnectionLimits().head_seconds + _LATE_SECONDS
            if report["longest"] > bound:
                raise Broken(
                    f"a connection was open for {report['longest']:.1f} s, its bound is {bound:.0f} s"
                )
            figures.append(percentile(looks, 0.99))
            notes.append(
                f"{len(looks)} looks: p50 {percentile(looks, 0.5):.1f}, longest {max(looks):.1f} ms; "
                f"{report['opened']} connections, {report['most']} at once, "
                f"each closed after at most {report['longest']:.1f} s"
            )
    what = f"p99 of `GET /health` during {CONNECTIONS:,} half-open connections for {SECONDS:.0f} s; beside nothing"
    return Row("half-open", what, "ms", figures, [0.0] * pairs, "at most", 250.0, notes, by="added")


def _looks(service: Service, attack: subprocess.Popen[str]) -> Iterator[float]:
    end = time.monotonic() + 3 * SECONDS
    while attack.poll() is None:
        if time.monotonic() > end:
            raise Broken("the attack did not end")
        began = time.monotonic_ns()
        with service.new_client(None) as client:
            answer = client.get("/health")
        if answer.status_code != 200:
            raise Broken(f"/health answered {answer.status_code}")
        yield (time.monotonic_ns() - began) / 1e6
        time.sleep(_PAUSE_SECONDS)


@contextmanager
def _attack(url: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "bench.half_open", url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"PATH": SYSTEM_PATH}) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class _Attack:
    """The attacker: it opens connections, sends the beginning of a head and waits for their end, again and again."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._open = 0
        self.most = self.opened = 0
        self.longest = 0.0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            end = time.monotonic() + SECONDS
            for _ in range(CONNECTIONS):
                group.create_task(self._hold(end))

    async def _hold(self, end: float) -> None:
        while time.monotonic() < end:
            reader, writer = await asyncio.open_connection(self._host, self._port)
            began = time.monotonic()
            self._open += 1
            self.opened += 1
            self.most = max(self.most, self._open)
            try:
                writer.write(_HEAD)
                async with asyncio.timeout(2 * SECONDS):
                    while await reader.read(1_024):
                        pass
            except OSError:
                pass  # a reset is an end as well
            finally:
                self._open -= 1
                writer.close()
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(_REOPEN_SECONDS)


def main() -> None:
    """Attack the service at the address of the first argument, and print what it came to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = _Attack(sys.argv[1])
    asyncio.run(attack.run())
    print(json.dumps({"most": attack.most, "opened": attack.opened, "longest": attack.longest}))


if __name__ == "__main__":
    main()
