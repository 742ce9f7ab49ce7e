"""The parts of a job's page that sum it up: the todo list, the calls of the model and the timeline."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from steadyhand.clock import utc_now
from steadyhand.events import UsageReported
from steadyhand.web.job_actions import path_job_id
from steadyhand.web.model_calls import MAX_CALLS, call_rows
from steadyhand.web.timeline import TIMELINE_EVENTS, WIDTH, build_timeline
from steadyhand.web.todo_list import todo_list, todo_tools
from steadyhand.web.web_app import Visit

_MAX_EVENTS = 2_000
"""The newest events of the timeline and the todo list that are read."""


async def overview_values(visit: Visit, job_id: str) -> Mapping[str, Any]:
    """Return the values of the templates in `job_overview.html`."""
    control, caller, names = visit.control, visit.caller, visit.context.tool_names
    async with asyncio.TaskGroup() as group:
        outline = group.create_task(
            control.list_newest_events(caller, job_id, TIMELINE_EVENTS, todo_tools(names), _MAX_EVENTS)
        )
        usage = group.create_task(
            control.list_newest_events(
                caller, job_id, frozenset({UsageReported.type}), frozenset(), 2 * MAX_CALLS
            )
        )
        calls = group.create_task(control.list_model_calls(caller, job_id, MAX_CALLS))
    return {
        "todos": todo_list(outline.result(), names),
        "timeline": build_timeline(outline.result(), utc_now()),
        "timeline_width": WIDTH,
        "calls": call_rows(calls.result(), usage.result()),
    }


async def job_overview(visit: Visit) -> Response:
    """Show the parts again, each for its place on the page."""
    job_id = path_job_id(visit)
    await visit.control.get(visit.caller, job_id)
    return visit.page("live_overview.html", **await overview_values(visit, job_id))
