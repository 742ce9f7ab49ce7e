"""Keys (docs/http-api.md#keys); all of it needs the scope `admin`."""

import re
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import key_json, list_json, new_key_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies, requests
from steadyhand.api.schemas.requests import micros_of
from steadyhand.api.transport.body import body_of, optional_body_of
from steadyhand.api.transport.context import Door, caller_of, door_of
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import query_of
from steadyhand.api.transport.route import DirectRoute
from steadyhand.errors import NotFound
from steadyhand.ports import NO_LIMITS, ApiKey, KeyLimits

router = APIRouter(tags=["keys"], route_class=DirectRoute)

KeyId = Annotated[str, Path(description="The key's id; it stands in its secret.")]
_KEY_ID = re.compile(r"k_[a-z0-9]{1,32}")


def _admin(request: Request) -> Door:
    """Give the door to who may look after keys."""
    caller_of(request).require("admin")
    return door_of(request)


def _known_form(key_id: str) -> str:
    if _KEY_ID.fullmatch(key_id) is None:
        raise NotFound("Key not found")
    return key_id


def _answer(door: Door, key: ApiKey, status: int = 200, secret: str | None = None) -> Response:
    is_fixed = door.keyring.is_fixed(key.id)
    body = (
        key_json(key, is_fixed=is_fixed) if secret is None else new_key_json(key, secret, is_fixed=is_fixed)
    )
    headers = {"location": f"/v1/keys/{key.id}"} if status == 201 else {}  # noqa: PLR2004  # created
    if secret is not None:
        headers["cache-control"] = "no-store"
    return json_response(body, status, headers=headers)


def limits_of(asked: requests.KeyLimitsRequest | None) -> KeyLimits:
    """Give the limits that a request asks for, in the words of the core."""
    if asked is None:
        return NO_LIMITS
    day, month = asked.budget_usd_per_day, asked.budget_usd_per_month
    return KeyLimits(
        agents=None if asked.agents is None else tuple(dict.fromkeys(asked.agents)),
        workspaces=None if asked.workspaces is None else tuple(dict.fromkeys(asked.workspaces)),
        per_minute=asked.requests_per_minute,
        running=asked.running_jobs,
        queued=asked.queued_jobs,
        day_micros=None if day is None else micros_of(day),
        month_micros=None if month is None else micros_of(month),
    )


@router.get("/v1/keys", operation_id="listKeys", summary="List the keys", **operations.KEYS)
async def listed(request: Request) -> Response:
    """Give every key, revoked ones too, without their secrets; those of the environment come first."""
    door = _admin(request)
    query_of(request)
    keyring = door.keyring
    body: native_bodies.KeyList = list_json(
        [key_json(key, is_fixed=keyring.is_fixed(key.id)) for key in keyring.all()]
    )
    return json_response(body)


@router.post(
    "/v1/keys", status_code=201, operation_id="createKey", summary="Make a key", **operations.CREATE_KEY
)
async def create(request: Request) -> Response:
    """Make a key. Its `secret` stands in this answer and nowhere else; only its SHA-256 is kept."""
    door = _admin(request)
    query_of(request)
    asked, _ = await body_of(request, requests.KeyRequest, door.options.max_body_bytes)
    key, secret = await door.keyring.create(asked.name, frozenset(asked.scopes), limits_of(asked.limits))
    return _answer(door, key, 201, secret)


@router.get("/v1/keys/{key_id}", operation_id="getKey", summary="Give a key", **operations.KEY)
async def get(request: Request, key_id: KeyId) -> Response:
    """Give a key, without its secret."""
    door = _admin(request)
    query_of(request)
    return _answer(door, door.keyring.get(_known_form(key_id)))


@router.delete("/v1/keys/{key_id}", operation_id="revokeKey", summary="Revoke a key", **operations.REVOKE_KEY)
async def revoke(request: Request, key_id: KeyId) -> Response:
    """End a key: new requests with it are refused at once, and streams that it follows are cut.

    Jobs that it has asked for go on. A key of the environment is changed there: 409.
    """
    door = _admin(request)
    query_of(request)
    return _answer(door, await door.keyring.revoke(_known_form(key_id)))


@router.post(
    "/v1/keys/{key_id}/rotate",
    operation_id="rotateKey",
    summary="Give a key a new secret",
    **operations.ROTATE_KEY,
)
async def rotate(request: Request, key_id: KeyId) -> Response:
    """Give a key a new secret; id, scopes and limits stay. The old one ends at once, or after `grace_seconds`."""
    door = _admin(request)
    query_of(request)
    asked = await optional_body_of(request, requests.RotateRequest, door.options.max_body_bytes)
    key, secret = await door.keyring.rotate(_known_form(key_id), asked.grace_seconds)
    return _answer(door, key, secret=secret)
