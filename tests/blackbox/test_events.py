"""Events: numbered without gaps, the same to every follower, live text without numbers (docs/http-api.md#events)."""

import json
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from steadyhand.testing.service import MakeService, Service, wait_until

Frame = tuple[str | None, str, dict[str, Any]]


def frames(response: httpx2.Response) -> Iterator[Frame]:
    """Give each event of a stream as (id, event, data)."""
    ident: str | None = None
    name, data = "", ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "id":
            ident = value
        elif field == "event":
            name = value
        elif field == "data":
            data = value
        elif not line and data:
            yield ident, name, json.loads(data)
            ident, name, data = None, "", ""


def follow(service: Service, job_id: str, after: int | None = None) -> list[Frame]:
    headers = {"accept": "text/event-stream"}
    if after is not None:
        headers["last-event-id"] = str(after)
    with (
        service.new_client() as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer,
    ):
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(frames(answer))


@pytest.fixture(scope="module")
def told(sealed_service: Service) -> tuple[str, list[Frame]]:
    """A finished job with several kinds of events, and what a follower from the start was told."""
    prompt = '[[standin: think="hm" say="one" run="echo two" run="exit 3" text="three"]]'
    job_id = sealed_service.run_job(prompt)["id"]
    return job_id, follow(sealed_service, job_id)


def test_events_are_numbered_from_one_without_a_gap(told: tuple[str, list[Frame]]) -> None:
    _, found = told
    assert [data["seq"] for _, _, data in found] == list(range(1, len(found) + 1))
    assert all(ident == str(data["seq"]) and name == data["type"] for ident, name, data in found)


def test_every_event_has_the_same_frame(told: tuple[str, list[Frame]]) -> None:
    job_id, found = told
    for _, _, data in found:
        assert set(data) == {"object", "seq", "job_id", "run", "type", "at", "data"}
        assert (data["object"], data["job_id"]) == ("event", job_id)
        assert data["at"].endswith("Z")


def test_what_the_agent_said_thought_and_did_is_told_in_order(told: tuple[str, list[Frame]]) -> None:
    _, found = told
    kinds = [name for _, name, _ in found]
    assert kinds[:2] == ["state.changed", "state.changed"]
    assert kinds[-1] == "state.changed"
    body = [data for _, _, data in found]
    assert [one["data"]["text"] for one in body if one["type"] == "message"] == ["one", "three"]
    assert [one["data"]["text"] for one in body if one["type"] == "thinking"] == ["hm"]
    started = [one["data"] for one in body if one["type"] == "tool.started"]
    finished = [one["data"] for one in body if one["type"] == "tool.finished"]
    assert [tool["input"]["command"] for tool in started] == ["echo two", "exit 3"]
    assert [tool["tool_id"] for tool in started] == [tool["tool_id"] for tool in finished]
    assert [tool["is_error"] for tool in finished] == [False, True]
    assert "two" in str(finished[0]["output"])
    assert "usage" in kinds
    assert kinds.index("thinking") < kinds.index("message") < kinds.index("tool.started")


def test_the_states_told_are_the_way_that_the_job_went(told: tuple[str, list[Frame]]) -> None:
    _, found = told
    states = [
        (data["data"]["from"], data["data"]["to"]) for _, name, data in found if name == "state.changed"
    ]
    assert states == [(None, "queued"), ("queued", "running"), ("running", "completed")]


def test_last_event_id_at_every_number_of_a_finished_job_gives_the_same_tail(
    default_service: Service, told: tuple[str, list[Frame]]
) -> None:
    job_id, found = told
    for number in range(len(found) + 1):
        assert follow(default_service, job_id, number) == found[number:]


def test_a_reconnect_after_the_last_event_is_204(
    default_service: Service, told: tuple[str, list[Frame]]
) -> None:
    job_id, found = told
    answer = default_service.client.get(
        f"/v1/jobs/{job_id}/events", headers={"last-event-id": str(len(found))}
    )
    assert (answer.status_code, answer.content) == (204, b"")


def test_the_same_events_come_as_pages_of_json(
    default_service: Service, told: tuple[str, list[Frame]]
) -> None:
    job_id, found = told
    assert default_service.events(job_id) == [data for _, _, data in found]
    page = default_service.client.get(
        f"/v1/jobs/{job_id}/events", params={"after": 2, "limit": 3}, headers={"accept": "application/json"}
    ).json()
    assert [event["seq"] for event in page["data"]] == [3, 4, 5]
    assert page["has_more"] is True


def test_text_is_told_live_without_a_number_and_adds_up_to_the_message(default_service: Service) -> None:
    prompt = '[[standin: text="the whole answer comes in pieces" pace=30 chunk=1]]'
    job_id = default_service.submit(prompt)["id"]
    found = follow(default_service, job_id)
    live = [(ident, data) for ident, name, data in found if name == "text.delta"]
    assert len(live) > 2
    assert all(ident is None and data["seq"] is None for ident, data in live)
    # A follower may have come in the middle of the text; what it heard is the end of it.
    whole = "the whole answer comes in pieces"
    assert whole.endswith("".join(data["data"]["text"] for _, data in live))
    assert [data["data"]["text"] for _, name, data in found if name == "message"] == [whole]
    assert follow(default_service, job_id) == [frame for frame in found if frame[1] != "text.delta"]


def test_many_followers_of_one_job_are_told_the_same(default_service: Service) -> None:
    prompt = "[[standin: " + " ".join(f'say="line {n}" sleep=0.02' for n in range(20)) + "]]"
    job_id = default_service.submit(prompt)["id"]
    told: list[list[Frame]] = []
    threads = [
        threading.Thread(target=lambda: told.append(follow(default_service, job_id))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == len(threads)
    numbered = [[frame for frame in one if frame[0] is not None] for one in told]
    assert all(one == numbered[0] for one in numbered)
    assert [int(ident) for ident, _, _ in numbered[0] if ident] == list(range(1, len(numbered[0]) + 1))


@pytest.mark.long  # as in `test_python_client`
def test_a_follower_across_a_kill_and_a_restart_sees_every_number_once(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service().start()
    prompt = (
        "[[standin: "
        + " ".join(f'say="line {n}" sleep=0.05' for n in range(20))
        + f" touch={common_dir}/half sleep=60]]"
    )
    job_id = service.submit(prompt)["id"]
    seen: list[int] = []
    broken = threading.Event()

    def listen() -> None:
        try:
            with service.new_client() as client, client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                seen.extend(int(ident) for ident, _, _ in frames(answer) if ident)
        except httpx2.TransportError:
            broken.set()

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until((common_dir / "half").exists)
    wait_until(lambda: len(seen) > 10)
    service.kill()
    thread.join(30)
    assert broken.is_set()
    service.restart()
    assert service.wait_until_ended(job_id)["state"] == "interrupted"
    seen += [int(ident) for ident, _, _ in follow(service, job_id, seen[-1]) if ident]
    assert seen == list(range(1, service.get_job(job_id)["last_event"] + 1))


@pytest.mark.long
def test_a_silent_stream_is_kept_alive_by_a_comment_at_most_10_seconds_apart(
    default_service: Service,
) -> None:
    job_id = default_service.submit("[[standin: sleep=24]]")["id"]
    heard: list[float] = []
    with default_service.new_client() as client, client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        heard.extend(time.monotonic() for line in answer.iter_lines() if line)
    assert len(heard) > 4
    assert max(after - before for before, after in pairwise(heard)) < 12
