"""Tools of a client of the Responses API: calls end a response, what comes of them begins the next of the same run."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from openai.types.responses import ResponseItemList
from tests import openai_types
from tests.api.api_service import LIMITED, OTHER, TIMEOUT_SECONDS, RunningService, wait_until
from tests.api.tool_calling_agent import ToolCallingAgent

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
QUESTION = {"role": "user", "content": "play it is fine"}


def ask(client: httpx2.Client, given: Any, **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "input": given, "tools": [WEATHER], **fields}
    return client.post("/v1/responses", json=body, timeout=TIMEOUT_SECONDS)


def answer(client: httpx2.Client, given: Any, **fields: Any) -> dict[str, Any]:
    reply = ask(client, given, **fields)
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    openai_types.parse_response(body)
    return body


def stream(client: httpx2.Client, given: Any, **fields: Any) -> list[dict[str, Any]]:
    reply = ask(client, given, stream=True, **fields)
    assert reply.status_code == 200, reply.text
    return events_of(reply)


def events_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    events = [json.loads(line) for line in lines[:-1]]
    for event in events:
        openai_types.parse_event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def again(client: httpx2.Client, response_id: str, after: int) -> list[dict[str, Any]]:
    query = {"stream": "true", "starting_after": str(after)}
    reply = client.get(f"/v1/responses/{response_id}", params=query)
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


def calls_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    assert body["status"] == "completed"
    calls = [item for item in body["output"] if item["type"] == "function_call"]
    assert calls, body
    return calls


def outputs(calls: list[dict[str, Any]], *texts: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call_output", "call_id": call["call_id"], "output": text}
        for call, text in zip(calls, texts, strict=True)
    ]


def text_of(body: dict[str, Any]) -> str:
    return openai_types.parse_response(body).output_text


def refused(reply: httpx2.Response, code: str = "unknown_call") -> str:
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == code
    detail: str = reply.json()["detail"]
    return detail


def test_calls_end_a_response_and_their_outputs_go_on_with_the_same_process(
    client: httpx2.Client, service: RunningService, asking: ToolCallingAgent
) -> None:
    first = answer(client, [QUESTION])
    calls = calls_of(first)
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
    assert text_of(first) == "let me look 1"
    assert [item["type"] for item in first["output"]] == ["message", "function_call", "function_call"]
    assert first["usage"]["output_tokens"] == 5
    second = answer(client, outputs(calls, "sun", "rain"), previous_response_id=first["id"])
    assert text_of(second) == "it is fine"
    assert second["previous_response_id"] == first["id"] != second["id"]
    assert asking.results == [["sun", "rain"]]
    assert len([job for job in service.runner.specs if job.id in first["id"]]) == 1
    assert client.get(f"/v1/responses/{first['id']}").json() == first
    assert client.get(f"/v1/responses/{second['id']}").json() == second


def test_the_whole_history_comes_back_and_goes_on(client: httpx2.Client, asking: ToolCallingAgent) -> None:
    asking.turns = (["Paris"], ["Oslo"])
    talk: list[dict[str, Any]] = [QUESTION]
    first = answer(client, talk, store=False)
    talk += [*first["output"], *outputs(calls_of(first), "sun")]
    second = answer(client, talk, store=False)
    assert text_of(second) == "let me look 2"
    assert second["usage"]["output_tokens"] == 5
    talk += [*second["output"], *outputs(calls_of(second), "snow"), {"role": "user", "content": "be quick"}]
    third = answer(client, talk, store=False)
    assert text_of(third) == "it is fine"
    assert asking.results == [["sun"], ["snow\n\nThe user says:\n\nbe quick"]]
    assert len({each["id"] for each in (first, second, third)}) == 3
    assert client.get(f"/v1/responses/{second['id']}").status_code == 404  # it was not to be stored


def test_outputs_between_the_calls_of_one_turn_are_found(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    said, one, two = answer(client, [QUESTION])["output"]
    out = outputs([one, two], "sun", "rain")
    talk = [QUESTION, said, one, out[0], two, out[1]]
    assert text_of(answer(client, talk)) == "it is fine"
    assert asking.results == [["sun", "rain"]]


def test_a_stream_tells_calls_and_the_next_one_the_rest(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    events = stream(client, [QUESTION])
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "response.completed"
    call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert kinds[-9:-1] == call * 2
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    first = events[-1]["response"]
    assert done == first["output"]
    assert first["usage"]["output_tokens"] == 5
    rest = stream(client, outputs(calls_of(first), "a", "b"), previous_response_id=first["id"])
    assert [event["type"] for event in rest[:2]] == ["response.created", "response.in_progress"]
    assert text_of(rest[-1]["response"]) == "it is fine"
    assert asking.results == [["a", "b"]]
    for told in (events, rest):
        response_id = told[-1]["response"]["id"]
        for number in range(len(told)):
            assert again(client, response_id, number) == told[number + 1 :]


def test_responses_in_the_background_wait_for_outputs_and_are_followed(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    begun = answer(client, [QUESTION], background=True)
    first = wait_until(
        lambda: (
            body
            if (body := client.get(f"/v1/responses/{begun['id']}").json())["status"] == "completed"
            else None
        )
    )
    calls = calls_of(first)
    job = client.get(f"/v1/jobs/{calls[0]['call_id'].split('_')[1]}").json()
    assert (job["state"], job["on_interrupt"]) == ("running", "resume")
    second = answer(client, outputs(calls, "a", "b"), previous_response_id=first["id"], background=True)
    told = events_of(client.get(f"/v1/responses/{second['id']}", params={"stream": "true"}))
    assert [event["type"] for event in told[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert text_of(told[-1]["response"]) == "it is fine"
    assert client.get(f"/v1/responses/{second['id']}").json() == told[-1]["response"]
    assert asking.results == [["a", "b"]]


def test_the_same_outputs_again_give_the_same_response_and_others_are_stale(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    first = answer(client, [QUESTION])
    calls = calls_of(first)
    second = answer(client, outputs(calls, "sun", "rain"), previous_response_id=first["id"])
    assert answer(client, outputs(calls, "sun", "rain"), previous_response_id=first["id"]) == second
    assert "no longer waits" in refused(ask(client, outputs(calls, "sun", "hail")))
    assert asking.results == [["sun", "rain"]]


@pytest.mark.usefixtures("asking")
def test_what_does_not_fit_is_refused_and_the_run_goes_on_waiting(client: httpx2.Client) -> None:
    first = answer(client, [QUESTION])
    calls = calls_of(first)
    wrong = [{**calls[0], "call_id": "call_of_somebody_else"}]
    assert "input.0.call_id" in refused(ask(client, outputs(wrong, "x")))
    nowhere = [{**calls[0], "call_id": "call_000000000000_1_1"}]
    assert "no run of yours" in refused(ask(client, outputs(nowhere, "x")))
    assert calls[1]["call_id"] in refused(ask(client, outputs(calls[:1], "x")))
    file = [{"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,YQ=="}]
    odd = [{**outputs(calls[:1], "x")[0], "output": file}]
    assert "input.0.output.0" in refused(ask(client, odd), "unsupported_parameter")
    reply = ask(client, [{**outputs(calls[:1], "x")[0], "output": 5}])
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "input.0.output")
    unread: list[dict[str, Any]] = [{"type": "message", "content": "x"}, {"role": "user", "content": 5}]
    for item in unread:
        reply = ask(client, [*outputs(calls, "x", "y"), item])
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_field")
    missing = ask(client, "go on", previous_response_id=first["id"])
    assert "has no output of the call" in refused(missing)
    other = answer(client, "say x", tools=[])
    mixed = ask(client, outputs(calls, "a", "b"), previous_response_id=other["id"])
    assert "whose calls these are" in refused(mixed)
    chat = {"role": "tool", "tool_call_id": calls[0]["call_id"], "content": "x"}
    body = {"model": "claude", "messages": [{"role": "user", "content": "x"}, chat]}
    assert "of a response" in refused(client.post("/v1/chat/completions", json=body))
    last = answer(client, outputs(calls, "a", "b"), previous_response_id=first["id"])
    assert "not the last" in refused(
        ask(client, "go on", previous_response_id=first["id"]), "previous_response_not_found"
    )
    assert answer(client, "say bye", previous_response_id=last["id"], tools=[])["status"] == "completed"


@pytest.mark.usefixtures("asking")
def test_another_key_cannot_bring_outputs_not_even_one_that_reads_all(
    service: RunningService, client: httpx2.Client
) -> None:
    with service.client(LIMITED) as owner, service.client(OTHER) as other:
        calls = calls_of(answer(owner, [QUESTION]))
        for stranger in (other, client):
            assert "no run of yours" in refused(ask(stranger, outputs(calls, "x", "y")))
        assert text_of(answer(owner, outputs(calls, "sun", "rain"))) == "it is fine"


def test_each_response_of_a_run_is_looked_up_cancelled_and_forgotten_by_itself(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    asking.turns = (["Paris"], ["Oslo"])
    first = answer(client, [QUESTION], metadata={"turn": "1"}, instructions="Be brief.")
    given = [QUESTION, *first["output"], *outputs(calls_of(first), "sun")]
    second = answer(client, given, metadata={"turn": "2"})
    assert (first["metadata"], second["metadata"]) == ({"turn": "1"}, {"turn": "2"})
    assert (first["instructions"], second["instructions"]) == ("Be brief.", None)
    items = client.get(f"/v1/responses/{second['id']}/input_items").json()
    openai_types.parse_strict(ResponseItemList, items)
    assert [(item["type"], item["output"]) for item in items["data"]] == [("function_call_output", "sun")]
    job = f"/v1/jobs/{second['id'].split('_')[1]}"
    # An earlier response is over: stopping it stops nothing.
    assert client.post(f"/v1/responses/{first['id']}/cancel").json() == first
    assert client.get(job).json()["state"] == "running"
    assert client.delete(f"/v1/responses/{first['id']}").status_code == 200
    assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert client.get(f"/v1/responses/{second['id']}").json() == second
    assert client.delete(f"/v1/responses/{second['id']}").status_code == 409  # its agent waits
    # The newest one stays as it is, and its agent waits no more.
    assert client.post(f"/v1/responses/{second['id']}/cancel").json() == second
    assert client.get(job).json()["state"] == "cancelled"
    assert client.delete(f"/v1/responses/{second['id']}").status_code == 200
    assert client.get(job).status_code == 404


def test_a_client_that_leaves_while_its_outputs_are_worked_on_cancels_the_run(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    first = answer(client, [QUESTION])
    job = f"/v1/jobs/{first['id'].split('_')[1]}"
    assert client.get(job).json()["state"] == "running"  # it has left with calls to make
    asking.hold_after_turns = True
    body = {"model": "claude", "input": outputs(calls_of(first), "a", "b")}
    with pytest.raises(httpx2.TimeoutException):
        client.post("/v1/responses", json=body, timeout=1)
    wait_until(lambda: client.get(job).json()["state"] == "cancelled")


def test_a_run_that_fails_after_its_calls_fails_the_response_after_them(
    client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    question = {"role": "user", "content": "fail badly"}
    first = answer(client, [question])
    reply = ask(client, outputs(calls_of(first), "a", "b"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "execution_failed")
    assert client.get(f"/v1/responses/{first['id']}").json() == first
    failed = client.get(f"/v1/responses/{first['id']}_1").json()
    assert openai_types.parse_response(failed).status == "failed"
    assert asking.results == [["a", "b"]]


def test_two_that_bring_the_same_outputs_at_once_are_one(
    service: RunningService, client: httpx2.Client, asking: ToolCallingAgent
) -> None:
    calls = calls_of(answer(client, [QUESTION]))
    body = {"model": "claude", "input": outputs(calls, "sun", "rain")}

    async def both() -> list[httpx2.Response]:
        headers = {"authorization": client.headers["authorization"]}
        async with httpx2.AsyncClient(base_url=service.url, headers=headers, timeout=TIMEOUT_SECONDS) as many:
            return list(await asyncio.gather(*(many.post("/v1/responses", json=body) for _ in range(8))))

    found = [reply.json() for reply in asyncio.run(both())]
    assert all(body == found[0] for body in found)
    assert text_of(found[0]) == "it is fine"
    assert asking.results == [["sun", "rain"]]


def reference(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "item_reference", "id": item["id"]}


def test_references_to_items_stand_for_them(
    client: httpx2.Client, service: RunningService, asking: ToolCallingAgent
) -> None:
    first = answer(client, [QUESTION])
    calls = calls_of(first)
    talk = [QUESTION, *map(reference, first["output"]), *outputs(calls, "sun", "rain")]
    second = answer(client, talk)
    assert text_of(second) == "it is fine"
    asked = client.get(f"/v1/responses/{first['id']}/input_items").json()["data"][0]
    given = client.get(f"/v1/responses/{second['id']}/input_items", params={"order": "asc"}).json()["data"]
    talk = [reference(asked), *talk[1:4], *map(reference, given), *map(reference, second["output"])]
    talk.append({"role": "user", "content": "say thanks"})
    assert text_of(answer(client, talk, tools=[])) == "thanks"
    history = service.runner.specs[-1].spec.history
    assert [turn.role for turn in history] == ["user", *["assistant"] * 3, *["user"] * 2, "assistant"]
    said = [turn.content for turn in history]
    assert said[:2] == ["play it is fine", "let me look 1"]
    assert said[2] == f'[Call {calls[0]["call_id"]}: get_weather({{"city":"Paris"}})]'
    assert said[4] == f"[The result of the call {calls[0]['call_id']}:]\nsun"
    assert asking.results == [["sun", "rain"]]


def test_references_to_what_is_not_this_keys_or_not_kept_are_refused_by_name(
    client: httpx2.Client, service: RunningService
) -> None:
    kept, unstored, gone = (answer(client, "say x", tools=[], store=store) for store in (True, False, True))
    assert client.delete(f"/v1/responses/{gone['id']}").status_code == 200
    before = service.count()
    strange = [{"id": "msg_1"}, {"id": ""}, {"id": 5}, {}, {"id": kept["output"][0]["id"] + "9"}]
    for item in (*strange, unstored["output"][0], gone["output"][0]):
        given = [{"role": "user", "content": "x"}, {"type": "item_reference", "id": item.get("id")}]
        reply = ask(client, [*given, QUESTION])
        assert reply.status_code == 404, item
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("item_not_found", "input.1.id")
    with service.client(LIMITED) as owner:
        theirs = answer(owner, "say x", tools=[])
        mine = [reference(theirs["output"][0]), QUESTION]
        assert ask(client, mine, tools=[]).status_code == 404  # though this key may read all
        assert ask(owner, mine, tools=[]).status_code == 200
    assert service.count() == before + 2
