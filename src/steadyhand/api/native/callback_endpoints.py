"""Endpoints of callbacks (docs/http-api.md#endpoints); all of these routes need the scope `admin`."""

from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.agents import NAME_PATTERN
from steadyhand.api.native.serializers import endpoint_json, list_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.requests import EndpointChangeRequest, EndpointRequest
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_body
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.errors import NotFound
from steadyhand.ports import CallbackEndpoints, EndpointChange, EndpointInfo

router = RouteTable(prefix="/v1/callbacks/endpoints", tags=["jobs"])

EndpointName = Annotated[str, PathParam("The endpoint's name.")]
_CREATED = 201


def _require_endpoints(request: Request) -> CallbackEndpoints:
    """Return the endpoints if the caller may manage them."""
    get_caller(request).require_scope("admin")
    endpoints = get_context(request).options.callback_endpoints
    if endpoints is None:
        raise NotFound("This service sends no callbacks.")
    return endpoints


def _validate_name(name: str) -> str:
    if NAME_PATTERN.fullmatch(name) is None:
        raise NotFound("Endpoint not found")
    return name


def _endpoint_response(endpoint: EndpointInfo, status: int = 200, secret: str | None = None) -> Response:
    headers = {"location": f"/v1/callbacks/endpoints/{endpoint.name}"} if status == _CREATED else {}
    if secret is None:
        return json_response(endpoint_json(endpoint), status, headers=headers)
    document: native_bodies.NewCallbackEndpoint = {**endpoint_json(endpoint), "secret": secret}
    return json_response(document, status, headers={**headers, "cache-control": "no-store"})


@router.get("", operation_id="listEndpoints", summary="List the endpoints", **operations.ENDPOINTS)
async def list_endpoints(request: Request) -> Response:
    """Return the endpoints, without their secrets; those of the configuration come first."""
    endpoints = _require_endpoints(request)
    parse_query(request)
    body: native_bodies.CallbackEndpointList = list_json(
        [endpoint_json(each) for each in endpoints.list_endpoints()]
    )
    return json_response(body)


@router.post(
    "",
    status_code=201,
    operation_id="createEndpoint",
    summary="Make an endpoint",
    **operations.CREATE_ENDPOINT,
)
async def create_endpoint(request: Request) -> Response:
    """Create an endpoint, which is told of the events of all jobs or of some agents.

    Only this response has its `secret`, which signs the messages.
    """
    endpoints = _require_endpoints(request)
    parse_query(request)
    body, _ = await parse_body(request, EndpointRequest, get_context(request).options.max_body_bytes)
    change = EndpointChange(body.url, tuple(dict.fromkeys(body.events)), tuple(body.agents), body.body)
    endpoint, secret = await endpoints.create(body.name, change)
    return _endpoint_response(endpoint, _CREATED, secret)


@router.get("/{name}", operation_id="getEndpoint", summary="Give an endpoint", **operations.ENDPOINT)
async def get_endpoint(request: Request, name: EndpointName) -> Response:
    """Return an endpoint, without its secret."""
    endpoints = _require_endpoints(request)
    parse_query(request)
    return _endpoint_response(endpoints.get(_validate_name(name)))


@router.patch(
    "/{name}", operation_id="changeEndpoint", summary="Change an endpoint", **operations.CHANGE_ENDPOINT
)
async def change_endpoint(request: Request, name: EndpointName) -> Response:
    """Change the fields that the body has.

    With `rotate_secret` the response has a new `secret`; the former one signs beside it until the next rotation. An
    endpoint of the configuration is changed there: 409.
    """
    endpoints = _require_endpoints(request)
    parse_query(request)
    body, _ = await parse_body(request, EndpointChangeRequest, get_context(request).options.max_body_bytes)
    change = EndpointChange(
        body.url,
        None if body.events is None else tuple(dict.fromkeys(body.events)),
        None if body.agents is None else tuple(body.agents),
        body.body,
        body.rotate_secret,
    )
    endpoint, secret = await endpoints.change(_validate_name(name), change)
    return _endpoint_response(endpoint, secret=secret)


@router.delete(
    "/{name}",
    status_code=204,
    operation_id="removeEndpoint",
    summary="Remove an endpoint",
    **operations.REMOVE_ENDPOINT,
)
async def remove_endpoint(request: Request, name: EndpointName) -> Response:
    """Remove an endpoint: its pending deliveries are cancelled, and nothing more is sent to it."""
    endpoints = _require_endpoints(request)
    parse_query(request)
    await endpoints.remove(_validate_name(name))
    return Response(status_code=204)
