"""Who holds a slot: not a run that waits for its client, and not a job whose directory another one works in."""

import itertools
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.blackbox.test_shutdown_tool_calls import job_of, output, respond

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, run_git, wait_until

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
REAL_QUESTION = {"role": "user", "content": "[[scenario:client-tools]] weather?"}
QUESTION = """[[standin: call='look:{"n": 1}' text="It says {last}."]]"""
SLOTS = 4


def ask(http: httpx2.Client, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "claude", "messages": messages, "tools": [WEATHER]}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()["choices"][0]["message"]
    return found


def answer(http: httpx2.Client, said: dict[str, Any]) -> dict[str, Any]:
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in said["tool_calls"]]
    return ask(http, [REAL_QUESTION, said, *results])


def job_id_of(said: dict[str, Any]) -> str:
    job_id: str = said["tool_calls"][0]["id"].split("_")[1]
    return job_id


@pytest.mark.long  # the rules are in `tests/worker/test_waiting_runs`, late results in `test_client_tools`
def test_chats_whose_client_never_answers_leave_the_service_to_others(
    make_service: MakeService, model: ScriptedModel
) -> None:
    config = f"[service]\nconcurrency = {SLOTS}\nmax_waiting_runs = {SLOTS}\n"
    with make_service(claude=cli_path(), model=model.url, config=config) as service:
        http = service.client
        chats = [ask(http, [REAL_QUESTION]) for _ in range(SLOTS)]
        wait_until(lambda: http.get("/health").json()["active"] == 0)
        assert service.run_job("[[scenario:ok]]", workspace="scratch")["state"] == "completed"
        # One process more than may wait: the oldest ends, once the CLI has written its calls down.
        chats.append(ask(http, [REAL_QUESTION]))
        oldest = service.wait_until_ended(job_id_of(chats[0]))
        assert (oldest["state"], oldest["outcome"]["type"]) == ("interrupted", "unanswered")
        assert oldest["outcome"]["detail"].startswith("The process ended to make room")
        assert {service.get_job(job_id_of(each))["state"] for each in chats[1:]} == {"running"}
        # Its results resume its session, where the model finds its calls; those of another reach its process.
        model.clear()
        for said, run in ((chats[0], 2), (chats[1], 1)):
            assert answer(http, said)
            assert service.get_job(job_id_of(said))["run"] == run
        told = str(model.requests[0].body["messages"])
        assert "mcp__client__get_weather" in told
        assert "Your last tool calls were made after all" in told


def gated(service: Service, gate: Path) -> str:
    """Start a job that holds the only slot until the gate is there."""
    job_id: str = service.submit(f"[[standin: wait_for={gate}]]", workspace="scratch")["id"]
    wait_until(lambda: service.get_job(job_id)["state"] == "running")
    return job_id


def test_a_run_whose_results_have_come_goes_on_before_the_queue_and_its_results_outlive_a_restart(
    make_service: MakeService, common_dir: Path
) -> None:
    env = {"STEADYHAND_CONCURRENCY": "1", "STEADYHAND_SERVICE__DRAIN_SECONDS": "0"}
    with make_service(env=env) as service:
        first = respond(service.client, QUESTION)
        held = gated(service, common_dir / "one")
        urgent = service.submit("[[standin: text=urgent]]", workspace="scratch", priority=9)["id"]
        results = {"input": output(first, "sun"), "previous_response_id": first["id"], "background": True}
        second = service.client.post("/v1/responses", json={"model": "chat", **results}).json()
        assert second["status"] == "in_progress"
        (common_dir / "one").touch()
        ended = [service.wait_until_ended(each) for each in (held, urgent, job_of(service, first)["id"])]
        assert [job["state"] for job in ended] == ["completed"] * 3
        assert (ended[2]["run"], ended[2]["answer"]) == (1, "It says sun.")
        assert ended[2]["finished_at"] <= ended[1]["started_at"]
        # Now the service stops while the results wait for the slot.
        first = respond(service.client, QUESTION)
        gated(service, common_dir / "two")
        words = "[[standin: text='Snow after all.']]"
        results = {"input": output(first, words), "previous_response_id": first["id"], "background": True}
        second = service.client.post("/v1/responses", json={"model": "chat", **results}).json()
        service.terminate()
        (common_dir / "two").touch()
        service.restart()
        job = service.wait_until_ended(job_of(service, first)["id"])
        assert (job["state"], job["run"], job["answer"]) == ("completed", 2, "Snow after all.")
        assert service.client.get(f"/v1/responses/{second['id']}").json()["status"] == "completed"


@pytest.mark.long  # as in `tests/worker/test_waiting_runs`
def test_a_key_has_a_number_of_processes_that_wait(make_service: MakeService) -> None:
    with make_service(config="[service]\nmax_waiting_runs_per_key = 1\n") as service:
        first = respond(service.client, QUESTION)
        tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
        body = {"model": "chat", "input": QUESTION, "tools": [tool]}
        refused = service.client.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
        assert 1 <= int(refused.headers["retry-after"]) <= 600
        assert "wait for results" in refused.json()["error"]["message"]
        assert service.run_job("hello", workspace="scratch")["state"] == "completed"
        with service.new_client(
            service.client.post("/v1/keys", json={"name": "other", "scopes": ["submit", "read"]}).json()[
                "secret"
            ]
        ) as other:
            respond(other, QUESTION)
        respond(service.client, output(first, "sun"), previous_response_id=first["id"])
        respond(service.client, QUESTION)


@pytest.mark.long  # as in `tests/worker/test_waiting_runs`
def test_a_job_whose_directory_is_in_use_waits_without_a_slot(
    make_service: MakeService, common_dir: Path
) -> None:
    site = common_dir / "site"
    site.mkdir()
    run_git(site, "init", "-q", "-b", "main")
    (common_dir / "link").symlink_to(site)
    names = {"site": site, "same": common_dir / "link"}
    config = "[service]\nconcurrency = 2\n" + "".join(
        f'[workspaces.{name}]\nrepository = "{path}"\nmode = "in_place"\n' for name, path in names.items()
    )
    gate = common_dir / "gate"
    with make_service(config=config) as service:
        first = service.submit(f"[[standin: wait_for={gate}]]", workspace="site")["id"]
        wait_until(lambda: service.get_job(first)["state"] == "running")
        waiting = [service.submit("hello", workspace=name)["id"] for name in ("same", "site")]
        other = service.run_job("hello", workspace="scratch")
        assert other["state"] == "completed"
        assert {service.get_job(each)["state"] for each in waiting} == {"queued"}
        gate.touch()
        jobs = [service.wait_until_ended(each) for each in (first, *waiting)]
        assert [job["state"] for job in jobs] == ["completed"] * 3
        for before, after in itertools.pairwise(jobs):
            assert before["finished_at"] <= after["started_at"]
