"""A request that comes twice runs its agent once: a library's own retry, and `Idempotency-Key`."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from tests.api.api_service import ADMIN, OTHER, RunningService, wait_until

from steadyhand.api.openai import start_run

FIRST = {"x-stainless-retry-count": "0"}
AGAIN = {"x-stainless-retry-count": "1"}


@pytest.fixture(autouse=True)
def nothing_played(service: RunningService) -> Iterator[None]:
    yield
    service.runner.play = None


def ask(client: httpx2.Client, prompt: str, headers: dict[str, str], **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "messages": [{"role": "user", "content": prompt}], **fields}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def test_a_library_that_gives_up_and_asks_again_finds_its_run(service: RunningService) -> None:
    go_on = service.hold_play()
    before = len(service.runner.specs)
    hook = {"request": [lambda request: _open(go_on, request)]}
    http = httpx2.Client(event_hooks=hook)
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key=ADMIN, timeout=1.0, max_retries=2, http_client=http
    ) as sdk:
        answer = sdk.chat.completions.create(
            model="claude", messages=[{"role": "user", "content": "play one answer"}]
        )
    assert answer.choices[0].message.content == "one answer"
    assert len(service.runner.specs) == before + 1


def _open(go_on: Callable[[], object], request: httpx2.Request) -> None:
    if request.headers["x-stainless-retry-count"] != "0":
        go_on()


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeat_of_a_request_that_just_ended_gets_the_same_answer(
    client: httpx2.Client, service: RunningService, *, stream: bool
) -> None:
    first = ask(client, f"say twice {stream}", FIRST, stream=stream)
    again = ask(client, f"say twice {stream}", AGAIN, stream=stream)
    assert again.text == first.text
    assert again.headers["x-steadyhand-job-id"] == first.headers["x-steadyhand-job-id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers


def test_a_repeat_of_a_run_that_failed_does_not_run_it_again(
    client: httpx2.Client, service: RunningService
) -> None:
    before = len(service.runner.specs)
    assert ask(client, "fail once only", FIRST).status_code == 503
    again = ask(client, "fail once only", AGAIN)
    assert (again.status_code, again.headers["x-should-retry"]) == (503, "false")
    assert len(service.runner.specs) == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_framework_that_asks_again_whatever_it_is_told_gets_the_same_failure(
    client: httpx2.Client, service: RunningService, *, stream: bool
) -> None:
    before, prompt = len(service.runner.specs), f"fail again {stream}"
    first, again = (ask(client, prompt, FIRST, stream=stream) for _ in range(2))
    status = 200 if stream else 503
    assert (first.status_code, again.status_code) == (status, status)
    assert "execution_failed" in first.text
    if stream:
        assert again.text == first.text
    else:
        assert again.json()["error"] == first.json()["error"]
    assert again.headers["x-steadyhand-job-id"] == first.headers["x-steadyhand-job-id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert len(service.runner.specs) == before + 1


def test_a_failure_is_no_answer_to_who_says_that_it_asks_anew_or_is_no_library(
    client: httpx2.Client,
) -> None:
    first = ask(client, "fail for all", FIRST).headers["x-steadyhand-job-id"]
    for headers in ({}, FIRST | {"idempotency-key": "anew"}):
        assert ask(client, "fail for all", headers).headers["x-steadyhand-job-id"] != first


def test_a_response_in_the_background_that_failed_is_run_again(
    client: httpx2.Client, service: RunningService
) -> None:
    before = len(service.runner.specs)
    body = {"model": "claude", "input": "fail behind", "background": True}
    for _ in range(2):
        made = client.post("/v1/responses", json=body, headers=FIRST).headers["x-steadyhand-job-id"]
        job = client.get(f"/v1/jobs/{made}", headers={"prefer": "wait=20"}).json()
        assert job["state"] == "failed"
    assert len(service.runner.specs) == before + 2


def test_what_failed_some_time_ago_is_run_again(
    client: httpx2.Client, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(client, "fail and come back", FIRST).headers["x-steadyhand-job-id"]
    monkeypatch.setattr(start_run, "FAILURE_REPEAT_WINDOW", -start_run.FAILURE_REPEAT_WINDOW)
    assert ask(client, "fail and come back", FIRST).headers["x-steadyhand-job-id"] != first


def test_only_the_same_key_and_body_are_a_repeat(client: httpx2.Client, service: RunningService) -> None:
    first = ask(client, "say same", FIRST).headers["x-steadyhand-job-id"]
    with service.client(OTHER) as other:
        assert ask(other, "say same", AGAIN).headers["x-steadyhand-job-id"] != first
    assert ask(client, "say same", AGAIN, user="u").headers["x-steadyhand-job-id"] != first
    assert ask(client, "say same", FIRST).headers["x-steadyhand-job-id"] != first
    assert ask(client, "say same", {}).headers["x-steadyhand-job-id"] != first


def test_what_ended_long_ago_is_run_again(
    client: httpx2.Client, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(client, "say long ago", FIRST).headers["x-steadyhand-job-id"]
    monkeypatch.setattr(start_run, "REPEAT_WINDOW", -start_run.REPEAT_WINDOW)
    assert ask(client, "say long ago", AGAIN).headers["x-steadyhand-job-id"] != first


def test_an_idempotency_key_means_one_run(client: httpx2.Client, service: RunningService) -> None:
    key = {"idempotency-key": "chat-1"}
    first = ask(client, "say once", key)
    again = ask(client, "say once", key)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = ask(client, "say another thing", key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")


def test_a_run_that_two_clients_wait_for_goes_on_when_one_leaves(
    client: httpx2.Client, service: RunningService
) -> None:
    go_on = service.hold_play()
    key = {"idempotency-key": "chat-2"}
    before = len(service.runner.specs)
    with service.client() as stays, service.client() as leaves:
        leaves.timeout = httpx2.Timeout(0.5)
        body = {"model": "claude", "stream": True, "messages": [{"role": "user", "content": "play on"}]}
        with stays.stream("POST", "/v1/chat/completions", json=body, headers=key) as reply:
            wait_until(lambda: len(service.runner.specs) > before)
            with pytest.raises(httpx2.ReadTimeout):
                leaves.post("/v1/chat/completions", json=body, headers=key)
            go_on()
            reply.read()
    assert '"content":"on"' in reply.text


def test_a_run_that_nobody_comes_back_for_is_cancelled(
    client: httpx2.Client, service: RunningService
) -> None:
    before = len(service.runner.specs)
    with service.client() as leaves:
        leaves.timeout = httpx2.Timeout(0.5)
        with pytest.raises(httpx2.ReadTimeout):
            ask(leaves, "hold", FIRST)
    wait_until(lambda: len(service.runner.specs) > before)
    job_id = service.runner.specs[-1].id
    assert client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"}).json()["state"] == "cancelled"
    service.runner.forced_result = "say new"
    again = ask(client, "hold", AGAIN)
    service.runner.forced_result = None
    assert again.json()["choices"][0]["message"]["content"] == "new"
