"""Usage and cost by key (docs/http-api.md#usage)."""

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.api.native.serializers import list_json, usage_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_response
from steadyhand.api.transport.params import QueryParams, parse_int, parse_query
from steadyhand.errors import InvalidRequest
from steadyhand.ports import UsageGroup, UsageQuery

router = RouteTable(tags=["keys"])

_GROUP_NAMES: tuple[UsageGroup, ...] = get_args(UsageGroup)
_MAX_ROWS = 1000
_MAX_OFFSET = 2**53


@router.get("/v1/usage", operation_id="getUsage", summary="What was spent", **operations.USAGE)
async def get_usage(request: Request) -> Response:
    """Add up the model calls, a row for each group. Without `admin` a key sees its own."""
    caller = get_caller(request)
    caller.require_scope("read")
    query = parse_query(request, *operations.USAGE_PARAMETERS)
    limit = query.get_int("limit", 200, minimum=1, maximum=_MAX_ROWS)
    cursor = query.get_one("cursor")
    offset = (
        0
        if cursor is None
        else parse_int(cursor, "?cursor", minimum=1, maximum=_MAX_OFFSET, code="bad_cursor")
    )
    usage_query = UsageQuery(
        by=_parse_groups(query),
        since=query.get_datetime("since"),
        until=query.get_datetime("until"),
        api_key_id=query.get_one("api_key"),
        agent=query.get_one("agent"),
        model=query.get_one("model"),
    )
    rows = await get_context(request).control.usage(caller, usage_query)
    next_cursor = str(offset + limit) if len(rows) > offset + limit else None
    body: native_bodies.UsageList = list_json(
        [usage_json(row) for row in rows[offset : offset + limit]], next_cursor
    )
    return json_response(body)


def _parse_groups(query: QueryParams) -> tuple[UsageGroup, ...]:
    requested = query.get_all("by")
    if not set(requested) <= set(_GROUP_NAMES):
        raise InvalidRequest.at("?by", f"has to be one of {', '.join(_GROUP_NAMES)}")
    return tuple(group for group in _GROUP_NAMES if group in requested)
