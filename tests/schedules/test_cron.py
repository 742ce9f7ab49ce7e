"""Cron expressions: against an independent library on ordinary days, and against an oracle on nights of a change."""

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter  # type: ignore[import-untyped]  # it has no types
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.example_counts import examples

from steadyhand.schedules.cron import CronExpression, find_zone

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # its clock changes at midnight, in the south
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kolkata",
)
QUICK_ZONES = ("UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe")
"""The zones of `make test`: those whose random expressions take long to compare are left to `make test-long`."""
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
FROM = datetime(2024, 1, 1, tzinfo=UTC)


def random_field(pick: random.Random, low: int, high: int, *, star: float) -> str:
    """Return a field of a cron expression; a `*` by this chance."""
    if pick.random() < star:
        return pick.choice(["*", "*", f"*/{pick.randint(2, max(2, (high - low) // 2))}"])
    first = pick.randint(low, high)
    last = pick.randint(first, high)
    kind = pick.choice(["one", "range", "list", "step"])
    if last == first:  # the other library takes `5-5` for any value
        return str(first)
    if kind == "range":
        return f"{first}-{last}"
    if kind == "list":
        return ",".join(str(each) for each in sorted({first, last, pick.randint(low, high)}))
    return f"{first}-{last}/{pick.randint(1, 5)}" if kind == "step" else str(first)


def random_expression(pick: random.Random) -> str:
    """Return an expression that fires a few times in a week at most, so that many days cost little."""
    minute, hour = str(pick.randint(0, 59)), str(pick.randint(0, 23))
    if pick.random() < 0.3:
        minute, hour = random_field(pick, 0, 59, star=0.5), random_field(pick, 0, 23, star=0.3)
    day, month = random_field(pick, 1, 28, star=0.5), random_field(pick, 1, 12, star=0.7)
    weekday = "*" if day[0] != "*" else random_field(pick, 0, 6, star=0.3)
    seconds = f"{pick.randint(0, 59)} " if pick.random() < 0.2 else ""
    return f"{seconds}{minute} {hour} {day} {month} {weekday}"


def offset_at(moment: datetime, zone: ZoneInfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def is_near_change(moment: datetime, zone: ZoneInfo) -> bool:
    """Return True for a moment within a day of a change of the clock."""
    return offset_at(moment - DAY, zone) != offset_at(moment + DAY, zone)


def library_ticks(text: str, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the ticks of the independent library, which counts on the calendar of the zone without changes."""
    fields = text.split()
    if len(fields) == 6:
        text = " ".join([*fields[1:], fields[0]])  # it has the seconds last
    local = croniter(
        text, start.astimezone(zone).replace(tzinfo=None), implement_cron_bug=True
    )  # `*/2` is a star
    while True:
        tick = local.get_next(datetime).replace(tzinfo=zone).astimezone(UTC)
        if tick > end:
            return
        yield tick


@pytest.mark.parametrize("expected_days", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [each if each in QUICK_ZONES else pytest.param(each, marks=pytest.mark.long) for each in ZONES]
)
def test_days_agree_with_an_independent_library_outside_the_nights_of_change(
    name: str, expected_days: int
) -> None:
    pick = random.Random(name)  # noqa: S311  # a seed, so that each run is the same
    zone, days, compared = ZoneInfo(name), 0, 0
    while days < expected_days:
        text, span = random_expression(pick), pick.choice([50, 100, 400])
        start = FROM + timedelta(days=pick.randint(0, 1000), seconds=pick.randint(0, 86_400))
        end = start + timedelta(days=span)
        days += span
        ours = [
            each for each in CronExpression(text, name).ticks(start, end) if not is_near_change(each, zone)
        ]
        theirs = [each for each in library_ticks(text, zone, start, end) if not is_near_change(each, zone)]
        assert ours == theirs, text
        compared += len(ours)
    assert compared > expected_days // 10


# --- the nights of change, by the rule of docs/schedules.md ---------------------------------------


def matches(fields: list[str], local: datetime) -> bool:
    """Return True if a local time is one of an expression with stars, numbers, ranges, lists and steps alone."""
    values = (local.minute, local.hour, local.day, local.month, local.isoweekday() % 7)
    minute, hour, day, month, weekday = (
        is_in(field, value, low, high)
        for field, value, (low, high) in zip(
            fields, values, [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)], strict=True
        )
    )
    both = fields[2].startswith("*") or fields[4].startswith("*")
    return minute and hour and month and ((day and weekday) if both else (day or weekday))


@cache
def is_in(field: str, value: int, low: int, high: int) -> bool:
    for part in field.split(","):
        bounds, _, step = part.partition("/")
        first, _, last = bounds.partition("-")
        start = low if first == "*" else int(first)
        end = high if first == "*" else int(last or first)
        if start <= value <= end and (value - start) % int(step or 1) == 0:
            return True
    return False


def shown_minutes(zone: ZoneInfo, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Return each minute that passes, with the local time that the clock then shows."""
    minutes = int((end - start) / MINUTE)
    moments = [start + number * MINUTE for number in range(minutes + 1)]
    return [(each, each.astimezone(zone).replace(tzinfo=None, fold=0)) for each in moments]


def oracle(text: str, minutes: list[tuple[datetime, datetime]]) -> list[datetime]:
    """Return the ticks by the written rule: look at the clock in each minute that passes.

    An expression of a fixed time fires for each local minute once: the first time that the clock shows it, or when the
    clock jumps over it.
    """
    fields = text.split()
    is_fixed = not fields[0].startswith("*") and not fields[1].startswith("*")
    found: list[datetime] = []
    latest = minutes[0][1]  # the latest local time that was shown
    for moment, shown in minutes[1:]:
        fires = not is_fixed and matches(fields, shown)
        if is_fixed:
            while latest < shown:
                latest += MINUTE
                fires = fires or matches(fields, latest)
        if fires:
            found.append(moment)
    return found


def changes(name: str) -> Iterator[datetime]:
    """Yield the midnights in UTC of days on which the clock of a zone changes."""
    day = FROM
    while day < FROM + timedelta(days=2 * 366):
        if offset_at(day, ZoneInfo(name)) != offset_at(day + DAY, ZoneInfo(name)):
            yield day
        day += DAY


NIGHT_EXPRESSIONS = (
    "30 2 * * *",
    "0 2 * * *",
    "0 3 * * *",
    "0,15,30,45 2 * * *",
    "15 1-3 * * *",
    "30 0 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "30 1 * * *",
    "*/30 * * * *",
    "*/7 1,2 * * *",
    "30 * * * *",
    "30 */2 * * *",
    "* 2 * * *",
    "*/15 0 * * *",
    "45 1,2,3 * * SUN",
    "*/20 2 * * SUN",
    "10 2 1-31/3 * *",
)
CHANGING = (
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
)
QUICK_CHANGING = ("America/Santiago", "Australia/Lord_Howe")
"""Those of `make test`: a change at midnight, and one by half an hour."""


@pytest.mark.parametrize(
    "name",
    [each if each in QUICK_CHANGING else pytest.param(each, marks=pytest.mark.long) for each in CHANGING],
)
def test_each_night_of_change_follows_the_written_rule_from_any_start(name: str) -> None:
    pick = random.Random(name)  # noqa: S311  # a seed, so that each run is the same
    zone, nights = ZoneInfo(name), 0
    for day in changes(name):
        nights += 1
        start, end = day - DAY, day + 2 * DAY
        minutes = shown_minutes(zone, start, end)
        for text in NIGHT_EXPRESSIONS:
            expected = oracle(text.replace("SUN", "0"), minutes)
            expression = CronExpression(text, name)
            assert list(expression.ticks(start, end)) == expected, (text, day)
            for _ in range(
                3
            ):  # each tick is found from any moment before it, also from within an hour that repeats
                begin = day + timedelta(seconds=pick.randint(0, 86_400))
                later = [each for each in expected if each > begin]
                assert expression.next_after(begin) == (later[0] if later else expression.next_after(end))
    assert nights >= 4


def test_a_fixed_time_with_seconds_has_the_rule_of_one_without() -> None:
    spring, autumn = datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)
    for start in (spring, autumn):
        five, six = (
            CronExpression("30 2 * * *", "Europe/Berlin"),
            CronExpression("0 30 2 * * *", "Europe/Berlin"),
        )
        assert list(five.ticks(start, start + 3 * DAY)) == list(six.ticks(start, start + 3 * DAY))
    each_ten = CronExpression("*/10 30 2 * * *", "Europe/Berlin")
    ticks = list(each_ten.ticks(spring, spring + DAY))
    assert ticks == [datetime(2026, 3, 29, 1, tzinfo=UTC)]  # the whole minute is left out: once, at the jump


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "@reboot",
     "x * * * *", "* * * * *\n* * * * *", "* * * * MON#6", "0 0 31 2 *", "\uff19 * * * *", "*" * 300,
     ",".join("1" * 200)],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has) "):
        CronExpression(text, "UTC")


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "\0", "x" * 300]
)
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        find_zone(name)


