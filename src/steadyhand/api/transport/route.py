"""How a route is called: with the request and what its path names, and nothing else."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class DirectRoute(APIRoute):
    """A route whose function reads and checks all that it takes, and gives a response as it stands.

    FastAPI writes it into the document as any other. What would look for dependencies, parse the body and make a
    response of what is given back has nothing to do here, and took longer than the rest of a small request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give what answers a request: FastAPI's own place to put another handler."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle
