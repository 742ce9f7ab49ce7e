"""What was spent with keys (docs/http-api.md#usage)."""

from typing import get_args

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import list_json, usage_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.transport.context import caller_of, door_of
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import Query, query_of, whole_number
from steadyhand.api.transport.route import DirectRoute
from steadyhand.errors import InvalidRequest
from steadyhand.ports import UsageBy, UsageQuery

router = APIRouter(tags=["keys"], route_class=DirectRoute)

_GROUPS: tuple[UsageBy, ...] = get_args(UsageBy)
_MOST_GROUPS = 1000
_FURTHEST = 2**53


@router.get("/v1/usage", operation_id="getUsage", summary="What was spent", **operations.USAGE)
async def usage(request: Request) -> Response:
    """Add up the calls of models, a row for each group. Without `admin` a key sees its own."""
    caller = caller_of(request)
    caller.require("read")
    query = query_of(request, *operations.USAGE_PARAMETERS)
    limit = query.whole("limit", 200, least=1, most=_MOST_GROUPS)
    cursor = query.one("cursor")
    start = (
        0 if cursor is None else whole_number(cursor, "?cursor", least=1, most=_FURTHEST, code="bad_cursor")
    )
    which = UsageQuery(
        by=_groups(query),
        since=query.time("since"),
        until=query.time("until"),
        api_key_id=query.one("api_key"),
        agent=query.one("agent"),
        model=query.one("model"),
    )
    rows = await door_of(request).control.usage(caller, which)
    more = str(start + limit) if len(rows) > start + limit else None
    body: native_bodies.UsageList = list_json([usage_json(row) for row in rows[start : start + limit]], more)
    return json_response(body)


def _groups(query: Query) -> tuple[UsageBy, ...]:
    wanted = query.all("by")
    if not set(wanted) <= set(_GROUPS):
        raise InvalidRequest.at("?by", f"has to be one of {', '.join(_GROUPS)}")
    return tuple(group for group in _GROUPS if group in wanted)
