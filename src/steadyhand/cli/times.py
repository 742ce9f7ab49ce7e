"""Parse the durations and times of options. Pure."""

import re
from datetime import UTC, datetime, timedelta

from steadyhand.cli.sanitize import one_line
from steadyhand.errors import InvalidRequest

_SECONDS_BY_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)")
_DURATION = re.compile(r"\d{1,9}(?:\.\d{1,9})?[smhd]?|(?:\d{1,9}[smhd]){2,4}")
_AGE = re.compile(r"(\d{1,5})([smhd])(?: ago)?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_seconds(text: str, option: str) -> float:
    """Return seconds from `90`, `90s`, `2m`, `1h30m` or `2d`. Raise `InvalidRequest`, which names the option."""
    if _DURATION.fullmatch(text.strip()) is None:
        raise InvalidRequest(
            f"{option} {one_line(text, 40)} is not a time: use seconds, or 90s, 15m, 2h, 1h30m."
        )
    value = sum(
        float(number) * _SECONDS_BY_UNIT[unit] for number, unit in _DURATION_PART.findall(text.strip())
    )
    return int(value) if value == int(value) else value


def parse_moment(text: str, option: str, now: datetime) -> str:
    """Return an RFC 3339 time from `today`, `yesterday`, a day in UTC, an age such as `24h`, or such a time.

    `today` and `yesterday` are the beginnings of those days in UTC. Raise `InvalidRequest` for anything else.
    """
    word = text.strip().lower()
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if word in {"today", "yesterday"}:
        return _format(midnight - timedelta(days=word == "yesterday"))
    if match := _AGE.fullmatch(word):
        return _format(now - timedelta(seconds=int(match[1]) * _SECONDS_BY_UNIT[match[2]]))
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        moment = None
    if moment is not None and _DATE.fullmatch(word):
        return f"{word}T00:00:00Z"
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(
            f"{option} {one_line(text, 40)} is not a time: use today, yesterday, 24h, 7d, a day such as 2026-01-31, "
            "or an RFC 3339 time such as 2026-01-31T12:00:00Z."
        )
    return text.strip()


def _format(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
