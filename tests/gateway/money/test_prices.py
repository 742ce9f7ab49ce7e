"""What tokens cost: the maker's list to the micro-dollar, names however a reseller writes them, and overrides."""

import tomllib
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyhand.errors import ConfigError
from steadyhand.gateway.money.prices import PRICES_FILE, Price, Prices, Rates, UsageExtras, base_model_name
from steadyhand.ports import TokenCounts

PRICES = Prices.load()
MILLION = 1_000_000
KINDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


def price(model: str, prices: Prices = PRICES) -> Price:
    found = prices.price_of(model)
    assert found is not None, model
    return found


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("claude-fable-5-2", ("8", "40", "0.2", "10", "16")),
        ("claude-fable-5-1", ("10", "50", "0.25", "12.5", "20")),
        ("claude-opus-5-5", ("4", "20", "0.2", "5", "8")),
        ("claude-opus-4-8", ("5", "25", "0.5", "6.25", "10")),
        ("claude-opus-4-1-20250805", ("15", "75", "1.5", "18.75", "30")),
        ("claude-sonnet-5-5", ("2", "10", "0.1", "2.5", "4")),
        ("claude-sonnet-5", ("2", "10", "0.2", "2.5", "4")),
        ("claude-sonnet-4-5-20250929", ("3", "15", "0.3", "3.75", "6")),
        ("claude-haiku-4-5", ("1", "5", "0.1", "1.25", "2")),
        ("claude-3-haiku-20240307", ("0.25", "1.25", "0.03", "0.3", "0.5")),
        ("openai/gpt-5.3-codex", ("1.75", "14", "0.175", "1.75", "3.5")),
        ("gpt-5-mini-2025-08-07", ("0.25", "2", "0.025", "0.25", "0.5")),
        ("gemini-4-neon", ("3", "15", "0.15", "3.75", "6")),
    ],
)
def test_a_million_tokens_cost_what_the_list_says(model: str, dollars: tuple[str, ...]) -> None:
    for kind, amount in zip(KINDS, dollars, strict=True):
        assert price(model).cost_micros(TokenCounts(**{kind: MILLION})) == Decimal(amount) * MILLION, kind


@pytest.mark.parametrize("kind", ["input", "cache_read", "cache_write_5m", "cache_write_1h"])
def test_a_long_prompt_costs_more_from_its_first_token_on(kind: str) -> None:
    haiku = price("claude-haiku-5-5")
    at, above = (TokenCounts(output=1000).plus(TokenCounts(**{kind: size})) for size in (100_000, 100_001))
    assert haiku.cost_micros(TokenCounts(input=100_000, output=MILLION)) == 10_000 + 500_000
    assert haiku.cost_micros(TokenCounts(input=100_001, output=MILLION)) == 50_001 + 2_500_000
    assert 4.9 < haiku.cost_micros(above) / haiku.cost_micros(at) < 5.1
    assert haiku.cost_micros(TokenCounts(output=200_000)) == 100_000


def test_fast_mode_searches_and_work_in_the_us_are_charged() -> None:
    opus, tokens = price("claude-opus-5-5"), TokenCounts(input=MILLION, cache_read=MILLION)
    assert opus.cost_micros(tokens) == 4_200_000
    assert opus.cost_micros(tokens, UsageExtras(fast=True)) == 8_400_000
    assert opus.cost_micros(tokens, UsageExtras(us_only=True)) == 4_620_000
    assert opus.cost_micros(tokens, UsageExtras(searches=3, us_only=True)) == 4_650_000
    assert price("claude-haiku-4-5").cost_micros(tokens, UsageExtras(fast=True)) == 1_100_000


def test_a_call_is_rounded_half_up_once() -> None:
    half = Price(Rates(500_000, 250_000, 249_999, 0, 0))
    assert [half.cost_micros(TokenCounts(input=count)) for count in (0, 1, 2, 3)] == [0, 1, 1, 2]
    assert half.cost_micros(TokenCounts(output=2)) == 1
    assert half.cost_micros(TokenCounts(cache_read=2)) == 0
    assert half.cost_micros(TokenCounts(input=1, output=1, cache_read=1)) == 1


