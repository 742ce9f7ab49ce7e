"""The decisions of the client about a repeat: if a failed request may be sent again, and after which pause.

A request is sent again only if it cannot have a second effect: the service refused it (429), nobody received it, or it
is repeatable. All repeats of a call end with a time limit.
"""

import random
import time
from dataclasses import dataclass
from http import HTTPStatus

import httpx2

from steadyhand.client.http_requests import HttpRequest
from steadyhand.client.response_errors import BAD_ANSWER
from steadyhand.errors import RetryLater, ServiceUnreachable, SteadyhandError

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0

_TRANSIENT_STATUSES = frozenset(
    {
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_MAX_REPEATED_FAILURES = 2  # a failure of the service itself, which seldom ends by itself
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


@dataclass(slots=True)
class RetryTimes:
    """The limits of repeats.

    `reconnect_seconds` is for a service that does not answer, from the first failure on. `retry_later_seconds` is for
    one that refuses a request for now, as is the sum of its pauses. `connected` is True once the service has answered.
    """

    reconnect_seconds: float
    retry_later_seconds: float
    connected: bool = False


class Retries:
    """The repeats of one call. Its times are on the monotonic clock."""

    def __init__(self, limits: RetryTimes, *, deadline: float | None = None) -> None:
        """Create it; no pause lasts beyond `deadline`."""
        self._limits = limits
        self._deadline = deadline
        self.reset()

    def reset(self) -> None:
        """Begin anew, after the service has answered as it should."""
        self._failing_since: float | None = None
        self._refused_since: float | None = None
        self._failures = 0
        self._pause_seconds = MIN_PAUSE_SECONDS

    def pause_or_raise(self, request: HttpRequest, error: SteadyhandError) -> float:
        """Return the seconds before the request is sent again; raise the error if it is not."""
        now = time.monotonic()
        pause, until = self._pause_seconds, self._retry_until(request, error, now)
        if isinstance(error, RetryLater):
            pause = max(float(error.retry_after), pause)
        else:
            pause *= random.uniform(0.5, 1.0)  # noqa: S311  # many clients of one service do not come at once
        if now + pause > until or (self._deadline is not None and now + pause > self._deadline):
            raise error
        self._pause_seconds = min(self._pause_seconds * 2, MAX_PAUSE_SECONDS)
        return pause

    def _retry_until(self, request: HttpRequest, error: SteadyhandError, now: float) -> float:
        """Return the time until which a failed request is sent again. Raise the error if it never is."""
        if isinstance(error, RetryLater):
            if not request.repeatable and (
                error.status != HTTPStatus.TOO_MANY_REQUESTS or error.code == BAD_ANSWER
            ):
                raise error  # of these it is not certain that they had no effect
            if self._refused_since is None:
                self._refused_since = now
            return self._refused_since + self._limits.retry_later_seconds
        if not isinstance(error, ServiceUnreachable):
            raise error
        sent = error.status is not None or was_sent(error)
        if sent and not (request.repeatable and is_transient(error)):
            raise error
        if not self._limits.connected and not (sent and error.status is None):
            raise error  # there may be no service at this address
        self._failures += error.status == HTTPStatus.INTERNAL_SERVER_ERROR
        if self._failures > _MAX_REPEATED_FAILURES:
            raise error
        if self._failing_since is None:
            self._failing_since = now
        return self._failing_since + self._limits.reconnect_seconds


def was_sent(error: ServiceUnreachable) -> bool:
    """Return False if the service cannot have received the request that failed."""
    return not isinstance(error.__cause__, _NOT_SENT)


def is_transient(error: ServiceUnreachable) -> bool:
    """Return True if another attempt may succeed: the connection broke, or the service or its proxy failed."""
    return error.status is None or error.status in _TRANSIENT_STATUSES
