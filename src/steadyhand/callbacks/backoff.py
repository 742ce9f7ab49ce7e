"""The pauses between the attempts at a delivery, and the circuit of a receiver. Pure but for the given random."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto

FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=1)
"""The pause doubles from the first one up to this. A fifth more or less spreads the deliveries of one outage."""
_JITTER = 0.2
CIRCUIT_FAILURES = 5
"""The failures in a row that open a circuit."""
FIRST_OPEN = timedelta(seconds=30)
LONGEST_OPEN = timedelta(minutes=10)
MAX_RETRY_AFTER = timedelta(hours=24)
_TOO_MANY_REQUESTS, _UNAVAILABLE, _GONE = 429, 503, 410
_MAX_DIGITS = 9


class AnswerKind(Enum):
    """The meaning of the answer of a receiver, or of its absence."""

    DELIVERED = auto()
    RETRY = auto()
    """The receiver answers, and refuses this message."""
    UNREACHABLE = auto()
    """The receiver does not answer, or fails: its other messages would fail, too."""
    BUSY = auto()
    """The receiver names a time to wait."""
    GONE = auto()


def classify_answer(status: int | None, retry_after: str | None) -> AnswerKind:
    """Return the kind of an HTTP status; None is no answer."""
    if status is None:
        return AnswerKind.UNREACHABLE
    if 200 <= status < 300:  # noqa: PLR2004  # the class of the status
        return AnswerKind.DELIVERED
    if status == _GONE:
        return AnswerKind.GONE
    if status == _TOO_MANY_REQUESTS or (status == _UNAVAILABLE and retry_after is not None):
        return AnswerKind.BUSY
    return AnswerKind.UNREACHABLE if status >= 500 else AnswerKind.RETRY  # noqa: PLR2004  # the class of the status


def parse_retry_after(text: str | None, now: datetime) -> timedelta | None:
    """Return the time that a `Retry-After` names, in seconds or as a date, within bounds; None if it names none."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS:
        pause = timedelta(seconds=int(text))
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, IndexError, OverflowError):
            return None
        pause = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - now
    return min(max(pause, timedelta(0)), MAX_RETRY_AFTER)


def next_attempt(
    attempts: int,
    retry_after: timedelta | None,
    now: datetime,
    expires_at: datetime,
    random: Callable[[], float],
) -> datetime | None:
    """Return the time of the next attempt after so many failed ones; None if there is none.

    The last attempt is made at `expires_at`, however long the pause before it is.
    """
    if now >= expires_at:
        return None
    doublings: int = min(attempts - 1, 16)
    pause: timedelta = min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)
    pause *= 1 + _JITTER * (2 * random() - 1)
    return min(now + max(pause, retry_after or pause), expires_at)


@dataclass(slots=True)
class Circuit:
    """The deliveries to one receiver: how many are under way, and since when they wait because it fails."""

    name: str
    in_flight: set[int] = field(default_factory=set)
    """The sequences of the deliveries under way."""
    failures: int = 0
    closed_at: datetime | None = None
    """The time until which nothing is sent, if it is in the future."""
    look_at: datetime | None = None
    """The time at which something may be due; None if nothing is."""

    @property
    def is_failing(self) -> bool:
        """True if only one delivery at a time probes the receiver."""
        return self.failures >= CIRCUIT_FAILURES

    def ready_at(self) -> datetime | None:
        """Return the time from which a delivery may begin, or None."""
        if self.look_at is None:
            return None
        return self.look_at if self.closed_at is None else max(self.look_at, self.closed_at)

    def note(self, kind: AnswerKind, retry_after: timedelta | None, now: datetime) -> None:
        """Record the end of a delivery."""
        if kind is AnswerKind.UNREACHABLE:
            self.failures += 1
            if self.is_failing:
                doubled = FIRST_OPEN * 2 ** min(self.failures - CIRCUIT_FAILURES, 16)
                self.closed_at = now + min(doubled, LONGEST_OPEN)
        elif kind is AnswerKind.BUSY:
            self.closed_at = now + (FIRST_PAUSE if retry_after is None else retry_after)
        else:
            self.failures, self.closed_at = 0, None
