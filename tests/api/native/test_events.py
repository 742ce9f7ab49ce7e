"""A job's events over a real socket: streams and pages."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx2
import pytest
from tests.api.api_service import RunningService, run_job, wait_until

from steadyhand.api.native import event_stream
from steadyhand.api.native.event_stream import event_frame
from steadyhand.api.openai.responses import response_routes
from steadyhand.api.transport import sse
from steadyhand.event_log import WriteItems
from steadyhand.events import Event, LiveText, Message, TextDelta
from steadyhand.ports import Emit

STREAM = {"accept": "text/event-stream"}


def frames(reply: httpx2.Response) -> Iterator[dict[str, str]]:
    """Read a stream's frames: `id`, `event`, `data` and `comment`."""
    frame: dict[str, str] = {}
    for line in reply.iter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name or "comment"] = value.strip()
        elif frame:
            yield frame
            frame = {}


def streamed(client: httpx2.Client, job_id: str, **headers: str) -> list[dict[str, str]]:
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={**STREAM, **headers}) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"].startswith("no-cache")
        return [frame for frame in frames(reply) if "comment" not in frame]


def test_a_finished_job_gives_every_event_and_then_closes(client: httpx2.Client) -> None:
    job = run_job(client, "tell me")
    found = streamed(client, job["id"])
    assert [int(frame["id"]) for frame in found] == list(range(1, job["last_event"] + 1))
    for frame in found:
        event = json.loads(frame["data"])
        assert set(event) == {"object", "seq", "job_id", "run", "type", "at", "data"}
        assert (event["object"], event["job_id"]) == ("event", job["id"])
        assert (event["type"], event["seq"]) == (frame["event"], int(frame["id"]))
    types = [frame["event"] for frame in found]
    assert [each for each in types if each != "phase"] == [
        *("state.changed", "state.changed", "message", "tool.started", "state.changed")
    ]
    assert types.count("phase") == 3  # starting, running, harvesting
    assert json.loads(found[0]["data"])["data"]["to"] == "queued"
    assert json.loads(found[-1]["data"])["data"]["to"] == "completed"


def test_every_last_event_id_gives_the_same_tail(client: httpx2.Client) -> None:
    job = run_job(client, "tell me")
    whole = streamed(client, job["id"])
    for number in range(job["last_event"]):
        assert streamed(client, job["id"], **{"last-event-id": str(number)}) == whole[number:]
        after = client.get(f"/v1/jobs/{job['id']}/events", params={"after": number}, headers=STREAM)
        assert after.text.count("event: ") == len(whole[number:])


def test_a_reconnect_after_the_final_event_is_204(client: httpx2.Client) -> None:
    job = run_job(client, "tell me")
    path = f"/v1/jobs/{job['id']}/events"
    last = str(job["last_event"])
    assert client.get(path, headers={**STREAM, "last-event-id": last}).status_code == 204
    assert client.get(path, params={"after": last}, headers=STREAM).status_code == 204


def test_a_follower_of_a_retried_job_goes_on(client: httpx2.Client) -> None:
    job = run_job(client, "say x")
    client.post(f"/v1/jobs/{job['id']}/retry")
    found = streamed(client, job["id"], **{"last-event-id": str(job["last_event"])})
    assert int(found[0]["id"]) == job["last_event"] + 1
    assert json.loads(found[-1]["data"])["data"]["to"] == "completed"
    assert json.loads(found[-1]["data"])["run"] == 2


@pytest.mark.parametrize("bad", ["-1", "x", "1.5", "99999", "9" * 30, "٣"])
def test_a_bad_cursor_is_422(client: httpx2.Client, bad: str) -> None:
    path = f"/v1/jobs/{run_job(client, 'say x')['id']}/events"
    by_query = client.get(path, params={"after": bad}, headers=STREAM)
    by_header = client.get(path, headers={b"accept": b"text/event-stream", b"last-event-id": bad.encode()})
    for reply in (by_query, by_header):
        assert (reply.status_code, reply.json()["code"]) == (422, "bad_cursor")


