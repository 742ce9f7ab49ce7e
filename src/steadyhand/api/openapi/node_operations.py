"""Document the routes of nodes; see `operations`."""

from steadyhand.api.openapi.operations import json_answer, route_doc
from steadyhand.api.schemas import node_bodies as bodies

NODES = route_doc({200: json_answer("The nodes.", bodies.NodeList, "NODES")}, *(404, 422, 503))
DRAIN_NODE = route_doc(
    {200: json_answer("The node.", bodies.Node, "NODE")},
    *(404, 503),
    body=bodies.DrainRequest,
    examples=("EMPTY", "DRAIN_NODE"),
    body_optional=True,
)
UNDRAIN_NODE = route_doc(
    {200: json_answer("The node.", bodies.Node, "NODE")},
    *(404, 503),
    body=bodies.NodeActionRequest,
    examples=("EMPTY",),
    body_optional=True,
)
