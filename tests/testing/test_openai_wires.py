"""The scripted model by OpenAI's wires over plain HTTP: the answers of scenarios, their usage, and failures."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from steadyhand.testing import scenario
from steadyhand.testing.model import ScriptedModel

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SHELL = {"name": "exec_command", "parameters": {"type": "object"}}
Answer = tuple[http.client.HTTPResponse, bytes]


def post(model: ScriptedModel, path: str, body: dict[str, Any], key: str = "dummy") -> Answer:
    connection = http.client.HTTPConnection(urlsplit(model.url).netloc, timeout=20)
    connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {key}"})
    response = connection.getresponse()
    return response, response.read()


def asked(path: str, prompt: str, *, stream: bool = False, **extra: Any) -> dict[str, Any]:
    """Return the body of a request for an answer, whose tool is a shell."""
    if path == RESPONSES:
        given = [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "Be brief."}],
            },
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": prompt}]},
        ]
        shell = {"type": "function", **SHELL}
        return {"model": "gpt-5.5", "input": given, "tools": [shell], "stream": stream, **extra}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    return {
        "model": "gpt-5.5",
        "messages": messages,
        "tools": [{"type": "function", "function": SHELL}],
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        **extra,
    }


def events(data: bytes) -> list[dict[str, Any]]:
    """Return the data of a stream's events, each with its number and type for Responses, without the end mark."""
    blocks = data.decode().strip().split("\n\n")
    parsed = [json.loads(block.split("data: ", 1)[1]) for block in blocks if block != "data: [DONE]"]
    if blocks[0].startswith("event: "):
        assert [block.split("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in parsed]
        assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    else:
        assert blocks[-1] == "data: [DONE]"
    return parsed


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of a whole answer of either wire."""
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    [message] = [item for item in answer["output"] if item["type"] == "message"]
    return str(message["content"][0]["text"])


def billed(usage: dict[str, Any]) -> dict[str, int]:
    """Return usage by the names that the model counts by."""
    total = usage.get("prompt_tokens", usage.get("input_tokens"))
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    return {
        "input_tokens": total - details["cached_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": details["cached_tokens"],
        "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
    }


wires = pytest.mark.parametrize("path", [CHAT, RESPONSES])


@wires
def test_an_answer_without_streaming_has_its_text_and_its_usage(
    scripted_model: ScriptedModel, path: str
) -> None:
    response, data = post(scripted_model, path, asked(path, "[[scenario:echo]] good morning"))
    answer = json.loads(data)
    assert response.status == 200
    assert text_of(answer) == "You said: [[scenario:echo]] good morning"
    assert scripted_model.conversation_totals == billed(answer["usage"])
    [request] = scripted_model.requests
    assert (request.system, request.tools, request.model) == ("Be brief.", ["exec_command"], "gpt-5.5")


def test_a_stream_of_responses_has_the_events_of_the_api_in_their_order(
    scripted_model: ScriptedModel,
) -> None:
    response, data = post(scripted_model, RESPONSES, asked(RESPONSES, "[[scenario:thinking]]", stream=True))
    seen = events(data)
    kinds = [event["type"] for event in seen if not event["type"].endswith(".delta")]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [kind.removeprefix("response.") for kind in kinds] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    pieces = [event["delta"] for event in seen if event["type"] == "response.output_text.delta"]
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(seen[-1]["response"]) == "I have thought about it: ok."
    assert seen[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] > 1
    assert scripted_model.conversation_totals == billed(seen[-1]["response"]["usage"])


def test_a_stream_of_chat_completions_ends_with_its_usage_and_a_mark(scripted_model: ScriptedModel) -> None:
    _, data = post(scripted_model, CHAT, asked(CHAT, "[[scenario:thinking]]", stream=True))
    *chunks, last = events(data)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "I have thought about it: ok."
    assert "be looked up" in "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
    assert last["choices"] == []
    assert scripted_model.conversation_totals == billed(last["usage"])


def test_a_stream_of_chat_completions_tells_no_usage_that_nobody_asked_for(
    scripted_model: ScriptedModel,
) -> None:
    body = asked(CHAT, "hello", stream=True, stream_options={})
    assert all("usage" not in chunk for chunk in events(post(scripted_model, CHAT, body)[1]))
    assert sum(scripted_model.all_totals.values()) == 0


@wires
def test_a_tool_call_is_one_of_a_tool_that_is_offered_and_its_result_comes_back(
    scripted_model: ScriptedModel, path: str
) -> None:
    body = asked(path, "[[scenario:bash]]")
    call = json.loads(post(scripted_model, path, body)[1])
    if path == CHAT:
        message = call["choices"][0]["message"]
        [tool_call] = message["tool_calls"]
        name, arguments = tool_call["function"]["name"], tool_call["function"]["arguments"]
        result = {"role": "tool", "tool_call_id": tool_call["id"], "content": "hello"}
        body["messages"] += [message, result]
        assert call["choices"][0]["finish_reason"] == "tool_calls"
    else:
        tool_call = call["output"][-1]
        name, arguments = tool_call["name"], tool_call["arguments"]
        result = {"type": "function_call_output", "call_id": tool_call["call_id"], "output": "hello"}
        body["input"] += [*call["output"], result]
    assert name == "exec_command"
    assert json.loads(arguments)["cmd"].startswith("echo hello from bash")
    answer = json.loads(post(scripted_model, path, body)[1])
    assert text_of(answer) == "The command said: hello"
    request = scripted_model.requests[-1]
    assert (request.turn_index, request.last_result, request.has_called("exec_command")) == (1, "hello", True)
    assert billed(answer["usage"])["cache_read_input_tokens"] == 100


@wires
def test_a_streamed_tool_call_has_its_arguments_in_pieces(scripted_model: ScriptedModel, path: str) -> None:
    seen = events(post(scripted_model, path, asked(path, "[[scenario:bash]]", stream=True))[1])
    if path == CHAT:
        deltas = [choice["delta"] for event in seen for choice in event["choices"]]
        calls = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
        names = [call["name"] for call in calls if "name" in call]
        pieces = [call["arguments"] for call in calls]
    else:
        pieces = [e["delta"] for e in seen if e["type"] == "response.function_call_arguments.delta"]
        names = [seen[-1]["response"]["output"][-1]["name"]]
    assert names == ["exec_command"]
    assert len(pieces) > 1
    assert json.loads("".join(pieces))["cmd"].startswith("echo hello from bash")


@wires
@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("unauthorized", 401, "invalid_api_key"),
        ("no-such-model", 404, "model_not_found"),
        ("rate-limited", 429, "rate_limit_exceeded"),
        ("server-error", 500, "server_error"),
        ("overloaded", 503, "server_is_overloaded"),
        ("bad-request", 400, None),
    ],
)
def test_failures_have_openais_shape_and_tell_no_usage(
    scripted_model: ScriptedModel, path: str, name: str, status: int, code: str | None
) -> None:
    response, data = post(scripted_model, path, asked(path, f"[[scenario:{name}]]", stream=True))
    error = json.loads(data)["error"]
    assert (response.status, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.headers["retry-after"] is not None) == (status == 429)
    assert scripted_model.all_totals == {}


@wires
def test_a_credential_that_is_not_valid_is_refused(scripted_model: ScriptedModel, path: str) -> None:
    scripted_model.valid_secrets = frozenset({"right"})
    refused, data = post(scripted_model, path, asked(path, "hello"), key="wrong")
    answered, _ = post(scripted_model, path, asked(path, "hello"), key="right")
    assert (refused.status, answered.status) == (401, 200)
    assert json.loads(data)["error"]["code"] == "invalid_api_key"


@wires
@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_answer_breaks_off_before_its_usage_and_counts_nothing(
    scripted_model: ScriptedModel, path: str, *, stream: bool
) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        post(scripted_model, path, asked(path, "[[scenario:cut]]", stream=stream))
    assert sum(scripted_model.all_totals.values()) == 0


@wires
def test_a_schema_is_satisfied_by_the_text(scripted_model: ScriptedModel, path: str) -> None:
    table = {"name": "n", "schema": SCHEMA}
    extra: dict[str, Any] = {"text": {"format": {"type": "json_schema", **table}}}
    if path == CHAT:
        extra = {"response_format": {"type": "json_schema", "json_schema": table}}
    answer = json.loads(post(scripted_model, path, asked(path, "hello", **extra))[1])
    assert json.loads(text_of(answer)) == {"n": 1}


@wires
def test_an_answer_at_the_limit_of_its_tokens_is_told_as_such(path: str) -> None:
    script = scenario.parse("long", {"turn": [{"text": "So far.", "stop_reason": "max_tokens"}]})
    with ScriptedModel(script) as model:
        answer = json.loads(post(model, path, asked(path, "hello"))[1])
        last = events(post(model, path, asked(path, "hello", stream=True))[1])[-1]
    if path == CHAT:
        assert answer["choices"][0]["finish_reason"] == "length"
    else:
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert last["type"] == "response.incomplete"


def test_a_refusal_is_no_text(scripted_model: ScriptedModel) -> None:
    chat = json.loads(post(scripted_model, CHAT, asked(CHAT, "[[scenario:refusal]]"))[1])
    response = json.loads(post(scripted_model, RESPONSES, asked(RESPONSES, "[[scenario:refusal]]"))[1])
    message = chat["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I can't help with that.")
    assert response["output"][0]["content"] == [{"type": "refusal", "refusal": "I can't help with that."}]


def test_a_call_for_a_title_is_a_side_request_though_its_prompt_names_a_scenario(
    scripted_model: ScriptedModel,
) -> None:
    messages = [
        {"role": "system", "content": "You are a title generator. Write nothing else."},
        {"role": "user", "content": "Generate a title for this conversation:"},
        {"role": "user", "content": "[[scenario:server-error]] please"},
    ]
    response, data = post(scripted_model, CHAT, {"model": "gpt-5.5", "messages": messages})
    assert (response.status, text_of(json.loads(data))) == (200, "Scripted")
    assert (scripted_model.calls, len(scripted_model.side_requests)) == (0, 1)
    assert scripted_model.conversation_totals == {}
    assert scripted_model.all_totals["output_tokens"] > 0


def test_models_are_listed_in_the_form_of_who_asks(scripted_model: ScriptedModel) -> None:
    def listed(headers: dict[str, str]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(urlsplit(scripted_model.url).netloc, timeout=20)
        connection.request("GET", "/v1/models", headers=headers)
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found

    openai = listed({"authorization": "Bearer k"})
    assert (openai["object"], openai["data"][0]["object"]) == ("list", "model")
    anthropic = listed({"authorization": "Bearer k", "anthropic-version": "2023-06-01"})
    assert anthropic["data"][0]["type"] == "model"


@wires
def test_a_limit_that_is_met_once_is_met_in_each_session(scripted_model: ScriptedModel, path: str) -> None:
    def status(session: str) -> int:
        body = asked(path, "[[scenario:rate-limited-once]]", prompt_cache_key=session)
        return post(scripted_model, path, body)[0].status

    assert [status("one"), status("one"), status("two"), status("two")] == [429, 200, 429, 200]
