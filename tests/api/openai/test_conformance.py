"""Whatever comes of a request, OpenAI's own types read each answer and each event of a stream to the letter."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.pagination import SyncPage
from openai.types import Model
from openai.types.responses import ResponseItemList
from tests import openai_types
from tests.api.api_service import TIMEOUT_SECONDS, RunningService, running_service, wait_until
from tests.api.tool_calling_agent import ToolCallingAgent

from steadyhand.api.transport.context import ApiOptions, ModelAlias
from steadyhand.events import Message, TextDelta, ToolFinished, ToolStarted
from steadyhand.ports import Emit

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LOOK: dict[str, Any] = {"name": "get_weather", "description": "Looks.", "parameters": CITY, "strict": True}
STOP: dict[str, Any] = {"name": "stop"}
IMAGE = "data:image/gif;base64,R0lGODlhAAAA"
FILE = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}


async def work(emit: Emit) -> None:
    await emit(TextDelta("m1", "Let me "))
    await emit(Message("assistant", "Let me look."))
    await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
    await emit(ToolStarted("t2", "Read", {}))
    await emit(ToolFinished("t1", False, "a", False, 3))
    await emit(ToolFinished("t2", True, "no such file", False, None))
    await emit(TextDelta("m2", "Half"))
    await emit(Message("assistant", "Half of it."))


async def half(emit: Emit) -> None:
    await emit(Message("assistant", "Let me look."))
    await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
    await emit(TextDelta("m2", "Half of a sentence that"))


@pytest.fixture(autouse=True)
def at_work(service: RunningService) -> Iterator[None]:
    service.runner.play = work
    yield
    service.runner.play = None


@pytest.fixture
def structured(service: RunningService) -> Iterator[None]:
    before = service.runner.structured
    service.runner.structured = {"calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}] * 2}
    yield
    service.runner.structured = before


def chat(client: httpx2.Client, prompt: str, **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "messages": [{"role": "user", "content": prompt}], **fields}
    return client.post("/v1/chat/completions", json=body, timeout=TIMEOUT_SECONDS)


def respond(client: httpx2.Client, given: Any, **fields: Any) -> httpx2.Response:
    return client.post(
        "/v1/responses", json={"model": "claude", "input": given, **fields}, timeout=TIMEOUT_SECONDS
    )


def of_chat(*tools: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool} for tool in tools]


def of_responses(*tools: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", **tool} for tool in tools]


def data_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    assert reply.text.endswith("data: [DONE]\n\n") or '"error"' in reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def events_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    events = data_of(reply)
    for event in events:
        openai_types.parse_event(event)
    return events


FORM = {"name": "city", "schema": CITY, "strict": True}
CHATS: list[tuple[str, dict[str, Any], str]] = [
    ("say hello", {}, "stop"),
    ("say hello", {"metadata": {"a": "b"}, "user": "anna", "reasoning_effort": "low"}, "stop"),
    ("play Half of it.", {}, "stop"),
    ("play Half of it.", {"model": "telling"}, "stop"),
    ("which", {"response_format": {"type": "json_schema", "json_schema": FORM}}, "stop"),
    ("which", {"response_format": {"type": "json_object"}}, "stop"),
    ("which", {"tools": of_chat(LOOK), "tool_choice": "required"}, "tool_calls"),
    (
        "which",
        {
            "tools": of_chat(LOOK, STOP),
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        },
        "stop",
    ),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with an alias that tells of tools as reasoning."""
    options = ApiOptions(openai_models={"telling": ModelAlias("claude", reasoning="tools")})
    with running_service(tmp_path_factory.mktemp("service"), options=options) as found:
        yield found


@pytest.mark.parametrize(("prompt", "fields", "finish"), CHATS)
def test_a_chat_completion_in_one_piece_and_streamed(
    client: httpx2.Client, *, prompt: str, fields: dict[str, Any], finish: str
) -> None:
    (choice,) = openai_types.parse_completion(chat(client, prompt, **fields).json()).choices
    assert choice.finish_reason == finish
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = [
            openai_types.parse_chunk(each)
            for each in data_of(chat(client, prompt, stream=True, **options, **fields))
        ]
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == finish
        assert (chunks[-1].usage is not None) == bool(options)


