"""SIGTERM while an agent waits for its client's tools, or is at work on the results: who has the results goes on."""

import contextlib
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests import openai_types
from tests.blackbox.conftest import long
from tests.blackbox.test_responses import events_of, follow, seen_until_stopped

from steadyhand.testing.service import MakeService, Service, wait_until

TOOL: dict[str, Any] = {"name": "look", "parameters": {"type": "object"}}
AT_ONCE = {"STEADYHAND_SERVICE__DRAIN_SECONDS": "0"}
QUESTION = """[[standin: call='look:{"n": 1}' text="It says {last}."]]"""


def respond(http: httpx2.Client, given: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "input": given, "tools": [{"type": "function", **TOOL}], **fields}
    reply = http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    openai_types.parse_response(found)
    return found


def ask(http: httpx2.Client, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"model": "chat", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()["choices"][0]["message"]
    return found


def output(body: dict[str, Any], text: str) -> list[dict[str, Any]]:
    (call,) = [item for item in body["output"] if item["type"] == "function_call"]
    return [{"type": "function_call_output", "call_id": call["call_id"], "output": text}]


def with_calls(service: Service, response_id: str) -> dict[str, Any]:
    """Give a response in the background once its client is to make calls."""

    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = service.client.get(f"/v1/responses/{response_id}").json()
        return body if body["status"] == "completed" else None

    return wait_until(look)


def job_of(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    return service.get_job(body["id"].split("_")[1])


@pytest.mark.parametrize("background", [long(False), True])
def test_a_response_whose_calls_wait_over_a_stop_goes_on_with_their_outputs(
    make_service: MakeService, *, background: bool
) -> None:
    with make_service(env=AT_ONCE) as service:
        first = respond(service.client, QUESTION, background=background)
        if background:
            first = with_calls(service, first["id"])
        service.terminate()
        service.restart()
        # It does not go on by itself, not even in the background: it has nothing to go on with.
        job = job_of(service, first)
        assert (job["state"], job["outcome"]["type"], job["run"]) == ("interrupted", "unanswered", 1)
        assert service.client.get(f"/v1/responses/{first['id']}").json() == first
        given = output(first, "[[standin: text='Sun after all.']]")
        second = respond(service.client, given, previous_response_id=first["id"])
        assert openai_types.parse_response(second).output_text == "Sun after all."
        assert job_of(service, first)["run"] == 2
        assert service.client.get(f"/v1/responses/{first['id']}").json() == first
        assert service.client.get(f"/v1/responses/{second['id']}").json() == second
        # The next life knows of the outputs, and gives the same response for them.
        service.terminate()
        service.restart()
        assert respond(service.client, given, previous_response_id=first["id"]) == second


@pytest.mark.long  # a stop is above, late results of a chat in `test_client_tools`
def test_a_chat_whose_calls_wait_over_a_stop_goes_on_with_their_results(make_service: MakeService) -> None:
    with make_service(env=AT_ONCE) as service:
        said = ask(service.client, [{"role": "user", "content": QUESTION}])
        (call,) = said["tool_calls"]
        service.terminate()
        service.restart()
        job = service.get_job(call["id"].split("_")[1])
        assert (job["state"], job["outcome"]["type"]) == ("interrupted", "unanswered")
        late = {"role": "tool", "tool_call_id": call["id"], "content": "[[standin: text='Sun after all.']]"}
        talk = [{"role": "user", "content": QUESTION}, said, late]
        assert ask(service.client, talk)["content"] == "Sun after all."
        assert service.get_job(job["id"])["run"] == 2


def test_an_agent_that_was_stopped_at_work_on_the_outputs_is_given_them_once_more(
    make_service: MakeService, common_dir: Path
) -> None:
    busy, gate = common_dir / "busy", common_dir / "gate"
    working = f"[[standin: touch={busy} wait_for={gate} text='Done with it.']]"
    with make_service(env=AT_ONCE) as service:
        first = respond(service.client, QUESTION)
        # As the last words of a resumed session the outputs say what the stand-in does.
        service.terminate()
        service.restart()
        given = output(first, working)
        body = {"model": "chat", "input": given, "previous_response_id": first["id"], "stream": True}
        with service.new_client() as client, client.stream("POST", "/v1/responses", json=body) as reply:
            wait_until(busy.exists)
            service.terminate()
            with contextlib.suppress(httpx2.TransportError):
                assert [event["type"] for event in events_of(reply.iter_lines())][-1] in (
                    "error",
                    "response.failed",
                )
        service.restart()
        job = job_of(service, first)
        assert (job["state"], job["outcome"]["type"], job["run"]) == ("interrupted", "interrupted", 2)
        gate.touch()
        second = respond(service.client, given, previous_response_id=first["id"])
        assert second["id"] == f"{first['id']}_1"
        assert openai_types.parse_response(second).output_text == "Done with it."
        assert job_of(service, first)["run"] == 3


def test_a_response_in_the_background_after_calls_gives_every_event_once_over_a_stop(
    make_service: MakeService, common_dir: Path
) -> None:
    gate = common_dir / "gate"
    with make_service(env=AT_ONCE) as service:
        begun = respond(service.client, QUESTION, background=True)
        first = with_calls(service, begun["id"])
        service.terminate()
        service.restart()
        work = f"[[standin: say=First. run='echo one' say=Second. wait_for={gate} run='echo two' text=Done.]]"
        given = {"input": output(first, work), "previous_response_id": first["id"], "background": True}
        second = service.client.post("/v1/responses", json={"model": "chat", **given}).json()
        seen = seen_until_stopped(service, second["id"], "Second.", service.terminate)
        gate.touch()
        service.restart()
        told = seen + follow(service, second["id"], seen[-1]["sequence_number"])
        assert told[-1]["type"] == "response.completed"
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        for event in told:
            openai_types.parse_event(event)
        for number in range(-1, len(told)):
            after = None if number < 0 else number
            assert follow(service, second["id"], after) == told[number + 1 :]
        assert service.client.get(f"/v1/responses/{second['id']}").json() == told[-1]["response"]
        assert service.client.get(f"/v1/responses/{first['id']}").json() == first
        assert job_of(service, first)["run"] == 3
