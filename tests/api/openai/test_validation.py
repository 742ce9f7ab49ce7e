"""Bad input on the OpenAI routes: an error that says which parameter and why, and nothing is started."""

from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, check_parameter_error

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
HELLO = [{"role": "user", "content": "say hello"}]


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def flat(name: Any = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, **fields}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


def laughs(levels: int, width: int = 2) -> dict[str, Any]:
    """A small schema that refers to itself, level by level, until it is `width` to the power of `levels`."""
    defs: dict[str, Any] = {
        f"l{n}": {"anyOf": [{"$ref": f"#/$defs/l{n + 1}"}] * width} for n in range(levels)
    }
    defs[f"l{levels}"] = {"type": "string"}
    return {"type": "object", "$defs": defs, "properties": {"a": {"$ref": "#/$defs/l0"}}}


BOMBS: list[tuple[Any, str, str]] = [
    (deep(45), "", "levels"),
    ({"type": "object", "anyOf": [{"$ref": "#"}] * 600}, "", "references"),
    (laughs(30), "", "expands"),
    (laughs(100, 3), "", "expands"),
    ({"type": "object", "enum": ["x" * 70_000]}, "", "64 KiB"),
    ({"type": "object", "properties": {f"p{n}": {} for n in range(5_100)}}, "", "schemas in it"),
    ({"type": "object", "$ref": "http://127.0.0.1:9/"}, ".$ref", "within this schema"),
    ({"type": "object", "$ref": "#/$defs/nowhere"}, ".$ref", "refers to nothing"),
    ({"type": "object", "$dynamicRef": "#x"}, ".$dynamicRef", "not supported"),
    ({"type": "array"}, ".type", "one object"),
    ("x", "", "JSON Schema"),
]
"""Schemas that are too much or none, which of them is named, and the reason."""


@pytest.mark.parametrize(("bomb", "below", "why"), BOMBS)
def test_a_schema_bomb_is_refused_wherever_a_schema_can_be(
    client: httpx2.Client, service: RunningService, *, bomb: Any, below: str, why: str
) -> None:
    one, two = {"name": "f", "parameters": bomb}, {"name": "g", "parameters": {"type": "object"}}
    form = {"type": "json_schema", "name": "s", "schema": bomb}
    choices: list[dict[str, Any]] = [{}, {"tool_choice": "required"}]
    asked: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, {"messages": HELLO, "response_format": schema(bomb)}, "response_format.json_schema.schema"),
        (RESPONSES, {"input": "say x", "text": {"format": form}}, "text.format.schema"),
    ]
    for choice in choices:
        chat = [{"type": "function", "function": each} for each in (two, one)]
        asked.append((CHAT, {"messages": HELLO, "tools": chat, **choice}, "tools.1.function.parameters"))
        flat = [{"type": "function", **each} for each in (two, one)]
        asked.append((RESPONSES, {"input": "say x", "tools": flat, **choice}, "tools.1.parameters"))
    before = service.count()
    for route, body, param in asked:
        reply = client.post(route, json={"model": "claude", **body})
        unsupported = why in ("not supported", "one object")
        assert reply.status_code == (400 if unsupported else 422), reply.text
        error = reply.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param + below)
        assert why in error["message"]
    assert service.count() == before


def test_schemas_that_go_round_or_share_parts_are_taken(
    client: httpx2.Client, service: RunningService
) -> None:
    tree = {"type": "object", "properties": {"under": {"type": "array", "items": {"$ref": "#"}}}}
    for good in (laughs(10), tree):
        reply = client.post(
            CHAT, json={"model": "claude", "messages": HELLO, "response_format": schema(good)}
        )
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("fields", "status", "param", "why"),
    [
        ({"input": [{"role": "tool", "content": "x"}]}, 422, "input.0.role", "one of assistant"),
        ({"input": [{"role": 5, "content": "x"}]}, 422, "input.0.role", "one of"),
        ({"input": [{"role": ["user"], "content": "x"}]}, 422, "input.0.role", "one of"),
        ({"input": [{"role": "user", "content": ""}]}, 422, "input", "empty"),
        ({"input": [{"role": "user", "content": []}]}, 422, "input", "empty"),
        ({"input": [{"role": "user"}]}, 422, "input.0.content", "text or a list"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            422,
            "input.0.content.0",
            "text",
        ),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, 400, "input.0.content.0", "parts"),
        ({"input": [5]}, 422, "input", "objects"),
        ({"input": [{}]}, 400, "input.0", "no item"),
        ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, 400, "input.0", "no item"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]},
            422,
            "input.0.arguments",
            "text",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, 422, "input.0.call_id", "text"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c"}]}, 400, "input.0", "no item"),
        ({"tools": [flat()] * 1_000}, 422, "tools", "more than 128"),
        ({"tools": [flat()] * 1_000, "tool_choice": "required"}, 422, "tools", "more than 128"),
        ({"tools": [flat(), flat()]}, 422, "tools", "same name"),
        ({"tools": [flat("a b")]}, 422, "tools.0", "name"),
        ({"tools": [flat(None)]}, 422, "tools.0", "name"),
        ({"tools": [None]}, 400, "tools.0", "only functions"),
        ({"tools": "f"}, 422, "tools", "list"),
        (
            {"tools": [flat(f"f{n}", description="x" * 3_000) for n in range(100)]},
            422,
            "tools",
            "bytes of tools",
        ),
        ({"tool_choice": "required"}, 422, "tool_choice", "needs tools"),
        ({"tools": [flat()], "tool_choice": "sometimes"}, 400, "tool_choice", "none, auto"),
        (
            {"tools": [flat()], "tool_choice": {"type": "function", "name": "g"}},
            422,
            "tool_choice",
            "no function",
        ),
        ({"model": ""}, 404, None, "no such model"),
        ({"metadata": {"a": "x" * 20_000}}, 422, "metadata", "KiB"),
    ],
)
def test_the_responses_error_says_which_parameter_and_why(
    service: RunningService, *, fields: dict[str, Any], status: int, param: str | None, why: str
) -> None:
    check_parameter_error(
        service,
        RESPONSES,
        {"model": "claude", "input": "say x", **fields},
        status=status,
        param=param,
        why=why,
    )


