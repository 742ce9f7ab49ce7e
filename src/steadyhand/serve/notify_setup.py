"""Build the notifications from the settings: the notifiers, their plan, their processes and their deliverer."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from steadyhand.callbacks.deliverer import CallbackDeliverer, DelivererConfig
from steadyhand.config.file_schema import NotifierTable
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.events import Event
from steadyhand.job import Job
from steadyhand.notify.apprise_process import AppriseProcess
from steadyhand.notify.courier import NotificationCourier
from steadyhand.notify.notification_plan import NotificationPlan
from steadyhand.notify.notifiers import Notifier, check_url
from steadyhand.notify.quiet_hours import parse_quiet_hours
from steadyhand.outcome import OUTCOMES
from steadyhand.ports import NOTIFICATION_CIRCUIT, DeliveryDraft, Outbox, PlanDeliveries
from steadyhand.redact import Redactor
from steadyhand.suggest import closest_name

_MAX_IN_FLIGHT = 4
"""The notifications that are sent at once; each notifier sends one at a time."""


@dataclass(frozen=True, slots=True)
class Notifications:
    """The parts of the notifications."""

    notifiers: Sequence[Notifier]
    plan: NotificationPlan
    courier: NotificationCourier
    deliverer: CallbackDeliverer

    async def run(self) -> None:
        """Deliver until cancelled, then end the processes."""
        try:
            await self.check_notifiers()
            await self.deliverer.run()
        finally:
            await self.courier.close()

    async def check_notifiers(self) -> None:
        """Log a warning for each address that apprise cannot use."""
        for notifier in self.notifiers:
            reason = await self.courier.check(notifier)
            if reason is not None:
                structlog.get_logger("steadyhand.notify").warning(
                    "notifier.refused", notifier=notifier.name, reason=reason
                )

    def joined(
        self, plan: PlanDeliveries, on_added: Callable[[frozenset[str]], None]
    ) -> tuple[PlanDeliveries, Callable[[frozenset[str]], None]]:
        """Return a plan of the callbacks and the notifications, and a function that tells both deliverers."""

        def plan_all(job: Job, events: Sequence[Event]) -> Sequence[DeliveryDraft]:
            return [*plan(job, events), *self.plan(job, events)]

        def notify_all(circuits: frozenset[str]) -> None:
            on_added(circuits)
            self.deliverer.notify(circuits)

        return plan_all, notify_all


def create_notifications(
    settings: Settings,
    outbox: Outbox,
    redactor: Redactor,
    clock: Callable[[], datetime],
    key_name: Callable[[str], str],
    *,
    claim_seconds: float | None = None,
) -> Notifications:
    """Return the notifications. Raise `ConfigError` for a wrong notifier, and if apprise is missing.

    With `claim_seconds` other nodes send as well, and each notification belongs for that time to its node.
    """
    notifiers = load_notifiers(settings)
    if importlib.util.find_spec("apprise") is None:
        raise ConfigError("notify: apprise is missing; install steadyhand[notify].")
    processes = {each.name: AppriseProcess() for each in notifiers}
    courier = NotificationCourier(notifiers, dict(processes), settings.tables.callbacks.allow)
    config = DelivererConfig(
        clock,
        _MAX_IN_FLIGHT,
        claim_seconds=claim_seconds,
        owns=lambda name: name.startswith(NOTIFICATION_CIRCUIT),
    )
    deliverer = CallbackDeliverer(outbox, courier, config)
    plan = NotificationPlan(notifiers, key_name, redactor, settings.tables.server.public_url)
    return Notifications(notifiers, plan, courier, deliverer)


def load_notifiers(settings: Settings) -> Sequence[Notifier]:
    """Return the configured notifiers. Raise `ConfigError` for an address, a rule or hours that are none."""
    return [_load_notifier(name, table) for name, table in settings.tables.notify.items()]


def _load_notifier(name: str, table: NotifierTable) -> Notifier:
    setting = f"notify.{name}"
    if (table.url is None) == (table.url_file is None):
        raise ConfigError(f"{setting}: needs either url or url_file")
    for outcome in table.outcomes:
        if outcome not in {str(each) for each in OUTCOMES}:
            closest = closest_name(outcome, [str(each) for each in OUTCOMES])
            suggestion = f"; did you mean {closest!r}?" if closest else ""
            raise ConfigError(f"{setting}.outcomes: there is no outcome {outcome!r}{suggestion}")
    quiet_hours = None
    if table.quiet_hours is not None:
        quiet_hours = parse_quiet_hours(table.quiet_hours, table.timezone, setting)
    url = table.url if table.url_file is None else _read(table.url_file, f"{setting}.url_file")
    return Notifier(
        name,
        check_url(url or "", f"{setting}.url"),
        frozenset(table.events),
        frozenset(table.agents),
        frozenset(table.keys),
        frozenset(table.outcomes),
        quiet_hours,
        table.in_quiet_hours,
    )


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} could not be read: {error}") from error
