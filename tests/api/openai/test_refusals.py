"""A refusal of the model is an answer by each door: told as OpenAI tells one, and a request again is a new run."""

import json
from typing import Any

import httpx2
import pytest
from tests import openai_types
from tests.api.api_service import RunningService

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NO = "I can't help with that. " * 3
TOOLS = [{"type": "function", "function": {"name": "city", "parameters": CITY}}]
FORMS: list[dict[str, Any]] = [
    {},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}},
    {"tools": TOOLS, "tool_choice": "required"},
]


@pytest.mark.parametrize("fields", FORMS)
def test_a_chat_ends_with_content_filter_and_the_refusal(
    client: httpx2.Client, service: RunningService, fields: dict[str, Any]
) -> None:
    service.runner.forced_result = f"refuse {NO}"
    body = {"model": "claude", "messages": [{"role": "user", "content": "Do."}], **fields}
    whole = client.post("/v1/chat/completions", json=body)
    assert whole.status_code == 200, whole.text
    (choice,) = openai_types.parse_completion(whole.json()).choices
    refusal = choice.message.refusal or ""
    assert choice.finish_reason == "content_filter"
    assert refusal == (NO if not fields else '{"city": "Paris"}')  # the words of this agent
    assert (choice.message.content, choice.message.tool_calls) == (None, None)
    assert whole.json()["usage"]["completion_tokens"] == 5
    text = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [openai_types.parse_chunk(json.loads(line)) for line in lines[:-1]]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.refusal or "" for delta in deltas) == refusal
    assert not any(delta.content for delta in deltas)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_a_response_has_a_part_that_refuses(client: httpx2.Client, service: RunningService) -> None:
    service.runner.forced_result = f"refuse {NO}"
    body = {"model": "claude", "input": "Do."}
    whole = client.post("/v1/responses", json=body)
    assert whole.status_code == 200, whole.text
    response = openai_types.parse_response(whole.json())
    assert (response.status, response.error, response.output_text) == ("completed", None, "")
    (item,) = whole.json()["output"]
    assert item["content"] == [{"type": "refusal", "refusal": NO}]
    text = client.post("/v1/responses", json={**body, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    for event in events:
        openai_types.parse_event(event)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert [kind for kind in dict.fromkeys(kinds) if kind not in ("created", "in_progress")] == [
        "output_item.added",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event["delta"] for event in events if event["type"] == "response.refusal.delta") == NO
    stored = client.get(f"/v1/responses/{response.id}").json()
    assert (stored["status"], stored["output"]) == ("completed", whole.json()["output"])


def test_who_asks_again_after_a_refusal_gets_a_run_of_its_own(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.forced_result = "refuse No."
    body = {"model": "claude", "messages": [{"role": "user", "content": "Do."}]}
    headers = {"x-stainless-retry-count": "0"}
    first = client.post("/v1/chat/completions", json=body, headers=headers)
    service.runner.forced_result = "say yes"
    second = client.post("/v1/chat/completions", json=body, headers=headers)
    assert second.json()["choices"][0]["message"]["content"] == "yes"
    assert first.headers["x-steadyhand-job-id"] != second.headers["x-steadyhand-job-id"]


def test_a_conversation_goes_on_after_a_refusal_without_its_session(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.forced_result = "refuse No."
    body: dict[str, Any] = {"model": "claude", "messages": [{"role": "user", "content": "Do."}]}
    refused = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    service.runner.forced_result = "say yes"
    body["messages"] += [refused, {"role": "user", "content": "Then this."}]
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    job = service.runner.specs[-1]
    assert job.parent_job_id is None
    assert [turn.role for turn in job.spec.history] == ["user", "assistant"]
