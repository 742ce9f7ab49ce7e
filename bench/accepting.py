"""How fast jobs are accepted, durably: beside a web framework that answers a constant, and Postgres beside SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.rows import Row, interleave
from bench.worlds import Broken, ask_client, child_environment, made_in
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import CLASSIC_KEY, Service

POSTS = 2_000
CONNECTIONS = 16
WARM_UP = 200
PAGE = 200
APPENDS = 50
_WAIT = 180


def measure(world: Path, pairs: int) -> Row:
    """Measure it; raises `Broken` when a job that was accepted is not there after a `kill -9`."""
    found = []
    disk = [milliseconds_to_disk(world)]
    with constant() as baseline:

        def ours() -> float:
            rate, kept = accepted_per_second(made_in(world, "accept"))
            found.append(kept)
            return rate

        def theirs() -> float:
            post(baseline, WARM_UP)
            return POSTS / float(post(baseline, POSTS)["seconds"])

        figures = interleave(pairs, ours, theirs)
    disk.append(milliseconds_to_disk(world))
    notes = (
        f"{sum(found)} of {len(found) * POSTS} accepted jobs found again after kill -9 and restart",
        f"an append reached this disk in {disk[0]:.1f} ms before and {disk[1]:.1f} ms after (fdatasync, median)",
    )
    what = (
        f"POST /execute: {POSTS} posts, {CONNECTIONS} connections, SQLite WAL, synchronous=FULL, "
        "workers paused; beside FastAPI answering a constant"
    )
    return Row("accept", what, "/s", *figures, "at least", 0.3, notes)


@dataclass(frozen=True, slots=True)
class Route:
    """A way to submit a job: its path, what its body has beside the prompt, and the key of the id in its answer."""

    path: str
    fields: dict[str, str]
    id_key: str


EXECUTE = Route("/execute", {"agent": "claude"}, "job_id")
NATIVE = Route("/v1/jobs", {"workspace": "scratch"}, "id")


def measure_postgres(world: Path, pairs: int) -> Row:
    """Measure the native route with each database on the same disk; raises `Broken` as `measure` does."""
    found = []
    disk = [milliseconds_to_disk(world)]
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:

        def ours() -> float:
            url = server.url(server.create_database())
            rate, kept = accepted_per_second(made_in(world, "accept"), NATIVE, url)
            found.append(kept)
            return rate

        def theirs() -> float:
            return accepted_per_second(made_in(world, "accept"), NATIVE)[0]

        figures = interleave(pairs, ours, theirs)
    disk.append(milliseconds_to_disk(world))
    notes = (
        f"{sum(found)} of {len(found) * POSTS} jobs that Postgres had were found again after kill -9 and restart",
        f"an append reached this disk in {disk[0]:.1f} ms before and {disk[1]:.1f} ms after (fdatasync, median)",
    )
    what = (
        f"POST /v1/jobs: {POSTS} posts, {CONNECTIONS} connections, Postgres with fsync and synchronous_commit; "
        "beside SQLite WAL, synchronous=FULL"
    )
    return Row("accept-postgres", what, "/s", *figures, "at least", 0.5, notes)


def milliseconds_to_disk(world: Path) -> float:
    """Give how long the disk takes for an append of a few pages, in ms: what every commit has to wait for."""
    path = made_in(world, "disk") / "file"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(APPENDS):
            began = time.monotonic()
            file.write(bytes(32 * 1024))
            os.fdatasync(file.fileno())
            taken.append(1000 * (time.monotonic() - began))
    return statistics.median(taken)


def accepted_per_second(
    root: Path, route: Route = EXECUTE, database_url: str | None = None
) -> tuple[float, int]:
    """Give how many jobs a second a new service accepts, and how many of them outlive it."""
    settings = {"STEADYHAND_SERVICE__PAUSED": "true", "STEADYHAND_SERVICE__MAX_QUEUED": "1000000"}
    if database_url is not None:
        settings["STEADYHAND_DATABASE_URL"] = database_url
    # Nothing is run while the workers are paused, so any program will do for an agent.
    service = Service(root, Path("/bin/true"), env=settings)
    try:
        service.start()
        post(service.url, WARM_UP, route)
        done = post(service.url, POSTS, route)
        service.kill()
        if database_url is None:
            check_journal(service.data_dir / "steadyhand.db")
        service.restart()
        accepted = {json.loads(answer)[route.id_key] for answer in done["answers"]}
        kept = accepted & set(queued(service))
    finally:
        service.close()
    if len(accepted) != POSTS or kept != accepted:
        raise Broken(
            f"of {POSTS} posts {len(accepted)} were accepted, and {len(kept)} jobs were there after kill -9"
        )
    return POSTS / done["seconds"], len(kept)


def check_journal(database: Path) -> None:
    """Raise `Broken` unless the database is in WAL mode."""
    connection = sqlite3.connect(database)
    try:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    finally:
        connection.close()
    if mode != "wal":
        raise Broken(f"the database's journal mode is {mode}, not wal")


def queued(service: Service) -> Iterator[str]:
    """Give the ids of all queued jobs, by pages."""
    cursor: dict[str, Any] = {}
    while True:
        answer = service.client.get("/v1/jobs", params={"state": "queued", "limit": PAGE, **cursor})
        if answer.status_code != 200:
            raise Broken(f"listing the jobs gave {answer.status_code}: {answer.text[:200]}")
        page = answer.json()
        yield from (job["id"] for job in page["data"])
        if not page["has_more"]:
            return
        cursor = {"cursor": page["next_cursor"]}


def post(url: str, count: int, route: Route = EXECUTE) -> dict[str, Any]:
    """Post so many jobs from a client in a process of its own; gives what `bench.posting` printed."""
    where = urlsplit(url)
    asked = {
        "host": where.hostname,
        "port": where.port,
        "path": route.path,
        "headers": {"content-type": "application/json", "authorization": f"Bearer {CLASSIC_KEY}"},
        "bodies": [
            json.dumps({"prompt": f"Summarise ticket {number} in two sentences.", **route.fields})
            for number in range(count)
        ],
        "connections": CONNECTIONS,
    }
    return ask_client("bench.posting", asked, _WAIT)


@contextmanager
def constant() -> Iterator[str]:
    """Run the baseline in a process of its own; gives its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.constant"],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
