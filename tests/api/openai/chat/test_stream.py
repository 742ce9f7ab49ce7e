"""Streamed chat completions: the order of chunks, what goes out beside text, and what a failure looks like."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from tests import openai_types
from tests.api.api_service import ADMIN, RunningService, running_service, wait_until

from steadyhand.api import ApiOptions, ModelAlias
from steadyhand.api.openai import stream_timing
from steadyhand.api.transport.context import ReasoningMode
from steadyhand.events import Message, TextDelta, Thinking, ThinkingDelta, ToolFinished, ToolStarted
from steadyhand.ports import Emit

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
FUNCTION = {
    "type": "function",
    "function": {"name": "city", "description": "Names one.", "parameters": SCHEMA},
}


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "claude",
        "stream": True,
        "messages": [{"role": "user", "content": prompt}],
        **fields,
    }


def lines_of(client: httpx2.Client, prompt: str, **fields: Any) -> list[str]:
    with client.stream("POST", "/v1/chat/completions", json=body(prompt, **fields)) as reply:
        reply.read()
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return reply.text.split("\n\n")


def chunks_of(client: httpx2.Client, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks, each read strictly by the SDK's own type, up to [DONE]."""
    found = [line.removeprefix("data: ") for line in lines_of(client, prompt, **fields) if line[:1] == "d"]
    assert found[-1] == "[DONE]"
    chunks = [json.loads(text) for text in found[:-1]]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return chunks


def text_of(chunks: list[dict[str, Any]], key: str = "content") -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return "".join(delta.get(key) or "" for delta in deltas)


async def two_messages(emit: Emit) -> None:
    await emit(TextDelta("m1", "I loo"))
    await emit(TextDelta("m1", "k."))
    await emit(Message("assistant", "I look."))
    await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
    await emit(ToolFinished("t1", False, "a\n", False, 3))  # the event's own order
    await emit(ThinkingDelta("m2", "h"))
    await emit(Thinking("hm"))
    await emit(TextDelta("m2", "One "))
    await emit(TextDelta("m2", "file."))
    await emit(Message("assistant", "One file."))


def test_chunks_come_in_order_and_their_head_never_changes(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.play = two_messages
    chunks = chunks_of(client, "play One file.", stream_options={"include_usage": True})
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "claude", "chat.completion.chunk")
    }
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "I look.\n\nOne file."
    assert [c["choices"][0]["delta"].get("content") for c in chunks[1:3]] == ["I loo", "k."]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks[:-1]]
    assert reasons == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 240,
        "completion_tokens": 5,
        "total_tokens": 245,
        "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 30},
    }
    assert all(c["usage"] is None for c in chunks[:-1])


def test_without_being_asked_no_chunk_speaks_of_usage(client: httpx2.Client, service: RunningService) -> None:
    assert all("usage" not in chunk for chunk in chunks_of(client, "say hello"))


def test_an_answer_that_no_message_told_is_streamed_whole(client: httpx2.Client) -> None:
    assert text_of(chunks_of(client, "say hello there")) == "hello there"


def test_tools_are_comments_and_never_content(client: httpx2.Client, service: RunningService) -> None:
    service.runner.play = two_messages
    lines = lines_of(client, "play One file.")
    assert ": tool Bash started" in lines
    assert all("Bash" not in line for line in lines if line.startswith("data:"))
    assert all(line.startswith((":", "data: ")) for line in lines if line)


