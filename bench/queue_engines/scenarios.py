"""The faults. A scenario takes an engine at work and returns its figures; times are in seconds unless named so."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.queue_engines.field import END, GO, KILL, START_SECONDS, STOP, Field, wait_for
from bench.rows import percentile
from steadyhand.testing.postgres import Postgres

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How long and how often."""

    scale: float = 1.0
    starts: int = 200
    kills: int = 20
    cancels: int = 10

    def seconds(self, full: float) -> float:
        """Return a time of the full form in this one."""
        return full * self.scale


async def measure_starts(fields: Sequence[Field], size: Size) -> Mapping[str, Figures]:
    """From the call that enqueues to the first line of the job, on idle workers, the engines by turns."""
    jobs: dict[str, list[tuple[float, int]]] = {field.name: [] for field in fields}
    for field in fields:
        await field.start_worker()
    for number in range(size.starts):
        for field in fields if number % 2 == 0 else reversed(fields):
            began = time.monotonic()
            jobs[field.name].append((began, await field.client.enqueue(0.0)))
            await asyncio.sleep(0.05)
    figures = {}
    for field in fields:
        for _, job in jobs[field.name]:
            await field.has_started(job, START_SECONDS)
        latencies = [
            (started - began) * 1000
            for began, job in jobs[field.name]
            if (started := field.time_of("started", job)) is not None
        ]
        figures[field.name] = {
            "n": len(latencies),
            "p50_ms": round(statistics.median(latencies), 1),
            "p99_ms": round(percentile(latencies, 0.99), 1),
        }
    return figures


async def measure_kills(field: Field, size: Size) -> Figures:
    """Two workers; the one that has the new job is killed, and replaced, again and again."""
    for _ in range(2):
        await field.start_worker()
    killed_at: dict[int, float] = {}
    ended_at: dict[int, float] = {}
    stop = asyncio.Event()

    async def watch() -> None:
        while not stop.is_set():
            now, states, starts = time.monotonic(), await field.states(), field.starts()
            for job in killed_at.keys() - ended_at.keys():
                if starts[job] > 1 or states.get(job) not in {"running", "waiting"}:
                    ended_at[job] = now
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        not_started = 0
        for _ in range(size.kills):
            job = await field.client.enqueue(size.seconds(500))
            if not await field.has_started(job, START_SECONDS * 2):
                not_started += 1
                continue
            owner = field.worker_of(job)
            owner.signal(KILL)
            await owner.wait(START_SECONDS)
            killed_at[job] = time.monotonic()
            await field.start_worker()
        await asyncio.sleep(4 * field.settings.dead_after)
        stop.set()
    starts, states = field.starts(), await field.states()
    noticed = sorted(ended_at[job] - killed_at[job] for job in ended_at)
    return {
        "n": len(killed_at),
        "not_started": not_started,
        "noticed_p50": round(statistics.median(noticed), 1) if noticed else None,
        "noticed_max": round(noticed[-1], 1) if noticed else None,
        "started_again": sum(starts[job] > 1 for job in killed_at),
        "most_starts": max(starts[job] for job in killed_at),
        "states": dict(Counter(states.get(job, "gone") for job in killed_at)),
    }


