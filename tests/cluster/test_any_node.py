"""Requests about one job come to any node: results of tools, messages, next turns, and clients that come back."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests import openai_types
from tests.cluster.conftest import MakeCluster

from steadyhand.api.openai.start_run import RECONNECT_SECONDS
from steadyhand.testing.cli import cli_path
from steadyhand.testing.cluster import Cluster
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service, wait_until

TOOL: dict[str, Any] = {"name": "look", "parameters": {"type": "object"}}
QUESTION = """[[standin: call='look:{"n": 1}' text="It says {last}."]]"""
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def ask(node: Service, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "chat", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
    reply = node.client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    message: dict[str, Any] = reply.json()["choices"][0]["message"]
    return message


def respond(node: Service, given: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "input": given, "tools": [{"type": "function", **TOOL}], **fields}
    reply = node.client.post(RESPONSES, json=body)
    assert reply.status_code == 200, reply.text
    response: dict[str, Any] = reply.json()
    openai_types.parse_response(response)
    return response


def attempt(number: int) -> dict[str, str]:
    """The header by which OpenAI's libraries announce the repeat of a request."""
    return {"x-stainless-retry-count": str(number)}


def results(message: dict[str, Any], text: str) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in message["tool_calls"]]


def outputs(response: dict[str, Any], text: str) -> list[dict[str, Any]]:
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    return [{"type": "function_call_output", "call_id": call["call_id"], "output": text} for call in calls]


def test_results_of_a_clients_tools_come_to_any_node(cluster: Cluster) -> None:
    front, back = cluster["front"], cluster["back"]
    talk: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    said = ask(front, talk)
    job_id = said["tool_calls"][0]["id"].split("_")[1]
    assert front.get_job(job_id)["runs"][-1]["node"] == "worker"
    talk += [said, *results(said, "sun")]
    assert ask(back, talk)["content"] == "It says sun."
    job = back.wait_until_ended(job_id)
    assert (job["state"], job["run"]) == ("completed", 1)
    assert [event["type"] for event in front.events(job_id)].count("calls.answered") == 1

    first = respond(back, QUESTION)
    given = outputs(first, "snow")
    second = respond(front, given, previous_response_id=first["id"])
    assert openai_types.parse_response(second).output_text == "It says snow."
    assert respond(back, given, previous_response_id=first["id"]) == second, "a repeat has the same answer"
    for response in (first, second):
        assert front.client.get(f"{RESPONSES}/{response['id']}").json() == response
    wrong = [{"type": "function_call_output", "call_id": "call_000000000000_1_1", "output": "x"}]
    refused = front.client.post(RESPONSES, json={"model": "chat", "input": wrong})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_call")


def test_a_client_that_comes_back_to_another_node_finds_its_run(cluster: Cluster, common_dir: Path) -> None:
    front, back, go = cluster["front"], cluster["back"], common_dir / "go"
    before = len(front.client.get("/v1/jobs").json()["data"])
    prompt = f"[[standin: say=on wait_for={go} text=done]]"
    body = {"model": "claude", "messages": [{"role": "user", "content": prompt}], "stream": True}
    with ExitStack() as streams:
        first = streams.enter_context(
            front.client.stream("POST", CHAT, json=body, headers=attempt(0), timeout=60)
        )
        job_id = first.headers["x-steadyhand-job-id"]
        again = streams.enter_context(
            back.client.stream("POST", CHAT, json=body, headers=attempt(1), timeout=60)
        )
        assert again.headers["x-steadyhand-job-id"] == job_id
        assert again.headers["idempotent-replayed"] == "true"
        lines = again.iter_lines()
        next(lines)  # it waits for the run now
        first.close()
        time.sleep(RECONNECT_SECONDS + 1)  # the front would cancel the run by now
        go.touch()
        text = "".join(lines)
    assert "done" in text
    assert front.wait_until_ended(job_id, 60)["state"] == "completed"
    assert len(front.client.get("/v1/jobs").json()["data"]) == before + 1


# The results above go the same way to the node of the run (store/test_node_calls.py).
@pytest.mark.long
def test_a_message_to_a_running_turn_comes_to_any_node(
    make_cluster: MakeCluster, model: ScriptedModel
) -> None:
    cluster = make_cluster(claude=cli_path(), model=model.url)
    front = cluster.front
    prompt = "[[scenario:silent-tool]] begin"
    job_id = front.client.post(
        "/v1/jobs", json={"agent": "claude", "prompt": prompt, "workspace": "scratch"}
    ).json()["id"]
    wait_until(lambda: any(event["type"] == "tool.started" for event in front.events(job_id)), 60)
    body, headers = {"text": "mind the gap"}, {"idempotency-key": "one"}
    answers = [front.client.post(f"/v1/jobs/{job_id}/steer", json=body, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    job = front.wait_until_ended(job_id, 60)
    assert job["state"] == "completed"
    types = [event["type"] for event in front.events(job_id) if event["type"].startswith("steer.")]
    assert types == ["steer.accepted", "steer.used"]
    late = front.client.post(f"/v1/jobs/{job_id}/steer", json=body)
    assert (late.status_code, late.json()["code"]) == (409, "not_running")


def test_the_next_turn_goes_to_the_node_of_the_turn_before_or_resumes_elsewhere(
    make_cluster: MakeCluster, common_dir: Path
) -> None:
    cluster = make_cluster(serving=(), working=(), both=("one", "two"), env={"STEADYHAND_CONCURRENCY": "1"})
    one, two = cluster["one"], cluster["two"]
    turn = one.wait_until_ended(one.submit("[[standin: text=first]]", workspace="scratch")["id"], 60)
    home = turn["runs"][-1]["node"]
    for node, text in ((two, "second"), (one, "third"), (two, "fourth")):
        body = {"prompt": f"[[standin: text={text}]]"}
        turn = node.wait_until_ended(
            node.client.post(f"/v1/jobs/{turn['id']}/turns", json=body).json()["id"], 60
        )
        assert (turn["answer"], turn["runs"][-1]["node"]) == (text, home)
    # While its node is busy it resumes on the other one.
    away = "two" if home == "one" else "one"
    gates = [common_dir / name for name in ("left", "right")]
    held = [one.submit(f"[[standin: say=on wait_for={gate} text=off]]")["id"] for gate in gates]
    for job_id in held:
        wait_until(lambda job=job_id: one.get_job(job)["state"] == "running", 60)  # type: ignore[misc]  # bound at once
    busy = {one.get_job(job_id)["runs"][-1]["node"]: gate for job_id, gate in zip(held, gates, strict=True)}
    body = {"prompt": "[[standin: history]]"}
    last = one.client.post(f"/v1/jobs/{turn['id']}/turns", json=body).json()["id"]
    busy[away].touch()
    job = two.wait_until_ended(last, 60)
    busy[home].touch()
    assert (job["state"], job["runs"][-1]["node"]) == ("completed", away)
    texts = [text for _, text in json.loads(job["answer"])]
    assert [text for text in texts if "standin" not in text] == ["first", "second", "third", "fourth"]
