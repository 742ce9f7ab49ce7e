"""`POST /v1/jobs/{id}/steer`, its page form, its client and its errors; the agent is a runner of the test."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.api_service import (
    ADMIN,
    LIMITED,
    OTHER,
    SUBMITTER,
    RunningService,
    running_service,
    wait_until,
)
from tests.web.page_client import PageClient

from steadyhand.client import Client
from steadyhand.errors import Conflict
from steadyhand.events import SteerAccepted, SteerUsed
from steadyhand.ports import Emit, SteerMessage
from steadyhand.redact import Redactor
from steadyhand.steering import MAX_STEERS, SteerableRun
from steadyhand.web import create_routes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("service"), more_routes=create_routes()) as found:
        yield found


class Steerable:
    """A running job whose agent reads messages until the test ends it."""

    def __init__(self, service: RunningService, token: str = ADMIN) -> None:
        self.service = service
        self.read: list[SteerMessage] = []
        self.takes = True
        self._end = asyncio.Event()
        service.runner.play = self._play
        with service.client(token) as client:
            self.id = str(client.post("/v1/jobs", json={"prompt": "play done"}).json()["id"])
        wait_until(lambda: self._opened)

    _opened = False

    async def _play(self, emit: Emit) -> None:
        inbox = self.service.runner.steers[-1]

        async def deliver(message: SteerMessage) -> bool:
            if self.takes:
                self.read.append(message)
                await emit(SteerAccepted(message.id, message.text))
            return self.takes

        with inbox.open(deliver):
            self._opened = True
            await self._end.wait()
        for message in self.read:
            await emit(SteerUsed(message.id))

    def end(self) -> dict[str, Any]:
        self.service.loop.call_soon_threadsafe(self._end.set)
        with self.service.client() as client:
            job: dict[str, Any] = client.get(f"/v1/jobs/{self.id}", headers={"prefer": "wait=20"}).json()
        return job


@pytest.fixture
def job(service: RunningService) -> Iterator[Steerable]:
    job = Steerable(service)
    yield job
    job.end()


def post(service: RunningService, job_id: str, body: Any, token: str = ADMIN, **headers: str) -> Any:
    with service.client(token) as client:
        return client.post(f"/v1/jobs/{job_id}/steer", json=body, headers=headers)


def test_a_message_reaches_the_agent_and_the_log(service: RunningService, job: Steerable) -> None:
    answer = post(service, job.id, {"text": "go left"})
    assert answer.status_code == 202
    found = answer.json()
    assert (found["object"], found["job_id"], found["run"]) == ("steer", job.id, 1)
    assert [(each.id, each.text) for each in job.read] == [(found["id"], "go left")]
    assert job.end()["state"] == "completed"
    with service.client() as client:
        events = client.get(f"/v1/jobs/{job.id}/events", headers={"accept": "application/json"}).json()[
            "data"
        ]
    told = [(each["type"], each["data"]) for each in events if each["type"].startswith("steer.")]
    assert told == [
        ("steer.accepted", {"steer_id": found["id"], "text": "go left"}),
        ("steer.used", {"steer_id": found["id"]}),
    ]


def test_a_repeat_with_the_same_key_sends_no_second_message_also_after_the_end(
    service: RunningService, job: Steerable
) -> None:
    first = post(service, job.id, {"text": "once"}, **{"idempotency-key": "a"})
    again = post(service, job.id, {"text": "once"}, **{"idempotency-key": "a"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = post(service, job.id, {"text": "another"}, **{"idempotency-key": "a"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert post(service, job.id, {"text": "once"}, **{"idempotency-key": "b"}).json() != first.json()
    assert len(job.read) == 2
    job.end()
    late = post(service, job.id, {"text": "once"}, **{"idempotency-key": "a"})
    assert (late.status_code, late.json()) == (202, first.json())


def test_a_job_that_does_not_run_takes_no_message(service: RunningService, job: Steerable) -> None:
    job.end()
    answer = post(service, job.id, {"text": "late"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_running")
    assert "completed" in answer.json()["detail"]
    assert job.read == []


def test_an_agent_that_reads_nothing_any_more_refuses_and_the_same_key_may_be_used_again(
    service: RunningService, job: Steerable
) -> None:
    job.takes = False
    answer = post(service, job.id, {"text": "x"}, **{"idempotency-key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_running")
    job.takes = True
    assert post(service, job.id, {"text": "x"}, **{"idempotency-key": "k"}).status_code == 202


def test_scopes_and_foreign_jobs_are_those_of_other_operations(
    service: RunningService, job: Steerable
) -> None:
    assert post(service, job.id, {"text": "x"}, OTHER).status_code == 404
    assert post(service, "0123456789ab", {"text": "x"}).status_code == 404
    assert post(service, "nonsense", {"text": "x"}).status_code == 404
    assert post(service, job.id, {"text": "x"}, SUBMITTER).status_code == 403
    assert job.read == []


@pytest.mark.parametrize(
    "body",
    [{}, {"text": ""}, {"text": "  \n"}, {"text": 3}, {"text": "x", "more": 1}, {"text": "x" * 65_537}, []],
)
def test_a_wrong_message_is_refused(service: RunningService, job: Steerable, body: Any) -> None:
    assert post(service, job.id, body).status_code == 422
    assert job.read == []


def test_the_client_sends_a_message(service: RunningService, job: Steerable) -> None:
    with Client(service.url, ADMIN) as client:
        message = client.steer(job.id, "by the client")
        assert [(each.id, job.id) for each in job.read] == [(message.id, message.job_id)]
        job.end()
        with pytest.raises(Conflict) as refused:
            client.steer(job.id, "late")
    assert refused.value.code == "not_running"


def test_a_message_is_sent_from_the_page_once_and_stands_in_the_transcript(
    service: RunningService, job: Steerable
) -> None:
    with PageClient(service) as page:
        page.sign_in()
        text = page.get(f"/ui/jobs/{job.id}").text
        once = re.search(r'name="once" value="([^"]+)"', text)
        assert once is not None
        assert f'action="/ui/jobs/{job.id}/steer"' in text
        for _ in range(2):
            answer = page.send(f"/ui/jobs/{job.id}/steer", text="<b>left</b>", once=once[1])
            assert answer.headers["location"] == f"/ui/jobs/{job.id}"
        assert [each.text for each in job.read] == ["<b>left</b>"]
        wait_until(
            lambda: "&lt;b&gt;left&lt;/b&gt;" in page.get(f"/ui/jobs/{job.id}").text
        )  # the event is stored
        assert "read by the agent" in page.get(f"/ui/jobs/{job.id}").text
        job.end()
        text = page.get(f"/ui/jobs/{job.id}").text
        assert "the agent goes on with it" in text
        assert "/steer" not in text
        assert page.send(f"/ui/jobs/{job.id}/steer", text="late").status_code == 409


def test_a_key_without_the_job_has_no_form(service: RunningService) -> None:
    own = Steerable(service, LIMITED)
    with PageClient(service) as page:
        page.sign_in(OTHER)
        assert page.send(f"/ui/jobs/{own.id}/steer", text="x").status_code == 404
    own.end()


# --- the broker --------------------------------------------------------------------------------


def test_a_run_takes_a_bounded_number_of_messages_and_none_after_its_end() -> None:
    async def run() -> None:
        steerable, read = SteerableRun(), list[str]()

        async def deliver(message: SteerMessage) -> bool:
            read.append(message.id)
            return True

        with pytest.raises(Conflict, match="has not begun"):
            await steerable.send(SteerMessage("a", "x"))
        with steerable.open(deliver):
            await asyncio.gather(
                *(steerable.send(SteerMessage(f"{n}", "x")) for n in range(MAX_STEERS) for _ in "ab")
            )
            assert read == [f"{n}" for n in range(MAX_STEERS)]
            with pytest.raises(Exception, match=f"{MAX_STEERS} messages"):
                await steerable.send(SteerMessage("more", "x"))
        with pytest.raises(Conflict):
            await steerable.send(SteerMessage("late", "x"))
        steerable.refuse()
        with pytest.raises(Conflict) as refused:
            await steerable.send(SteerMessage("later", "x"))
        assert refused.value.code == "not_steerable"

    asyncio.run(run())


def test_the_text_in_the_log_has_no_live_secret() -> None:
    secret = "sk-not-a-real-key-1234567890"
    body = Redactor([secret]).body(SteerAccepted("st_1", f"use {secret}, please"))
    assert body == SteerAccepted("st_1", "use [redacted], please")
