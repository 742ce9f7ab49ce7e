"""Cron expressions: `cronsim` reads them and counts on the calendar; the rule for changes of the clock is here. Pure.

The library walks through local times without a zone. Each local time then becomes an instant:

- An expression of a fixed time, whose minute and hour do not begin with `*`, fires once for each of its local times.
  One that the clock leaves out fires when the clock jumps; several of one gap fire once. One that comes twice fires
  the first time.
- Any other expression follows the time that passes: it fires whenever the clock shows one of its local times. A local
  time that is left out does not fire, one that comes twice fires twice.

The library's own rule holds for expressions of five fields alone, and may return an instant before the one asked for.
"""

import re
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

MAX_LENGTH = 256
"""The most characters of an expression."""
_ALLOWED = re.compile(r"[0-9A-Za-z*,/#\- ]+")
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_FIELD_COUNTS = (5, 6)
_STRIDE = timedelta(hours=36)
"""Longer than any change of a clock: two changes are never nearer to each other."""
_SECOND = timedelta(seconds=1)


class CronExpression:
    """A cron expression in a time zone. Ticks are instants in UTC at whole seconds."""

    def __init__(self, text: str, timezone: str) -> None:
        """Parse an expression of five fields, or of six with seconds first. Raise `ValueError` with what is wrong."""
        from cronsim import CronSim, CronSimError  # noqa: PLC0415  # a start without schedules needs none of it

        self._walk = CronSim
        self.zone = find_zone(timezone)
        self.text = _ALIASES.get(text.strip().lower(), text.strip())
        if len(self.text) > MAX_LENGTH:
            raise ValueError(f"is longer than {MAX_LENGTH} characters")
        fields = self.text.split()
        if len(fields) not in _FIELD_COUNTS or _ALLOWED.fullmatch(self.text) is None:
            raise ValueError("is not a cron expression of five fields, or of six with seconds first")
        try:
            CronSim(self.text, datetime(2026, 1, 1))  # noqa: DTZ001  # the library counts in local time
        except CronSimError as error:
            raise ValueError(f"is not a cron expression: {str(error)[:1].lower()}{str(error)[1:]}") from error
        minute, hour = fields[-5:-3]
        self.is_fixed = not minute.startswith("*") and not hour.startswith("*")

    def next_after(self, after: datetime) -> datetime | None:
        """Return the first tick later than an instant; None if there is none in the next 50 years."""
        after = after.astimezone(UTC)
        try:
            return self._next_fixed(after) if self.is_fixed else self._next_passing(after)
        except (OverflowError, ValueError):  # beyond the year 9999
            return None

    def ticks(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Iterate over the ticks later than `after`, up to `until`."""
        tick = self.next_after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next_after(tick)

    def last_before(self, after: datetime, until: datetime, most: int) -> list[datetime]:
        """Return the newest ticks later than `after`, up to `until`, in order; at most so many."""
        span = timedelta(minutes=1)
        while True:
            start = max(after, until - span)
            found = _newest(self.ticks(start, until), most)
            if len(found) == most or start == after:
                return found
            span *= 4

    def _next_fixed(self, after: datetime) -> datetime | None:
        local = _wall(after, self.zone)
        while True:
            found = self._next_local(local)
            if found is None:
                return None
            instant = self._instant_of(found)
            if instant > after:
                return instant
            local = found

    def _next_passing(self, after: datetime) -> datetime | None:
        """Walk through the times of one offset each: within them, local time passes as time does."""
        start, local = after, _wall(after, self.zone)
        while True:
            offset = _offset(start, self.zone)
            found = self._next_local(local)
            if found is None:
                return None
            instant = (found - offset).replace(tzinfo=UTC)
            change = _first_change(start, min(instant, start + _STRIDE), self.zone)
            if change is not None:
                start, local = change, _wall(change, self.zone) - _SECOND
            elif instant - start <= _STRIDE:
                return instant
            else:  # the clock may change until then
                start = instant - _STRIDE
                local = _wall(start, self.zone)

    def _next_local(self, local: datetime) -> datetime | None:
        try:
            return next(self._walk(self.text, local))
        except StopIteration:
            return None

    def _instant_of(self, local: datetime) -> datetime:
        """Return the first instant at which the clock shows a local time, or at which it jumps over it."""
        instant = local.replace(tzinfo=self.zone).astimezone(UTC)
        if _wall(instant, self.zone) == local:
            return instant
        change = _first_change(instant - _STRIDE, instant, self.zone)
        return instant if change is None else change


def _newest(ticks: Iterator[datetime], most: int) -> list[datetime]:
    return list(deque(ticks, maxlen=most))


@lru_cache(maxsize=64)
def find_zone(name: str) -> ZoneInfo:
    """Return a time zone by its name, such as `Europe/Berlin`. Raise `ValueError` if it is not known."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as error:  # also for a path, a folder or a file that is no zone
        raise ValueError("is not the name of a time zone, such as Europe/Berlin") from error


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None  # noqa: S101  # an aware time has one
    return offset


def _wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return the local time at an instant, without its zone."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _first_change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first second after `start`, up to `end`, with another offset than `start` has; None if none has."""
    before = _offset(start, zone)
    if _offset(end, zone) == before:
        return None
    low, high = 0, int((end - start).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(start + middle * _SECOND, zone) == before:
            low = middle
        else:
            high = middle
    return start + high * _SECOND
