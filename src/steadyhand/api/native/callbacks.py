"""Deliveries of callbacks (docs/http-api.md#callbacks)."""

import re
from typing import Annotated, cast, get_args

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import delivery_json, delivery_with_body_json, list_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.requests import ReplayRequest
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_optional_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.ports import DeliveryFilter, DeliveryState

router = RouteTable(prefix="/v1/callbacks", tags=["jobs"])

DeliveryId = Annotated[str, PathParam("The delivery's id, which is the `webhook-id` of its message.")]
_DELIVERY_ID = re.compile(r"(?:msg|evt)_[0-9a-f]{32}")
_MAX_LIST_LIMIT = 200


@router.get(
    "/deliveries",
    operation_id="listDeliveries",
    summary="List deliveries, newest first",
    **operations.DELIVERIES,
)
async def list_deliveries(request: Request) -> Response:
    """List the deliveries to the receivers of the key's jobs; with `read:all` those to configured endpoints, too."""
    caller = get_caller(request)
    query = parse_query(request, *operations.DELIVERIES_PARAMETERS)
    delivery_filter = DeliveryFilter(
        job_id=query.get_one("job"),
        endpoint=query.get_one("endpoint"),
        state=_parse_state(query.get_one("state")),
    )
    limit = query.get_int("limit", 20, minimum=1, maximum=_MAX_LIST_LIMIT)
    control = get_context(request).control
    page = await control.list_deliveries(caller, delivery_filter, limit, query.get_one("cursor"))
    body: native_bodies.CallbackDeliveryList = list_json(
        [delivery_json(delivery) for delivery in page.deliveries], page.next_cursor
    )
    return json_response(body)


@router.get(
    "/deliveries/{delivery_id}",
    operation_id="getDelivery",
    summary="Give a delivery",
    **operations.DELIVERY,
)
async def get_delivery(request: Request, delivery_id: DeliveryId) -> Response:
    """Return a delivery with the text that is signed and sent."""
    caller = get_caller(request)
    parse_query(request)
    delivery = await get_context(request).control.get_delivery(caller, _validate_id(delivery_id))
    return json_response(delivery_with_body_json(delivery))


@router.post(
    "/deliveries/{delivery_id}/replay",
    status_code=202,
    operation_id="replayDelivery",
    summary="Send a delivery once more",
    **operations.REPLAY_DELIVERY,
)
async def replay_delivery(request: Request, delivery_id: DeliveryId) -> Response:
    """Send a delivery once more, with the same id and body, in whatever state it is; its attempts begin anew."""
    caller = get_caller(request)
    parse_query(request)
    context = get_context(request)
    await parse_optional_body(request, ReplayRequest, context.options.max_body_bytes)
    delivery = await context.control.replay_delivery(caller, _validate_id(delivery_id))
    return json_response(delivery_json(delivery), 202)


@router.get(
    "/secret",
    operation_id="getCallbackSecret",
    summary="Give the secret of a key's callbacks",
    **operations.CALLBACK_SECRET,
)
async def get_callback_secret(request: Request) -> Response:
    """Return the secret that signs the callbacks of the jobs of the caller's own key; it needs the scope `submit`."""
    caller = get_caller(request)
    caller.require_scope("submit")
    parse_query(request)
    get_secret = get_context(request).options.get_callback_secret
    if get_secret is None:
        raise NotFound("This service sends no callbacks.")
    body: native_bodies.CallbackSecret = {
        "object": "callback_secret",
        "api_key_id": caller.key_id,
        "secret": get_secret(caller.key_id),
    }
    return json_response(body, headers={"cache-control": "no-store"})


def _validate_id(delivery_id: str) -> str:
    if _DELIVERY_ID.fullmatch(delivery_id) is None:
        raise NotFound("Delivery not found")
    return delivery_id


def _parse_state(text: str | None) -> DeliveryState | None:
    states = get_args(DeliveryState)
    if text is not None and text not in states:
        raise InvalidRequest.at("?state", f"has to be one of {', '.join(states)}")
    return cast("DeliveryState | None", text)
