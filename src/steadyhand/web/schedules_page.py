"""The schedules on the page of the service, the history of one, and the forms that pause, resume and run them."""

from collections.abc import Sequence
from urllib.parse import quote

from starlette.responses import Response

from steadyhand.agents import NAME_PATTERN
from steadyhand.api.native.schedules import owner_of
from steadyhand.api.transport.params import parse_query
from steadyhand.errors import NotFound
from steadyhand.ports import ScheduleInfo, Schedules
from steadyhand.web.web_app import Visit

_HISTORY_LIMIT = 50


def _schedules(visit: Visit) -> Schedules:
    schedules = visit.context.options.schedules
    if schedules is None:
        raise NotFound("This service has no schedules.")
    return schedules


def _reader(visit: Visit) -> str | None:
    """Return the key whose schedules the session may see; None for all of them."""
    visit.caller.require_scope("read")
    return None if visit.caller.has_scope("read:all") else visit.caller.key_id


def _name(visit: Visit) -> str:
    name: str = visit.request.path_params["name"]
    if NAME_PATTERN.fullmatch(name) is None:
        raise NotFound("Schedule not found")
    return name


async def list_schedules(visit: Visit) -> Sequence[ScheduleInfo]:
    """Return the schedules that the session may see; none in a service without them."""
    if visit.context.options.schedules is None:
        return []
    return await _schedules(visit).list_schedules(_reader(visit))


def may_change(visit: Visit, info: ScheduleInfo) -> bool:
    """Return True if the session may pause, resume and run a schedule."""
    caller = visit.caller
    return caller.has_scope("submit") and owner_of(caller) in (None, info.schedule.api_key_id)


async def show_schedule(visit: Visit) -> Response:
    """Show a schedule with its job and its history."""
    schedules, owner, name = _schedules(visit), _reader(visit), _name(visit)
    query = parse_query(visit.request, "cursor")
    info = await schedules.get(name, owner)
    page = await schedules.history(name, owner, _HISTORY_LIMIT, query.get_one("cursor"))
    return visit.page(
        "schedule.html",
        info=info,
        may_change=may_change(visit, info),
        ticks=page.ticks,
        next_cursor=page.next_cursor,
    )


async def pause(visit: Visit) -> Response:
    """Pause a schedule."""
    await visit.read_form()
    visit.caller.require_scope("submit")
    await _schedules(visit).pause(_name(visit), owner_of(visit.caller))
    return _back(visit)


async def resume(visit: Visit) -> Response:
    """Resume a schedule from now on."""
    await visit.read_form()
    visit.caller.require_scope("submit")
    await _schedules(visit).resume(_name(visit), owner_of(visit.caller))
    return _back(visit)


async def run_now(visit: Visit) -> Response:
    """Submit the job of a schedule and show it."""
    await visit.read_form()
    visit.caller.require_scope("submit")
    job = await _schedules(visit).run_now(_name(visit), owner_of(visit.caller))
    return visit.redirect(f"/ui/jobs/{job.id}")


def _back(visit: Visit) -> Response:
    return visit.redirect(f"/ui/schedules/{quote(_name(visit), safe='')}")
