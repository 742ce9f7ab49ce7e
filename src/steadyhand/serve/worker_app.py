"""The HTTP interface of a node that only works: health, metrics and the nodes, no jobs."""

import json
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

PATHS: Final = frozenset({"/health", "/livez", "/readyz", "/metrics"})
NODES: Final = "/v1/nodes/"
"""The routes by which `steadyhand drain` asks its own node before a stop."""
_BODY: Final = json.dumps(
    {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "code": "not_found",
        "detail": "This node only works: ask one that runs `steadyhand serve`.",
    }
).encode()


class WorkerApp:
    """Passes the requests for health, metrics and nodes on to the service's app, and responds 404 to all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        if scope["type"] != "http" or scope["path"] in PATHS or f"{scope['path']}/".startswith(NODES):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(_BODY))]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": _BODY})
