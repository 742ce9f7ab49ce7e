"""What the gateway costs a stream: how much later its first token comes, and the processor's time for a megabyte.

The same model, the same client and the same bytes on both sides, by turns in one run; only what stands between differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import Row, interleave, percentile
from bench.streaming import PACE_SECONDS
from bench.wires import BODY_BYTES, TOKENS, WIRES
from bench.worlds import Broken, child_environment, made_in

STREAMS = 20
EACH = 6
_SECONDS = 180
_TICKS = os.sysconf("SC_CLK_TCK")
_FIRST_WIRE = "messages"
OTHER_WIRES = tuple(name for name in WIRES if name != _FIRST_WIRE)
"""The APIs of models beside Messages, whose rows have the name of the API."""


@dataclass
class Part:
    """One process of the measurement; it says one JSON object a line."""

    process: subprocess.Popen[str]

    def hear(self) -> dict[str, Any]:
        """Give what it says next."""
        return dict(json.loads(self.read()))

    def tell(self, what: dict[str, Any]) -> None:
        """Tell it something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Tell it something and give its answer."""
        self.tell(what)
        return self.hear()

    def read(self) -> str:
        """Give the next line it says, as text."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Broken(f"a part ended with {self.process.wait(10)}")
        return line

    @property
    def cpu_seconds(self) -> float:
        """The processor's time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def part(name: str, wire: str, *argv: str) -> Iterator[Part]:
    """Run a part for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.streaming", name, wire, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        yield Part(process)
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def parts(world: Path, between: str, wire: str) -> Iterator[tuple[Part, Part, str, str]]:
    """Start all: gives the client, what stands between, the model's address and the socket before it."""
    folder = made_in(world, between)
    with ExitStack() as stack:
        address = str(stack.enter_context(part("model", wire)).hear()["url"])
        middle = stack.enter_context(part(between, wire, str(folder), address))
        socket = str(middle.hear()["socket"])
        client = stack.enter_context(part("client", wire))
        yield client, middle, address, socket


def measure(world: Path, pairs: int, wire: str = _FIRST_WIRE) -> list[Row]:
    """Measure the time to the first token with 20 streams at once, through the gateway and without it."""
    p50, p99 = (3.0, 10.0) if wire == _FIRST_WIRE else (2.0, 6.0)
    every: dict[str, list[float]] = {"ours": [], "theirs": []}
    tails: dict[str, list[float]] = {"ours": [], "theirs": []}
    with parts(world, "gateway", wire) as (client, middle, address, socket):

        def take(side: str, to: str) -> float:
            first = client.ask({"to": to, "streams": STREAMS, "each": EACH})["first"]
            if len(first) != STREAMS * EACH:
                raise Broken(f"{len(first)} of {STREAMS * EACH} streams had a first token")
            every[side] += first
            tails[side].append(percentile(first, 0.99))
            return percentile(first, 0.5)

        take("ours", socket)
        take("theirs", address)
        for found in (*every.values(), *tails.values()):
            found.clear()
        ours, theirs = interleave(pairs, lambda: take("ours", socket), lambda: take("theirs", address))
        _check(middle, pairs + 1)
    what = (
        f"time to the first token of a stream of {wire}, {STREAMS} at once, a request of {BODY_BYTES // 1000} kB; "
        "through the gateway (its ledger in SQLite), beside the model itself"
    )
    note = (
        f"over all {len(every['ours'])} streams of each side: p50 {percentile(every['ours'], 0.5):.2f} and "
        f"{percentile(every['theirs'], 0.5):.2f} ms, p99 {percentile(every['ours'], 0.99):.2f} and "
        f"{percentile(every['theirs'], 0.99):.2f} ms"
    )
    tail = (tails["ours"], tails["theirs"])
    return [
        Row(
            _named("gateway-ttft", wire),
            f"p50 of a round: {what}",
            "ms",
            ours,
            theirs,
            "at most",
            p50,
            (note,),
            "added",
        ),
        Row(
            _named("gateway-ttft-p99", wire),
            "p99 of a round: the same",
            "ms",
            *tail,
            "at most",
            p99,
            (),
            "added",
        ),
    ]


def _named(row: str, wire: str) -> str:
    return row if wire == _FIRST_WIRE else f"{row}-{wire}"


def _check(middle: Part, rounds: int) -> None:
    """Hold that every stream is in the ledger, to the token."""
    assert middle.process.stdin is not None
    middle.process.stdin.close()
    counted = middle.hear()
    streams = rounds * STREAMS * EACH
    if counted != {"calls": streams, "output": streams * TOKENS, "complete": True}:
        raise Broken(f"the ledger has {counted} after {streams} streams")


def measure_cpu(world: Path, pairs: int, wire: str = _FIRST_WIRE) -> Row:
    """Measure the processor's time for a streamed megabyte, of the gateway and of a relay that only copies."""
    with parts(world, "gateway", wire) as ours, parts(world, "relay", wire) as theirs:

        def take(side: tuple[Part, Part, str, str]) -> float:
            client, middle, _, socket = side
            before = middle.cpu_seconds
            moved = float(client.ask({"to": socket, "streams": STREAMS, "each": EACH})["bytes"])
            return (middle.cpu_seconds - before) * 1e3 / (moved / 1e6)

        take(ours)
        take(theirs)
        figures = interleave(pairs, lambda: take(ours), lambda: take(theirs))
    what = (
        f"processor's time for a megabyte of streams of {wire}, {STREAMS} at once, an event of "
        f"{len(WIRES[wire].piece)} bytes every {PACE_SECONDS * 1000:.0f} ms; beside an asyncio relay that "
        "copies bytes and looks at nothing"
    )
    return Row(_named("gateway-cpu", wire), what, "ms/MB", *figures, "at most", 4.0)


def measure_wire(world: Path, pairs: int, *, wire: str) -> list[Row]:
    """Measure both for another API than Messages."""
    return [*measure(world, pairs, wire), measure_cpu(made_in(world, "processor"), pairs, wire)]
