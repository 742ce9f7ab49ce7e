"""The lists of jobs: those that need a look, and all, by filters that live in the URL."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from steadyhand.api.native.nodes import queue_reasons
from steadyhand.clock import utc_now
from steadyhand.errors import InvalidRequest
from steadyhand.job import Job, State
from steadyhand.ports import JobFilter
from steadyhand.web.list_filter import ListFilter
from steadyhand.web.saved_page import list_prompts, list_views
from steadyhand.web.web_app import Visit

PAGE_SIZE = 50
_START_SIZE = 30
_DONE_SIZE = 10
_ACTIVE = frozenset({State.RUNNING, State.QUEUED, State.PARKED, State.WAITING})
_FAILED = frozenset({State.FAILED, State.TIMEOUT, State.INTERRUPTED, State.ERROR})
_RECENT = timedelta(days=2)


async def start_page(visit: Visit) -> Response:
    """Show the jobs that are under way, those that need somebody, and those that ended well."""
    caller, control = visit.caller, visit.control
    change_number = control.change_number()
    recent = utc_now() - _RECENT
    prompts = await list_prompts(visit)
    active = await control.list_jobs(caller, JobFilter(states=_ACTIVE), PAGE_SIZE, None)
    failed = await control.list_jobs(
        caller, JobFilter(states=_FAILED, created_after=recent), _START_SIZE, None
    )
    done = await control.list_jobs(caller, JobFilter(states=frozenset({State.COMPLETED})), _DONE_SIZE, None)
    return visit.page(
        "start.html",
        active=await _rows(visit, active.jobs),
        failed=await _rows(visit, failed.jobs),
        done=await _rows(visit, done.jobs),
        load=control.load(),
        names=_names(visit),
        prompts=prompts,
        composed=prompts.get(visit.request.query_params.get("saved", ""), {}),
        once=secrets.token_urlsafe(12),
        change_number=change_number,
    )


async def jobs_page(visit: Visit) -> Response:
    """Show a page of the jobs that the filters of the URL match."""
    caller = visit.caller
    params = visit.request.query_params
    change_number = visit.control.change_number()
    list_filter = ListFilter.from_pairs(params.multi_items())
    error, jobs, next_cursor = None, [], None
    try:
        page = await visit.control.list_jobs(
            caller, list_filter.job_filter(), PAGE_SIZE, params.get("cursor") or None
        )
        jobs, next_cursor = list(page.jobs), page.next_cursor
    except InvalidRequest as problem:
        error = problem.detail
    next_pairs = [*list_filter.pairs, ("cursor", next_cursor or "")]
    return visit.page(
        "jobs.html",
        rows=await _rows(visit, jobs),
        states=list(State),
        list_filter=list_filter,
        filters=list_filter.texts,
        views=await list_views(visit),
        error=error,
        next_query=None if next_cursor is None else urlencode(next_pairs),
        is_first="cursor" not in params,
        change_number=change_number,
        here=f"/ui/jobs?{visit.request.url.query}",
        names=_names(visit),
        may_cancel=caller.has_scope("cancel"),
        may_run=caller.has_scope("submit"),
    )


def _names(visit: Visit) -> Mapping[str, Sequence[str]]:
    """Return the names that the filters propose."""
    catalog, limits = visit.control.catalog, visit.key.limits
    agents = limits.agents or tuple(catalog.agents)
    workspaces = limits.workspaces or tuple(catalog.workspaces)
    return {"agents": sorted(agents), "workspaces": sorted(workspaces)}


def key_names(visit: Visit) -> Mapping[str, str]:
    """Return the names of keys by their id: of all for an admin, else of the session's own."""
    if visit.caller.has_scope("admin"):
        return {key.id: key.name for key in visit.context.keyring.list_keys()}
    return {visit.key.id: visit.key.name}


async def _rows(visit: Visit, jobs: Sequence[Job]) -> Sequence[Mapping[str, Any]]:
    names, reasons = key_names(visit), await queue_reasons(visit.context, jobs)
    return [
        {
            "job": job,
            "position": visit.control.position(job),
            "queue_reason": reasons.get(job.id),
            "key_name": names.get(job.api_key_id, job.api_key_id),
        }
        for job in jobs
    ]
