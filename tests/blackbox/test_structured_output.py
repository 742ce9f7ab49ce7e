"""Ordinary schemas by every door, with the real CLI: it compiles them, and the answer fits the caller's own schema."""

from typing import Any

import pytest
from tests.test_agent_schema import ORDINARY, POINT

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
PLACE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"home": POINT},
    "required": ["home"],
    "example": {"home": [1, "Oslo"]},
}
FUNCTION = {"name": "settle", "parameters": PLACE}
OTHER = {
    "name": "leave",
    "parameters": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "object"},
}


@pytest.fixture
def real(real_default: Service) -> Service:
    return real_default


# The checks of these two do not go together.
FORMS = [each for name, each in ORDINARY.items() if name != "unevaluated"]


def every_form() -> dict[str, Any]:
    """One schema with a property for each ordinary form that needs no dialect of its own."""
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    for number, (form, _, _) in enumerate(FORMS):
        for key, value in form.items():
            if key == "properties":
                schema["properties"][f"a{number}"] = value["a"]
            elif isinstance(value, dict):
                schema[key] = {**schema.get(key, {}), **value}
    return schema


def test_the_real_cli_compiles_every_ordinary_form(real: Service, model: ScriptedModel) -> None:
    model.clear()
    job = real.run_job("[[scenario:wrong-order]] Answer.", agent="chat", output_schema=every_form())
    assert (job["state"], job["structured_output"]) == ("completed", {"home": ["Oslo", 1.5]}), job
    (request,) = model.requests
    given = request.tool_schema("StructuredOutput")
    assert given is not None
    assert len(given["properties"]) == len(FORMS)


def bodies() -> list[tuple[str, dict[str, Any]]]:
    form = {"type": "json_schema", "name": "place", "schema": PLACE}
    said = {"messages": [{"role": "user", "content": "[[scenario:wrong-order]] Answer."}]}
    wrapped = [{"type": "function", "function": each} for each in (FUNCTION, OTHER)]
    choice = {"type": "function", "function": {"name": "settle"}}
    flat = [{"type": "function", **each} for each in (FUNCTION, OTHER)]
    asked = {"input": "[[scenario:wrong-order]] Answer."}
    return [
        (CHAT, {**said, "response_format": {"type": "json_schema", "json_schema": form}}),
        (CHAT, {**said, "tools": wrapped, "tool_choice": choice}),
        (RESPONSES, {**asked, "text": {"format": form}}),
        (RESPONSES, {**asked, "tools": flat, "tool_choice": {"type": "function", "name": "settle"}}),
    ]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        pytest.param(*each, id=f"{each[0]}-body{number}", marks=() if number in (0, 3) else pytest.mark.long)
        for number, each in enumerate(bodies())
    ],
)
def test_an_answer_that_the_cli_took_is_still_checked_against_the_callers_own_schema(
    real: Service, route: str, body: dict[str, Any]
) -> None:
    reply = real.client.post(route, json={"model": "chat", **body}, timeout=60)
    assert reply.status_code == 503, reply.text
    assert "/home/0" in reply.json()["error"]["message"]
    job = real.client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    assert job["outcome"]["type"] == "invalid_output"


def test_two_functions_of_different_dialects_are_called_by_the_real_cli(
    real: Service, model: ScriptedModel
) -> None:
    model.clear()
    tools = [{"type": "function", **each} for each in (FUNCTION, OTHER)]
    body = {"input": "[[scenario:wrong-order]] Answer.", "tools": tools, "tool_choice": "required"}
    real.client.post(RESPONSES, json={"model": "chat", **body}, timeout=60)
    # The answer is not of the form, which the CLI can only tell once it has compiled it.
    given = model.requests[0].tool_schema("StructuredOutput")
    assert given is not None
    assert given["properties"]["calls"]["items"]["anyOf"][0]["properties"]["arguments"]["type"] == "object"


def newest(service: Service) -> list[str]:
    """Return the id of the newest job, if there is one."""
    return [job["id"] for job in service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {}},
        {"type": "object", "$schema": "https://example.org/own-dialect"},
        {"type": "object", "properties": {"a": {"pattern": "a\\Z"}}},
        {"type": "object", "properties": {"a": {"$dynamicRef": "#a"}}},
    ],
)
def test_a_schema_that_cannot_be_said_is_refused_before_a_run(real: Service, schema: dict[str, Any]) -> None:
    before = newest(real)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "response_format": form}
    tools = [{"type": "function", "name": "f", "parameters": schema}]
    for route, body in (
        (CHAT, said),
        (RESPONSES, {"model": "chat", "input": "x", "tools": tools}),
        ("/v1/jobs", {"agent": "chat", "prompt": "x", "output_schema": schema}),
    ):
        reply = real.client.post(route, json=body)
        assert (reply.status_code, reply.json()["code"]) == (400, "unsupported_schema"), reply.text
        assert reply.json()["errors"][0]["pointer"]
    assert newest(real) == before
