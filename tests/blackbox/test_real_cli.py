"""Each route and profile once with the real CLI and the scripted model, in an environment built from nothing."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest

from steadyhand.testing.cli import DUMMY_API_KEY, cli_path
from steadyhand.testing.example import make_repository
from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until

OK = "ok: the scripted model has read the prompt."


@pytest.fixture(scope="module")
def real_classic(make_service_in: MakeService, model: ScriptedModel) -> Iterator[Service]:
    with make_service_in(classic=True, claude=cli_path(), model=model.url) as service:
        yield service


LONG_CLASSIC = pytest.mark.parametrize(
    "real", ["default", pytest.param("classic", marks=pytest.mark.long)], indirect=True
)
"""For what is the same in both profiles, and differs by the agent alone."""
LONG_DEFAULT = pytest.mark.parametrize(
    "real", [pytest.param("default", marks=pytest.mark.long), "classic"], indirect=True
)
"""For what the tests of single rooms show with the real CLI in the default profile."""


@pytest.fixture(params=["default", "classic"])
def real(request: pytest.FixtureRequest) -> Service:
    """Each profile in turn."""
    found: Service = request.getfixturevalue(f"real_{request.param}")
    return found


@LONG_CLASSIC
def test_a_prompt_of_two_megabytes_is_executed_by_the_real_cli(real: Service, model: ScriptedModel) -> None:
    model.clear()
    prompt = "0123456789abcde\n" * 125_000 + "the end of it"
    accepted = real.execute_classic(prompt, "issue-responder", metadata={"n": 1})
    job = real.poll_classic(accepted["job_id"], 60)
    assert (job["status"], job["exit_code"], job["metadata"]) == ("completed", 0, {"n": 1}), job["stderr"]
    result = json.loads("".join(job["output"]))
    assert (result["type"], result["subtype"], result["is_error"]) == ("result", "success", False)
    assert result["result"] == OK
    # Exactly one call for an answer reached the model, as the agent that was asked for, with a key that is none.
    (request,) = model.requests
    assert prompt.strip() in request.prompt
    assert "You answer issue-responder questions." in request.system
    assert DUMMY_API_KEY in (
        request.headers.get("x-api-key"),
        request.headers.get("authorization", "").partition(" ")[2],
    )
    usage = real.get_job(job["job_id"])["usage"]
    assert usage["output_tokens"] == model.conversation_totals["output_tokens"]
    assert usage["input_tokens"] == model.conversation_totals["input_tokens"]


@LONG_CLASSIC
def test_an_agent_that_nobody_defined_with_the_real_cli(real: Service, model: ScriptedModel) -> None:
    model.clear()
    job = real.poll_classic(real.execute_classic("Say ok.", "nobody")["job_id"])
    assert (job["status"], job["exit_code"]) == ("failed", 1)
    assert "--agent 'nobody' not found. Available agents: " in job["stderr"]
    assert "issue-responder" in job["stderr"]
    assert model.calls == 0


@LONG_CLASSIC
def test_a_native_job_with_the_real_cli_has_events_transcript_and_cost(real: Service) -> None:
    job = real.run_job("[[scenario:bash]] Make a file.", agent="claude", workspace="default")
    assert job["state"] == "completed", job
    assert "hello from bash" in job["answer"]
    assert float(job["cost"]["usd"]) > 0
    assert job["usage"]["turns"] >= 1
    events = real.events(job["id"])
    assert [event["seq"] for event in events] == list(range(1, job["last_event"] + 1))
    if not real.classic:
        (started,) = [event["data"] for event in events if event["type"] == "tool.started"]
        assert started["name"] == "Bash"
        (finished,) = [event["data"] for event in events if event["type"] == "tool.finished"]
        assert "hello from bash" in str(finished["output"])
        assert next(e["data"]["text"] for e in events if e["type"] == "message").startswith(
            "I'll make a file"
        )
        assert "made-by-bash.txt" in real.client.get(f"/v1/jobs/{job['id']}/diff").text
    transcript = real.client.get(f"/v1/jobs/{job['id']}/transcript")
    assert transcript.status_code == 200
    assert job["session_id"] in transcript.text


@LONG_DEFAULT
def test_chat_with_the_real_cli(real: Service, model: ScriptedModel) -> None:
    model.clear()
    with real.new_client(CLASSIC_KEY) as caller:
        answer = caller.post(
            "/v1/chat/completions",
            json={
                "model": "claude-haiku-4-5" if real.classic else "chat",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "First question."},
                    {"role": "assistant", "content": "First answer."},
                    {"role": "user", "content": "Second question."},
                ],
            },
        )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == OK
    assert body["usage"]["completion_tokens"] == model.conversation_totals["output_tokens"]
    (request,) = model.requests
    turns = [(role, text) for role, text in request.turns if role in ("user", "assistant")]
    whole = json.dumps(request.body)
    assert "Second question." in turns[-1][1]
    if real.classic:
        # The earlier service left out what the assistant had said.
        assert "First answer." not in whole
        assert turns[-1][1].index("System instructions:") < turns[-1][1].index("Request:")
    else:
        assert [role for role, _ in turns] == ["user", "assistant", "user"]
        assert turns[1][1] == "First answer."
        assert "Be brief." in request.system


@LONG_CLASSIC
@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [
        ("no-credit", "budget"),
        pytest.param("forbidden", "unauthorized", marks=pytest.mark.long),
        pytest.param("refusal", "refused", marks=pytest.mark.long),
    ],
)
def test_what_the_model_refuses_ends_as_failed_with_the_real_cli(
    real: Service, scenario: str, outcome: str
) -> None:
    job_id = real.execute_classic(f"[[scenario:{scenario}]] Try.")["job_id"]
    job = real.poll_classic(job_id)
    assert (job["status"], job["exit_code"]) == ("failed", 1)
    assert json.loads(job["output"][-1])["is_error"] is True
    assert real.get_job(job_id)["outcome"]["type"] == outcome


@LONG_CLASSIC
def test_a_budget_that_is_spent_ends_as_failed_with_the_real_cli(real: Service) -> None:
    job_id = real.execute_classic("[[scenario:costly]] Spend.", max_budget_usd=0.01)["job_id"]
    assert real.poll_classic(job_id)["status"] == "failed"
    assert real.get_job(job_id)["outcome"]["type"] == "budget"


def deaf(service: Service, **fields: Any) -> str:
    """Give the id of a job whose Bash tool, setsid child and daemon ignore SIGTERM, once they are all there."""
    job_id = str(service.submit("[[scenario:deaf-tool]] Start.", workspace="scratch", **fields)["id"])
    wait_until(lambda: _three_pids(service) and len(service.live_agent_pids()) > 3)
    return job_id


def _three_pids(service: Service) -> bool:
    return any(len(pids.split()) == 3 for _, pids in contents_below(service.data_dir, "pids.txt"))


@pytest.mark.long  # the cancel below and `test_process_cleanup` show the same
@pytest.mark.parametrize("real", ["default", "classic"], indirect=True)
def test_a_timeout_with_the_real_cli_ends_within_2_seconds_with_nothing_alive(real: Service) -> None:
    # 10 seconds and not 3: on a busy machine the CLI itself takes some of them until its tool runs.
    job = real.wait_until_ended(deaf(real, timeout_seconds=10))
    assert (job["state"], job["outcome"]["type"]) == ("timeout", "timeout")
    run = job["runs"][-1]
    span = datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["started_at"])
    assert 10 <= span.total_seconds() <= 12
    wait_until(lambda: not real.live_agent_pids(), 1)


@LONG_CLASSIC
def test_a_cancel_with_the_real_cli_takes_at_most_2_seconds_with_nothing_alive_and_health_says_so(
    real: Service,
) -> None:
    job_id = deaf(real)
    body = real.client.get("/health").json()
    assert (body["status"], body["busy"], body["active"]) == ("ok", real.classic, 1)
    asked = datetime.now().astimezone()
    real.client.post(f"/v1/jobs/{job_id}/cancel")
    job = real.wait_until_ended(job_id)
    assert job["state"] == "cancelled"
    assert (datetime.fromisoformat(job["finished_at"]) - asked).total_seconds() <= 2
    wait_until(lambda: not real.live_agent_pids(), 1)
    wait_until(lambda: real.client.get("/health").json()["active"] == 0)
    assert real.client.get("/health").json()["busy"] is False


@pytest.mark.long  # as with each kind of child in `tests/sandboxed/test_kill_matrix`
@pytest.mark.parametrize("profile", ["default", "classic"])
def test_a_kill_9_and_a_sigterm_of_the_service_leave_nothing_of_the_real_cli_alive(
    make_service: MakeService, model: ScriptedModel, profile: str
) -> None:
    service = make_service(
        classic=profile == "classic",
        claude=cli_path(),
        model=model.url,
        env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "0.2"},
    ).start()
    first = deaf(service, on_interrupt="fail")
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), 5)
    service.restart()
    assert service.get_job(first)["state"] == "interrupted"
    second = deaf(service, on_interrupt="fail")
    assert service.terminate(15) == 0
    assert service.live_agent_pids() == []
    service.restart()
    assert service.get_job(second)["state"] == "interrupted"


@pytest.mark.long  # the demo of a release does it in `tests/package`, a how-to in `tests/docs`
def test_the_example_is_fixed_by_the_real_cli_and_the_diff_says_how(
    real_default: Service, world_dir: Path
) -> None:
    repository = world_dir / "shop"
    base = make_repository(repository)
    job = real_default.run_job("[[scenario:fix-the-test]] Fix the failing test.", workspace=str(repository))
    assert job["state"] == "completed", job
    assert (job["commit"], job["changes"]["base"], job["changes"]["files"]) == (base, base, 1)
    assert "item.quantity" in real_default.client.get(f"/v1/jobs/{job['id']}/diff").text


@LONG_CLASSIC
@pytest.mark.long  # `test_structured_output` has one of every form
def test_an_object_is_answered_to_a_schema_by_the_real_cli(real: Service) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
        "required": ["name", "number"],
    }
    job = real.run_job("[[scenario:structured]] Answer.", output_schema=schema)
    assert job["structured_output"] == {"name": "scripted", "number": 42}


@LONG_CLASSIC
def test_what_a_native_job_asks_for_reaches_the_model_through_the_real_cli(
    real: Service, model: ScriptedModel
) -> None:
    model.clear()
    prompt = "-p --help"
    job = real.run_job(
        prompt, agent="chat", model="haiku", effort="low", append_system_prompt="Be brief, quetzal."
    )
    assert (job["state"], job["answer"]) == ("completed", OK), job
    (request,) = model.requests
    assert prompt in request.prompt
    assert "haiku" in request.body["model"]
    assert "Be brief, quetzal." in request.system
    assert not request.body.get("tools")
    looping = real.run_job("[[scenario:loop]] Go round.", max_turns=2)
    assert (looping["state"], looping["outcome"]["type"]) == ("failed", "max_turns")


@LONG_CLASSIC
@pytest.mark.parametrize(
    ("prompt", "agent", "name"),
    [
        pytest.param(
            "--version", ".claude/agents/recruiter-triage.md", "recruiter-triage", marks=pytest.mark.long
        ),
        ("--mcp-config=/etc/passwd", "claude", "claude"),
    ],
    ids=["agent by its path", "claude"],
)
def test_a_prompt_that_looks_like_an_option_is_text_to_the_real_cli(
    real: Service, model: ScriptedModel, prompt: str, agent: str, name: str
) -> None:
    model.clear()
    job = real.poll_classic(real.execute_classic(prompt, agent)["job_id"])
    assert (job["status"], job["agent"]) == ("completed", name)
    assert prompt in model.requests[0].prompt


def test_a_streamed_chat_and_a_response_with_the_real_cli_and_a_chat_agent_that_tells_the_model_little(
    real_default: Service, model: ScriptedModel
) -> None:
    model.clear()
    with openai.OpenAI(base_url=f"{real_default.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="claude",
                messages=[{"role": "user", "content": "[[scenario:ok]] Say ok."}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == OK
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == model.conversation_totals["output_tokens"]
        (of_claude,) = model.requests
        assert of_claude.body.get("tools")
        model.clear()
        reply = client.chat.completions.with_raw_response.create(
            model="chat", messages=[{"role": "user", "content": "Give this chat a title."}]
        )
        assert reply.parse().choices[0].message.content == OK
        (of_chat,) = model.requests
        with client.responses.stream(model="claude", input="[[scenario:bash]] Run it.") as stream:
            kinds = [event.type for event in stream]
            response = stream.get_final_response()
    assert "response.mcp_call.completed" in kinds
    assert kinds[-1] == "response.completed"
    tool = next(item for item in response.output if item.type == "mcp_call")
    assert tool.name == "Bash"
    told_again = real_default.client.get(f"/v1/responses/{response.id}", params={"stream": "true"}).text
    assert '"type":"response.completed"' in told_again
    assert not of_chat.body.get("tools")
    assert len(json.dumps(of_chat.body)) * 3 < len(json.dumps(of_claude.body))
    job = real_default.get_job(reply.headers["x-steadyhand-job-id"])
    assert (job["budget_usd"], job["timeout_seconds"]) == ("0.250000", 120)
    assert (job["workspace"], job["commit"]) == (None, None)


@pytest.mark.parametrize("isolation", [pytest.param("bwrap", marks=pytest.mark.long), "none"])
def test_a_service_without_a_credential_says_so_at_once_and_asks_nobody(
    make_service: MakeService, isolation: str
) -> None:
    service = make_service(
        claude=cli_path(),
        env={"ANTHROPIC_API_KEY": None, "ANTHROPIC_BASE_URL": None, "STEADYHAND_ISOLATION": isolation},
    ).start()
    job = service.run_job("hello", workspace="scratch")
    assert (job["state"], job["outcome"]["type"]) == ("failed", "unauthorized"), service.log[-2000:]
    assert "set ANTHROPIC_API_KEY" in job["error"]["message"]
    assert "upstream_failed" not in service.log


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PROSE = "[[scenario:prose]] Count."
ASK = {"model": "claude", "messages": [{"role": "user", "content": PROSE}]}
FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA}
TOOL = {"type": "function", "function": {"name": "count", "parameters": SCHEMA}}
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "a job": ("/v1/jobs", {"prompt": PROSE, "output_schema": SCHEMA}),
    "a chat": (
        "/v1/chat/completions",
        ASK | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    ),
    "a forced tool": ("/v1/chat/completions", ASK | {"tools": [TOOL], "tool_choice": "required"}),
    "a response": ("/v1/responses", {"model": "claude", "input": PROSE, "text": {"format": FORMAT}}),
}


@pytest.mark.parametrize(
    ("profile", "door"),
    [
        ("default", "a job"),
        pytest.param("default", "a chat", marks=pytest.mark.long),
        pytest.param("default", "a forced tool", marks=pytest.mark.long),
        pytest.param("default", "a response", marks=pytest.mark.long),
        pytest.param("classic", "a job", marks=pytest.mark.long),
    ],
)
def test_prose_in_place_of_an_object_is_an_invalid_output_by_every_door(
    request: pytest.FixtureRequest, profile: str, door: str
) -> None:
    service: Service = request.getfixturevalue(f"real_{profile}")
    path, body = DOORS[door]
    answer = service.client.post(path, json=body, headers={"prefer": "wait=30"} if door == "a job" else {})
    job_id = answer.json()["id"] if door == "a job" else answer.headers["x-steadyhand-job-id"]
    job = service.wait_until_ended(job_id)
    assert (job["state"], job["outcome"]["type"]) == ("failed", "invalid_output"), job
    assert (answer.status_code < 300) == (door == "a job"), answer.text
    assert "rather say it in prose" not in ("" if door == "a job" else answer.text)


@LONG_DEFAULT
def test_a_prompt_with_the_name_of_the_clis_own_command_is_a_task_or_a_failure(
    real: Service, model: ScriptedModel
) -> None:
    model.clear()
    job_id = real.execute_classic("/plan a refactoring", "issue-responder")["job_id"]
    status, outcome = real.poll_classic(job_id)["status"], real.get_job(job_id)["outcome"]
    if real.classic:
        # The prompt is the CLI's, as it was; a run that asked nobody is no success.
        assert (status, outcome["type"], model.calls) == ("failed", "not_asked", 0)
        assert outcome["detail"] == "/plan isn't available in this environment."
    else:
        assert (status, outcome["type"]) == ("completed", "success")
        assert "/plan a refactoring" in model.requests[0].prompt


def test_a_later_turn_with_such_a_name_keeps_the_conversation_and_each_turn_has_its_own_cost(
    real_default: Service, model: ScriptedModel
) -> None:
    model.clear()
    job = real_default.run_job("Begin.", workspace="scratch")
    jobs = [job]
    for prompt in ("/clear the table of its old rows", "/compact the archive"):
        answer = real_default.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": prompt})
        assert answer.status_code == 202, answer.text
        job = real_default.wait_until_ended(answer.json()["id"])
        jobs.append(job)
        assert prompt in model.requests[-1].prompt
    assert [job["answer"] for job in jobs] == [OK] * 3
    assert len({job["session_id"] for job in jobs}) == 1
    assert [role for role, _ in model.requests[-1].turns if role != "system"] == [
        *(["user", "assistant"] * 2),
        "user",
    ]
    assert [job["warnings"] for job in jobs] == [[]] * 3
    assert [job["cost"]["reported_usd"] for job in jobs] == [job["cost"]["usd"] for job in jobs]


def test_a_later_turn_in_the_classic_profile_costs_what_it_added(real_classic: Service) -> None:
    first = real_classic.run_job("Begin.", agent="chat")
    answer = real_classic.client.post(f"/v1/jobs/{first['id']}/turns", json={"prompt": "Go on."})
    assert answer.status_code == 202, answer.text
    second = real_classic.wait_until_ended(answer.json()["id"])
    assert (second["state"], second["session_id"]) == ("completed", first["session_id"])
    assert (first["cost"]["source"], second["cost"]["source"]) == ("reported", "reported")
    assert first["cost"]["usd"] == second["cost"]["usd"]


def test_a_command_of_a_job_is_checked_stored_and_run(real_default: Service, model: ScriptedModel) -> None:
    model.clear()
    client = real_default.client
    prompt = {"prompt": "Say ok."}
    wrong: tuple[dict[str, Any], ...] = (
        {},
        prompt | {"command": {"name": "init"}},
        {"command": {"name": "/init"}},
        {"command": {}},
    )
    for body in wrong:
        assert client.post("/v1/jobs", json=body).status_code == 422, body
    command = {"name": "init", "arguments": "for the quetzal"}
    job = real_default.wait_until_ended(client.post("/v1/jobs", json={"command": command}).json()["id"])
    assert (job["state"], job["prompt"]) == ("completed", "/init for the quetzal")
    assert "for the quetzal" in str(model.requests[0].body["messages"])
    nowhere = client.post("/v1/jobs", json={"command": {"name": "nowhere"}}).json()
    assert real_default.wait_until_ended(nowhere["id"])["outcome"]["type"] == "unknown_command"


def test_a_chat_in_one_piece_is_the_last_result_and_a_stream_has_the_first_text_too(
    real_default: Service,
) -> None:
    first, last = "I will be told when it is done.", "The build is done."
    ask: Any = [{"role": "user", "content": "[[scenario:background]] Build."}]
    with (
        openai.OpenAI(base_url=f"{real_default.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        whole = pool.submit(client.chat.completions.create, model="claude", messages=ask)
        stream = client.chat.completions.create(model="claude", messages=ask, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        answer = whole.result(60).choices[0].message.content
    assert answer == last
    assert text.index(first) < text.index(last)


@pytest.mark.long  # `tests/runner/claude/test_environment` has the rule
def test_an_agent_with_a_proxy_asks_the_gateway_of_this_machine_without_it(
    make_service: MakeService, model: ScriptedModel
) -> None:
    config = '[agents.proxied]\nenv = { HTTP_PROXY = "http://127.0.0.1:9", NO_PROXY = "a.example" }\n'
    env = {"STEADYHAND_ISOLATION": "none"}  # in the sandbox the gateway is at a socket
    with make_service(claude=cli_path(), model=model.url, config=config, env=env) as service:
        job = service.run_job("Say ok.", agent="proxied", timeout_seconds=60)
    assert (job["state"], job["answer"]) == ("completed", OK)
