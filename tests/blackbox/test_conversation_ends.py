"""Conversations that do not end with the user are answered by the real CLI, with a user's turn of its own."""

from typing import Any

import pytest
from tests.blackbox.conftest import long

from steadyhand.api.openai.input_messages import CONTINUE_PROMPT
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
OK = "ok: the scripted model has read the prompt."
both_routes = pytest.mark.parametrize("route", [CHAT, RESPONSES])
USER, ASSISTANT = {"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}
SYSTEM, DEVELOPER = (
    {"role": "system", "content": "Be quetzal."},
    {"role": "developer", "content": "Be brief."},
)


@pytest.fixture
def real(real_default: Service) -> Service:
    return real_default


def answer_to(service: Service, route: str, messages: list[dict[str, Any]]) -> str:
    given = {"messages": messages} if route == CHAT else {"input": messages}
    reply = service.client.post(route, json={"model": "chat", **given}, timeout=60)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    text: str = (
        body["choices"][0]["message"]["content"]
        if route == CHAT
        else body["output"][-1]["content"][0]["text"]
    )
    return text


ENDS = (
    [USER, ASSISTANT],
    [USER, ASSISTANT, SYSTEM],
    [SYSTEM, USER, ASSISTANT, DEVELOPER],
    [SYSTEM],
    [SYSTEM, DEVELOPER],
    [ASSISTANT],
)
QUICK = {(2, CHAT), (3, RESPONSES), (5, RESPONSES)}
"""The cases of `make test`: with a user's turn, with none, and with none but the assistant's."""


@pytest.mark.parametrize(
    ("messages", "route"),
    [
        pytest.param(
            messages,
            route,
            id=f"messages{number}-{route}",
            marks=() if (number, route) in QUICK else pytest.mark.long,
        )
        for number, messages in enumerate(ENDS)
        for route in (CHAT, RESPONSES)
    ],
)
def test_a_conversation_without_a_last_user_turn_is_answered_with_only_the_new_text(
    real: Service, model: ScriptedModel, route: str, messages: list[dict[str, Any]]
) -> None:
    model.clear()
    assert answer_to(real, route, messages) == OK
    (request,) = model.requests
    assert request.prompt == CONTINUE_PROMPT
    assert (("assistant", ASSISTANT["content"]) in request.turns) == (ASSISTANT in messages)
    assert ("quetzal" in request.system) == (SYSTEM in messages)


@pytest.mark.parametrize("route", [CHAT, long(RESPONSES)])
def test_a_chat_that_says_continue_goes_on_in_its_session(real: Service, route: str) -> None:
    question = {"role": "user", "content": f"Count for {route}."}
    first = answer_to(real, route, [question])
    answer_to(real, route, [question, {"role": "assistant", "content": first}])
    second, before = real.client.get("/v1/jobs", params={"limit": 2}).json()["data"]
    assert second["session_id"] == before["session_id"]


@both_routes
def test_open_calls_of_tools_are_still_refused(real: Service, route: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    item = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]} if route == CHAT else item
    for messages in ([USER, calling], [USER, calling, SYSTEM], [USER, calling, ASSISTANT]):
        given = {"messages": messages} if route == CHAT else {"input": messages}
        reply = real.client.post(route, json={"model": "chat", **given})
        assert (reply.status_code, reply.json()["code"]) == (400, "unsupported_parameter")
