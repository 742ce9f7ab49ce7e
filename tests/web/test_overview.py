"""The todo list, the timeline and the calls of the model on the page of a job."""

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job
from tests.web.page_client import PageClient

from steadyhand.events import (
    Event,
    PhaseStarted,
    StateChanged,
    ToolCallsAnswered,
    ToolCallsRequested,
    ToolFinished,
    ToolStarted,
    UsageReported,
    event_data,
)
from steadyhand.ports import Emit, TokenCounts
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.testing.contracts.samples import NOON, make_call
from steadyhand.web.model_calls import call_rows
from steadyhand.web.timeline import MAX_SPANS, WIDTH, build_timeline, timeline_spans
from steadyhand.web.todo_list import MAX_ENTRIES, todo_list


def events_of(*bodies: Any) -> list[Event]:
    """Return events one second apart; a number before a body is the run of it and of those after it."""
    found: list[Event] = []
    run = 1
    for body in bodies:
        if isinstance(body, int):
            run = body
            continue
        at = NOON + timedelta(seconds=len(found))
        found.append(Event(len(found) + 1, "0" * 12, run, at, body.type, event_data(body)))
    return found


def done(tool_id: str, output: str = "", *, failed: bool = False) -> ToolFinished:
    return ToolFinished(tool_id, is_error=failed, output=output, truncated=False, duration_ms=1)


def entries(*bodies: Any) -> list[tuple[str, str]]:
    return [(each.text, each.state) for each in todo_list(events_of(*bodies), TOOL_NAMES)]


def todo_write(tool_id: str, *todos: tuple[str, str], parent: str | None = None) -> ToolStarted:
    listed = [{"content": text, "status": status} for text, status in todos]
    return ToolStarted(tool_id, "TodoWrite", {"todos": listed}, parent)


# --- the todo list -----------------------------------------------------------------------------


def test_the_newest_todo_list_is_the_one_that_was_written_last() -> None:
    assert entries(
        todo_write("1", ("a", "pending")),
        todo_write("2", ("a", "completed"), ("b", "in_progress"), ("c", "pending")),
        todo_write("3", ("of a subagent", "pending"), parent="x"),
        todo_write("4", ("failed", "pending")),
        done("4", failed=True),
    ) == [("a", "done"), ("b", "now"), ("c", "open")]


def test_entries_are_added_changed_and_deleted_one_by_one() -> None:
    assert entries(
        ToolStarted("1", "TaskCreate", {"subject": "look"}),
        done("1", "Task #7 created successfully: look"),
        ToolStarted("2", "TaskCreate", {"subject": "refused"}),
        done("2", "disabled", failed=True),
        ToolStarted("3", "TaskCreate", {"subject": "fix"}),
        done("3", "Task #8 created successfully: fix"),
        ToolStarted("4", "TaskCreate", {"subject": "gone"}),
        done("4", "Task #9 created successfully: gone"),
        ToolStarted("5", "TaskUpdate", {"taskId": "7", "status": "completed"}),
        ToolStarted("6", "TaskUpdate", {"taskId": "8", "subject": "fix it", "status": "in_progress"}),
        ToolStarted("7", "TaskUpdate", {"taskId": "9", "status": "deleted"}),
        ToolStarted("8", "TaskUpdate", {"taskId": "99", "status": "completed"}),
    ) == [("look", "done"), ("fix it", "now")]


def test_a_retry_begins_with_an_empty_list_and_a_resumed_run_does_not() -> None:
    written = todo_write("1", ("a", "pending"))
    assert entries(written, StateChanged("failed", "queued", reason="resume"), 2, PhaseStarted("running"))
    assert (
        entries(written, StateChanged("failed", "queued", reason="retry"), 2, PhaseStarted("running")) == []
    )


@pytest.mark.parametrize(
    "values", [{"todos": 3}, {"todos": [None, [], {"content": 5, "status": {}}]}, {"subject": []}, {}]
)
def test_a_todo_list_of_a_wrong_shape_breaks_nothing(values: dict[str, Any]) -> None:
    for name in ("TodoWrite", "TaskCreate", "TaskUpdate"):
        assert {text for text, _ in entries(ToolStarted("1", name, values))} <= {""}


def test_a_todo_list_is_bounded() -> None:
    many = [ToolStarted(str(number), "TaskCreate", {"subject": "x" * 9000}) for number in range(500)]
    found = entries(*many)
    assert len(found) == MAX_ENTRIES
    assert max(len(text) for text, _ in found) == 500
    assert len(entries(todo_write("1", *[("x", "pending")] * 500))) == MAX_ENTRIES


# --- the timeline ------------------------------------------------------------------------------

LIFE = (
    0, StateChanged(None, "queued"),
    1, StateChanged("queued", "running"), PhaseStarted("fetching"), PhaseStarted("checking_out"),
    PhaseStarted("setup", "make"), PhaseStarted("setup", "more"), PhaseStarted("starting"), PhaseStarted("running"),
    ToolCallsRequested([]), ToolCallsAnswered(["a"], "d"), StateChanged("running", "parked"),
    StateChanged("parked", "queued"), 2, StateChanged("queued", "running"), PhaseStarted("running"),
    PhaseStarted("harvesting"), StateChanged("running", "completed", outcome="success"),
)  # fmt: skip


def test_the_timeline_has_every_phase_and_wait_in_order() -> None:
    spans = timeline_spans(events_of(*LIFE))
    assert [(span.kind, span.run) for span in spans] == [
        ("queued", 0), ("begun", 1), ("fetching", 1), ("checking_out", 1), ("setup", 1), ("starting", 1),
        ("running", 1), ("tool", 1), ("running", 1), ("parked", 1), ("queued", 1), ("begun", 2), ("running", 2),
        ("harvesting", 2),
    ]  # fmt: skip
    assert all(one.end == two.start for one, two in pairwise(spans))
    assert [span.label for span in spans if span.kind == "setup"] == ["Setup"]
    seconds = sum((span.end - span.start).total_seconds() for span in spans if span.end)
    assert seconds == len(events_of(*LIFE)) - 1


