"""What an OpenAI client asks for is a job like any other: seen, bounded, stopped, kept; and why it failed is told."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.blackbox.conftest import long
from tests.blackbox.test_sessions import text_of

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until
from steadyhand.testing.shell import shell_prompt

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
HISTORY = "[[standin: history]]"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
each_route = pytest.mark.parametrize("route", [long(CHAT), RESPONSES])
each_way = pytest.mark.parametrize(
    ("stream", "route"), [(False, CHAT), (True, RESPONSES), long(True, CHAT), long(False, RESPONSES)]
)


def body_for(route: str, prompt: str, model: str = "claude", **fields: Any) -> dict[str, Any]:
    given = {"messages": [{"role": "user", "content": prompt}]} if route == CHAT else {"input": prompt}
    return {"model": model, **given, **fields}


def ask(service: Service, route: str, prompt: str, model: str = "claude", **fields: Any) -> httpx2.Response:
    with service.new_client() as client:
        return client.post(route, json=body_for(route, prompt, model, **fields), timeout=60)


def newest(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    return found


@each_way
def test_a_run_is_seen_among_the_jobs_and_cancelled_there(
    default_service: Service, common_dir: Path, *, route: str, stream: bool
) -> None:
    prompt = f"[[standin: touch={common_dir}/on sleep=60]]"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, default_service, route, prompt, "chat", stream=stream)
        wait_until((common_dir / "on").exists)
        job = newest(default_service)
        assert (job["state"], job["origin"], job["agent"]) == ("running", "openai", "chat")
        assert (job["budget_usd"], job["timeout_seconds"]) == ("0.250000", 120)
        default_service.client.post(f"/v1/jobs/{job['id']}/cancel")
        reply = asked.result()
    # In one piece it is an error of HTTP, and nothing to ask again for.
    if not stream:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "execution_failed")
        assert reply.headers["x-should-retry"] == "false"
    assert "cancel" in reply.text
    assert default_service.get_job(job["id"])["state"] == "cancelled"


@each_way
def test_an_object_that_does_not_fit_is_an_error_that_names_the_place_in_the_schema_and_no_second_run(
    default_service: Service, *, route: str, stream: bool
) -> None:
    prompt = f"""[[standin: structured='{{"n": "four"}}']] {route} {stream}"""
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=2) as client:
        form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}}
        said: Any = [{"role": "user", "content": prompt}]
        text: Any = {"format": {"type": "json_schema", "name": "n", "schema": NUMBER}}
        ways: dict[str, Callable[[], Any]] = {
            CHAT: lambda: client.chat.completions.create(
                model="claude", messages=said, response_format=form, stream=stream
            ),
            RESPONSES: lambda: client.responses.create(
                model="claude", input=prompt, text=text, stream=stream
            ),
        }
        why = "/n: 'four' is not of type 'integer' (schema: /properties/n/type)"
        if not stream:
            with pytest.raises(openai.APIStatusError) as caught:
                ways[route]()
            assert (caught.value.status_code, caught.value.code) == (503, "execution_failed")
            assert why in caught.value.message
        elif route == CHAT:
            with pytest.raises(openai.APIError) as broken:
                list(ways[route]())
            assert broken.value.code == "execution_failed"
            assert why in broken.value.message
        else:
            last = list(ways[route]())[-1]
            assert last.type == "response.failed"
            assert why in last.response.error.message
    jobs = default_service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    mine = [job for each in jobs if (job := default_service.get_job(each["id"]))["prompt"] == prompt]
    assert [(job["state"], job["run"], job["outcome"]["type"]) for job in mine] == [
        ("failed", 1, "invalid_output")
    ]


CONFIG = """
[openai]
default_agent = "issue-responder"
[openai.models]
"gpt-5/mini" = { agent = "recruiter-triage", model = "haiku" }
"loud" = { agent = "claude", reasoning = "tools" }
"quiet" = { agent = "claude" }
[agents.terse]
workspace = "scratch"
append_system_prompt = "Quetzal."
"""


@pytest.fixture(scope="module")
def configured(make_service_in: MakeService) -> Iterator[Service]:
    with make_service_in(config=CONFIG) as started:
        yield started


def test_names_of_models_are_what_the_configuration_says(configured: Service) -> None:
    service = configured
    for name, agent, model in (
        ("gpt-5/mini", "recruiter-triage", "haiku"),
        ("gpt-9", "issue-responder", "gpt-9"),
        ("vendor/gpt-9", "issue-responder", "vendor/gpt-9"),
        ("issue-responder", "issue-responder", None),
    ):
        report = json.loads(text_of(ask(service, CHAT, "[[standin: report]]", name)))
        assert report["agent"] == agent
        assert (newest(service)["agent"], newest(service)["model"]) == (agent, model)
    listed = [model["id"] for model in service.client.get("/v1/models").json()["data"]]
    assert {"gpt-5/mini", "loud", "quiet", "claude", "chat"} <= set(listed)
    work = "[[standin: say=Look. run='echo hi' text=Done.]]"
    loud, quiet = (ask(service, CHAT, work, name, stream=True).text for name in ("loud", "quiet"))
    assert 'reasoning_content":"Bash {' in loud
    assert "reasoning_content" not in quiet
    assert ": tool Bash started" in quiet


@each_route
def test_what_was_said_is_known_over_a_restart(make_service: MakeService, route: str) -> None:
    one, other = "[[standin: text=one]]", "[[standin: text=other]]"
    with make_service() as service:
        headers = {"x-session-id": "over-a-restart"}
        first = ask(service, route, one)
        named = service.client.post(route, json=body_for(route, other), headers=headers)
        service.terminate()
        service.restart()
        said = [{"role": "user", "content": one}, {"role": "assistant", "content": text_of(first)}]
        said.append({"role": "user", "content": HISTORY})
        whole = {"model": "claude", "messages" if route == CHAT else "input": said}
        ways: list[tuple[httpx2.Response, dict[str, Any], dict[str, str]]] = [
            (first, whole, {}),
            (named, body_for(route, HISTORY), headers),
        ]
        if route == RESPONSES:
            ways.append((first, body_for(route, HISTORY, previous_response_id=first.json()["id"]), {}))
            assert service.client.get(f"/v1/responses/{first.json()['id']}").json() == first.json()
        for before, body, with_headers in ways:
            reply = service.client.post(route, json=body, headers=with_headers)
            said_before = [other, "other"] if before is named else [one, "one"]
            assert [text for _, text in json.loads(text_of(reply))] == [*said_before, HISTORY]
            job = service.get_job(reply.headers["x-steadyhand-job-id"])
            assert job["parent_job_id"] == before.headers["x-steadyhand-job-id"]


@each_route
def test_a_run_that_its_client_waited_for_is_kept_and_not_run_again_after_a_stop(
    make_service: MakeService, common_dir: Path, route: str
) -> None:
    prompt = f"[[standin: touch={common_dir}/on sleep=60]]"
    with make_service(env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "0"}) as service:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, service, route, prompt)
            wait_until((common_dir / "on").exists)
            job_id = newest(service)["id"]
            service.terminate()
            with contextlib.suppress(httpx2.TransportError):
                assert asked.result().status_code == 503
        service.restart()
        job = service.get_job(job_id)
        assert (job["state"], job["run"], job["origin"]) == ("interrupted", 1, "openai")


@each_way
def test_every_answer_names_its_session(default_service: Service, *, route: str, stream: bool) -> None:
    body = body_for(route, "[[standin: text=x]]", stream=stream)
    name = f"named-{route}-{stream}"
    reply = default_service.client.post(route, json=body, headers={"x-session-id": name})
    assert reply.headers["x-session-id"] == name
    assert reply.headers["x-steadyhand-job-id"]
    assert reply.headers["x-request-id"]
    going_on = default_service.client.post(
        route,
        json=body,
        headers={"x-session-id": default_service.get_job(newest(default_service)["id"])["session_id"]},
    )
    assert default_service.get_job(going_on.headers["x-steadyhand-job-id"])["parent_job_id"]


@pytest.mark.long  # `test_real_cli` spends one
@pytest.mark.parametrize(
    ("stream", "route"), [(False, CHAT), (True, RESPONSES), (True, CHAT), (False, RESPONSES)]
)
def test_a_budget_holds_for_a_run_of_an_openai_client_with_the_real_cli(
    make_service: MakeService, model: ScriptedModel, *, route: str, stream: bool
) -> None:
    config = "[agents.cheap]\nworkspace = 'scratch'\nbudget_usd = 0.01\n"
    with make_service(claude=cli_path(), model=model.url, config=config) as service:
        reply = ask(service, route, "[[scenario:costly]] Spend.", "cheap", stream=stream)
        assert "budget" in reply.text
        assert "execution_failed" in reply.text or '"status":"failed"' in reply.text
        job = service.get_job(reply.headers["x-steadyhand-job-id"])
        assert (job["state"], job["outcome"]["type"], job["budget_usd"]) == ("failed", "budget", "0.010000")


def test_an_agents_own_words_are_told_once_and_before_those_of_a_request(configured: Service) -> None:
    words = "tr '\\0' '\\n' < /proc/$PPID/cmdline"
    look = shell_prompt(f"cat $({words} | grep ^/.*append-system-prompt-)")
    asked: list[tuple[str, str]] = [("", "Quetzal."), ("Be kind.", "Quetzal.\n\nBe kind.")]
    for system, told in asked:
        above = [{"role": "system", "content": system}] if system else []
        body = {"model": "terse", "messages": [*above, {"role": "user", "content": look}]}
        assert text_of(configured.client.post(CHAT, json=body)) == told
