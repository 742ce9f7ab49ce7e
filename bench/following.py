"""How live text reaches many: 500 followers of one job, and 48 chats that stream at once.

The agent is the stand-in, as a program that notes when it writes each piece of text. The reader is a process of its
own, on the same clock; a piece has come when all its characters are there, alone or together with others.
"""

from __future__ import annotations

import bisect
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.passing import Part
from bench.rows import Row, percentile
from bench.worlds import Broken, child_environment, made_in
from steadyhand.testing.cli import install_standin, system_python
from steadyhand.testing.service import ADMIN_KEY, Service, wait_until

FOLLOWERS = 500
FOLLOWED_PIECES = 1_000
FOLLOWED_PACE_MS = 5
CHATS = 48
CHAT_PIECES = 300
CHAT_PACE_MS = 20
PIECE = 10
"""Characters of a piece."""
_SECONDS = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_DELTA = r'"type":"text\.delta".*"text":"([0-9a-z ]*)"'
_CONTENT = r'"delta":\{"content":"([0-9a-z ]*)"'
_LAUNCHER = """\
#!{python} -IS
import os, sys, time
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from standin import pipes
from standin.program import main
write = pipes.write
marks = []
name = None
def noted(data, stream=1):
    global name
    if b'"text_delta"' in data:
        name = name or data.partition(b'"text":"')[2][:3].decode()
        marks.append(time.monotonic_ns())
    write(data, stream)
    if b'"type":"result"' in data.replace(b" ", b""):
        with open({folder!r} + "/marks-" + name, "w") as file:
            file.write(" ".join(map(str, marks)))
pipes.write = noted
os._exit(main(sys.argv[1:]))
"""


class Writers:
    """The stand-in that notes when it wrote each piece; each waits until all streams are open."""

    launcher = _LAUNCHER

    def __init__(self, directory: Path) -> None:
        bare = install_standin(directory / "standin")
        self.folder = made_in(directory, "marks")
        self.folder.chmod(0o777)
        self.path = directory / "claude"
        library = str(bare.parent / ".stand-in")
        text = self.launcher.format(python=system_python(), library=library, folder=str(self.folder))
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o755)
        self.gate = self.folder / "go"

    def prompt(self, name: str, pieces: int, pace_ms: int) -> str:
        """Give the prompt of an agent; its name has three letters."""
        text = "".join(f"{name} {number:05d} " for number in range(pieces))
        ready = self.folder / f"ready-{name}"
        return f'[[standin: touch={ready} wait_for={self.gate} text="{text}" pace={pace_ms} chunk={PIECE}]]'

    def wait(self, names: Sequence[str]) -> None:
        """Wait until each of them is there."""
        for name in names:
            wait_until((self.folder / f"ready-{name}").exists, _SECONDS)

    def go(self) -> None:
        """Let all write at once."""
        self.gate.touch(0o644)

    def marks(self, name: str) -> list[int]:
        """Give when each piece was written (ns), and forget it."""
        path = self.folder / f"marks-{name}"
        wait_until(path.exists, _SECONDS)
        found = [int(mark) for mark in path.read_text().split()]
        for each in self.folder.iterdir():
            if each.name in (path.name, f"ready-{name}", "go"):
                each.unlink()
        return found


@contextmanager
def reader(service: Service, requests: Sequence[str], field: str, **more: bool) -> Iterator[Part]:
    """Run the reader for the length of the block, once it has all streams open; `more` is what it is asked beside."""
    address = urlsplit(service.url)
    asked = {"host": address.hostname, "port": address.port, "requests": requests, "field": field, **more}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.reading"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        part = Part(process)
        part.ask(asked)
        yield part
    finally:
        process.kill()
        process.wait(10)


def head(line: str, **headers: object) -> str:
    fields = {"host": "127.0.0.1", "authorization": f"Bearer {ADMIN_KEY}", "connection": "close", **headers}
    return line + " HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items()) + "\r\n"


def delays(written: Sequence[int], came: Sequence[tuple[int, int]]) -> list[float]:
    """Give how long each piece took, in ms; raises `Broken` unless all have come."""
    characters = [count for _, count in came]
    if not characters or characters[-1] < PIECE * len(written):
        raise Broken(f"{characters[-1:]} of {PIECE * len(written)} characters came")
    return [
        (came[bisect.bisect_left(characters, PIECE * (number + 1))][0] - at) / 1e6
        for number, at in enumerate(written)
    ]


