"""Statistics of tools (docs/http-api.md#tools)."""

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openapi import operations
from steadyhand.api.schemas import tool_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query, validate_job_id
from steadyhand.control import MAX_TOOL_JOBS, ToolGroup, ToolQuery, ToolRow, ToolStatistics
from steadyhand.errors import InvalidRequest

router = RouteTable(tags=["jobs"])

_GROUP_NAMES: tuple[ToolGroup, ...] = get_args(ToolGroup)
_MAX_DAYS = 365
_MAX_ROWS = 1000


@router.get("/v1/tools", operation_id="getTools", summary="What tools were called", **operations.TOOLS)
async def get_tools(request: Request) -> Response:
    """Add up the calls of tools, a row for each tool and group, in one job or in the newest jobs of the filter."""
    caller = get_caller(request)
    caller.require_scope("read")
    query = parse_query(request, *operations.TOOL_PARAMETERS)
    requested, job_id = query.get_all("by"), query.get_one("job")
    if not set(requested) <= set(_GROUP_NAMES):
        raise InvalidRequest.at("?by", f"has to be one of {', '.join(_GROUP_NAMES)}")
    limit = query.get_int("limit", 200, minimum=1, maximum=_MAX_ROWS)
    wanted = ToolQuery(
        by=frozenset(group for group in _GROUP_NAMES if group in requested),
        job_id=None if job_id is None else validate_job_id(job_id),
        agent=query.get_one("agent"),
        workspace=query.get_one("workspace"),
        api_key_id=query.get_one("api_key"),
        days=query.get_int("days", 30, minimum=1, maximum=_MAX_DAYS),
        jobs=query.get_int("jobs", 100, minimum=1, maximum=MAX_TOOL_JOBS),
    )
    return json_response(
        tools_json(await get_context(request).control.tool_statistics(caller, wanted), limit)
    )


def tools_json(statistics: ToolStatistics, limit: int) -> tool_bodies.ToolList:
    """Return the first rows of statistics."""
    return {
        "object": "list",
        "data": [_row_json(row) for row in statistics.rows[:limit]],
        "has_more": len(statistics.rows) > limit,
        "next_cursor": None,
        "jobs": statistics.jobs,
    }


def _row_json(row: ToolRow) -> tool_bodies.ToolRow:
    return {
        "object": "tool_usage",
        "tool": row.tool,
        "agent": row.agent,
        "api_key_id": row.api_key_id,
        "job_id": row.job_id,
        "calls": row.calls,
        "failures": row.failures,
        "unfinished": row.unfinished,
        "seconds": row.milliseconds / 1000,
    }
