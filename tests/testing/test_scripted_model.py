"""The scripted model over plain HTTP, as any client of the Messages API would use it."""

import http.client
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from steadyhand.testing import scenario
from steadyhand.testing.model import ScriptedModel

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def post(
    model: ScriptedModel, body: dict[str, Any], path: str = "/v1/messages"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(model.url).netloc, timeout=20)
    connection.request(
        "POST", path, json.dumps(body), {"content-type": "application/json", "x-api-key": "dummy"}
    )
    response = connection.getresponse()
    return response, response.read()


def asked(prompt: str, *, stream: bool = False, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "claude-haiku-4-5", "max_tokens": 100, "stream": stream, "messages": messages, **extra}


def events(data: bytes) -> list[dict[str, Any]]:
    blocks = data.decode().strip().split("\n\n")
    parsed = [json.loads(block.split("\ndata: ", 1)[1]) for block in blocks]
    assert [block.split("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in parsed]
    return parsed


def test_an_answer_without_streaming_is_one_message_with_its_usage(scripted_model: ScriptedModel) -> None:
    response, data = post(scripted_model, asked("[[scenario:echo]] good morning"))
    message = json.loads(data)
    assert response.status == 200
    assert message["role"] == "assistant"
    assert message["content"] == [{"type": "text", "text": "You said: [[scenario:echo]] good morning"}]
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["cache_creation_input_tokens"] == 100
    assert scripted_model.totals == message["usage"]


def test_a_streamed_answer_has_the_events_of_the_api_in_their_order(scripted_model: ScriptedModel) -> None:
    response, data = post(scripted_model, asked("[[scenario:thinking]]", stream=True))
    seen = events(data)
    kinds = [event["type"] for event in seen if event["type"] != "content_block_delta"]
    assert response.headers["content-type"].startswith("text/event-stream")
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    deltas = [event["delta"] for event in seen if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "I have thought about it: ok."
    assert "Nothing needs to be looked up" in "".join(delta.get("thinking", "") for delta in deltas)
    assert seen[-2]["usage"]["output_tokens"] > 1


def test_a_streamed_tool_call_gives_its_input_in_pieces(scripted_model: ScriptedModel) -> None:
    _, data = post(scripted_model, asked("[[scenario:bash]]", stream=True))
    seen = events(data)
    pieces = "".join(
        event["delta"].get("partial_json", "") for event in seen if event["type"] == "content_block_delta"
    )
    assert json.loads(pieces)["command"].startswith("echo hello from bash")
    assert seen[-2]["delta"]["stop_reason"] == "tool_use"


def test_the_turn_follows_from_the_conversation_and_not_from_a_count_in_the_server(
    scripted_model: ScriptedModel,
) -> None:
    later = asked("[[scenario:bash]]")
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
    later["messages"] += [
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "hello"}]},
    ]
    for _ in range(2):
        _, data = post(scripted_model, later)
        assert json.loads(data)["content"][0]["text"] == "The command said: hello"


def test_earlier_turns_of_a_conversation_do_not_count_for_a_new_prompt(scripted_model: ScriptedModel) -> None:
    body = asked("hello")
    body["messages"] += [
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "[[scenario:bash]]"},
    ]
    _, data = post(scripted_model, body)
    assert json.loads(data)["content"][-1]["name"] == "Bash"


def test_a_schema_gets_an_object_that_it_allows(scripted_model: ScriptedModel) -> None:
    tools = [{"name": "StructuredOutput", "input_schema": SCHEMA}]
    _, data = post(scripted_model, asked("anything", tools=tools))
    assert json.loads(data)["content"][-1]["input"] == {"n": 1}


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("bad-request", 400, "invalid_request_error"),
        ("unauthorized", 401, "authentication_error"),
        ("no-credit", 402, "billing_error"),
        ("forbidden", 403, "permission_error"),
        ("no-such-model", 404, "not_found_error"),
        ("rate-limited", 429, "rate_limit_error"),
        ("server-error", 500, "api_error"),
    ],
)
def test_failures_have_the_status_and_the_body_of_the_api(
    scripted_model: ScriptedModel, name: str, status: int, kind: str
) -> None:
    response, data = post(scripted_model, asked(f"[[scenario:{name}]]", stream=True))
    assert response.status == status
    assert json.loads(data)["error"]["type"] == kind


