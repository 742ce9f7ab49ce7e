"""Quantiles of past jobs, the rate of spending, and the end of a budget."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.forecast import LEAST_JOBS, BurnRate, Quantiles, burn_rate, quantiles, runs_out_at

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
MIDNIGHT = NOON + timedelta(hours=12)


def test_half_of_the_jobs_cost_at_most_the_one_and_nine_tenths_at_most_the_other() -> None:
    assert quantiles(range(100, 0, -1)) == Quantiles(50, 90, 100)
    assert quantiles([7, 1, 5, 3, 9]) == Quantiles(5, 9, 5)
    assert quantiles([0.5] * 10) == Quantiles(0.5, 0.5, 10)


def test_too_few_jobs_make_no_forecast() -> None:
    assert quantiles([]) is None
    assert quantiles([1] * (LEAST_JOBS - 1)) is None
    assert quantiles([1] * LEAST_JOBS) == Quantiles(1, 1, LEAST_JOBS)


@given(st.lists(st.integers(0, 10**12), min_size=LEAST_JOBS))
def test_quantiles_are_values_that_came_up_and_hold_for_their_share(values: list[int]) -> None:
    found = quantiles(values)
    assert found is not None
    for quantile, share in ((found.p50, 50), (found.p90, 90)):
        assert quantile in values
        assert sum(value <= quantile for value in values) * 100 >= share * len(values)
        assert sum(value < quantile for value in values) * 100 < share * len(values)


def test_the_rate_is_that_of_the_last_seven_days_and_of_this_one_so_far() -> None:
    by_day = {date(2026, 3, day): 1_000_000 for day in range(1, 11)}
    burn = burn_rate(by_day, NOON)
    assert burn == BurnRate(8_000_000, 7.5 * 86_400, datetime(2026, 3, 3, tzinfo=UTC))
    assert burn.micros_per_day == 1_066_667


def test_the_rate_begins_with_the_first_spending() -> None:
    burn = burn_rate({date(2026, 3, 9): 3_000_000, date(2026, 3, 5): 0}, NOON)
    assert burn == BurnRate(3_000_000, 1.5 * 86_400, datetime(2026, 3, 9, tzinfo=UTC))
    assert burn.micros_per_day == 2_000_000


def test_a_first_call_makes_no_rate_of_thousands_a_day() -> None:
    burn = burn_rate({date(2026, 3, 10): 50_000}, datetime(2026, 3, 10, 0, 0, 1, tzinfo=UTC))
    assert burn is not None
    assert burn.micros_per_day == 24 * 50_000


@pytest.mark.parametrize("by_day", [{}, {date(2026, 3, 2): 5}, {date(2026, 3, 11): 5}, {date(2026, 3, 9): 0}])
def test_without_spending_in_these_days_there_is_no_rate(by_day: dict[date, int]) -> None:
    assert burn_rate(by_day, NOON) is None


def burn_of(micros_per_hour: int) -> BurnRate:
    return BurnRate(micros_per_hour, 3600, NOON - timedelta(hours=1))


def test_a_budget_runs_out_when_the_rest_is_spent_at_the_rate() -> None:
    at = runs_out_at(10_000_000, 4_000_000, burn_of(2_000_000), NOON, MIDNIGHT)
    assert at == NOON + timedelta(hours=3)


def test_a_budget_that_lasts_or_is_spent_or_has_no_rate_does_not_run_out() -> None:
    assert runs_out_at(10_000_000, 0, burn_of(100_000), NOON, MIDNIGHT) is None
    assert runs_out_at(10_000_000, 10_000_000, burn_of(2_000_000), NOON, MIDNIGHT) is None
    assert runs_out_at(10_000_000, 0, None, NOON, MIDNIGHT) is None
    assert runs_out_at(10**18, 0, burn_of(1), NOON, MIDNIGHT) is None  # longer than any calendar
