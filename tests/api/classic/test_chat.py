"""The chat route in the classic profile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, running_service, wait_until

from steadyhand.api import ApiOptions

OPTIONS = ApiOptions(profile="classic", openai_default_agent="recruiter-triage")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(
        tmp_path_factory.mktemp("classic"), options=OPTIONS, capacity=1, max_queued=0
    ) as found:
        yield found


def ask(client: httpx2.Client, *messages: tuple[str, Any], **fields: Any) -> httpx2.Response:
    listed = [{"role": role, "content": content} for role, content in messages]
    return client.post("/v1/chat/completions", json={"model": "any-name", "messages": listed, **fields})


def test_one_prompt_is_made_of_the_sections(client: httpx2.Client, service: RunningService) -> None:
    reply = ask(
        client,
        ("system", "S1"),
        ("user", "U1"),
        ("assistant", "left out"),
        ("system", "S2"),
        ("user", [{"type": "text", "text": "U2"}]),
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["model"] == "any-name"
    job = service.runner.specs[-1]
    assert job.spec.prompt == "System instructions:\nS1\n\nS2\n\n---\n\nRequest:\nU1\n\nU2"
    assert (job.agent, job.spec.model) == ("recruiter-triage", None)
    assert (job.budget_micros, job.timeout_seconds) == (2_000_000, 900)
    assert reply.json()["usage"]["prompt_tokens"] == 240


def test_streaming_is_refused_in_the_old_words(client: httpx2.Client) -> None:
    reply = ask(client, ("user", "x"), stream=True)
    assert reply.status_code == 400
    assert reply.json()["error"] == "streaming not supported"
    assert isinstance(reply.json()["detail"], str)


def test_a_second_call_is_503_and_a_second_job_409(client: httpx2.Client) -> None:
    held = client.post("/execute", json={"prompt": "hold", "agent": "x"}).json()["job_id"]
    reply = ask(client, ("user", "x"))
    assert reply.status_code == 503
    assert reply.json() == {"error": "execution failed", "detail": "agent is busy"}
    reply = client.post("/execute", json={"prompt": "hold", "agent": "x"})
    assert (reply.status_code, reply.json()["detail"]) == (409, "Agent is busy")
    client.post(f"/v1/jobs/{held}/cancel")
    wait_until(lambda: client.get("/health").json()["busy"] is False)


def test_a_failure_is_one_short_line(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = "fail"
        reply = ask(client, ("user", "many\nlines " * 100))
    assert reply.status_code == 503
    assert set(reply.json()) == {"error", "detail"}
    assert reply.json()["error"] == "execution failed"
    assert len(reply.json()["detail"]) <= 200
    assert "\n" not in reply.json()["detail"]
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("printed", "answer"),
    [
        ("just words\nin two lines\n", "just words\nin two lines"),
        ('{"result": "", "content": "from content"}', "from content"),
        ('{"text": "from text", "other": 1}', "from text"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_what_was_printed_is_the_answer_when_there_is_no_result(
    tmp_path: Path, printed: str, answer: str
) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = f"raw {printed}"
        reply = ask(client, ("user", "x"))
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == answer


def test_an_object_without_a_text_is_a_failure(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=OPTIONS, capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        service.runner.forced_result = 'raw {"result": ""}'
        assert ask(client, ("user", "x")).status_code == 503


def test_every_models_name_is_known(client: httpx2.Client) -> None:
    assert client.get("/v1/models/whatever/it-is").status_code == 200


def test_a_call_without_a_users_message_is_422(client: httpx2.Client) -> None:
    assert ask(client, ("system", "x")).status_code == 422
    assert ask(client).status_code == 422
