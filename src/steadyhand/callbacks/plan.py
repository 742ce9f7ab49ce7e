"""The deliveries about an event of a job: who is told, and the text that each is sent. Pure."""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from steadyhand.callbacks.address_guard import parse_callback_url
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.errors import CallbackRefused
from steadyhand.events import BudgetNear, Event, StateChanged, ToolCallsRequested, format_rfc3339
from steadyhand.job import ENDED, CallbackBody, CallbackEvent, Job, State
from steadyhand.ports import DeliveryDraft, Schedule
from steadyhand.redact import Redactor

MAX_BODY_BYTES = 256 * 1024
"""The size of a body; a larger job is sent as a thin body with `truncated`."""

_encode: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Renderers:
    """The forms of a job that the API owns.

    `job` returns the whole job, and `response` the type and the data of OpenAI's event about its response in the
    background, or None if it is none.
    """

    job: Callable[[Job], Mapping[str, Any]]
    response: Callable[[Job], tuple[str, Mapping[str, Any]] | None]


class DeliveryPlan:
    """Returns the deliveries about new events of a job; it is called inside a transaction of the store."""

    def __init__(
        self,
        endpoints: Callable[[], Iterable[Endpoint]],
        render: Renderers,
        redactor: Redactor,
        public_url: str | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """`endpoints` returns those that there are now, in any thread.

        `public_url` begins the links of bodies; without it they are paths.
        """
        self._endpoints = endpoints
        self._render = render
        self._redactor = redactor
        self._public_url = (public_url or "").rstrip("/")
        self._new_id = new_id

    def __call__(self, job: Job, events: Sequence[Event]) -> Sequence[DeliveryDraft]:
        """Return the deliveries in the order of the events. It does not raise: the event must be stored."""
        try:
            return [draft for event in events for draft in self._plan_event(job, event)]
        except Exception:  # noqa: BLE001  # the boundary of the callbacks inside the write of an event
            structlog.get_logger("steadyhand.callbacks").exception("callback.not_planned", job=job.id)
            return ()

    def plan_pause(self, schedule: Schedule) -> Sequence[DeliveryDraft]:
        """Return the deliveries about a schedule that has paused itself. Never raise: the pause must be stored."""
        try:
            return list(self._plan_pause(schedule))
        except Exception:  # noqa: BLE001  # the boundary of the callbacks inside the write of a pause
            structlog.get_logger("steadyhand.callbacks").exception(
                "callback.not_planned", schedule=schedule.name
            )
            return ()

    def _plan_pause(self, schedule: Schedule) -> Iterator[DeliveryDraft]:
        pause, callback = schedule.paused, schedule.spec.job.spec.callback
        if pause is None:
            return
        path = f"{self._public_url}/v1/schedules/{schedule.name}"
        data = {
            "schedule": schedule.name,
            "reason": pause.reason,
            "detail": pause.detail,
            "links": {"schedule": path, "history": f"{path}/history"},
        }
        body = _encode(
            {
                "type": "schedule.paused",
                "timestamp": format_rfc3339(pause.at),
                "data": self._redactor.value(data),
            }
        )
        if callback is not None and "schedule.paused" in callback.events:
            circuit = _circuit_of(schedule.api_key_id, callback.url)
            if circuit is not None:
                message = f"msg_{self._new_id()}"
                yield DeliveryDraft(message, None, callback.url, circuit, "schedule.paused", body)
        for endpoint in self._endpoints():
            if endpoint.is_told_of_pause(schedule) and endpoint.body != "openai":
                message = f"msg_{self._new_id()}"
                yield DeliveryDraft(message, endpoint.name, None, endpoint.circuit, "schedule.paused", body)

    def _plan_event(self, job: Job, event: Event) -> Iterator[DeliveryDraft]:
        kind = callback_event(job, event)
        if kind is None:
            return
        callback = job.spec.callback
        if callback is not None and kind in callback.events:
            draft = self._draft(job, event, kind, callback.body)
            circuit = _circuit_of(job.api_key_id, callback.url)
            if draft is not None and circuit is not None:
                yield DeliveryDraft(draft[0], None, callback.url, circuit, kind, draft[1])
        for endpoint in self._endpoints():
            if endpoint.is_told(kind, job):
                draft = self._draft(job, event, kind, endpoint.body)
                if draft is not None:
                    yield DeliveryDraft(draft[0], endpoint.name, None, endpoint.circuit, kind, draft[1])

    def _draft(
        self, job: Job, event: Event, kind: CallbackEvent, form: CallbackBody
    ) -> tuple[str, str] | None:
        """Return the id and the body of a message; None if there is nothing to tell in this form."""
        if form == "openai":
            return self._openai_message(job, event, kind)
        data = self._thin_data(job, event)
        if kind == "budget.near":
            data["budget"] = dict(event.data)
        if form == "full":
            full = {**data, "job": self._render.job(job)}
            if kind == "job.needs_results":
                full["calls"] = event.data["calls"]
            text = self._body(kind, event, full)
            if len(text) <= MAX_BODY_BYTES:
                return f"msg_{self._new_id()}", text
            data["truncated"] = True
        return f"msg_{self._new_id()}", self._body(kind, event, data)

    def _openai_message(self, job: Job, event: Event, kind: CallbackEvent) -> tuple[str, str] | None:
        rendered = self._render.response(job) if kind == "job.ended" else None
        if rendered is None:
            return None
        kind_of_response, data = rendered
        message_id = f"evt_{self._new_id()}"
        body = {
            "object": "event",
            "id": message_id,
            "type": kind_of_response,
            "created_at": int(event.at.timestamp()),
            "data": data,
        }
        return message_id, _encode(body)

    def _body(self, kind: CallbackEvent, event: Event, data: Mapping[str, Any]) -> str:
        clean = self._redactor.value(data)
        return _encode({"type": kind, "timestamp": format_rfc3339(event.at), "data": clean})

    def _thin_data(self, job: Job, event: Event) -> dict[str, Any]:
        path = f"{self._public_url}/v1/jobs/{job.id}"
        return {
            "id": job.id,
            "state": job.state.value,
            "outcome": None if job.outcome is None else job.outcome.type,
            "run": job.run,
            "event": event.seq,
            "links": {"job": path, "events": f"{path}/events"},
        }


def callback_event(job: Job, event: Event) -> CallbackEvent | None:
    """Return the event that callbacks tell of, if any. A job that the next start takes up again has not ended."""
    if event.type == ToolCallsRequested.type:
        return "job.needs_results"
    if event.type == BudgetNear.type:
        return "budget.near"
    if event.type != StateChanged.type:
        return None
    target = State(event.data["to"])
    if target is State.PARKED:
        return "job.parked"
    return "job.ended" if target in ENDED and job.is_final else None


def _circuit_of(api_key_id: str, url: str) -> str | None:
    """Return the circuit of a receiver that a job names: no other key's receiver is in it."""
    try:
        return f"{api_key_id} {parse_callback_url(url).origin}"
    except CallbackRefused:  # it was checked when it was set; a later release may be stricter
        return None
