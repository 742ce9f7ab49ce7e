"""A library that asks again without saying so (the Vercel AI SDK) runs an agent once; who asks twice runs it twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, wait_until
from tests.api.tool_calling_agent import ToolCallingAgent

from steadyhand.api.openai import start_run

SILENT = {"user-agent": "ai/7.0.173 ai-sdk-provider-utils/5.0.81 node.js/24"}


@pytest.fixture(autouse=True)
def nothing_played(service: RunningService) -> Iterator[None]:
    yield
    service.runner.play = None


@pytest.fixture
def asks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_run, "MIN_RETRY_SECONDS", 0.0)


def ask(
    client: httpx2.Client, prompt: str, headers: dict[str, str] = SILENT, **fields: Any
) -> httpx2.Response:
    body = {"model": "claude", "messages": [{"role": "user", "content": prompt}], **fields}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def job_of(answer: httpx2.Response) -> str:
    return answer.headers["x-steadyhand-job-id"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_told_again_and_the_library_is_told_not_to_wait(
    client: httpx2.Client, service: RunningService, *, stream: bool
) -> None:
    before = len(service.runner.specs)
    answers = [ask(client, f"fail silently {stream}", stream=stream) for _ in range(3)]
    assert all("execution_failed" in answer.text for answer in answers)
    if not stream:
        assert [answer.status_code for answer in answers] == [503] * 3
        assert {answer.headers["retry-after-ms"] for answer in answers} == {"0"}
    assert len(service.runner.specs) == before + 1
    assert "retry-after-ms" not in ask(client, "fail aloud", {}).headers


@pytest.mark.usefixtures("asks_again_at_once")
def test_an_answer_that_was_lost_is_given_again(client: httpx2.Client) -> None:
    first = ask(client, "say it once")
    again = ask(client, "say it once")
    assert again.text == first.text
    assert again.headers["idempotent-replayed"] == "true"
    assert job_of(ask(client, "say it once", {})) != job_of(first)


@pytest.mark.usefixtures("asks_again_at_once")
def test_a_response_that_was_lost_is_given_again(client: httpx2.Client) -> None:
    body = {"model": "claude", "input": "say a response once"}
    first, again = (client.post("/v1/responses", json=body, headers=SILENT) for _ in range(2))
    assert again.json()["id"] == first.json()["id"]


def test_who_asks_the_same_at_once_or_late_gets_another_run(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_run, "MIN_RETRY_SECONDS", 30.0)  # so that also a busy machine asks at once
    monkeypatch.setattr(start_run, "MAX_RETRY_SECONDS", 60.0)
    first = ask(client, "say a number")
    second = ask(client, "say a number")
    assert job_of(second) != job_of(first)
    monkeypatch.setattr(start_run, "MIN_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(start_run, "MAX_RETRY_SECONDS", 0.0)
    assert job_of(ask(client, "say a number")) not in {job_of(first), job_of(second)}
    failed = ask(client, "fail late")
    assert job_of(ask(client, "fail late")) != job_of(failed)


@pytest.mark.usefixtures("asks_again_at_once")
def test_a_stream_that_came_to_its_end_is_not_given_again(client: httpx2.Client) -> None:
    first, again = (ask(client, "say it in pieces", stream=True) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert job_of(again) != job_of(first)


@pytest.mark.usefixtures("asks_again_at_once")
@pytest.mark.parametrize("stream", [False, True])
def test_calls_for_the_client_that_were_lost_are_given_again_and_streamed_ones_are_not(
    client: httpx2.Client, service: RunningService, *, stream: bool
) -> None:
    service.runner.tool_calling_agent = ToolCallingAgent(["Oslo"])
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    prompt = f"say the weather {stream}"
    first, again = (ask(client, prompt, tools=[weather], stream=stream) for _ in range(2))
    service.runner.tool_calling_agent = None
    assert "get_weather" in first.text
    assert "get_weather" in again.text
    assert (job_of(again) == job_of(first)) is not stream
    for job_id in {job_of(first), job_of(again)}:
        client.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.usefixtures("asks_again_at_once")
def test_beside_a_run_that_somebody_waits_for_the_same_is_another_run(
    client: httpx2.Client, service: RunningService
) -> None:
    go_on = service.hold_play()
    before = len(service.runner.specs)
    body = {"model": "claude", "stream": True, "messages": [{"role": "user", "content": "play beside"}]}
    with (
        service.client() as one,
        service.client() as two,
        one.stream("POST", "/v1/chat/completions", json=body, headers=SILENT) as first,
        two.stream("POST", "/v1/chat/completions", json=body, headers=SILENT) as second,
    ):
        wait_until(lambda: len(service.runner.specs) == before + 2)
        go_on()
        assert [first.read(), second.read()]
        assert job_of(first) != job_of(second)


@pytest.mark.usefixtures("asks_again_at_once")
def test_a_run_whose_client_lost_its_connection_is_found_again(
    client: httpx2.Client, service: RunningService
) -> None:
    go_on = service.hold_play()
    before = len(service.runner.specs)
    with service.client() as leaves:
        leaves.timeout = httpx2.Timeout(0.5)
        with pytest.raises(httpx2.ReadTimeout):
            ask(leaves, "play for whoever comes back")
    wait_until(lambda: len(service.runner.specs) == before + 1)
    job_id = service.runner.specs[-1].id
    wait_until(lambda: not service.attending.has_waiter(job_id))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, "play for whoever comes back")
        wait_until(lambda: service.attending.has_waiter(job_id))
        go_on()
        again = asked.result()
    assert (job_of(again), again.status_code) == (job_id, 200)
    assert len(service.runner.specs) == before + 1


CODEX = {"x-codex-turn-metadata": '{"turn_id":"t1"}', "user-agent": "codex_exec/0.171.0"}


def turn(prompt: str, number: int) -> dict[str, Any]:
    said = [{"role": "user", "content": prompt}]
    metadata = {"client_metadata": {"turn_id": f"turn-{number}"}, "store": False}
    return {"model": "claude", "input": said, "stream": True, **metadata}


def test_codex_gets_the_run_of_its_turn_when_it_asks_again(
    client: httpx2.Client, service: RunningService
) -> None:
    for prompt in ("say the lost answer", "fail this turn"):
        before = len(service.runner.specs)
        first, again = (client.post("/v1/responses", json=turn(prompt, 1), headers=CODEX) for _ in range(2))
        assert again.headers["idempotent-replayed"] == "true"
        assert again.text.splitlines()[-4:] == first.text.splitlines()[-4:]
        assert len(service.runner.specs) == before + 1
        other = client.post("/v1/responses", json=turn(prompt, 2), headers=CODEX)
        assert job_of(other) != job_of(first)


def test_a_run_goes_on_while_codex_comes_back(client: httpx2.Client, service: RunningService) -> None:
    end = service.hold_play()
    with client.stream("POST", "/v1/responses", json=turn("play back", 3), headers=CODEX) as cut:
        job = cut.headers["x-steadyhand-job-id"]
        wait_until(lambda: service.runner.specs and service.runner.specs[-1].id == job)
    with client.stream("POST", "/v1/responses", json=turn("play back", 3), headers=CODEX) as again:
        assert again.headers["x-steadyhand-job-id"] == job
        end()
        assert "response.completed" in again.read().decode()
