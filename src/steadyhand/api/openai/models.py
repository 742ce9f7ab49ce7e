"""The models of the OpenAI routes: their list, and the agent that a model's name means."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.openapi import operations
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.schemas.requests import is_model
from steadyhand.api.transport.context import Alias, Door, caller_of, door_of, insider
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.route import DirectRoute
from steadyhand.control import Caller
from steadyhand.errors import NotFound

router = APIRouter(route_class=DirectRoute)

ModelId = Annotated[str, Path(description="The model's id; it may hold slashes.")]


@router.get(
    "/v1/models", tags=["openai"], operation_id="listModels", summary="List models", **operations.MODELS
)
async def models(request: Request) -> Response:
    """Give the aliases and the names of the agents that the key can ask for, as models."""
    caller = caller_of(request)
    door = door_of(request)
    named = door.keyring.limits_of(caller.key_id).agents
    agents = {name: alias[0] for name, alias in door.options.openai_models.items()}
    for offer in await door.control.agents(caller):
        agents.setdefault(offer.agent.name, offer.agent.name)
    names = [name for name, agent in agents.items() if named is None or agent in named]
    body: openai_bodies.ModelList = {"object": "list", "data": [_model_json(name) for name in names]}
    return json_response(body)


@router.get(
    "/v1/models/{model_id:path}",
    tags=["openai"],
    operation_id="getModel",
    summary="Give a model",
    **operations.MODEL,
)
async def model(request: Request, model_id: ModelId) -> Response:
    """Give a model by its id, which may hold slashes."""
    caller = caller_of(request)
    caller.require("read")
    await resolved(door_of(request), caller, model_id)
    return json_response(_model_json(model_id))


def _model_json(name: str) -> openai_bodies.Model:
    return {"id": name, "object": "model", "created": 0, "owned_by": "steadyhand"}


async def resolved(door: Door, caller: Caller, name: str) -> Alias:
    """Say which agent and model a model's name means.

    An alias comes first, then an agent's name, then `agent/model`; any other name goes to the default agent
    as its model. Raises `NotFound` (`model_not_found`) when there is none.
    """
    options = door.options
    if options.profile == "classic" and options.openai_default_agent:
        return Alias(options.openai_default_agent)
    if name in options.openai_models:
        return options.openai_models[name]
    agent, _, rest = name.partition("/")
    if agent in door.control.catalogue.agents:
        known = True
    else:
        known = agent in {offer.agent.name for offer in await door.control.agents(insider(caller))}
    if known and not rest and agent == name:
        return Alias(agent)
    if known and is_model(rest):
        return Alias(agent, rest)
    if options.openai_default_agent and is_model(name):
        return Alias(options.openai_default_agent, name)
    raise NotFound("There is no such model here; see /v1/models.", code="model_not_found")