@pytest.mark.parametrize(
    ("fields", "status", "param", "why"),
    [
        ({"messages": [{"role": "king", "content": "x"}]}, 422, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user", "content": ""}]}, 422, "messages", "empty"),
        ({"messages": [{"role": "user", "content": []}]}, 422, "messages", "empty"),
        ({"messages": [{"content": "x"}]}, 422, "messages.0.role", "required"),
        ({"messages": []}, 422, "messages", "at least 1"),
        ({"messages": 5}, 422, "messages", "list"),
        ({"model": None}, 422, "model", "string"),
        ({"tools": [function()] * 1_000, "tool_choice": "required"}, 422, "tools", "more than 128"),
        ({"tools": [function()] * 1_000}, 422, "tools", "more than 128"),
        ({"tools": [function("a b")], "tool_choice": "required"}, 422, "tools.0.function", "name"),
        ({"tools": [function(parameters=[])], "tool_choice": "required"}, 422, None, "JSON Schema"),
        (
            {"tools": [function(parameters={"type": "x"})], "tool_choice": "required"},
            422,
            "tools.0.function.parameters.type",
            "has to be one of",
        ),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, 422, "tools.0.function", "function"),
        ({"tool_choice": "required"}, 422, "tool_choice", "needs tools"),
        ({"tools": [function()] * 2, "tool_choice": "required"}, 422, "tools", "same name"),
        (
            {"tools": [function()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            422,
            "tool_choice",
            "no function",
        ),
        (
            {"tools": [function()], "tool_choice": "required", "response_format": schema({"type": "object"})},
            400,
            "tool_choice",
            "both",
        ),
        ({"response_format": schema(deep(60))}, 422, "response_format.json_schema.schema", "levels"),
        (
            {"response_format": schema({"anyOf": [{"$ref": "#"}] * 600})},
            422,
            "response_format.json_schema.schema",
            "references",
        ),
        (
            {"response_format": schema({"$ref": "http://127.0.0.1:9/"})},
            422,
            "response_format.json_schema.schema.$ref",
            "within this schema",
        ),
        (
            {"response_format": schema({"type": "array"})},
            400,
            "response_format.json_schema.schema.type",
            "one object",
        ),
        ({"response_format": schema("x")}, 422, "response_format.json_schema.schema", "JSON Schema"),
        ({"response_format": {"type": 5}}, 400, "response_format.type", "text, json_object"),
        ({"metadata": {"a": "x" * 20_000}}, 422, "metadata", "KiB"),
    ],
)
def test_the_error_says_which_parameter_and_why(
    service: RunningService, *, fields: dict[str, Any], status: int, param: str | None, why: str
) -> None:
    check_parameter_error(
        service, CHAT, {"model": "claude", "messages": HELLO, **fields}, status=status, param=param, why=why
    )


@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_body_that_is_no_json_is_400(client: httpx2.Client, route: str) -> None:
    for raw in (b"", b"{", b'{"model": "claude", "messages": [', b"\xff\xfe", b"[" * 200_000):
        reply = client.post(route, content=raw, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422), raw[:20]
        assert reply.json()["error"]["code"] in ("malformed_json", "invalid_field")


@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_body_of_50_megabytes_is_refused_before_it_is_read(client: httpx2.Client, route: str) -> None:
    reply = client.post(
        route, content=b" " * (50 * 1024 * 1024), headers={"content-type": "application/json"}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
