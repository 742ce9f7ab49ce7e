"""How soon an event of a worker reaches a follower on another node, beside a bare LISTEN on the same server.

Each node is a process of its own, with the store, the feed and the listener as the service wires them. They share the
clock of the machine. The bare program stores a row with a NOTIFY in its transaction, and its reader selects that row.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import psycopg

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, child_environment, made_in
from steadyhand.clock import utc_now
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import Event, EventDraft, Message
from steadyhand.redact import NO_REDACTION
from steadyhand.serve.shared_state import SharedState
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.connections import create_postgres_engine, parse_postgres_url
from steadyhand.store.postgres.listener import Listener
from steadyhand.store.readers import CONNECTIONS
from steadyhand.testing.contracts.samples import accepted_draft, make_job
from steadyhand.testing.postgres import Postgres

EVENTS = 400
PACE_SECONDS = 0.02
P50_MS, P99_MS = 40.0, 150.0
_SECONDS = 120.0
_CREATE = "CREATE TABLE bare (number integer PRIMARY KEY, body text NOT NULL)"


def measure(world: Path, pairs: int) -> Sequence[Row]:
    """Measure both by turns. Raise `Broken` if an event is missing."""
    slowest: tuple[list[float], list[float]] = ([], [])
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:

        def taker(
            write: Callable[[str, int], Coroutine[Any, Any, _Written]], tails: list[float]
        ) -> Callable[[], float]:
            def take() -> float:
                lags = asyncio.run(_lags(write, server.url(server.create_database())))
                tails.append(percentile(lags, 0.99))
                return statistics.median(lags)

            return take

        figures = interleave(pairs, taker(_write_events, slowest[0]), taker(_write_bare, slowest[1]))
    what = (
        f"an event of a worker to a follower on another node, {EVENTS} events, one each {PACE_SECONDS * 1000:.0f} ms, "
        "Postgres with fsync; beside INSERT with NOTIFY, then LISTEN and SELECT"
    )
    ours = (
        f"ours alone: p50 {statistics.median(figures[0]):.1f} ms, p99 {statistics.median(slowest[0]):.1f} ms"
    )
    return [
        Row("node-events", f"p50 of {what}", "ms", *figures, "at most", P50_MS, (ours,), by="added"),
        Row("node-events-p99", f"p99 of {what}", "ms", *slowest, "at most", P99_MS, (ours,), by="added"),
    ]


# --- the node of the worker ----------------------------------------------------------------------

_Written = tuple[dict[str, Any], Callable[[int], Coroutine[Any, Any, None]], contextlib.AsyncExitStack]
"""What the reader is asked, what writes the event with a number, and what to close."""


async def _lags(write: Callable[[str, int], Coroutine[Any, Any, _Written]], url: str) -> list[float]:
    """Write events while a reader in another process waits for them; return the milliseconds of each."""
    asked, write_one, stack = await write(url, EVENTS)
    async with stack:
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.node_events",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(),
        )  # fmt: skip
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            async with asyncio.timeout(_SECONDS):
                reader.stdin.write(json.dumps(asked).encode() + b"\n")
                if await reader.stdout.readline() != b"ready\n":
                    raise Broken("the reader did not begin")
                began: list[int] = []
                for number in range(1, EVENTS + 1):
                    began.append(time.monotonic_ns())
                    await write_one(number)
                    await asyncio.sleep(PACE_SECONDS)
                came = json.loads(await reader.stdout.readline() or b"[]")
        finally:
            with contextlib.suppress(ProcessLookupError):
                reader.kill()
            await reader.wait()
    if [number for number, _ in came] != list(range(1, EVENTS + 1)):
        raise Broken(f"of {EVENTS} events {len(came)} came, or in another order")
    return [(at - start) / 1e6 for start, (_, at) in zip(began, came, strict=True)]


async def _write_events(url: str, count: int) -> _Written:
    stack = contextlib.AsyncExitStack()
    store = await open_store(url)
    stack.push_async_callback(store.close)
    job = make_job()
    await store.add(job, accepted_draft())
    log = EventLog(store, EventFeed(), NO_REDACTION)

    async def write_one(number: int) -> None:
        await log.append(job.id, [EventDraft(1, utc_now(), Message("assistant", f"message {number}"))])

    return {"url": url, "job": job.id, "count": count}, write_one, stack


async def _write_bare(url: str, count: int) -> _Written:
    stack = contextlib.AsyncExitStack()
    connection = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url))
    await connection.execute(_CREATE)
    await connection.commit()

    async def write_one(number: int) -> None:
        await connection.execute("INSERT INTO bare VALUES (%s, %s)", (number, f"message {number}"))
        await connection.execute("SELECT pg_notify('bare', %s)", (str(number),))
        await connection.commit()

    return {"url": url, "job": None, "count": count}, write_one, stack


# --- the node of the follower --------------------------------------------------------------------


async def _follow(asked: dict[str, Any]) -> list[tuple[int, int]]:
    parameters = parse_postgres_url(asked["url"])
    write = create_postgres_engine(parameters, purpose="writer", connections=1)
    read = create_postgres_engine(parameters, purpose="reader", connections=CONNECTIONS, read_only=True)
    store = SqlStore(write, read, clock=utc_now)
    feed, shared = EventFeed(), SharedState(Listener(asked["url"]))
    shared.follow_events(store, feed)
    came: dict[int, int] = {}
    sharing = asyncio.create_task(shared.run())
    try:
        with feed.subscribe(asked["job"]) as subscription:
            await subscription.receive()  # the look at everything of the first connection
            print("ready", flush=True)
            while len(came) < asked["count"]:
                items = await subscription.receive()
                at = time.monotonic_ns()
                # The first event of the job is that of its acceptance.
                for item in items:
                    if isinstance(item, Event):
                        came.setdefault(item.seq - 1, at)
    finally:
        sharing.cancel()
        await asyncio.gather(sharing, return_exceptions=True)
        await store.close()
    return sorted(came.items())


async def _follow_bare(asked: dict[str, Any]) -> list[tuple[int, int]]:
    came: list[tuple[int, int]] = []
    async with (
        await psycopg.AsyncConnection.connect(asked["url"], autocommit=True) as listening,
        await psycopg.AsyncConnection.connect(asked["url"], autocommit=True) as reading,
    ):
        await listening.execute("LISTEN bare")
        print("ready", flush=True)
        async for notification in listening.notifies():
            rows = await reading.execute("SELECT body FROM bare WHERE number = %s", (notification.payload,))
            if await rows.fetchone() is not None:
                came.append((int(notification.payload), time.monotonic_ns()))
            if len(came) == asked["count"]:
                break
    return came


def main() -> None:
    """Follow as stdin asks, and print when each event came."""
    asked = json.loads(sys.stdin.readline())
    came = asyncio.run(_follow_bare(asked) if asked["job"] is None else _follow(asked))
    print(json.dumps(came), flush=True)


if __name__ == "__main__":
    main()
