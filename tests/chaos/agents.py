"""Checks of the agents of a chaos run by their beats: none works on after its job, none where another one works."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.checker import ENDED, Beat
from tests.chaos.history import Call
from tests.chaos.kinds import Kind

LATE_SECONDS = 1.0
"""The time between the end of a job and that of the last process of its agent; a busy machine takes it."""


def check_agents(
    kinds: Sequence[Kind], calls: Sequence[Call], beats: Sequence[Beat], wall_offset: float
) -> Iterator[str]:
    """Return what is wrong. `wall_offset` is the time of day when the clock of the calls was at 0."""
    yield from _late_beats(calls, beats, wall_offset)
    yield from _shared_directories(kinds, beats)


def _late_beats(calls: Sequence[Call], beats: Sequence[Beat], wall_offset: float) -> Iterator[str]:
    """Find agents that were at work after a client had read that their job was over for good."""
    last: dict[int, float] = {}
    for number, _, at in beats:
        last[number] = max(at, last.get(number, 0.0))
    reads: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        if call.operation == "get" and call.succeeded:
            reads[call.job].append(call)
    for number, at in last.items():
        runs = max((len(call.body["runs"]) for call in reads[number]), default=0)
        over = [
            call.ended + wall_offset
            for call in reads[number]
            if len(call.body["runs"]) == runs and call.body["state"] in ENDED
        ]
        if over and at > min(over) + LATE_SECONDS:
            yield f"job {number}: an agent was at work {at - min(over):.1f} s after the end"


def _shared_directories(kinds: Sequence[Kind], beats: Sequence[Beat]) -> Iterator[str]:
    """Find agents that were in one directory, which is for one job at a time, at the same time."""
    spans: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, process, at in beats:
        if number < len(kinds) and kinds[number].is_exclusive:
            spans[number, process].append(at)
    previous, end = -1, 0.0
    for (number, _), times in sorted(spans.items(), key=lambda item: min(item[1])):
        if min(times) < end:
            yield f"jobs {previous} and {number} were in one directory, for {end - min(times):.1f} s"
        if max(times) > end:
            previous, end = number, max(times)
