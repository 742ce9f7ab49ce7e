"""Sends notifications: each notifier has a process of its own, so that one that hangs keeps no other waiting."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol

from steadyhand.callbacks.deliverer import SendResult
from steadyhand.notify.notifiers import MAIL_SCHEMES, Notifier
from steadyhand.ports import Delivery

MAIL_PORTS = (25, 465, 587)
_DELIVERED = 200


class SendNotification(Protocol):
    """Sends one notification and returns the answer as the child process tells it."""

    async def request(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; it has `error` if there is none."""
        ...

    async def close(self) -> None:
        """End the process."""
        ...


class NotificationCourier:
    """Sends the deliveries of notifiers. `allow` lists private receivers, as in [callbacks] allow."""

    def __init__(
        self, notifiers: Iterable[Notifier], processes: dict[str, SendNotification], allow: Sequence[str]
    ) -> None:
        self._notifiers = {each.endpoint: each for each in notifiers}
        self._processes = processes
        self._allow = list(allow)

    def knows(self, delivery: Delivery) -> bool:
        """Return False if the notifier of a delivery was removed."""
        return delivery.endpoint in self._notifiers

    def held_until(self, delivery: Delivery, now: datetime) -> datetime | None:
        """Return the end of the quiet hours, in which another attempt would disturb as much as the first."""
        notifier = self._notifiers.get(delivery.endpoint or "")
        return None if notifier is None else notifier.quiet_end(now)

    async def send(self, delivery: Delivery) -> SendResult:
        """Send the text of a delivery."""
        notifier = self._notifiers[delivery.endpoint or ""]
        answer = await self._request(notifier, json.loads(delivery.body))
        status, retry_after = answer.get("status"), answer.get("retry_after")
        if answer.get("ok"):
            return SendResult(_DELIVERED)
        if answer.get("refused"):
            return SendResult(error=f"The address {answer['refused']}.", refused=True)
        if isinstance(status, int) and status >= 300:  # noqa: PLR2004  # the class of the status
            return SendResult(status, retry_after if isinstance(retry_after, str) else None)
        return SendResult(error=str(answer.get("error") or "The service did not take the notification."))

    async def check(self, notifier: Notifier) -> str | None:
        """Return the reason why apprise cannot use the address of a notifier, or None."""
        answer = await self._request(notifier, None)
        return None if answer.get("ok") else str(answer.get("error") or "apprise does not know this address.")

    async def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            await process.close()

    async def _request(self, notifier: Notifier, text: dict[str, Any] | None) -> dict[str, Any]:
        ports = MAIL_PORTS if notifier.scheme in MAIL_SCHEMES else ()
        values = {"url": notifier.url, "text": text, "allow": self._allow, "ports": list(ports)}
        return await self._processes[notifier.name].request(values)
