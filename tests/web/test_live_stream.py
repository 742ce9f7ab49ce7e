"""The stream of a browser: several topics on one connection, continued after a break, without foreign jobs."""

import asyncio
import re
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message as AsgiMessage
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job
from tests.async_tests import in_loop
from tests.web.page_client import PageClient

from steadyhand.clock import utc_now
from steadyhand.event_log import FeedItem
from steadyhand.events import (
    Event,
    LiveProgress,
    LiveText,
    Message,
    PhaseProgress,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from steadyhand.ports import Emit
from steadyhand.web.live_stream import MAX_TOPICS, LiveTextView, Put, TopicsResponse, without_ended_text
from steadyhand.web.web_app import Visit


def messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Yield the messages of a stream; the lines of data are one text."""
    message: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            message[name] = f"{message[name]}\n{value}" if name in message else value
        elif message:
            yield message
            message = {}


def follow(page: PageClient, *topics: str, **headers: str) -> Any:
    return page.http.stream("GET", "/ui/stream", params=[("on", topic) for topic in topics], headers=headers)


def read_until(found: Iterator[dict[str, str]], text: str) -> list[dict[str, str]]:
    seen = []
    for message in found:
        seen.append(message)
        if text in message.get("data", "") + message.get("event", "") + message["id"]:
            return seen
    raise AssertionError(f"the stream ended without {text}: {seen}")


def test_a_job_is_followed_from_its_first_event_to_its_end(service: RunningService, page: PageClient) -> None:
    async def play(emit: Emit) -> None:
        await emit(TextDelta("m1", "hel"))
        await emit(TextDelta("m1", "lo <b>"))
        await emit(Message("assistant", "hello <b>"))
        await emit(ToolStarted("t1", "Bash", {"command": "ls"}))
        await emit(ToolFinished("t1", is_error=False, output="a\nb", truncated=False, duration_ms=2))

    service.runner.play = play
    with service.client() as client:
        job_id = client.post("/v1/jobs", json={"prompt": "play done"}).json()["id"]
    with follow(page, f"{job_id} 0") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = messages(answer.iter_lines())
        seen = read_until(found, "<b>completed</b>")
        seen += read_until(found, "changed")
    text = "\n".join(message.get("data", "") for message in seen)
    assert "<p>hello &lt;b&gt;</p>" in text
    assert "<b>Bash</b>" in text
    assert ">a\nb</pre>" in text
    stored = [
        int(message["id"].split()[1]) for message in seen if message["id"].endswith(tuple("0123456789"))
    ]
    assert stored == sorted(stored)


def test_a_stream_goes_on_after_the_last_id(service: RunningService, page: PageClient) -> None:
    with service.client() as client:
        job = run_job(client, "tell x")
    with follow(page, f"{job['id']} 0", **{"last-event-id": f"{job['id']} 2"}) as answer:
        first = next(messages(answer.iter_lines()))
    assert first["id"] == f"{job['id']} 3"


def test_one_connection_has_the_list_and_several_jobs(service: RunningService, page: PageClient) -> None:
    with service.client() as client:
        jobs = [run_job(client, "tell x")["id"] for _ in range(2)]
        with follow(page, "jobs", *(f"{job_id} 0" for job_id in jobs)) as answer:
            found = messages(answer.iter_lines())
            seen: set[str] = set()
            while seen != set(jobs):
                seen.add(next(found)["id"].split()[0])
            client.post("/v1/jobs", json={"prompt": "say x"})
            assert read_until(found, "jobs ")[-1]["event"] == "changed"


def list_topic(page: PageClient, path: str) -> str:
    found = re.search(r'"/ui/stream\?on=(jobs\+\d+)"', page.get(path).text)
    assert found is not None
    return found[1].replace("+", " ")


@pytest.mark.parametrize("path", ["/", "/ui/jobs"])
def test_a_change_between_the_list_and_its_stream_is_told(
    service: RunningService, page: PageClient, path: str
) -> None:
    topic = list_topic(page, path)
    with service.client() as client:
        run_job(client, "say x")
    with follow(page, topic) as answer:
        told = next(messages(answer.iter_lines()))
    assert told["event"] == "changed"
    assert int(told["id"].split()[1]) > int(topic.split()[1])


def test_a_list_that_lacks_nothing_is_told_of_the_next_change_alone(
    service: RunningService, page: PageClient
) -> None:
    topic = list_topic(page, "/ui/jobs")
    with service.client() as client, follow(page, topic) as answer:
        client.post("/v1/jobs", json={"prompt": "say x"})
        told = next(messages(answer.iter_lines()))
    assert int(told["id"].split()[1]) > int(topic.split()[1])


def test_an_ended_job_that_is_run_again_goes_on_in_the_same_stream(
    service: RunningService, page: PageClient
) -> None:
    with service.client() as client:
        job = run_job(client, "fail at first")
        with follow(page, f"{job['id']} {job['last_event']}") as answer:
            found = messages(answer.iter_lines())
            assert next(found)["event"] == "changed"  # all is there already
            client.post(f"/v1/jobs/{job['id']}/retry")
            assert "run 2" in read_until(found, "<b>running</b>")[-1]["data"]


def test_the_list_of_a_key_is_silent_about_jobs_of_others(service: RunningService) -> None:
    with PageClient(service) as client, service.client(OTHER) as other, service.client(LIMITED) as own:
        client.sign_in(LIMITED)
        with follow(client, "jobs") as answer:
            found = messages(answer.iter_lines())
            foreign = run_job(other, "say x")["id"]
            mine = own.post("/v1/jobs", json={"prompt": "say y"}).json()["id"]
            assert next(found)["event"] == "changed"
            assert foreign != mine
        with follow(client, f"{foreign} 0") as refused:
            assert refused.status_code == 404


@pytest.mark.parametrize(
    ("topics", "status"),
    [
        ([], 422),
        (["nonsense"], 422),
        (["0123456789ab"], 422),
        (["0123456789ab 0"], 404),
        (["jobs 0"] * (MAX_TOPICS + 1), 422),
        (["jobs 0", "0123456789ab x"], 422),
    ],
)
def test_a_wrong_topic_is_refused(page: PageClient, topics: list[str], status: int) -> None:
    with follow(page, *topics) as answer:
        assert answer.status_code == status


def test_a_position_that_the_job_has_not_reached_is_refused(
    service: RunningService, page: PageClient
) -> None:
    with service.client() as client:
        job = run_job(client, "say x")
    with follow(page, f"{job['id']} {job['last_event'] + 1}") as answer:
        assert answer.status_code == 422


def test_a_stream_without_a_session_is_refused(stranger: PageClient) -> None:
    with follow(stranger, "jobs 0", accept="text/event-stream") as answer:
        assert answer.status_code == 401


def live(text: str, offset: int, taken_back: int = 0, message_id: str = "m") -> LiveText:
    return LiveText("0" * 12, 1, utc_now(), TextDelta(message_id, text), 0, offset, taken_back)


def shown(*pieces: LiveText) -> str:
    """Return the text that a browser shows after these pieces."""
    view, found = LiveTextView(), ""
    for piece in pieces:
        markup = view.feed(piece)
        text = markup.partition("<span>")[2].partition("</span>")[0]
        found = text if 'hx-swap="innerHTML"' in markup else found + text
    return found


def test_live_text_is_appended_and_taken_back() -> None:
    assert shown(live("hel", 0), live("lo", 3)) == "hello"
    assert shown(live("my sec", 0), live("[redacted]!", 3, taken_back=3)) == "my [redacted]!"
    assert shown(live("late", 90)) == "… late"
    assert shown(live("one", 0), live("two", 0, message_id="n")) == "two"
    assert shown(live("<script>", 0)) == "&lt;script&gt;"


def test_all_that_watch_are_told_that_the_service_stops(service: RunningService, page: PageClient) -> None:
    with follow(page, "jobs") as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": following"
        service.loop.call_soon_threadsafe(service.feed.close)
        assert list(lines) == [""]


def test_live_text_that_has_ended_before_it_is_sent_is_left_out() -> None:
    def event(seq: int, kind: str) -> Event:
        return Event(seq, "0" * 12, 1, utc_now(), kind, {})

    message, tool = event(2, Message.type), event(1, ToolStarted.type)
    progress = LiveProgress("0" * 12, 1, utc_now(), PhaseProgress("checkout", "half"))
    batch: list[FeedItem] = [live("hel", 0), tool, progress, live("lo", 3), message, live("next", 0)]
    assert without_ended_text(batch) == [tool, progress, message, batch[-1]]
    assert without_ended_text(batch[:4]) == batch[:4]


@in_loop
async def test_what_comes_together_is_written_together_and_in_order() -> None:
    """One write costs more than one message."""
    sent: list[bytes] = []

    async def follow_job(name: int, put: Put) -> None:
        for number in range(20):
            await put(b"%d %d\n" % (name, number))

    async def receive() -> AsgiMessage:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: AsgiMessage) -> None:
        sent.append(message.get("body", b""))

    visit = cast("Visit", SimpleNamespace(is_session_open=lambda: True))
    response = TopicsResponse(visit, [partial(follow_job, name) for name in range(8)])
    await response({"type": "http"}, receive, send)
    lines = b"".join(sent).splitlines()[2:]
    for name in range(8):
        own = [line for line in lines if line.startswith(b"%d " % name)]
        assert own == [b"%d %d" % (name, number) for number in range(20)]
    assert len(lines) == 8 * 20
    assert len(sent) < 20
