"""The class of all routes: it calls a function with the request and the parameters of the path only."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class DirectRoute(APIRoute):
    """A route whose function reads and checks its whole input and returns a finished response.

    FastAPI documents it as any other route. Its steps for dependencies, body parsing and serialization are left out:
    they are not needed here, and took longer than the rest of a small request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request: FastAPI's own hook for a different handler."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle
