"""What the Codex CLI sends, in its own forms: namespaces of tools, hosted tools, and images as results of calls."""

import base64
import struct
import zlib
from typing import Any

import pytest
from tests import openai_types

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

NAMESPACE = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Tools in the mcp__files namespace.",
    "tools": [
        {
            "type": "function",
            "name": "view",
            "description": "Shows an image.",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}},
                "required": ["path"],
            },
        }
    ],
}
SHELL = {"type": "function", "name": "shell_command", "strict": False, "parameters": {"type": "object"}}
HOSTED = [
    {"type": "web_search", "external_web_access": True},
    {"type": "image_generation", "output_format": "png"},
]
PROMPT = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be Codex."}]},
    {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "[[scenario:view-image]] See."}],
    },
]


def png() -> str:
    """One white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    raw = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\xff\xff")) + chunk(b"IEND", b"")
    return base64.b64encode(raw).decode()


@pytest.fixture
def real(real_default: Service) -> Service:
    return real_default


def ask(service: Service, given: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {
        "model": "chat",
        "input": given,
        "tools": [SHELL, NAMESPACE, *HOSTED],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        **fields,
    }
    reply = service.client.post("/v1/responses", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-steadyhand-warning"] == "tools passed over: web_search, image_generation"
    found: dict[str, Any] = reply.json()
    openai_types.parse_response(found)
    return found


def test_a_function_of_a_namespace_is_called_by_its_own_name_and_its_image_is_seen(
    real: Service, model: ScriptedModel
) -> None:
    model.clear()
    first = ask(real, PROMPT)
    call = next(item for item in first["output"] if item["type"] == "function_call")
    assert (call["namespace"], call["name"], call["arguments"]) == ("mcp__files", "view", '{"path":"a.png"}')
    assert {"mcp__client__shell_command", "mcp__client__mcp__files__view"} <= set(model.requests[0].tools)
    url = f"data:image/png;base64,{png()}"
    output = [{"type": "input_text", "text": "a.png"}, {"type": "input_image", "image_url": url}]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": output}
    second = ask(real, [*PROMPT, call, result])
    assert second["output"][-1]["content"][0]["text"].startswith("It was shown: a.png")
    (shown,) = [
        block
        for message in model.requests[-1].messages
        for part in (message["content"] if isinstance(message["content"], list) else ())
        if part["type"] == "tool_result"
        for block in part["content"]
        if block["type"] == "image"
    ]
    assert shown["source"]["media_type"].startswith("image/")


def test_an_earlier_result_with_an_image_is_part_of_the_history(real: Service, model: ScriptedModel) -> None:
    model.clear()
    call = {
        "type": "function_call",
        "call_id": "call_old",
        "namespace": "mcp__files",
        "name": "view",
        "arguments": "{}",
    }
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{png()}"}
    said = {"type": "message", "role": "user", "content": "[[scenario:ok]] Go on."}
    past = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    result = {"type": "function_call_output", "call_id": "call_old", "output": [image]}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Seen."}]}
    ask(real, [PROMPT[0], said, call, result, past, answer, said])
    (request,) = model.requests
    kinds = [
        part["type"] for message in request.messages for part in message["content"] if isinstance(part, dict)
    ]
    assert "image" in kinds


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "web_search"}},
        {"tools": HOSTED, "tool_choice": "required"},
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}},
        {"tools": [{"type": "custom", "name": "apply_patch"}]},
        {"tools": [{**NAMESPACE, "tools": [{"type": "custom", "name": "x"}]}]},
    ],
)
def test_what_cannot_be_had_is_refused(real: Service, fields: dict[str, Any]) -> None:
    body = {"model": "chat", "input": "x", "tools": [NAMESPACE, *HOSTED], **fields}
    reply = real.client.post("/v1/responses", json=body)
    assert (reply.status_code, reply.json()["code"]) == (400, "unsupported_parameter"), reply.text


def test_a_function_of_a_namespace_can_be_chosen(real: Service) -> None:
    for choice in (
        {"type": "function", "namespace": "mcp__files", "name": "view"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "namespace", "name": "mcp__files"}]},
    ):
        response = ask(real, [{"role": "user", "content": "[[scenario:ok]] Choose."}], tool_choice=choice)
        call = response["output"][-1]
        assert (call["type"], call["namespace"], call["name"]) == ("function_call", "mcp__files", "view")


def test_a_chat_with_a_hosted_tool_is_answered_and_told_of_it(real: Service) -> None:
    for stream in (False, True):
        body = {
            "model": "chat",
            "messages": [{"role": "user", "content": "Say ok."}],
            "tools": [{"type": "web_search"}],
            "stream": stream,
        }
        reply = real.client.post("/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-steadyhand-warning"] == "tools passed over: web_search"
