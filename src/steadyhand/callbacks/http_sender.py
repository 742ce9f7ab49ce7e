"""Sends one message over HTTP to an address that the guard has checked, and follows no redirect."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpcore2

from steadyhand.addresses import Target, parse_host
from steadyhand.callbacks.address_guard import AddressGuard, CallbackUrl
from steadyhand.errors import CallbackRefused

MAX_RESPONSE_BYTES = 16 * 1024
"""The part of a response's body that is read, so that its connection can serve another message. It is not kept."""
_BODY_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 5.0
_MAX_CONNECT_ADDRESSES = 4


@dataclass(frozen=True, slots=True)
class ReceiverAnswer:
    """The answer of a receiver; of its head only what decides about the next attempt."""

    status: int
    retry_after: str | None = None


class NoAnswer(Exception):
    """There was no answer; the text is fit for people and names no address."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that the guard returns for the host of a URL."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the signature of the library
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers. Raise `CallbackRefused` if the host may not be reached."""
        name = parse_host(f"[{host}]" if ":" in host else host)
        if name is None:
            raise CallbackRefused("has no valid host")
        addresses = await self._guard.find_addresses(Target(name, port))
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses[:_MAX_CONNECT_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class HttpSender:
    """Sends messages; its connections are kept for a few seconds."""

    def __init__(self, guard: AddressGuard, max_connections: int, ssl_context: ssl.SSLContext) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            network_backend=GuardedBackend(guard),
        )

    async def send(
        self, url: CallbackUrl, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> ReceiverAnswer:
        """Post a body and return the answer. Raise `NoAnswer`, or `CallbackRefused`, within so many seconds."""
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=url.scheme, host=url.host, port=url.target.port, target=url.path.encode("ascii")
            ),
            headers=[("host", url.host_header), *headers.items(), ("content-length", str(len(body)))],
            content=body,
            extensions={
                "timeout": {"connect": seconds / 2}
            },  # so that another address of the name has a turn
        )
        try:
            async with asyncio.timeout(seconds):
                response = await self._pool.handle_async_request(request)
        except TimeoutError as error:
            raise NoAnswer(f"gave no answer within {seconds:g} s") from error
        except ssl.SSLError as error:
            raise NoAnswer("has no valid certificate") from error
        except httpcore2.ConnectError as error:
            is_tls = isinstance(error.__cause__ or error.__context__, ssl.SSLError)
            raise NoAnswer("has no valid certificate" if is_tls else "could not be reached") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
            raise NoAnswer("gave no valid HTTP answer") from error
        await _finish(response)
        retry_after = next(
            (value for name, value in response.headers if name.lower() == b"retry-after"), None
        )
        return ReceiverAnswer(response.status, None if retry_after is None else retry_after.decode("latin-1"))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


async def _finish(response: httpcore2.Response) -> None:
    """Read a short body and close the response; the answer counts also if its body does not end."""
    size = 0
    try:
        with contextlib.suppress(TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError):
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in response.aiter_stream():
                    size += len(chunk)
                    if size > MAX_RESPONSE_BYTES:
                        break
    finally:
        with contextlib.suppress(httpcore2.NetworkError, httpcore2.ProtocolError):
            await response.aclose()
