"""Checks a chaos run by the calls and answers of its clients, and by the beats that its agents wrote.

It is a check of linearizability for one object, a job: of two calls of which one ended before the other began, the
later one must not see an older state. What a cut-off call has done is not known; both are allowed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.chaos.history import Call
from tests.chaos.kinds import COST, Kind

ENDED = frozenset({"completed", "failed", "timeout", "cancelled", "interrupted", "error"})
_OUTCOMES = {"cancelled": {"cancelled", "completed"}}

Beat = tuple[int, str, float]
"""The number of a job, the process of its agent, and the time."""


def check(
    kinds: Sequence[Kind], calls: Sequence[Call], beats: Sequence[Beat], *, has_cost: bool = True
) -> list[str]:
    """Return what is wrong; nothing if all holds. `kinds` are those of the jobs by their numbers.

    With `has_cost` a run costs what its agent reports; else the ledger is looked at elsewhere.
    """
    by_job: Mapping[int, list[Call]] = defaultdict(list)
    for call in calls:
        by_job[call.job].append(call)
    wrong = [*_shared_ids(by_job)]
    for number, kind in enumerate(kinds):
        wrong += [
            f"job {number} ({kind.name}): {text}"
            for text in _check_job(kind, by_job[number], has_cost=has_cost)
        ]
    return [*wrong, *_overlaps(beats), *_unasked_starts(kinds, by_job, beats)]


def _shared_ids(by_job: Mapping[int, list[Call]]) -> Iterator[str]:
    owners: dict[str, int] = {}
    for number, calls in by_job.items():
        for job_id in {
            str(call.body["id"]) for call in calls if call.operation == "submit" and call.succeeded
        }:
            if owners.setdefault(job_id, number) != number:
                yield f"jobs {owners[job_id]} and {number} have one id"


def _check_job(kind: Kind, calls: Sequence[Call], *, has_cost: bool) -> Iterator[str]:
    submits = [call for call in calls if call.operation == "submit" and call.succeeded]
    if len({call.body["id"] for call in submits}) != 1:
        yield f"{len({call.body['id'] for call in submits})} ids for one idempotency key"
        return
    reads = sorted((call for call in calls if call.operation == "get"), key=lambda call: call.ended)
    answered = [call for call in reads if call.succeeded]
    for lost in (call for call in reads if call.status == 404):
        if any(submit.ended < lost.began for submit in submits):
            yield "an accepted job was not found"
    yield from _reversals(answered)
    last = answered[-1].body if answered else {}
    if last.get("state") not in ENDED:
        yield f"it did not end: {last.get('state')}"
        return
    yield from _check_runs(kind, last, calls)
    yield from _check_end(kind, last, has_cost=has_cost)
    yield from _check_events(calls, last)


def _reversals(reads: Sequence[Call]) -> Iterator[str]:
    """Find reads that saw an older state than a read before them."""
    for read in sorted(reads, key=lambda call: call.began):
        earlier = [call for call in reads if call.ended < read.began]
        if not earlier:
            continue
        newest = max(earlier, key=lambda call: (len(call.body["runs"]), call.body["last_event"]))
        if _position(read) < _position(newest):
            yield f"{read.node} told of an older state: {_position(read)} after {_position(newest)}"
        elif _position(read) == _position(newest) and read.body["state"] != newest.body["state"]:
            yield f"{read.body['state']} and {newest.body['state']} at one event"


def _position(read: Call) -> tuple[int, int]:
    return len(read.body["runs"]), read.body["last_event"]


def _check_runs(kind: Kind, job: Mapping[str, Any], calls: Sequence[Call]) -> Iterator[str]:
    runs = job["runs"]
    asked = sum(call.operation == "retry" and (call.succeeded or call.status == 0) for call in calls)
    if [run["number"] for run in runs] != list(range(1, len(runs) + 1)):
        yield "the numbers of its runs have a gap"
    unfinished = [run["number"] for run in runs if run["state"] not in ENDED]
    if unfinished:
        yield f"it ended and its runs {unfinished} did not"
    deaths = sum(run["state"] == "interrupted" for run in runs[:-1])
    allowed = 1 + min(asked, 1) + (deaths if kind.on_interrupt == "restart" else 0)
    if len(runs) > allowed:
        yield f"{len(runs)} runs, and {allowed} were asked for"


def _check_end(kind: Kind, job: Mapping[str, Any], *, has_cost: bool) -> Iterator[str]:
    state = job["state"]
    expected = _OUTCOMES.get(kind.name, {"completed"}) | {"interrupted"}
    if state not in expected:
        yield f"it ended as {state}: {job.get('error')}"
    if state == "completed" and kind.name != "structured" and job["answer"] != "done":
        yield f"its answer is {job['answer']!r}"
    completed = sum(run["state"] == "completed" for run in job["runs"])
    if (
        has_cost
        and state == "completed"
        and len(job["runs"]) == 1
        and float(job["cost"]["usd"]) != float(COST) * completed
    ):
        yield f"it cost {job['cost']['usd']}"


def _check_events(calls: Sequence[Call], job: Mapping[str, Any]) -> Iterator[str]:
    pages = [call for call in calls if call.operation == "events" and call.succeeded]
    if not pages:
        yield "its events were not read"
        return
    events = pages[-1].body["data"]
    if [event["seq"] for event in events] != list(range(1, job["last_event"] + 1)):
        yield "an event is missing or there twice"
    numbers = [event["run"] for event in events]
    if numbers != sorted(numbers):
        yield "an event of an earlier run comes after those of a later one"
    ends = [
        event["run"] for event in events if event["type"] == "state.changed" and event["data"]["to"] in ENDED
    ]
    if len(ends) != len(set(ends)):
        yield "a run ended twice"


def _overlaps(beats: Sequence[Beat]) -> Iterator[str]:
    """Find jobs whose agents were at work at the same time."""
    times: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, process, at in beats:
        times[number][process].append(at)
    for number, processes in times.items():
        spans = sorted((min(each), max(each)) for each in processes.values())
        for (_, end), (begin, _) in pairwise(spans):
            if begin < end:
                yield f"job {number}: two agents at once, for {end - begin:.1f} s"


def _unasked_starts(
    kinds: Sequence[Kind], by_job: Mapping[int, list[Call]], beats: Sequence[Beat]
) -> Iterator[str]:
    processes: dict[int, set[str]] = defaultdict(set)
    for number, process, _ in beats:
        processes[number].add(process)
    for number, found in processes.items():
        reads = [call for call in by_job[number] if call.operation == "get" and call.succeeded]
        runs = len(reads[-1].body["runs"]) if reads else 0
        if number < len(kinds) and len(found) > runs:
            yield f"job {number}: {len(found)} agents for {runs} runs"
