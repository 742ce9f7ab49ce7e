"""The times that options take."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from steadyhand.cli.times import parse_moment, parse_seconds
from steadyhand.errors import InvalidRequest

NOW = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))  # 23:30 of February 28 in UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("2m", 120),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        (" 5 ", 5),
    ],
)
def test_a_duration_is_a_number_with_units(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1w", "m", "1m30", "1 m", "nan", "1e9", "9" * 40, "1h1h1h1h1h"]
)
def test_what_is_no_duration_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--timeout"):
        parse_seconds(text, "--timeout")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("today", "2026-02-28T00:00:00Z"),
        ("Yesterday", "2026-02-27T00:00:00Z"),
        ("24h", "2026-02-27T23:30:00Z"),
        ("7d ago", "2026-02-21T23:30:00Z"),
        ("2026-01-31", "2026-01-31T00:00:00Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T12:00:00+02:00"),
    ],
)
def test_a_moment_is_a_word_an_age_a_day_or_a_time(text: str, moment: str) -> None:
    assert parse_moment(text, "--since", NOW) == moment
    assert datetime.fromisoformat(moment).astimezone(UTC) < NOW


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2026-02-30", "2026-01-31T12:00:00", "20260131T", "-1d", "9" * 30 + "d"]
)
def test_what_is_no_moment_is_refused_with_the_option(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--since"):
        parse_moment(text, "--since", NOW)