def test_the_picture_of_a_timeline_has_a_row_for_each_run_and_stays_in_its_frame() -> None:
    now = NOON + timedelta(days=3)
    timeline = build_timeline(events_of(*LIFE[:-1]), now)
    assert list(timeline.rows) == [1, 2]
    assert timeline.bars[-1].span.end is None
    for bar in timeline.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.2
        assert bar.width >= 2
        assert 0 <= bar.y < timeline.height
    assert build_timeline((), now).bars == ()


def test_a_clock_that_went_back_makes_no_negative_time() -> None:
    events = events_of(*LIFE)
    events[4] = replace(events[4], at=NOON - timedelta(hours=1))
    timeline = build_timeline(events, NOON)
    assert all(bar.seconds >= 0 and bar.width > 0 for bar in timeline.bars)


def test_unknown_states_and_phases_are_passed_over_and_the_spans_are_bounded() -> None:
    assert timeline_spans(events_of(StateChanged(None, "dreaming"), PhaseStarted("dancing"))) == []
    many = [PhaseStarted(name) for _ in range(MAX_SPANS) for name in ("running", "harvesting")]
    assert len(timeline_spans(events_of(*many))) == MAX_SPANS


# --- the calls of the model --------------------------------------------------------------------


def usage(turns: int, *counts: int, cost: str | None = None, windows: Any = None) -> UsageReported:
    return UsageReported(counts[0], counts[3], counts[1], counts[2], turns, cost, windows)


def test_calls_have_their_tokens_their_share_of_the_context_and_their_cost() -> None:
    calls = [
        make_call(model="m", tokens=TokenCounts(100, 50, 600, 200, 50), micros=1234),
        make_call(model="other", priced=False, micros=9_999_999),
        make_call(model="m", settled=False, reserved_micros=5),
    ]
    reported = events_of(usage(1, 1, 2, 3, 4, cost="0.1", windows={"m[1m]": 2000}))
    open_call, unpriced, priced = call_rows(calls, reported)
    assert (priced.context, priced.context_share, priced.cached_share, priced.micros) == (1000, 50, 63, 1234)
    assert (unpriced.micros, unpriced.window, unpriced.cached_share) == (None, None, None)
    assert (open_call.is_open, open_call.micros) == (True, None)


def test_without_a_gateway_calls_are_told_by_the_agents_reports_and_have_no_cost() -> None:
    rows = call_rows(
        [make_call(source="reported", micros=7)],
        events_of(
            usage(1, 10, 0, 100, 5), usage(2, 20, 100, 200, 9),
            usage(2, 20, 100, 200, 9, cost="0.5", windows={"m": 1000}),
            2, usage(1, 3, 0, 4, 5),
        ),
    )  # fmt: skip
    assert [(row.run, row.input, row.cache_read, row.cache_write, row.output) for row in rows] == [
        (2, 3, 0, 4, 5),
        (1, 10, 100, 100, 4),
        (1, 10, 0, 100, 5),
    ]
    assert {(row.micros, row.model, row.window) for row in rows} == {(None, "m", 1000)}


# --- the page ----------------------------------------------------------------------------------


def saved(service: RunningService, *calls: Any) -> None:
    for call in calls:
        asyncio.run_coroutine_threadsafe(service.store.save_call(call), service.loop).result(20)


def test_the_page_shows_the_overview_and_updates_it_in_parts(
    service: RunningService, page: PageClient
) -> None:
    async def play(emit: Emit) -> None:
        await emit(todo_write("t", ("<b>first</b>", "completed"), ("second", "in_progress")))
        await emit(usage(1, 1, 2, 3, 4, cost="0.1", windows={"claude-sonnet-5": 200_000}))

    service.runner.play = play
    with service.client() as client:
        job_id = run_job(client, "play done")["id"]
    saved(
        service,
        make_call(job_id=job_id, tokens=TokenCounts(10_000, 10_000, 80_000), micros=12_345),
        make_call(job_id=job_id, priced=False, micros=999_999_000, tokens=TokenCounts(1, 1)),
    )
    text = page.get(f"/ui/jobs/{job_id}").text
    parts = page.get(f"/ui/jobs/{job_id}/overview").text
    for markup in (text, parts):
        assert "&lt;b&gt;first&lt;/b&gt;" in markup
        assert re.search(r't-now"><span class="hidden">under way: </span><bdi>second', markup)
        assert '100.0k <span class="dim">of 200.0k</span>' in markup
        assert ">$0.01</td>" in markup
        assert ">not priced</td>" in markup
        assert "$0.00" not in markup[markup.index("not priced") - 900 : markup.index("not priced")]
        assert re.search(r'<rect class="p-running"[^>]*><title>Running: [\d.]+ s</title>', markup)
        assert "</span>Harvest</td>" in markup
    targets = re.findall(r'hx-target="([^"]+)"', parts)
    assert targets == ["#todos", "#timeline", "#times", "#calls"]
    assert all(f'id="{target[1:]}"' in text for target in targets)


def test_the_overview_of_a_foreign_job_is_not_found(service: RunningService) -> None:
    with service.client(OTHER) as client:
        job_id = run_job(client, "say x")["id"]
    with PageClient(service) as browser:
        browser.sign_in(LIMITED)
        assert browser.get(f"/ui/jobs/{job_id}/overview").status_code == 404
        assert browser.get("/ui/jobs/0123456789ab/overview").status_code == 404
