"""The route for conversations of the earlier service's later form, in both profiles."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.api_service import LIMITED, OTHER, SUBMITTER, RunningService, running_service

from steadyhand.api import ApiOptions

ROUTE = "/v1/conversational"


@pytest.fixture(scope="module", params=["default", "classic"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    options = ApiOptions(profile=request.param)
    with running_service(tmp_path_factory.mktemp("talk"), options=options) as found:
        yield found


def talk(client: httpx2.Client, message: str, **fields: Any) -> httpx2.Response:
    return client.post(ROUTE, json={"message": message, **fields})


def test_a_message_gets_the_chat_agents_reply(service: RunningService) -> None:
    with service.client(SUBMITTER) as client:
        reply = talk(client, "say hello", session_id="kitchen", model="haiku")
        assert (reply.status_code, reply.json()) == (200, {"session_id": "kitchen", "reply": "hello"})
    job = service.runner.specs[-1]
    assert (job.agent, job.spec.model, job.spec.session_name) == ("chat", "haiku", "kitchen")


def test_a_session_goes_on_for_its_key_alone(service: RunningService) -> None:
    with service.client(LIMITED) as mine, service.client(OTHER) as theirs:
        first = talk(mine, "say one", session_id="ours").headers["x-steadyhand-job-id"]
        second = talk(mine, "say two", session_id="ours").headers["x-steadyhand-job-id"]
        third = talk(theirs, "say three", session_id="ours").headers["x-steadyhand-job-id"]
        assert mine.get(f"/v1/jobs/{second}").json()["parent_job_id"] == first
        assert theirs.get(f"/v1/jobs/{third}").json()["parent_job_id"] is None


def test_without_a_session_a_new_one_begins_and_is_named(service: RunningService) -> None:
    with service.client() as client:
        names = [talk(client, "say x").json()["session_id"] for _ in range(2)]
        assert len(set(names)) == 2
        assert talk(client, "say x", session_id=names[0]).json()["session_id"] == names[0]
    assert service.runner.specs[-1].parent_job_id is not None


@pytest.mark.parametrize(
    "fields",
    [{"message": ""}, {"session_id": "x" * 129}, {"session_id": "a\nb"}, {"model": "--x"}, {"message": None}],
)
def test_a_wrong_field_is_422(service: RunningService, fields: dict[str, Any]) -> None:
    before = service.count()
    with service.client() as client:
        reply = client.post(ROUTE, json={"message": "say x", "session_id": "s", **fields})
        assert reply.status_code == 422, reply.text
        assert client.post(ROUTE, json={}, headers={"authorization": ""}).status_code == 401
    assert service.count() == before


def test_a_name_of_128_characters_is_taken(service: RunningService) -> None:
    with service.client() as client:
        assert talk(client, "say x", session_id="ü" * 128).status_code == 200


def test_a_failure_is_that_of_the_chat_route(service: RunningService) -> None:
    chat = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    with service.client() as client:
        service.runner.forced_result = "fail"
        try:
            replies = [talk(client, "x"), client.post("/v1/chat/completions", json=chat)]
        finally:
            service.runner.forced_result = None
    assert [reply.status_code for reply in replies] == [503, 503]
    documents = [reply.json() for reply in replies]
    for document in documents:
        document.pop("request_id", None)
    assert documents[0] == documents[1]
    assert replies[0].headers["x-should-retry"] == "false"


def test_a_busy_service_of_the_classic_profile_is_503(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=ApiOptions(profile="classic"), capacity=1, max_queued=0) as service,
        service.client() as client,
    ):
        client.post("/execute", json={"prompt": "hold", "agent": "chat"})
        reply = talk(client, "say x")
        assert (reply.status_code, reply.json()) == (
            503,
            {"error": "execution failed", "detail": "agent is busy"},
        )
        assert reply.headers["retry-after"]
