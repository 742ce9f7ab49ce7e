"""The ways to ask an agent beside each other, with one caller and with many: time, processor and memory of each.

The rounds of all ways are taken in turns. The processor time and the memory are those of the whole machine, less those
of this process, which holds the callers and the model: so nothing that a way starts is missed, and the machine must be
idle otherwise.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench.answering import within_reach
from bench.callers import Answer, Stage, Way, bare, cold, live, warm, wrapper
from bench.rows import percentile
from bench.worlds import Broken, made_in
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel

WAYS: Sequence[Callable[[Stage], AbstractAsyncContextManager[Way]]] = (bare, wrapper, cold, warm, live)
ROUNDS: Mapping[int, int] = {1: 12, 4: 5, 16: 3}
"""The number of rounds for each number of callers."""
_SAMPLE_SECONDS = 0.02
_REST_SECONDS = 0.5
"""The time in which the processes of the round before are gone, with their memory."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cell:
    """One way with so many callers. Times are in milliseconds, `processor` in seconds and `memory` in MB a request."""

    way: str
    callers: int
    answers: int
    first_p50: float
    first_p95: float
    whole_p50: float
    whole_p95: float
    processor: float
    memory: float

    def as_json(self) -> Mapping[str, Any]:
        """Return it for programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Round:
    answers: Sequence[Answer]
    processor: float
    memory: float


def measure(world: Path) -> list[Cell]:
    """Measure every way with every number of callers. Raise `Broken` if the answers differ."""
    root = made_in(world, "comparison")
    cli = within_reach(cli_path(), root / "claude")
    user = 99_000 if os.geteuid() == 0 else None
    with ScriptedModel("ok") as model:
        return asyncio.run(_measure(Stage(root, cli, model.url, user)))


async def _measure(stage: Stage) -> list[Cell]:
    rounds: dict[tuple[str, int], list[_Round]] = {}
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(way(stage)) for way in WAYS]
        for way in ways:
            await _take(way, 1)  # the first answer of each pays for what is loaded once
        for callers, count in ROUNDS.items():
            for number in range(count):
                for way in ways if number % 2 == 0 else reversed(ways):
                    rounds.setdefault((way.name, callers), []).append(await _take(way, callers))
    texts = {answer.text for taken in rounds.values() for each in taken for answer in each.answers}
    if len(texts) != 1:
        raise Broken(f"the answers differ: {sorted(texts)}")
    return [_cell(way, callers, taken) for (way, callers), taken in rounds.items()]


async def _take(way: Way, callers: int) -> _Round:
    await way.settle()
    await asyncio.sleep(_REST_SECONDS)
    with _MemoryPeak() as peak:
        machine, own = _machine_seconds(), time.process_time()
        answers = await asyncio.gather(*(way.ask(caller) for caller in range(callers)))
        await way.settle()
        seconds = _machine_seconds() - machine - (time.process_time() - own)
    return _Round(answers, seconds / callers, peak.bytes / callers / 1e6)


def _cell(way: str, callers: int, rounds: Sequence[_Round]) -> Cell:
    answers = [answer for each in rounds for answer in each.answers]
    first, whole = [each.first_ms for each in answers], [each.whole_ms for each in answers]
    return Cell(
        way, callers, len(answers), percentile(first, 0.5), percentile(first, 0.95), percentile(whole, 0.5),
        percentile(whole, 0.95), percentile([each.processor for each in rounds], 0.5),
        percentile([each.memory for each in rounds], 0.5),
    )  # fmt: skip


def _machine_seconds() -> float:
    """Return the processor time that this machine has spent on anything, in seconds."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = (
        Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return sum(map(int, (user, nice, system, irq, softirq))) / _TICKS


class _MemoryPeak:
    """Samples the available memory of the machine; `bytes` is the most that was taken since the beginning."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._before = _available_bytes()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self._before - _available_bytes())


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().split("\n"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise Broken("the kernel does not say how much memory is available")


def table(cells: Sequence[Cell]) -> str:
    """Return the cells as a table in Markdown."""
    lines = [
        "| callers | way | first text p50 / p95, ms | whole answer p50 / p95, ms | processor, s | peak memory, MB |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {cell.callers} | {cell.way} | {cell.first_p50:,.0f} / {cell.first_p95:,.0f} "
        f"| {cell.whole_p50:,.0f} / {cell.whole_p95:,.0f} | {cell.processor:.2f} | {cell.memory:,.0f} |"
        for cell in cells
    ]
    return "\n".join(lines)
