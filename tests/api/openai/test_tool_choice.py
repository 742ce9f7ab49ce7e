"""`tool_choice: required` with several tools, on both routes: the answer of a run is calls of them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai.types.chat import ChatCompletion
from tests import openai_types
from tests.api.api_service import RunningService, check_parameter_error

from steadyhand import json_schema
from steadyhand.job import JobSpec

ITEM = {"$ref": "#/$defs/item"}
CART = {
    "type": "object",
    "$defs": {"item": {"type": "object", "properties": {"name": {"type": "string"}, "with": ITEM}}},
    "properties": {"item": ITEM, "kind": {"const": {"$ref": "#/left/alone"}}},
    "required": ["item"],
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "buy", "description": "Buys.", "parameters": CART},
    {"name": "look", "description": "Looks.", "parameters": CITY},
]
CHAT = [{"type": "function", "function": tool} for tool in TOOLS]
RESPONSES = [{"type": "function", **tool} for tool in TOOLS]
BOTH = [
    {"name": "look", "arguments": {"city": "Rome"}},
    {"name": "buy", "arguments": {"item": {"name": "bread"}}},
]


@pytest.fixture(autouse=True)
def answered(service: RunningService) -> Iterator[None]:
    before, service.runner.structured = service.runner.structured, {"calls": BOTH}
    yield
    service.runner.structured = before


def chat(client: httpx2.Client, messages: list[dict[str, Any]], **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "messages": messages, "tools": CHAT, "tool_choice": "required", **fields}
    return client.post("/v1/chat/completions", json=body)


def respond(client: httpx2.Client, given: Any, **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "input": given, "tools": RESPONSES, "tool_choice": "required", **fields}
    return client.post("/v1/responses", json=body)


QUESTION = {"role": "user", "content": "say so"}


def test_a_chat_completion_is_calls_and_their_results_go_on_in_the_same_session(
    client: httpx2.Client, service: RunningService
) -> None:
    body = chat(client, [QUESTION]).json()
    (choice,) = openai_types.parse_strict(ChatCompletion, body).choices
    assert choice.finish_reason == "tool_calls"
    calls = body["choices"][0]["message"]["tool_calls"]
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("look", {"city": "Rome"}),
        ("buy", {"item": {"name": "bread"}}),
    ]
    job = service.runner.specs[-1]
    assert not job.spec.tools
    assert "`buy`: Buys." in str(job.spec.append_system_prompt)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in calls]
    talk = [QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    assert chat(client, talk).status_code == 200
    following = service.runner.specs[-1]
    assert (following.parent_job_id, following.session_id) == (job.id, job.session_id)
    assert following.spec.prompt == "\n\n".join(f"[The result of the call {c['id']}:]\ndone" for c in calls)
    # Without a session to go on with, the history is told.
    service.checkouts.job_paths(job.id).config_dir.rmdir()
    assert chat(client, talk).status_code == 200
    assert service.runner.specs[-1].parent_job_id is None


def test_a_streamed_chat_completion_gives_each_call_its_index(client: httpx2.Client) -> None:
    lines = chat(client, [QUESTION], stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [p for c in chunks for choice in c["choices"] for p in choice["delta"].get("tool_calls", ())]
    assert [(piece["index"], piece["function"]["name"]) for piece in pieces] == [(0, "look"), (1, "buy")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert len({piece["id"] for piece in pieces}) == 2


def test_a_response_is_calls_and_their_outputs_begin_a_run_after_it(
    client: httpx2.Client, service: RunningService
) -> None:
    for streamed in (False, True):
        reply = respond(client, "say so", stream=streamed)
        body = reply.json() if not streamed else _last(reply)
        openai_types.parse_response(body)
        calls = body["output"]
        assert [(call["type"], call["name"]) for call in calls] == [
            ("function_call", "look"),
            ("function_call", "buy"),
        ]
        first = service.runner.specs[-1]
        outputs = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "done"} for call in calls
        ]
        assert respond(client, outputs, previous_response_id=body["id"]).status_code == 200
        assert service.runner.specs[-1].parent_job_id == first.id
        assert respond(client, [QUESTION, *calls, *outputs]).status_code == 200
        assert [turn.role for turn in service.runner.specs[-1].spec.history] == ["user", *["assistant"] * 2]


def _last(reply: httpx2.Response) -> dict[str, Any]:
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    for event in events:
        openai_types.parse_event(event)
    found: dict[str, Any] = events[-1]["response"]
    return found


def test_the_schema_of_an_answer_takes_calls_of_the_tools_and_nothing_else(
    client: httpx2.Client, service: RunningService
) -> None:
    assert chat(client, [QUESTION]).status_code == 200
    schema = service.runner.specs[-1].spec.output_schema or {}
    cart = schema["properties"]["calls"]["items"]["anyOf"][0]["properties"]["arguments"]
    assert cart["properties"]["kind"] == {"const": {"$ref": "#/left/alone"}}
    deep = {"name": "buy", "arguments": {"item": {"name": "a", "with": {"name": "b"}}}}
    assert json_schema.validation_error(schema, {"calls": [*BOTH, deep]}) is None
    bad: list[Any] = [[], [{"name": "sell", "arguments": {}}], [{"name": "look", "arguments": {}}]]
    bad += [[{"name": "buy", "arguments": {"item": {"name": "a", "with": {"name": 5}}}}], [{"name": "look"}]]
    for calls in bad:
        assert json_schema.validation_error(schema, {"calls": calls}) is not None, calls
    for send in (chat, respond):
        given: Any = [QUESTION]
        assert send(client, given, parallel_tool_calls=False).status_code == 200
        schema = service.runner.specs[-1].spec.output_schema or {}
        assert json_schema.validation_error(schema, {"calls": BOTH[:1]}) is None
        assert json_schema.validation_error(schema, {"calls": BOTH}) is not None


def test_tools_that_are_too_much_for_one_schema_are_refused(
    client: httpx2.Client, service: RunningService
) -> None:
    large = {"type": "object", "description": "x" * 40_000}
    tools = [{"type": "function", "name": name, "parameters": large} for name in ("a", "b")]
    before = service.count()
    error = respond(client, "say so", tools=tools).json()["error"]
    assert error["param"] == "tools"
    assert "larger than 64 KiB" in error["message"]
    assert service.count() == before


def of(mode: Any, *names: str, chat: bool) -> dict[str, Any]:
    """A choice that leaves some of the tools, as each route's clients send it."""
    if not chat:
        tools = [{"type": "function", "name": name} for name in names]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}
    listed = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": listed}}


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_a_choice_may_leave_some_of_the_tools(
    client: httpx2.Client, service: RunningService, route: str
) -> None:
    send = chat if route == "chat" else respond

    def spec(mode: str, *names: str) -> JobSpec:
        choice = of(mode, *names, chat=route == "chat")
        reply = send(client, [QUESTION], tool_choice=choice)
        assert reply.status_code == 200, reply.text
        if route == "responses":
            assert openai_types.parse_response(reply.json()).model_dump()["tool_choice"] == choice
        return service.runner.specs[-1].spec

    left = spec("auto", "look")
    assert ([tool.name for tool in left.tools], left.output_schema) == (["look"], None)
    assert [tool.name for tool in spec("auto", "look", "buy").tools] == ["buy", "look"]
    alone = spec("required", "look")
    assert (alone.tools, alone.output_schema) == ((), CITY)
    both = spec("required", "look", "buy").output_schema
    assert both is not None
    assert json_schema.validation_error(both, {"calls": BOTH}) is None


