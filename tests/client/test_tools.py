"""Tools of the client with both clients and a real service."""

from collections.abc import Iterator

import pytest
from tests.api.api_service import ADMIN, RunningService
from tests.api.tool_calling_agent import ToolCallingAgent
from tests.client.client_kinds import MakeClient
from tests.client.cutting_proxy import CuttingProxy

from steadyhand import Client, InvalidRequest, JobNotCompleted, NotFound, Tool

WEATHER = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
SECONDS = 30.0


@pytest.fixture
def client(make_client: MakeClient, service: RunningService) -> Iterator[Client]:
    with make_client(service.url, ADMIN) as made:
        yield made


@pytest.fixture
def agent(service: RunningService) -> Iterator[ToolCallingAgent]:
    """An agent that asks for calls in two turns."""
    made = ToolCallingAgent(["Paris", "Rome"], ["Oslo"])
    service.runner.tool_calling_agent = made
    yield made
    service.runner.tool_calling_agent = None


def test_calls_are_answered_until_the_text_is_there(client: Client, agent: ToolCallingAgent) -> None:
    first = client.respond("say it is fine", agent="claude", tools=[WEATHER], metadata={"a": "b"})
    assert [(call.name, call.arguments) for call in first.calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Rome"}),
    ]
    second = client.send_results(first, {call.id: {"sky": "blue"} for call in first.calls})
    assert [call.arguments for call in second.calls] == [{"city": "Oslo"}]
    last = client.send_results(second, {second.calls[0].id: "snow"})
    assert (last.require_completed().text, last.calls, last.job_id) == ("it is fine", (), first.job_id)
    assert agent.results == [['{"sky":"blue"}'] * 2, ["snow"]]
    job = client.wait(last.job_id, timeout_seconds=SECONDS)
    assert (job.state, job.run, job.metadata) == ("completed", 1, {"a": "b"})


def test_an_answer_and_a_stream_that_are_lost_change_nothing(
    make_client: MakeClient, service: RunningService, agent: ToolCallingAgent
) -> None:
    before = service.count()
    with CuttingProxy(service.url, b"POST /v1/responses ") as proxy, make_client(proxy.url, ADMIN) as client:
        first = client.respond("say it is fine", agent="claude", tools=[WEATHER])
        assert (proxy.cuts, len(first.calls)) == (1, 2)
    for cut in (b"POST /v1/responses ", b"stream=true"):
        part = b'"sequence_number":1' if cut == b"stream=true" else b""
        with CuttingProxy(service.url, cut, part) as proxy, make_client(proxy.url, ADMIN) as client:
            first = client.send_results(first, {call.id: "sun" for call in first.calls})
            assert proxy.cuts == 1
    assert first.text == "it is fine"
    assert agent.results == [["sun", "sun"], ["sun"]]
    assert service.count() == before + 1


def test_a_response_that_goes_on_is_returned_as_it_is_and_waited_for(
    client: Client, service: RunningService
) -> None:
    release = service.hold_play()
    begun = client.respond("play done", agent="claude", wait_seconds=0)
    assert (begun.ended, begun.text, begun.calls) == (False, "", ())
    with pytest.raises(JobNotCompleted) as caught:
        begun.require_completed()
    assert caught.value.job_id == begun.job_id
    assert client.wait_response(begun, timeout_seconds=0).ended is False
    release()
    ended = client.wait_response(begun.id, timeout_seconds=SECONDS)
    assert (ended.text, client.respond("say on", agent="claude", previous_response_id=ended.id).text) == (
        "done",
        "on",
    )


def test_a_response_that_fails_has_its_reason(client: Client) -> None:
    failed = client.respond("fail it broke", agent="claude")
    with pytest.raises(JobNotCompleted) as caught:
        failed.require_completed()
    assert (caught.value.state, caught.value.code) == ("failed", "server_error")


def test_results_of_no_call_and_unknown_responses_are_errors(client: Client) -> None:
    ended = client.respond("say it", agent="claude")
    with pytest.raises(InvalidRequest) as caught:
        client.send_results(ended, {"call_x": "sun"})
    assert caught.value.code == "unknown_call"
    for name in ("resp_000000000000", "../keys"):
        with pytest.raises(NotFound):
            client.wait_response(name)
