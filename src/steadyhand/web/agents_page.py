"""The page of the agents and workspaces that a key may use."""

from functools import partial

from starlette.responses import Response

from steadyhand.clock import utc_now
from steadyhand.ports import JobFilter
from steadyhand.web.agent_health import MAX_JOBS, RECENT, failed_query, recent_by_name
from steadyhand.web.web_app import Visit


async def agents_page(visit: Visit) -> Response:
    """Show the agents with their defaults, limits, waiting processes and health, and the workspaces."""
    caller, context = visit.caller, visit.context
    limits = visit.key.limits
    offers = [
        offer
        for offer in await context.control.list_agents(caller)
        if limits.agents is None or offer.agent.name in limits.agents
    ]
    workspaces = [
        workspace
        for workspace in context.control.list_workspaces(caller)
        if limits.workspaces is None or workspace.name in limits.workspaces
    ]
    since = utc_now() - RECENT
    newest = await context.control.list_jobs(caller, JobFilter(created_after=since), MAX_JOBS, None)
    warm = context.options.redactor.value(context.options.get_warm_agents())
    return visit.page(
        "agents.html",
        offers=offers,
        workspaces=workspaces,
        warm=warm,
        by_agent=recent_by_name(newest.jobs, lambda job: job.agent),
        by_workspace=recent_by_name(newest.jobs, lambda job: job.workspace),
        failed_query=partial(failed_query, since=since),
        looked_at=MAX_JOBS,
        rejected=context.options.get_rejected_providers(),
    )