@pytest.mark.parametrize("route", ["chat", "responses"])
@pytest.mark.parametrize(
    ("mode", "names", "why"),
    [
        ("auto", ["sell"], "names no function of tools"),
        ("required", ["look", "sell"], "names no function of tools"),
        ("auto", [], "has to list functions"),
        ("none", ["look"], "the mode auto or required"),
        (None, ["look"], "the mode auto or required"),
    ],
)
def test_a_choice_that_leaves_what_is_not_there_is_refused_by_name(
    service: RunningService, *, route: str, mode: Any, names: list[str], why: str
) -> None:
    choice = of(mode, *names, chat=route == "chat")
    body: dict[str, Any] = {"model": "claude", "tool_choice": choice}
    path = "/v1/responses"
    if route == "chat":
        path, body = "/v1/chat/completions", {**body, "tools": CHAT, "messages": [QUESTION]}
    else:
        body |= {"tools": RESPONSES, "input": "say so"}
    check_parameter_error(service, path, body, status=422, param="tool_choice", why=why)


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_what_an_answer_had_to_be_and_its_instructions_are_no_part_of_the_next_turn(
    client: httpx2.Client, service: RunningService, route: str
) -> None:
    named = {"x-session-id": f"once-{route}"}
    brief = {"role": "system", "content": "Be brief."}
    path, given, tools = "/v1/chat/completions", "messages", CHAT
    if route == "responses":
        path, given, tools = "/v1/responses", "input", RESPONSES
    first = {"model": "claude/haiku", given: [brief, QUESTION], "tools": tools, "tool_choice": "required"}
    assert client.post(path, json=first, headers=named).status_code == 200
    before = service.runner.specs[-1]
    assert "Be brief.\n\nYour final answer is a call" in str(before.spec.append_system_prompt)
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [({}, named)]
    if route == "responses":
        ways.append(({"previous_response_id": f"resp_{before.id}"}, {}))
    for fields, headers in ways:
        body = {"model": "claude", given: [QUESTION], **fields}
        assert client.post(path, json=body, headers=headers).status_code == 200
        job = service.runner.specs[-1]
        assert job.parent_job_id == before.id
        assert (job.spec.append_system_prompt, job.spec.model, job.spec.output_schema) == (None, None, None)
