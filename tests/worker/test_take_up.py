"""The rest of a run that an earlier service left: the stored events are left out, and nothing else."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.events import (
    Event,
    EventBody,
    Message,
    PhaseStarted,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
    WarningEvent,
    event_data,
)
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import OrphanedRun
from steadyhand.testing.contracts.samples import NOON
from steadyhand.worker.take_up import NotTakenUp, StoredEvents, TakenUp

OUTPUT: list[EventBody | TextDelta] = [
    TextDelta("m1", "I "),
    TextDelta("m1", "look."),
    Message("assistant", "I look."),
    ToolStarted("t1", "Bash", {"command": "ls"}),
    WarningEvent(WarningCode.API_RETRY, "Again."),
    ToolFinished("t1", is_error=False, output="a", truncated=False, duration_ms=3),
    UsageReported(1, 1, 0, 0, 1),
    TextDelta("m2", "Done."),
    Message("assistant", "Done."),
]
"""The events of an agent's whole output, as they come each time it is read."""
OTHERS: list[EventBody] = [
    PhaseStarted("starting"),
    PhaseStarted("running"),
    WarningEvent(WarningCode.EGRESS_HOST, "a.org"),
]
"""Events of a run that do not come from its agent."""
ORPHAN = OrphanedRun(Path("/none"), "job", 1, {"slot": 0, "deadline": 0.0}, 1, 1)


def stored(bodies: list[EventBody]) -> StoredEvents:
    found = StoredEvents()
    for number, body in enumerate(bodies, 1):
        found.add(Event(number, "job", 1, NOON, body.type, event_data(body)))
    return found


def read_again(before: StoredEvents) -> list[EventBody | TextDelta]:
    """Everything that is emitted when the whole output is read again."""
    emitted: list[EventBody | TextDelta] = []

    async def emit(body: EventBody | TextDelta) -> None:
        emitted.append(body)

    async def read() -> None:
        rest = TakenUp(ORPHAN, before, lambda: NOON + timedelta(seconds=5)).rest_of(emit)
        for body in OUTPUT:
            await rest(body)

    asyncio.run(read())
    return emitted


@given(st.integers(0, 6), st.lists(st.sampled_from(OTHERS), max_size=3), st.randoms())
def test_the_stored_events_and_the_rest_are_the_whole_wherever_the_service_died(
    count: int,
    others: list[EventBody],
    generator: object,  # more examples
) -> None:
    whole = [body for body in OUTPUT if not isinstance(body, TextDelta)]
    rest = [body for body in read_again(stored([*others, *whole[:count]])) if not isinstance(body, TextDelta)]
    assert [body.type for body in [*whole[:count], *rest]] == [body.type for body in whole]
    assert len(rest) == len(whole) - count


def test_the_text_of_a_stored_message_is_not_shown_again_and_that_of_the_next_one_is() -> None:
    texts = [body.text for body in read_again(stored([OUTPUT[2]])) if isinstance(body, TextDelta)]  # type: ignore[list-item]
    assert texts == ["Done."]


def test_a_tool_that_ran_over_the_change_of_services_has_lasted_since_its_stored_start() -> None:
    before = stored([body for body in OUTPUT[:5] if not isinstance(body, TextDelta)])
    (finished,) = [body for body in read_again(before) if isinstance(body, ToolFinished)]
    assert finished.duration_ms == 5000


def test_output_that_is_read_in_another_way_is_not_taken_up() -> None:
    with pytest.raises(NotTakenUp):
        read_again(stored([Message("assistant", "I look."), UsageReported(1, 1, 0, 0, 1)]))


def test_a_warning_of_the_gateway_is_not_stored_twice() -> None:
    emitted: list[EventBody | TextDelta] = []

    async def emit(body: EventBody | TextDelta) -> None:
        emitted.append(body)

    async def warn() -> None:
        new_only = TakenUp(ORPHAN, stored(list(OTHERS)), lambda: NOON).new_only(emit)
        for host in ("a.org", "b.org"):
            await new_only(WarningEvent(WarningCode.EGRESS_HOST, host))

    asyncio.run(warn())
    assert emitted == [WarningEvent(WarningCode.EGRESS_HOST, "b.org")]