def test_an_alias_says_what_a_chat_shows_as_reasoning(tmp_path: Path) -> None:
    modes: dict[ReasoningMode, str] = {
        "none": "",
        "tools": 'Bash {"command": "ls"}\n',
        "thinking": "hm",
        "all": 'Bash {"command": "ls"}\nhm',
    }
    options = ApiOptions(openai_models={mode: ModelAlias("claude", reasoning=mode) for mode in modes})
    with running_service(tmp_path, options=options) as service, service.client() as client:
        service.runner.play = two_messages
        for mode, shown in modes.items():
            chunks = chunks_of(client, "play One file.", model=mode)
            assert text_of(chunks, "reasoning_content") == shown
            assert text_of(chunks) == "I look.\n\nOne file."
            whole = client.post("/v1/chat/completions", json=body("play One file.", model=mode, stream=False))
            message = openai_types.parse_completion(whole.json()).choices[0].message
            assert (message.model_extra or {}).get("reasoning_content", "") == shown
            assert ("reasoning_content" in whole.json()["choices"][0]["message"]) == bool(shown)
        service.runner.play = three_thoughts
        shown = text_of(chunks_of(client, "play x", model="all"), "reasoning_content")
        assert shown == THOUGHTS + 'StructuredOutput {"city": "Paris"}\n'
        as_json = chunks_of(client, "play x", model="all", response_format=AS_JSON)
        assert text_of(as_json, "reasoning_content") == THOUGHTS
        assert json.loads(text_of(as_json)) == {"city": "Paris"}


THOUGHTS = 'one\n\nRead {}\ntwo\n\nthree\n\nBash {"command": "' + "x" * 187 + "…\n"


async def three_thoughts(emit: Emit) -> None:
    await emit(Thinking("one"))
    await emit(ToolStarted("t1", "Read", {}))
    await emit(ThinkingDelta("m2", "tw"))
    await emit(Thinking("two"))
    await emit(Thinking(""))
    await emit(ThinkingDelta("m3", "three"))
    await emit(Thinking("three"))
    await emit(ToolStarted("t2", "Bash", {"command": "x" * 500}))
    await emit(ToolStarted("t3", "StructuredOutput", {"city": "Paris"}))
    await emit(Message("assistant", "x"))


def test_text_that_was_lost_on_the_way_is_made_up_from_the_whole_message(
    client: httpx2.Client, service: RunningService
) -> None:
    async def lossy(emit: Emit) -> None:
        for number in range(3_000):  # more than a follower's backlog, without a wait between
            await emit(TextDelta("m1", f"{number} "))
        await emit(Message("assistant", "".join(f"{number} " for number in range(3_000))))

    service.runner.play = lossy
    whole = "".join(f"{number} " for number in range(3_000))
    assert text_of(chunks_of(client, f"play {whole}")) == whole


def test_a_message_that_was_begun_anew_is_told_whole_after_what_was_told(
    client: httpx2.Client, service: RunningService
) -> None:
    async def anew(emit: Emit) -> None:
        await emit(TextDelta("m1", "It is fo"))
        await emit(TextDelta("m2", "Fo"))
        await emit(Message("assistant", "Four."))

    service.runner.play = anew
    assert text_of(chunks_of(client, "play Four.")) == "It is fo\n\nFour."


def test_a_run_that_fails_before_its_text_ends_its_stream_with_the_error(
    client: httpx2.Client, service: RunningService
) -> None:
    async def tools_only(emit: Emit) -> None:
        await emit(ToolStarted("t1", "Bash", {"command": "ls"}))

    service.runner.play = tools_only
    (told,) = [line for line in lines_of(client, "play") if line.startswith("data: ")]
    error = json.loads(told.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("execution_failed", "server_error")


def test_a_run_that_fails_after_text_says_so_and_is_not_done(
    client: httpx2.Client, service: RunningService
) -> None:
    async def half(emit: Emit) -> None:
        await emit(TextDelta("m1", "Half"))

    service.runner.play = half
    lines = lines_of(client, "play")
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("execution_failed", "server_error")
    assert not any("[DONE]" in line for line in lines)
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=ADMIN) as sdk:
        stream = sdk.chat.completions.create(
            model="claude", messages=[{"role": "user", "content": "play"}], stream=True
        )
        with pytest.raises(openai.APIError, match="error of its own"):
            list(stream)


