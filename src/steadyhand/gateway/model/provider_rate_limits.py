"""Rate limits of the model providers: short ones are waited for, long ones block the credential until a time.

A block belongs to a credential. While it lasts, no run that uses the credential calls the provider.
"""

import asyncio
import email.utils
import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MAX_BLOCK = timedelta(days=8)
"""Longer than a weekly limit; a later reset time is not plausible."""
DEFAULT_BLOCK_SECONDS = 60.0
"""The seconds that a credential is blocked when a rate limit persists after waiting and names no reset time."""
RATE_LIMITED = 429
_OVERLOADED = 529
_UNAVAILABLE = 503
_FIRST_DELAY, _MAX_DOUBLINGS = 1.0, 4
_JITTER = 0.2
_DURATION = re.compile(
    r"(?:([0-9]{1,4})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,8}(?:\.[0-9]{1,9})?)(ms|s))?"
)
_OPENAI_LIMITS = (b"requests", b"tokens")
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*:\s*"([0-9]{1,8}(?:\.[0-9]{1,9})?)s"')
"""The wait in an error of Google's services, which have no header for it (`google.rpc.RetryInfo`)."""

RateLimitKey = tuple[str, str]
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """The longest waits of the gateway itself for the service, in seconds: for one answer, and for all of a call."""

    per_attempt: float = 20.0
    per_call: float = 60.0


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """The credential is blocked until this time."""

    until: datetime


class ProviderRateLimits:
    """The blocks of a node, by credential. Tests replace `clock` and `sleep`."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        retry_limits: RetryLimits = RetryLimits(),  # frozen
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self._retry_limits = retry_limits
        self._blocked_until: dict[RateLimitKey, datetime] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._block_added = asyncio.Event()
        self.on_block: Callable[[RateLimitKey, datetime], None] = lambda _key, _until: None
        """Called for each block that this node has met itself."""

    def blocked_until(self, key: RateLimitKey) -> datetime | None:
        """Return the time until which a credential is blocked, or None."""
        until = self._blocked_until.get(key)
        return until if until is not None and until > self.clock() else None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register a callback for each start and end of a block."""
        self._callbacks.append(callback)

    def block(self, key: RateLimitKey, until: datetime) -> datetime:
        """Block a credential, or extend its block; return the time of its end."""
        until = min(until, self.clock() + MAX_BLOCK)
        current = self.blocked_until(key)
        if current is not None and current >= until:
            return current
        self._set_block(key, until)
        self.on_block(key, until)
        return until

    def adopt_block(self, key: RateLimitKey, until: datetime) -> None:
        """Block a credential, or extend its block, because another node has met its rate limit."""
        until = min(until, self.clock() + MAX_BLOCK)
        if until > (self.blocked_until(key) or self.clock()):
            self._set_block(key, until)

    def _set_block(self, key: RateLimitKey, until: datetime) -> None:
        self._blocked_until[key] = until
        self._block_added.set()
        self._notify()

    async def watch_expiry(self) -> None:
        """Call the callbacks when blocks end, until cancelled."""
        while True:
            now = self.clock()
            expired = [account for account, until in self._blocked_until.items() if until <= now]
            for account in expired:
                del self._blocked_until[account]
            if expired:
                self._notify()
            self._block_added.clear()
            if self._blocked_until:
                seconds = (min(self._blocked_until.values()) - now).total_seconds()
                async with asyncio.TaskGroup() as group:
                    wakers = [
                        group.create_task(self._wait_for_block()),
                        group.create_task(self._sleep_until_expiry(seconds)),
                    ]
                    await asyncio.wait(wakers, return_when=asyncio.FIRST_COMPLETED)
                    for task in wakers:
                        task.cancel()
            else:
                await self._block_added.wait()

    async def _wait_for_block(self) -> None:
        await self._block_added.wait()

    async def _sleep_until_expiry(self, seconds: float) -> None:
        await self.sleep(max(seconds, 0.0))

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()

    def decide(
        self, status: int, headers: Headers, retries: int, waited: float, error_body: bytes = b""
    ) -> RetryAfter | Blocked | None:
        """Return the reaction to a response: repeat after a pause, block the credential, or None to pass it on.

        `retries` is the number of repeats of this call so far; `waited` is the number of seconds it has waited.
        `error_body` is the begin of an error, which names the wait at some services.
        """
        by_name = {name: value.decode("latin-1").strip() for name, value in headers}
        requested = _retry_after_seconds(by_name, self.clock())
        if requested is None and (delay_in_body := _RETRY_DELAY.search(error_body)) is not None:
            requested = _clamp(float(delay_in_body[1]))
        if status not in (RATE_LIMITED, _OVERLOADED) and not (
            status == _UNAVAILABLE and requested is not None
        ):
            return None
        no_retry = by_name.get(b"x-should-retry", "").lower() == "false"
        delay = _FIRST_DELAY * 2 ** min(retries, _MAX_DOUBLINGS) if requested is None else requested
        delay += random.uniform(0, max(1.0, delay) * _JITTER)  # noqa: S311  # so that not all come back at once
        can_wait = (
            requested or 0.0
        ) <= self._retry_limits.per_attempt and waited + delay <= self._retry_limits.per_call
        if can_wait and not no_retry:
            return RetryAfter(
                min(delay, self._retry_limits.per_attempt + _JITTER * self._retry_limits.per_attempt)
            )
        if requested is None and (no_retry or status != RATE_LIMITED):
            return None
        reset_seconds = _reset_seconds(by_name, self.clock())
        seconds = max(requested or DEFAULT_BLOCK_SECONDS, reset_seconds or 0.0)
        return Blocked(self.clock() + timedelta(seconds=seconds))


def _retry_after_seconds(headers: dict[bytes, str], now: datetime) -> float | None:
    """Return the seconds to wait by a response: from any form of `retry-after`, else from its reset time."""
    milliseconds = _number(headers.get(b"retry-after-ms"))
    if milliseconds is not None:
        return _clamp(milliseconds / 1000)
    text = headers.get(b"retry-after")
    if text is not None:
        try:
            seconds = float(text)
        except ValueError:
            try:
                date = email.utils.parsedate_to_datetime(text)
            except ValueError:
                return _reset_seconds(headers, now)
            zoned = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
            seconds = (zoned - now).total_seconds()
        return _clamp(seconds)
    return _reset_seconds(headers, now)


def _reset_seconds(headers: dict[bytes, str], now: datetime) -> float | None:
    """Return the seconds until the reset: of a subscription in seconds since 1970, of OpenAI's limits as durations."""
    reset = _number(headers.get(b"anthropic-ratelimit-unified-reset"))
    if reset is not None:
        return _clamp(reset - now.timestamp())
    # Both limits are always told, also the one that has room.
    spent = [
        _duration(headers.get(b"x-ratelimit-reset-" + name, ""))
        for name in _OPENAI_LIMITS
        if headers.get(b"x-ratelimit-remaining-" + name, "0") == "0"
    ]
    return max((seconds for seconds in spent if seconds is not None), default=None)


def _duration(text: str) -> float | None:
    """Return the seconds of a duration such as `1s`, `6m0s`, `120ms` or `1d2h`; None for any other text."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    days, hours, minutes, last, unit = match.groups()
    seconds = float(last or 0) / (1000 if unit == "ms" else 1)
    return _clamp(((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes or 0)) * 60 + seconds)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _clamp(seconds: float) -> float | None:
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), MAX_BLOCK.total_seconds())
