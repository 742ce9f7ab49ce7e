"""What the real CLI thinks and refuses comes through the OpenAI doors, in the forms of OpenAI's own types."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests import openai_types

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service

CONFIG = """
[openai.models]
silent = { agent = "claude" }
loud = { agent = "claude", reasoning = "all" }
"""
THOUGHT = "The question is short, so the answer can be short as well. Nothing needs to be looked up."
ANSWER = "I have thought about it: ok."
SCENARIO = f"""\
description = "Thinks, runs a command and answers."
[[turn]]
thinking = "{THOUGHT}"
text = "I look."
[[turn.tool]]
name = "Bash"
input = {{ command = "echo seen", description = "Look" }}
[[turn]]
text = "{ANSWER}"
"""
"""What the model says to a prompt that names no scenario."""


@pytest.fixture(scope="module")
def real(make_service_in: MakeService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    scenario = tmp_path_factory.mktemp("scenario") / "think-and-look.toml"
    scenario.write_text(SCENARIO, encoding="utf-8")
    with (
        ScriptedModel(scenario) as model,
        make_service_in(claude=cli_path(), model=model.url, config=CONFIG) as service,
    ):
        yield service


def post(service: Service, route: str, body: dict[str, Any]) -> Any:
    reply = service.client.post(route, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if not body.get("stream"):
        return reply.json()
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


def chat(service: Service, prompt: str, **fields: Any) -> Any:
    body = {"model": "silent", "messages": [{"role": "user", "content": prompt}], **fields}
    return post(service, "/v1/chat/completions", body)


def joined(chunks: list[dict[str, Any]], key: str) -> str:
    deltas = [openai_types.parse_chunk(chunk).choices[0].delta.to_dict() for chunk in chunks]
    return "".join(str(delta.get(key) or "") for delta in deltas)


def test_a_chat_has_thinking_and_tools_as_reasoning_where_its_alias_says_so(real: Service) -> None:
    whole = openai_types.parse_completion(chat(real, "Go.", model="loud")).choices[0].message
    shown = (whole.model_extra or {})["reasoning_content"]
    assert shown.startswith(THOUGHT)
    assert 'Bash {"command": "' in shown
    assert ANSWER in (whole.content or "")
    chunks = chat(real, "Go.", model="loud", stream=True)
    assert joined(chunks, "reasoning_content") == shown
    silent = chat(real, "Go.")["choices"][0]["message"]
    assert silent == {"role": "assistant", "content": whole.content, "refusal": None}
    assert not joined(chat(real, "Go.", stream=True), "reasoning_content")


@pytest.mark.long  # the chat above has it from the CLI, `tests/api/openai` has the items
def test_a_response_has_thinking_as_an_item_and_its_summary_where_asked_for(real: Service) -> None:
    body = {"model": "silent", "input": "[[scenario:thinking]] Go.", "reasoning": {"summary": "auto"}}
    response = post(real, "/v1/responses", body)
    openai_types.parse_response(response)
    thought, said = response["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [{"type": "summary_text", "text": THOUGHT}])
    assert said["content"][0]["text"] == ANSWER
    events = post(real, "/v1/responses", {**body, "stream": True})
    for event in events:
        openai_types.parse_event(event)
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_summary_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == THOUGHT
    without = post(real, "/v1/responses", {"model": "silent", "input": body["input"]})
    assert [item.get("summary") for item in without["output"]] == [[], None]


def test_the_thinking_of_a_job_is_followed_as_it_comes(real: Service) -> None:
    job = real.submit("[[scenario:thinking]] Go.", agent="claude")["id"]
    with real.client.stream("GET", f"/v1/jobs/{job}/events", timeout=60) as following:
        found = [json.loads(line[6:]) for line in following.iter_lines() if line.startswith("data: ")]
    live = [event for event in found if event["type"] == "thinking.delta"]
    assert "".join(event["data"]["text"] for event in live) == THOUGHT
    assert all(event["seq"] is None for event in live)
    assert [event["data"]["text"] for event in found if event["type"] == "thinking"] == [THOUGHT]


def words(refusal: str) -> str:
    """The CLI's words of a refusal without the ids in it."""
    return refusal.partition("Request ID")[0]


def test_a_refusal_is_told_by_each_door(real: Service) -> None:
    prompt = "[[scenario:refusal]] Go."
    job = real.run_job(prompt, agent="claude")
    assert (job["state"], job["outcome"]["type"]) == ("failed", "refused")
    refusal = words(job["answer"])
    assert "safeguards flagged this message" in refusal
    choice = openai_types.parse_completion(chat(real, prompt)).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
    assert words(choice.message.refusal or "") == refusal
    chunks = chat(real, prompt, stream=True)
    assert words(joined(chunks, "refusal")) == refusal
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"
    body = {"model": "silent", "input": prompt}
    response = post(real, "/v1/responses", body)
    openai_types.parse_response(response)
    (part,) = response["output"][-1]["content"]
    assert (part["type"], words(part["refusal"])) == ("refusal", refusal)
    events = post(real, "/v1/responses", {**body, "stream": True})
    for event in events:
        openai_types.parse_event(event)
    refusals = [event["refusal"] for event in events if event["type"] == "response.refusal.done"]
    assert [words(text) for text in refusals] == [refusal]
    assert events[-1]["response"]["status"] == "completed"
