"""Amounts in micro-dollars and as decimal text."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.money import format_dollars, to_micros


def test_micro_dollars_are_exact() -> None:
    assert to_micros(Decimal("0.0412")) == 41_200
    assert to_micros(Decimal("0.1") + Decimal("0.2")) == 300_000


def test_half_a_micro_dollar_is_rounded_to_even() -> None:
    assert [to_micros(Decimal(text)) for text in ("0.0000005", "0.0000015", "0.0000025")] == [0, 2, 2]


@pytest.mark.parametrize(
    ("micros", "min_places", "text"),
    [
        (5_000_000, 6, "5.000000"),
        (41_200, 6, "0.041200"),
        (5_000_000, 2, "5.00"),
        (1_234_500, 2, "1.2345"),
        (2_000_000, 1, "2.0"),
        (500_000, 1, "0.5"),
        (5_000_000, 0, "5"),
        (1, 0, "0.000001"),
        (100_000_000, 0, "100"),
    ],
)
def test_an_amount_has_the_decimals_that_it_needs(micros: int, min_places: int, text: str) -> None:
    assert format_dollars(micros, min_places=min_places) == text


@given(st.integers(0, 10**15), st.integers(0, 6))
def test_an_amount_is_read_back_from_its_text(micros: int, min_places: int) -> None:
    assert to_micros(Decimal(format_dollars(micros, min_places=min_places))) == micros
