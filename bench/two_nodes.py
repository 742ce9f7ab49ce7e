"""Two nodes on one Postgres, one serving and one working: until a run begins, and until a cancelled one has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.rows import Row, percentile
from bench.worlds import Broken, made_in
from steadyhand.testing.cli import install_standin
from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import Service, wait_until

JOBS = 40
_PAUSE_SECONDS = 0.1


def measure(world: Path, pairs: int) -> Sequence[Row]:
    """Measure the time from the accept of a job to the begin of its run, and from a cancel to the end of the run."""
    root = made_in(world, "two-nodes")
    agent = install_standin(root / "agent")
    starts: list[list[float]] = []
    cancels: list[list[float]] = []

    def make_service(**options: Any) -> Service:
        return Service(made_in(root, f"node-{options['env']['STEADYHAND_SERVICE__NODE']}"), agent, **options)

    with Postgres(made_in(world, "postgres"), is_durable=True) as server:
        url = server.url(server.create_database())
        with Cluster(make_service, url, env={"STEADYHAND_ISOLATION": "none"}, constants={}) as cluster:
            _run(cluster, "[[standin: text=warm]]")
            for _ in range(pairs):
                starts.append([_start_ms(cluster) for _ in range(JOBS)])
                cancels.append([_cancel_ms(cluster) for _ in range(JOBS // 4)])
    what = "from the accept of a job on one node to the begin of its run on another, idle one"
    return [
        _row("cluster-start", f"the p50 of {JOBS}: {what}", starts, 0.5, 25.0),
        _row("cluster-start-p99", f"the p99 of the same: {what}", starts, 0.99, 80.0),
        _row(
            "cluster-cancel",
            "the p50: from a cancel on one node to the end on another",
            cancels,
            0.5,
            300.0,
        ),
    ]


def _row(name: str, what: str, rounds: Sequence[Sequence[float]], share: float, goal: float) -> Row:
    figures = [percentile(each, share) for each in rounds]
    notes = [f"longest of each round: {', '.join(f'{max(each):.0f}' for each in rounds)} ms"]
    return Row(
        name,
        f"{what}; beside nothing",
        "ms",
        figures,
        [0.0] * len(rounds),
        "at most",
        goal,
        notes,
        by="added",
    )


def _run(cluster: Cluster, prompt: str) -> dict[str, Any]:
    job = cluster.front.wait_until_ended(cluster.front.submit(prompt)["id"], 60)
    if job["state"] != "completed":
        raise Broken(f"the job ended as {job['state']}")
    return job


def _start_ms(cluster: Cluster) -> float:
    """Return the milliseconds between the two by the clock of the machine, which both nodes share."""
    job = _run(cluster, "[[standin: text=done]]")
    time.sleep(_PAUSE_SECONDS)
    begin = datetime.fromisoformat(job["runs"][0]["started_at"])
    return (begin - datetime.fromisoformat(job["created_at"])).total_seconds() * 1000


def _cancel_ms(cluster: Cluster) -> float:
    front = cluster.front
    job_id = front.submit("[[standin: say=hello sleep=60]]")["id"]
    wait_until(lambda: any(event["type"] == "message" for event in front.events(job_id)), 60)
    began = time.time()
    answer = front.client.post(f"/v1/jobs/{job_id}/cancel")
    if answer.status_code != 202:
        raise Broken(f"the cancel answered {answer.status_code}")
    job = front.wait_until_ended(job_id, 60)
    return (datetime.fromisoformat(job["finished_at"]).timestamp() - began) * 1000
