"""Tools of a client with the real CLI, sealed: the round trip, and what is left when nobody came back in time."""

from typing import Any, cast

import httpx2
import pytest
from tests import openai_types

from steadyhand.testing.cli import cli_path
from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
QUESTION = {"role": "user", "content": "[[scenario:client-tools]] weather?"}
ANSWER = "The last one said: snow"


def _ask(
    http: httpx2.Client, messages: list[dict[str, Any]], model: str = "claude", **fields: Any
) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "tools": [WEATHER], **fields}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    found: dict[str, Any] = choice["message"]
    return found


def _answered(said: dict[str, Any], text: str) -> list[dict[str, Any]]:
    results = [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in said["tool_calls"]]
    return [said, *results]


def _job_of(said: dict[str, Any]) -> str:
    job_id: str = said["tool_calls"][0]["id"].split("_")[1]
    return job_id


def test_calls_come_and_go_between_a_client_and_a_sealed_agent(real_default: Service) -> None:
    service = real_default
    for name in ("claude", "chat"):
        talk = [QUESTION]
        first = _ask(service.client, talk, name)
        assert len(first["tool_calls"]) == 2
        talk += _answered(first, "sun")
        second = _ask(service.client, talk, name)
        assert len(second["tool_calls"]) == 1
        talk += _answered(second, "snow")
        assert _ask(service.client, talk, name)["content"] == ANSWER
        job = service.wait_until_ended(_job_of(first))
        assert (job["state"], job["run"]) == ("completed", 1)


@pytest.mark.long  # as in `tests/runner/claude/test_mcp_tools`
def test_a_client_that_takes_one_call_at_a_time_gets_them_so(real_default: Service) -> None:
    service = real_default
    talk = [QUESTION]
    for city in ("Paris", "Rome", "Oslo"):
        said = _ask(service.client, talk, parallel_tool_calls=False)
        (call,) = said["tool_calls"]
        assert city in call["function"]["arguments"]
        talk += _answered(said, "snow")
    assert _ask(service.client, talk, parallel_tool_calls=False)["content"] == ANSWER


def _late(service: Service, said: dict[str, Any]) -> dict[str, Any]:
    return _ask(service.client, [QUESTION, *_answered(said, "sun")])


def test_results_that_come_late_resume_the_session(make_service: MakeService, model: ScriptedModel) -> None:
    config = "[openai]\ntool_result_seconds = 1\n"
    with make_service(claude=cli_path(), model=model.url, config=config) as service:
        said = _ask(service.client, [QUESTION])
        job = service.wait_until_ended(_job_of(said))
        assert (job["state"], job["outcome"]["type"]) == ("interrupted", "unanswered")
        model.clear()
        _late(service, said)
        job = service.get_job(_job_of(said))
        assert job["run"] == 2
        # The model sees its own calls, and what came of them.
        told = str(model.requests[0].body["messages"])
        assert "mcp__client__get_weather" in told
        assert "Your last tool calls were made after all" in told
        assert told.count("\\nsun") == 2 or told.count("\nsun") == 2, told


def _is_written_down(service: Service, text: str) -> bool:
    sessions = contents_below(service.data_dir / "jobs", "*.jsonl")
    return any(text.encode() in content for path, content in sessions if "projects" in path.parts)


def test_results_that_come_after_a_crash_of_the_service_resume_the_session(
    make_service: MakeService, model: ScriptedModel
) -> None:
    service = make_service(claude=cli_path(), model=model.url)
    with service:
        said = _ask(service.client, [QUESTION])
        # What the CLI has not written down yet when it is killed, no later run can know. Rome is in its last call;
        # the tool's name is also in what it writes of the tools that it has.
        wait_until(lambda: _is_written_down(service, "Rome"))
        service.kill()
        service.restart()
        job = wait_until(lambda: service.wait_until_ended(_job_of(said)))
        assert job["state"] == "interrupted"
        model.clear()
        _late(service, said)
        told = str(model.requests[0].body["messages"])
        assert "mcp__client__get_weather" in told
        assert "Your last tool calls were made after all" in told
        assert service.get_job(_job_of(said))["run"] == 2


