"""Sends the message of a delivery to its receiver, signed: a configured endpoint, or the address that a job names."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from steadyhand.callbacks.address_guard import CallbackUrl, parse_callback_url
from steadyhand.callbacks.backoff import AnswerKind, classify_answer
from steadyhand.callbacks.deliverer import SendResult
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.callbacks.signing import sign
from steadyhand.errors import CallbackRefused
from steadyhand.ports import BeginDeliverySpan, Delivery, no_delivery_span

_USER_AGENT = "Steadyhand"


class SendMessage(Protocol):
    """Posts a body to a URL and returns the answer. It raises nothing that a receiver can cause."""

    async def __call__(self, url: CallbackUrl, headers: Mapping[str, str], body: bytes) -> SendResult:
        """Send one message."""
        ...


class EndpointCourier:
    """Sends callbacks. `secret_for` returns the secret of the jobs of a key."""

    def __init__(
        self,
        send: SendMessage,
        find_endpoint: Callable[[str], Endpoint | None],
        secret_for: Callable[[str], str],
        clock: Callable[[], datetime],
        version: str = "0",
        *,
        begin_span: BeginDeliverySpan = no_delivery_span,
    ) -> None:
        self._send = send
        self._find_endpoint = find_endpoint
        self._secret_for = secret_for
        self._clock = clock
        self._version = version
        self._begin_span = begin_span

    def knows(self, delivery: Delivery) -> bool:
        """Return False if the endpoint of a delivery was removed."""
        return delivery.endpoint is None or self._find_endpoint(delivery.endpoint) is not None

    def held_until(self, delivery: Delivery, now: datetime) -> datetime | None:
        """Return None: callbacks are sent at any time."""
        del delivery, now
        return None

    async def send(self, delivery: Delivery) -> SendResult:
        """Sign the body of a delivery and send it, as a span of its job's trace if that is traced."""
        span = await self._begin_span(delivery)
        if span is None:
            return await self._send_signed(delivery, {})
        result = await self._send_signed(delivery, span.headers)
        kind = classify_answer(result.status, result.retry_after)
        span.end(result.status, delivered=kind is AnswerKind.DELIVERED)
        return result

    async def _send_signed(self, delivery: Delivery, trace_headers: Mapping[str, str]) -> SendResult:
        endpoint = None if delivery.endpoint is None else self._find_endpoint(delivery.endpoint)
        if delivery.endpoint is not None and endpoint is None:
            return SendResult(error="The endpoint was removed.", refused=True)
        try:
            url = endpoint.url if endpoint is not None else parse_callback_url(delivery.url or "")
        except CallbackRefused as error:
            return SendResult(error=f"The address {error.detail}.", refused=True)
        secrets = [self._secret_for(delivery.api_key_id)] if endpoint is None else endpoint.secrets
        headers = {
            "content-type": "application/json",
            "user-agent": f"{_USER_AGENT}/{self._version}",
            **trace_headers,
            **sign(secrets, delivery.id, self._clock(), delivery.body),
        }
        return await self._send(url, headers, delivery.body.encode("ascii"))
