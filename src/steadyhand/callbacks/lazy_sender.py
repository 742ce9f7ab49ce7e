"""The sender of messages, whose library is loaded with the first of them."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

from steadyhand.callbacks.address_guard import AddressGuard, CallbackUrl
from steadyhand.callbacks.deliverer import SendResult
from steadyhand.errors import CallbackRefused

if TYPE_CHECKING:
    from steadyhand.callbacks.http_sender import HttpSender


class LazySender:
    """Sends messages by `HttpSender`. A service that sends none does not load its library and the certificates."""

    def __init__(self, guard: AddressGuard, *, max_connections: int, seconds: float) -> None:
        """Keep the bounds; a message has so many seconds in all."""
        self._guard = guard
        self._max_connections = max_connections
        self._seconds = seconds
        self._sender: HttpSender | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, url: CallbackUrl, headers: Mapping[str, str], body: bytes) -> SendResult:
        """Post a body and return the answer, or the reason why there is none."""
        async with self._loading:
            if self._sender is None:
                self._sender = await self._load()
        from steadyhand.callbacks.http_sender import NoAnswer  # noqa: PLC0415  # loaded above

        try:
            answer = await self._sender.send(url, headers, body, self._seconds)
        except NoAnswer as error:
            return SendResult(error=f"The receiver {error}.")
        except CallbackRefused as error:
            return SendResult(error=f"The address {error.detail}.", refused=True)
        return SendResult(answer.status, answer.retry_after)

    async def close(self) -> None:
        """Close the connections and end the threads of the guard."""
        if self._sender is not None:
            await self._sender.close()
        self._guard.close()

    async def _load(self) -> "HttpSender":
        context = await asyncio.to_thread(_load_library)
        from steadyhand.callbacks.http_sender import HttpSender  # noqa: PLC0415  # loaded above

        return HttpSender(self._guard, self._max_connections, context)


def _load_library() -> ssl.SSLContext:
    """Import the library and the package that signs, and read the certificates: too long for the event loop."""
    import httpcore2  # noqa: PLC0415
    import standardwebhooks.webhooks  # noqa: F401, PLC0415

    from steadyhand.callbacks import http_sender  # noqa: F401, PLC0415

    return httpcore2.default_ssl_context()
