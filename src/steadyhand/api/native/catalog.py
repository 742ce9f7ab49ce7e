"""What can be asked for: agents, workspaces, and the models of the OpenAI routes."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import agent_json, list_json, workspace_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.api.transport.route import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.get(
    "/v1/agents", tags=["offers"], operation_id="listAgents", summary="List the agents", **operations.AGENTS
)
async def list_agents(request: Request) -> Response:
    """Give the agents that the key can ask for, with what a job of each gets and the most it may ask for."""
    caller = get_caller(request)
    parse_query(request)
    context = get_context(request)
    control, allowed_names = context.control, context.keyring.limits_of(caller.key_id).agents
    offers = [
        offer
        for offer in await control.list_agents(caller)
        if allowed_names is None or offer.agent.name in allowed_names
    ]
    body: native_bodies.AgentList = list_json([agent_json(offer, control.catalog.limits) for offer in offers])
    return json_response(body)


@router.get(
    "/v1/workspaces",
    tags=["offers"],
    operation_id="listWorkspaces",
    summary="List the workspaces",
    **operations.WORKSPACES,
)
async def list_workspaces(request: Request) -> Response:
    """Give the configured workspaces that the key may use; addresses carry no credentials."""
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
