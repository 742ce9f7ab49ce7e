"""One engine at work: its database, its workers in processes of their own, and what they wrote down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from bench.queue_engines.engine import Client, Engine, Journal, Settings, State, load_engine
from steadyhand.testing.postgres import Postgres

START_SECONDS = 30.0
"""The bound of each wait for something that takes less than a second on an idle machine."""
_POLL_SECONDS = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


class NotReached(RuntimeError):
    """A scenario did not get to what it measures."""


class Worker:
    """A worker's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def signal(self, number: int) -> None:
        """Send a signal to this process."""
        self._process.send_signal(number)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    async def wait(self, seconds: float) -> int | None:
        """Wait for its end, at most this long, and return its exit code."""
        await wait_for(lambda: self.exit_code is not None, seconds)
        return self.exit_code

    def processor_seconds(self) -> float:
        """Return the processor time that it has taken."""
        text = Path(f"/proc/{self.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)


class Field:
    """An engine on a database of its own. Times in scenarios are those of the monotonic clock."""

    def __init__(self, name: str, settings: Settings, server: Postgres, folder: Path) -> None:
        self.name = name
        self.settings = settings
        self.engine: Engine = load_engine(name)
        self.database = server.create_database()
        self.url = server.url(self.database)
        self.journal = Journal(folder / f"{self.database}.jsonl")
        self.client: Client
        self._journal_path = folder / f"{self.database}.jsonl"
        self._log_path = folder / f"{self.database}.log"
        self._workers: list[Worker] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Field]:
        """Install the engine, connect, and end the workers at the end."""
        await self.engine.install(self.url)
        async with self.engine.connect(self.url) as self.client:
            try:
                yield self
            finally:
                for worker in self._workers:
                    worker.end()

    # --- workers --------------------------------------------------------------------------

    async def start_worker(self) -> Worker:
        """Start a worker and return it once it takes jobs."""
        argv = [sys.executable, "-m", "bench.queue_engines.worker", self.name, self.url]
        argv += [str(self._journal_path), json.dumps(asdict(self.settings))]
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        worker = Worker(process)
        self._workers.append(worker)
        while True:  # others may take a job that asks for this one
            job_id = await self.client.enqueue(0.0)
            if not await self.has_started(job_id, START_SECONDS):
                raise NotReached(f"no worker of {self.name} takes jobs: {self._log_path.read_text()[-2000:]}")
            if self._runs_of(job_id)[0]["pid"] == worker.pid:
                return worker
            if worker.exit_code is not None:
                raise NotReached(f"a worker of {self.name} ended: {self._log_path.read_text()[-2000:]}")
            await asyncio.sleep(_POLL_SECONDS)

    def worker_of(self, job_id: int) -> Worker:
        """Return the worker that started a job last."""
        pid = self._runs_of(job_id)[-1]["pid"]
        return next(worker for worker in self._workers if worker.pid == pid)

    @property
    def workers(self) -> Sequence[Worker]:
        """All workers, in the order of their starts."""
        return self._workers

    # --- jobs -----------------------------------------------------------------------------

    async def start_job(self, seconds: float) -> int:
        """Enqueue a job and return its id once it runs."""
        job_id = await self.client.enqueue(seconds)
        if not await self.has_started(job_id, START_SECONDS):
            raise NotReached(f"a job of {self.name} did not start")
        return job_id

    async def has_started(self, job_id: int, seconds: float) -> bool:
        """Wait for the start of a job, at most so long, and return True if it started."""
        return await wait_for(lambda: self._runs_of(job_id), seconds)

    async def has(self, event: str, job_id: int, seconds: float) -> bool:
        """Wait until something happened to a job, at most so long, and return True if it did."""
        return await wait_for(lambda: self.time_of(event, job_id) is not None, seconds)

    async def has_left(self, job_id: int, states: Collection[State], seconds: float) -> bool:
        """Wait until a job is in none of these states, at most so long, and return True if it is not."""
        deadline = time.monotonic() + seconds
        while (await self.states()).get(job_id) in states:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS * 2)
        return True

    def _runs_of(self, job_id: int) -> list[dict[str, Any]]:
        return [line for line in self.journal.read() if line["job"] == job_id and line["event"] == "started"]

    def starts(self) -> Counter[int]:
        """Count the starts of each job."""
        return Counter(line["job"] for line in self.journal.read() if line["event"] == "started")

    def time_of(self, event: str, job_id: int) -> float | None:
        """Return when something happened to a job first, or None."""
        times = (
            line["at"] for line in self.journal.read() if (line["event"], line["job"]) == (event, job_id)
        )
        return next(times, None)

    async def states(self) -> dict[int, State]:
        """Return the state of each job, as the engine's tables have it; nothing while the database is away."""
        try:
            connection = await psycopg.AsyncConnection.connect(self.url, connect_timeout=2, autocommit=True)
        except psycopg.OperationalError:
            return {}
        async with connection:
            rows = await (await connection.execute(self.engine.states_query.encode())).fetchall()
        return dict(rows)

    async def state_of(self, job_id: int) -> State | None:
        """Return the state of a job, or None if the tables do not have it."""
        return (await self.states()).get(job_id)


async def wait_for(is_true: Callable[[], object], seconds: float) -> bool:
    """Wait until this is true, at most so long, and return True if it became so."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


async def on_all(
    fields: Sequence[Field], scenario: Callable[[Field], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Run a scenario with several engines side by side, and return what each came to, by engine."""
    async with asyncio.TaskGroup() as group:
        tasks = {field.name: group.create_task(_run(scenario, field)) for field in fields}
    return {name: task.result() for name, task in tasks.items()}


async def _run(scenario: Callable[[Field], Awaitable[dict[str, Any]]], field: Field) -> dict[str, Any]:
    return await scenario(field)


STOP, GO, KILL, END = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL, signal.SIGTERM