@given(
    tokens=st.builds(TokenCounts, *[st.integers(0, 10**10)] * 5),
    model=st.sampled_from(["claude-haiku-5-5", "claude-fable-5-2", "claude-sonnet-4-6"]),
    us_only=st.booleans(),
)
def test_integers_give_what_decimals_give(tokens: TokenCounts, model: str, *, us_only: bool) -> None:
    table = next(one for one in tomllib.loads(PRICES_FILE.read_text())["price"] if model in one["models"])
    going_in = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
    if "long" in table and going_in > table["long"]["above"]:
        table = table["long"]
    dollars = sum(Decimal(table[kind]) * getattr(tokens, kind) for kind in KINDS)
    wanted = dollars * (Decimal("1.1") if us_only else 1)
    found = price(model).cost_micros(tokens, UsageExtras(us_only=us_only))
    assert found == wanted.quantize(Decimal(1), rounding=ROUND_HALF_UP)


@pytest.mark.parametrize(
    ("written", "model"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
        ("global.anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("anthropic.claude-3-haiku-20240307-v1:0:200k", "claude-3-haiku"),
        ("bedrock/eu.anthropic.claude-haiku-5-5", "claude-haiku-5-5"),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-opus-4-1-20250805-v1:0",
            "claude-opus-4-1",
        ),
        ("arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-opus-4-7", "claude-opus-4-7"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-3-5-sonnet-v2@20241022", "claude-3-5-sonnet"),
        ("vertex_ai/claude-opus-4@20250514", "claude-opus-4"),
        ("claude-opus-5-5@default", "claude-opus-5-5"),
        ("anthropic/claude-opus-4.5", "claude-opus-4-5"),
        ("openrouter/anthropic/claude-haiku-4.5", "claude-haiku-4-5"),
        ("claude-sonnet-4-6[1m]", "claude-sonnet-4-6"),
        ("claude-3-7-sonnet-latest", "claude-3-7-sonnet"),
        ("Claude-Sonnet-5", "claude-sonnet-5"),
    ],
)
def test_a_name_is_known_however_a_reseller_writes_it(written: str, model: str) -> None:
    assert base_model_name(written) == model
    assert PRICES.price_of(written) == price(model)


@pytest.mark.parametrize(
    "model",
    [
        "claude-opus-6",
        "claude-opus-4-9",
        "gpt-6-sol",
        "",
        "claude",
        "opus",
        "claude-opus-5-5-plus",
        "x" * 300,
        "*",
        "\n",
    ],
)
def test_a_model_that_nobody_knows_has_no_price(model: str) -> None:
    assert PRICES.price_of(model) is None


def test_the_dearest_is_no_cheaper_than_any_model_for_any_tokens() -> None:
    models = [model for table in tomllib.loads(PRICES_FILE.read_text())["price"] for model in table["models"]]
    assert len(models) > 20
    dearest = Prices.load({"gold": {"input": "1000", "output": "1"}}).highest
    assert dearest.cost_micros(TokenCounts(input=1)) == 1000
    for model in models:
        for kind in KINDS:
            for size in (1000, MILLION):
                for extras in (UsageExtras(), UsageExtras(fast=True)):
                    tokens = TokenCounts(**{kind: size})
                    assert PRICES.highest.cost_micros(tokens, extras) >= price(model).cost_micros(
                        tokens, extras
                    )


def test_models_of_other_makers_have_their_tiers() -> None:
    sol, pro = price("gpt-6.2-sol"), price("models/gemini-2.5-pro")
    assert sol.cost_micros(TokenCounts(input=272_000)) == 544_000
    assert sol.cost_micros(TokenCounts(input=272_001, output=MILLION)) == 1_088_004 + 15_000_000
    assert sol.cost_micros(TokenCounts(output=MILLION), UsageExtras(fast=True)) == 20_000_000
    assert sol.cost_micros(TokenCounts(), UsageExtras(searches=1)) == 10_000
    assert pro.cost_micros(TokenCounts(cache_read=200_001)) == 50_000


# --- overrides ---------------------------------------------------------------------------------


def test_an_override_wins_and_takes_what_it_leaves_out_from_the_list() -> None:
    prices = Prices.load({"claude-haiku-5-5": {"input": "0.05"}})
    haiku = price("us.anthropic.claude-haiku-5-5", prices)
    assert haiku.rates == Rates(50_000, 500_000, 10_000, 125_000, 200_000)
    assert haiku.cost_micros(TokenCounts(input=200_000)) == 100_000
    assert price("claude-haiku-4-5", prices) == price("claude-haiku-4-5")


def test_a_model_of_another_maker_gets_cautious_cache_rates() -> None:
    prices = Prices.load({"gpt-6*": {"input": "2.5", "output": 20}})
    assert price("gpt-6-sol", prices).rates == Rates(2_500_000, 20_000_000, 2_500_000, 3_125_000, 5_000_000)


def test_the_longest_match_wins_and_an_exact_name_before_any_pattern() -> None:
    rates = {"*": "1", "claude-*": "2", "claude-opus-*": "3", "claude-opus-5": "4", "bedrock/*": "5"}
    prices = Prices.load({name: {"input": amount, "output": amount} for name, amount in rates.items()})
    found = {
        model: price(model, prices).rates.output // MILLION
        for model in (
            "mistral",
            "claude-x",
            "claude-opus-9",
            "claude-opus-5",
            "bedrock/us.anthropic.claude-opus-5",
        )
    }
    assert list(found.values()) == [1, 2, 3, 4, 5]


def test_a_price_of_a_provider_holds_there_alone_and_before_all_others() -> None:
    rates = {"house/*": "1", "house/claude-opus-5": "2", "claude-opus-5": "3", "*": "4", "gpt-5": "5"}
    prices = Prices.load({name: {"input": amount, "output": amount} for name, amount in rates.items()})
    found = {
        each: (prices.price_of(*each) or prices.highest).rates.output // MILLION
        for each in (
            ("gpt-5", "house"),
            ("claude-opus-5", "house"),
            ("Claude-Opus-5", "House"),
            ("claude-opus-5", "other"),
            ("mistral", "other"),
            ("gpt-5", "other"),
            ("gpt-5", ""),
        )
    }
    assert list(found.values()) == [1, 2, 2, 3, 4, 5, 5]
    assert Prices.load({"house/m": {"input": "1", "output": "1"}}).price_of("m", "other") is None


def test_a_price_of_a_provider_takes_what_it_leaves_out_from_the_list() -> None:
    prices = Prices.load({"house/claude-haiku-5-5": {"input": "0.05"}})
    found = prices.price_of("claude-haiku-5-5", "house")
    assert found is not None
    assert found.rates == Rates(50_000, 500_000, 10_000, 125_000, 200_000)
    assert prices.price_of("claude-haiku-5-5", "default") == price("claude-haiku-5-5")


def test_tiers_can_be_overridden() -> None:
    rates = {"input": "1", "output": "2"}
    prices = Prices.load(
        {
            "m": {
                **rates,
                "long": {"above": 10, "input": "2", "output": "4"},
                "fast": {"input": "6", "output": "7"},
            }
        }
    )
    assert price("m", prices).cost_micros(TokenCounts(input=10)) == 10
    assert price("m", prices).cost_micros(TokenCounts(input=11)) == 22
    assert price("m", prices).cost_micros(TokenCounts(input=11), UsageExtras(fast=True)) == 66


@pytest.mark.parametrize(
    "table",
    [
        {"input": 3.75, "output": "1"},
        {"input": "-1", "output": "1"},
        {"input": "1e3", "output": "1"},
        {"input": "1.0000001", "output": "1"},
        {"input": "1234567", "output": "1"},
        {"input": "NaN", "output": "1"},
        {"input": "\u0661", "output": "1"},
        {"input": True, "output": "1"},
        {"input": "1"},
        {},
        {"inptu": "1", "output": "1"},
        {"input": "1", "output": "1", "long": {"input": "1", "output": "1"}},
        {"input": "1", "output": "1", "long": {"above": True, "input": "1", "output": "1"}},
        {"input": "1", "output": "1", "long": "x"},
        {"input": "1", "output": "1", "fast": {"input": "1"}},
        {"input": "1", "output": "1", "fast": 5},
        "5",
    ],
)
def test_what_is_no_price_is_refused_with_its_place(table: object) -> None:
    with pytest.raises(ConfigError, match=r"^prices\.some-model"):
        Prices.load({"some-model": table})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 257, "*a*a*a*a*a"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Prices.load({name: {"input": "1", "output": "1"}})


# --- what is shipped ---------------------------------------------------------------------------


def test_the_list_names_its_source_its_date_and_each_model_once() -> None:
    text = PRICES_FILE.read_text()
    assert "platform.claude.com/docs/en/about-claude/pricing" in text
    assert "2026-" in text.split("[[price]]")[0]
    for maker, page in (("# --- OpenAI", "developers.openai.com"), ("# --- Gemini", "ai.google.dev")):
        head = text.partition(maker)[2].split("[[price]]")[0]
        assert "2026-" in head
        assert page in head
    models = [model for table in tomllib.loads(text)["price"] for model in table["models"]]
    assert len(models) == len(set(models))
    for table in tomllib.loads(text)["price"]:  # other makers have fewer kinds
        kinds = KINDS if table["models"][0].startswith("claude") else KINDS[:3]
        assert set(kinds) <= set(table)
