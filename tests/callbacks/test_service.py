"""Callbacks of a real service: over its API, to a receiver on loopback, and through kills."""

import json
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from tests.callbacks.receiver import Received, Receiver, Reply, receiving

from steadyhand import Client
from steadyhand.callbacks.signing import derive_secret
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, MakeService, Service, wait_until

SECRET = derive_secret(b"of the endpoint", "hook")
PAUSED = """\
[service]
paused = true
max_queued = 100000
[callbacks]
allow = ["127.0.0.1:@PORT@"]
"""
ENDPOINT = """\
[callbacks.endpoints.hook]
url = "http://127.0.0.1:@PORT@/hook?the-query"
secret_file = "@SECRET@"
events = ["job.ended", "job.parked", "job.needs_results"]
"""


def start_service(
    make_service: MakeService, tmp_path: Path, receiver: Receiver, *, endpoint: bool
) -> Service:
    service = make_service()
    configure(service, tmp_path, receiver, endpoint=endpoint)
    return service.start()


def configure(service: Service, tmp_path: Path, receiver: Receiver, *, endpoint: bool) -> None:
    secret_file = tmp_path / "hook.secret"
    secret_file.write_text(SECRET)
    text = PAUSED + (ENDPOINT if endpoint else "")
    text = text.replace("@PORT@", str(receiver.port)).replace("@SECRET@", str(secret_file))
    service.config_path.write_text(text)


def cancel(service: Service, job_id: str) -> None:
    answer = service.client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled"), answer.text


def retry(service: Service, job_id: str) -> None:
    answer = service.client.post(f"/v1/jobs/{job_id}/retry", json={})
    assert answer.status_code == 202, answer.text


