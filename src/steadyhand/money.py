"""Amounts of money: integer micro-dollars, and their decimal text. Pure."""

from decimal import Decimal

MICROS_PER_DOLLAR = 1_000_000
"""Micro-dollars in a dollar. Each amount in the service is an integer of micro-dollars."""


def format_dollars(micros: int, *, min_places: int = 6) -> str:
    """Return an amount as decimal dollars, exact, with at least `min_places` decimals and at most six."""
    whole, remainder = divmod(micros, MICROS_PER_DOLLAR)
    decimals = f"{remainder:06d}".rstrip("0").ljust(min_places, "0")
    return f"{whole}.{decimals}" if decimals else str(whole)


def to_micros(dollars: Decimal) -> int:
    """Return an amount of dollars in micro-dollars, rounded half to even."""
    return round(dollars * MICROS_PER_DOLLAR)
