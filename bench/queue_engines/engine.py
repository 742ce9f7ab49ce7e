"""What an engine is to the scenarios: a client that enqueues, and a worker in a process of its own."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, Self

State = Literal["waiting", "running", "done", "failed", "cancelled"]
"""The state of a job as the engine's own tables have it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a worker. All times are seconds."""

    concurrency: int = 40
    heartbeat: float = 3.0
    dead_after: float = 10.0
    """A worker without a heartbeat for this long is dead."""
    look_every: float = 2.0
    """The reaper looks for dead workers this often."""
    pool_timeout: float = 300.0
    """How long a statement waits for a connection while the database is away."""
    hold_off: bool = True
    """The reaper does not judge for `dead_after` after it could not reach the database itself."""
    idle_poll: float = 5.0
    """An idle worker looks for jobs this often, in case a notification was lost."""
    graceful: float = 15.0
    """How long a worker that is told to stop waits for its jobs."""

    def scaled(self, scale: float) -> Self:
        """Return the settings with all times multiplied."""
        times = {
            each.name: getattr(self, each.name) * scale
            for each in fields(self)
            if isinstance(each.default, float)
        }
        return type(self)(**{**asdict(self), **times})


class Client(Protocol):
    """The side that enqueues. A job's id is the engine's."""

    async def enqueue(self, seconds: float) -> int:
        """Enqueue a job that sleeps for this long, and return its id."""
        ...

    async def enqueue_in_transaction(self, *, commits: bool) -> int:
        """Enqueue a job in a transaction of the caller's, which is then committed or rolled back."""
        ...

    async def cancel(self, job_id: int) -> None:
        """Request that a running job is cancelled."""
        ...


Work = Callable[[int, float], Awaitable[None]]
"""The job: it takes its id and its seconds, and is cancelled as a task."""


class Engine(Protocol):
    """One engine."""

    packages: Sequence[str]
    """The packages whose versions the figures are of."""
    states_query: str
    """Returns rows of a job's id and its state, for all jobs."""

    async def install(self, url: str) -> None:
        """Create the engine's tables."""
        ...

    def connect(self, url: str) -> AbstractAsyncContextManager[Client]:
        """Return a client, which reconnects by itself if the engine can."""
        ...

    async def run_worker(self, url: str, settings: Settings, work: Work) -> None:
        """Work until SIGTERM."""
        ...


ENGINES: Mapping[str, str] = {"procrastinate": "3.10", "pgqueuer": "1.6"}
"""The engines by name, with the release that the scenarios are written for."""


def load_engine(name: str) -> Engine:
    """Return an engine. Only its own file imports its package."""
    engine: Engine = importlib.import_module(f"bench.queue_engines.{name}_engine").ENGINE
    return engine


class Journal:
    """The file into which jobs write what happens to them: one line of JSON for each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, event: Literal["started", "ended", "cancelled"], job_id: int) -> None:
        """Add a line. Lines of several processes do not mix, and the clock is one for all of them."""
        line = json.dumps({"event": event, "job": job_id, "pid": os.getpid(), "at": time.monotonic()})
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines, the oldest first."""
        text = self._path.read_bytes() if self._path.exists() else b""
        return [json.loads(line) for line in text.splitlines()]

    async def work(self, job_id: int, seconds: float) -> None:
        """Be a job: sleep, and write it down."""
        self.add("started", job_id)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.add("cancelled", job_id)
            raise
        self.add("ended", job_id)
