"""The agents and workspaces that a caller can use."""

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import agent_json, list_json, workspace_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query

router = RouteTable()


@router.get(
    "/v1/agents", tags=["offers"], operation_id="listAgents", summary="List the agents", **operations.AGENTS
)
async def list_agents(request: Request) -> Response:
    """Return the agents that the key may use, with the defaults and the limits of their jobs."""
    caller = get_caller(request)
    parse_query(request)
    context = get_context(request)
    control, allowed_names = context.control, context.keyring.limits_of(caller.key_id).agents
    offers = [
        offer
        for offer in await control.list_agents(caller)
        if allowed_names is None or offer.agent.name in allowed_names
    ]
    warm = context.options.redactor.value(context.options.get_warm_agents())
    body: native_bodies.AgentList = list_json(
        [agent_json(offer, warm.get(offer.agent.name)) for offer in offers]
    )
    return json_response(body)


@router.get(
    "/v1/workspaces",
    tags=["offers"],
    operation_id="listWorkspaces",
    summary="List the workspaces",
    **operations.WORKSPACES,
)
async def list_workspaces(request: Request) -> Response:
    """Return the configured workspaces that the key may use; URLs carry no credentials."""
    caller = get_caller(request)
    parse_query(request)
    context = get_context(request)
    allowed_names = context.keyring.limits_of(caller.key_id).workspaces
    allowed = [
        candidate
        for candidate in context.control.list_workspaces(caller)
        if allowed_names is None or candidate.name in allowed_names
    ]
    body: native_bodies.WorkspaceList = list_json([workspace_json(workspace) for workspace in allowed])
    return json_response(body)
