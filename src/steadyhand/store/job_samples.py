"""Samples of the newest jobs that match a filter: cost and time of ended ones, and the calls of their tools.

A value of stored JSON is read as JSON, which `json_extract` returns for several paths: it may hold what no text of
a database can, such as half a surrogate pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from steadyhand.events import ToolFinished, ToolStarted
from steadyhand.ports import JobFilter, JobSample, ToolSample, ToolUsage
from steadyhand.store.driver import fetch_all
from steadyhand.store.json_texts import fields_expression, parse_fields
from steadyhand.store.lists import MAX_SEQUENCE, matching_sequences
from steadyhand.store.readers import check_time

_CHUNK = 250
_TOOL_CHUNK = 20
"""Jobs whose events are read at once; some have thousands."""
_MICROSECONDS = 1_000_000
_COST_FIELDS = ("model", "cost.micros", "cost.source", "cost.priced", "cost.reported_micros")
_TOOL_FIELDS = ("tool_id", "name", "is_error", "duration_ms")


def sample_jobs(
    connection: Connection, job_filter: JobFilter, limit: int, model: str | None
) -> list[JobSample]:
    """Return cost and time of the newest jobs that match; see `Store.sample_jobs`."""
    sequences = matching_sequences(connection, job_filter, MAX_SEQUENCE, limit)
    samples: list[JobSample] = []
    for chunk in _chunks(connection, sequences, _CHUNK):
        for text, length in fetch_all(connection, _jobs_statement(connection, len(chunk)), chunk):
            found_model, *cost = parse_fields(connection, text, _COST_FIELDS)
            if model is None or found_model == model:
                seconds = None if length is None else int(length) / _MICROSECONDS
                samples.append(JobSample(_known_micros(*cost), seconds))
    return samples


def _chunks(connection: Connection, sequences: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(sequences), size):
        check_time(connection)
        yield sequences[at : at + size]


def _jobs_statement(connection: Connection, count: int) -> str:
    # The sequences are the primary key; the record is parsed once for all of its values.
    record = fields_expression(connection, "record", _COST_FIELDS)
    length = "SELECT sum(finished_at - started_at) FROM runs WHERE job = jobs.sequence"
    places = ", ".join("?" * count)
    return (
        f"SELECT {record}, ({length}) FROM jobs NOT INDEXED "  # noqa: S608  # our own words
        f"WHERE sequence IN ({places}) ORDER BY sequence DESC"
    )


def _known_micros(
    micros: int | None, source: str | None, is_priced: object, reported: int | None
) -> int | None:
    """Return the cost of a job; None if it cannot be told. A cost that nobody reported is not 0."""
    return micros if is_priced and (source == "ledger" or reported is not None) else None


@dataclass(slots=True)
class _Calls:
    calls: int = 0
    failures: int = 0
    unfinished: int = 0
    milliseconds: int = 0


def sample_tools(connection: Connection, job_filter: JobFilter, limit: int) -> ToolSample:
    """Return the calls of tools in the newest jobs that match; see `Store.sample_tools`."""
    sequences = matching_sequences(connection, job_filter, MAX_SEQUENCE, limit)
    rows: list[ToolUsage] = []
    for chunk in _chunks(connection, sequences, _TOOL_CHUNK):
        places = ", ".join("?" * len(chunk))
        text = f"SELECT sequence, id, api_key_id, agent FROM jobs NOT INDEXED WHERE sequence IN ({places})"  # noqa: S608
        names = {sequence: each for sequence, *each in fetch_all(connection, text, chunk)}
        by_job: dict[int, list[tuple[Any, ...]]] = {sequence: [] for sequence in chunk}
        for job, run, kind, text in fetch_all(connection, _tools_statement(connection, len(chunk)), chunk):
            by_job[job].append((run, kind, *parse_fields(connection, text, _TOOL_FIELDS)))
        for sequence, events in by_job.items():
            job_id, key_id, agent = names[sequence]
            rows += [
                ToolUsage(
                    job_id, key_id, agent, tool, each.calls, each.failures, each.unfinished, each.milliseconds
                )
                for tool, each in _count_calls(events).items()
            ]
    return ToolSample(len(sequences), rows)


def _tools_statement(connection: Connection, count: int) -> str:
    data = fields_expression(connection, "data", _TOOL_FIELDS)
    places = ", ".join("?" * count)
    return (
        f"SELECT job, run, type, {data} FROM events WHERE job IN ({places}) "  # noqa: S608
        f"AND type IN ('{ToolStarted.type}', '{ToolFinished.type}') ORDER BY job, seq"
    )


def _count_calls(events: Sequence[tuple[Any, ...]]) -> dict[str, _Calls]:
    """Return the calls of a job by the name of the tool; `events` are in order."""
    tools: dict[str, _Calls] = {}
    open_calls: dict[tuple[int, str], str] = {}
    for run, kind, tool_id, name, is_error, duration_ms in events:
        if kind == ToolStarted.type:
            each = tools.setdefault(name, _Calls())
            each.calls += 1
            each.unfinished += 1
            open_calls[run, tool_id] = name
        elif (tool := open_calls.pop((run, tool_id), None)) is not None:
            each = tools[tool]
            each.unfinished -= 1
            each.failures += bool(is_error)
            each.milliseconds += duration_ms or 0
    return tools
