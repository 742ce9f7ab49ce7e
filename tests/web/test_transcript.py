"""The transcript of a job: subagents stand below the call that started them."""

from typing import Any

from tests.api.api_service import RunningService, run_job
from tests.web.page_client import PageClient

from steadyhand.clock import utc_now
from steadyhand.events import Event, ToolFinished, ToolStarted, event_data
from steadyhand.ports import Emit
from steadyhand.web.transcript_items import MAX_DEPTH, TranscriptItem, transcript_items


def events_of(*bodies: Any, run: int = 1) -> list[Event]:
    """Return events with numbers, of a run."""
    return [
        Event(seq, "0" * 12, run, utc_now(), body.type, event_data(body))
        for seq, body in enumerate(bodies, 1)
    ]


def call(tool_id: str, parent: str | None = None) -> ToolStarted:
    return ToolStarted(tool_id, f"Tool-{tool_id}", {}, parent)


def outline(items: Any) -> Any:
    """Return the names of the calls, each with those below it."""
    return [(each.data["name"].removeprefix("Tool-"), outline(each.children)) for each in items]


def test_calls_of_a_subagent_stand_below_the_call_that_started_it() -> None:
    items = transcript_items(
        events_of(
            call("a"), call("b"), call("a1", "a"), call("b1", "b"), call("a2", "a"), call("a21", "a2"),
            ToolFinished("a1", is_error=True, output="no", truncated=False, duration_ms=1), call("c"),
        )
    )  # fmt: skip
    assert outline(items) == [
        ("a", [("a1", []), ("a2", [("a21", [])])]),
        ("b", [("b1", [])]),
        ("c", []),
    ]
    assert items[0].children[0].data["result"]["is_error"]
    assert items[0].children[1].data["result"] is None


def test_a_call_whose_parent_is_not_there_stands_in_the_list() -> None:
    assert outline(transcript_items(events_of(call("x", "gone"), call("y", "y"), call("z", "later")))) == [
        ("x", []),
        ("y", []),
        ("z", []),
    ]


def test_subagents_are_nested_to_a_bound() -> None:
    chain = [call("0"), *(call(str(number + 1), str(number)) for number in range(500))]
    items = transcript_items(events_of(*chain))
    deepest, levels = items[0], 0
    while deepest.children:
        (deepest,) = deepest.children
        levels += 1
    assert levels == MAX_DEPTH
    assert sum(map(count, items)) == len(chain)


def count(item: TranscriptItem) -> int:
    return 1 + sum(map(count, item.children))


def test_calls_with_the_same_id_in_two_runs_are_not_mixed() -> None:
    first, second = events_of(call("a"), call("a1", "a")), events_of(call("a"), call("a2", "a"), run=2)
    assert outline(transcript_items([*first, *second])) == [("a", [("a1", [])]), ("a", [("a2", [])])]


def test_only_a_call_of_a_subagent_has_a_parent_in_its_event() -> None:
    assert event_data(call("a")) == {"tool_id": "a", "name": "Tool-a", "input": {}}
    assert event_data(call("b", "a"))["parent_tool_id"] == "a"


def test_the_page_nests_stored_calls(service: RunningService, page: PageClient) -> None:
    async def play(emit: Emit) -> None:
        await emit(call("a"))
        await emit(call("a1", "a"))
        await emit(call("b"))

    service.runner.play = play
    with service.client() as client:
        job = run_job(client, "play done")
        events = client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"}).json()
    calls = {
        each["data"]["tool_id"]: each["data"] for each in events["data"] if each["type"] == "tool.started"
    }
    assert calls["a1"]["parent_tool_id"] == "a"
    assert "parent_tool_id" not in calls["a"]
    text = page.get(f"/ui/jobs/{job['id']}").text
    names = ("Tool-a<", 'class="events nested"', "Tool-a1<", "Tool-b<")
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    nested = text[places[1] : places[3]]
    assert (nested.count("<ol"), nested.count("</ol>")) == (1, 2)
