"""The Responses API: every answer and event read by the SDK's own types, told the same however often it is told."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import ResponseItemList
from tests import openai_types
from tests.api.api_service import ADMIN, OTHER, SUBMITTER, RunningService, check_parameter_error, wait_until

from steadyhand.events import Message, TextDelta, Thinking, ThinkingDelta, ToolFinished, ToolStarted
from steadyhand.job import Job, State
from steadyhand.ports import Emit

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LONG = "Once upon a time there was a long message. " * 40


@pytest.fixture(autouse=True)
def nothing_played(service: RunningService) -> Iterator[None]:
    yield
    service.runner.play = None


def ask(client: httpx2.Client, given: Any = "say hello", **fields: Any) -> httpx2.Response:
    return client.post("/v1/responses", json={"model": "claude", "input": given, **fields})


def events_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    found = []
    for block in reply.text.split("\n\n"):
        if block.startswith("event: "):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            openai_types.parse_event(event)
            found.append(event)
        else:
            assert block == "" or block.startswith(":") or block == "data: [DONE]", block
    return found


def stream(client: httpx2.Client, given: Any, **fields: Any) -> list[dict[str, Any]]:
    reply = ask(client, given, stream=True, **fields)
    assert reply.status_code == 200, reply.text
    return events_of(reply)


def again(client: httpx2.Client, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    reply = client.get(f"/v1/responses/{response_id}", params=query)
    assert reply.status_code == 200, reply.text
    return events_of(reply)


async def work(emit: Emit) -> None:
    for at in range(0, len(LONG), 7):
        await emit(TextDelta("m1", LONG[at : at + 7]))
    await emit(Message("assistant", LONG))
    await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
    await emit(ToolStarted("t2", "Read", {"file_path": "ä"}))
    await emit(ToolFinished("t2", True, "no such file", False, 3))
    await emit(ToolFinished("t1", False, "a\n", False, 3))
    await emit(TextDelta("m2", "Do"))
    await emit(Message("assistant", "Done."))


THOUGHT = "Let me think about it for a moment. " * 3


async def work_with_thinking(emit: Emit) -> None:
    await emit(ThinkingDelta("m1", THOUGHT[:5]))
    await emit(ThinkingDelta("m1", THOUGHT[5:]))
    await emit(Thinking(THOUGHT))
    await emit(TextDelta("m1", "I lo"))
    await emit(Message("assistant", "I look."))
    await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
    await emit(ToolStarted("t2", "Read", {"file_path": "ä"}))
    await emit(ToolFinished("t2", True, "no such file", False, 3))
    await emit(ToolFinished("t1", False, "a\n", False, 3))
    await emit(Thinking(""))
    await emit(Message("assistant", "Done."))


def test_a_response_has_every_key_and_its_usage(client: httpx2.Client, service: RunningService) -> None:
    reply = ask(client, instructions="Be brief.", metadata={"a": "b"}, user="anna", temperature=0.5)
    assert reply.status_code == 200, reply.text
    response = openai_types.parse_response(reply.json())
    assert (response.status, response.output_text, response.model) == ("completed", "hello", "claude")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.total_tokens) == (240, 245)
    assert response.usage.input_tokens_details.cached_tokens == 200
    assert (response.instructions, response.temperature, response.user) == ("Be brief.", 0.5, "anna")
    assert response.metadata == {"a": "b"}
    job = service.runner.specs[-1]
    assert job.spec.append_system_prompt == "Be brief."
    assert job.spec.metadata == {"a": "b", "user": "anna"}
    assert client.get(f"/v1/responses/{response.id}").json() == reply.json()


def test_the_events_are_typed_numbered_and_in_order(client: httpx2.Client, service: RunningService) -> None:
    service.runner.play = work
    events = stream(client, "play Done.")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") > 20
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == f"{LONG}Done."
    output = events[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [
        ("message", "completed"),
        ("mcp_call", "completed"),
        ("mcp_call", "failed"),
        ("message", "completed"),
    ]
    assert (output[1]["name"], output[1]["output"]) == ("Bash", "a\n")
    assert output[2]["error"]["content"][0]["text"] == "no such file"
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert sorted(event["output_index"] for event in done) == [0, 1, 2, 3]
    assert [event["item"] for event in sorted(done, key=lambda e: int(e["output_index"]))] == output


@pytest.mark.parametrize("reasoning", [None, {"summary": "auto"}])
def test_every_telling_is_the_same_from_every_number_on(
    client: httpx2.Client, service: RunningService, reasoning: dict[str, Any] | None
) -> None:
    service.runner.play = work_with_thinking
    live = stream(client, "play Done.", reasoning=reasoning)
    response_id = live[-1]["response"]["id"]
    assert again(client, response_id) == live
    for number in range(0, len(live), 5):
        assert again(client, response_id, number) == live[number + 1 :]
    assert again(client, response_id, len(live) - 1) == []


SUMMARY = "response.reasoning_summary_"


def test_thinking_is_an_item_and_its_summary_comes_if_it_is_asked_for(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.play = work_with_thinking
    events = stream(client, "play Done.", reasoning={"effort": "low", "summary": "detailed"})
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == [
        "reasoning",
        "message",
        *["mcp_call"] * 2,
        "reasoning",
        "message",
    ]
    assert output[0]["summary"] == [{"type": "summary_text", "text": THOUGHT}]
    assert output[4]["summary"] == []  # the model showed none
    of_first = [event for event in events if event.get("item_id") == output[0]["id"]]
    assert [event["type"].removeprefix(SUMMARY) for event in of_first if "delta" not in event] == [
        "part.added",
        "text.done",
        "part.done",
    ]
    assert "".join(event.get("delta", "") for event in of_first) == THOUGHT
    assert {(event["output_index"], event["summary_index"]) for event in of_first} == {(0, 0)}
    begun = next(event for event in events if event["type"] == "response.output_item.added")
    assert (begun["item"]["type"], begun["item"]["status"]) == ("reasoning", "in_progress")
    for fields in ({}, {"reasoning": {"effort": "low"}}, {"text": {"format": {"type": "json_object"}}}):
        silent = stream(client, "play Done.", **fields)
        assert not [event for event in silent if event["type"].startswith(SUMMARY)]
        items = [item for item in silent[-1]["response"]["output"] if item["type"] == "reasoning"]
        assert [item["summary"] for item in items] == [[], []]
        whole = openai_types.parse_response(ask(client, "play Done.", **fields).json())
        assert THOUGHT not in whole.model_dump_json()


def test_thinking_comes_while_it_goes_on(client: httpx2.Client, service: RunningService) -> None:
    thought = asyncio.Event()

    async def slowly(emit: Emit) -> None:
        await emit(ThinkingDelta("m1", THOUGHT[:40]))
        await thought.wait()
        await emit(Thinking(THOUGHT))

    service.runner.play = slowly
    body = {"model": "claude", "input": "play x", "stream": True, "reasoning": {"summary": "auto"}}
    with client.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        first = next(line for line in lines if line.startswith(f"event: {SUMMARY}text.delta"))
        service.loop.call_soon_threadsafe(thought.set)
        rest = [line for line in lines if line.startswith("data: {")]
    assert first
    assert json.loads(rest[-1][6:])["response"]["output"][0]["summary"][0]["text"] == THOUGHT


def test_reasoning_that_a_client_sends_back_is_passed_over(
    client: httpx2.Client, service: RunningService
) -> None:
    service.runner.play = work_with_thinking
    first = ask(client, "play Done.", reasoning={"summary": "auto"}).json()
    said = {"role": "user", "content": "say more"}
    by_value = ask(client, [{"role": "user", "content": "play Done."}, *first["output"], said])
    assert by_value.status_code == 200, by_value.text
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    by_name = ask(client, [{"role": "user", "content": "play Done."}, *references, said])
    assert by_name.status_code == 200, by_name.text
    for spec in service.runner.specs[-2:]:
        assert spec.spec.prompt == "say more"
        assert THOUGHT not in str(spec.spec)


def test_a_background_response_comes_back_at_once_and_is_followed(
    client: httpx2.Client, service: RunningService
) -> None:
    gate = asyncio.Event()

    async def gated(emit: Emit) -> None:
        await emit(Message("assistant", "First."))
        await gate.wait()
        await work(emit)

    service.runner.play = gated
    reply = ask(client, "play Done.", background=True)
    begun = openai_types.parse_response(reply.json())
    assert begun.status in ("queued", "in_progress")
    assert service.runner.specs or wait_until(lambda: service.runner.specs)
    with client.stream("GET", f"/v1/responses/{begun.id}", params={"stream": "true"}) as following:
        lines = following.iter_lines()
        seen = next(line for line in lines if "First." in line)  # told while it runs
        assert seen
        service.loop.call_soon_threadsafe(gate.set)
        rest = list(lines)
    assert any("response.completed" in line for line in rest)
    whole = again(client, begun.id)
    assert [event["type"] for event in whole[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    for number in range(0, len(whole), 7):
        assert again(client, begun.id, number) == whole[number + 1 :]
    job = client.get(f"/v1/jobs/{begun.id.removeprefix('resp_')}").json()
    assert (job["on_interrupt"], job["origin"]) == ("resume", "openai")


def test_a_client_that_leaves_a_background_stream_leaves_it_running(
    client: httpx2.Client, service: RunningService
) -> None:
    gate = asyncio.Event()

    async def gated(emit: Emit) -> None:
        await gate.wait()

    service.runner.play = gated
    body = {"model": "claude", "input": "play done", "background": True, "stream": True}
    with client.stream("POST", "/v1/responses", json=body) as reply:
        line = next(line for line in reply.iter_lines() if line.startswith("data: "))
        response_id = json.loads(line.removeprefix("data: "))["response"]["id"]
    service.loop.call_soon_threadsafe(gate.set)
    assert again(client, response_id)[-1]["type"] == "response.completed"


def test_leaving_cancels_a_response_that_is_not_in_the_background(
    client: httpx2.Client, service: RunningService
) -> None:
    before = len(service.runner.specs)
    body = {"model": "claude", "input": "hold", "stream": True}
    with service.client() as leaving, leaving.stream("POST", "/v1/responses", json=body):
        wait_until(lambda: len(service.runner.specs) > before)
    job_id = service.runner.specs[-1].id
    assert client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"}).json()["state"] == "cancelled"
    assert (
        openai_types.parse_response(client.get(f"/v1/responses/resp_{job_id}").json()).status == "cancelled"
    )


def test_a_failure_is_an_http_error_or_the_last_event(client: httpx2.Client, service: RunningService) -> None:
    reply = ask(client, "fail badly")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "execution_failed")
    assert reply.headers["x-should-retry"] == "false"

    async def half(emit: Emit) -> None:
        await emit(TextDelta("m1", "Half of a sentence that"))
        await emit(ToolStarted("t1", "Bash", {}))

    service.runner.play = half
    events = stream(client, "play")
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert {item["status"] for item in response["output"]} == {"incomplete"}
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    late = again(client, response["id"], events[-2]["sequence_number"])
    assert [event["type"] for event in late] == ["response.failed"]


def test_cancel_delete_and_input_items(client: httpx2.Client, service: RunningService) -> None:
    image = {"type": "input_image", "image_url": "data:image/gif;base64,R0lGODlhAAAA", "detail": "low"}
    given = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "U1"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A1"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": [{"type": "input_text", "text": "hold"}, image]},
    ]
    begun = ask(client, given, background=True).json()
    job = wait_until(lambda: [j for j in service.runner.specs if j.id == begun["id"].removeprefix("resp_")])[
        0
    ]
    assert [turn.content for turn in job.spec.history] == ["U1", "A1"]
    assert [block["type"] for block in job.spec.content] == ["text", "image"]
    assert client.delete(f"/v1/responses/{begun['id']}").status_code == 409
    items = client.get(f"/v1/responses/{begun['id']}/input_items").json()
    openai_types.parse_strict(ResponseItemList, items)
    assert [item["role"] for item in items["data"]] == ["user", "assistant", "user", "system"]
    assert items["data"][0]["content"][1]["image_url"] is None
    page = client.get(
        f"/v1/responses/{begun['id']}/input_items",
        params={"order": "asc", "limit": 2, "after": items["data"][3]["id"]},
    ).json()
    assert [item["role"] for item in page["data"]] == ["user", "assistant"]
    assert page["has_more"]
    stopped = client.post(f"/v1/responses/{begun['id']}/cancel")
    assert openai_types.parse_response(stopped.json()).status == "cancelled"
    assert client.post(f"/v1/responses/{begun['id']}/cancel").json() == stopped.json()
    gone = client.delete(f"/v1/responses/{begun['id']}")
    assert gone.json() == {"id": begun["id"], "object": "response", "deleted": True}
    assert client.get(f"/v1/responses/{begun['id']}").status_code == 404


def test_json_and_a_forced_function(client: httpx2.Client, service: RunningService) -> None:
    form = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}
    service.runner.play = work
    events = stream(client, "play x", text={"format": form})
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert json.loads("".join(texts)) == {"city": "Paris"}
    assert openai_types.parse_response(events[-1]["response"]).output_text == '{"city":"Paris"}'
    tool = {"type": "function", "name": "city", "description": None, "parameters": SCHEMA, "strict": True}
    for choice in ("required", {"type": "function", "name": "city"}):
        response = openai_types.parse_response(ask(client, "which", tools=[tool], tool_choice=choice).json())
        call = response.output[-1]
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("city", {"city": "Paris"})
        assert events_of(ask(client, "which", tools=[tool], tool_choice=choice, stream=True))


@pytest.mark.parametrize(
    ("fields", "status", "param", "why"),
    [
        ({"conversation": "c"}, 400, "conversation", "not kept here"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id", "no response of this key"),
        ({"prompt": {"id": "p"}}, 400, "prompt", "no stored prompts"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "log probabilities"),
        ({"include": ["message.output_text.logprobs"]}, 400, "include.0", "log probabilities"),
        ({"background": True, "store": False}, 422, "store", "has to be stored"),
        ({"tools": [{"type": "custom"}]}, 400, "tools.0", "only functions"),
        ({"tools": [{"type": "function", "name": "f"}] * 1000}, 422, "tools", "more than 128"),
        ({"tool_choice": {"type": "mcp"}}, 400, "tool_choice", "none, auto"),
        ({"text": {"format": {"type": "grammar"}}}, 400, "text.format.type", "json_schema"),
        (
            {"text": {"format": {"type": "json_schema", "schema": 4}}},
            422,
            "text.format.schema",
            "JSON Schema",
        ),
        ({"input": []}, 422, None, "at least 1"),
        ({"input": ""}, 422, None, "empty"),
        ({"input": 5}, 422, None, "string"),
        ({"input": [{"role": "king", "content": "x"}]}, 422, "input.0.role", "one of"),
        ({"input": [{"role": "user", "content": 4}]}, 422, "input.0.content", "text or a list"),
        ({"input": [{"role": "user", "content": ["x"]}]}, 422, "input.0.content.0", "a part"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            400,
            "input",
            "no results",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            400,
            "input.0.call_id",
            "no call of ours",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 404, "input.0.id", "no item"),
        ({"input": [{"content": "x"}]}, 400, "input.0", "no item"),
        ({"model": "nobody"}, 404, None, "no such model"),
        ({"metadata": {"a": 1}}, 422, "metadata.a", "string"),
        ({"temperature": 9}, 422, "temperature", "less than or equal to 2"),
    ],
)
def test_what_is_wrong_is_refused_by_name_and_starts_nothing(
    service: RunningService, *, fields: dict[str, Any], status: int, param: str | None, why: str
) -> None:
    check_parameter_error(
        service,
        "/v1/responses",
        {"model": "claude", "input": "say x", **fields},
        status=status,
        param=param,
        why=why,
    )


def test_only_its_own_key_finds_a_response_and_only_if_it_was_stored(
    client: httpx2.Client, service: RunningService
) -> None:
    mine = ask(client).json()["id"]
    unstored = ask(client, store=False).json()["id"]
    chat = client.post(
        "/v1/chat/completions", json={"model": "claude", "messages": [{"role": "user", "content": "say x"}]}
    )
    job_id = chat.headers["x-steadyhand-job-id"]
    for response_id in (unstored, "resp_000000000000", "resp_x", f"resp_{job_id}"):
        reply = client.get(f"/v1/responses/{response_id}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), response_id
    with service.client(OTHER) as other:
        assert other.get(f"/v1/responses/{mine}").status_code == 404
        assert other.delete(f"/v1/responses/{mine}").status_code == 404
    with service.client(SUBMITTER) as submitter:
        assert ask(submitter).json()["status"] == "completed"
        assert submitter.get(f"/v1/responses/{mine}").status_code == 403


def test_a_response_that_a_later_release_stored_is_an_error_and_its_job_stays_readable(
    client: httpx2.Client, service: RunningService
) -> None:
    response_id = ask(client).json()["id"]
    job_id = response_id.removeprefix("resp_")

    def with_next_version(job: Job) -> Job:
        return replace(job, spec=replace(job.spec, request={**(job.spec.request or {}), "version": 2}))

    update = service.store.update_job(job_id, frozenset({State.COMPLETED}), with_next_version)
    asyncio.run_coroutine_threadsafe(update, service.loop).result(20)
    url = f"/v1/responses/{response_id}"
    replies = (client.get(url), client.delete(url), ask(client, previous_response_id=response_id))
    assert [(reply.status_code, reply.json()["code"]) for reply in replies] == [(500, "internal")] * 3
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "completed"
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


def test_a_number_that_is_none_is_refused(client: httpx2.Client) -> None:
    mine = ask(client).json()["id"]
    for text in ("-1", "x", "1.5", ""):
        reply = client.get(f"/v1/responses/{mine}", params={"stream": "true", "starting_after": text})
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, "starting_after")


def test_openais_client_streams_looks_up_and_follows(service: RunningService) -> None:
    service.runner.play = work
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=ADMIN) as sdk:
        with sdk.responses.stream(model="claude", input="play Done.") as streaming:
            final = list(streaming)[-1]
            assert streaming.get_final_response().output_text == f"{LONG}Done."
        assert final.type == "response.completed"
        response = sdk.responses.create(model="claude", input="play Done.", background=True)
        followed = list(sdk.responses.retrieve(response.id, stream=True, starting_after=2))
        assert followed[-1].type == "response.completed"
        assert followed[0].sequence_number == 3
        assert sdk.responses.retrieve(response.id).output_text == f"{LONG}Done."
        assert [item.type for item in sdk.responses.input_items.list(response.id)] == ["message"]
        sdk.responses.delete(response.id)
