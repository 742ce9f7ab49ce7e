"""The app: routes, errors and the edge put together over the verbs."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from steadyhand.api import (
    classic,
    classic_chat,
    health,
    jobs,
    keys,
    offers,
    openai_chat,
    openai_responses,
    usage,
)
from steadyhand.api.door import ApiOptions, Door
from steadyhand.api.edge import Edge, Hosts
from steadyhand.api.openapi import document
from steadyhand.api.problems import on_caller_error, on_router_error
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
    doors = (classic_chat,) if options.profile == "classic" else (openai_chat, openai_responses)
    # The busiest first; routes are tried in this order.
    parts = (classic, health, jobs, offers, keys, usage, *doors)
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
