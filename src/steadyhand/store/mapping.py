"""Jobs, runs and events as rows, and back, without loss.

Times come back in UTC with their microseconds. JSON is written in ASCII; what stands in it was JSON before.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import RowMapping

from steadyhand.events import Draft, Event, data_of
from steadyhand.job import Changes, ClientTool, Cost, Fault, Job, Notice, Run, State, Turn, Usage, Verdict
from steadyhand.ports import NO_LIMITS, ApiKey, Call, KeyLimits, RunOutput, Scope, Tokens

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_AS_IT_IS = (
    "runner",
    "origin",
    "model",
    "ref",
    "commit",
    "priority",
    "title",
    "output_schema",
    "on_interrupt",
    "publish",
    "budget_micros",
    "timeout_seconds",
    "idle_timeout_seconds",
    "expires_in_seconds",
    "max_turns",
    "effort",
    "append_system_prompt",
    "parent_job_id",
    "begin",
    "continue_prompt",
    "at_start",
    "used_seconds",
    "since_run",
)
"""Fields that stand in `record` under their own name, as they are."""

_TIMES = ("queued_at", "started_at", "parked_until")
_FLAT = {"usage": Usage, "cost": Cost, "outcome": Verdict, "changes": Changes, "error": Fault}
_NAMES = {
    kind: tuple(each.name for each in fields(kind)) for kind in (Usage, Cost, Verdict, Changes, Fault, Notice)
}

_OF_CALL = (
    "id",
    "job_id",
    "run",
    "api_key_id",
    "agent",
    "provider",
    "model",
    "reserved_micros",
    "micros",
    "status",
    "source",
)
"""Fields of a call that stand in its row as they are."""

DAY = 86_400_000_000
"""Microseconds in a day."""

BRIEF_PROMPT = 200
"""How many characters of its prompt a listed job has."""


def micros(moment: datetime) -> int:
    """Give microseconds since 1970 in UTC. A time without a zone is refused with `ValueError`."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be kept")
    return (moment - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Give the time, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


to_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode
"""Gives compact ASCII JSON."""


def job_row(job: Job) -> dict[str, Any]:
    """Give a job's columns, without `sequence`."""
    return {
        "id": job.id,
        "state": job.state.value,
        "api_key_id": job.api_key_id,
        "agent": job.agent,
        "workspace": job.workspace,
        "created_at": micros(job.created_at),
        "finished_at": None if job.finished_at is None else micros(job.finished_at),
        "metadata": None if job.metadata is None else to_json(job.metadata),
        "session_id": job.session_id,
        "session_name": job.session_name,
        "conversation": job.conversation,
        "record": to_json(_record(job)),
        "structured_output": None if job.structured_output is None else to_json(job.structured_output),
        "history": _asked_row(job),
        "answer": None if job.answer is None else to_json(job.answer),
        "prompt": job.prompt,
    }


def _record(job: Job) -> dict[str, Any]:
    record: dict[str, Any] = {name: getattr(job, name) for name in _AS_IT_IS}
    for name in _TIMES:
        value = getattr(job, name)
        record[name] = None if value is None else micros(value)
    for name in _FLAT:
        record[name] = _flat(getattr(job, name))
    record["warnings"] = [_flat(notice) for notice in job.warnings]
    return record


def _flat(value: Any) -> dict[str, Any] | None:
    return None if value is None else {name: getattr(value, name) for name in _NAMES[type(value)]}


def job_of(row: RowMapping, runs: Sequence[Run]) -> Job:
    """Give the job of a row with `last_event`; a listed row lacks `structured_output`, `history` and `answer`."""
    record = json.loads(row["record"])
    # What a later version added is not in the rows of an earlier one.
    parts: dict[str, Any] = {name: record[name] for name in _AS_IT_IS if name in record}
    parts.update({name: _maybe_moment(record[name]) for name in _TIMES})
    parts.update({name: kind(**record[name]) for name, kind in _FLAT.items() if record[name] is not None})
    return Job(
        id=row["id"],
        prompt=row["prompt"],
        agent=row["agent"],
        api_key_id=row["api_key_id"],
        created_at=moment(row["created_at"]),
        state=State(row["state"]),
        workspace=row["workspace"],
        metadata=_maybe_json(row["metadata"]),
        session_id=row["session_id"],
        session_name=row["session_name"],
        conversation=row["conversation"],
        finished_at=_maybe_moment(row["finished_at"]),
        structured_output=_maybe_json(row.get("structured_output")),
        **_asked(row.get("history")),
        answer=_maybe_json(row.get("answer")),
        warnings=tuple(Notice(**each) for each in record["warnings"]),
        runs=tuple(runs),
        last_event=row["last_event"],
        sequence=row["sequence"],
        **parts,
    )


def _asked_row(job: Job) -> str | None:
    """Give what was asked beside the prompt: the turns alone, or with what few jobs have."""
    turns = [[turn.role, turn.content] for turn in job.history]
    if job.content or job.tools or job.one_call or job.request is not None:
        tools = [[tool.name, tool.description, tool.parameters] for tool in job.tools]
        asked = {"turns": turns, "content": job.content, "request": job.request, "tools": tools}
        return to_json(asked | ({"one_call": True} if job.one_call else {}))
    return to_json(turns) if turns else None


def _asked(text: str | None) -> dict[str, Any]:
    found = [] if text is None else json.loads(text)
    if isinstance(found, list):
        return {"history": _history(found)}
    return {
        "history": _history(found["turns"]),
        "content": tuple(found["content"]),
        "request": found["request"],
        "tools": tuple(ClientTool(*each) for each in found.get("tools", ())),
        "one_call": found.get("one_call", False),
    }


def _history(turns: Sequence[Any]) -> tuple[Turn, ...]:
    return tuple(
        Turn(role, content if isinstance(content, str) else tuple(content)) for role, content in turns
    )


def _maybe_moment(value: int | None) -> datetime | None:
    return None if value is None else moment(value)


def _maybe_micros(value: datetime | None) -> int | None:
    return None if value is None else micros(value)


def _maybe_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def run_row(sequence: int, run: Run) -> dict[str, Any]:
    """Give a run's columns."""
    return {
        "job": sequence,
        "number": run.number,
        "state": run.state.value,
        "outcome": None if run.outcome is None else to_json(_flat(run.outcome)),
        "started_at": _maybe_micros(run.started_at),
        "finished_at": _maybe_micros(run.finished_at),
        "exit_code": run.exit_code,
        "node": run.node,
        "supervisor": run.supervisor,
        "supervisor_started": run.supervisor_started,
    }


def run_of(row: RowMapping) -> Run:
    """Give the run of a row."""
    return Run(
        number=row["number"],
        state=State(row["state"]),
        outcome=None if row["outcome"] is None else Verdict(**json.loads(row["outcome"])),
        started_at=_maybe_moment(row["started_at"]),
        finished_at=_maybe_moment(row["finished_at"]),
        exit_code=row["exit_code"],
        node=row["node"],
        supervisor=row["supervisor"],
        supervisor_started=row["supervisor_started"],
    )


def numbered(job_id: str, last: int, drafts: Sequence[Draft]) -> list[Event]:
    """Number drafts from `last + 1` on."""
    return [
        Event(seq, job_id, draft.run, draft.at, draft.body.type, data_of(draft.body))
        for seq, draft in enumerate(drafts, last + 1)
    ]


def event_row(sequence: int, event: Event) -> dict[str, Any]:
    """Give an event's columns."""
    return {
        "job": sequence,
        "seq": event.seq,
        "run": event.run,
        "at": micros(event.at),
        "type": event.type,
        "data": to_json(event.data),
    }


def event_of(job_id: str, row: RowMapping) -> Event:
    """Give the event of a row."""
    return Event(row["seq"], job_id, row["run"], moment(row["at"]), row["type"], json.loads(row["data"]))


def key_row(key: ApiKey) -> dict[str, Any]:
    """Give a key's columns."""
    return {
        "id": key.id,
        "name": key.name,
        "digest": key.digest,
        "scopes": to_json(sorted(key.scopes)),
        "created_at": micros(key.created_at),
        "limits": to_json(asdict(key.limits)),
        "revoked_at": _maybe_micros(key.revoked_at),
        "former_digest": key.former_digest,
        "former_until": _maybe_micros(key.former_until),
    }


def key_of(row: RowMapping) -> ApiKey:
    """Give the key of a row."""
    scopes = cast("list[Scope]", json.loads(row["scopes"]))
    return ApiKey(
        row["id"],
        row["name"],
        row["digest"],
        frozenset(scopes),
        moment(row["created_at"]),
        _limits(row["limits"]),
        _maybe_moment(row["revoked_at"]),
        row["former_digest"],
        _maybe_moment(row["former_until"]),
    )


def _limits(text: str | None) -> KeyLimits:
    if text is None:
        return NO_LIMITS
    values: dict[str, Any] = json.loads(text)
    named: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return KeyLimits(**named)


def call_row(call: Call) -> dict[str, Any]:
    """Give a call's columns."""
    row = {name: getattr(call, name) for name in _OF_CALL}
    flags = {name: int(getattr(call, name)) for name in ("settled", "priced", "complete")}
    return {**row, **flags, **asdict(call.tokens), "at": micros(call.at), "day": micros(call.at) // DAY}


def call_of(row: RowMapping) -> Call:
    """Give the call of a row."""
    tokens = Tokens(**{each.name: row[each.name] for each in fields(Tokens)})
    flags: dict[str, Any] = {name: bool(row[name]) for name in ("settled", "priced", "complete")}
    return Call(**{name: row[name] for name in _OF_CALL}, **flags, tokens=tokens, at=moment(row["at"]))


def output_row(sequence: int, run: int, output: RunOutput) -> dict[str, Any]:
    """Give an output's columns."""
    return {
        "job": sequence,
        "run": run,
        "output": to_json(list(output.output)),
        "stderr": to_json(output.stderr),
    }


def output_of(row: RowMapping) -> RunOutput:
    """Give the output of a row."""
    return RunOutput(tuple(json.loads(row["output"])), json.loads(row["stderr"]))


def metadata_says(text: str | None, wanted: Mapping[str, str]) -> bool:
    """Whether metadata has each wanted name with that text: a string itself, else a number's, true's or null's JSON."""
    found = _maybe_json(text)
    if not isinstance(found, dict):
        return not wanted
    return all(name in found and _text_of(found[name]) == value for name, value in wanted.items())


def _text_of(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None if isinstance(value, dict | list) else to_json(value)
