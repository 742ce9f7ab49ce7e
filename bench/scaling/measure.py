"""Takes the points and the costs: a Postgres with fsync, a node that serves, workers, and the stand-in as agent."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from bench.accepting import CONNECTIONS, NATIVE, milliseconds_to_disk
from bench.scaling.costs import Costs
from bench.scaling.processes import ProcessorGroup, own_seconds
from bench.worlds import Broken, ask_client, made_in
from steadyhand.queue.procrastinate import places, turns
from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.listener import Listener
from steadyhand.testing.cli import install_standin
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.samples import accepted_draft, make_job
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import CLASSIC_KEY, Service

JOBS = 40
SLOTS = 4
EVENTS = 500
FOLLOWERS = 20
CYCLES = 60
COMMITS = 100
IDLE_SECONDS = 10.0
_SECONDS = 600.0
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Point:
    """Jobs per second with so many workers, and what each of them took of the processors."""

    workers: int
    jobs_per_second: float
    serve: float
    worker: float
    agent: float
    postgres: float
    commits: float
    """The commits of the database for a job."""

    def as_json(self) -> dict[str, float]:
        """Give it for `results.json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Used:
    """Processor time in seconds. That of the agents has the shared parts of the worker beside its own process."""

    serve: float
    worker: float
    agent: float
    postgres: float

    def __sub__(self, before: Used) -> Used:
        """Give what was used since then."""
        return Used(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))


class Nodes:
    """A node that serves and its workers on a new database."""

    def __init__(self, root: Path, server: Postgres, workers: int) -> None:
        self.server = server
        self.groups: dict[int, ProcessorGroup] = {}
        self.database = server.create_database()
        self._agent = install_standin(made_in(root, "agent"))
        self._root = root
        self.serve = self._node("serve", "0", "serve")
        self.workers = [self._node(f"worker-{number}", str(SLOTS), "worker") for number in range(workers)]

    def _node(self, name: str, slots: str, command: str) -> Service:
        env = {
            "STEADYHAND_DATABASE_URL": self.server.url(self.database),
            "STEADYHAND_SERVICE__NODE": name,
            "STEADYHAND_CONCURRENCY": slots,
            "STEADYHAND_ISOLATION": "none",
            "STEADYHAND_SERVICE__MAX_QUEUED": "100000",
            "STEADYHAND_SERVICE__LOG_LEVEL": "warning",
        }
        return Service(made_in(self._root, name), self._agent, env=env, command=command)

    @property
    def all(self) -> Sequence[Service]:
        """All nodes."""
        return [self.serve, *self.workers]

    def used(self) -> Used:
        """Give the processor time so far, of each kind of process."""
        worker = sum(own_seconds(each.pid) for each in self.workers)
        whole = sum(self.groups[each.pid].seconds() for each in self.workers)
        serve = self.groups[self.serve.pid].seconds()
        return Used(serve, worker, whole - worker, self.groups[self.server.pid].seconds())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        return self.server.execute(query, self.database)

    def commits(self) -> int:
        """Give how many transactions the database has committed."""
        query = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{self.database}'"  # noqa: S608
        return int(self.server.execute(query)[0][0])

    def post(self, prompts: Sequence[str]) -> list[str]:
        """Submit jobs and return their ids."""
        _, _, port = self.serve.url.rpartition(":")
        bodies = [json.dumps({"prompt": prompt, **NATIVE.fields}) for prompt in prompts]
        headers = {"content-type": "application/json", "authorization": f"Bearer {CLASSIC_KEY}"}
        asked = {"host": "127.0.0.1", "port": int(port), "path": NATIVE.path, "headers": headers}
        answer = ask_client(
            "bench.posting", {**asked, "bodies": bodies, "connections": CONNECTIONS}, _SECONDS
        )
        return [json.loads(each)[NATIVE.id_key] for each in answer["answers"]]

    def wait(self, jobs: int) -> None:
        """Wait until so many jobs have completed. Raise `Broken` if one ended otherwise."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            states = dict(self.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
            if states.get("completed", 0) >= jobs:
                return
            if set(states) - {"queued", "running", "completed"}:
                raise Broken(f"jobs ended otherwise: {states}")
            time.sleep(_LOOK)
        raise Broken(f"{jobs} jobs took longer than {_SECONDS} s")


@contextmanager
def nodes(world: Path, server: Postgres, workers: int) -> Iterator[Nodes]:
    """Run nodes for the length of the block."""
    found = Nodes(made_in(world, "nodes"), server, workers)
    with ExitStack() as stack:
        for each in found.all:
            stack.enter_context(each)
        for pid in (server.pid, *(each.pid for each in found.all)):
            found.groups[pid] = stack.enter_context(ProcessorGroup.of(pid))
        yield found


def measure_point(world: Path, server: Postgres, workers: int, jobs: int = JOBS) -> Point:
    """Measure jobs per second with so many workers that always have a job to take."""
    with nodes(world, server, workers) as it:
        it.post(["Say hello."] * SLOTS * workers)
        it.wait(SLOTS * workers)
        before, commits = it.used(), it.commits()
        it.post(["Say hello."] * jobs)
        it.wait(jobs + SLOTS * workers)
        taken = it.used() - before
        commits = it.commits() - commits
        ends = [row[0] for row in it.rows("SELECT finished_at FROM jobs ORDER BY finished_at")][
            SLOTS * workers :
        ]
    first, last = len(ends) // 10, len(ends) - len(ends) // 10 - 1
    seconds = (ends[last] - ends[first]) / 1e6
    return Point(
        workers,
        (last - first) / seconds,
        taken.serve / jobs,
        taken.worker / jobs,
        taken.agent / jobs,
        taken.postgres / jobs,
        commits / jobs,
    )


@dataclass(frozen=True, slots=True)
class Events:
    """What events take, and how many a second one run had with followers on another node."""

    per_second: float
    worker: float
    postgres: float
    follower: float


def measure_events(world: Path, server: Postgres, events: int = EVENTS) -> Events:
    """Measure a run that says much, without a follower and with many on the node that serves."""
    prompt = "[[standin: " + "say=a " * events + "]]"
    with nodes(world, server, 1) as it:
        it.post(["Say hello."])
        it.wait(1)
        alone, _ = _talk(it, prompt, 2, 0)
        followed, seconds = _talk(it, prompt, 3, FOLLOWERS)
    follower = (followed.serve - alone.serve) / (events * FOLLOWERS)
    return Events(events / seconds, alone.worker / events, alone.postgres / events, max(0.0, follower))


def _talk(it: Nodes, prompt: str, jobs: int, followers: int) -> tuple[Used, float]:
    """Run a job with followers, and give what it took."""
    began, before = time.monotonic(), it.used()
    (job_id,) = it.post([prompt])
    streams = [
        it.serve.new_client().stream(
            "GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"}
        )
        for _ in range(followers)
    ]
    with _reading(streams):
        it.wait(jobs)
        seconds = time.monotonic() - began
    return it.used() - before, seconds


@contextmanager
def _reading(streams: Sequence[Any]) -> Iterator[None]:
    """Read streams to their end in threads; they end with the job."""

    def read(stream: Any) -> None:
        with stream as answer:
            for _ in answer.iter_raw():
                pass

    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(60)


def measure_idle(world: Path, server: Postgres, seconds: float = IDLE_SECONDS) -> float:
    """Give the share of a core that Postgres takes for one node with nothing to do."""
    with nodes(world, server, 3) as it:
        time.sleep(2)
        before = it.used().postgres
        time.sleep(seconds)
        taken = it.used().postgres - before
    return taken / seconds / len(it.all)


# --- the two locks ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commits:
    """Commits per second over so many connections, with and without a notification."""

    connections: int
    plain: float
    notifying: float


def measure_commits(server: Postgres, connections: int, count: int = COMMITS) -> Commits:
    """Measure what a notification costs: Postgres lets such transactions commit one after the other."""
    database = server.create_database()
    server.execute("CREATE TABLE lines (it text)", database)
    rates = [
        asyncio.run(_commits_per_second(server.url(database), connections, count, each)) for each in ("", "x")
    ]
    return Commits(connections, *rates)


async def _commits_per_second(url: str, connections: int, count: int, channel: str) -> float:
    async def work(connection: psycopg.AsyncConnection[Any]) -> None:
        for _ in range(count):
            async with connection.transaction():
                await connection.execute("INSERT INTO lines VALUES ('a line of some length')")
                if channel:
                    await connection.execute("SELECT pg_notify(%s, 'a')", (channel,))

    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
            for _ in range(connections)
        ]
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for each in opened:
                group.create_task(work(each))
        return connections * count / (time.monotonic() - began)


def measure_commit(server: Postgres, count: int = COMMITS) -> float:
    """Give how long one commit that notifies takes, in seconds: the median."""
    database = server.create_database()
    server.execute("CREATE TABLE lines (it text)", database)
    taken = []
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        for _ in range(count):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO lines VALUES ('a line of some length')")
            connection.execute("SELECT pg_notify('a', 'a')")
            began = time.monotonic()
            connection.execute("COMMIT")
            taken.append(time.monotonic() - began)
    return statistics.median(taken)


def measure_turn(server: Postgres, cycles: int = CYCLES) -> float:
    """Give how long a transaction over the places holds their lock, with its commit: the median."""
    return asyncio.run(_held(server.url(server.create_database()), cycles))


async def _held(url: str, cycles: int) -> float:
    held: list[float] = []
    real = places.turn

    @asynccontextmanager
    async def timed(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            it = await stack.enter_async_context(real(*arguments, **options))
            began = time.monotonic()
            yield it
        held.append(time.monotonic() - began)

    store = await open_store(url)
    try:
        with mock.patch.object(turns, "turn", timed):
            async with AsyncExitStack() as stack:
                listener = await stack.enter_async_context(listening(url))
                front, work = (
                    _queue(url, store, listener, name, slots)
                    for name, slots in (("front", 0), ("work", SLOTS))
                )
                for each in (front, work):
                    await stack.enter_async_context(each.opened())
                for _ in range(cycles):
                    await front.enqueue(make_job(), accepted_draft())
                    await work.release(await work.claim())
    finally:
        await store.close()
    return statistics.median(held)


def _queue(url: str, store: SqlStore, listener: Listener, node: str, capacity: int) -> ProcrastinateQueue:
    return ProcrastinateQueue(
        url,
        store,
        node=node,
        capacity=capacity,
        max_queued=100,
        max_suspended=1,
        listen_to=listener.on,
    )


# --- all of it --------------------------------------------------------------------------------------


def measure(world: Path, workers: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """Take all of it, as `results.json` has it."""
    disk = milliseconds_to_disk(world)
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:
        version = server.execute("SHOW server_version")[0][0]
        commit = measure_commit(server)
        turn = measure_turn(server)
        commits = [measure_commits(server, count) for count in (1, 4, 16)]
        points = [measure_point(world, server, count) for count in workers]
        events = measure_events(world, server)
        idle = measure_idle(world, server)
    first = points[0]
    costs = Costs(
        accept_serve=first.serve,
        run_worker=first.worker,
        run_agent=first.agent,
        run_postgres=first.postgres,
        turn=max(0.0, turn - commit),
        commit=commit,
        event_worker=events.worker,
        event_postgres=events.postgres,
        event_follower=events.follower,
        node_postgres=idle,
        commits=max(0.0, first.commits - 3),
    )
    return {
        "postgres": version,
        "disk_ms": disk,
        "slots": SLOTS,
        "costs": costs.as_json(),
        "points": [point.as_json() for point in points],
        "commits": [asdict(each) for each in commits],
        "events": asdict(events),
    }
