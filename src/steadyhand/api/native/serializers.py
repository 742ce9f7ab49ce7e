"""Domain objects as the JSON of docs/http-api.md. Every key is always there."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, get_args
from urllib.parse import urlsplit, urlunsplit

from steadyhand.agents import Limits, Workspace
from steadyhand.control import Offer
from steadyhand.events import Event, Live, data_of, rfc3339
from steadyhand.job import MICROS, Changes, Cost, Fault, Job, Run, Usage, Verdict
from steadyhand.ports import ApiKey, Scope, UsageRow

LEFT_OUT_OF_LISTS = ("prompt", "answer", "structured_output", "runs")


def dollars(micros: int) -> str:
    """Give an amount as a decimal string in dollars."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole}.{rest:06d}"


def moment(at: datetime | None) -> str | None:
    """Give a time as RFC 3339 in UTC, with a Z."""
    return None if at is None else rfc3339(at)


def number(seconds: float) -> float:
    """Give a duration as a whole number where it is one."""
    return int(seconds) if seconds == int(seconds) else seconds


def public_address(address: str | None) -> str | None:
    """Give a repository's address without what may be a secret in it: user, password, query."""
    if address is None or "://" not in address:
        return address
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def job_json(job: Job, position: int | None) -> dict[str, Any]:
    """Give a job with all its keys; `position` is its place in the queue."""
    path = f"/v1/jobs/{job.id}"
    return {
        "object": "job",
        "id": job.id,
        "state": job.state.value,
        "outcome": _verdict(job.outcome),
        "title": job.title,
        "prompt": job.prompt,
        "agent": job.agent,
        "runner": job.runner,
        "model": job.model,
        "workspace": public_address(job.workspace),
        "ref": job.ref,
        "commit": job.commit,
        "priority": job.priority,
        "metadata": {} if job.metadata is None else job.metadata,
        "api_key_id": job.api_key_id,
        "origin": job.origin,
        "session_id": job.session_id,
        "parent_job_id": job.parent_job_id,
        "budget_usd": dollars(job.budget_micros),
        "timeout_seconds": number(job.timeout_seconds),
        "idle_timeout_seconds": number(job.idle_timeout_seconds),
        "on_interrupt": job.on_interrupt,
        "publish": job.publish,
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
        "parked_until": moment(job.parked_until),
        "queue_position": position,
        "run": job.run,
        "runs": [_run(run) for run in job.runs],
        "answer": job.answer,
        "structured_output": job.structured_output,
        "usage": _usage(job.usage),
        "cost": _cost(job.cost),
        "changes": _changes(job.changes),
        "warnings": [{"code": notice.code, "message": notice.message} for notice in job.warnings],
        "error": _fault(job.error),
        "last_event": job.last_event,
        "links": {
            "self": path,
            "events": f"{path}/events",
            "diff": f"{path}/diff",
            "transcript": f"{path}/transcript",
            "bundle": f"{path}/bundle",
        },
    }


def item_json(job: Job, position: int | None) -> dict[str, Any]:
    """Give a job as it stands in a list: without what may be long."""
    whole = job_json(job, position)
    for name in LEFT_OUT_OF_LISTS:
        del whole[name]
    return whole


def list_json(data: Sequence[Any], next_cursor: str | None = None) -> dict[str, Any]:
    """Give a list; there is more when there is a cursor."""
    return {"object": "list", "data": data, "has_more": next_cursor is not None, "next_cursor": next_cursor}


def event_json(item: Event | Live) -> dict[str, Any]:
    """Give an event; live text has `seq` null."""
    if isinstance(item, Live):
        seq, kind, data = None, item.body.type, data_of(item.body)
    else:
        seq, kind, data = item.seq, item.type, dict(item.data)
    return {
        "object": "event",
        "seq": seq,
        "job_id": item.job_id,
        "run": item.run,
        "type": kind,
        "at": moment(item.at),
        "data": data,
    }


