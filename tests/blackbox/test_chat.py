"""The chat route and the models in the default profile (docs/http-api.md#openai-routes), with the stand-in."""

import base64
import json
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, Service, wait_until


def chat(service: Service, *messages: dict[str, Any], **fields: Any) -> httpx2.Response:
    return service.client.post("/v1/chat/completions", json={"model": "chat", "messages": messages, **fields})


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_completion_has_the_shape_and_the_usage_that_clients_know(default_service: Service) -> None:
    prompt = '[[standin: text="four" input=5 cache_read=100 cache_creation=20 output=7]]'
    answer = chat(default_service, user(prompt))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"]) == ("chat.completion", "chat")
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", "four")
    assert body["usage"]["prompt_tokens"] == 125
    assert body["usage"]["completion_tokens"] == 7
    assert body["usage"]["total_tokens"] == 132
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 100, "cache_write_tokens": 20}


def test_the_official_client_reads_the_answer(default_service: Service) -> None:
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        completion = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": '[[standin: text="hello back"]]'}]
        )
        assert completion.choices[0].message.content == "hello back"
        with pytest.raises(openai.NotFoundError, match="no such model"):
            client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])


def test_the_official_client_does_not_run_a_failed_agent_again(default_service: Service) -> None:
    before = default_service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    with (
        openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=2) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "[[standin: result=error]]"}]
        )
    assert (caught.value.status_code, caught.value.code) == (503, "execution_failed")
    jobs = default_service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    ids = [job["id"] for job in jobs]
    newer = ids[: ids.index(before[0]["id"])] if before else ids
    assert len(newer) == 1


def test_a_run_that_failed_is_503_execution_failed_and_says_not_to_ask_again(
    default_service: Service,
) -> None:
    answer = chat(default_service, user("[[standin: result=error]]"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "execution_failed"
    assert answer.headers["x-should-retry"] == "false"


def test_history_reaches_the_agent_as_turns_and_the_system_message_apart(default_service: Service) -> None:
    answer = chat(
        default_service,
        {"role": "system", "content": "Be brief."},
        user("first"),
        {"role": "assistant", "content": "one"},
        user("second"),
        {"role": "assistant", "content": "two"},
        user("[[standin: history]]"),
    )
    turns = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert turns == [
        ["user", "first"],
        ["assistant", "one"],
        ["user", "second"],
        ["assistant", "two"],
        ["user", "[[standin: history]]"],
    ]


def test_content_may_be_a_list_of_text_parts(default_service: Service) -> None:
    answer = chat(default_service, user([{"type": "text", "text": "[[standin: text=parts]]"}]))
    assert answer.json()["choices"][0]["message"]["content"] == "parts"


def test_with_a_json_schema_the_content_is_the_json_and_nothing_else(default_service: Service) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = chat(
        default_service,
        user("[[standin: structured='{\"n\": 4}']]"),
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    )
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"n": 4}


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"logprobs": True}, {"modalities": ["audio"]}, {"audio": {"voice": "x", "format": "wav"}}],
)
def test_what_is_not_to_be_had_is_400_unsupported_parameter(
    default_service: Service, fields: dict[str, Any]
) -> None:
    answer = chat(default_service, user("hi"), **fields)
    assert (answer.status_code, answer.json()["code"]) == (400, "unsupported_parameter")
    assert answer.json()["error"]["param"]


def test_fields_that_are_not_known_are_passed_over(default_service: Service) -> None:
    answer = chat(
        default_service, user("[[standin: text=ok]]"), temperature=0.2, seed=1, invented={"a": 1}, n=1
    )
    assert answer.status_code == 200


def test_an_unknown_model_is_404_model_not_found(default_service: Service) -> None:
    answer = chat(default_service, user("hi"), model="gpt-nonexistent")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_an_agent_and_a_model_may_be_named_together(default_service: Service) -> None:
    answer = chat(default_service, user("[[standin: report]]"), model="issue-responder/haiku")
    report = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert report["agent"] == "issue-responder"
    assert "haiku" in report["model"]
    assert answer.json()["model"] == "issue-responder/haiku"


def test_the_models_are_listed_and_given_one_by_one(default_service: Service) -> None:
    body = default_service.client.get("/v1/models").json()
    assert body["object"] == "list"
    names = {model["id"] for model in body["data"]}
    assert {"claude", "chat", "issue-responder"} <= names
    assert default_service.client.get("/v1/models/claude").json()["id"] == "claude"
    assert default_service.client.get("/v1/models/issue-responder/haiku").status_code == 200
    gone = default_service.client.get("/v1/models/no-such")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.long  # one that leaves its stream is below
def test_a_client_that_goes_away_cancels_its_run(default_service: Service, common_dir: Path) -> None:
    body = {"model": "chat", "messages": [user(f"[[standin: touch={common_dir}/on sleep=60]]")]}
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    # A connection of one's own: the client is gone when it is closed.
    with closing(HTTPConnection(default_service.url.partition("//")[2], timeout=30)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        wait_until((common_dir / "on").exists)
    newest = default_service.client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]["id"]
    assert default_service.wait_until_ended(newest, 5)["state"] == "cancelled"


def test_the_official_client_streams_text_as_it_is_made(default_service: Service) -> None:
    prompt = "[[standin: say='Let me look.' run='echo hi' text='It says {last}.' chunk=1 pace=40 input=5 output=7]]"
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="chat",
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    *said, last, usage = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in said]
    assert "".join(pieces) == "Let me look.\n\nIt says hi."
    assert len([piece for piece in pieces if piece]) > 5
    assert (last.choices[0].finish_reason, usage.choices) == ("stop", [])
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (5, 7)


def test_a_stream_that_fails_in_the_middle_raises_in_the_official_client(default_service: Service) -> None:
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=2) as client:
        stream = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "[[standin: say=Half. die=KILL]]"}],
            stream=True,
        )
        pieces: list[str | None] = []
        with pytest.raises(openai.APIError, match="killed"):
            pieces.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(piece or "" for piece in pieces) == "Half."


def test_a_client_that_leaves_its_stream_cancels_the_run(default_service: Service, common_dir: Path) -> None:
    prompt = f"[[standin: say=Begun. touch={common_dir}/begun sleep=60]]"
    body = {"model": "chat", "messages": [user(prompt)], "stream": True}
    with (
        default_service.new_client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as reply,
    ):
        job_id = reply.headers["x-steadyhand-job-id"]
        wait_until((common_dir / "begun").exists)
    assert default_service.wait_until_ended(job_id, 5)["state"] == "cancelled"


def test_a_large_file_lies_in_the_checkout_as_none_of_its_work_and_an_image_is_told(
    default_service: Service,
) -> None:
    large = base64.b64encode(b"quetzal " * 40_000).decode()
    gif = base64.b64encode(b"GIF89a" + bytes(8)).decode()
    look = "cat .attachments/*-birds.txt | wc -c; git status --short; git add --all; git status --short; touch new"
    prompt = f"[[standin: run='{look}' text={{last}}]]"
    parts = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{gif}"}},
        {"type": "file", "file": {"filename": "birds.txt", "file_data": f"data:text/plain;base64,{large}"}},
    ]
    answer = chat(default_service, user(parts), model="claude")
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "320000"
    job = default_service.wait_until_ended(answer.headers["x-steadyhand-job-id"])
    assert job["changes"]["files"] == 1  # the one that it made
    assert "birds" not in default_service.client.get(f"/v1/jobs/{job['id']}/diff").text
