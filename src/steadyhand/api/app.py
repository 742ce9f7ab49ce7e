"""The app: routes, errors and the edge put together over the verbs."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from steadyhand.api.classic import chat_completions, execute
from steadyhand.api.native import catalog, health, jobs, keys, usage
from steadyhand.api.openai import models
from steadyhand.api.openai.chat import chat_routes
from steadyhand.api.openai.responses import response_routes
from steadyhand.api.openapi.document import document
from steadyhand.api.transport.context import ApiOptions, Door
from steadyhand.api.transport.errors import on_caller_error, on_router_error
from steadyhand.api.transport.middleware import Edge, Hosts
from steadyhand.control import Control
from steadyhand.errors import CallerError
from steadyhand.keyring import Keyring


def create_app(
    *,
    control: Control,
    keyring: Keyring,
    options: ApiOptions,
    lifespan: Callable[[FastAPI], Any] | None = None,
) -> FastAPI:
    """Make the ASGI app. It owns nothing: `lifespan`, if any, starts and stops what it talks to.

    The document is at `/openapi.json`; there are no interactive pages, since theirs load scripts from elsewhere.
    """
    doors = (chat_completions,) if options.profile == "classic" else (chat_routes, response_routes)
    # The busiest first; routes are tried in this order.
    parts = (execute, health, jobs, catalog, models, keys, usage, *doors)
    app = FastAPI(
        title="Steadyhand",
        version=options.version,
        summary="Runs headless coding agents as a dependable service.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={CallerError: on_caller_error, HTTPException: on_router_error},
        # Taken in as they are: nothing is added to them, and a router within a router looks for its route twice.
        routes=[route for part in parts for route in part.router.routes],
    )
    app.state.door = Door(control, keyring, options)
    app.add_middleware(Edge, hosts=Hosts(options), redactor=options.redactor)
    app.openapi = document(app)  # type: ignore[method-assign]  # FastAPI's own way to extend the document
    return app
