"""Rate limits of the model's service: short ones are waited for, long ones are walls that stand until a time.

A wall is a credential's. While it stands nobody who uses that credential asks the service at all.
"""

import asyncio
import email.utils
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

LONGEST_WALL = timedelta(days=8)
"""Longer than a week's limit: what is told beyond that is no reset time."""
UNTOLD_WALL = 60.0
"""Seconds of the wall after a rate limit that was waited for in vain and told no time."""
RATE_LIMITED = 429
_OVERLOADED = 529
_UNAVAILABLE = 503
_FIRST, _DOUBLINGS = 1.0, 4
_JITTER = 0.2

Account = tuple[str, str]
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the gateway itself waits for the service, in seconds: at most for one answer, and for all of a call."""

    one: float = 20.0
    together: float = 60.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wall:
    """Ask nobody before this time."""

    until: datetime


class Walls:
    """The walls of a node, by credential. `clock` and `sleep` are what time is for it."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        waits: Waits = Waits(),  # frozen
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self._waits = waits
        self._until: dict[Account, datetime] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._risen = asyncio.Event()

    def until(self, account: Account) -> datetime | None:
        """Give until when a credential's wall stands; null when there is none."""
        found = self._until.get(account)
        return found if found is not None and found > self.clock() else None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this whenever a wall has risen or fallen."""
        self._callbacks.append(callback)

    def rise(self, account: Account, until: datetime) -> datetime:
        """Put a wall up, or further back where one stands already; give until when it stands."""
        until = min(until, self.clock() + LONGEST_WALL)
        standing = self.until(account)
        if standing is not None and standing >= until:
            return standing
        self._until[account] = until
        self._risen.set()
        self._tell()
        return until

    async def watch(self) -> None:
        """Say so when walls fall, until cancelled."""
        while True:
            now = self.clock()
            fallen = [account for account, until in self._until.items() if until <= now]
            for account in fallen:
                del self._until[account]
            if fallen:
                self._tell()
            self._risen.clear()
            if self._until:
                left = (min(self._until.values()) - now).total_seconds()
                async with asyncio.TaskGroup() as group:
                    waking = [group.create_task(self._risen_anew()), group.create_task(self._pass(left))]
                    await asyncio.wait(waking, return_when=asyncio.FIRST_COMPLETED)
                    for task in waking:
                        task.cancel()
            else:
                await self._risen.wait()

    async def _risen_anew(self) -> None:
        await self._risen.wait()

    async def _pass(self, seconds: float) -> None:
        await self.sleep(max(seconds, 0.0))

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()

    def judge(self, status: int, headers: Headers, tries: int, waited: float) -> Pause | Wall | None:
        """Say what to do about an answer: ask again after a pause, put up a wall, or (null) pass it on.

        `tries` is how often this call was asked again already, `waited` how many seconds it has waited.
        """
        named = {name: value.decode("latin-1").strip() for name, value in headers}
        told = _told_seconds(named, self.clock())
        if status not in (RATE_LIMITED, _OVERLOADED) and not (status == _UNAVAILABLE and told is not None):
            return None
        final = named.get(b"x-should-retry", "").lower() == "false"
        pause = _FIRST * 2 ** min(tries, _DOUBLINGS) if told is None else told
        pause += random.uniform(0, max(1.0, pause) * _JITTER)  # noqa: S311  # so that not all come back at once
        short = (told or 0.0) <= self._waits.one and waited + pause <= self._waits.together
        if short and not final:
            return Pause(min(pause, self._waits.one + _JITTER * self._waits.one))
        if told is None and (final or status != RATE_LIMITED):
            return None
        reset = _reset_seconds(named, self.clock())
        seconds = max(told or UNTOLD_WALL, reset or 0.0)
        return Wall(self.clock() + timedelta(seconds=seconds))


def _told_seconds(headers: dict[bytes, str], now: datetime) -> float | None:
    """Give how many seconds an answer says to wait: by `retry-after` in either form, else by its reset time."""
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
        return _sane(seconds)
    return _reset_seconds(headers, now)


def _reset_seconds(headers: dict[bytes, str], now: datetime) -> float | None:
    """Give how many seconds there are until the reset that a subscription's answer names: seconds since 1970."""
    text = headers.get(b"anthropic-ratelimit-unified-reset")
    if text is None:
        return None
    try:
        return _sane(float(text) - now.timestamp())
    except ValueError:
        return None


def _sane(seconds: float) -> float | None:
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_WALL.total_seconds())
