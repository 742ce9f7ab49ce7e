"""Answers of OpenAI's routes end once the answer is stored; the exit of the agent and the harvest follow."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, wait_until

QUESTION = [{"role": "user", "content": "say All is well."}]


@pytest.fixture
def end(service: RunningService) -> Iterator[Callable[[], object]]:
    """Let agents wait after their answer until this is called."""
    release = service.hold_end()
    yield release
    service.runner.linger = None
    release()


def native(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return job


def ended(client: httpx2.Client, job_id: str) -> dict[str, Any] | None:
    job = native(client, job_id)
    return job if job["state"] not in ("queued", "running") else None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/responses", {"input": "say All is well."}),
    ],
    ids=["chat", "response"],
)
def test_the_answer_is_whole_while_its_job_still_runs(
    client: httpx2.Client, route: str, body: dict[str, Any], end: Callable[[], object], *, stream: bool
) -> None:
    reply = client.post(route, json={"model": "claude", "stream": stream, **body})
    assert reply.status_code == 200, reply.text
    assert "All is well." in reply.text
    if stream:
        assert "data: [DONE]" in reply.text
    job = native(client, reply.headers["x-steadyhand-job-id"])
    assert (job["state"], job["outcome"]["type"], job["answer"]) == ("running", "success", "All is well.")
    assert job["finished_at"] is None
    end()
    job = wait_until(lambda: ended(client, job["id"]))
    assert (job["state"], job["outcome"]["type"], job["answer"]) == ("completed", "success", "All is well.")
    assert job["usage"]["output_tokens"] == 5


def test_the_next_turn_of_a_chat_waits_for_the_end_of_the_one_before(
    client: httpx2.Client, service: RunningService, end: Callable[[], object]
) -> None:
    # Of two equal conversations neither is continued.
    question = [{"role": "user", "content": "say All is well, once."}]
    first = client.post("/v1/chat/completions", json={"model": "claude", "messages": question})
    answer = first.json()["choices"][0]["message"]
    messages = [*question, {"role": "assistant", "content": answer["content"]}]
    messages += [{"role": "user", "content": "say And still."}]
    begun = len(service.runner.specs)
    with client.stream(
        "POST", "/v1/chat/completions", json={"model": "claude", "messages": messages, "stream": True}
    ) as reply:
        second = wait_until(lambda: native(client, reply.headers["x-steadyhand-job-id"]))
        assert second["parent_job_id"] == first.headers["x-steadyhand-job-id"]
        assert second["state"] == "queued"
        assert len(service.runner.specs) == begun
        end()
        assert "And still." in reply.read().decode()


def test_a_response_is_complete_continued_and_deleted_while_its_job_still_runs(
    client: httpx2.Client, end: Callable[[], object]
) -> None:
    made = client.post("/v1/responses", json={"model": "claude", "input": "say All is well."}).json()
    found = client.get(f"/v1/responses/{made['id']}").json()
    assert found == made
    assert found["status"] == "completed"
    assert client.post(f"/v1/responses/{made['id']}/cancel").json() == made
    more = client.post(
        "/v1/responses",
        json={
            "model": "claude",
            "input": "say And still.",
            "previous_response_id": made["id"],
            "background": True,
        },
    ).json()
    assert more["status"] == "queued"
    end()
    wait_until(lambda: client.get(f"/v1/responses/{more['id']}").json()["status"] == "completed")
    assert client.delete(f"/v1/responses/{made['id']}").status_code == 200
    assert client.get(f"/v1/responses/{made['id']}").status_code == 404


def test_a_cancel_after_the_answer_ends_the_run_and_changes_no_outcome(
    client: httpx2.Client, end: Callable[[], object]
) -> None:
    reply = client.post("/v1/chat/completions", json={"model": "claude", "messages": QUESTION})
    job_id = reply.headers["x-steadyhand-job-id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    end()
    assert wait_until(lambda: ended(client, job_id))["state"] == "completed"


def test_jobs_of_other_routes_end_as_a_whole(client: httpx2.Client, end: Callable[[], object]) -> None:
    job = client.post("/v1/jobs", json={"prompt": "say All is well."}, headers={"prefer": "wait=20"}).json()
    assert (job["state"], job["answer"]) == ("completed", "All is well.")
    end()
