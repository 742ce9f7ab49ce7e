"""What tokens of a model cost. Pure but for reading `prices.toml` beside it; all amounts are integers.

A name is looked up as it is written and without what a reseller puts around it: `us.anthropic.claude-opus-4-6-v1`,
`claude-opus-4-5@20251101`, `anthropic/claude-opus-4.5` and `claude-opus-4-5[1m]` are the models of those numbers.
"""

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from steadyhand.errors import ConfigError
from steadyhand.gateway.model.usage_meter import Extras
from steadyhand.ports import Tokens

FILE = Path(__file__).with_name("prices.toml")

_AMOUNT = re.compile(r"[0-9]{1,6}(?:\.([0-9]{1,6}))?")
_MILLION = 1_000_000
_US_TENTHS = 11  # of ten: work that must stay in the US costs a tenth more
_NAME = re.compile(r"[!-~]{1,256}")
_VERSIONS = re.compile(r"(?:[-@](?:v[0-9]+|[0-9]{8}|latest|default)|:[0-9]+k?|\[1m\])+$")
_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-dollars for a million tokens of each kind, which is picodollars for one."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int

    def picos(self, tokens: Tokens) -> int:
        """Give what tokens cost, in picodollars."""
        return sum(getattr(self, each.name) * getattr(tokens, each.name) for each in fields(self))

    def at_least(self, other: "Rates") -> "Rates":
        """Give the dearer of each kind."""
        return Rates(*(max(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs: `long` rates for a call with more than `above` tokens going in, `fast` ones for fast mode.

    `search` is micro-dollars for a web search.
    """

    rates: Rates
    above: int = 0
    long: Rates | None = None
    fast: Rates | None = None
    search: int = 0

    def micros(self, tokens: Tokens, extras: Extras | None = None) -> int:
        """Give what one call costs in micro-dollars, rounded half up once."""
        extras = extras or Extras()
        picos = self._rates(tokens, extras).picos(tokens) * (_US_TENTHS if extras.us_only else 10)
        return (picos + 5 * _MILLION) // (10 * _MILLION) + extras.searches * self.search

    def _rates(self, tokens: Tokens, extras: Extras) -> Rates:
        if extras.fast and self.fast is not None:
            return self.fast
        going_in = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
        return self.long if self.long is not None and going_in > self.above else self.rates


class Prices:
    """The prices of a service: those of its settings, then those that are shipped."""

    def __init__(self, *tables: Mapping[str, Price]) -> None:
        self._tables = [
            [(_pattern(name), price) for name, price in sorted(table.items(), key=_closest)]
            for table in tables
        ]
        self.dearest = _dearest([price for table in tables for price in table.values()])
        """For a model that nobody knows: of each kind of token the dearest rate that anybody asks."""
        self.price_of = functools.lru_cache(1024)(self._price_of)

    @classmethod
    def load(cls, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> "Prices":
        """Read the shipped prices, with others before them: names or patterns with `*`, each with its rates.

        A rate is dollars for a million tokens, as a string. One that an override leaves out is the shipped model's of
        that name; of another model cache reads cost what input does, and writes 1.25 and 2 times that. Raises
        `ConfigError` for what is no price.
        """
        shipped = _shipped(tomllib.loads(FILE.read_text("utf-8")))
        known = cls(shipped)
        return cls(
            {name: _override(name, table, known) for name, table in (overrides or {}).items()}, shipped
        )

    def _price_of(self, model: str) -> Price | None:
        names = (model.lower(), bare(model))
        for table in self._tables:
            for name in names:
                for pattern, price in table:
                    if pattern.fullmatch(name):
                        return price
        return None


def bare(model: str) -> str:
    """Give a model's name without where it is served and which edition of it: provider, region, date, version."""
    name = model.strip().lower().rpartition("/")[2]
    name = name.rpartition("anthropic.")[2]
    return _VERSIONS.sub("", _POINT.sub("-", name))


def _closest(entry: tuple[str, Price]) -> tuple[bool, int]:
    """Sort exact names before patterns, and patterns by how much of the name they spell out."""
    name = entry[0]
    return "*" in name, -len(name.replace("*", ""))


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in name.lower().split("*")))


def _dearest(prices: Iterable[Price]) -> Price:
    standard = Rates(0, 0, 0, 0, 0)
    fast = standard
    search = 0
    for price in prices:
        standard = standard.at_least(price.rates).at_least(price.long or price.rates)
        fast = fast.at_least(price.fast or price.rates)
        search = max(search, price.search)
    return Price(standard, fast=fast.at_least(standard), search=search)


def _shipped(data: Mapping[str, Any]) -> dict[str, Price]:
    search = _amount(data["search"], "search") // 1000
    found = {}
    for table in data["price"]:
        price = _price({name: value for name, value in table.items() if name != "models"}, None, "price")
        for model in table["models"]:
            found[model] = Price(price.rates, price.above, price.long, price.fast, search)
    return found


def _override(name: str, table: Mapping[str, Any], known: Prices) -> Price:
    where = f"prices.{name}"
    if _NAME.fullmatch(name) is None or name.count("*") > 4:  # noqa: PLR2004  # more would be slow and mean nothing
        raise ConfigError(f"{where}: a model's name has no blanks, at most 256 characters and at most 4 '*'.")
    like = None if "*" in name else known.price_of(name)
    price = _price(table, like, where)
    search = known.dearest.search if like is None else like.search
    return Price(price.rates, price.above, price.long, price.fast, search)


def _price(table: Mapping[str, Any], like: Price | None, where: str) -> Price:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: a price is a table of rates.")
    parts = {name: table[name] for name in ("long", "fast") if name in table}
    rates = _rates({k: v for k, v in table.items() if k not in parts}, like.rates if like else None, where)
    above, long = (like.above, like.long) if like else (0, None)
    if "long" in parts:
        inner = dict(parts["long"]) if isinstance(parts["long"], Mapping) else {}
        above = inner.pop("above", 0)
        if type(above) is not int or above <= 0:
            raise ConfigError(f"{where}.long: `above` is a number of tokens.")
        long = _rates(inner, None, f"{where}.long")
    fast = _rates(parts["fast"], None, f"{where}.fast") if "fast" in parts else like.fast if like else None
    return Price(rates, above, long, fast)


def _rates(table: object, like: Rates | None, where: str) -> Rates:
    names = [each.name for each in fields(Rates)]
    if not isinstance(table, Mapping) or set(table) - set(names):
        raise ConfigError(f"{where}: a price is a table of {', '.join(names)}.")
    found = {name: _amount(value, f"{where}.{name}") for name, value in table.items()}
    if like is not None:
        return Rates(**{name: found.get(name, getattr(like, name)) for name in names})
    if not {"input", "output"} <= set(found):
        raise ConfigError(f"{where}: `input` and `output` are needed for a model without a price of its own.")
    put = found["input"]
    return Rates(
        **{"cache_read": put, "cache_write_5m": -(-put * 5 // 4), "cache_write_1h": put * 2, **found}
    )


def _amount(value: object, where: str) -> int:
    """Read dollars as micro-dollars. A binary float is refused: it is not what was written."""
    match = _AMOUNT.fullmatch(str(value)) if isinstance(value, str) or type(value) is int else None
    if match is None:
        raise ConfigError(
            f'{where}: an amount is dollars in a string, such as "3.75", with at most 6 decimals.'
        )
    whole, _, decimals = match[0].partition(".")
    return int(whole) * _MILLION + int(decimals.ljust(6, "0"))
