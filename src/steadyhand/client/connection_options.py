"""The options of a connection, checked once for the synchronous and the asynchronous client."""

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from steadyhand.client.http_requests import HttpRequest
from steadyhand.client.retry_policy import RetryTimes
from steadyhand.client.sans_io import ServiceState
from steadyhand.errors import InvalidRequest, ServiceUnreachable

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE, TOKEN_VARIABLE = "STEADYHAND_URL", "STEADYHAND_TOKEN"
RECONNECT_SECONDS = 30.0
RETRY_LATER_SECONDS = 60.0
TIMEOUT_SECONDS = 60.0

_CONNECT_TIMEOUT_SECONDS = 5.0
_POOL_LIMITS = httpx2.Limits(max_keepalive_connections=20, keepalive_expiry=2.0)
"""Limits of the pool: the service closes a connection that is idle for 5 s, which must not meet a new request."""
_STREAM_QUIET_SECONDS = 35.0  # the service sends bytes on a stream at least every 10 s


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The address and the limits of a client. `is_local` is True for an address of this machine."""

    base_url: str
    is_local: bool
    headers: Mapping[str, str]
    timeout_seconds: float
    verify: ssl.SSLContext | None
    state: ServiceState

    def http_options(self) -> dict[str, Any]:
        """Return the arguments of `httpx2.Client` and `httpx2.AsyncClient`."""
        verify: ssl.SSLContext | bool = True if self.verify is None else self.verify
        if self.verify is None and self.is_local and self.base_url.startswith("http://"):
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing to verify: read no certificates
        return {
            "base_url": self.base_url,
            "headers": self.headers,
            "timeout": self._timeout(self.timeout_seconds),
            "trust_env": not self.is_local,  # no proxy between this machine and itself
            "verify": verify,
            "limits": _POOL_LIMITS,
        }

    def request_options(self, request: HttpRequest, *, is_stream: bool = False) -> dict[str, Any]:
        """Return the arguments of one request."""
        quiet = _STREAM_QUIET_SECONDS if is_stream else self.timeout_seconds + request.quiet_seconds
        return {
            "method": request.method,
            "url": request.path,
            "params": dict(request.params) or None,
            "headers": dict(request.headers),
            "content": request.body,
            "timeout": self._timeout(min(quiet, request.max_quiet_seconds)),
        }

    def unreachable(self, error: httpx2.HTTPError) -> ServiceUnreachable:
        """Return the error of a request without an answer."""
        return ServiceUnreachable(f"No answer from {self.base_url}: {str(error) or type(error).__name__}.")

    def _timeout(self, quiet_seconds: float) -> httpx2.Timeout:
        connect = min(_CONNECT_TIMEOUT_SECONDS, self.timeout_seconds)
        return httpx2.Timeout(self.timeout_seconds, connect=connect, read=quiet_seconds)


def parse_options(
    base_url: str,
    token: str | None,
    *,
    timeout_seconds: float,
    reconnect_seconds: float,
    retry_later_seconds: float,
    verify: ssl.SSLContext | None,
) -> ConnectionOptions:
    """Return the checked options. Raise `InvalidRequest` for an address, a key or a time that cannot be one."""
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InvalidRequest(f"{base_url!r} is not the address of a service.") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidRequest(f"{base_url!r} is not the address of a service: it needs http:// or https://.")
    if not timeout_seconds > 0 or not reconnect_seconds >= 0 or not retry_later_seconds >= 0:
        raise InvalidRequest("A time of a client is 0 seconds or more, and its timeout is above 0.")
    base_url = base_url.rstrip("/")
    return ConnectionOptions(
        base_url=base_url,
        is_local=_is_loopback(url.host),
        headers={"authorization": f"Bearer {_validate_token(token)}"} if token else {},
        timeout_seconds=timeout_seconds,
        verify=verify,
        state=ServiceState(base_url, RetryTimes(reconnect_seconds, retry_later_seconds)),
    )


def options_from_environment() -> tuple[str, str | None]:
    """Return the address and the key of the variables `STEADYHAND_URL` and `STEADYHAND_TOKEN`."""
    return os.environ.get(URL_VARIABLE) or DEFAULT_URL, os.environ.get(TOKEN_VARIABLE) or None


def _validate_token(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise InvalidRequest("The key contains characters that no key has.")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