async def measure_freeze(field: Field, size: Size) -> Figures:
    """The one of two workers that has the job is stopped by SIGSTOP for a minute, and then goes on.

    Meanwhile a third one starts, as a supervisor would start it. In the end the thawed one is alone with a new job.
    """
    workers = [await field.start_worker() for _ in range(2)]
    job = await field.start_job(size.seconds(48))
    owner = field.worker_of(job)
    (peer,) = [worker for worker in workers if worker is not owner]
    owner.signal(STOP)
    frozen_at = time.monotonic()
    noticed_at = None
    while noticed_at is None and time.monotonic() < frozen_at + size.seconds(50):
        if field.starts()[job] > 1 or await field.state_of(job) != "running":
            noticed_at = time.monotonic()
        await asyncio.sleep(0.1)
    newcomer = await field.start_worker()
    await asyncio.sleep(max(0.0, frozen_at + size.seconds(60) - time.monotonic()))
    before = await field.state_of(job)
    thawed_at = time.monotonic()
    owner.signal(GO)
    await wait_for(lambda: any(_ended_by(field, job, owner.pid)), max(2.0, size.seconds(10)))
    await asyncio.sleep(max(1.0, size.seconds(10)))
    after = await field.state_of(job)
    for other in (peer, newcomer):
        other.signal(KILL)
        await other.wait(START_SECONDS)
    new_job = await field.client.enqueue(0.0)
    takes_jobs = await field.has_started(new_job, size.seconds(30))
    return {
        "n": 1,
        "noticed": None if noticed_at is None else round(noticed_at - frozen_at, 1),
        "starts": field.starts()[job],
        "at_once": field.starts()[job] > 1 and any(at > thawed_at for at in _ended_by(field, job, owner.pid)),
        "worked_on": any(at >= thawed_at for at in _ended_by(field, job, owner.pid)),
        "state_before": before,
        "state_after": after,
        "thawed_takes_jobs": takes_jobs,
        "thawed_exit": owner.exit_code,
    }


def _ended_by(field: Field, job: int, pid: int) -> list[float]:
    return [
        line["at"]
        for line in field.journal.read()
        if (line["event"], line["job"], line["pid"]) == ("ended", job, pid)
    ]


async def measure_outage(
    fields: Mapping[str, Field], server: Postgres, away: float, size: Size
) -> Mapping[str, Figures]:
    """Postgres stops and starts again. One job ends meanwhile, one is at work until well after, one is new after."""
    seconds = size.seconds(away)
    for field in [*fields.values(), *fields.values()]:
        await field.start_worker()
    jobs = {}
    for variant, field in fields.items():
        during = await field.start_job(size.seconds(3) + seconds / 2)
        jobs[variant] = during, await field.start_job(size.seconds(3) + seconds + size.seconds(25))
    await asyncio.sleep(size.seconds(3))
    server.stop()
    await asyncio.sleep(seconds)
    server.start()
    back_at = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = {
            variant: group.create_task(_after_outage(field, *jobs[variant], back_at, size))
            for variant, field in fields.items()
        }
    return {variant: task.result() for variant, task in tasks.items()}


async def _after_outage(field: Field, during: int, over: int, back_at: float, size: Size) -> Figures:
    new_job, tries = None, 0
    while new_job is None:
        try:
            new_job = await field.client.enqueue(0.0)
        except Exception:
            tries += 1
            if tries > 100:
                raise
            await asyncio.sleep(0.2)
    enqueued_at = time.monotonic()
    started = await field.has_started(new_job, size.seconds(60))
    started_at = field.time_of("started", new_job)
    await field.has("ended", over, size.seconds(40))
    await asyncio.sleep(size.seconds(15))
    states, starts = await field.states(), field.starts()
    return {
        "n": 1,
        "enqueue_errors": tries,
        "new_job_after": round(started_at - back_at, 1) if started and started_at else None,
        "new_job_waited": round(started_at - enqueued_at, 1) if started and started_at else None,
        "ended_during": states.get(during, "gone"),
        "at_work": states.get(over, "gone"),
        "most_starts": max(starts[during], starts[over]),
        "exit_codes": [worker.exit_code for worker in field.workers],
    }


async def measure_stop(field: Field, size: Size) -> Figures:
    """SIGTERM to a worker with a job of 8 s, and to one with a job of 40 s, while they are at work."""
    figures: Figures = {"n": 1}
    for name, seconds in (("short", 8.0), ("long", 40.0)):
        worker = await field.start_worker()
        job = await field.start_job(size.seconds(seconds))
        worker.signal(END)
        began = time.monotonic()
        code = await worker.wait(size.seconds(60) + 5)
        figures |= {
            f"{name}_after": round(time.monotonic() - began, 1) if code is not None else None,
            f"{name}_exit": code,
            f"{name}_state": await field.state_of(job),
        }
        worker.end()
    return figures