def deliveries(service: Service, **query: str) -> list[dict[str, Any]]:
    answer = service.client.get("/v1/callbacks/deliveries", params={"limit": 200, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def wait_for_messages(receiver: Receiver, number: int, seconds: float = 20) -> list[Received]:
    wait_until(lambda: len(receiver.messages) >= number, seconds)
    return receiver.messages


def test_a_job_calls_back_and_its_deliveries_are_listed_inspected_and_replayed(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = start_service(make_service, tmp_path, receiver, endpoint=False)
        url = f"{receiver.url}/webhook-waiting/7?signature=the-signature"
        answer = service.client.post(
            "/v1/jobs",
            json={"prompt": "x", "workspace": "scratch", "callback_url": url, "callback_body": "full"},
        )
        job = answer.json()
        assert job["callback"] == {"receiver": receiver.url, "events": ["job.ended"], "body": "full"}
        cancel(service, job["id"])
        (message,) = wait_for_messages(receiver, 1)
        secret = service.client.get("/v1/callbacks/secret").json()["secret"]
        told = Webhook(secret).verify(message.body, dict(message.headers))
        assert message.path == "/webhook-waiting/7?signature=the-signature"
        assert (told["type"], told["data"]["id"]) == ("job.ended", job["id"])
        assert told["data"]["job"] == service.get_job(job["id"])
        (delivery,) = wait_until(lambda: deliveries(service, job=job["id"], state="delivered"))
        assert delivery["id"] == message.headers["webhook-id"]
        assert (delivery["receiver"], delivery["status"], delivery["attempts"]) == (receiver.url, 200, 1)
        shown = service.client.get(f"/v1/callbacks/deliveries/{delivery['id']}").json()
        assert shown == {**delivery, "body": message.body}
        replayed = service.client.post(f"/v1/callbacks/deliveries/{delivery['id']}/replay")
        assert (replayed.status_code, replayed.json()["state"]) == (202, "pending")
        again = wait_for_messages(receiver, 2)[1]
        assert (again.body, again.headers["webhook-id"]) == (message.body, delivery["id"])
        retry(service, job["id"])  # a retry keeps the receiver
        cancel(service, job["id"])
        assert wait_for_messages(receiver, 3)[2].path == message.path
        service.terminate()
        assert "the-signature" not in service.log
        assert secret not in service.log


def test_turns_resumes_and_retries_call_back_the_receiver_of_the_first_job(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = make_service()
        configure(service, tmp_path, receiver, endpoint=False)
        service.config_path.write_text(
            service.config_path.read_text().replace("paused = true", "paused = false")
        )
        service.start()
        with Client(service.url, ADMIN_KEY) as client:
            first = client.submit(
                "[[standin: text=one]]",
                workspace="scratch",
                callback_url=f"{receiver.url}/first",
                callback_body="full",
            )
            ended = client.wait(first, timeout_seconds=60)
            turn = client.wait(client.turn(ended, "[[standin: text=two]]"), timeout_seconds=60)
            other = client.turn(turn, "[[standin: text=three]]", callback_url=f"{receiver.url}/other")
            other = client.wait(other, timeout_seconds=60)
            last = client.wait(client.turn(other, "[[standin: result=max_turns]]"), timeout_seconds=60)
            resumed = client.wait(client.resume(last, prompt="[[standin: text=four]]"), timeout_seconds=60)
            retried = client.wait(client.retry(resumed), timeout_seconds=60)
        messages = wait_for_messages(receiver, 6)
        told = [(each.path, json.loads(each.body)["data"]) for each in messages]
        expected = [
            ("/first", first.id, 1, "completed"),
            ("/first", turn.id, 1, "completed"),
            ("/other", other.id, 1, "completed"),
            ("/other", last.id, 1, "failed"),
            ("/other", last.id, 2, "completed"),
            ("/other", last.id, 3, retried.state),
        ]
        assert sorted((path, data["id"], data["run"], data["state"]) for path, data in told) == sorted(
            expected
        )
        # The form of the body stays with its receiver, too.
        assert {path for path, data in told if data.get("job", {}).get("id") == data["id"]} == {"/first"}
        assert retried.run == 3


def test_an_address_that_is_not_public_is_refused_before_anything_is_stored(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = start_service(make_service, tmp_path, receiver, endpoint=False)
        other_port = receiver.url.replace(str(receiver.port), "9")
        for url in ("http://169.254.169.254/", other_port, "http://localhost/", "file:///etc/passwd", "x"):
            answer = service.client.post("/v1/jobs", json={"prompt": "x", "callback_url": url})
            assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused"), answer.text
            assert answer.json()["errors"][0]["pointer"] == "/callback_url"
        lonely: dict[str, Any]
        for lonely in ({"callback_body": "full"}, {"callback_events": ["job.ended"]}):
            answer = service.client.post("/v1/jobs", json={"prompt": "x", **lonely})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
        wrong: dict[str, Any]
        for wrong in (
            {"callback_events": []},
            {"callback_events": ["job.started"]},
            {"callback_body": "openai"},
        ):
            body = {"prompt": "x", "callback_url": receiver.url, **wrong}
            assert service.client.post("/v1/jobs", json=body).status_code == 422
        assert service.client.get("/v1/jobs").json()["data"] == []


def test_a_key_sees_and_replays_the_deliveries_of_its_own_jobs_alone(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = start_service(make_service, tmp_path, receiver, endpoint=True)
        jobs: dict[str, str] = {}
        with service.new_client(CLASSIC_KEY) as other:
            for name, client in (("mine", service.client), ("theirs", other)):
                body = {"prompt": "x", "workspace": "scratch", "callback_url": f"{receiver.url}/{name}"}
                jobs[name] = client.post("/v1/jobs", json=body).json()["id"]
                cancel(service, jobs[name])
            wait_until(lambda: len(deliveries(service, state="delivered")) == 4)
            all_of_them = deliveries(service)
            assert {each["endpoint"] for each in all_of_them} == {None, "hook"}
            assert len(deliveries(service, endpoint="hook")) == 2
            seen = other.get("/v1/callbacks/deliveries").json()["data"]
            assert [(each["job_id"], each["endpoint"]) for each in seen] == [(jobs["theirs"], None)]
            assert other.get("/v1/callbacks/deliveries?endpoint=hook").status_code == 403
            for hidden in (each["id"] for each in all_of_them if each["id"] != seen[0]["id"]):
                assert other.get(f"/v1/callbacks/deliveries/{hidden}").status_code == 404
                assert other.post(f"/v1/callbacks/deliveries/{hidden}/replay").status_code == 404
            assert other.post(f"/v1/callbacks/deliveries/{seen[0]['id']}/replay").status_code == 202
            secrets = [
                client.get("/v1/callbacks/secret").json()["secret"] for client in (service.client, other)
            ]
            assert len(set(secrets)) == 2
        assert service.client.get("/v1/callbacks/deliveries/msg_x").status_code == 404
        assert service.client.get("/v1/callbacks/deliveries?state=odd").status_code == 422
        assert service.client.get("/v1/callbacks/deliveries?cursor=odd").json()["code"] == "bad_cursor"


class VerifyingReplies:
    """Verifies each message as it arrives, since a signature is good for five minutes alone."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = secrets
        self.events: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.wrong: list[str] = []
        self.refused_every = 10
        """Each message with a number of this multiple is refused; 0 refuses none."""

    def __call__(self, number: int, message: Received) -> Reply:
        path = message.path.partition("?")[0]
        try:
            told = Webhook(self.secrets[path]).verify(message.body, dict(message.headers))
            self.events[path, told["data"]["id"]].append(told["data"]["event"])
        except (WebhookVerificationError, LookupError) as error:
            self.wrong.append(repr(error))
        return Reply(404 if self.refused_every and number % self.refused_every == 0 else 200)

    def check_order(self, expected: int) -> None:
        """Check for each receiver that each event arrived, in order for each job, with a good signature."""
        assert self.wrong == []
        firsts = {key: list(dict.fromkeys(numbers)) for key, numbers in self.events.items()}
        assert all(numbers == sorted(numbers) for numbers in firsts.values())
        for path in self.secrets:
            assert sum(len(numbers) for key, numbers in firsts.items() if key[0] == path) == expected


def kill_while_it_tells(
    make_service: MakeService, tmp_path: Path, *, kills: int, jobs: int, ends_of_each: int
) -> None:
    """Cancel and retry jobs of a service that starts none, and kill it again and again meanwhile."""
    choose = random.Random(13)  # noqa: S311  # a repeatable order
    with receiving() as receiver:
        service = start_service(make_service, tmp_path, receiver, endpoint=True)
        mine = service.client.get("/v1/callbacks/secret").json()["secret"]
        receiver.reply = replies = VerifyingReplies({"/hook": SECRET, "/mine": mine})
        ended: dict[str, int] = {}
        for round_ in range(kills):
            new = jobs // kills + (round_ < jobs % kills)
            for job_id in [
                service.submit("x", callback_url=f"{receiver.url}/mine")["id"] for _ in range(new)
            ]:
                cancel(service, job_id)
                ended[job_id] = 1
            for job_id in choose.sample(sorted(ended), len(ended)):
                if ended[job_id] < ends_of_each and choose.random() < 0.5:
                    retry(service, job_id)
                    cancel(service, job_id)
                    ended[job_id] += 1
            service.kill()
            service.restart()
        for job_id, ends in ended.items():
            for _ in range(ends_of_each - ends):
                retry(service, job_id)
                cancel(service, job_id)
        replies.refused_every = 0
        wait_until(lambda: not deliveries(service, state="pending"), 120)
        replies.check_order(jobs * ends_of_each)
        assert not deliveries(service, state="failed")
        assert not deliveries(service, state="cancelled")

        receiver.reply = lambda _number, _message: Reply(500)
        last = service.submit("x")["id"]
        cancel(service, last)
        wait_until(lambda: any(json.loads(each.body)["data"]["id"] == last for each in receiver.messages))
        service.kill()
        configure(service, tmp_path, receiver, endpoint=False)
        before = len(receiver.messages)
        service.restart()
        wait_until(lambda: deliveries(service, job=last, state="cancelled"))
        cancel(service, service.submit("x")["id"])
        assert len(receiver.messages) == before
        assert "the-query" not in service.log
        assert SECRET not in service.log


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("jobs", "kills"),
    [
        pytest.param(20, 4, id="100 messages, 4 kills", marks=pytest.mark.long),
        pytest.param(40, 10, id="200 messages, 10 kills", marks=pytest.mark.long),
        pytest.param(100, 30, id="1000 messages, 30 kills"),
        pytest.param(1_000, 30, id="10000 messages, 30 kills", marks=pytest.mark.long),
    ],
)
def test_messages_arrive_in_order_though_the_service_is_killed_again_and_again(
    make_service: MakeService, tmp_path: Path, jobs: int, kills: int
) -> None:
    kill_while_it_tells(make_service, tmp_path, kills=kills, jobs=jobs, ends_of_each=5)