def test_live_text_has_no_number_and_comes_to_those_who_follow(
    client: httpx2.Client, service: RunningService
) -> None:
    blockers = [client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"] for _ in range(2)]
    job_id = client.post("/v1/jobs", json={"prompt": "tell me"}).json()["id"]
    found: list[dict[str, str]] = []
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as reply:
        for frame in frames(reply):
            if frame.get("event") == "state.changed" and blockers:
                for blocker in blockers:  # now that we follow, the job may run
                    service.client().post(f"/v1/jobs/{blocker}/cancel")
                blockers = []
            found.append(frame)
    live = [frame for frame in found if frame.get("event") == "text.delta"]
    assert live
    for frame in live:
        assert "id" not in frame
        event = json.loads(frame["data"])
        assert event["seq"] is None
        assert event["data"]["text"].startswith("piece")
    numbers = [int(frame["id"]) for frame in found if "id" in frame]
    assert numbers == list(range(1, numbers[-1] + 1))


def followed_by_many(
    client: httpx2.Client, service: RunningService, fields: Mapping[str, Any], path: str, followers: int
) -> list[bytes]:
    """Return the bytes of each follower of one job, whose agent speaks once all are there."""

    async def play(emit: Emit) -> None:
        subscriptions = service.feed._subscriptions
        await asyncio.to_thread(wait_until, lambda: len(next(iter(subscriptions.values()), ())) == followers)
        for number in range(50):
            await emit(TextDelta("m1", f"piece {number} "))
        await emit(Message("assistant", "".join(f"piece {number} " for number in range(50))))

    service.runner.play = play
    route, body = ("/v1/responses", "input") if "responses" in path else ("/v1/jobs", "prompt")
    begun = client.post(route, json={body: "play done", **fields}).json()

    def follow(_number: int) -> bytes:
        with service.client().stream("GET", path.format(begun["id"]), headers=STREAM) as reply:
            return b"".join(reply.iter_bytes())

    with ThreadPoolExecutor(followers) as pool:
        return list(pool.map(follow, range(followers)))


class CountedReads:
    """Counts the reads of jobs and of events of a service's store."""

    def __init__(self, service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: Counter[str] = Counter()
        store: Any = service.store
        for name in ("get", "list_events"):
            monkeypatch.setattr(store, name, self._counted(name, getattr(store, name)))

    def _counted(self, name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.reads[name] += 1
            return read(*args)

        return counted


def test_an_event_is_rendered_once_for_all_its_followers(
    client: httpx2.Client, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Any] = []

    def render(item: Any) -> bytes:
        rendered.append(item)
        return event_frame(item)

    monkeypatch.setattr(event_stream, "event_frame", render)
    counted = CountedReads(service, monkeypatch)
    streams = followed_by_many(client, service, {}, "/v1/jobs/{}/events", 8)
    # Each reads when it comes; at the end of the harvest and of the job one reads for all.
    assert counted.reads["get"] < 8 * 3 + 8
    assert counted.reads["list_events"] < 8 * 2 + 8
    # One that still reads the store has live text after it.
    assert len({tuple(sorted(stream.split(b"\n\n"))) for stream in streams}) == 1
    assert streams[0].count(b"event: ") == len(rendered)
    assert len(rendered) == len(set(map(id, rendered)))
    live = [item for item in rendered if isinstance(item, LiveText)]
    assert live[0].body.text == "piece 0 "
    assert "".join(item.body.text for item in live) == "".join(f"piece {number} " for number in range(50))
    assert len(live) < 10  # those that come soon after the first go together


def test_an_event_of_a_response_is_rendered_once_for_all_its_followers(
    client: httpx2.Client, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = response_routes._encode_event
    rendered: list[int] = []

    def render(event: Any) -> bytes:
        rendered.append(event["sequence_number"])
        return encode(event)

    monkeypatch.setattr(response_routes, "_encode_event", render)
    fields = {"model": "claude", "background": True}
    streams = followed_by_many(client, service, fields, "/v1/responses/{}?stream=true", 8)
    assert len(set(streams)) == 1
    assert sorted(rendered) == list(range(streams[0].count(b"event: ")))


def test_what_is_written_at_once_is_rendered_once_for_all_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Any] = []

    def render(item: Any) -> bytes:
        rendered.append(item)
        return event_frame(item)

    monkeypatch.setattr(event_stream, "event_frame", render)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    items: list[LiveText | Event] = [
        LiveText("0123456789ab", 1, now, TextDelta("m1", "Hello")),
        Event(7, "0123456789ab", 1, now, "message", {"role": "assistant", "text": "Hello"}),
    ]

    async def scene() -> list[list[bytes]]:
        cache = sse.FrameCache()
        written: list[list[bytes]] = []
        done, all_follow = asyncio.Event(), asyncio.Event()
        ready: list[WriteItems] = []

        async def follow(write: WriteItems) -> AsyncGenerator[Any, None]:
            ready.append(write)
            if len(ready) == 5:
                all_follow.set()
            await done.wait()
            yield items

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(_message: Any) -> None:
            pass

        def write_chunk(chunk: bytes, chunks: list[bytes]) -> bool:
            chunks.append(chunk)
            return True

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for _ in range(5):
                chunks: list[bytes] = []
                written.append(chunks)
                response = event_stream.event_stream_response(follow, lambda: True, cache)
                scope = {sse.WRITE_CHUNK_SCOPE_KEY: partial(write_chunk, chunks=chunks)}
                group.create_task(response(scope, receive, send))
            await all_follow.wait()
            assert all(write(items) for write in ready)
            done.set()
        return written

    written = asyncio.run(scene())
    frames = b"".join(map(event_frame, items))
    assert written == [[b"%x\r\n%b\r\n" % (len(frames), frames)]] * 5
    assert rendered == items


def test_a_frame_is_kept_for_equal_items_alone_and_within_bounds() -> None:
    cache = sse.FrameCache()
    rendered: list[str] = []

    def render(item: str) -> bytes:
        rendered.append(item)
        return item.encode()

    for item in ("one", "one", "two", "one"):
        assert cache.get("key", item, render) == item.encode()
    assert rendered == ["one", "two"]
    for number in range(200):
        cache.get(number, "x" * 50_000, render)
    assert sum(len(data) for _, data in cache._frames.values()) <= sse.MAX_CACHED_BYTES
    cache.get("large", "y" * sse.MAX_CACHED_BYTES, render)
    assert "large" not in cache._frames
    assert 199 in cache._frames
    assert 0 not in cache._frames


def test_silence_is_broken_by_comments(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sse.DEFAULT_KEEPALIVE_SECONDS == 10
    monkeypatch.setattr(sse, "DEFAULT_KEEPALIVE_SECONDS", 0.05)
    job_id = client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
    comments = 0
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as reply:
        for frame in frames(reply):
            comments += "comment" in frame
            if comments > 3:
                break
    client.post(f"/v1/jobs/{job_id}/cancel")


def test_a_follower_that_goes_away_is_let_go(client: httpx2.Client, service: RunningService) -> None:
    job_id = client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
    for _ in range(3):
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as reply:
            open_frames = frames(reply)  # kept: a generator that is dropped closes the connection
            assert next(frame for frame in open_frames if "id" in frame)["id"] == "1"
            assert job_id in service.feed._subscriptions
        wait_until(lambda: job_id not in service.feed._subscriptions)
    client.post(f"/v1/jobs/{job_id}/cancel")


def test_json_pages_the_same_events(client: httpx2.Client) -> None:
    job = run_job(client, "tell me")
    path = f"/v1/jobs/{job['id']}/events"
    whole = [json.loads(frame["data"]) for frame in streamed(client, job["id"])]
    paged: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = client.get(path, params=params, headers={"accept": "application/json"}).json()
        assert set(page) == {"object", "data", "has_more", "next_cursor"}
        paged += page["data"]
        assert page["has_more"] is (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        params["after"] = page["next_cursor"]
    assert paged == whole
    after_all = {"accept": "application/json"}
    reply = client.get(path, params={"after": job["last_event"]}, headers=after_all)
    assert (reply.status_code, reply.json()["data"]) == (200, [])


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("text/event-stream, application/json", "text/event-stream"),
        ("application/json, */*", "application/json"),
        ("application/*", "application/json"),
        ("text/event-stream;q=0.5, application/json;q=0.6", "application/json"),
    ],
)
def test_accept_chooses_between_stream_and_page(client: httpx2.Client, accept: str, media: str) -> None:
    job = run_job(client, "say x")
    reply = client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": accept})
    assert reply.headers["content-type"].split(";")[0] == media
