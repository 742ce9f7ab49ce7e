"""Build the response bodies of docs/http-api.md from objects of the core. Every key is always there."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast, get_args

from steadyhand.addresses import redact_url, url_origin
from steadyhand.agents import Workspace
from steadyhand.api.schemas import bulk_bodies, native_bodies, warm_bodies
from steadyhand.api.transport.errors import STORE_RETRY_AFTER_SECONDS
from steadyhand.control import AvailableAgent, BulkItem, BulkResult
from steadyhand.errors import RetryLater
from steadyhand.events import Event, LiveProgress, LiveText, event_data, format_rfc3339
from steadyhand.job import Changes, Cost, ErrorInfo, Job, Outcome, RefChange, Run, Usage
from steadyhand.money import format_dollars
from steadyhand.ports import ApiKey, Delivery, EndpointInfo, KeyLimits, QueueLoad, Scope, UsageRow

T = TypeVar("T")
_PROMPT_START_LENGTH = 80


def usd_or_none(micros: int | None) -> str | None:
    return None if micros is None else format_dollars(micros)


def time_or_none(time: datetime | None) -> str | None:
    return None if time is None else format_rfc3339(time)


def compact_number(seconds: float) -> float:
    """Return a duration as an integer if it is one."""
    return int(seconds) if seconds == int(seconds) else seconds


def seconds_or_none(seconds: float | None) -> float | None:
    return None if seconds is None else compact_number(seconds)


def health_json(load: QueueLoad, warm: Mapping[str, Any] | None = None) -> native_bodies.Health:
    """Return how full the service is, with the processes that wait for jobs, if any agent has them."""
    health: native_bodies.Health = {
        "status": "ok",
        "busy": load.busy,
        "active": load.active,
        "queued": load.queued,
        "capacity": load.capacity,
    }
    if warm is not None:
        health["warm"] = cast("warm_bodies.WarmProcesses", warm)  # the same keys
    return health


def job_json(job: Job, position: int | None) -> native_bodies.Job:
    """Return a job with all its keys; `position` is its place in the queue."""
    path, callback = f"/v1/jobs/{job.id}", job.spec.callback
    body: native_bodies.Job = {
        "object": "job",
        "id": job.id,
        "state": job.state.value,
        "outcome": _outcome_json(job.outcome),
        "title": job.spec.title,
        "prompt_start": _first_line(job.spec.prompt),
        "prompt": job.spec.prompt,
        "agent": job.agent,
        "runner": job.runner,
        "model": job.spec.model,
        "workspace": redact_url(job.workspace),
        "ref": job.ref,
        "commit": job.commit,
        "priority": job.spec.priority,
        "metadata": {} if job.spec.metadata is None else job.spec.metadata,
        "api_key_id": job.api_key_id,
        "origin": job.spec.origin,
        "session_id": job.session_id,
        "parent_job_id": job.parent_job_id,
        "budget_usd": format_dollars(job.budget_micros),
        "timeout_seconds": compact_number(job.timeout_seconds),
        "idle_timeout_seconds": compact_number(job.idle_timeout_seconds),
        "on_interrupt": job.on_interrupt,
        "will_run_again": job.will_run_again,
        "publish": job.publish,
        "created_at": format_rfc3339(job.created_at),
        "started_at": time_or_none(job.started_at),
        "finished_at": time_or_none(job.finished_at),
        "parked_until": time_or_none(job.parked_until),
        "queue_position": position,
        "run": job.run,
        "runs": [_run_json(run) for run in job.runs],
        "answer": job.answer,
        "structured_output": job.structured_output,
        "usage": _usage_totals_json(job.usage),
        "cost": _cost_json(job.cost),
        "changes": _changes_json(job.changes),
        "warnings": [{"code": warning.code, "message": warning.message} for warning in job.warnings],
        "error": _error_json(job.error),
        "last_event": job.last_event,
        "links": {
            "self": path,
            "events": f"{path}/events",
            "diff": f"{path}/diff",
            "transcript": f"{path}/transcript",
            "bundle": f"{path}/bundle",
        },
    }
    if callback is not None:
        receiver = url_origin(callback.url)
        body["callback"] = {"receiver": receiver, "events": list(callback.events), "body": callback.body}
    if job.spec.labels:
        body["labels"] = list(job.spec.labels)
    if job.spec.not_on_nodes:
        body["not_on_nodes"] = list(job.spec.not_on_nodes)
    return body


def delivery_json(delivery: Delivery) -> native_bodies.CallbackDelivery:
    """Return a delivery without its body."""
    is_pending = delivery.state == "pending"
    return {
        "object": "callback_delivery",
        "id": delivery.id,
        "type": delivery.type,
        "job_id": delivery.job_id,
        "schedule": delivery.schedule,
        "endpoint": delivery.endpoint,
        "receiver": None if delivery.url is None else url_origin(delivery.url),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "error": delivery.error,
        "created_at": format_rfc3339(delivery.created_at),
        "attempted_at": time_or_none(delivery.attempted_at),
        "due_at": format_rfc3339(delivery.due_at) if is_pending else None,
        "expires_at": format_rfc3339(delivery.expires_at),
    }


def endpoint_json(endpoint: EndpointInfo) -> native_bodies.CallbackEndpoint:
    """Return an endpoint of callbacks without its secret."""
    return {
        "object": "callback_endpoint",
        "name": endpoint.name,
        "receiver": endpoint.receiver,
        "events": list(endpoint.events),
        "agents": list(endpoint.agents),
        "body": endpoint.body,
        "origin": endpoint.origin,
        "created_at": time_or_none(endpoint.created_at),
    }


def delivery_with_body_json(delivery: Delivery) -> native_bodies.CallbackDeliveryWithBody:
    """Return a delivery with the text that is sent."""
    return {**delivery_json(delivery), "body": delivery.body}


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return line if len(line) <= _PROMPT_START_LENGTH else line[: _PROMPT_START_LENGTH - 1].rstrip() + "…"


def job_item_json(job: Job, position: int | None) -> native_bodies.JobItem:
    """Return a job as an item of a list: without the fields that may be long."""
    item: native_bodies.JobItem = job_json(job, position)
    for name in native_bodies.LIST_OMITTED_FIELDS:
        del cast("dict[str, Any]", item)[name]
    return item


def list_json(data: list[T], next_cursor: str | None = None) -> native_bodies.Page[T]:
    """Return a page of a list; there is more if there is a cursor."""
    return {"object": "list", "data": data, "has_more": next_cursor is not None, "next_cursor": next_cursor}


def bulk_json(result: BulkResult, redact: Callable[[str], str]) -> bulk_bodies.BulkResult:
    """Return what became of the jobs of a filter. `redact` is applied to the texts of errors."""
    failed = sum(1 for item in result.items if item.error is not None)
    stop = result.stopped_by
    return {
        "object": "list",
        "data": [_bulk_item_json(item, redact) for item in result.items],
        "has_more": result.has_more,
        "next_cursor": result.next_cursor,
        "dry_run": result.dry_run,
        "as_of": format_rfc3339(result.as_of),
        "matched": result.matched,
        "changed": len(result.items) - failed,
        "failed": failed,
        "stopped": None
        if stop is None
        else {
            "code": stop.code,
            "detail": redact(stop.detail),
            "retry_after": (
                max(1, stop.retry_after) if isinstance(stop, RetryLater) else STORE_RETRY_AFTER_SECONDS
            ),
        },
    }


def _bulk_item_json(item: BulkItem, redact: Callable[[str], str]) -> bulk_bodies.BulkItem:
    job, error = item.job, item.error
    return {
        "object": "bulk_item",
        "id": job.id,
        "state": job.state.value,
        "run": job.run,
        "title": job.spec.title,
        "agent": job.agent,
        "workspace": redact_url(job.workspace),
        "api_key_id": job.api_key_id,
        "error": None if error is None else {"code": error.code, "detail": redact(error.detail)},
    }


def event_json(item: Event | LiveText | LiveProgress) -> native_bodies.Event:
    """Return an event; live text and progress have `seq` null."""
    if isinstance(item, LiveText | LiveProgress):
        seq, kind, data = None, item.body.type, event_data(item.body)
    else:
        seq, kind, data = item.seq, item.type, dict(item.data)
    return {
        "object": "event",
        "seq": seq,
        "job_id": item.job_id,
        "run": item.run,
        "type": kind,
        "at": format_rfc3339(item.at),
        "data": data,
    }


def agent_json(offer: AvailableAgent, warm: Mapping[str, Any] | None = None) -> native_bodies.Agent:
    """Return an agent with the defaults of its jobs and the ceilings for the caller, and its waiting processes."""
    agent = offer.agent
    body: native_bodies.Agent = {
        "object": "agent",
        "name": agent.name,
        "description": agent.description,
        "runner": agent.runner,
        "model": agent.model,
        "workspace": redact_url(offer.workspace),
        "budget_usd": format_dollars(offer.budget_micros),
        "timeout_seconds": compact_number(offer.timeout_seconds),
        "idle_timeout_seconds": compact_number(offer.idle_timeout_seconds),
        "max_turns": agent.max_turns,
        "effort": agent.effort,
        "tools": None if agent.tools is None else list(agent.tools),
        "limits": {
            "max_budget_usd": usd_or_none(offer.max_budget_micros),
            "max_timeout_seconds": seconds_or_none(offer.max_timeout_seconds),
            "models": None if offer.models is None else list(offer.models),
        },
    }
    if warm is not None:
        body["warm"] = cast("warm_bodies.AgentWarmProcesses", warm)  # the same keys
    return body


def key_json(key: ApiKey, *, is_fixed: bool) -> native_bodies.Key:
    """Return a key without its secret; a fixed key is one of the environment."""
    return {
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "origin": "environment" if is_fixed else "service",
        "scopes": [scope for scope in get_args(Scope) if scope in key.scopes],
        "limits": _key_limits_json(key.limits),
        "created_at": format_rfc3339(key.created_at),
        "revoked_at": time_or_none(key.revoked_at),
        "former_secret_until": time_or_none(key.previous_valid_until),
    }


def new_key_json(key: ApiKey, secret: str, *, is_fixed: bool) -> native_bodies.NewKey:
    """Return a key with its new secret, which no other response has."""
    return {**key_json(key, is_fixed=is_fixed), "secret": secret}


def _key_limits_json(limits: KeyLimits) -> native_bodies.KeyLimits:
    workspaces = limits.workspaces
    return {
        "agents": None if limits.agents is None else list(limits.agents),
        "workspaces": None if workspaces is None else [redact_url(name) or "" for name in workspaces],
        "requests_per_minute": limits.per_minute,
        "running_jobs": limits.running,
        "queued_jobs": limits.queued,
        "budget_usd_per_day": usd_or_none(limits.day_micros),
        "budget_usd_per_month": usd_or_none(limits.month_micros),
        "max_budget_usd": usd_or_none(limits.max_budget_micros),
        "max_timeout_seconds": seconds_or_none(limits.max_timeout_seconds),
        "models": None if limits.models is None else list(limits.models),
    }


def readiness_json(rejected_providers: Sequence[str]) -> native_bodies.Alive:
    """Return the readiness of a service that takes work; its detail names providers with a rejected credential."""
    if not rejected_providers:
        return {"status": "ok"}
    code: Final = "credential_rejected"
    names = ", ".join(sorted(rejected_providers))
    detail = f"{code}: The model's service rejects the credential of the provider {names}; its jobs wait."
    return {"status": "ok", "code": code, "detail": detail}


def usage_json(row: UsageRow) -> native_bodies.SpentRow:
    """Return the usage of one group of calls; a field that is not grouped by is None."""
    spent, tokens = row.total, row.total.tokens
    return {
        "object": "usage",
        "api_key_id": row.group.get("api_key"),
        "agent": row.group.get("agent"),
        "model": row.group.get("model"),
        "provider": row.group.get("provider"),
        "workspace": row.group.get("workspace"),
        "day": row.group.get("day"),
        "calls": spent.calls,
        "usage": {
            "input_tokens": tokens.input,
            "output_tokens": tokens.output,
            "cache_read_input_tokens": tokens.cache_read,
            "cache_creation_input_tokens": tokens.cache_write_5m + tokens.cache_write_1h,
        },
        "cost": {"usd": format_dollars(spent.micros), "priced": spent.priced, "complete": spent.complete},
    }


def workspace_json(workspace: Workspace) -> native_bodies.Workspace:
    """Return a workspace; the URL of its repository has no credential."""
    return {
        "object": "workspace",
        "name": workspace.name,
        "repository": redact_url(workspace.repository),
        "ref": workspace.ref,
        "mode": workspace.mode,
        "trust": workspace.trust,
    }


def _outcome_json(outcome: Outcome | None) -> native_bodies.Outcome | None:
    return None if outcome is None else {"type": outcome.type, "detail": outcome.detail}


def _run_json(run: Run) -> native_bodies.Run:
    return {
        "number": run.number,
        "state": run.state.value,
        "outcome": _outcome_json(run.outcome),
        "started_at": time_or_none(run.started_at),
        "finished_at": time_or_none(run.finished_at),
        "exit_code": run.exit_code,
        "node": run.node,
    }


def _usage_totals_json(usage: Usage) -> native_bodies.Usage:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "turns": usage.turns,
    }


def _cost_json(cost: Cost) -> native_bodies.Cost:
    return {
        "usd": format_dollars(cost.micros),
        "source": cost.source,
        "priced": cost.priced,
        "reported_usd": usd_or_none(cost.reported_micros),
    }


def _changes_json(changes: Changes | None) -> native_bodies.Changes | None:
    if changes is None:
        return None
    return {
        "base": changes.base,
        "head": changes.head,
        "files": changes.files,
        "insertions": changes.insertions,
        "deletions": changes.deletions,
        "branch": changes.branch,
        "published": changes.published,
        "refs": [_ref_change_json(each) for each in changes.refs],
        "refs_omitted": changes.refs_omitted,
    }


def _ref_change_json(change: RefChange) -> native_bodies.RefChange:
    return {
        "kind": change.kind,
        "name": change.name,
        "change": change.change,
        "before": change.before,
        "after": change.after,
        "bundle_ref": change.bundle_ref,
    }


def _error_json(error: ErrorInfo | None) -> native_bodies.JobFault | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "retryable": error.retryable}
