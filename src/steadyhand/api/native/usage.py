"""Usage and cost by key (docs/http-api.md#usage)."""

import base64
import json
from datetime import date
from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from steadyhand.addresses import redact_url
from steadyhand.api.native.serializers import list_json, usage_json
from steadyhand.api.openapi import operations
from steadyhand.api.schemas import native_bodies
from steadyhand.api.schemas.route_table import RouteTable
from steadyhand.api.transport.context import get_caller, get_context
from steadyhand.api.transport.errors import json_bytes, json_response
from steadyhand.api.transport.params import QueryParams, parse_query
from steadyhand.errors import InvalidRequest
from steadyhand.ports import UsageGroup, UsageQuery, UsageRow

router = RouteTable(tags=["keys"])

_GROUP_NAMES: tuple[UsageGroup, ...] = get_args(UsageGroup)
_MAX_ROWS = 1000


@router.get("/v1/usage", operation_id="getUsage", summary="What was spent", **operations.USAGE)
async def get_usage(request: Request) -> Response:
    """Add up the model calls, a row for each group. Without `admin` a key sees its own."""
    caller = get_caller(request)
    caller.require_scope("read")
    query = parse_query(request, *operations.USAGE_PARAMETERS)
    limit = query.get_int("limit", 200, minimum=1, maximum=_MAX_ROWS)
    groups = _parse_groups(query)
    cursor, workspace = query.get_one("cursor"), query.get_one("workspace")
    usage_query = UsageQuery(
        by=groups,
        since=query.get_datetime("since"),
        until=query.get_datetime("until"),
        api_key_id=query.get_one("api_key"),
        agent=query.get_one("agent"),
        model=query.get_one("model"),
        workspace=None if workspace is None else redact_url(workspace) or "",
        limit=limit + 1,
        after=() if cursor is None else _decode_cursor(cursor, groups),
    )
    rows = await get_context(request).control.usage(caller, usage_query)
    page = rows[:limit]
    next_cursor = _encode_cursor(page[-1], groups) if len(rows) > limit else None
    body: native_bodies.UsageList = list_json([usage_json(row) for row in page], next_cursor)
    return json_response(body)


def _parse_groups(query: QueryParams) -> tuple[UsageGroup, ...]:
    requested = query.get_all("by")
    if not set(requested) <= set(_GROUP_NAMES):
        raise InvalidRequest.at("?by", f"has to be one of {', '.join(_GROUP_NAMES)}")
    return tuple(group for group in _GROUP_NAMES if group in requested)


def _encode_cursor(last: UsageRow, groups: tuple[UsageGroup, ...]) -> str:
    """Return the cursor of the page after this row: the values of its groups."""
    return base64.urlsafe_b64encode(json_bytes([last.group[each] for each in groups])).decode("ascii")


def _decode_cursor(cursor: str, groups: tuple[UsageGroup, ...]) -> tuple[str, ...]:
    try:
        values = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if len(values) == len(groups) and groups and all(isinstance(each, str) for each in values):
            by_group = dict(zip(groups, values, strict=True))
            date.fromisoformat(by_group.get("day", "2000-01-01"))
            return tuple(values)
    except (ValueError, TypeError, RecursionError):
        pass  # as any other text that no page had
    raise InvalidRequest.at("?cursor", "is not a cursor that this service gave", code="bad_cursor")
