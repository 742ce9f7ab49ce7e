"""The page of one job: what its agent does, its figures, its forms and its files."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import FileResponse, Response

from steadyhand.api.native.nodes import queue_reason
from steadyhand.clock import utc_now
from steadyhand.control import Caller
from steadyhand.errors import NotFound
from steadyhand.events import Event
from steadyhand.job import Job, State
from steadyhand.web.job_actions import path_job_id
from steadyhand.web.job_list import key_names
from steadyhand.web.job_overview import overview_values
from steadyhand.web.transcript_items import transcript_items
from steadyhand.web.web_app import Visit

PAGE_EVENTS = 400
"""The events of one page of the transcript; the newest come first."""
PART_EVENTS = 25
"""The events of one part of a page. A browser lays out and paints only the parts in sight."""
MAX_LIVE_EVENTS = 2_000
"""The events that a page which follows its job keeps; for the older ones it has a link."""
_MEDIA_TYPES = {
    "diff": ("text/x-diff; charset=utf-8", "patch"),
    "transcript": ("application/x-ndjson", "jsonl"),
    "bundle": ("application/x-git-bundle", "bundle"),
}


async def show_job(visit: Visit) -> Response:
    """Show the job with the newest part of its transcript, or with the part before the event `before`."""
    caller, job_id = visit.caller, path_job_id(visit)
    job = await visit.control.get(caller, job_id)
    last = job.last_event
    text = visit.request.query_params.get("before", "")
    if text.isascii() and text.isdecimal() and len(text) < 10:  # noqa: PLR2004  # more events than a job has
        last = min(last, int(text) - 1)
    first = max(0, last - PAGE_EVENTS)
    events = await _read_events(visit, caller, job_id, first, last)
    values = {**await _job_values(visit, job), **await overview_values(visit, job_id)}
    return await asyncio.to_thread(  # Markdown of a whole page may take a second
        lambda: visit.page(
            "job.html",
            items=transcript_items(events),
            before=first + 1 if first else None,
            is_newest=last == job.last_event,
            position=last,
            part_events=PART_EVENTS,
            max_parts=MAX_LIVE_EVENTS // PART_EVENTS,
            **values,
        )
    )


async def _read_events(visit: Visit, caller: Caller, job_id: str, first: int, last: int) -> Sequence[Event]:
    events = await visit.control.list_events(caller, job_id, first, max(1, last - first))
    return [event for event in events if event.seq <= last]


async def job_head(visit: Visit) -> Response:
    """Show the part of the page that changes with the job: state, figures and forms."""
    job = await visit.control.get(visit.caller, path_job_id(visit))
    return visit.page("job_head.html", **await _job_values(visit, job))


async def _job_values(visit: Visit, job: Job) -> Mapping[str, Any]:
    caller = visit.caller
    may_run, may_cancel = caller.has_scope("submit"), caller.has_scope("cancel")
    reason = await queue_reason(visit.context, job)
    return {
        "job": job,
        "now": utc_now(),
        "queue_position": visit.control.position(job),
        "queue_reason": None if reason is None else reason["detail"],
        "key_name": key_names(visit).get(job.api_key_id, job.api_key_id),
        "can_cancel": may_cancel and not job.state.ended,
        "can_steer": may_run and job.state is State.RUNNING,
        "can_retry": may_run and job.state.ended,
        "can_continue": await can_continue(visit, job),
        "is_live": not job.state.ended,
        "once": secrets.token_urlsafe(12),
        "spent_share": min(100, round(100 * job.cost.micros / max(1, job.budget_micros))),
        "is_running": job.state is State.RUNNING,
        "address": (visit.context.options.public_url or str(visit.request.base_url)).rstrip("/"),
    }


async def can_continue(visit: Visit, job: Job) -> bool:
    """Return True if the key may go on with an ended job that has left a session."""
    return visit.caller.has_scope("submit") and job.state.ended and await visit.control.has_session(job)


async def download(visit: Visit) -> Response:
    """Send a file of an ended job: its patch, its bundle or its transcript."""
    job_id, kind = path_job_id(visit), visit.request.path_params["kind"]
    if kind not in _MEDIA_TYPES:
        raise NotFound("There is no such file.")
    control = visit.control
    read = {"diff": control.diff, "transcript": control.transcript, "bundle": control.bundle}[kind]
    path = await read(visit.caller, job_id)
    media_type, suffix = _MEDIA_TYPES[kind]
    return FileResponse(path, media_type=media_type, filename=f"{job_id}.{suffix}")
