"""The models of the OpenAI routes: their list, and the agent that a model's name stands for."""

from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openapi import operations
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.field_types import is_model_name
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.context import ApiContext, ModelAlias, as_job_owner, get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.control import Caller
from steadyhand.errors import NotFound

router = RouteTable()

ModelId = Annotated[str, PathParam("The model's id; it may hold slashes.")]


@router.get(
    "/v1/models", tags=["openai"], operation_id="listModels", summary="List models", **operations.MODELS
)
async def list_models(request: Request) -> Response:
    """Return the aliases and the names of the agents that the key may use, as models."""
    caller = get_caller(request)
    context = get_context(request)
    allowed_names = context.keyring.limits_of(caller.key_id).agents
    agent_by_model = {name: alias[0] for name, alias in context.options.openai_models.items()}
    for offer in await context.control.list_agents(caller):
        agent_by_model.setdefault(offer.agent.name, offer.agent.name)
    model_names = [
        name for name, agent in agent_by_model.items() if allowed_names is None or agent in allowed_names
    ]
    body: openai_bodies.ModelList = {"object": "list", "data": [model_json(name) for name in model_names]}
    return json_response(body)


@router.get(
    "/v1/models/{model_id:path}",
    tags=["openai"],
    operation_id="getModel",
    summary="Give a model",
    **operations.MODEL,
)
async def get_model(request: Request, model_id: ModelId) -> Response:
    """Return a model by its id, which may hold slashes."""
    caller = get_caller(request)
    caller.require_scope("read")
    await resolve_model(get_context(request), caller, model_id)
    return json_response(model_json(model_id))


def model_json(name: str) -> openai_bodies.Model:
    return {"id": name, "object": "model", "created": 0, "owned_by": "steadyhand"}


async def resolve_model(context: ApiContext, caller: Caller, name: str) -> ModelAlias:
    """Return the agent and the model that a model's name stands for.

    An alias comes first, then an agent's name, then `agent/model`; any other name goes to the default agent as its
    model.
    Raise `NotFound` (`model_not_found`) if there is none.
    """
    options = context.options
    if options.profile == "classic" and options.openai_default_agent:
        return ModelAlias(options.openai_default_agent)
    if name in options.openai_models:
        return options.openai_models[name]
    agent, _, model_name = name.partition("/")
    if agent in context.control.catalog.agents:
        is_agent = True
    else:
        is_agent = agent in {
            offer.agent.name for offer in await context.control.list_agents(as_job_owner(caller))
        }
    if is_agent and not model_name and agent == name:
        return ModelAlias(agent)
    if is_agent and is_model_name(model_name):
        return ModelAlias(agent, model_name)
    if options.openai_default_agent and is_model_name(name):
        return ModelAlias(options.openai_default_agent, name)
    raise NotFound("There is no such model here; see /v1/models.", code="model_not_found")
