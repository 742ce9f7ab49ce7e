"""Keys (docs/http-api.md#keys); all of these routes need the scope `admin`."""

import re
from typing import Annotated

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import key_json, list_json, new_key_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies, requests
from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.route_table import PathParam, RouteTable
from steadyhand.api.transport.body import parse_body, parse_optional_body
from steadyhand.api.transport.context import ApiContext, get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import parse_query
from steadyhand.errors import NotFound
from steadyhand.ports import NO_LIMITS, ApiKey, KeyLimits

router = RouteTable(tags=["keys"])

KeyId = Annotated[str, PathParam("The key's id; it stands in its secret.")]
_KEY_ID = re.compile(r"k_[a-z0-9]{1,32}")


def _require_admin(request: Request) -> ApiContext:
    """Return the context if the caller may manage keys."""
    get_caller(request).require_scope("admin")
    return get_context(request)


def _validate_key_id(key_id: str) -> str:
    if _KEY_ID.fullmatch(key_id) is None:
        raise NotFound("Key not found")
    return key_id


def _key_response(context: ApiContext, key: ApiKey, status: int = 200, secret: str | None = None) -> Response:
    is_fixed = context.keyring.is_fixed(key.id)
    document = (
        key_json(key, is_fixed=is_fixed) if secret is None else new_key_json(key, secret, is_fixed=is_fixed)
    )
    headers = {"location": f"/v1/keys/{key.id}"} if status == 201 else {}  # noqa: PLR2004  # created
    if secret is not None:
        headers["cache-control"] = "no-store"
    return json_response(document, status, headers=headers)


def key_limits(requested: requests.KeyLimitsRequest | None) -> KeyLimits:
    """Build the limits of a key from a request."""
    if requested is None:
        return NO_LIMITS
    day, month = requested.budget_usd_per_day, requested.budget_usd_per_month
    return KeyLimits(
        agents=None if requested.agents is None else tuple(dict.fromkeys(requested.agents)),
        workspaces=None if requested.workspaces is None else tuple(dict.fromkeys(requested.workspaces)),
        per_minute=requested.requests_per_minute,
        running=requested.running_jobs,
        queued=requested.queued_jobs,
        day_micros=None if day is None else to_positive_micros(day),
        month_micros=None if month is None else to_positive_micros(month),
        max_budget_micros=(
            None if requested.max_budget_usd is None else to_positive_micros(requested.max_budget_usd)
        ),
        max_timeout_seconds=requested.max_timeout_seconds,
        models=None if requested.models is None else tuple(dict.fromkeys(requested.models)),
    )


@router.get("/v1/keys", operation_id="listKeys", summary="List the keys", **operations.KEYS)
async def list_keys(request: Request) -> Response:
    """Return every key, revoked ones too, without their secrets; those of the environment come first."""
    context = _require_admin(request)
    parse_query(request)
    keyring = context.keyring
    body: native_bodies.KeyList = list_json(
        [key_json(key, is_fixed=keyring.is_fixed(key.id)) for key in keyring.list_keys()]
    )
    return json_response(body)


@router.post(
    "/v1/keys", status_code=201, operation_id="createKey", summary="Make a key", **operations.CREATE_KEY
)
async def create_key(request: Request) -> Response:
    """Create a key. Only this response has its `secret`; the service stores the SHA-256 alone."""
    context = _require_admin(request)
    parse_query(request)
    body, _ = await parse_body(request, requests.KeyRequest, context.options.max_body_bytes)
    limits = key_limits(body.limits)
    if body.strict:
        await context.control.check_key_limits(limits.agents, limits.workspaces)
    key, secret = await context.keyring.create(body.name, frozenset(body.scopes), limits, unique=body.strict)
    return _key_response(context, key, 201, secret)


@router.get("/v1/keys/{key_id}", operation_id="getKey", summary="Give a key", **operations.KEY)
async def get_key(request: Request, key_id: KeyId) -> Response:
    """Return a key, without its secret."""
    context = _require_admin(request)
    parse_query(request)
    return _key_response(context, context.keyring.get(_validate_key_id(key_id)))


@router.delete("/v1/keys/{key_id}", operation_id="revokeKey", summary="Revoke a key", **operations.REVOKE_KEY)
async def revoke_key(request: Request, key_id: KeyId) -> Response:
    """Revoke a key: new requests with it are refused at once, and its streams are cut.

    Its jobs continue. A key of the environment is changed there: 409.
    """
    context = _require_admin(request)
    parse_query(request)
    return _key_response(context, await context.keyring.revoke(_validate_key_id(key_id)))


@router.post(
    "/v1/keys/{key_id}/rotate",
    operation_id="rotateKey",
    summary="Give a key a new secret",
    **operations.ROTATE_KEY,
)
async def rotate_key(request: Request, key_id: KeyId) -> Response:
    """Create a new secret for a key; id, scopes and limits stay. The old one ends at once, or after `grace_seconds`."""
    context = _require_admin(request)
    parse_query(request)
    body = await parse_optional_body(request, requests.RotateRequest, context.options.max_body_bytes)
    key, secret = await context.keyring.rotate(_validate_key_id(key_id), body.grace_seconds)
    return _key_response(context, key, secret=secret)
