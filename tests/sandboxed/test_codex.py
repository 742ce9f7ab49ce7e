"""Codex, real and sealed, against the scripted model: its events, its usage, its sessions and its ends."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.codex_services import codex_config, counted, next_turn, run, usage

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

CANARY = "sk-canary-the-real-key-of-openai"
POOR = """\
[agents.poor]
runner = "codex"
provider = "models"
model = "gpt-5.1-codex"
budget_usd = "0.000001"
"""


@pytest.fixture(scope="module", params=["bwrap", "none"])
def codex(
    make_service_in: MakeService, request: pytest.FixtureRequest
) -> Iterator[tuple[Service, ScriptedModel]]:
    """A service with Codex, and the model that it asks."""
    with ScriptedModel("ok") as model:
        made = make_service_in(
            env={"STEADYHAND_ISOLATION": request.param, "STEADYHAND_SERVICE__REATTACH_SECONDS": "30"}
        )
        key = made.root / "openai.key"
        key.write_text(CANARY)
        made.config_path.write_text(codex_config(model.url, key) + POOR)
        with made:
            yield made, model


def steps(service: Service, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        event
        for event in service.events(job["id"])
        if event["type"] in ("message", "thinking", "tool.started", "tool.finished")
    ]


def test_a_text_comes_with_the_usage_that_the_model_counts(codex: tuple[Service, ScriptedModel]) -> None:
    service, model = codex
    model.clear()
    job = run(service, "--version\n[[scenario:ok]]")
    assert (job["state"], job["outcome"]["type"]) == ("completed", "success"), (job, service.log)
    assert [event["type"] for event in steps(service, job)] == ["message"]
    assert job["answer"] == steps(service, job)[0]["data"]["text"]
    assert usage(job) == counted(model)
    assert job["cost"]["source"] == "ledger"
    assert "--version" in model.requests[-1].prompt


def test_a_tool_edits_a_file_and_the_change_is_the_diff_of_the_job(
    codex: tuple[Service, ScriptedModel],
) -> None:
    service, model = codex
    model.clear()
    repository = str(service.root / "workspace")
    job = run(service, "[[scenario:edit]]", workspace=repository)
    assert job["state"] == "completed", (job, service.log)
    kinds = [event["type"] for event in steps(service, job)]
    assert {"tool.started", "tool.finished", "message"} <= set(kinds)
    diff = service.client.get(f"/v1/jobs/{job['id']}/diff")
    assert diff.status_code == 200, diff.text
    assert "+" in diff.text
    assert usage(job) == counted(model)
    transcript = service.client.get(f"/v1/jobs/{job['id']}/transcript").text
    assert json.loads(transcript.splitlines()[0])["type"] == "session_meta"


def test_a_turn_goes_on_in_the_thread_with_a_usage_of_its_own(codex: tuple[Service, ScriptedModel]) -> None:
    service, model = codex
    first = run(service, "Remember the word heron. [[scenario:ok]]")
    record = service.client.get(f"/v1/jobs/{first['id']}/transcript").text
    for word, other in (("marmot", "lynx"), ("lynx", "marmot")):
        model.clear()
        turn = next_turn(service, first, f"Remember the word {word}, too. [[scenario:ok]]")
        assert turn["state"] == "completed", (turn, service.log)
        assert turn["session_id"] == first["session_id"]
        asked = json.dumps(model.requests[-1].body)
        assert "heron" in asked
        assert other not in asked  # both turns go on where the first one ended
        assert usage(turn) == counted(model)
        transcript = service.client.get(f"/v1/jobs/{turn['id']}/transcript").text
        assert "heron" in transcript
        assert word in transcript
    assert service.client.get(f"/v1/jobs/{first['id']}/transcript").text == record


@pytest.mark.parametrize(
    ("scenario", "outcome", "retryable"),
    [
        ("no-such-model", "model_error", False),
        ("server-error", "model_error", True),
        ("no-credit", "budget", False),
    ],
)
def test_a_failure_is_judged_by_the_answer_of_the_model_which_is_asked_once(
    codex: tuple[Service, ScriptedModel], scenario: str, outcome: str, *, retryable: bool
) -> None:
    service, model = codex
    model.clear()
    job = run(service, f"[[scenario:{scenario}]]")
    assert (job["state"], job["outcome"]["type"]) == ("failed", outcome), job
    assert job["error"]["retryable"] is retryable
    assert model.calls == 1
    assert (job["cost"]["usd"], usage(job)) == ("0.000000", counted(model))


def test_a_spent_budget_ends_the_run_within_one_call(codex: tuple[Service, ScriptedModel]) -> None:
    service, model = codex
    model.clear()
    job = run(service, "[[scenario:loop]]", agent="poor")
    assert job["outcome"]["type"] == "budget", job
    assert model.calls <= 2


def test_a_cancel_ends_codex_and_its_command(codex: tuple[Service, ScriptedModel]) -> None:
    service, _ = codex
    job = service.submit("[[scenario:deaf-tool]]", agent="codex", workspace="scratch")
    wait_until(lambda: any(event["type"] == "tool.started" for event in service.events(job["id"])), 60)
    assert service.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
    ended = service.wait_until_ended(job["id"], 30)
    assert ended["state"] == "cancelled"
    wait_until(lambda: not service.live_agent_pids(), 1)


@pytest.mark.parametrize(("name", "asked"), [("codex", "gpt-5.1-codex"), ("codex/gpt-5-mini", "gpt-5-mini")])
def test_the_routes_of_openai_reach_it_by_its_name_and_a_model(
    codex: tuple[Service, ScriptedModel], name: str, asked: str
) -> None:
    service, model = codex
    model.clear()
    chat = {"model": name, "messages": [{"role": "user", "content": "[[scenario:echo]] by chat"}]}
    answer = service.client.post("/v1/chat/completions", json=chat)
    assert answer.status_code == 200, answer.text
    assert "by chat" in answer.json()["choices"][0]["message"]["content"]
    body = {"model": name, "input": "[[scenario:echo]] by responses", "stream": True}
    answer = service.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    last = json.loads(answer.text.rpartition("event: response.completed\ndata: ")[2].partition("\n")[0])
    assert "by responses" in json.dumps(last["response"]["output"])
    assert last["response"]["usage"]["output_tokens"] > 0
    assert {request.model for request in model.requests} == {asked}
    jobs = service.client.get("/v1/jobs", params={"agent": "codex", "limit": 2}).json()["data"]
    assert [(job["runner"], job["origin"]) for job in jobs] == [("codex", "openai")] * 2
    for job in jobs:  # the answer comes before the end of the run
        assert service.wait_until_ended(job["id"])["state"] == "completed"
    assert service.client.get(f"/v1/models/{name}").json()["id"] == name


def test_a_run_goes_on_over_a_kill_of_the_service(codex: tuple[Service, ScriptedModel]) -> None:
    service, model = codex
    model.clear()
    job_id = service.submit("[[scenario:silent-tool]]", agent="codex", workspace="scratch")["id"]
    wait_until(lambda: any(event["type"] == "tool.started" for event in service.events(job_id)), 60)
    service.kill()
    service.restart()
    job = service.wait_until_ended(job_id, 60)
    assert (job["state"], len(job["runs"])) == ("completed", 1), (job, service.log)
    kinds = [event["type"] for event in steps(service, job)]
    assert kinds == ["message", "tool.started", "tool.finished", "message"]
    assert "it is there" in job["answer"]
    assert usage(job) == counted(model)


def test_the_credential_is_on_the_wire_and_nowhere_else(codex: tuple[Service, ScriptedModel]) -> None:
    service, model = codex
    model.clear()
    job = run(service, "[[scenario:ok]]")
    assert {request.headers["authorization"] for request in model.requests} == {f"Bearer {CANARY}"}
    told = str(job) + str(service.events(job["id"])) + service.log
    assert CANARY not in told
    holding = [path for path, content in contents_below(service.root) if CANARY.encode() in content]
    assert [Path(path).name for path in holding] == ["openai.key"]