@pytest.mark.usefixtures("structured")
def test_calls_that_were_required_on_both_routes(client: httpx2.Client) -> None:
    both = {"tool_choice": "required"}
    fields = {"tools": of_chat(LOOK, STOP), **both}
    assert openai_types.parse_completion(chat(client, "which", **fields).json()).choices[0].message.tool_calls
    assert [openai_types.parse_chunk(each) for each in data_of(chat(client, "which", stream=True, **fields))]
    fields = {"tools": of_responses(LOOK, STOP), **both}
    assert len(openai_types.parse_response(respond(client, "which", **fields).json()).output) == 2
    assert len(events_of(respond(client, "which", stream=True, **fields))[-1]["response"]["output"]) == 2


def test_calls_of_tools_and_what_comes_after_them_on_both_routes(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    for streamed in (False, True):
        reply = chat(client, "play Half of it.", tools=of_chat(LOOK), stream=streamed)
        if streamed:
            chunks = [openai_types.parse_chunk(each) for each in data_of(reply)]
            pieces = [p for c in chunks for ch in c.choices for p in ch.delta.tool_calls or ()]
            ids = [piece.id for piece in pieces if piece.id]
        else:
            ids = [
                call.id
                for call in openai_types.parse_completion(reply.json()).choices[0].message.tool_calls or ()
            ]
        results = [{"role": "tool", "tool_call_id": call_id, "content": "x"} for call_id in ids]
        body = {"model": "claude", "messages": [{"role": "user", "content": "q"}, *results]}
        rest = client.post("/v1/chat/completions", json={**body, "stream": streamed})
        assert (
            [openai_types.parse_chunk(each) for each in data_of(rest)]
            if streamed
            else openai_types.parse_completion(rest.json())
        )
        reply = respond(client, "play Half of it.", tools=of_responses(LOOK), stream=streamed)
        first = events_of(reply)[-1]["response"] if streamed else reply.json()
        openai_types.parse_response(first)
        calls = [item["call_id"] for item in first["output"] if item["type"] == "function_call"]
        given = [{"type": "function_call_output", "call_id": call_id, "output": "x"} for call_id in calls]
        reply = respond(client, given, previous_response_id=first["id"], stream=streamed)
        assert events_of(reply) if streamed else openai_types.parse_response(reply.json())
    assert asking.results == [["x", "x"]] * 4


RESPONSES: list[tuple[Any, dict[str, Any]]] = [
    ("say hello", {}),
    ("play Half of it.", {}),
    (
        "play Half of it.",
        {
            "instructions": "Be brief.",
            "metadata": {"a": "b"},
            "user": "anna",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "temperature": 1,
            "top_p": 1,
            "presence_penalty": 1,
            "frequency_penalty": 0.5,
            "max_output_tokens": 5,
            "max_tool_calls": 3,
            "truncation": "auto",
            "reasoning": {"effort": "low", "summary": "auto"},
            "store": False,
            "parallel_tool_calls": False,
        },
    ),
    ("which", {"text": {"format": {"type": "json_schema", "name": "s", "schema": CITY}, "verbosity": "low"}}),
    ("which", {"text": {"format": {"type": "json_object"}}}),
    ("which", {"tools": of_responses(LOOK), "tool_choice": "required"}),
    (
        "which",
        {"tools": of_responses(STOP, LOOK), "tool_choice": {"type": "function", "name": "get_weather"}},
    ),
    ("say x", {"tools": of_responses(STOP, LOOK), "tool_choice": "none"}),
]


@pytest.mark.parametrize(("given", "fields"), RESPONSES)
def test_a_response_in_one_piece_streamed_and_looked_up(
    client: httpx2.Client, *, given: Any, fields: dict[str, Any]
) -> None:
    assert openai_types.parse_response(respond(client, given, **fields).json()).status == "completed"
    events = events_of(respond(client, given, stream=True, **fields))
    assert events[-1]["type"] == "response.completed"
    found = client.get(f"/v1/responses/{events[-1]['response']['id']}")
    if fields.get("store") is False:
        assert openai_types.parse_error(found.json())["code"] == "not_found"
    else:
        assert found.json() == events[-1]["response"]


def test_what_fails_is_an_error_or_the_last_of_the_stream(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.play = half
    for ask in (chat, respond):
        assert openai_types.parse_error(ask(client, "fail badly").json())["code"] == "execution_failed"
    (only,) = data_of(chat(client, "fail badly", stream=True))
    assert openai_types.parse_error(only)["code"] == "execution_failed"
    assert events_of(respond(client, "fail badly", stream=True))[-1]["type"] == "response.failed"
    *chunks, last = data_of(chat(client, "play", stream=True))
    assert [openai_types.parse_chunk(each) for each in chunks]
    assert openai_types.parse_error(last)["code"] == "execution_failed"
    events = events_of(respond(client, "play", stream=True))
    assert events[-1]["type"] == "response.failed"
    told = events[-1]["response"]
    assert [item["status"] for item in told["output"]] == ["completed", "incomplete", "incomplete"]
    failed = openai_types.parse_response(client.get(f"/v1/responses/{told['id']}").json())
    assert (failed.status, failed.usage is not None) == ("failed", True)


def test_a_response_in_the_background_from_its_begin_to_its_cancelled_end(
    client: httpx2.Client, service: RunningService
) -> None:
    gate = asyncio.Event()

    async def gated(emit: Emit) -> None:
        await work(emit)
        await gate.wait()

    service.runner.play = gated
    begun = openai_types.parse_response(respond(client, "play Half of it.", background=True).json())
    assert begun.status in ("queued", "in_progress")
    there = wait_until(
        lambda: body if len((body := client.get(f"/v1/responses/{begun.id}").json())["output"]) == 4 else None
    )
    assert openai_types.parse_response(there).status == "in_progress"
    service.loop.call_soon_threadsafe(gate.set)
    followed = client.get(f"/v1/responses/{begun.id}", params={"stream": "true"}, timeout=TIMEOUT_SECONDS)
    assert events_of(followed)[-1]["type"] == "response.completed"
    held = respond(client, "hold", background=True).json()
    stopped = openai_types.parse_response(client.post(f"/v1/responses/{held['id']}/cancel").json())
    assert stopped.status == "cancelled"
    told = events_of(client.get(f"/v1/responses/{held['id']}", params={"stream": "true"}))
    assert told[-1]["response"]["status"] == "cancelled"
    gone = client.delete(f"/v1/responses/{held['id']}").json()
    assert gone == {"id": held["id"], "object": "response", "deleted": True}


def test_input_items_and_models(client: httpx2.Client) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    image = {"type": "input_image", "image_url": IMAGE, "detail": "low"}
    out = {"type": "function_call_output", "call_id": "c"}
    given: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be quick."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "U1"}, image, FILE]},
        call,
        {**out, "output": "seven"},
        {**out, "output": [{"type": "input_text", "text": "eight"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "It is seven."},
        {"role": "user", "content": "say x"},
    ]
    body = openai_types.parse_response(respond(client, given).json())
    items = client.get(f"/v1/responses/{body.id}/input_items").json()
    found = openai_types.parse_strict(ResponseItemList, items)
    assert [item.type for item in found.data] == [each.get("type", "message") for each in reversed(given)]
    for item in items["data"]:
        openai_types.check_item(item)
    models = client.get("/v1/models").json()
    assert {model.id for model in openai_types.parse_strict(SyncPage[Model], models).data} >= {
        "claude",
        "chat",
        "telling",
    }
    assert openai_types.parse_strict(Model, client.get("/v1/models/claude").json()).id == "claude"


def test_a_stream_that_the_services_stop_cuts_ends_with_an_error(tmp_path: Path) -> None:
    with running_service(tmp_path) as service, service.client() as client:

        async def hold(emit: Emit) -> None:
            await work(emit)
            await asyncio.Event().wait()

        service.runner.play = hold
        body = {"model": "claude", "input": "play x", "stream": True}
        with client.stream("POST", "/v1/responses", json=body) as reply:
            lines = reply.iter_lines()
            seen = [next(line for line in lines if "Half of it." in line)]
            service.loop.call_soon_threadsafe(service.feed.close)
            seen += [line for line in lines if line.startswith("data: {")]
        events = [json.loads(line[6:]) for line in seen]
        for event in events:
            openai_types.parse_event(event)
        assert (events[-1]["type"], events[-1]["code"]) == ("error", "draining")
