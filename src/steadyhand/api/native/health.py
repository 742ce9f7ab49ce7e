"""Health checks: `/health` for the board, `/livez` and `/readyz` for the platform."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import health_json, readiness_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_context
from steadyhand.api.transport.errors import json_response, store_unavailable_response
from steadyhand.errors import StoreError, StoreUnavailable

router = RouteTable(tags=["health"])

READY_SECONDS = 5.0
"""The time for the store to answer. A platform that asks waits no longer."""
_ALIVE: native_bodies.Alive = {"status": "ok"}


@router.get("/health", operation_id="getHealth", summary="How full the service is", **operations.HEALTH)
async def health(request: Request) -> Response:
    """Return the load of the service. `busy` is true if a new job would not start at once. No key is needed."""
    context = get_context(request)
    return json_response(health_json(context.control.load(), context.options.get_warm_processes()))


@router.get("/livez", operation_id="getLiveness", summary="Whether the process answers", **operations.PROBE)
async def livez(_request: Request) -> Response:
    """Return 200 while the process runs, for the platform. No key is needed."""
    return json_response(_ALIVE)


@router.get("/readyz", operation_id="getReadiness", summary="Whether work is taken", **operations.READINESS)
async def readyz(request: Request) -> Response:
    """Return 503 while the service stops, or while its store cannot be used; the detail has the reason.

    No key is needed.
    """
    context = get_context(request)
    try:
        async with asyncio.timeout(READY_SECONDS):
            await (context.options.readiness_check or context.control.check)()
    except TimeoutError:
        text = f"The store did not answer within {READY_SECONDS:g} s."
        return store_unavailable_response(request.scope, StoreUnavailable(text))
    except StoreUnavailable as error:
        return store_unavailable_response(request.scope, error)
    except StoreError:
        return store_unavailable_response(request.scope, StoreUnavailable("The store cannot be read."))
    return json_response(readiness_json(context.options.get_rejected_providers()))
