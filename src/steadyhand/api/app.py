"""The ASGI app: routes, error handlers and middleware over `Control`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from steadyhand.api.classic import chat_completions, conversational, execute
from steadyhand.api.native import (
    bulk,
    callback_endpoints,
    callbacks,
    catalog,
    forecast,
    health,
    jobs,
    keys,
    nodes,
    schedules,
    tools,
    usage,
)
from steadyhand.api.openai import models
from steadyhand.api.openai.chat import chat_routes
from steadyhand.api.openai.responses import response_routes
from steadyhand.api.openapi.document import document_builder
from steadyhand.api.schemas.route_table import DocumentedRoute
from steadyhand.api.transport.context import ApiContext, ApiOptions, get_caller, get_context
from steadyhand.api.transport.errors import (
    handle_caller_error,
    handle_router_error,
    handle_store_unavailable,
    route_group,
)
from steadyhand.api.transport.middleware import AllowedHosts, RequestMiddleware
from steadyhand.api.transport.waiting_clients import WaitingClients
from steadyhand.control import Control
from steadyhand.errors import CallerError, StoreUnavailable
from steadyhand.keyring import Keyring
from steadyhand.metrics.names import ALL_METRIC_SCOPES, MetricScope
from steadyhand.ports import ToolNames

_EXPOSED_HEADERS = (
    "etag",
    "idempotent-replayed",
    "location",
    "preference-applied",
    "retry-after",
    "x-request-id",
    "x-session-id",
    "x-should-retry",
    "x-steadyhand-job-id",
)
"""The headers of responses that pages of `cors_origins` may read."""


def served_route(route: DocumentedRoute) -> Route:
    """Return the route as Starlette serves it: for its own method alone, so GET does not bring HEAD along."""
    endpoint = route.endpoint

    async def handle(request: Request) -> Response:
        return await endpoint(request, **request.path_params)

    served = Route(route.path, handle, methods=[route.method], name=endpoint.__name__)
    served.methods = {route.method}
    return served


class ApiApp(Starlette):
    """The ASGI app, with a function that returns its document; see `document_builder`."""

    openapi: Callable[[], dict[str, Any]]


def examples() -> Mapping[str, Any]:
    """Return the examples of the document."""
    from steadyhand.api.examples import examples as load  # noqa: PLC0415  # no other request needs them

    return load()


async def send_document(request: Request) -> Response:
    """Respond with the OpenAPI document. The first request builds it in a thread: that takes about a second."""
    return JSONResponse(await asyncio.to_thread(request.app.openapi))


async def send_metrics(request: Request) -> Response:
    """Respond with the metrics for Prometheus: with `read` those of the service, with `read:all` those by agent too."""
    caller, scrape = get_caller(request), get_context(request).options.scrape
    caller.require_scope("read")
    assert scrape is not None  # noqa: S101  # without it there is no such route
    scopes: frozenset[MetricScope] = frozenset({"read"})
    scopes = ALL_METRIC_SCOPES if caller.has_scope("read:all") else scopes
    body, content_type = await scrape(request.headers.get("accept", ""), scopes)
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


def create_app(
    *,
    control: Control,
    keyring: Keyring,
    options: ApiOptions,
    tool_names: ToolNames,
    lifespan: Callable[[Starlette], Any] | None = None,
    more_routes: Sequence[BaseRoute] = (),
) -> "ApiApp":
    """Create the ASGI app. It owns no resource: `lifespan`, if any, starts and stops the services behind it.

    `more_routes` are those of other rooms, such as the operations page; the document does not list them.

    The document is at `/openapi.json`. There are no interactive pages, since theirs load scripts from other hosts.
    """
    openai_modules = (chat_completions,) if options.profile == "classic" else (chat_routes, response_routes)
    # The busiest first; routes are tried in this order.
    route_modules = (
        execute,
        health,
        jobs,
        bulk,
        catalog,
        models,
        keys,
        usage,
        forecast,
        tools,
        schedules,
        nodes,
        callback_endpoints,
        callbacks,
        *openai_modules,
        conversational,
    )
    is_classic = options.profile == "classic"

    def has_classic_errors(path: str) -> bool:
        return is_classic and route_group(path) != "native"

    routes = [route for module in route_modules for route in module.router.routes]
    app = ApiApp(
        routes=[
            *(served_route(route) for route in routes),
            Route("/openapi.json", send_document, include_in_schema=False),
            *([] if options.scrape is None else [Route("/metrics", send_metrics, include_in_schema=False)]),
            *more_routes,
        ],
        lifespan=lifespan,
        exception_handlers={
            CallerError: handle_caller_error,
            StoreUnavailable: handle_store_unavailable,
            HTTPException: handle_router_error,
        },
    )
    app.router.redirect_slashes = False
    app.openapi = document_builder(routes, examples, options.version, has_classic_errors)
    waiting_clients = WaitingClients(options.node_calls)
    app.state.context = ApiContext(control, keyring, options, tool_names, waiting_clients)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(
        RequestMiddleware,
        hosts=AllowedHosts(options),
        redactor=options.redactor,
        is_classic=is_classic,
        on_response=options.on_response,
        learn_key=keyring.learn if keyring.is_shared else None,
    )
    return app
