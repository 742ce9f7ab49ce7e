"""Tools of an OpenAI client: calls go out to it, what comes of them goes on with the same run."""

import json
from typing import Any

import httpx2
import pytest
from tests.api.api_service import LIMITED, OTHER, TIMEOUT_SECONDS, RunningService, wait_until
from tests.api.tool_calling_agent import ToolCallingAgent

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
QUESTION = {"role": "user", "content": "play it is fine"}


def ask(
    client: httpx2.Client, messages: list[dict[str, Any]], **fields: Any
) -> tuple[httpx2.Response, dict[str, Any]]:
    body = {"model": "claude", "messages": messages, "tools": [WEATHER], **fields}
    reply = client.post("/v1/chat/completions", json=body, timeout=TIMEOUT_SECONDS)
    return reply, reply.json()


def calls_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls", body
    found: list[dict[str, Any]] = choice["message"]["tool_calls"]
    return found


def answers(calls: list[dict[str, Any]], *texts: str) -> list[dict[str, Any]]:
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": text}
        for call, text in zip(calls, texts, strict=True)
    ]
    return [QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}, *results]


def test_calls_of_one_turn_go_out_together_and_their_results_go_on_with_the_run(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    first, body = ask(client, [QUESTION])
    calls = calls_of(body)
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [
        {"city": "Paris"},
        {"city": "Rome"},
    ]
    assert body["choices"][0]["message"]["content"] == "let me look 1"
    second, body = ask(client, answers(calls, "sun", "rain"))
    assert body["choices"][0]["message"]["content"] == "it is fine"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert asking.results == [["sun", "rain"]]
    name = "x-steadyhand-job-id"
    assert first.headers[name] == second.headers[name]


def test_there_can_be_several_rounds_and_each_says_what_it_used(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    asking.turns = (["Paris"], ["Oslo"])
    _, body = ask(client, [QUESTION])
    assert body["usage"]["completion_tokens"] == 5
    first = body["id"]
    _, body = ask(client, answers(calls_of(body), "sun"))
    assert body["choices"][0]["message"]["content"] == "let me look 2"
    assert body["usage"]["completion_tokens"] == 5
    assert body["id"] != first
    _, body = ask(client, answers(calls_of(body), "snow"))
    assert body["choices"][0]["message"]["content"] == "it is fine"
    assert asking.results == [["sun"], ["snow"]]


def streamed(client: httpx2.Client, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": "claude", "messages": messages, "tools": [WEATHER], **options}
    reply = client.post("/v1/chat/completions", json=body, timeout=TIMEOUT_SECONDS)
    assert reply.status_code == 200, reply.text
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_gives_calls_in_pieces_by_their_index(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    chunks = streamed(client, [QUESTION])
    made: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls", ()):
                call = made.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
                call["id"] = piece.get("id", call.get("id"))
                for key, text in piece["function"].items():
                    call["function"][key] += text
    assert [made[index]["function"] for index in (0, 1)] == [
        {"name": "get_weather", "arguments": '{"city":"Paris"}'},
        {"name": "get_weather", "arguments": '{"city":"Rome"}'},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    rest = streamed(
        client, answers([{**made[0], "type": "function"}, {**made[1], "type": "function"}], "a", "b")
    )
    text = "".join(c["delta"].get("content", "") for chunk in rest for c in chunk["choices"])
    assert text == "it is fine"
    assert asking.results == [["a", "b"]]


def refused(reply: httpx2.Response) -> str:
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "unknown_call"
    detail: str = reply.json()["detail"]
    return detail


@pytest.mark.usefixtures("asking")
def test_wrong_ids_are_refused_and_the_run_goes_on_waiting(client: httpx2.Client) -> None:
    calls = calls_of(ask(client, [QUESTION])[1])
    strange = {**calls[0], "id": "call_of_somebody_else"}
    assert "no call of ours" in refused(ask(client, answers([strange], "x"))[0])
    nowhere = {**calls[0], "id": "call_000000000000_1_1"}
    assert "no run of yours" in refused(ask(client, answers([nowhere], "x"))[0])
    unknown = {**calls[0], "id": calls[0]["id"] + "9"}
    assert "does not wait for" in refused(ask(client, answers([unknown], "x"))[0])
    assert calls[1]["id"] in refused(ask(client, answers(calls[:1], "x"))[0])
    assert ask(client, answers(calls, "sun", "rain"))[0].status_code == 200


@pytest.mark.usefixtures("asking")
def test_another_key_cannot_answer_not_even_one_that_reads_all(
    service: RunningService, client: httpx2.Client
) -> None:
    with service.client(LIMITED) as owner, service.client(OTHER) as other:
        calls = calls_of(ask(owner, [QUESTION])[1])
        for stranger in (other, client):
            assert "no run of yours" in refused(ask(stranger, answers(calls, "x", "y"))[0])
        assert ask(owner, answers(calls, "sun", "rain"))[0].status_code == 200


def test_the_same_results_again_give_the_same_answer_and_others_are_stale(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    calls = calls_of(ask(client, [QUESTION])[1])
    _, first = ask(client, answers(calls, "sun", "rain"))
    _, again = ask(client, answers(calls, "sun", "rain"))
    assert again == first
    assert "no longer waits" in refused(ask(client, answers(calls, "sun", "hail"))[0])
    assert asking.results == [["sun", "rain"]]


def test_a_client_that_leaves_while_its_results_are_worked_on_cancels_the_run(
    service: RunningService, client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    calls = calls_of(ask(client, [QUESTION])[1])
    job_id = calls[0]["id"].split("_")[1]
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "running"  # it has left with calls to make
    asking.hold_after_turns = True
    with pytest.raises(httpx2.TimeoutException):
        client.post(
            "/v1/chat/completions",
            json={"model": "claude", "messages": answers(calls, "a", "b"), "tools": [WEATHER]},
            timeout=1,
        )
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled")


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([WEATHER] * 1_000, "more than 128"),
        ([WEATHER, WEATHER], "same name"),
    ],
)
def test_tools_have_bounds(client: httpx2.Client, tools: list[Any], why: str) -> None:
    reply, body = ask(client, [QUESTION], tools=tools)
    assert reply.status_code == 422
    assert why in body["detail"]


def test_the_tools_are_kept_with_the_job(
    service: RunningService, client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    calls = calls_of(ask(client, [QUESTION])[1])
    assert [tool.name for tool in service.runner.specs[-1].spec.tools] == ["get_weather"]
    assert not service.runner.specs[-1].spec.one_call
    ask(client, answers(calls, "a", "b"))
    assert len(asking.results) == 1
