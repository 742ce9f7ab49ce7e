"""A node that serves and one that works, on one Postgres: each kind of job, and what holds when one of them dies."""

from pathlib import Path

import pytest
from tests.cluster.conftest import MakeCluster

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import wait_until


def waits_for(go: Path) -> str:
    return f"[[standin: say=hello wait_for={go} text=done]]"


def test_jobs_that_one_node_accepts_run_on_the_other_and_are_read_from_the_first(cluster: Cluster) -> None:
    front, worker = cluster["front"], cluster["worker"]
    job = front.wait_until_ended(front.submit("[[standin: say=hello text=done]]")["id"], 60)
    assert (job["state"], job["answer"], [run["node"] for run in job["runs"]]) == (
        "completed",
        "done",
        ["worker"],
    )
    assert [event["seq"] for event in front.events(job["id"])] == list(range(1, job["last_event"] + 1))
    wait_until(lambda: front.client.get("/health").json()["capacity"] == 4)  # by its heartbeat
    assert worker.client.get("/health").status_code == 200
    assert worker.client.get("/readyz").status_code == 200
    assert worker.client.get("/metrics").status_code == 200
    refused = worker.client.post("/v1/jobs", json={"prompt": "x", "workspace": "scratch"})
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert "steadyhand serve" in refused.json()["detail"]


def test_a_job_is_cancelled_from_the_node_that_serves(cluster: Cluster, common_dir: Path) -> None:
    job_id = cluster.front.submit(waits_for(common_dir / "never"))["id"]
    cluster.wait_until_runs(job_id, "worker")
    assert cluster.front.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    assert cluster.front.wait_until_ended(job_id)["state"] == "cancelled"
    wait_until(lambda: not cluster["worker"].live_agent_pids())


# queue/test_many_nodes.py has nodes, and store/test_followers_on_nodes.py followers behind it.
@pytest.mark.long
def test_two_nodes_work_behind_pgbouncer_when_notifications_have_an_address_of_their_own(
    make_cluster: MakeCluster, postgres: Postgres, pgbouncer_url: str, postgres_url: str
) -> None:
    cluster = make_cluster(url=pgbouncer_url, env={"STEADYHAND_SERVICE__DATABASE_LISTEN_URL": postgres_url})
    job = cluster.front.wait_until_ended(cluster.front.submit("[[standin: text=done]]")["id"], 60)
    assert (job["state"], job["runs"][0]["node"]) == ("completed", "worker")
    assert not any("store.listens_to_pooler" in node.log for node in cluster.nodes.values())
    listening = postgres.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN %' OR application_name LIKE '%listener%'",
        postgres_url.rpartition("/")[2],
    )
    assert listening == [(2,)], "each node has one connection that listens"