def test_a_rate_limit_says_when_to_come_back_and_whether_to(scripted_model: ScriptedModel) -> None:
    response, _ = post(scripted_model, asked("[[scenario:rate-limited-no-retry]]"))
    assert response.headers["retry-after"] == "3600"
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("name", "status"), [("rate-limited-once", 429), ("overloaded", 529)])
def test_a_failure_for_the_first_call_only_is_followed_by_an_answer(
    scripted_model: ScriptedModel, name: str, status: int
) -> None:
    same = asked(f"[[scenario:{name}]]")
    other = asked(f"[[scenario:{name}]] of somebody else")
    assert [post(scripted_model, body)[0].status for body in (same, same, other, other)] == [
        status,
        200,
        status,
        200,
    ]


def test_a_cut_stream_ends_without_its_last_events(scripted_model: ScriptedModel) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)) as caught:
        post(scripted_model, asked("[[scenario:cut]]", stream=True))
    assert (
        not isinstance(caught.value, http.client.IncompleteRead)
        or b"message_stop" not in caught.value.partial
    )


def test_endless_thinking_ends_when_the_client_goes_away(scripted_model: ScriptedModel) -> None:
    before = threading.active_count()
    connection = http.client.HTTPConnection(urlsplit(scripted_model.url).netloc, timeout=20)
    connection.request(
        "POST", "/v1/messages", json.dumps(asked("[[scenario:endless-thinking]]", stream=True))
    )
    response = connection.getresponse()
    assert b"thinking_delta" in response.read(2000)
    response.close()
    connection.close()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_twenty_streams_are_served_side_by_side(scripted_model: ScriptedModel) -> None:
    paced = scenario.parse("paced", {"turn": [{"text": "x" * 20, "chunk_chars": 1, "pace_ms": 50}]})
    with ScriptedModel(paced) as model, ThreadPoolExecutor(20) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda n: post(model, asked(f"number {n}", stream=True))[1], range(20)))
        took = time.monotonic() - began
    assert all(events(data)[-1]["type"] == "message_stop" for data in answers)
    # One after the other they would take 20 s.
    assert took < 10


def test_requests_are_recorded_with_headers_and_body_and_side_requests_apart(
    scripted_model: ScriptedModel,
) -> None:
    post(scripted_model, asked("main"))
    post(scripted_model, asked("title", output_config={"format": {"type": "json_schema"}}))
    assert [request.prompt for request in scripted_model.requests] == ["main"]
    assert scripted_model.requests[0].headers["x-api-key"] == "dummy"
    assert [request.prompt for request in scripted_model.side_requests] == ["title"]
    assert scripted_model.calls == 1
    assert scripted_model.totals["input_tokens"] == 10


def test_tokens_are_counted_and_models_listed(scripted_model: ScriptedModel) -> None:
    _, data = post(scripted_model, asked("how long is this"), path="/v1/messages/count_tokens")
    assert json.loads(data)["input_tokens"] > 10
    connection = http.client.HTTPConnection(urlsplit(scripted_model.url).netloc, timeout=20)
    connection.request("GET", "/v1/models")
    assert json.loads(connection.getresponse().read())["data"][0]["type"] == "model"
    assert scripted_model.calls == 0


def test_a_scenario_that_nobody_wrote_is_an_error_that_names_it(scripted_model: ScriptedModel) -> None:
    response, data = post(scripted_model, asked("[[scenario:no-such-scenario]]"))
    assert response.status == 400
    assert "no-such-scenario" in json.loads(data)["error"]["message"]


def test_a_scenario_with_a_key_that_means_nothing_is_refused() -> None:
    with pytest.raises(scenario.ScenarioError, match="pase_ms"):
        scenario.parse("typo", {"turn": [{"text": "x", "pase_ms": 3}]})


@pytest.mark.parametrize("name", scenario.names())
def test_every_shipped_scenario_can_be_read_and_says_what_it_is_for(name: str) -> None:
    assert scenario.load(name).description


def test_it_runs_as_a_program_that_prints_its_address_first() -> None:
    command = [sys.executable, "-m", "steadyhand.testing.model", "--port", "0", "--scenario", "echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        try:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
            connection.request("POST", "/v1/messages", json.dumps(asked("hello")))
            assert "You said: hello" in connection.getresponse().read().decode()
        finally:
            process.terminate()
