"""Endpoints that are made by the API of a real service, and their rows in a real store."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook
from tests.callbacks.receiver import Reply, receiving
from tests.callbacks.test_service import cancel, configure, deliveries, wait_for_messages

from steadyhand.callbacks.endpoint_registry import MAX_STORED, EndpointRegistry
from steadyhand.errors import Conflict
from steadyhand.ports import AttemptResult, DeliveryDraft, EndpointChange, StoredEndpoint
from steadyhand.store import open_store
from steadyhand.testing.contracts.outbox import change as change_job
from steadyhand.testing.contracts.samples import NOON, FakeClock, accepted_draft, make_job
from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until

PATH = "/v1/callbacks/endpoints"


def create(service: Service, url: str, name: str = "n8n", **fields: Any) -> dict[str, Any]:
    answer = service.client.post(PATH, json={"name": name, "url": url, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{PATH}/{name}"
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


def test_an_endpoint_is_told_from_its_creation_to_its_removal(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = make_service()
        configure(service, tmp_path, receiver, endpoint=True)
        service.start()
        made = create(service, f"{receiver.url}/made?the-token", agents=["claude"])
        secret = made.pop("secret")
        assert made["receiver"] == receiver.url
        assert (made["origin"], made["events"], made["agents"]) == ("api", ["job.ended"], ["claude"])
        listed = service.client.get(PATH).json()["data"]
        assert [(each["name"], each["origin"]) for each in listed] == [("hook", "config"), ("n8n", "api")]
        assert listed[1] == made == service.client.get(f"{PATH}/n8n").json()
        cancel(service, service.submit("x")["id"])
        wait_for_messages(receiver, 2)
        (message,) = [each for each in receiver.messages if each.path.startswith("/made")]
        Webhook(secret).verify(message.body, dict(message.headers))

        # What is not stored as delivered at the kill is sent again.
        wait_until(lambda: len(deliveries(service, state="delivered")) == 2)
        rotated = service.client.patch(f"{PATH}/n8n", json={"rotate_secret": True, "events": ["job.ended"]})
        assert rotated.headers["cache-control"] == "no-store"
        service.kill()
        service.restart()  # endpoints and secrets outlive it
        cancel(service, service.submit("x")["id"])
        wait_for_messages(receiver, 4)
        last = [each for each in receiver.messages if each.path.startswith("/made")][-1]
        for each in (secret, rotated.json()["secret"]):
            Webhook(each).verify(last.body, dict(last.headers))

        service.client.patch(f"{PATH}/n8n", json={"agents": ["chat"]})
        cancel(service, service.submit("x")["id"])
        wait_for_messages(receiver, 5)
        service.client.patch(f"{PATH}/n8n", json={"agents": []})
        receiver.reply = lambda _number, each: Reply(500 if each.path.startswith("/made") else 200)
        cancel(service, service.submit("x")["id"])
        wait_until(lambda: [each for each in deliveries(service, endpoint="n8n") if each["attempts"] == 1])
        assert service.client.delete(f"{PATH}/n8n").status_code == 204
        wait_until(lambda: not deliveries(service, endpoint="n8n", state="pending"))
        (cancelled,) = deliveries(service, endpoint="n8n", state="cancelled")
        assert cancelled["error"] == "The endpoint was removed."
        told = len([each for each in receiver.messages if each.path.startswith("/made")])
        cancel(service, service.submit("x")["id"])
        wait_until(lambda: len(deliveries(service, endpoint="hook", state="delivered")) == 5)
        assert len([each for each in receiver.messages if each.path.startswith("/made")]) == told == 3
        assert service.client.get(f"{PATH}/n8n").status_code == 404
        service.terminate()
        for text in ("the-token", secret, rotated.json()["secret"]):
            assert text not in service.log


def test_a_wrong_endpoint_is_refused_and_only_an_admin_may_make_one(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as receiver:
        service = make_service()
        configure(service, tmp_path, receiver, endpoint=True)
        service.start()
        for url in (
            "http://169.254.169.254/",
            "http://localhost/",
            "file:///etc/passwd",
            "http://127.0.0.1:9/",
        ):
            answer = service.client.post(PATH, json={"name": "n8n", "url": url})
            assert answer.status_code == 422, answer.text
        wrong: dict[str, Any]
        for wrong in (
            {"name": "a/b"},
            {"name": ""},
            {"events": []},
            {"events": ["x"]},
            {"body": "x"},
            {"odd": 1},
        ):
            body = {"name": "n8n", "url": receiver.url, **wrong}
            assert service.client.post(PATH, json=body).status_code == 422, wrong
        create(service, receiver.url)
        refused = service.client.patch(f"{PATH}/n8n", json={"url": "http://10.0.0.1/"})
        assert (refused.status_code, refused.json()["code"]) == (422, "callback_refused")
        taken = service.client.post(PATH, json={"name": "n8n", "url": receiver.url})
        assert taken.status_code == 409
        assert service.client.post(PATH, json={"name": "hook", "url": receiver.url}).status_code == 409
        assert service.client.patch(f"{PATH}/hook", json={"events": ["job.parked"]}).status_code == 409
        assert service.client.delete(f"{PATH}/hook").status_code == 409
        for name in ("other", "..%2Fsecret", "x" * 65):
            assert service.client.delete(f"{PATH}/{name}").status_code == 404
        with service.new_client(CLASSIC_KEY) as other:
            assert other.get(PATH).status_code == 403
            assert other.post(PATH, json={"name": "x", "url": receiver.url}).status_code == 403
            assert other.patch(f"{PATH}/n8n", json={}).status_code == 403
            assert other.delete(f"{PATH}/n8n").status_code == 403


def stored(name: str = "n8n", **fields: Any) -> StoredEndpoint:
    endpoint = StoredEndpoint(
        name, "https://n8n.example/hook", ("job.ended",), ("claude",), "thin", ("whsec_x", "whsec_y"), NOON
    )
    return replace(endpoint, **fields)


def test_the_removal_of_an_endpoint_cancels_what_is_pending_and_what_is_under_way(tmp_path: Path) -> None:
    async def run() -> None:
        clock = FakeClock()
        store = await open_store(f"sqlite:///{tmp_path}/jobs.db", clock=clock, linger_seconds=0)
        try:
            drafts = iter(range(10))
            store.use_plan(
                lambda _job, events: [
                    DeliveryDraft(f"msg_{next(drafts)}", name, None, f"endpoint {name}", "job.ended", "{}")
                    for _ in events
                    for name in ("n8n", "other")
                ],
                lambda _circuits: None,
            )
            await store.save_endpoint(stored())
            await store.save_endpoint(stored("other", events=("job.parked",), agents=()))
            await store.save_endpoint(stored(secrets=("whsec_z",)))
            assert await store.list_endpoints() == [
                stored(secrets=("whsec_z",)),
                stored("other", events=("job.parked",), agents=()),
            ]
            job = make_job()
            await store.add(job, accepted_draft())
            await change_job(store, job)
            ((under_way,), _) = await store.list_due("endpoint n8n", NOON, 10)
            await store.delete_endpoint("n8n")
            assert [each.name for each in await store.list_endpoints()] == ["other"]
            await store.save_attempt(under_way, AttemptResult(NOON, "pending", NOON, 500, "It failed."))
            left = await store.get_delivery(under_way.id)
            assert left is not None
            assert (left.state, left.error) == ("cancelled", "The endpoint was removed.")
            assert set(await store.count_waiting()) == {"endpoint other"}
        finally:
            await store.close()

    asyncio.run(run())


class FakeStore:
    """Endpoints in memory."""

    def __init__(self, *endpoints: StoredEndpoint) -> None:
        self.endpoints = {each.name: each for each in endpoints}
        self.fails = False

    async def list_endpoints(self) -> list[StoredEndpoint]:
        return list(self.endpoints.values())

    async def save_endpoint(self, endpoint: StoredEndpoint) -> None:
        self.endpoints[endpoint.name] = endpoint

    async def delete_endpoint(self, name: str) -> None:
        if self.fails:
            raise OSError
        del self.endpoints[name]


async def take_any(_url: str) -> None:
    """Take any address."""


def make_registry(store: FakeStore, secrets: list[bytes]) -> EndpointRegistry:
    return EndpointRegistry({}, store, check=take_any, add_secrets=secrets.extend, clock=FakeClock())


def test_there_are_so_many_endpoints_and_no_more() -> None:
    async def run() -> None:
        store = FakeStore(*(stored(f"e{number}") for number in range(MAX_STORED)))
        registry = make_registry(store, [])
        await registry.load()
        with pytest.raises(Conflict, match="100 endpoints"):
            await registry.create("one", EndpointChange("https://n8n.example/"))
        await registry.remove("e1")
        await registry.create("one", EndpointChange("https://n8n.example/"))

    asyncio.run(run())


def test_addresses_and_secrets_are_hidden_from_output_and_a_failed_removal_is_none() -> None:
    async def run() -> None:
        store, secrets = FakeStore(stored()), list[bytes]()
        registry = make_registry(store, secrets)
        await registry.load()
        assert {b"https://n8n.example/hook", b"whsec_x", b"whsec_y"} <= set(secrets)
        _, secret = await registry.create("new", EndpointChange("https://new.example/token"))
        assert {secret.encode(), b"https://new.example/token"} <= set(secrets)
        store.fails = True
        with pytest.raises(OSError):  # noqa: PT011  # the fake's
            await registry.remove("n8n")
        assert registry.find("n8n") is not None
        assert json.dumps([each.receiver for each in registry.list_endpoints()]).count("token") == 0

    asyncio.run(run())