def test_what_can_be_refused_is_refused_before_the_first_byte(
    client: httpx2.Client, service: RunningService
) -> None:
    before = service.count()
    wrong: list[dict[str, Any]] = [
        {"n": 2},
        {"model": "nobody"},
        {"messages": []},
        {"stream_options": {"include_usage": 3}},
    ]
    for fields in wrong:
        reply = client.post("/v1/chat/completions", json=body("say x", **fields))
        assert reply.status_code in (400, 404, 422), fields
    assert service.count() == before


def test_silence_is_broken_by_comments_alone(
    client: httpx2.Client, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream_timing.KEEPALIVE_SECONDS < 10
    monkeypatch.setattr(stream_timing, "KEEPALIVE_SECONDS", 0.05)
    go_on = asyncio.Event()

    async def silent(emit: Emit) -> None:
        await go_on.wait()

    service.runner.play = silent
    comments: list[str] = []
    with client.stream("POST", "/v1/chat/completions", json=body("play done")) as reply:
        for line in reply.iter_lines():
            assert line == "" or line.startswith((":", "data: "))
            comments += [line] if line.startswith(":") else []
            if len(comments) == 3:
                service.loop.call_soon_threadsafe(go_on.set)
    assert len(comments) >= 3


@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_a_stream_has_its_headers_and_first_comment_while_the_agent_says_nothing(
    client: httpx2.Client, service: RunningService, route: str
) -> None:
    go_on = asyncio.Event()

    async def silent(emit: Emit) -> None:
        await go_on.wait()

    service.runner.play = silent
    asked = (
        body("play") if route == "chat/completions" else {"model": "claude", "input": "play", "stream": True}
    )
    with client.stream("POST", f"/v1/{route}", json=asked) as reply:
        assert reply.status_code == 200
        # The agent goes on only after the first bytes have come.
        pieces = reply.iter_raw()
        assert next(pieces).startswith(b": accepted")
        service.loop.call_soon_threadsafe(go_on.set)
        rest = b"".join(pieces).decode()
    assert "error of its own" in rest


@pytest.mark.parametrize(
    "fields", [{"response_format": AS_JSON}, {"response_format": {"type": "json_object"}}]
)
def test_json_is_streamed_as_json_and_nothing_else(
    client: httpx2.Client, service: RunningService, fields: dict[str, Any]
) -> None:
    service.runner.play = two_messages
    assert json.loads(text_of(chunks_of(client, "play x", **fields))) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "city"}}, "stop")],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_forced_function_gets_its_arguments(
    service: RunningService, choice: Any, reason: str, *, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": "claude", "tools": [FUNCTION], "tool_choice": choice}
    asked["messages"] = [{"role": "user", "content": "which?"}]
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=ADMIN) as sdk:
        if stream:
            chunks = list(sdk.chat.completions.create(stream=True, **asked))
            (call,) = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
            finish = chunks[-1].choices[0].finish_reason
        else:
            done = sdk.chat.completions.create(**asked)
            (call,) = done.choices[0].message.tool_calls or [None]
            finish = done.choices[0].finish_reason
            assert done.choices[0].message.content is None
    assert (call.function.name, json.loads(call.function.arguments)) == ("city", {"city": "Paris"})
    assert finish == reason
    job = service.runner.specs[-1]
    assert job.spec.output_schema == SCHEMA
    assert "`city`: Names one." in (job.spec.append_system_prompt or "")


def test_a_client_that_goes_away_cancels_its_stream(client: httpx2.Client, service: RunningService) -> None:
    before = len(service.runner.specs)
    with service.client() as leaving, leaving.stream("POST", "/v1/chat/completions", json=body("hold")):
        wait_until(lambda: len(service.runner.specs) > before)
    job = client.get(f"/v1/jobs/{service.runner.specs[-1].id}", headers={"prefer": "wait=20"}).json()
    assert job["state"] == "cancelled"


@pytest.fixture(autouse=True)
def nothing_played(service: RunningService) -> Iterator[None]:
    yield
    service.runner.play = None