def _respond(http: httpx2.Client, given: Any, **fields: Any) -> dict[str, Any]:
    tool = {**cast("dict[str, Any]", WEATHER["function"]), "type": "function"}
    reply = http.post("/v1/responses", json={"model": "claude", "input": given, "tools": [tool], **fields})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    openai_types.parse_response(body)
    return body


def _outputs(body: dict[str, Any], text: str) -> list[dict[str, Any]]:
    calls = [item for item in body["output"] if item["type"] == "function_call"]
    return [{"type": "function_call_output", "call_id": call["call_id"], "output": text} for call in calls]


def test_responses_hand_calls_of_a_sealed_agent_out_and_take_what_came_of_them(real_default: Service) -> None:
    service = real_default
    for whole in (False, True):
        talk: list[dict[str, Any]] = [QUESTION]
        first = _respond(service.client, talk)
        assert len(_outputs(first, "")) == 2
        talk += [*first["output"], *_outputs(first, "sun")]
        before = {} if whole else {"previous_response_id": first["id"]}
        second = _respond(service.client, talk if whole else _outputs(first, "sun"), **before)
        assert len(_outputs(second, "")) == 1
        references = [{"type": "item_reference", "id": item["id"]} for item in second["output"]]
        talk += [*references, *_outputs(second, "snow")]
        before = {} if whole else {"previous_response_id": second["id"]}
        third = _respond(service.client, talk if whole else _outputs(second, "snow"), **before)
        assert openai_types.parse_response(third).output_text == ANSWER
        assert all(each["usage"]["output_tokens"] > 0 for each in (first, second, third))
        job = service.wait_until_ended(first["id"].removeprefix("resp_"))
        assert (job["state"], job["run"]) == ("completed", 1)
        assert (
            sum(each["usage"]["output_tokens"] for each in (first, second, third))
            == (job["usage"]["output_tokens"])
        )
        assert not [each for each in third["output"] if each["type"] == "mcp_call"]


PLACE = {
    "type": "object",
    "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
    "properties": {"place": {"$ref": "#/$defs/place"}},
    "required": ["place"],
}
REQUIRED = [
    {"name": "get_weather", "description": "Tells the weather.", "parameters": PLACE},
    {"name": "stop", "parameters": {"type": "object", "properties": {}}},
]


def test_the_real_cli_answers_with_calls_of_tools_that_had_to_be_called_and_goes_on_after_them(
    real_default: Service, model: ScriptedModel
) -> None:
    question = {"role": "user", "content": "[[scenario:required-tools]] weather?"}
    service = real_default
    tools = [{"type": "function", "function": tool} for tool in REQUIRED]
    body = {"model": "chat", "messages": [question], "tools": tools, "tool_choice": "required"}
    said = service.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    called = [(call["function"]["name"], call["function"]["arguments"]) for call in said["tool_calls"]]
    # The first try did not fit its schema, by a reference within it: the CLI had the model try again.
    assert called == [("get_weather", '{"place":{"city":"Oslo"}}'), ("stop", "{}")]
    tools = [{"type": "function", **tool} for tool in REQUIRED]
    body = {"model": "chat", "input": [question], "tools": tools, "tool_choice": "required"}
    first = service.client.post("/v1/responses", json=body).json()
    openai_types.parse_response(first)
    assert [(item["name"], item["arguments"]) for item in first["output"]] == called
    model.clear()
    given = [*_outputs(first, "[[scenario:echo]] sun")]
    second = _respond(
        service.client, given, previous_response_id=first["id"], model="chat", tool_choice="none"
    )
    job = service.get_job(second["id"].removeprefix("resp_"))
    assert job["parent_job_id"] == first["id"].removeprefix("resp_")
    told = str(model.requests[0].body["messages"])
    assert "weather?" in told
    assert "StructuredOutput" in told