def agent_json(offer: Offer, limits: Limits) -> dict[str, Any]:
    """Give an agent that can be asked for, with what its jobs get and the most they may ask for."""
    agent = offer.agent
    most = limits.max_budget_micros
    longest = limits.max_timeout_seconds
    return {
        "object": "agent",
        "name": agent.name,
        "description": agent.description,
        "runner": agent.runner,
        "model": agent.model,
        "workspace": public_address(offer.workspace),
        "budget_usd": dollars(offer.budget_micros),
        "timeout_seconds": number(offer.timeout_seconds),
        "idle_timeout_seconds": number(offer.idle_timeout_seconds),
        "max_turns": agent.max_turns,
        "effort": agent.effort,
        "tools": None if agent.tools is None else list(agent.tools),
        "limits": {
            "max_budget_usd": None if most is None else dollars(most),
            "max_timeout_seconds": None if longest is None else number(longest),
        },
    }


def key_json(key: ApiKey, *, fixed: bool, secret: str | None = None) -> dict[str, Any]:
    """Give a key; its secret stands in the one answer that tells it."""
    limits = key.limits
    shown: dict[str, Any] = {
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "origin": "environment" if fixed else "service",
        "scopes": [scope for scope in get_args(Scope) if scope in key.scopes],
        "limits": {
            "agents": None if limits.agents is None else list(limits.agents),
            "workspaces": None
            if limits.workspaces is None
            else [public_address(name) for name in limits.workspaces],
            "requests_per_minute": limits.per_minute,
            "running_jobs": limits.running,
            "queued_jobs": limits.queued,
            "budget_usd_per_day": None if limits.day_micros is None else dollars(limits.day_micros),
            "budget_usd_per_month": None if limits.month_micros is None else dollars(limits.month_micros),
        },
        "created_at": moment(key.created_at),
        "revoked_at": moment(key.revoked_at),
        "former_secret_until": moment(key.former_until),
    }
    return shown if secret is None else {**shown, "secret": secret}


def usage_json(row: UsageRow) -> dict[str, Any]:
    """Give one group of what was spent; what it is not grouped by is null."""
    spent, tokens = row.spent, row.spent.tokens
    return {
        "object": "usage",
        "api_key_id": row.of.get("api_key"),
        "agent": row.of.get("agent"),
        "model": row.of.get("model"),
        "provider": row.of.get("provider"),
        "day": row.of.get("day"),
        "calls": spent.calls,
        "usage": {
            "input_tokens": tokens.input,
            "output_tokens": tokens.output,
            "cache_read_input_tokens": tokens.cache_read,
            "cache_creation_input_tokens": tokens.cache_write_5m + tokens.cache_write_1h,
        },
        "cost": {"usd": dollars(spent.micros), "priced": spent.priced, "complete": spent.complete},
    }


def workspace_json(workspace: Workspace) -> dict[str, Any]:
    """Give a workspace; the address of its repository carries no credential."""
    return {
        "object": "workspace",
        "name": workspace.name,
        "repository": public_address(workspace.repository),
        "ref": workspace.ref,
        "mode": workspace.mode,
        "trust": workspace.trust,
    }


def _verdict(verdict: Verdict | None) -> Mapping[str, Any] | None:
    return None if verdict is None else {"type": verdict.type, "detail": verdict.detail}


def _run(run: Run) -> Mapping[str, Any]:
    return {
        "number": run.number,
        "state": run.state.value,
        "outcome": _verdict(run.outcome),
        "started_at": moment(run.started_at),
        "finished_at": moment(run.finished_at),
        "exit_code": run.exit_code,
        "node": run.node,
    }


def _usage(usage: Usage) -> Mapping[str, int]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "turns": usage.turns,
    }


def _cost(cost: Cost) -> Mapping[str, Any]:
    reported = cost.reported_micros
    return {
        "usd": dollars(cost.micros),
        "source": cost.source,
        "priced": cost.priced,
        "reported_usd": None if reported is None else dollars(reported),
    }


def _changes(changes: Changes | None) -> Mapping[str, Any] | None:
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
    }


def _fault(fault: Fault | None) -> Mapping[str, Any] | None:
    if fault is None:
        return None
    return {"code": fault.code, "message": fault.message, "retryable": fault.retryable}
