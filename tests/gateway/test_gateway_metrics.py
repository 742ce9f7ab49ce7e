"""What the gateway counts when a provider is busy, gone or refused, and when an agent may not ask."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.gateway.gateway_harness import GatewayHarness, SkippingClock, open_gateway, serve_host
from tests.gateway.model.test_provider_rate_limits import ANSWER, ASK, Answers, busy

from steadyhand.metrics import ServiceMetrics


def metrics_of(way: GatewayHarness) -> ServiceMetrics:
    assert way.gateway is not None
    return way.gateway._billing.metrics


def counted(way: GatewayHarness) -> Mapping[tuple[str, ...], int]:
    """Return each counter that is not 0, by its name without the beginning and its labels."""
    return {
        (name.removeprefix("steadyhand_"), *labels): value.n
        for name, series in metrics_of(way).series.items()
        for labels, value in series.items()
        if value.n
    }


def test_a_busy_provider_counts_each_wait_and_one_call(world_dir: Path) -> None:
    async def main() -> None:
        first = busy(429, "retry-after: 3")
        async with (
            Answers(first, first, ANSWER) as model,
            open_gateway(world_dir, model.url, clock=SkippingClock()) as way,
            way.client() as client,
        ):
            assert (await client.post("/v1/messages", json=ASK)).status_code == 200
        assert counted(way) == {
            ("gateway_rate_limits_total", "default", "waited"): 2,
            ("model_calls_total", "other", "ok"): 1,
            ("model_tokens_total", "other", "input"): 10,
            ("model_tokens_total", "other", "output"): 5,
            ("model_cost_dollars_total", "other"): 15,
        }

    asyncio.run(main())


def test_a_long_rate_limit_counts_as_blocked_and_what_is_refused_meanwhile_too(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            Answers(busy(429, "retry-after: 120"), ANSWER) as model,
            open_gateway(world_dir, model.url, clock=SkippingClock()) as way,
            way.client() as client,
        ):
            assert way.gateway is not None
            assert way.gateway.blocked_providers() == {"default": False}
            for _ in range(3):
                assert (await client.post("/v1/messages", json=ASK)).status_code == 429
            assert way.gateway.blocked_providers() == {"default": True}
        found = counted(way)
        assert found["gateway_rate_limits_total", "default", "blocked"] == 1
        assert found["gateway_refused_total", "rate_limit_error"] == 3
        assert found["model_calls_total", "other", "rate_limited"] == 1  # the others were not let through

    asyncio.run(main())


def test_a_provider_that_is_gone_counts_as_an_error_and_a_call_without_an_answer(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as gone:
            pass
        async with open_gateway(world_dir, gone.url) as way, way.client() as client:
            assert (await client.post("/v1/messages", json=ASK)).status_code == 502
        found = counted(way)
        assert found["gateway_errors_total", "default"] == 1
        assert found["model_calls_total", "other", "no_answer"] == 1
        assert metrics_of(way)._open.n == 0

    asyncio.run(main())


def test_a_path_that_is_not_allowed_counts_by_the_kind_of_the_answer_alone(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(world_dir) as way, way.client() as client:
            for number in range(20):
                assert (await client.get(f"/v1/secret-{number}")).status_code == 403
        assert counted(way) == {("gateway_refused_total", "permission_error"): 20}

    asyncio.run(main())
