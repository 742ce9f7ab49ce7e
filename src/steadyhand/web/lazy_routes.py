"""The routes of the operations page, whose code is loaded by the first request for a page: a start needs none of it."""

import asyncio
from collections.abc import Sequence

from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

_METHODS = frozenset({"GET", "POST"})


def create_routes() -> Sequence[BaseRoute]:
    """Return the routes of a service's operations page; the context of the API has to be in the app."""
    pages = LazyPages()
    routes = [Route("/", pages, methods=["GET"]), Route("/ui/{rest:path}", pages, methods=[*_METHODS])]
    for route in routes:
        route.include_in_schema = False
        route.methods = {each for each in route.methods or () if each in _METHODS}
    return routes


class LazyPages:
    """An ASGI app that loads the pages in a thread when the first is asked for."""

    def __init__(self) -> None:
        self._router: Router | None = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        router = self._router or await self._load()
        await router(scope, receive, send)

    async def _load(self) -> Router:
        async with self._lock:  # a second router would have sessions of its own
            router = self._router
            if router is None:
                router = self._router = await asyncio.to_thread(_load_router)
            return router


def _load_router() -> Router:
    from steadyhand.web.routes import page_routes  # noqa: PLC0415  # imports Jinja and the code of all pages

    return Router(page_routes(), redirect_slashes=False)
