"""The Responses API on a whole service: a run in the background outlives its service, and is told without a seam."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def follow(service: Service, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    with (
        service.new_client() as client,
        client.stream("GET", f"/v1/responses/{response_id}", params=query) as reply,
    ):
        assert reply.status_code == 200
        return list(events_of(reply.iter_lines()))


def seen_until_stopped(
    service: Service, response_id: str, text: str, stop: Callable[[], object]
) -> list[dict[str, Any]]:
    """Follow a response until a message was told, then stop its service, and give all that came."""
    seen: list[dict[str, Any]] = []
    with (
        service.new_client() as client,
        client.stream("GET", f"/v1/responses/{response_id}", params={"stream": "true"}) as reply,
    ):
        events = events_of(reply.iter_lines())
        for event in events:
            seen.append(event)
            if event["type"] == "response.output_text.done" and event["text"] == text:
                break
        stop()
        with contextlib.suppress(httpx2.TransportError):  # it may be cut
            seen += list(events)
    assert seen[-1]["type"] != "response.failed"
    return seen


@pytest.mark.parametrize("planned", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_background_response_goes_on_after_its_service_is_gone_and_gives_every_event_once(
    make_service: MakeService, common_dir: Path, *, planned: bool
) -> None:
    gate = common_dir / "gate"
    prompt = f"[[standin: say=First. run='echo one' say=Second. wait_for={gate} run='echo two' text=Done.]]"
    with make_service(env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "0"}) as service:
        begun = service.client.post(
            "/v1/responses", json={"model": "chat", "input": prompt, "background": True}
        ).json()
        assert begun["status"] in ("queued", "in_progress")
        stop = service.terminate if planned else service.kill
        seen = seen_until_stopped(service, begun["id"], "Second.", stop)
        gate.touch()
        service.restart()
        rest = follow(service, begun["id"], seen[-1]["sequence_number"])
        assert rest[-1]["type"] == "response.completed"
        told = seen + rest
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        whole = follow(service, begun["id"])
        assert whole == told
        for number in range(len(whole)):
            assert follow(service, begun["id"], number) == whole[number + 1 :]
        response = service.client.get(f"/v1/responses/{begun['id']}").json()
        assert response == whole[-1]["response"]
        job = service.wait_until_ended(begun["id"].removeprefix("resp_"))
        assert (job["state"], job["run"]) == ("completed", 2)


def test_the_official_client_streams_a_response_with_what_the_tools_do(default_service: Service) -> None:
    prompt = "[[standin: say='Let me look.' run='echo hi' text='It says {last}.' chunk=5 pace=2]]"
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        with client.responses.stream(model="chat", input=prompt) as stream:
            kinds = [event.type for event in stream]
            response = stream.get_final_response()
        assert kinds.count("response.output_text.delta") >= 2
        assert "response.mcp_call.completed" in kinds
        assert [item.type for item in response.output] == ["message", "mcp_call", "message"]
        assert response.output_text == "Let me look.It says hi."
        found = client.responses.retrieve(response.id)
    assert [item.type for item in found.output] == [item.type for item in response.output]
    assert found.output_text == response.output_text


def test_a_response_in_the_background_is_cancelled_by_the_official_client(
    default_service: Service, common_dir: Path
) -> None:
    prompt = f"[[standin: touch={common_dir}/begun sleep=60]]"
    with openai.OpenAI(base_url=f"{default_service.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        begun = client.responses.create(model="chat", input=prompt, background=True)
        wait_until((common_dir / "begun").exists)
        stopped = client.responses.cancel(begun.id)
    assert stopped.status == "cancelled"
    assert default_service.get_job(begun.id.removeprefix("resp_"))["state"] == "cancelled"
