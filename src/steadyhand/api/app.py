"""The ASGI app: routes, error handlers and middleware over `Control`."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from steadyhand.api.classic import chat_completions, conversational, execute
from steadyhand.api.examples import examples
from steadyhand.api.native import catalog, health, jobs, keys, usage
from steadyhand.api.openai import models
from steadyhand.api.openai.chat import chat_routes
from steadyhand.api.openai.responses import response_routes
from steadyhand.api.openapi.document import openapi_builder
from steadyhand.api.transport.context import ApiContext, ApiOptions
from steadyhand.api.transport.errors import (
    handle_caller_error,
    handle_router_error,
    handle_store_unavailable,
    route_group,
)
from steadyhand.api.transport.middleware import AllowedHosts, RequestMiddleware
from steadyhand.control import Control
from steadyhand.errors import CallerError, StoreUnavailable
from steadyhand.keyring import Keyring
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


def create_app(
    *,
    control: Control,
    keyring: Keyring,
    options: ApiOptions,
    tool_names: ToolNames,
    lifespan: Callable[[FastAPI], Any] | None = None,
) -> FastAPI:
    """Create the ASGI app. It owns no resource: `lifespan`, if any, starts and stops the services behind it.

    The document is at `/openapi.json`. There are no interactive pages, since theirs load scripts from other hosts.
    """
    openai_modules = (chat_completions,) if options.profile == "classic" else (chat_routes, response_routes)
    # The busiest first; routes are tried in this order.
    route_modules = (execute, health, jobs, catalog, models, keys, usage, *openai_modules, conversational)
    app = FastAPI(
        title="Steadyhand",
        version=options.version,
        summary="Runs headless coding agents as a dependable service.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={
            CallerError: handle_caller_error,
            StoreUnavailable: handle_store_unavailable,
            HTTPException: handle_router_error,
        },
        # Taken in as they are: nothing is added to them, and a router within a router looks for its route twice.
        routes=[route for module in route_modules for route in module.router.routes],
    )
    app.state.context = ApiContext(control, keyring, options, tool_names)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(
        RequestMiddleware,
        hosts=AllowedHosts(options),
        redactor=options.redactor,
        is_classic=options.profile == "classic",
    )
    is_classic = options.profile == "classic"

    def has_classic_errors(path: str) -> bool:
        return is_classic and route_group(path) != "native"

    app.openapi = openapi_builder(app, examples, has_classic_errors)  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app
