"""Document the routes of schedules; see `operations`."""

from steadyhand.api.openapi.operations import json_answer, list_query, route_doc
from steadyhand.api.schemas import native_bodies as native
from steadyhand.api.schemas import schedule_bodies as bodies

_SCHEDULE = {200: json_answer("The schedule.", bodies.Schedule, "SCHEDULE")}

SCHEDULES = route_doc(
    {200: json_answer("The schedules.", bodies.ScheduleList, "SCHEDULES")}, *(404, 422, 503)
)
SCHEDULE = route_doc(_SCHEDULE, *(404, 422, 503))
CREATE_SCHEDULE = route_doc(
    {201: json_answer("The schedule.", bodies.Schedule, "SCHEDULE", location="The schedule.")},
    *(404, 409, 503),
    body=bodies.ScheduleRequest,
    examples=("LEAST_SCHEDULE", "CREATE_SCHEDULE"),
)
CHANGE_SCHEDULE = route_doc(
    _SCHEDULE, *(404, 409, 503), body=bodies.ScheduleChangeRequest, examples=("CHANGE_SCHEDULE",)
)
REMOVE_SCHEDULE = route_doc({204: {"description": "It is removed."}}, *(404, 409, 422, 503))
PAUSE_SCHEDULE = RESUME_SCHEDULE = route_doc(
    _SCHEDULE,
    *(404, 409, 503),
    body=bodies.ScheduleActionRequest,
    examples=("EMPTY",),
    body_optional=True,
)
RUN_SCHEDULE = route_doc(
    {202: json_answer("The job; it is stored and will run.", native.Job, "QUEUED", location="The job.")},
    *(404, 409, 429, 503),
    body=bodies.ScheduleActionRequest,
    examples=("EMPTY",),
    body_optional=True,
)
SCHEDULE_TICKS = route_doc(
    {200: json_answer("A page.", bodies.ScheduleTickList, "SCHEDULE_TICKS")},
    *(404, 422, 503),
    parameters=list_query("limit", "cursor"),
)
