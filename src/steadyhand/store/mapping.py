"""Conversion of jobs, runs, events, keys and calls to rows and back, without loss.

Times are returned in UTC with microseconds. JSON is written in ASCII.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import RowMapping

from steadyhand.events import Event, EventDraft, event_data
from steadyhand.job import (
    Changes,
    ClientTool,
    Cost,
    ErrorInfo,
    Job,
    JobCallback,
    JobSpec,
    JobWarning,
    Outcome,
    RefChange,
    Run,
    SlashCommand,
    State,
    Turn,
    UncommittedChanges,
    Usage,
)
from steadyhand.ports import (
    NO_LIMITS,
    ApiKey,
    KeyLimits,
    ModelCall,
    RunOutput,
    Scope,
    TokenCounts,
)
from steadyhand.store.ledger_workspace import ledger_workspace

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_RECORD_FIELDS = (
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
"""Fields of a job and of its `spec` that `record` holds unchanged under their own names, in this order."""

_SPEC_FIELDS = frozenset(
    {
        "origin",
        "model",
        "priority",
        "title",
        "output_schema",
        "expires_in_seconds",
        "max_turns",
        "effort",
        "append_system_prompt",
    }
)
"""The fields in `record` that belong to the job's `spec`."""
_PLACEMENT_FIELDS = ("labels", "not_on_nodes")
"""Fields of the job's `spec` that `record` holds as lists if they have items."""
_JOB_FIELDS = (
    *(name for name in _RECORD_FIELDS if name not in _SPEC_FIELDS),
    "undelivered_results",
    "traceparent",
    "requeues",
)

_TIME_FIELDS = ("queued_at", "started_at", "parked_until")
_RECORD_OBJECTS = {"usage": Usage, "cost": Cost, "outcome": Outcome, "changes": Changes, "error": ErrorInfo}
_OBJECT_FIELDS = {
    kind: tuple(each.name for each in fields(kind))
    for kind in (Usage, Cost, Outcome, Changes, ErrorInfo, JobWarning)
}
_STORED_IF_SET = frozenset({"model_status", "is_permanent", "node_died", "refs", "refs_omitted"})
"""Later fields of these objects: a release that does not know them reads every row that has no use for them."""

_LATER_KEY_LIMITS = frozenset({"max_budget_micros", "max_timeout_seconds", "models"})
"""Limits of a key that earlier versions do not know; they are stored only if they are set."""

_CALL_FIELDS = (
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
    "workspace",
)
"""Fields of a call that its row holds unchanged."""

MICROSECONDS_PER_DAY = 86_400_000_000
"""Microseconds in a day."""

_TAG_BYTES = 8

BRIEF_PROMPT_LENGTH = 200
"""The number of characters of its prompt that a listed job has."""


def to_microseconds(moment: datetime) -> int:
    """Return microseconds since 1970 in UTC. Raise `ValueError` if the time has no zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be stored")
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the time in UTC."""
    return _EPOCH + timedelta(microseconds=value)


to_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode
"""Return compact ASCII JSON."""


def job_row(job: Job) -> dict[str, Any]:
    """Return a job's columns, without `sequence`."""
    return {
        "id": job.id,
        "state": job.state.value,
        "api_key_id": job.api_key_id,
        "agent": job.agent,
        "workspace": job.workspace,
        "created_at": to_microseconds(job.created_at),
        "finished_at": None if job.finished_at is None else to_microseconds(job.finished_at),
        "metadata": None if job.spec.metadata is None else to_json(job.spec.metadata),
        "session_id": job.session_id,
        "session_name": job.spec.session_name,
        "conversation": job.conversation,
        "record": to_json(_job_record(job)),
        "structured_output": None if job.structured_output is None else to_json(job.structured_output),
        "history": _encode_request(job.spec),
        "answer": None if job.answer is None else to_json(job.answer),
        "prompt": job.spec.prompt,
    }


def _job_record(job: Job) -> dict[str, Any]:
    spec = job.spec
    record: dict[str, Any] = {
        name: getattr(spec if name in _SPEC_FIELDS else job, name) for name in _RECORD_FIELDS
    }
    for name in _TIME_FIELDS:
        value = getattr(job, name)
        record[name] = None if value is None else to_microseconds(value)
    for name in _RECORD_OBJECTS:
        record[name] = _object_fields(getattr(job, name))
    if job.undelivered_results is not None:
        record["undelivered_results"] = job.undelivered_results
    if job.traceparent is not None:
        record["traceparent"] = job.traceparent
    if job.requeues:
        record["requeues"] = job.requeues
    if spec.callback is not None:
        record["callback"] = [spec.callback.url, spec.callback.events, spec.callback.body]
    for name in _PLACEMENT_FIELDS:
        if getattr(spec, name):
            record[name] = getattr(spec, name)
    record["warnings"] = [_object_fields(notice) for notice in job.warnings]
    return record


