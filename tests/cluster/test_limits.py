"""Limits of keys and budgets on two nodes of one Postgres: both accept jobs and run them."""

import base64
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.cluster.conftest import MakeCluster

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import wait_until

PRICES = """\
[prices."claude-haiku-4-5"]
input = "1"
output = "5000"
"""
"""So a call costs some cents, and no call costs more than it reserves."""

CALLS = """
import json, os, threading, urllib.error, urllib.request
body = json.dumps({"model": "claude-haiku-4-5", "max_tokens": 64,
    "messages": [{"role": "user", "content": "[[scenario:ok]]"}]}).encode()
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
def call():
    for _ in range(200):
        try:
            request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, headers)
            urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError as error:
            return
threads = [threading.Thread(target=call) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
"""Calls of the model, three at once, until one is refused."""


def make_keys(cluster: Cluster, *limits: dict[str, int]) -> list[str]:
    """Create keys with these limits on the first node, and return their secrets; the second one starts after that."""
    secrets = []
    for each in limits:
        body = {"name": "limited", "scopes": ["submit", "read", "cancel"], "limits": each}
        answer = cluster.front.client.post("/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        secrets.append(str(answer.json()["secret"]))
    assert cluster["two"].terminate() == 0
    cluster["two"].restart()
    return secrets


def post_at_once(cluster: Cluster, secret: str, count: int, prompt: str) -> list[Any]:
    """Submit jobs to the nodes in turn, all at once, and return the answers."""
    nodes = list(cluster.nodes.values())

    def post(number: int) -> Any:
        with nodes[number % len(nodes)].new_client(secret) as caller:
            return caller.post("/v1/jobs", json={"prompt": prompt, "workspace": "scratch"})

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(post, range(count)))


def codes(answers: list[Any]) -> list[str]:
    return [answer.json()["code"] for answer in answers if answer.status_code == 429]


# store/test_shared_limits.py has the limits, and queue/test_many_nodes.py the keys of running jobs.
@pytest.mark.long
def test_a_key_s_rate_and_its_running_and_waiting_jobs_are_those_of_all_nodes(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(serving=(), working=(), both=("one", "two"))
    often, many = make_keys(cluster, {"requests_per_minute": 4}, {"running_jobs": 1, "queued_jobs": 2})
    rated = post_at_once(cluster, often, 10, "[[standin: text=done]]")
    assert codes(rated) == ["rate_limited"] * 6
    for answer in rated:
        if answer.status_code == 202:
            cluster.front.wait_until_ended(answer.json()["id"], 60)
    limited = post_at_once(cluster, many, 10, "[[standin: say=hello sleep=60]]")
    assert codes(limited) == ["too_many_jobs"] * 7
    accepted = {answer.json()["id"] for answer in limited if answer.status_code == 202}

    def states() -> list[str]:
        return sorted(cluster.front.get_job(job_id)["state"] for job_id in accepted)

    wait_until(lambda: "running" in states(), 60)
    assert states() == ["queued", "queued", "running"]
    for job_id in accepted:
        cluster["two"].client.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.long
def test_two_nodes_exceed_a_budget_of_the_day_by_at_most_one_call(
    make_cluster: MakeCluster, model: ScriptedModel
) -> None:
    limit = 1.0
    cluster = make_cluster(
        serving=(),
        working=(),
        both=("one", "two"),
        model=model.url,
        config=PRICES,
        constants={},  # a node must not be taken for dead, however busy the machine is
        env={"STEADYHAND_LIMITS__SERVICE_PER_DAY_USD": str(limit), "STEADYHAND_ISOLATION": "none"},
    )
    program = base64.b64encode(CALLS.encode()).decode()
    command = f"echo {program} | base64 -d | /usr/bin/python3 -I -"
    prompt = f"[[standin: run={shlex.quote(command)} lifetime=120 cost=0 text=done]]"
    jobs = [
        node.submit(prompt, budget_usd=100, not_on_nodes=[name])["id"]  # so that two run on each node
        for name, node in cluster.nodes.items()
        for _ in range(2)
    ]
    ended = [cluster.front.wait_until_ended(job_id, 120) for job_id in jobs]
    assert {job["state"] for job in ended} == {"completed"}
    assert {run["node"] for job in ended for run in job["runs"]} == {"one", "two"}
    (total,) = cluster.front.client.get("/v1/usage").json()["data"]
    one_call = float(total["cost"]["usd"]) / model.calls
    assert model.calls > 5
    assert limit <= float(total["cost"]["usd"]) < limit + one_call
    # A run that came too late for a call has one in the ledger that its agent reports, of no cost.
    assert model.calls <= total["calls"] < model.calls + len(jobs)
