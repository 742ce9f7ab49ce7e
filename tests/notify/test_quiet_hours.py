"""Quiet hours: over midnight, in time zones, and on the days on which the clock is set."""

from datetime import UTC, datetime

import pytest

from steadyhand.errors import ConfigError
from steadyhand.notify.quiet_hours import parse_quiet_hours


def end(text: str, zone: str, moment: str) -> str | None:
    found = parse_quiet_hours(text, zone, "notify.phone").end_after(datetime.fromisoformat(moment))
    return None if found is None else found.astimezone(UTC).isoformat()


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-01-10T20:59:59Z", None),
        ("2026-01-10T21:00:00Z", "2026-01-11T06:00:00+00:00"),  # 22:00 in Berlin
        ("2026-01-10T23:30:00Z", "2026-01-11T06:00:00+00:00"),
        ("2026-01-11T05:59:59Z", "2026-01-11T06:00:00+00:00"),
        ("2026-01-11T06:00:00Z", None),
        ("2026-07-10T20:00:00Z", "2026-07-11T05:00:00+00:00"),  # summer time
    ],
)
def test_hours_over_midnight_are_those_of_the_time_zone(moment: str, expected: str | None) -> None:
    assert end("22:00-07:00", "Europe/Berlin", moment) == expected


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-01-10T11:59:59Z", None),
        ("2026-01-10T12:00:00Z", "2026-01-10T13:30:00+00:00"),
        ("2026-01-10T13:30:00Z", None),
    ],
)
def test_hours_within_a_day_end_on_it(moment: str, expected: str | None) -> None:
    assert end("12:00-13:30", "UTC", moment) == expected


@pytest.mark.parametrize(
    "moment", ["2026-03-28T22:00:00Z", "2026-03-29T00:30:00Z", "2026-10-24T22:00:00Z", "2026-10-25T01:15:00Z"]
)
@pytest.mark.parametrize("text", ["22:00-07:00", "23:00-02:30"])
def test_the_end_is_after_the_moment_when_the_clock_is_set(text: str, moment: str) -> None:
    found = end(text, "Europe/Berlin", moment)
    assert found is not None
    assert datetime.fromisoformat(moment) < datetime.fromisoformat(found)
    assert (datetime.fromisoformat(found) - datetime.fromisoformat(moment)).total_seconds() < 11 * 3600


@pytest.mark.parametrize(
    "text", ["", "22-7", "22:00-24:00", "7:00-8:00", "22:00 - 07:00", "07:00-07:00", "٢٢:00-07:00"]
)
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.phone\.quiet_hours"):
        parse_quiet_hours(text, "UTC", "notify.phone")


@pytest.mark.parametrize("zone", ["Berlin", "../../etc/passwd", "/etc/passwd", "", "Europe/Berlin\0"])
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.phone\.timezone"):
        parse_quiet_hours("22:00-07:00", zone, "notify.phone")
