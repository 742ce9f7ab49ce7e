"""What can be asked for: agents, workspaces, and the models of the OpenAI routes."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import agent_json, list_json, workspace_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.transport.context import caller_of, door_of
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import query_of
from steadyhand.api.transport.route import DirectRoute

router = APIRouter(route_class=DirectRoute)


@router.get(
    "/v1/agents", tags=["offers"], operation_id="listAgents", summary="List the agents", **operations.AGENTS
)
async def agents(request: Request) -> Response:
    """Give the agents that the key can ask for, with what a job of each gets and the most it may ask for."""
    caller = caller_of(request)
    query_of(request)
    door = door_of(request)
    control, named = door.control, door.keyring.limits_of(caller.key_id).agents
    offers = [offer for offer in await control.agents(caller) if named is None or offer.agent.name in named]
    body: native_bodies.AgentList = list_json(
        [agent_json(offer, control.catalogue.limits) for offer in offers]
    )
    return json_response(body)


@router.get(
    "/v1/workspaces",
    tags=["offers"],
    operation_id="listWorkspaces",
    summary="List the workspaces",
    **operations.WORKSPACES,
)
async def workspaces(request: Request) -> Response:
    """Give the configured workspaces that the key may use; addresses carry no credentials."""
    caller = caller_of(request)
    query_of(request)
    door = door_of(request)
    named = door.keyring.limits_of(caller.key_id).workspaces
    found = [each for each in door.control.workspaces(caller) if named is None or each.name in named]
    body: native_bodies.WorkspaceList = list_json([workspace_json(workspace) for workspace in found])
    return json_response(body)
