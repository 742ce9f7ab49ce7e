"""A node dies, is frozen, or loses its database: its jobs go on elsewhere or are told as interrupted, each once."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import start_ended_nodes, unsandboxed_cluster

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service, wait_until

TWO_WORKERS: dict[str, Any] = {"working": ("one", "two"), "env": {"STEADYHAND_CONCURRENCY": "4"}}
CAPACITY = 8


@pytest.fixture(scope="module")
def two_workers(make_service_in: MakeService, postgres: Postgres, store_template: str) -> Iterator[Cluster]:
    with unsandboxed_cluster(make_service_in, postgres, store_template, **TWO_WORKERS) as made:
        yield made


@pytest.fixture
def cluster(request: pytest.FixtureRequest, two_workers: Cluster) -> Cluster:
    """A node that serves and two that work, which a test may end: they are started again for the next one."""
    start_ended_nodes(two_workers, request)
    wait_until(lambda: two_workers.front.client.get("/health").json()["capacity"] == CAPACITY, 60)
    return two_workers


def waits_for(go: Path, ran: Path) -> str:
    """A prompt that notes each start of its agent, and waits for a file."""
    return f"[[standin: run='echo x >> {ran}' say=hello wait_for={go} text=done]]"


def node_of(cluster: Cluster, job_id: str) -> str:
    """The node on which the agent of a job runs now."""

    def look() -> str | None:
        job = cluster.front.get_job(job_id)
        node = job["runs"][-1]["node"] if job["state"] == "running" else None
        has_spoken = any(event["type"] == "message" for event in cluster.front.events(job_id))
        return node if has_spoken else None

    return wait_until(look, 60)


def outcomes(job: dict[str, Any]) -> Sequence[tuple[str, str]]:
    return [(run["node"], run["state"]) for run in job["runs"]]


def assert_numbered(service: Service, job: dict[str, Any]) -> None:
    """Assert that no event is missing or there twice, and that each run's are after those of the run before."""
    events = service.events(job["id"])
    assert [event["seq"] for event in events] == list(range(1, job["last_event"] + 1))
    runs = [event["run"] for event in events]
    assert runs == sorted(runs)


def test_what_a_killed_node_held_follows_on_interrupt_and_what_waited_runs_on_another(
    cluster: Cluster, common_dir: Path
) -> None:
    front, go, ran = cluster.front, common_dir / "go", common_dir / "ran"
    jobs = {
        mode: front.submit(waits_for(go, ran), on_interrupt=mode, workspace="scratch")["id"]
        for mode in ("restart", "fail", "auto")
    }
    nodes = {mode: node_of(cluster, job_id) for mode, job_id in jobs.items()}
    dead = nodes["restart"]
    other = "two" if dead == "one" else "one"
    cluster[dead].kill()
    wait_until(lambda: front.get_job(jobs["restart"])["runs"][-1]["number"] == 2, 60)
    cluster.wait_until_runs(jobs["restart"], other)
    go.touch()
    ended = {mode: front.wait_until_ended(job_id, 60) for mode, job_id in jobs.items()}
    assert outcomes(ended["restart"]) == [(dead, "interrupted"), (other, "completed")]
    for mode in ("fail", "auto"):
        expected = "interrupted" if nodes[mode] == dead else "completed"
        assert outcomes(ended[mode]) == [(nodes[mode], expected)]
    for job in ended.values():
        assert_numbered(front, job)
    assert len(ran.read_text().splitlines()) == 4, "each agent started once, that of the restarted job twice"
    assert not cluster[dead].live_agent_pids()
    assert front.run_job("[[standin: text=again]]")["runs"][0]["node"] == other


# test_retry.py has the rule, and the test above the death of a node.
@pytest.mark.long
def test_a_job_whose_nodes_died_twice_is_not_run_a_third_time_by_itself(
    cluster: Cluster, common_dir: Path
) -> None:
    job_id = cluster.front.submit(
        waits_for(common_dir / "never", common_dir / "ran"), on_interrupt="restart"
    )["id"]
    first = node_of(cluster, job_id)
    cluster[first].kill()
    second = "two" if first == "one" else "one"
    cluster.wait_until_runs(job_id, second)
    cluster[first].restart()
    cluster[second].kill()
    job = cluster.front.wait_until_ended(job_id, 60)
    assert outcomes(job) == [(first, "interrupted"), (second, "interrupted")]
    assert "2 nodes died while this job ran on them" in str(job["runs"][-1]), job


def test_a_node_that_was_frozen_writes_nothing_over_what_others_decided(
    cluster: Cluster, common_dir: Path
) -> None:
    front, go, ran = cluster.front, common_dir / "go", common_dir / "ran"
    job_id = front.submit(waits_for(go, ran), on_interrupt="restart")["id"]
    frozen = node_of(cluster, job_id)
    other = "two" if frozen == "one" else "one"
    cluster[frozen].process.send_signal(signal.SIGSTOP)
    try:
        cluster.wait_until_runs(job_id, other)
    finally:
        cluster[frozen].process.send_signal(signal.SIGCONT)
    wait_until(lambda: not cluster[frozen].live_agent_pids(), 30)
    go.touch()
    job = front.wait_until_ended(job_id, 60)
    assert outcomes(job) == [(frozen, "interrupted"), (other, "completed")]
    assert_numbered(front, job)
    # It is a good node again.
    cluster[other].kill()
    wait_until(lambda: front.client.get("/health").json()["capacity"] == 4, 30)
    assert (
        front.wait_until_ended(front.submit("[[standin: text=again]]")["id"], 60)["runs"][0]["node"] == frozen
    )


# One node in an outage is in postgres/test_server_outage.py, and the queues of two in queue/test_many_nodes.py.
@pytest.mark.long
def test_an_outage_of_the_database_ends_no_run_on_any_node(
    make_service: MakeService, common_dir: Path
) -> None:
    go, ran = common_dir / "go", common_dir / "ran"
    with Postgres() as server:
        url = server.url(server.create_database())
        with Cluster(make_service, url, working=("one",), env={"STEADYHAND_CONCURRENCY": "4"}) as cluster:
            front = cluster.front
            job_id = front.submit(waits_for(go, ran), on_interrupt="restart")["id"]
            assert node_of(cluster, job_id) == "one"
            server.stop()
            wait_until(lambda: "queue.lease_failed" in cluster["one"].log, 30)
            go.touch()
            wait_until(lambda: not cluster["one"].live_agent_pids(), 30)
            server.start()
            wait_until(lambda: front.client.get("/readyz").status_code == 200, 60)
            job = front.wait_until_ended(job_id, 60)
            assert (outcomes(job), job["answer"]) == ([("one", "completed")], "done")
            assert_numbered(front, job)
            again = front.wait_until_ended(front.submit("[[standin: text=again]]")["id"], 60)
            assert again["state"] == "completed"
            assert "queue.run_lost" not in front.log + cluster["one"].log