def _object_fields(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    values = {name: getattr(value, name) for name in _OBJECT_FIELDS[type(value)]}
    if isinstance(value, Changes):
        values["refs"] = [asdict(each) for each in value.refs] or None
        values["refs_omitted"] = value.refs_omitted or None
    return {name: each for name, each in values.items() if each is not None or name not in _STORED_IF_SET}


def _changes_of(refs: Sequence[Mapping[str, Any]] = (), **values: Any) -> Changes:
    return Changes(refs=tuple(RefChange(**each) for each in refs), **values)


_RECORD_MAKERS: Mapping[str, Callable[..., Any]] = {**_RECORD_OBJECTS, "changes": _changes_of}


def job_from_row(row: RowMapping | Mapping[str, Any], runs: Sequence[Run]) -> Job:
    """Return the job of a row with `last_event`; a listed row lacks `structured_output`, `history` and `answer`."""
    record = json.loads(row["record"])
    # Rows of an earlier version lack the fields of a later one.
    spec_values: dict[str, Any] = {name: record[name] for name in _SPEC_FIELDS if name in record}
    values: dict[str, Any] = {name: record[name] for name in _JOB_FIELDS if name in record}
    values.update({name: _time_or_none(record[name]) for name in _TIME_FIELDS})
    values.update(
        {name: make(**record[name]) for name, make in _RECORD_MAKERS.items() if record[name] is not None}
    )
    return Job(
        id=row["id"],
        spec=JobSpec(
            prompt=row["prompt"],
            metadata=_json_or_none(row["metadata"]),
            session_name=row["session_name"],
            callback=_decode_callback(record.get("callback")),
            labels=tuple(record.get("labels", ())),
            not_on_nodes=tuple(record.get("not_on_nodes", ())),
            **_decode_request(row.get("history")),
            **spec_values,
        ),
        agent=row["agent"],
        api_key_id=row["api_key_id"],
        created_at=from_microseconds(row["created_at"]),
        state=State(row["state"]),
        workspace=row["workspace"],
        session_id=row["session_id"],
        conversation=row["conversation"],
        finished_at=_time_or_none(row["finished_at"]),
        structured_output=_json_or_none(row.get("structured_output")),
        answer=_json_or_none(row.get("answer")),
        warnings=tuple(JobWarning(**each) for each in record["warnings"]),
        runs=tuple(runs),
        last_event=row["last_event"],
        sequence=row["sequence"],
        **values,
    )


def _decode_callback(stored: Sequence[Any] | None) -> JobCallback | None:
    return None if stored is None else JobCallback(stored[0], tuple(stored[1]), stored[2])


def _encode_request(spec: JobSpec) -> str | None:
    """Return the request beside the prompt as JSON: the turns alone, or an object if other fields are set."""
    turns = [[turn.role, turn.content] for turn in spec.history]
    is_object = spec.content or spec.tools or spec.one_call or spec.command or spec.uncommitted
    if is_object or spec.request is not None:
        tools = [[tool.name, tool.description, tool.parameters] for tool in spec.tools]
        request: dict[str, Any] = {
            "turns": turns,
            "content": spec.content,
            "request": spec.request,
            "tools": tools,
        }
        if spec.one_call:
            request["one_call"] = True
        if spec.command is not None:
            request["command"] = [spec.command.name, spec.command.arguments]
        if spec.uncommitted is not None:
            request["uncommitted"] = [
                spec.uncommitted.base,
                spec.uncommitted.commit,
                spec.uncommitted.pack,
            ]
        return to_json(request)
    return to_json(turns) if turns else None


def _decode_request(text: str | None) -> dict[str, Any]:
    stored = [] if text is None else json.loads(text)
    if isinstance(stored, list):
        return {"history": _decode_history(stored)}
    return {
        "history": _decode_history(stored["turns"]),
        "content": tuple(stored["content"]),
        "request": stored["request"],
        "tools": tuple(ClientTool(*each) for each in stored.get("tools", ())),
        "one_call": stored.get("one_call", False),
        "command": SlashCommand(*stored["command"]) if "command" in stored else None,
        "uncommitted": UncommittedChanges(*stored["uncommitted"]) if "uncommitted" in stored else None,
    }


def _decode_history(turns: Sequence[Any]) -> tuple[Turn, ...]:
    return tuple(
        Turn(role, content if isinstance(content, str) else tuple(content)) for role, content in turns
    )


def _time_or_none(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)


def _microseconds_or_none(value: datetime | None) -> int | None:
    return None if value is None else to_microseconds(value)


def _json_or_none(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def run_row(sequence: int, run: Run) -> dict[str, Any]:
    """Return a run's columns."""
    return {
        "job": sequence,
        "number": run.number,
        "state": run.state.value,
        "outcome": None if run.outcome is None else to_json(_object_fields(run.outcome)),
        "started_at": _microseconds_or_none(run.started_at),
        "finished_at": _microseconds_or_none(run.finished_at),
        "exit_code": run.exit_code,
        "node": run.node,
        "supervisor": run.supervisor,
        "supervisor_started": run.supervisor_started,
    }


def run_from_row(row: RowMapping | Mapping[str, Any]) -> Run:
    """Return the run of a row."""
    return Run(
        number=row["number"],
        state=State(row["state"]),
        outcome=None if row["outcome"] is None else Outcome(**json.loads(row["outcome"])),
        started_at=_time_or_none(row["started_at"]),
        finished_at=_time_or_none(row["finished_at"]),
        exit_code=row["exit_code"],
        node=row["node"],
        supervisor=row["supervisor"],
        supervisor_started=row["supervisor_started"],
    )


def number_events(job_id: str, last: int, drafts: Sequence[EventDraft]) -> list[Event]:
    """Return events with numbers from `last + 1` on."""
    return [
        Event(seq, job_id, draft.run, draft.at, draft.body.type, event_data(draft.body))
        for seq, draft in enumerate(drafts, last + 1)
    ]


def event_row(sequence: int, event: Event) -> dict[str, Any]:
    """Return an event's columns."""
    return {
        "job": sequence,
        "seq": event.seq,
        "run": event.run,
        "at": to_microseconds(event.at),
        "type": event.type,
        "data": to_json(event.data),
    }


def event_from_row(job_id: str, row: RowMapping) -> Event:
    """Return the event of a row."""
    return Event(
        row["seq"], job_id, row["run"], from_microseconds(row["at"]), row["type"], json.loads(row["data"])
    )


def key_row(key: ApiKey) -> dict[str, Any]:
    """Return a key's columns."""
    return {
        "id": key.id,
        "name": key.name,
        "digest": key.digest,
        "scopes": to_json(sorted(key.scopes)),
        "created_at": to_microseconds(key.created_at),
        "limits": to_json(_limits_document(key.limits)),
        "revoked_at": _microseconds_or_none(key.revoked_at),
        "former_digest": key.previous_digest,
        "former_until": _microseconds_or_none(key.previous_valid_until),
    }


def key_from_row(row: RowMapping) -> ApiKey:
    """Return the key of a row."""
    scopes = cast("list[Scope]", json.loads(row["scopes"]))
    return ApiKey(
        row["id"],
        row["name"],
        row["digest"],
        frozenset(scopes),
        from_microseconds(row["created_at"]),
        _decode_limits(row["limits"]),
        _time_or_none(row["revoked_at"]),
        row["former_digest"],
        _time_or_none(row["former_until"]),
    )


def _limits_document(limits: KeyLimits) -> dict[str, Any]:
    """Return the limits of a key as they are stored. An earlier version reads them if no later limit is set."""
    return {
        name: value
        for name, value in asdict(limits).items()
        if value is not None or name not in _LATER_KEY_LIMITS
    }


def _decode_limits(text: str | None) -> KeyLimits:
    if text is None:
        return NO_LIMITS
    values: dict[str, Any] = json.loads(text)
    limits: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return KeyLimits(**limits)


def call_row(call: ModelCall) -> dict[str, Any]:
    """Return a call's columns."""
    row = {name: getattr(call, name) for name in _CALL_FIELDS}
    flags = {name: int(getattr(call, name)) for name in ("settled", "priced", "complete")}
    return {
        **row,
        **flags,
        **asdict(call.tokens),
        "workspace": ledger_workspace(call.workspace),
        "at": to_microseconds(call.at),
        "day": to_microseconds(call.at) // MICROSECONDS_PER_DAY,
    }


def call_from_row(row: RowMapping) -> ModelCall:
    """Return the call of a row."""
    values: dict[str, Any] = {name: row[name] for name in _CALL_FIELDS}
    values |= {name: bool(row[name]) for name in ("settled", "priced", "complete")}
    tokens = TokenCounts(**{field.name: row[field.name] for field in fields(TokenCounts)})
    return ModelCall(**values, tokens=tokens, at=from_microseconds(row["at"]))


def output_row(sequence: int, run: int, output: RunOutput) -> dict[str, Any]:
    """Return an output's columns."""
    return {
        "job": sequence,
        "run": run,
        "output": to_json(list(output.output)),
        "stderr": to_json(output.stderr),
    }


def output_from_row(row: RowMapping) -> RunOutput:
    """Return the output of a row."""
    return RunOutput(tuple(json.loads(row["output"])), json.loads(row["stderr"]))


def metadata_tags(text: str | None) -> list[int]:
    """Return the tag of each name in a job's metadata whose value a filter can name."""
    metadata = _json_or_none(text)
    if not isinstance(metadata, dict):
        return []
    texts = ((name, _as_text(value)) for name, value in metadata.items())
    return sorted({metadata_tag(name, value) for name, value in texts if value is not None})


def metadata_tag(name: str, value: str) -> int:
    """Return a number for a name and a value. Others may have the same one, so `metadata_matches` decides."""
    # With the length of the name, so that no other pair has the same text.
    data = f"{len(name)} {name}{value}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=_TAG_BYTES).digest(), "big", signed=True)


def metadata_matches(text: str | None, expected: Mapping[str, str]) -> bool:
    """Return true if metadata has each expected name and text: a string itself, else the JSON of the value."""
    metadata = _json_or_none(text)
    if not isinstance(metadata, dict):
        return not expected
    return all(name in metadata and _as_text(metadata[name]) == value for name, value in expected.items())


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return None if isinstance(value, dict | list) else to_json(value)
