"""Our prices beside the real CLI's own figures: it knows the maker's list as well."""

from pathlib import Path

from tests.testing.conftest import AgentHarness

from steadyhand.gateway.money.prices import Prices
from steadyhand.ports import TokenCounts
from steadyhand.testing import scenario
from steadyhand.testing.model import ScriptedModel

MODELS = (
    *("claude-fable-5-2", "claude-fable-5-1", "claude-fable-5"),
    *("claude-opus-5-5", "claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6"),
    *("claude-opus-4-5-20251101", "claude-sonnet-5-5", "claude-sonnet-5", "claude-sonnet-4-6"),
    *("claude-sonnet-4-5-20250929", "claude-haiku-5-5", "claude-haiku-4-5-20251001"),
)
# Above the 100,000 tokens where a long prompt of haiku begins, and below what makes the CLI sum the conversation up.
LARGE = {
    "input_tokens": 12_345,
    "output_tokens": 6_789,
    "cache_read_input_tokens": 70_678,
    "cache_creation_input_tokens": 23_456,
    "ephemeral_1h_input_tokens": 11_111,
}


def spent(model: ScriptedModel) -> TokenCounts:
    told = (
        model.conversation_totals
    )  # the CLI leaves its own probe of a model that it is set to out of its figures
    return TokenCounts(
        input=told["input_tokens"],
        output=told["output_tokens"],
        cache_read=told["cache_read_input_tokens"],
        cache_write_5m=told["ephemeral_5m_input_tokens"],
        cache_write_1h=told["ephemeral_1h_input_tokens"],
    )


def test_a_call_of_each_model_costs_what_the_cli_says_to_the_micro_dollar(
    world_dir: Path, real_cli: Path
) -> None:
    prices = Prices.load()
    played = scenario.parse("large", {"turn": [{"text": "ok", "usage": LARGE}]})
    before: dict[str, float] = {}
    theirs, ours = {}, {}
    with ScriptedModel(played) as served:
        world = AgentHarness(world_dir, served.url)
        try:
            talk = world.start_conversation(real_cli)
            talk.control("initialize")
            for prompt, models in (("hello", MODELS), ("[[scenario:ok]]", ("claude-haiku-5-5",))):
                for model in models:
                    served.clear()
                    talk.control("set_model", model=model)
                    cost = talk.ask(prompt)["modelUsage"][model]["costUSD"]
                    theirs[model, prompt] = round((cost - before.get(model, 0.0)) * 1_000_000, 2)
                    before[model] = cost
                    price = prices.price_of(model)
                    assert price is not None, model
                    ours[model, prompt] = price.cost_micros(spent(served))
        finally:
            world.close()
    assert len(ours) == len(MODELS) + 1
    apart = {key: (ours[key], theirs[key]) for key in ours if abs(ours[key] - theirs[key]) > 0.51}
    assert apart == {}
