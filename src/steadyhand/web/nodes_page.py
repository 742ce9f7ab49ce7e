"""The nodes on the page of the service, and the forms that drain and undrain them."""

from collections.abc import Sequence
from urllib.parse import quote

from starlette.responses import Response

from steadyhand.errors import NotFound
from steadyhand.placement import NODE_NAME_PATTERN
from steadyhand.ports.nodes import Nodes, NodeState
from steadyhand.web.web_app import Visit


def _nodes(visit: Visit) -> Nodes:
    nodes = visit.context.options.nodes
    if nodes is None:
        raise NotFound("This service has no nodes.")
    return nodes


def _name(visit: Visit) -> str:
    name: str = visit.request.path_params["name"]
    if NODE_NAME_PATTERN.fullmatch(name) is None:
        raise NotFound("There is no node of this name.", code="node_not_found")
    return name


async def list_nodes(visit: Visit) -> Sequence[NodeState]:
    """Return the nodes; none in a service without them."""
    visit.caller.require_scope("read")
    return [] if visit.context.options.nodes is None else await _nodes(visit).list_nodes()


async def drain(visit: Visit) -> Response:
    """Let a node take no new runs."""
    await visit.read_form()
    visit.caller.require_scope("admin")
    await _nodes(visit).drain(_name(visit), until_restart=False, by=visit.caller.key_id)
    return _back(visit)


async def undrain(visit: Visit) -> Response:
    """Let a node take new runs again."""
    await visit.read_form()
    visit.caller.require_scope("admin")
    await _nodes(visit).undrain(_name(visit))
    return _back(visit)


def _back(visit: Visit) -> Response:
    return visit.redirect(f"/ui/service#node-{quote(_name(visit), safe='')}")