def cpu_seconds(service: Service) -> float:
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def followed(service: Service, writers: Writers, followers: int) -> tuple[list[float], float]:
    """Let so many follow one job; gives how long the pieces took, and the service's processor time in seconds."""
    job = service.submit(writers.prompt("f00", FOLLOWED_PIECES, FOLLOWED_PACE_MS))["id"]
    request = head(f"GET /v1/jobs/{job}/events", accept="text/event-stream")
    with reader(service, [request] * followers, _DELTA) as part:
        writers.wait(["f00"])
        before = cpu_seconds(service)
        writers.go()
        streams: list[Any] = json.loads(part.read())
        after = cpu_seconds(service)
    written = writers.marks("f00")
    return [delay for came in streams for delay in delays(written, came)], after - before


def measure_followers(world: Path, pairs: int) -> list[Row]:
    """Measure 500 followers of one job that writes 200 pieces a second, beside one."""
    root = made_in(world, "followers")
    writers = Writers(made_in(root, "agent"))
    taken: list[float] = []
    each: list[float] = []
    alone: list[float] = []
    with Service(root, writers.path, env={"STEADYHAND_ISOLATION": "none"}) as service:
        followed(service, writers, 1)
        for _ in range(pairs):
            few, cpu_of_one = followed(service, writers, 1)
            many, cpu = followed(service, writers, FOLLOWERS)
            alone.append(percentile(few, 0.95))
            taken.append(percentile(many, 0.95))
            each.append((cpu - cpu_of_one) * 1e6 / ((FOLLOWERS - 1) * FOLLOWED_PIECES))
    rate = 1000 // FOLLOWED_PACE_MS
    late = f"p95 from the agent's write to {FOLLOWERS} followers, {rate} pieces a second; beside one follower"
    cost = "the service's processor time for a follower and a piece, less that with one follower"
    nothing = [0.0] * pairs
    return [
        Row("followers-p95", late, "ms", taken, alone, "at most", 120.0, (), "added"),
        Row("followers-cpu", cost, "us", each, nothing, "at most", 3.0, (), "added"),
    ]


def chatted(service: Service, writers: Writers, chats: int) -> tuple[list[float], float]:
    """Let so many chats stream at once; gives how long the pieces took (ms), and the processor time of each (us)."""
    names = [f"c{number:02d}" for number in range(chats)]
    requests = []
    for name in names:
        message = {"role": "user", "content": writers.prompt(name, CHAT_PIECES, CHAT_PACE_MS)}
        body = json.dumps({"model": "claude", "stream": True, "messages": [message]})
        fields = {"content-type": "application/json", "content-length": len(body)}
        requests.append(head("POST /v1/chat/completions", **fields) + body)
    with reader(service, requests, _CONTENT) as part:
        writers.wait(names)
        before = cpu_seconds(service)
        writers.go()
        streams: list[Any] = json.loads(part.read())
        cpu = (cpu_seconds(service) - before) * 1e6 / (chats * CHAT_PIECES)
    taken = [
        delay
        for name, came in zip(names, streams, strict=True)
        for delay in delays(writers.marks(name), came)
    ]
    return taken, cpu


def measure_chats(world: Path, pairs: int) -> list[Row]:
    """Measure 48 chats that each stream 50 pieces a second."""
    root = made_in(world, "chats")
    writers = Writers(made_in(root, "agent"))
    costs: list[float] = []
    found: dict[float, tuple[list[float], list[float]]] = {0.5: ([], []), 0.95: ([], [])}
    settings = {"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVICE__CONCURRENCY": str(CHATS)}
    with Service(root, writers.path, env=settings) as service:
        chatted(service, writers, 1)
        for _ in range(pairs):
            alone, _ = chatted(service, writers, 1)
            many, cpu = chatted(service, writers, CHATS)
            costs.append(cpu)
            for share, (ours, theirs) in found.items():
                ours.append(percentile(many, share))
                theirs.append(percentile(alone, share))
    rate = 1000 // CHAT_PACE_MS
    what = f"from the agent's write to the client, {CHATS} chats at {rate} pieces a second; beside one chat"
    note = f"the service's processor time for a piece: {statistics.median(costs):.0f} us"
    return [
        Row("chats-p50", f"p50 {what}", "ms", *found[0.5], "at most", 3.0, (note,), "added"),
        Row("chats-p95", f"p95 {what}", "ms", *found[0.95], "at most", 25.0, (), "added"),
    ]
