"""The pages of callbacks: the deliveries, one delivery with its message and its answer, and its replay."""

import json
import re
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.responses import Response

from steadyhand.addresses import url_origin
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.ports import NOTIFICATION_CIRCUIT, Delivery, DeliveryFilter, DeliveryState
from steadyhand.web.web_app import Visit

PAGE_SIZE = 50
_STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)
_MAX_FILTER_LENGTH = 100
_DELIVERY_ID = re.compile(r"(?:msg|evt)_[0-9a-f]{32}")


async def callbacks_page(visit: Visit) -> Response:
    """Show a page of the deliveries that the filters of the URL match, newest first."""
    caller, params = visit.caller, visit.request.query_params
    filters = {
        name: params.get(name, "").strip()[:_MAX_FILTER_LENGTH] for name in ("state", "job", "endpoint")
    }
    error, rows, next_cursor = None, [], None
    try:
        page = await visit.control.list_deliveries(
            caller, _delivery_filter(filters), PAGE_SIZE, params.get("cursor") or None
        )
        rows, next_cursor = [_row(each) for each in page.deliveries], page.next_cursor
    except InvalidRequest as problem:
        error = problem.detail
    query = [(name, value) for name, value in filters.items() if value]
    return visit.page(
        "callbacks.html",
        rows=rows,
        states=_STATES,
        filters=filters,
        error=error,
        query=urlencode(query),
        next_query=None if next_cursor is None else urlencode([*query, ("cursor", next_cursor)]),
        is_first="cursor" not in params,
        here=f"/ui/callbacks?{visit.request.url.query}",
    )


async def show_delivery(visit: Visit) -> Response:
    """Show one delivery: its receiver, the message as it is sent, and the answer to its last attempt."""
    delivery = await visit.control.get_delivery(visit.caller, _delivery_id(visit))
    return visit.page("callback.html", row=_row(delivery), body=_indent(delivery.body))


async def replay_delivery(visit: Visit) -> Response:
    """Send a delivery once more, and show it."""
    await visit.read_form()
    delivery = await visit.control.replay_delivery(visit.caller, _delivery_id(visit))
    return visit.redirect(f"/ui/callbacks/{delivery.id}")


def _delivery_id(visit: Visit) -> str:
    delivery_id: str = visit.request.path_params["delivery_id"]
    if _DELIVERY_ID.fullmatch(delivery_id) is None:
        raise NotFound("Delivery not found")
    return delivery_id


def _delivery_filter(filters: dict[str, str]) -> DeliveryFilter:
    state = filters["state"]
    if state and state not in _STATES:
        raise InvalidRequest.at("?state", f"has to be one of {', '.join(_STATES)}")
    return DeliveryFilter(
        job_id=filters["job"] or None,
        endpoint=filters["endpoint"] or None,
        state=state or None,
    )


def _row(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery and its receiver; of a job's address only the part that is no secret."""
    receiver = delivery.endpoint if delivery.endpoint is not None else url_origin(delivery.url or "")
    is_notification = delivery.circuit.startswith(NOTIFICATION_CIRCUIT)
    return {"delivery": delivery, "receiver": receiver, "is_notification": is_notification}


def _indent(body: str) -> str:
    """Return a body for people; it is sent without the spaces."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except ValueError:
        return body