@settings(max_examples=examples(300, quick=100), deadline=None)
@given(st.text("0123456789*/,-#LW @MONSUJANdaily", min_size=1, max_size=40))
def test_any_text_is_an_expression_with_ticks_or_is_refused(text: str) -> None:
    try:
        expression = CronExpression(text, "America/New_York")
    except ValueError:
        return
    ticks = list(islice(expression.ticks(FROM, datetime(2100, 1, 1, tzinfo=UTC)), 3))
    assert ticks == sorted(set(ticks))
    assert all(each.microsecond == 0 for each in ticks)


def test_names_for_common_times_are_expressions() -> None:
    for name, count in (("@hourly", 24), ("@daily", 1)):
        assert len(list(CronExpression(name, "UTC").ticks(FROM, FROM + DAY))) == count
    assert CronExpression(" @Weekly ", "UTC").text == CronExpression("0 0 * * 0", "UTC").text


def test_the_newest_ticks_of_a_long_time_are_found_without_all_before_them() -> None:
    expression = CronExpression("* * * * * *", "Europe/Berlin")
    now = datetime(2026, 10, 25, 3, tzinfo=UTC)
    assert expression.last_before(FROM, now, 3) == [now - 2 * SECOND, now - SECOND, now]
    rare = CronExpression("0 0 29 2 *", "UTC")
    assert rare.last_before(FROM, now, 2) == [datetime(2024, 2, 29, tzinfo=UTC)]
    assert rare.last_before(now, now, 2) == []


def test_an_expression_without_an_end_in_sight_has_no_tick() -> None:
    assert (
        CronExpression("* * * * *", "UTC").next_after(datetime(9999, 12, 31, 23, 59, 30, tzinfo=UTC)) is None
    )


def test_the_page_has_the_rule_for_nights_of_change() -> None:
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", page.partition("## Nights of change")[2], re.MULTILINE
    )
    assert len(rows) >= 3
    for text, spring, autumn in rows:
        nights = (
            (datetime(2026, 3, 28, 23, tzinfo=UTC), timedelta(hours=3), spring),
            (datetime(2026, 10, 24, 22, tzinfo=UTC), timedelta(hours=5), autumn),
        )
        for midnight, length, told in nights:
            ticks = CronExpression(text, "Europe/Berlin").ticks(midnight, midnight + length - SECOND)
            shown = [each.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M %Z") for each in ticks]
            assert ", ".join(shown) == told.replace("nothing", ""), text
