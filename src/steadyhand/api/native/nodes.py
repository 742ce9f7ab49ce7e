"""Nodes (docs/nodes.md): the processes that run the jobs of this service, and which of them take new runs."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import list_json, time_or_none
from steadyhand.api.openapi import node_operations as operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas import node_bodies as bodies
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_optional_body
from steadyhand.api.transport.context import ApiContext, get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.control import Caller
from steadyhand.errors import NotFound
from steadyhand.events import format_rfc3339
from steadyhand.job import Job, State
from steadyhand.placement import NODE_NAME_PATTERN
from steadyhand.ports.nodes import Nodes, NodeState, describe_obstacle

router = RouteTable(prefix="/v1/nodes", tags=["jobs"])

NodeName = Annotated[str, PathParam("The node's name.")]


def _nodes(request: Request) -> Nodes:
    nodes = get_context(request).options.nodes
    if nodes is None:
        raise NotFound("This service has no nodes.")
    return nodes


@router.get("", operation_id="listNodes", summary="List the nodes", **operations.NODES)
async def list_nodes(request: Request) -> Response:
    """Return the nodes by name: those that are alive, those that went silent within a day, and drained ones."""
    get_caller(request).require_scope("read")
    parse_query(request)
    here = get_context(request).options.node
    found = await _nodes(request).list_nodes()
    body: bodies.NodeList = list_json([node_json(each, here) for each in found])
    return json_response(body)


@router.post("/{name}/drain", operation_id="drainNode", summary="Drain a node", **operations.DRAIN_NODE)
async def drain_node(request: Request, name: NodeName) -> Response:
    """Let a node take no new runs, until it is undrained: also after a restart. Its runs go on.

    It still accepts jobs, which wait or run on other nodes.
    """
    caller, nodes, name = _changeable(request, name)
    body = await parse_optional_body(
        request, bodies.DrainRequest, get_context(request).options.max_body_bytes
    )
    node = await nodes.drain(name, until_restart=body.until_restart, by=caller.key_id)
    return json_response(node_json(node, get_context(request).options.node))


@router.post(
    "/{name}/undrain", operation_id="undrainNode", summary="Undrain a node", **operations.UNDRAIN_NODE
)
async def undrain_node(request: Request, name: NodeName) -> Response:
    """Let a node take new runs again."""
    _, nodes, name = _changeable(request, name)
    await parse_optional_body(request, bodies.NodeActionRequest, get_context(request).options.max_body_bytes)
    return json_response(node_json(await nodes.undrain(name), get_context(request).options.node))


def _changeable(request: Request, name: str) -> tuple[Caller, Nodes, str]:
    """Return the caller, if it may change nodes, the nodes, and the name, if a node can have it."""
    caller = get_caller(request)
    caller.require_scope("admin")
    parse_query(request)
    if NODE_NAME_PATTERN.fullmatch(name) is None:
        raise NotFound("There is no node of this name.", code="node_not_found")
    return caller, _nodes(request), name


def node_json(node: NodeState, here: str) -> bodies.Node:
    """Return a node with all its keys; `here` is the name of the node that answers."""
    info, figures = node.info, node.figures
    age = node.heartbeat_seconds
    return {
        "object": "node",
        "name": info.name,
        "role": info.role,
        "state": "away" if age is None else "alive" if node.is_alive else "silent",
        "version": info.version,
        "schema": info.schema,
        "host": info.host,
        "labels": list(info.labels),
        "slots": info.slots,
        "running": figures.running,
        "waiting": figures.waiting,
        "load": round(figures.load, 2),
        "warm": figures.warm,
        "drained": node.drained is not None,
        "drained_at": None if node.drained is None else format_rfc3339(node.drained.since),
        "until_restart": node.drained is not None and node.drained.until_restart,
        "heartbeat_seconds": None if age is None else round(age, 1),
        "started_at": time_or_none(node.started_at),
        "here": info.name == here,
    }


async def queue_reason(context: ApiContext, job: Job) -> native_bodies.QueueReason | None:
    """Return the reason why no node can take a job that waits, or None."""
    return (await queue_reasons(context, [job])).get(job.id)


async def queue_reasons(context: ApiContext, jobs: Sequence[Job]) -> Mapping[str, native_bodies.QueueReason]:
    """Return the reasons why no node can take jobs that wait, by their ids."""
    nodes = context.options.nodes
    waiting = [job for job in jobs if job.state is State.QUEUED]
    if not waiting or nodes is None:
        return {}
    states, reasons = await nodes.list_nodes(), {}
    for job in waiting:
        obstacle = describe_obstacle(context.control.catalog.placement_of(job), states)
        if obstacle is not None:
            reason: native_bodies.QueueReason = {"code": obstacle.code, "detail": obstacle.detail}
            reasons[job.id] = reason
    return reasons
