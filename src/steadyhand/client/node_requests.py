"""The requests of the client about nodes; see `http_requests`."""

from steadyhand.client.http_requests import HttpRequest, checked_name, post

NODES_PATH = "/v1/nodes"


def drain_node(name: str, *, until_restart: bool) -> HttpRequest:
    """Return the request that drains a node."""
    return post(f"{_node_path(name)}/drain", {"until_restart": True} if until_restart else {})


def undrain_node(name: str) -> HttpRequest:
    """Return the request that lets a node take new runs again."""
    return post(f"{_node_path(name)}/undrain", {})


def _node_path(name: str) -> str:
    return f"{NODES_PATH}/{checked_name(name, 'a node')}"
