"""Prices of model tokens. Pure except for reading `prices.toml` beside it; all amounts are integers.

A name is looked up as it is written and without the additions of resellers: `us.anthropic.claude-opus-4-6-v1`,
`claude-opus-4-5@20251101`, `anthropic/claude-opus-4.5` and `claude-opus-4-5[1m]` are the models of those numbers.
A price whose name begins with that of a provider, such as `openrouter/claude-*`, holds there and before all others.
"""

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from steadyhand.errors import ConfigError
from steadyhand.money import to_micros
from steadyhand.ports import TokenCounts

PRICES_FILE = Path(__file__).with_name("prices.toml")

_AMOUNT = re.compile(r"[0-9]{1,6}(?:\.([0-9]{1,6}))?")
_MILLION = 1_000_000
_US_TENTHS = 11  # of ten: work that must stay in the US costs a tenth more
_MODEL_PATTERN = re.compile(r"[!-~]{1,256}")
_VERSION_SUFFIXES = re.compile(
    r"(?:[-@](?:v[0-9]+|[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}|latest|default)|:[0-9]+k?|\[1m\])+$"
)
_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")


@dataclass(frozen=True, slots=True)
class UsageExtras:
    """The charges of a call besides its tokens: web searches, and the rates of fast mode and of US-only work."""

    searches: int = 0
    fast: bool = False
    us_only: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-dollars for a million tokens of each kind, which is picodollars for one."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int

    def cost_picos(self, tokens: TokenCounts) -> int:
        """Return the cost of tokens in picodollars."""
        return sum(getattr(self, each.name) * getattr(tokens, each.name) for each in fields(self))

    def max_with(self, other: "Rates") -> "Rates":
        """Return the higher rate of each kind."""
        return Rates(*(max(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model: `long` rates for a call with more than `above` input tokens, `fast` ones for fast mode.

    `search` is micro-dollars for a web search.
    """

    rates: Rates
    above: int = 0
    long: Rates | None = None
    fast: Rates | None = None
    search: int = 0

    def cost_micros(self, tokens: TokenCounts, extras: UsageExtras | None = None) -> int:
        """Return the cost of one call in micro-dollars, rounded half up once."""
        extras = extras or UsageExtras()
        picos = self._rates(tokens, extras).cost_picos(tokens) * (_US_TENTHS if extras.us_only else 10)
        return (picos + 5 * _MILLION) // (10 * _MILLION) + extras.searches * self.search

    def _rates(self, tokens: TokenCounts, extras: UsageExtras) -> Rates:
        if extras.fast and self.fast is not None:
            return self.fast
        going_in = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
        return self.long if self.long is not None and going_in > self.above else self.rates


class Prices:
    """The prices of a service: those of its settings, then those that are shipped."""

    def __init__(self, *tables: Mapping[str, Price]) -> None:
        self._tables = [
            [(name.lower(), _pattern(name), price) for name, price in sorted(table.items(), key=_specificity)]
            for table in tables
        ]
        self.highest = _highest_price([price for table in tables for price in table.values()])
        """Set the price of an unknown model: for each kind of token the highest rate of any model."""
        self.price_of = functools.lru_cache(1024)(self._price_of)

    @classmethod
    def load(cls, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> "Prices":
        """Read the shipped prices, with overrides before them: names or patterns with `*`, each with its rates.

        A rate is dollars per million tokens, as a string. A rate that an override leaves out is that of the shipped
        model of the same name; for another model cache reads cost as much as input, and writes 1.25 and 2 times that.
        Raises `ConfigError` for an invalid price.
        """
        shipped = _parse_shipped(tomllib.loads(PRICES_FILE.read_text("utf-8")))
        shipped_prices = cls(shipped)
        return cls(
            {name: _parse_override(name, table, shipped_prices) for name, table in (overrides or {}).items()},
            shipped,
        )

    def _price_of(self, model: str, provider: str = "") -> Price | None:
        """Return the price of a model at a provider, or None if it is not known."""
        here = f"{provider.lower()}/"
        at_provider = [here + name for name in (model.lower(), base_model_name(model))] if provider else []
        for table in self._tables:
            own = [entry for entry in table if entry[0].startswith(here)]
            found = _first_match(at_provider, own) or _first_match(
                (model.lower(), base_model_name(model)), table
            )
            if found is not None:
                return found
        return None


def _first_match(names: Iterable[str], entries: Sequence[tuple[str, re.Pattern[str], Price]]) -> Price | None:
    for name in names:
        for _, pattern, price in entries:
            if pattern.fullmatch(name):
                return price
    return None


def base_model_name(model: str) -> str:
    """Return a model's name without provider, region, date and version."""
    name = model.strip().lower().rpartition("/")[2]
    name = name.rpartition("anthropic.")[2]
    return _VERSION_SUFFIXES.sub("", _POINT.sub("-", name))


def _specificity(entry: tuple[str, Price]) -> tuple[bool, int]:
    """Sort exact names before patterns, and patterns by how much of the name they spell out."""
    name = entry[0]
    return "*" in name, -len(name.replace("*", ""))


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in name.lower().split("*")))


def _highest_price(prices: Iterable[Price]) -> Price:
    standard = Rates(0, 0, 0, 0, 0)
    fast = standard
    search = 0
    for price in prices:
        standard = standard.max_with(price.rates).max_with(price.long or price.rates)
        fast = fast.max_with(price.fast or price.rates)
        search = max(search, price.search)
    return Price(standard, fast=fast.max_with(standard), search=search)


def _parse_shipped(data: Mapping[str, Any]) -> dict[str, Price]:
    search = _parse_amount(data["search"], "search") // 1000
    prices = {}
    for table in data["price"]:
        price = _parse_price(
            {name: value for name, value in table.items() if name != "models"}, None, "price"
        )
        for model in table["models"]:
            prices[model] = Price(price.rates, price.above, price.long, price.fast, search)
    return prices


def _parse_override(name: str, table: Mapping[str, Any], shipped: Prices) -> Price:
    setting = f"prices.{name}"
    if _MODEL_PATTERN.fullmatch(name) is None or name.count("*") > 4:  # noqa: PLR2004  # more would be slow and mean nothing
        raise ConfigError(
            f"{setting}: a model's name has no blanks, at most 256 characters and at most 4 '*'."
        )
    base = None if "*" in name else shipped.price_of(name)
    price = _parse_price(table, base, setting)
    search = shipped.highest.search if base is None else base.search
    return Price(price.rates, price.above, price.long, price.fast, search)


def _parse_price(table: Mapping[str, Any], base: Price | None, setting: str) -> Price:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{setting}: a price is a table of rates.")
    parts = {name: table[name] for name in ("long", "fast") if name in table}
    rates = _parse_rates(
        {k: v for k, v in table.items() if k not in parts}, base.rates if base else None, setting
    )
    above, long = (base.above, base.long) if base else (0, None)
    if "long" in parts:
        inner = dict(parts["long"]) if isinstance(parts["long"], Mapping) else {}
        above = inner.pop("above", 0)
        if type(above) is not int or above <= 0:
            raise ConfigError(f"{setting}.long: `above` is a number of tokens.")
        long = _parse_rates(inner, None, f"{setting}.long")
    fast = (
        _parse_rates(parts["fast"], None, f"{setting}.fast")
        if "fast" in parts
        else base.fast
        if base
        else None
    )
    return Price(rates, above, long, fast)


def _parse_rates(table: object, base: Rates | None, setting: str) -> Rates:
    names = [each.name for each in fields(Rates)]
    if not isinstance(table, Mapping) or set(table) - set(names):
        raise ConfigError(f"{setting}: a price is a table of {', '.join(names)}.")
    rates = {name: _parse_amount(value, f"{setting}.{name}") for name, value in table.items()}
    if base is not None:
        return Rates(**{name: rates.get(name, getattr(base, name)) for name in names})
    if not {"input", "output"} <= set(rates):
        raise ConfigError(
            f"{setting}: `input` and `output` are needed for a model without a price of its own."
        )
    input_rate = rates["input"]
    return Rates(
        **{
            "cache_read": input_rate,
            "cache_write_5m": -(-input_rate * 5 // 4),
            "cache_write_1h": input_rate * 2,
            **rates,
        }
    )


def _parse_amount(value: object, setting: str) -> int:
    """Parse dollars as micro-dollars. A binary float is refused, because it is not the written amount."""
    match = _AMOUNT.fullmatch(str(value)) if isinstance(value, str) or type(value) is int else None
    if match is None:
        raise ConfigError(
            f'{setting}: an amount is dollars in a string, such as "3.75", with at most 6 decimals.'
        )
    return to_micros(Decimal(match[0]))
