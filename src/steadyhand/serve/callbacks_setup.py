"""Build the callbacks from the settings: the guard, the endpoints, the plan of deliveries and the deliverer."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from steadyhand import __version__
from steadyhand.callbacks.address_guard import AddressGuard, CallbackUrl, parse_callback_url
from steadyhand.callbacks.deliverer import CallbackDeliverer, DelivererConfig
from steadyhand.callbacks.endpoint_courier import EndpointCourier
from steadyhand.callbacks.endpoint_registry import EndpointRegistry
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.callbacks.lazy_sender import LazySender
from steadyhand.callbacks.plan import DeliveryPlan, Renderers
from steadyhand.callbacks.signing import derive_secret, parse_secrets
from steadyhand.config.settings import Settings
from steadyhand.errors import CallbackRefused, ConfigError
from steadyhand.ports import NOTIFICATION_CIRCUIT, BeginDeliverySpan, EndpointStore, Outbox, no_delivery_span
from steadyhand.redact import Redactor

if TYPE_CHECKING:
    from steadyhand.serve.notify_setup import Notifications

CLAIM_SECONDS = 60.0
"""The time beside that of a request for which a delivery belongs to the node that sends it."""
_MIN_SECRET_BYTES = 16
_SHARED_NAME = "callbacks"


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The parts of the callbacks. `secret` is the one that signs."""

    guard: AddressGuard
    deliverer: CallbackDeliverer
    sender: LazySender
    endpoints: EndpointRegistry
    secret: "ServiceSecret"
    notifications: "Notifications | None" = None

    @property
    def notification_counts(self) -> Callable[[], Mapping[str, int]] | None:
        """The counts of the notifications; None without notifiers."""
        return None if self.notifications is None else self.notifications.deliverer.counts

    async def run(self) -> None:
        """Deliver until cancelled, then close the connections."""
        try:
            async with asyncio.TaskGroup() as group:
                if self.notifications is not None:
                    group.create_task(self.notifications.run(), name="notifications")
                await self.check_endpoints()
                await self.deliverer.run()
        finally:
            await self.sender.close()

    async def check_endpoints(self) -> None:
        """Log a warning for each endpoint whose address may not be called now."""
        for endpoint in self.endpoints.all():
            try:
                await self.guard.find_addresses(endpoint.url.target)
            except CallbackRefused as error:
                structlog.get_logger("steadyhand.callbacks").warning(
                    "callback.refused", endpoint=endpoint.name, reason=f"Its address {error.detail}."
                )


def create_callbacks(
    settings: Settings,
    outbox: Outbox,
    redactor: Redactor,
    render: Renderers,
    clock: Callable[[], datetime],
    *,
    endpoint_store: EndpointStore,
    key_name: Callable[[str], str],
    begin_span: BeginDeliverySpan = no_delivery_span,
    is_shared: bool = False,
) -> Callbacks:
    """Return the callbacks, and make the store plan their deliveries. Raise `ConfigError` for a wrong endpoint.

    With `is_shared` other nodes deliver as well.
    """
    table = settings.tables.callbacks
    guard = AddressGuard(table.allow)
    endpoints = EndpointRegistry(
        load_endpoints(settings),
        endpoint_store,
        check=guard.check,
        add_secrets=redactor.add,
        clock=clock,
        is_shared=is_shared,
    )
    sender = LazySender(guard, max_connections=table.max_in_flight, seconds=table.timeout_seconds)
    secret = ServiceSecret(settings, redactor)
    courier = EndpointCourier(
        sender, endpoints.find, secret.secret_for, clock, __version__, begin_span=begin_span
    )
    plan = DeliveryPlan(endpoints.all, render, redactor, settings.tables.server.public_url)
    notifications = None
    if settings.tables.notify:
        from steadyhand.serve.notify_setup import create_notifications  # noqa: PLC0415  # only if any are configured

        notifications = create_notifications(
            settings, outbox, redactor, clock, key_name, claim_seconds=CLAIM_SECONDS if is_shared else None
        )
    # Without notifiers it also owns the deliveries of those that were removed, and cancels them.
    owns = _is_callback if notifications is not None else _is_any
    config = DelivererConfig(clock, table.max_in_flight, owns=owns)
    if is_shared:
        seconds = table.timeout_seconds + CLAIM_SECONDS
        config = replace(config, claim_seconds=seconds, refresh=endpoints.load)
    deliverer = CallbackDeliverer(outbox, courier, config)
    if notifications is None:
        outbox.use_plan(plan, deliverer.notify)
        outbox.use_pause_plan(plan.plan_pause)
    else:
        plan_all, notify_all = notifications.joined(plan, deliverer.notify)
        outbox.use_plan(plan_all, notify_all)
        to_people = notifications.plan.plan_pause
        outbox.use_pause_plan(lambda schedule: [*plan.plan_pause(schedule), *to_people(schedule)])
    return Callbacks(guard, deliverer, sender, endpoints, secret, notifications)


def _is_any(_circuit: str) -> bool:
    return True


def _is_callback(circuit: str) -> bool:
    return not circuit.startswith(NOTIFICATION_CIRCUIT)


def load_endpoints(settings: Settings) -> Mapping[str, Endpoint]:
    """Return the configured endpoints by name. Raise `ConfigError` for a URL or a secret that is none."""
    return {
        name: Endpoint(
            name,
            _parse_url(name, table.url),
            frozenset(table.events),
            frozenset(table.agents),
            table.body,
            parse_secrets(_read(table.secret_file, f"callbacks.endpoints.{name}.secret_file"), name),
        )
        for name, table in settings.tables.callbacks.endpoints.items()
    }


def _parse_url(name: str, url: str) -> CallbackUrl:
    try:
        return parse_callback_url(url)
    except CallbackRefused as error:
        raise ConfigError(f"callbacks.endpoints.{name}.url: {error.detail}") from error


class ServiceSecret:
    """The secret from which those of the keys are made. Its file, if none is named, is created at the first use."""

    def __init__(self, settings: Settings, redactor: Redactor) -> None:
        """Read the file that the settings name. Raise `ConfigError` if it has no secret."""
        self._path = settings.tables.callbacks.secret_file or settings.data_dir / "callbacks.key"
        self._redactor = redactor
        self._secret: bytes | None = None
        self._is_configured = settings.tables.callbacks.secret_file is not None
        if self._is_configured:
            self._secret = self._load()

    def secret_for(self, api_key_id: str) -> str:
        """Return the secret that signs for the jobs of a key."""
        if self._secret is None:
            if not self._path.exists():
                handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(secrets.token_urlsafe(32) + "\n")
            self._secret = self._load()
            self._redactor.add([self._secret])
        return derive_secret(self._secret, api_key_id)

    async def share(self, share: Callable[[str, str], Awaitable[str]]) -> None:
        """Use the secret that all nodes of a database have, unless the settings name a file.

        `share` stores a secret by its name if there is none, and returns the one that is stored.
        """
        if self._is_configured:
            return
        own = self._load().decode() if self._path.exists() else secrets.token_urlsafe(32)
        self._secret = (await share(_SHARED_NAME, own)).encode()
        self._redactor.add([self._secret])

    def _load(self) -> bytes:
        secret = _read(self._path, "callbacks.secret_file").strip().encode()
        if len(secret) < _MIN_SECRET_BYTES:
            raise ConfigError(f"callbacks.secret_file: {self._path} has less than {_MIN_SECRET_BYTES} bytes.")
        return secret


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} could not be read: {error}") from error
