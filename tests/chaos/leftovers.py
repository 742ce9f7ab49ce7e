"""What is still taken once all jobs of a chaos run have ended: asked of the nodes, and tried by jobs that need it."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.kinds import IN_PLACE, Kind
from tests.chaos.model_calls import MODEL

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.service import Service, wait_until

QUIET_SECONDS = 30.0
PROBE_SECONDS = 90.0
FILE_SECONDS = 60.0
"""The time within which what a node could not store in an outage is there for the others."""


def find_busy(cluster: Cluster) -> Iterator[str]:
    """Find nodes that count a job although all have ended, and agents that are alive."""

    def is_quiet() -> bool:
        health = [node.client.get("/health").json() for node in cluster.nodes.values()]
        return all(each["active"] == each["queued"] == 0 for each in health)

    try:
        wait_until(is_quiet, QUIET_SECONDS)
    except TimeoutError:
        yield "a slot is left taken"
    for name, node in cluster.nodes.items():
        try:
            wait_until(lambda node=node: not node.live_agent_pids(), 15)  # type: ignore[misc]  # bound at once
        except TimeoutError:
            yield f"agents of {name} are alive"


def list_nodes(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the nodes of a cluster, as one of them tells of them."""
    answer = cluster.front.client.get("/v1/nodes")
    nodes: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return nodes


def create_key(cluster: Cluster) -> str:
    """Create a key that may run as many jobs at once as the nodes can; return it once every node accepts it."""
    slots = sum(node["slots"] for node in list_nodes(cluster))
    body = {
        "name": "chaos",
        "scopes": ["submit", "read", "cancel"],
        "limits": {"running_jobs": slots, "queued_jobs": 10_000},
    }
    secret = str(cluster.front.client.post("/v1/keys", json=body).raise_for_status().json()["secret"])

    def is_known(node: Service) -> bool:
        with node.new_client(secret) as caller:
            return caller.get("/v1/jobs").is_success

    wait_until(lambda: all(is_known(node) for node in cluster.nodes.values()), QUIET_SECONDS)
    return secret


def probe(cluster: Cluster, secret: str, directory: Path, *, has_in_place: bool) -> Iterator[str]:
    """Take all slots of all nodes and all places of the key at once, then the directory for one job at a time."""
    go = directory / "go"
    slots = sum(node["slots"] for node in list_nodes(cluster))
    with cluster.front.new_client(secret) as caller:

        def submit(prompt: str, workspace: str) -> str:
            body = {"prompt": prompt, "workspace": workspace, "on_interrupt": "restart"}
            return str(caller.post("/v1/jobs", json=body).raise_for_status().json()["id"])

        def states(job_ids: Sequence[str]) -> list[str]:
            return [cluster.front.get_job(each)["state"] for each in job_ids]

        every = [submit(f"[[standin: wait_for={go} text=done]]", "scratch") for _ in range(slots)]
        try:
            wait_until(lambda: set(states(every)) == {"running"}, PROBE_SECONDS)
        except TimeoutError:
            yield f"a slot or a place of the key is left taken: of {slots} jobs {states(every).count('running')} run"
        go.touch()
        last = [*every, submit("[[standin: text=done]]", IN_PLACE if has_in_place else "scratch")]
        try:
            wait_until(lambda: set(states(last)) == {"completed"}, PROBE_SECONDS)
        except TimeoutError:
            yield f"the last jobs do not end, that after them is {states(last)[-1]}"


def find_lost_files(
    cluster: Cluster, kinds: Sequence[Kind], jobs: Mapping[int, Mapping[str, Any]], seed: int
) -> Iterator[str]:
    """Find completed jobs whose transcript or diff a node cannot give, whichever has run them."""
    chosen = random.Random(seed)  # noqa: S311  # it has to be the same again
    for number, job in jobs.items():
        if job["state"] != "completed":
            continue
        node = chosen.choice(sorted(cluster.nodes))
        expected = {"transcript": "begin", **({"diff": "+made"} if kinds[number].has_changes else {})}
        for name, text in expected.items():
            try:
                wait_until(lambda: _has_file(cluster[node], job, name, text), FILE_SECONDS)  # noqa: B023  # called at once
            except TimeoutError:
                yield f"job {number}: {node} has no {name} of it"


def _has_file(node: Service, job: Mapping[str, Any], name: str, text: str) -> bool:
    answer = node.client.get(f"/v1/jobs/{job['id']}/{name}")
    return answer.is_success and text in answer.text


def usage_of_all(cluster: Cluster) -> dict[str, Any]:
    """Return the sum of all calls of the model, as the service tells it.

    A run that ended before its first call has an entry that its agent reports; it names no model.
    """
    rows = cluster.front.client.get("/v1/usage", params={"model": MODEL}).raise_for_status().json()["data"]
    empty: dict[str, Any] = {"calls": 0, "usage": {"output_tokens": 0}}
    return dict(rows[0]) if rows else empty
