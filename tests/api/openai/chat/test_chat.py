"""Chat completions in the default profile, with OpenAI's own client where it shows more than plain HTTP."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.api.api_service import (
    ADMIN,
    SUBMITTER,
    TIMEOUT_SECONDS,
    RunningService,
    running_service,
    wait_until,
)

from steadyhand.api import ApiOptions, ModelAlias
from steadyhand.job import Turn


@pytest.fixture(scope="module")
def aliased(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    options = ApiOptions(
        openai_models={"claude-haiku-4-5": ModelAlias("dear", "haiku"), "plain": ModelAlias("chat")},
        openai_default_agent="chat",
    )
    with running_service(tmp_path_factory.mktemp("aliased"), options=options) as found:
        yield found


def ask(client: httpx2.Client, *messages: dict[str, Any], **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "messages": list(messages) or [user("say hello")], **fields}
    return client.post("/v1/chat/completions", json=body)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_an_answer_has_the_shape_that_clients_expect(client: httpx2.Client) -> None:
    reply = ask(client, temperature=0.3, max_tokens=50, seed=1, unheard_of={"a": 1})
    assert reply.status_code == 200
    body = reply.json()
    job_id = reply.headers["x-steadyhand-job-id"]
    assert isinstance(body.pop("created"), int)
    assert body == {
        "id": f"chatcmpl-{job_id}",
        "object": "chat.completion",
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 240,
            "completion_tokens": 5,
            "total_tokens": 245,
            "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 30},
        },
    }
    assert client.get(f"/v1/jobs/{job_id}").json()["origin"] == "openai"


def test_history_is_kept_as_turns_and_system_texts_go_above(
    client: httpx2.Client, service: RunningService
) -> None:
    reply = ask(
        client,
        {"role": "system", "content": "Be brief."},
        user("U1"),
        {"role": "assistant", "content": "A1"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        user([{"type": "text", "text": "U2"}, {"type": "text", "text": "more"}]),
        {"role": "assistant", "content": None, "refusal": "I will not."},
        user("say one"),
        user("and two"),
    )
    assert reply.status_code == 200, reply.text
    job = service.runner.specs[-1]
    assert job.spec.append_system_prompt == "Be brief.\n\nBe kind."
    assert job.spec.history == (
        Turn("user", "U1"),
        Turn("assistant", "A1"),
        Turn("user", "U2\nmore"),
        Turn("assistant", "I will not."),
    )
    assert job.spec.prompt == "say one\n\nand two"


def test_metadata_user_and_effort_are_kept(client: httpx2.Client, service: RunningService) -> None:
    ask(client, metadata={"flow": "7"}, user="anna", reasoning_effort="minimal")
    job = service.runner.specs[-1]
    assert job.spec.metadata == {"flow": "7", "user": "anna"}
    assert job.spec.effort == "low"
    found = client.get("/v1/jobs", params={"metadata.user": "anna", "metadata.flow": "7"}).json()["data"]
    assert job.id in {each["id"] for each in found}


@pytest.mark.parametrize(
    ("asked", "effort"),
    [
        (None, None),
        ("none", "low"),
        ("minimal", "low"),
        *((same, same) for same in ("low", "medium", "high", "xhigh", "max")),
    ],
)
def test_reasoning_effort_is_the_agents_effort_on_both_routes(
    client: httpx2.Client, service: RunningService, asked: str | None, effort: str | None
) -> None:
    assert ask(client, reasoning_effort=asked, max_completion_tokens=9).status_code == 200
    assert service.runner.specs[-1].spec.effort == effort
    response = {"model": "claude", "input": "say x", "reasoning": {"effort": asked}, "max_output_tokens": 9}
    body = client.post("/v1/responses", json=response).json()
    assert service.runner.specs[-1].spec.effort == effort
    assert (body["reasoning"]["effort"], body["max_output_tokens"]) == (asked, 9)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object"},
        {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": {"type": "object", "title": "City"}},
        },
    ],
)
def test_a_schema_run_answers_with_the_json_and_nothing_else(
    client: httpx2.Client, service: RunningService, response_format: dict[str, Any]
) -> None:
    reply = ask(client, response_format=response_format)
    assert json.loads(reply.json()["choices"][0]["message"]["content"]) == {"city": "Paris"}
    schema = response_format.get("json_schema", {}).get("schema", {"type": "object"})
    assert service.runner.specs[-1].spec.output_schema == schema


def test_earlier_calls_and_their_results_are_part_of_the_history(
    client: httpx2.Client, service: RunningService
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        user("first"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "seven", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is seven."},
        user("second"),
    ]
    assert ask(client, messages=messages).status_code == 200
    job = service.runner.specs[-1]
    assert job.spec.prompt == "second"
    assert [(turn.role, turn.content) for turn in job.spec.history] == [
        ("user", "first"),
        ("assistant", '[Call c1: f({"a": 1})]'),
        ("user", "[The result of the call c1:]\nseven"),
        ("assistant", "It is seven."),
    ]


AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"messages": [user([AUDIO])]}, "messages.0.content.0"),
        (
            {"messages": [user("x"), {"role": "assistant", "content": "y", "tool_calls": [{"id": "c"}]}]},
            "messages",
        ),
    ],
)
def test_what_is_not_to_be_had_is_400_and_starts_nothing(
    client: httpx2.Client, service: RunningService, fields: dict[str, Any], param: str
) -> None:
    before = service.count()
    reply = ask(client, **fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert error["type"] == "invalid_request_error"
    assert service.count() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": "hello"},
        {"messages": [user(5)]},
        {"messages": [user("")]},
        {"messages": [user([{"type": "text"}])]},
        {"messages": [{"role": "king", "content": "x"}]},
        {"model": 5},
        {"model": None},
        {"reasoning_effort": "enormous"},
        {"metadata": {"a": "x" * 17_000}},
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_what_is_wrong_is_422(client: httpx2.Client, fields: dict[str, Any]) -> None:
    reply = ask(client, **fields)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_field")


def test_a_run_that_failed_is_503_and_not_to_be_asked_again(client: httpx2.Client) -> None:
    reply = ask(client, user("fail with\ntwo lines"))
    assert reply.status_code == 503
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-steadyhand-job-id"]
    error = reply.json()["error"]
    assert (error["code"], error["type"]) == ("execution_failed", "server_error")
    assert "with two lines" in error["message"]


def test_openais_client_asks_once_and_shows_the_message(service: RunningService) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=ADMIN) as client:
        before = len(service.runner.specs)
        with pytest.raises(openai.InternalServerError, match="badly"):
            client.chat.completions.create(
                model="claude", messages=[{"role": "user", "content": "fail badly"}]
            )
        assert len(service.runner.specs) == before + 1
        answer = client.chat.completions.create(
            model="claude", messages=[{"role": "user", "content": "say hello"}]
        )
        assert answer.choices[0].message.content == "hello"
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        assert caught.value.code == "model_not_found"
        assert "claude" in [model.id for model in client.models.list()]
        assert client.models.retrieve("claude/vendor/model-1").id == "claude/vendor/model-1"


def test_a_client_that_goes_away_cancels_its_run(client: httpx2.Client, service: RunningService) -> None:
    before = len(service.runner.specs)
    body = {"model": "claude", "messages": [user("hold")]}

    async def leave_once_it_runs() -> None:
        headers = {"authorization": client.headers["authorization"]}
        async with httpx2.AsyncClient(
            base_url=service.url, headers=headers, timeout=TIMEOUT_SECONDS
        ) as leaving:
            asking = asyncio.create_task(leaving.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(wait_until, lambda: len(service.runner.specs) > before)
            assert not asking.done()
            asking.cancel()
            await asyncio.wait({asking})

    asyncio.run(leave_once_it_runs())
    job = service.runner.specs[-1]
    ended = client.get(f"/v1/jobs/{job.id}", headers={"prefer": "wait=20"}).json()
    assert ended["state"] == "cancelled"


def test_a_key_that_may_only_submit_gets_its_answer(service: RunningService) -> None:
    with service.client(SUBMITTER) as client:
        assert ask(client).json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    ("name", "agent", "model"),
    [
        ("claude-haiku-4-5", "dear", "haiku"),
        ("plain", "chat", None),
        ("helper", "helper", None),
        ("helper/sonnet", "helper", "sonnet"),
        ("claude/vendor/model-1", "claude", "vendor/model-1"),
        ("gpt-9", "chat", "gpt-9"),
        ("vendor/gpt-9", "chat", "vendor/gpt-9"),
    ],
)
def test_a_models_name_means_an_agent_and_a_model(
    aliased: RunningService, name: str, agent: str, model: str | None
) -> None:
    with aliased.client() as client:
        reply = ask(client, model=name)
        assert reply.json()["model"] == name
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    job = aliased.runner.specs[-1]
    assert (job.agent, job.spec.model) == (agent, model)


@pytest.mark.parametrize("name", ["nobody", "nobody/sonnet", "claude/", "claude/--x", "", "--x"])
def test_a_name_that_means_nothing_is_model_not_found(client: httpx2.Client, name: str) -> None:
    reply = ask(client, model=name)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_models_are_the_aliases_and_the_agents(aliased: RunningService) -> None:
    with aliased.client() as client:
        body = client.get("/v1/models").json()
    assert body["object"] == "list"
    names = [model["id"] for model in body["data"]]
    assert names[:2] == ["claude-haiku-4-5", "plain"]
    assert {"claude", "chat", "dear", "helper"} <= set(names)
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in body["data"])


def test_a_session_keeps_its_agent_and_a_conversation_begins_anew_with_another(tmp_path: Path) -> None:
    models = {"moving": ModelAlias("chat"), "other": ModelAlias("dear")}
    with (
        running_service(tmp_path, options=ApiOptions(openai_models=models)) as service,
        service.client() as client,
    ):
        named = {"x-session-id": "one"}
        first = client.post(
            "/v1/chat/completions", json={"model": "moving", "messages": [user("say hi")]}, headers=named
        )
        response = client.post("/v1/responses", json={"model": "moving", "input": "say ho"}).json()
        asked: dict[str, Any] = {"model": "other", "messages": [user("say x")]}
        for refused in (
            client.post("/v1/chat/completions", json=asked, headers=named),
            client.post(
                "/v1/responses",
                json={"model": "other", "input": "x", "previous_response_id": response["id"]},
            ),
        ):
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (422, "model")
            assert "keeps its agent" in error["message"]
        said = [user("say hi"), {"role": "assistant", "content": "hi"}, user("say more")]
        assert ask(client, model="moving", messages=said).status_code == 200
        assert service.runner.specs[-1].parent_job_id == first.headers["x-steadyhand-job-id"]
        # Its alias was set to another agent since.
        models["moving"] = ModelAlias("dear")
        assert ask(client, model="moving", messages=said).status_code == 200
        job = service.runner.specs[-1]
        assert (job.agent, job.parent_job_id, len(job.spec.history)) == ("dear", None, 2)