async def measure_cancel(field: Field, size: Size) -> Figures:
    """From the call of another process to the cancellation within the job."""
    await field.start_worker()
    latencies, ends = [], []
    for _ in range(size.cancels):
        job = await field.start_job(size.seconds(300))
        began = time.monotonic()
        await field.client.cancel(job)
        if not await field.has("cancelled", job, START_SECONDS):
            continue
        latencies.append(((field.time_of("cancelled", job) or 0.0) - began) * 1000)
        await field.has_left(job, {"running"}, START_SECONDS)
        ends.append(await field.state_of(job))
    return {
        "n": len(latencies),
        "p50_ms": round(statistics.median(latencies), 1) if latencies else None,
        "max_ms": round(max(latencies), 1) if latencies else None,
        "states": dict(Counter(str(end) for end in ends)),
    }


async def measure_live(field: Field, size: Size) -> Figures:
    """A job that runs three times as long as a dead worker is waited for, with its worker in good health."""
    for _ in range(2):
        await field.start_worker()
    job = await field.start_job(3 * field.settings.dead_after)
    ended = await field.has_left(job, {"running", "waiting"}, 4 * field.settings.dead_after)
    await asyncio.sleep(size.seconds(5))
    return {"n": 1, "starts": field.starts()[job], "state": await field.state_of(job) if ended else None}


async def measure_idle(field: Field, server: Postgres, size: Size) -> Figures:
    """Statements, and the worker's share of a core, of one worker with nothing to do."""
    server.execute(f"ALTER DATABASE \"{field.database}\" SET log_statement = 'all'")
    worker = await field.start_worker()
    await asyncio.sleep(size.seconds(5))
    before, processor, began = (
        _statements(server, field.database),
        worker.processor_seconds(),
        time.monotonic(),
    )
    await asyncio.sleep(size.seconds(60))
    seconds = time.monotonic() - began
    after = _statements(server, field.database)
    return {
        "n": 1,
        "seconds": round(seconds, 1),
        "statements_per_s": round((after - before) / seconds, 2),
        "processor_percent": round(100 * (worker.processor_seconds() - processor) / seconds, 2),
    }


def _statements(server: Postgres, database: str) -> int:
    """Count what the database was asked, with BEGIN, COMMIT and the empty statements that test a connection."""
    return len(
        re.findall(
            rf"^\S+ \S+ \S+ \[\d+\] {database} LOG:  (?:statement|execute)", server.log(), re.MULTILINE
        )
    )


async def measure_transaction(field: Field, _: Size) -> Figures:
    """Enqueue in a transaction of the caller's: a rolled-back one leaves nothing, a committed one starts the job."""
    await field.start_worker()
    rolled_back = await field.client.enqueue_in_transaction(commits=False)
    committed = await field.client.enqueue_in_transaction(commits=True)
    started = await field.has_started(committed, START_SECONDS)
    return {
        "n": 1,
        "rolled_back_is_gone": await field.state_of(rolled_back) is None,
        "committed_starts": started,
    }


ONE_BY_ONE: Mapping[str, Callable[[Field, Size], Awaitable[Figures]]] = {
    "kills": measure_kills,
    "freeze": measure_freeze,
    "stop": measure_stop,
    "cancel": measure_cancel,
    "live": measure_live,
    "transaction": measure_transaction,
}
"""The scenarios that need only one engine and do nothing to the server."""
OUTAGES: Mapping[str, float] = {"outage_10": 10.0, "outage_45": 45.0}
SCENARIOS = ("start", "idle", *ONE_BY_ONE, *OUTAGES)
