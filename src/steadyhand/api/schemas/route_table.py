"""The routes of a module, with the document's text about each.

Routes are served by Starlette (`api/app.py`). FastAPI, which builds the document from the same table, is loaded when
somebody asks for it: its import takes an eighth of the processor time of a start.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response

Endpoint = Callable[..., Awaitable[Response]]
EndpointT = TypeVar("EndpointT", bound=Endpoint)


@dataclass(frozen=True, slots=True)
class PathParam:
    """The document's text about a parameter of the path; it stands in the `Annotated` type of that parameter."""

    description: str


@dataclass(frozen=True, slots=True)
class DocumentedRoute:
    """One route: its method, its function, and the arguments by which FastAPI documents it."""

    path: str
    method: str
    endpoint: Endpoint
    documentation: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RouteTable:
    """The routes of one module, in the order in which they are tried."""

    prefix: str = ""
    tags: Sequence[str] = ()
    routes: list[DocumentedRoute] = field(default_factory=list)

    def get(self, path: str, **documentation: Any) -> Callable[[EndpointT], EndpointT]:
        """Return a decorator that adds a function as the route of GET."""
        return self._adder("GET", path, documentation)

    def post(self, path: str, **documentation: Any) -> Callable[[EndpointT], EndpointT]:
        """Return a decorator that adds a function as the route of POST."""
        return self._adder("POST", path, documentation)

    def patch(self, path: str, **documentation: Any) -> Callable[[EndpointT], EndpointT]:
        """Return a decorator that adds a function as the route of PATCH."""
        return self._adder("PATCH", path, documentation)

    def delete(self, path: str, **documentation: Any) -> Callable[[EndpointT], EndpointT]:
        """Return a decorator that adds a function as the route of DELETE."""
        return self._adder("DELETE", path, documentation)

    def _adder(
        self, method: str, path: str, documentation: dict[str, Any]
    ) -> Callable[[EndpointT], EndpointT]:
        tags = [*self.tags, *documentation.pop("tags", ())]

        def add(endpoint: EndpointT) -> EndpointT:
            documentation["tags"] = tags
            self.routes.append(DocumentedRoute(self.prefix + path, method, endpoint, documentation))
            return endpoint

        return add
