"""The page of tools: their calls, failures and time, in one job or in the newest jobs of agents and keys."""

from typing import get_args

from starlette.responses import Response

from steadyhand.api.transport.params import validate_job_id
from steadyhand.control import ToolGroup, ToolQuery
from steadyhand.errors import NotFound
from steadyhand.web.job_list import key_names
from steadyhand.web.web_app import Visit

MAX_ROWS = 200
_GROUPS: tuple[ToolGroup, ...] = get_args(ToolGroup)
_MAX_FILTER_LENGTH = 500


async def tools_page(visit: Visit) -> Response:
    """Show the calls of tools that the filters of the URL match, a row for each tool and group."""
    params = visit.request.query_params
    filters = {
        name: params.get(name, "").strip()[:_MAX_FILTER_LENGTH] for name in ("job", "agent", "key", "by")
    }
    group = next((each for each in _GROUPS if each == filters["by"]), None)
    query = ToolQuery(
        by=frozenset() if group is None else frozenset({group}),
        job_id=filters["job"] or None,
        agent=filters["agent"] or None,
        api_key_id=filters["key"] or None,
    )
    error, rows, jobs = None, [], 0
    try:
        if query.job_id is not None:
            validate_job_id(query.job_id)
        statistics = await visit.control.tool_statistics(visit.caller, query)
        rows, jobs = list(statistics.rows), statistics.jobs
    except NotFound as problem:
        error = problem.detail
    return visit.page(
        "tools.html",
        rows=rows[:MAX_ROWS],
        left_out=max(0, len(rows) - MAX_ROWS),
        jobs=jobs,
        query=query,
        group=group,
        filters=filters,
        error=error,
        agents=sorted(visit.key.limits.agents or visit.control.catalog.agents),
        names=key_names(visit),
    )
