"""What a key may ask for: each limit, its words, and when to come back."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta, timezone
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.admission import Admission, RateCharge
from steadyhand.errors import Forbidden, RetryLater
from steadyhand.ports import NO_LIMITS, KeyBacklog, KeyLimits, period_bounds
from steadyhand.testing.contracts.samples import expect_error

T = TypeVar("T")
SECOND = 1_000_000_000
NOW = datetime(2026, 12, 31, 23, 0, 0, 500_000, tzinfo=UTC)

LEAST, MOST = NOW.replace(year=2000, tzinfo=None), NOW.replace(year=2100, tzinfo=None)


class Bench:
    """One key whose limits, backlog and spending a test sets."""

    def __init__(self, **limits: object) -> None:
        self.limits = KeyLimits(**limits) if limits else NO_LIMITS  # type: ignore[arg-type]  # by name
        self.backlog = KeyBacklog(waiting=0, startable=1, retry_after=9)
        self.spent = {"day": 0, "month": 0}
        self.now = 100 * SECOND
        self.asked: list[str] = []
        self.admission = Admission(
            get_limits=lambda _: self.limits,
            get_backlog=self._backlog,
            get_spending=self._spent,
            clock=lambda: NOW,
            monotonic_ns=lambda: self.now,
        )

    def _backlog(self, key_id: str) -> KeyBacklog:
        self.asked.append(f"backlog of {key_id}")
        return self.backlog

    async def _spent(self, key_id: str, period: str) -> int:
        self.asked.append(f"{period} of {key_id}")
        return self.spent[period]

    def charge(self) -> RateCharge:
        return run(self.admission.charge("k_1"))

    def refusal(self) -> RetryLater:
        return run(expect_error(RetryLater, self.admission.charge("k_1")))


def run(what: Awaitable[T]) -> T:
    async def waited() -> T:
        return await what

    return asyncio.run(waited())


def test_a_key_without_limits_asks_nobody_and_counts_nothing() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.charge()
    bench.admission.check_allowed("k_1", "anyone", "/anywhere")
    assert bench.asked == []


@pytest.mark.parametrize(
    ("agent", "workspace", "code"),
    [
        ("claude", "infra", None),
        ("claude", "scratch", None),
        ("claude", None, None),
        ("chat", "infra", "agent_not_allowed"),
        ("Claude", "infra", "agent_not_allowed"),
        ("claude", "other", "workspace_not_allowed"),
        ("claude", "/srv/other", "workspace_not_allowed"),
        ("claude", "https://user:secret@git.example.org/x", "workspace_not_allowed"),
    ],
)
def test_only_listed_agents_and_workspaces_pass(agent: str, workspace: str | None, code: str | None) -> None:
    bench = Bench(agents=("claude", "dear"), workspaces=("infra", "scratch"))
    if code is None:
        bench.admission.check_allowed("k_1", agent, workspace)
        return
    with pytest.raises(Forbidden) as error:
        bench.admission.check_allowed("k_1", agent, workspace)
    assert error.value.code == code
    assert ("claude, dear" if code == "agent_not_allowed" else "infra, scratch") in error.value.detail
    assert "secret" not in error.value.detail


def test_no_workspace_is_the_scratch_one_and_has_to_be_listed() -> None:
    with pytest.raises(Forbidden):
        Bench(workspaces=("infra",)).admission.check_allowed("k_1", "claude", None)


def test_a_long_list_of_names_is_cut_in_the_refusal() -> None:
    names = tuple(f"agent-{number}" for number in range(500))
    with pytest.raises(Forbidden) as error:
        Bench(agents=names).admission.check_allowed("k_1", "claude", None)
    assert "agent-9 and 490 more" in error.value.detail
    assert len(error.value.detail) < 300


def test_a_rate_is_counted_over_any_minute_and_says_when_it_has_room() -> None:
    bench = Bench(per_minute=2)
    bench.charge()
    bench.now += 30 * SECOND
    bench.charge()
    error = bench.refusal()
    assert (error.code, error.retry_after) == ("rate_limited", 30)
    assert error.detail == "This key may request work 2 times a minute. Try again in 30 s."
    bench.now += 29 * SECOND + SECOND // 2
    assert bench.refusal().retry_after == 1
    bench.now += SECOND // 2  # as it said
    bench.charge()
    assert bench.refusal().retry_after == 30


def test_what_came_to_nothing_is_given_back() -> None:
    bench = Bench(per_minute=1)
    bench.charge().undo()
    kept = bench.charge()
    assert bench.refusal().code == "rate_limited"
    kept.undo()
    kept.undo()
    bench.charge()
    assert bench.refusal().code == "rate_limited"


@given(most=st.integers(1, 5), gaps=st.lists(st.integers(0, 40 * SECOND), max_size=60))
def test_never_more_than_the_rate_in_any_minute_and_whoever_waits_as_told_gets_in(
    most: int, gaps: list[int]
) -> None:
    bench = Bench(per_minute=most)
    admitted: list[int] = []
    waits: list[int] = []
    for gap in gaps:
        bench.now += gap
        try:
            bench.charge()
        except RetryLater as error:
            waits.append(error.retry_after)
            bench.now += error.retry_after * SECOND
            bench.charge()
        admitted.append(bench.now)
        assert sum(bench.now - at < 60 * SECOND for at in admitted) <= most
    assert all(1 <= seconds <= 60 for seconds in waits)


@pytest.mark.parametrize(
    ("waiting", "startable", "queued", "passes"),
    [
        (0, 1, 0, True),
        (0, 0, 0, False),
        (1, 1, 0, False),
        (1, 2, 0, True),
        (1, 0, 2, True),
        (2, 0, 2, False),
        (2, 1, 2, True),
    ],
)
def test_jobs_that_would_wait_are_bounded(waiting: int, startable: int, queued: int, *, passes: bool) -> None:
    bench = Bench(queued=queued)
    bench.backlog = KeyBacklog(waiting, startable, 17)
    if passes:
        bench.charge()
        return
    error = bench.refusal()
    assert (error.code, error.retry_after) == ("too_many_jobs", 17)
    assert f"{queued} job" in error.detail


@pytest.mark.parametrize(
    ("limits", "spent", "period", "seconds"),
    [
        ({"day_micros": 5_000_000}, {"day": 5_000_000, "month": 0}, "day", 3600),
        ({"month_micros": 5_000_000}, {"day": 0, "month": 5_000_001}, "month", 3600),
        ({"day_micros": 5_000_000}, {"day": 4_999_999, "month": 10**9}, None, 0),
        ({"month_micros": 5_000_000}, {"day": 10**9, "month": 4_999_999}, None, 0),
        ({"day_micros": 5_000_000, "month_micros": 5_000_000}, {"day": 10**9, "month": 10**9}, "month", 3600),
    ],
)
def test_a_budget_that_is_spent_is_refused_until_it_begins_anew(
    limits: dict[str, int], spent: dict[str, int], period: str | None, seconds: int
) -> None:
    bench = Bench(**limits)
    bench.spent = spent
    if period is None:
        bench.charge()
        return
    error = bench.refusal()
    assert (error.code, error.retry_after) == ("budget_exhausted", seconds)
    assert f"5.00 USD a {period}" in error.detail
    assert "2027-01-01T00:00:00Z" in error.detail


def test_a_refused_request_is_not_counted() -> None:
    bench = Bench(per_minute=1, queued=0, day_micros=1)
    bench.spent["day"] = 1
    assert bench.refusal().code == "budget_exhausted"
    bench.spent["day"] = 0
    bench.backlog = KeyBacklog(0, 0, 1)
    assert bench.refusal().code == "too_many_jobs"
    bench.backlog = KeyBacklog(0, 1, 1)
    bench.charge()
    assert bench.refusal().code == "rate_limited"


@given(st.datetimes(LEAST, MOST, timezones=st.just(timezone(timedelta(hours=13)))))
def test_days_and_months_are_those_of_utc_and_hold_the_moment(now: datetime) -> None:
    for period in ("day", "month"):
        since, until = period_bounds(period, now)
        assert since <= now < until
        assert since.utcoffset() == until.utcoffset() == timedelta(0)
        assert period_bounds(period, until)[0] == until
        assert (since.hour, since.minute, since.microsecond) == (0, 0, 0)
    assert period_bounds("month", now)[0].day == period_bounds("month", now)[1].day == 1
