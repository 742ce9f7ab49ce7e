"""The wall clock. Durations are measured with a monotonic clock, not with this one."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)
