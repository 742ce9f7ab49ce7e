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


def flat(usage: dict[str, Any]) -> dict[str, int]:
    """Usage with how long cache writes are kept beside the rest, as the model counts it."""
    plain = {name: count for name, count in usage.items() if name != "cache_creation"}
    return {**plain, **usage["cache_creation"]}


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
    assert scripted_model.conversation_totals == flat(message["usage"])


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
    # At their pace each takes a second; one after the other they would take 20 s.
    assert 0.9 <= took < 10


def test_requests_are_recorded_with_headers_and_body_and_side_requests_apart(
    scripted_model: ScriptedModel,
) -> None:
    post(scripted_model, asked("main"))
    post(scripted_model, asked("title", output_config={"format": {"type": "json_schema"}}))
    assert [request.prompt for request in scripted_model.requests] == ["main"]
    assert scripted_model.requests[0].headers["x-api-key"] == "dummy"
    assert [request.prompt for request in scripted_model.side_requests] == ["title"]
    assert scripted_model.calls == 1
    assert scripted_model.conversation_totals["input_tokens"] == 10


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


# --- what is told is what is counted -----------------------------------------------------------


def test_a_stream_tells_its_cache_writes_by_length_at_its_start_and_its_output_at_its_end(
    scripted_model: ScriptedModel,
) -> None:
    _, data = post(scripted_model, asked("[[scenario:cached]]", stream=True))
    seen = events(data)
    started, ended = seen[0]["message"]["usage"], seen[-2]["usage"]
    assert started["cache_creation"] == {"ephemeral_5m_input_tokens": 3087, "ephemeral_1h_input_tokens": 1234}
    assert started["cache_creation_input_tokens"] == ended["cache_creation_input_tokens"] == 4321
    assert scripted_model.conversation_totals == {**flat(started), "output_tokens": ended["output_tokens"]}


def test_of_a_cut_stream_only_the_figures_that_were_sent_are_counted(scripted_model: ScriptedModel) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        post(scripted_model, asked("[[scenario:cut]]", stream=True))
    assert scripted_model.conversation_totals["output_tokens"] == 1
    assert scripted_model.conversation_totals["input_tokens"] == 10


def test_of_an_answer_that_breaks_before_its_figures_nothing_is_counted(
    scripted_model: ScriptedModel,
) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        post(scripted_model, asked("[[scenario:cut]]"))
    assert sum(scripted_model.all_totals.values()) == 0


def test_of_a_stream_that_its_client_leaves_the_last_figures_are_not_counted(
    scripted_model: ScriptedModel,
) -> None:
    connection = http.client.HTTPConnection(urlsplit(scripted_model.url).netloc, timeout=20)
    connection.request("POST", "/v1/messages", json.dumps(asked("[[scenario:slow]]", stream=True)))
    response = connection.getresponse()
    assert b"message_start" in response.read(100)
    response.close()
    connection.close()
    scripted_model.close()
    assert scripted_model.conversation_totals["output_tokens"] == 1


def test_a_stream_that_was_cut_once_comes_whole_and_both_are_counted(scripted_model: ScriptedModel) -> None:
    body = asked("[[scenario:cut-once]]", stream=True)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        post(scripted_model, body)
    seen = events(post(scripted_model, body)[1])
    assert seen[-1]["type"] == "message_stop"
    assert scripted_model.conversation_totals["output_tokens"] == 1 + seen[-2]["usage"]["output_tokens"]
    assert scripted_model.conversation_totals["input_tokens"] == 20


def test_answers_that_the_cli_asks_for_itself_are_told_and_not_in_the_conversations_totals(
    scripted_model: ScriptedModel,
) -> None:
    title = asked("title", output_config={"format": {"type": "json_schema"}})
    usage = [json.loads(post(scripted_model, body)[1])["usage"] for body in (asked("main"), title)]
    assert scripted_model.conversation_totals == flat(usage[0])
    assert scripted_model.all_totals == {
        name: count + flat(usage[1])[name] for name, count in flat(usage[0]).items()
    }


def test_failures_tell_nothing(scripted_model: ScriptedModel) -> None:
    post(scripted_model, asked("[[scenario:overloaded]]"))
    assert scripted_model.all_totals == {}


def test_a_limit_in_the_middle_is_met_once_in_a_conversation_however_it_goes_on(
    scripted_model: ScriptedModel,
) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "mark"}

    def later(session: str, *more: dict[str, Any]) -> int:
        body = asked("[[scenario:rate-limited-midway]]", metadata={"user_id": session})
        body["messages"] += [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
            *more,
        ]
        response, _ = post(scripted_model, body)
        assert response.headers["retry-after"] == ("120" if response.status == 429 else None)
        return response.status

    assert later("one") == 429
    assert later("one", {"role": "user", "content": "Go on where you stopped."}) == 200
    assert [later("two"), later("two"), later("one")] == [429, 200, 200]
