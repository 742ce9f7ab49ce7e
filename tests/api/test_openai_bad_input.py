"""Bad input on the OpenAI routes: an error that says which parameter and why, and nothing is started."""

from typing import Any

import httpx2
import pytest
from tests.api.world import Service

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "say hello"}]


def function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


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
            422,
            "response_format.json_schema.schema.type",
            "one object",
        ),
        ({"response_format": schema("x")}, 422, "response_format.json_schema.schema", "JSON Schema"),
        ({"response_format": {"type": 5}}, 400, "response_format.type", "text, json_object"),
        ({"metadata": {"a": "x" * 20_000}}, 422, "metadata", "KiB"),
    ],
)
def test_the_error_says_which_parameter_and_why(
    client: httpx2.Client,
    service: Service,
    *,
    fields: dict[str, Any],
    status: int,
    param: str | None,
    why: str,
) -> None:
    before = service.count()
    for stream in (False, True):
        reply = client.post(CHAT, json={"model": "claude", "messages": HELLO, "stream": stream, **fields})
        assert reply.status_code == status, reply.text
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert why in error["message"]
        if param is not None:
            assert error["param"] == param
    assert service.count() == before


def test_a_body_that_is_no_json_is_400(client: httpx2.Client) -> None:
    for raw in (b"", b"{", b'{"model": "claude", "messages": [', b"\xff\xfe", b"[" * 200_000):
        reply = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422), raw[:20]
        assert reply.json()["error"]["code"] in ("malformed_json", "invalid_field")


def test_a_body_of_50_megabytes_is_refused_before_it_is_read(client: httpx2.Client) -> None:
    reply = client.post(CHAT, content=b" " * (50 * 1024 * 1024), headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
