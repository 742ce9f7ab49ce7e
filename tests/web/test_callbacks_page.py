"""The pages of callbacks: the list with its filters, one delivery, its replay, and who may see them."""

import asyncio
import html
from collections.abc import Sequence
from datetime import timedelta

import httpx2
import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job
from tests.web.page_client import PageClient, parsed

from steadyhand.ports import AttemptResult, Delivery, DeliveryFilter, DeliveryState
from steadyhand.web import callbacks_page

URL = "https://receiver.example:8443/hook?the-secret"


def deliveries(service: RunningService, job_id: str) -> Sequence[Delivery]:
    found = service.store.list_deliveries(DeliveryFilter(job_id=job_id), 10)
    return asyncio.run_coroutine_threadsafe(found, service.loop).result(10).deliveries


def attempt(
    service: RunningService, delivery: Delivery, state: DeliveryState, status: int | None, error: str | None
) -> None:
    at = delivery.created_at + timedelta(seconds=1)
    saved = service.store.save_attempt(delivery, AttemptResult(at, state, at, status, error))
    asyncio.run_coroutine_threadsafe(saved, service.loop).result(10)


@pytest.fixture
def job_id(service: RunningService) -> str:
    """A job of the key LIMITED with one pending delivery."""
    with service.client(LIMITED) as client:
        job = run_job(client, "say it", callback_url=URL, callback_body="full", title="<b>T\u202e</b>")
    return str(job["id"])


def shown_ids(answer: httpx2.Response) -> set[str]:
    links = [attributes.get("href") or "" for tag, attributes in parsed(answer.text).elements if tag == "a"]
    return {link.rpartition("/")[2] for link in links if link.startswith("/ui/callbacks/")}


def test_deliveries_are_listed_by_state_and_job_without_the_secret_of_their_address(
    service: RunningService, page: PageClient, job_id: str
) -> None:
    (delivery,) = deliveries(service, job_id)
    answer = page.get(f"/ui/callbacks?job={job_id}")
    assert shown_ids(answer) == {delivery.id}
    assert "https://receiver.example:8443<" in answer.text
    assert "the-secret" not in answer.text
    assert shown_ids(page.get(f"/ui/callbacks?job={job_id}&state=pending")) == {delivery.id}
    attempt(service, delivery, "failed", 410, "The receiver answered with 410.")
    nothing = page.get(f"/ui/callbacks?job={job_id}&state=pending")
    assert shown_ids(nothing) == set()
    assert "No delivery matches." in nothing.text
    failed = page.get(f"/ui/callbacks?job={job_id}&state=failed")
    assert shown_ids(failed) == {delivery.id}
    assert "The receiver answered with 410." in failed.text
    assert "selected>failed</option" in failed.text


@pytest.mark.parametrize("query", ["state=odd", "cursor=odd"])
def test_a_wrong_filter_is_named_on_the_page(page: PageClient, query: str) -> None:
    answer = page.get(f"/ui/callbacks?{query}")
    assert answer.status_code == 200
    assert 'role="alert"' in answer.text


def test_older_deliveries_are_a_page_further(
    service: RunningService, page: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks_page, "PAGE_SIZE", 2)
    with service.client() as client:
        for _ in range(3):
            run_job(client, "say it", callback_url=URL)
    first = page.get("/ui/callbacks?state=pending")
    (older,) = [
        attributes["href"]
        for tag, attributes in parsed(first.text).elements
        if tag == "a" and attributes.get("rel") == "next"
    ]
    assert older is not None
    second = page.get(html.unescape(older))
    assert len(shown_ids(first)) == 2
    assert shown_ids(second)
    assert not shown_ids(first) & shown_ids(second)


def test_a_delivery_is_shown_with_its_message_and_its_answer_as_text(
    service: RunningService, page: PageClient, job_id: str
) -> None:
    (delivery,) = deliveries(service, job_id)
    fresh = page.get(f"/ui/callbacks/{delivery.id}")
    assert "No attempt was made." in fresh.text
    attempt(service, delivery, "pending", 500, "<i>The receiver</i> \x1b[2J")
    answer = page.get(f"/ui/callbacks/{delivery.id}")
    text = html.unescape(answer.text)
    assert {"b", "i"} & parsed(answer.text).tags == {"i"}  # the chip's mark is the page's own
    assert "<i>The receiver</i>" in text
    assert "\\u202e" not in text
    assert not {"\x1b", "\u202e"} & set(text)
    for shown in (
        '"type": "job.ended"',
        f"webhook-id: {delivery.id}",
        "POST https://receiver.example:8443\n",
    ):
        assert shown in text
    assert "the-secret" not in text


def test_a_delivery_is_sent_once_more(service: RunningService, page: PageClient, job_id: str) -> None:
    (delivery,) = deliveries(service, job_id)
    attempt(service, delivery, "failed", None, "The receiver could not be reached.")
    answer = page.send(f"/ui/callbacks/{delivery.id}/replay")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/callbacks/{delivery.id}")
    (replayed,) = deliveries(service, job_id)
    assert (replayed.state, replayed.attempts, replayed.id) == ("pending", 0, delivery.id)
    forged = page.http.post(f"/ui/callbacks/{delivery.id}/replay", data={"csrf": "x"})
    assert forged.status_code == 403


def test_a_key_sees_and_replays_the_deliveries_of_its_own_jobs_alone(
    service: RunningService, job_id: str
) -> None:
    (delivery,) = deliveries(service, job_id)
    with PageClient(service) as owner, PageClient(service) as other, PageClient(service) as stranger:
        owner.sign_in(LIMITED)
        assert shown_ids(owner.get(f"/ui/callbacks?job={job_id}")) == {delivery.id}
        assert owner.get("/ui/callbacks?endpoint=hook").status_code == 403
        other.sign_in(OTHER)
        assert shown_ids(other.get("/ui/callbacks")) == set()
        assert other.get(f"/ui/callbacks/{delivery.id}").status_code == 404
        assert other.send(f"/ui/callbacks/{delivery.id}/replay").status_code == 404
        assert stranger.get("/ui/callbacks").status_code == 303
    (unchanged,) = deliveries(service, job_id)
    assert unchanged == delivery


@pytest.mark.parametrize("wrong", ["msg_x", "x", "evt_" + "0" * 32])
def test_a_delivery_that_is_not_there_is_not_found(page: PageClient, wrong: str) -> None:
    assert page.get(f"/ui/callbacks/{wrong}").status_code == 404
