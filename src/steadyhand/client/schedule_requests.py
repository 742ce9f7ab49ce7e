"""The requests of the client about schedules; see `http_requests`."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypedDict

from steadyhand.client.http_requests import HttpRequest, checked_name, get, post


class ScheduleFields(TypedDict, total=False):
    """The fields of a schedule; see `POST /v1/schedules`. A cap of 0 is no cap."""

    cron: str | None
    timezone: str | None
    job: Mapping[str, Any] | None
    overlap: str | None
    missed: str | None
    max_usd: float | Decimal | None
    max_runs: int | None
    max_failures: int | None


SCHEDULES_PATH = "/v1/schedules"
_CAPS = frozenset({"max_usd", "max_runs", "max_failures"})


def get_or_act(name: str, action: str | None = None) -> HttpRequest:
    """Return the request for a schedule, or for an action on it; a run is not repeatable: each arrival runs it."""
    path = schedule_path(name)
    if action is None:
        return get(path)
    return replace(post(f"{path}/{action}", {}), repeatable=action != "run")


def create_schedule(name: str, fields: Mapping[str, Any], *, paused: bool) -> HttpRequest:
    """Return the request that creates a schedule. It is not repeatable: the name would be taken."""
    body = {"name": name, **_schedule_body(fields, no_cap=False), **({"paused": True} if paused else {})}
    return replace(post(SCHEDULES_PATH, body), repeatable=False)


def change_schedule(name: str, fields: Mapping[str, Any]) -> HttpRequest:
    """Return the request that changes a schedule."""
    return replace(post(schedule_path(name), _schedule_body(fields, no_cap=True)), method="PATCH")


def remove_schedule(name: str) -> HttpRequest:
    """Return the request that removes a schedule."""
    return HttpRequest("DELETE", schedule_path(name))


def schedule_history(name: str, limit: int, cursor: str | None) -> HttpRequest:
    """Return the request for a page of a schedule's history."""
    return get(f"{schedule_path(name)}/history", {"limit": limit, "cursor": cursor})


def schedule_path(name: str) -> str:
    """Return the path of a schedule. Raise `NotFound` for a name that none can have."""
    return f"{SCHEDULES_PATH}/{checked_name(name, 'a schedule')}"


def _schedule_body(fields: Mapping[str, Any], *, no_cap: bool) -> dict[str, Any]:
    """Return the fields that are set; a cap of 0 is null, which takes the cap away from a schedule that has one."""
    body = {
        name: float(value) if isinstance(value, Decimal) else value
        for name, value in fields.items()
        if value is not None and not (name in _CAPS and value == 0)
    }
    return body | ({name: None for name in _CAPS & fields.keys() if fields[name] == 0} if no_cap else {})
