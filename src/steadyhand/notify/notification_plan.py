"""The notifications about an event of a job: who is told, and the text. Pure but for the clock of the event."""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import structlog

from steadyhand.callbacks.plan import callback_event
from steadyhand.events import Event, budget_near_text
from steadyhand.job import Job
from steadyhand.notify.message import notification_text, pause_text
from steadyhand.notify.notifiers import Notifier
from steadyhand.ports import DeliveryDraft, Schedule
from steadyhand.redact import Redactor


class NotificationPlan:
    """Returns the deliveries to notifiers about new events of a job, inside a transaction of the store."""

    def __init__(
        self,
        notifiers: Iterable[Notifier],
        key_name: Callable[[str], str],
        redactor: Redactor,
        public_url: str | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """Keep the notifiers. `key_name` returns the name of a key, `public_url` begins the links."""
        self._notifiers = tuple(notifiers)
        self._key_name = key_name
        self._redactor = redactor
        self._public_url = (public_url or "").rstrip("/")
        self._new_id = new_id

    def __call__(self, job: Job, events: Sequence[Event]) -> Sequence[DeliveryDraft]:
        """Return the deliveries in the order of the events. It does not raise: the event must be stored."""
        try:
            return [draft for event in events for draft in self._plan_event(job, event)]
        except Exception:  # noqa: BLE001  # the boundary of the notifications inside the write of an event
            structlog.get_logger("steadyhand.notify").exception("notification.not_planned", job=job.id)
            return ()

    def plan_pause(self, schedule: Schedule) -> Sequence[DeliveryDraft]:
        """Return the deliveries about a schedule that has paused itself. Never raise: the pause must be stored."""
        try:
            return list(self._plan_pause(schedule))
        except Exception:  # noqa: BLE001  # the boundary of the notifications inside the write of a pause
            structlog.get_logger("steadyhand.notify").exception(
                "notification.not_planned", schedule=schedule.name
            )
            return ()

    def _plan_pause(self, schedule: Schedule) -> Iterator[DeliveryDraft]:
        pause = schedule.paused
        if pause is None:
            return
        for notifier in self._notifiers:
            if not notifier.is_told_of_pause(schedule, self._key_name(schedule.api_key_id)):
                continue
            quiet_end = notifier.quiet_end(pause.at)
            if quiet_end is not None and notifier.in_quiet_hours == "drop":
                continue
            text = pause_text(schedule.name, pause.detail, self._redactor, self._public_url)
            body = json.dumps(asdict(text), separators=(",", ":"))
            yield DeliveryDraft(
                f"msg_{self._new_id()}",
                notifier.endpoint,
                None,
                notifier.circuit,
                "schedule.paused",
                body,
                due_at=quiet_end,
            )

    def _plan_event(self, job: Job, event: Event) -> Iterator[DeliveryDraft]:
        kind = callback_event(job, event)
        if kind is None:
            return
        for notifier in self._notifiers:
            if not notifier.is_told(kind, job, self._key_name(job.api_key_id)):
                continue
            quiet_end = notifier.quiet_end(event.at)
            if quiet_end is not None and notifier.in_quiet_hours == "drop":
                continue
            budget = budget_near_text(event.data) if kind == "budget.near" else None
            text = notification_text(job, kind, self._redactor, self._public_url, budget)
            body = json.dumps(asdict(text), separators=(",", ":"))
            message_id = f"msg_{self._new_id()}"
            yield DeliveryDraft(
                message_id, notifier.endpoint, None, notifier.circuit, kind, body, due_at=quiet_end
            )
