"""Nodes on one Postgres at work: jobs a second by the number of workers, the cost of an idle node."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rows import Row, Series
from bench.worlds import Broken, made_in
from steadyhand.testing.cli import install_standin
from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import Service

WORKERS = (1, 2, 4)
JOBS = 60
IDLE_SECONDS = 20.0
_SETTLE_SECONDS = 8.0
_WAIT_SECONDS = 120.0


# --- jobs a second ---------------------------------------------------------------------------------


def measure_rate(world: Path, pairs: int) -> Sequence[Row | Series]:
    """Measure the stand-in jobs a second with 1, 2 and 4 workers, each a process with four slots."""
    root = made_in(world, "rate")
    agent = install_standin(root / "agent")
    rates: dict[int, list[float]] = {count: [] for count in WORKERS}
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:
        for number in range(pairs):
            for count in WORKERS:
                folder = made_in(root, f"round-{number}-{count}")
                url = server.url(server.create_database())
                rates[count].append(_jobs_per_second(folder, agent, url, count))
    points = [(count, sum(found) / len(found)) for count, found in rates.items()]
    what = f"{JOBS} stand-in jobs of 4 slots in each worker, from the first accept to the last end"
    return [
        Row("cluster-rate", f"{what}: 2 workers; beside 1", "/s", rates[2], rates[1], "at least", 1.0),
        Series("cluster-workers", what, "workers", "jobs/s", {"jobs": points}),
    ]


def _jobs_per_second(root: Path, agent: Path, url: str, count: int) -> float:
    def make_service(**options: Any) -> Service:
        return Service(made_in(root, options["env"]["STEADYHAND_SERVICE__NODE"]), agent, **options)

    env = {"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVICE__MAX_QUEUED": "1000"}
    working = tuple(f"worker-{number}" for number in range(count))
    with Cluster(make_service, url, working=working, env=env, constants={}) as cluster:
        _run_jobs(cluster.front, count)
        began = time.monotonic()
        _run_jobs(cluster.front, JOBS)
        return JOBS / (time.monotonic() - began)


def _run_jobs(front: Service, count: int) -> None:
    ids = {front.submit("[[standin: text=done]]")["id"] for _ in range(count)}
    deadline = time.monotonic() + _WAIT_SECONDS
    while ids:
        page = front.client.get("/v1/jobs", params={"state": "completed", "limit": 100}).json()
        ids -= {job["id"] for job in page["data"]}
        if time.monotonic() > deadline:
            raise Broken(f"{len(ids)} of {count} jobs have not ended")
        time.sleep(0.02)


# --- an idle node ----------------------------------------------------------------------------------


def measure_idle(world: Path, pairs: int) -> Sequence[Row]:
    """Measure the statements a second of an idle node, and the share of a core that the busier of two takes."""
    root = made_in(world, "idle")
    agent = install_standin(root / "agent")
    statements, shares = [], []
    with Postgres(made_in(world, "postgres"), is_durable=True) as server:
        database = server.create_database()
        server.execute(f"ALTER DATABASE \"{database}\" SET log_statement = 'all'")

        def make_service(**options: Any) -> Service:
            return Service(made_in(root, options["env"]["STEADYHAND_SERVICE__NODE"]), agent, **options)

        with Cluster(
            make_service, server.url(database), env={"STEADYHAND_ISOLATION": "none"}, constants={}
        ) as cluster:
            _run_jobs(cluster.front, 1)
            time.sleep(_SETTLE_SECONDS)
            pids = [node.process.pid for node in cluster.nodes.values()]
            for _ in range(pairs):
                before, began = _statements(server, database), time.monotonic()
                processor = [_processor_seconds(pid) for pid in pids]
                time.sleep(IDLE_SECONDS)
                seconds = time.monotonic() - began
                taken = [
                    _processor_seconds(pid) - former for pid, former in zip(pids, processor, strict=True)
                ]
                # Those of both nodes, of which each has the same tasks.
                statements.append((_statements(server, database) - before) / seconds / len(cluster.nodes))
                shares.append(100 * max(taken) / seconds)
    nothing = [0.0] * pairs
    return [
        Row("cluster-idle-statements", "of an idle node, with BEGIN and COMMIT; beside nothing", "/s", statements,
            nothing, "at most", 2.0, by="added"),
        Row("cluster-idle-cpu", "of a core, that the busier of two idle nodes takes; beside nothing", "%", shares,
            nothing, "at most", 0.5, by="added"),
    ]  # fmt: skip


def _statements(server: Postgres, database: str) -> int:
    pattern = rf"^\S+ \S+ \S+ \[\d+\] {database} LOG:  (?:statement|execute)"
    return len(re.findall(pattern, server.log(), re.MULTILINE))


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
