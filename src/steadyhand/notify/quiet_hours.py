"""Hours of the day in which nobody is to be disturbed. Pure."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from steadyhand.errors import ConfigError

_RANGE = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A range of the clock in a time zone, such as 22:00 to 07:00; it may go past midnight."""

    start: time
    end: time
    zone: ZoneInfo

    def end_after(self, moment: datetime) -> datetime | None:
        """Return the end of the quiet hours that a moment falls into, or None."""
        local = moment.astimezone(self.zone)
        clock = local.timetz().replace(tzinfo=None)
        if self.start < self.end:
            if not self.start <= clock < self.end:
                return None
        elif self.end <= clock < self.start:
            return None
        day = local.date()
        if clock >= self.end:
            day += timedelta(days=1)
        end = datetime.combine(day, self.end, self.zone).astimezone(UTC)
        # The clock may be set back in the night, so that the hour of the end comes twice.
        return end if end > moment else end + timedelta(hours=1)


def parse_quiet_hours(text: str, zone_name: str, setting: str) -> QuietHours:
    """Parse `22:00-07:00`. Raise `ConfigError` for another form, for an empty range and for an unknown time zone."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{setting}.quiet_hours: write a range such as 22:00-07:00")
    start, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
    if start == end:
        raise ConfigError(f"{setting}.quiet_hours: the range is empty")
    try:
        zone = ZoneInfo(zone_name)
    except (
        OSError,
        ValueError,
        LookupError,
    ) as error:  # a name that is none, or that is not safe as the path of a file
        raise ConfigError(f"{setting}.timezone: there is no time zone {zone_name!r}") from error
    return QuietHours(start, end, zone)
