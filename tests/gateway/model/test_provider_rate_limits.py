"""Rate limits: short ones are waited for before the agent has heard of them, long ones turn everybody away."""

import asyncio
import email.utils
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from tests.gateway.gateway_harness import SkippingClock, ok_response, open_gateway

from steadyhand.agents import Agent
from steadyhand.gateway import RetryLimits
from steadyhand.gateway.model.provider_rate_limits import MAX_BLOCK, Blocked, ProviderRateLimits, RetryAfter
from steadyhand.testing.contracts.samples import NOON, FakeClock

ANSWER = ok_response(
    json.dumps(
        {
            "type": "message",
            "model": "claude-haiku-4-5",
            "content": [],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": 5},
        }
    ).encode()
)
ASK = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


def busy(status: int, *headers: str) -> bytes:
    kind = "overloaded_error" if status == 529 else "rate_limit_error"
    body = json.dumps({"type": "error", "error": {"type": kind, "message": "busy"}}).encode()
    lines = [f"HTTP/1.1 {status} Busy", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answers:
    """A model's service that gives these answers one after another, the last one again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                self.bodies.append(await reader.readexactly(length))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def date(seconds: float) -> str:
    return email.utils.format_datetime(NOON + timedelta(seconds=seconds), usegmt=True)


def reset(seconds: float) -> str:
    return str(int((NOON + timedelta(seconds=seconds)).timestamp()))


@pytest.mark.parametrize(
    "first",
    [
        busy(429, "retry-after: 3"),
        busy(429, "retry-after: 2.5"),
        busy(429, f"retry-after: {date(4)}"),
        busy(429, f"anthropic-ratelimit-unified-reset: {reset(5)}"),
        busy(429),
        busy(529),
        busy(529, "retry-after: 1"),
        busy(503, "retry-after: 2"),
    ],
)
def test_a_short_wait_is_taken_here_and_the_same_request_is_sent_again(world_dir: Path, first: bytes) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with (
            Answers(first, first, ANSWER) as model,
            open_gateway(world_dir, model.url, clock=clock) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
            spent = await way.open_access.final_usage()
        assert answer.status_code == 200
        assert len(model.bodies) == 3
        assert len(set(model.bodies)) == 1
        assert json.loads(model.bodies[0]) == ASK
        assert len(clock.slept) == 2
        assert 0.9 <= clock.slept[0] < 10
        assert (spent.calls, spent.micros) == (1, 15)  # what was turned away cost nothing
        assert way.open_access.rate_limited_until is None

    asyncio.run(main())


@pytest.mark.parametrize("first", [busy(503), busy(500), busy(529, "x-should-retry: false"), busy(400)])
def test_what_is_no_wait_goes_to_the_agent_as_it_is(world_dir: Path, first: bytes) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with (
            Answers(first) as model,
            open_gateway(world_dir, model.url, clock=clock) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
        assert answer.status_code == int(first.split()[1])
        assert answer.content == first.partition(b"\r\n\r\n")[2]
        assert len(model.bodies) == 1
        assert clock.slept == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "first",
    [busy(429, "retry-after: 120"), busy(429, f"retry-after: {date(120)}"), busy(529, "retry-after: 120")],
)
def test_a_long_wait_is_a_wall_for_everybody_until_its_time(world_dir: Path, first: bytes) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with (
            Answers(first, ANSWER) as model,
            open_gateway(world_dir, model.url, clock=clock) as way,
            way.client() as client,
        ):
            told: list[Any] = []
            assert way.gateway is not None
            gateway = way.gateway
            gateway.on_credential_change(lambda: told.append(gateway.rate_limited_until(Agent("claude"))))
            answers = [await client.post("/v1/messages", json=ASK) for _ in range(3)]
            answers.append(await client.get("/v1/models"))
            for answer in answers:
                assert answer.status_code == 429
                assert answer.headers["x-should-retry"] == "false"
                assert 119 <= int(answer.headers["retry-after"]) <= 121
                assert answer.json()["error"]["type"] == "rate_limit_error"
            assert len(model.bodies) == 1  # nobody asked the service again
            until = way.open_access.rate_limited_until
            assert until is not None
            assert abs((until - NOON).total_seconds() - 120) <= 1
            assert gateway.rate_limited_until(Agent("claude")) == until
            assert told == [until]
            clock.advance(timedelta(seconds=119))
            assert (await client.post("/v1/messages", json=ASK)).status_code == 429
            clock.advance(timedelta(seconds=2))
            assert gateway.rate_limited_until(Agent("claude")) is None
            assert (await client.post("/v1/messages", json=ASK)).status_code == 200
            async with asyncio.timeout(20):
                while told != [until, None]:  # noqa: ASYNC110  # the watch of walls is another task
                    await asyncio.sleep(0.01)
            assert (await way.open_access.final_usage()).micros == 15

    asyncio.run(main())


def test_a_failed_watch_over_rate_limits_ends_the_service_with_its_error(world_dir: Path) -> None:
    class BrokenListener(Exception):
        pass

    timed_out = []

    async def main() -> None:
        clock = SkippingClock()
        async with (
            Answers(busy(429, "retry-after: 120")) as model,
            open_gateway(world_dir, model.url, clock=clock) as way,
            way.client() as client,
        ):
            assert way.gateway is not None
            gateway = way.gateway

            def on_change() -> None:
                if gateway.rate_limited_until(Agent("claude")) is None:
                    raise BrokenListener

            gateway.on_credential_change(on_change)
            assert (await client.post("/v1/messages", json=ASK)).status_code == 429
            clock.advance(timedelta(seconds=130))
            try:
                async with asyncio.timeout(20):
                    await asyncio.Event().wait()
            except TimeoutError:
                timed_out.append(True)

    with pytest.raises(BrokenListener):
        asyncio.run(main())
    assert not timed_out


def test_an_error_of_the_service_leaves_the_gateway_as_it_is(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(world_dir):
            raise KeyError("the service's own")

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_a_wall_turns_away_the_runs_of_other_jobs_too_and_says_so_to_each(world_dir: Path) -> None:
    async def main() -> None:
        async with (
            Answers(busy(429, "retry-after: 600")) as model,
            open_gateway(world_dir, model.url) as way,
            way.client() as client,
        ):
            await client.post("/v1/messages", json=ASK)
            from tests.gateway.gateway_harness import make_checkout, make_run_context  # noqa: PLC0415  # used here alone

            assert way.gateway is not None
            async with way.gateway.open_run(make_run_context(make_checkout(world_dir, 1)), way.emit) as other:
                assert other.rate_limited_until is None
                from steadyhand.gateway import slot_dir  # noqa: PLC0415

                way.socket = slot_dir(world_dir, 1) / "model.sock"
                async with way.client() as second:
                    assert (await second.post("/v1/messages", json=ASK)).status_code == 429
                assert other.rate_limited_until == way.open_access.rate_limited_until
        assert len(model.bodies) == 1

    asyncio.run(main())


def test_many_short_waits_together_are_a_long_one(world_dir: Path) -> None:
    async def main() -> None:
        clock = SkippingClock()
        waits = RetryLimits(per_attempt=20, per_call=40)
        async with (
            Answers(
                busy(429, "retry-after: 15", f"anthropic-ratelimit-unified-reset: {reset(3600)}")
            ) as model,
            open_gateway(world_dir, model.url, clock=clock, waits=waits) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
            assert answer.status_code == 429
            assert answer.headers["x-should-retry"] == "false"
            assert sum(clock.slept[:2]) <= 40
            assert len(model.bodies) == 3
            assert (
                way.open_access.rate_limited_until is not None
            )  # until the reset, which was told beside the shorter wait
            assert abs((way.open_access.rate_limited_until - NOON).total_seconds() - 3600) <= 1

    asyncio.run(main())


def test_an_overload_that_does_not_end_reaches_the_agent_as_it_is(world_dir: Path) -> None:
    async def main() -> None:
        clock = SkippingClock()
        async with (
            Answers(busy(529)) as model,
            open_gateway(world_dir, model.url, clock=clock, waits=RetryLimits(per_call=10)) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=ASK)
        assert answer.status_code == 529
        assert "x-should-retry" not in answer.headers
        assert sum(clock.slept) <= 10
        assert len(model.bodies) == len(clock.slept) + 1 > 2
        assert way.open_access.rate_limited_until is None

    asyncio.run(main())


def test_a_body_too_large_to_be_kept_is_not_sent_twice(
    world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.gateway.model.request_body.MAX_REPLAYABLE_BYTES", 100)

    async def main() -> None:
        large = ASK | {"system": "x" * 1000}
        async with (
            Answers(busy(429, "retry-after: 1"), ANSWER) as model,
            open_gateway(world_dir, model.url) as way,
            way.client() as client,
        ):
            answer = await client.post("/v1/messages", json=large)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert len(model.bodies) == 1

    asyncio.run(main())


def test_an_agent_that_goes_away_while_it_waits_is_not_asked_for_again(world_dir: Path) -> None:
    async def main() -> None:
        class Slow(SkippingClock):
            async def sleep(self, seconds: float) -> None:
                if seconds < 30:
                    asleep.set()
                    await asyncio.Event().wait()
                await super().sleep(seconds)

        asleep = asyncio.Event()
        async with (
            Answers(busy(429, "retry-after: 5"), ANSWER) as model,
            open_gateway(world_dir, model.url, clock=Slow()) as way,
            way.client() as client,
        ):
            call = asyncio.ensure_future(client.post("/v1/messages", json=ASK))
            await asyncio.wait_for(asleep.wait(), 5)
            call.cancel()
            spent = await way.open_access.final_usage()
        assert (spent.calls, spent.micros, spent.complete) == (1, 0, True)
        assert len(model.bodies) == 1

    asyncio.run(main())


# --- the judgement itself ----------------------------------------------------------------------


def judged(status: int, *headers: tuple[str, str], tries: int = 0, waited: float = 0) -> object:
    raw: Sequence[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in headers]
    return ProviderRateLimits(FakeClock()).decide(status, raw, tries, waited)


@pytest.mark.parametrize("text", ["soon", "", "nan", "-1e999", "1e999", "Wed, 99 Foo", "12 34", "0x10"])
def test_a_retry_after_that_means_nothing_is_none(text: str) -> None:
    verdict = judged(429, ("retry-after", text))
    assert isinstance(verdict, RetryAfter | Blocked)
    if isinstance(verdict, Blocked):
        assert verdict.until <= NOON + MAX_BLOCK


def test_pauses_grow_differ_and_never_come_before_what_was_told() -> None:
    pauses = []
    for tries in range(6):
        verdict = judged(529, tries=tries)
        assert isinstance(verdict, RetryAfter)
        pauses.append(verdict.seconds)
    assert [round(each) >= least for each, least in zip(pauses, (1, 2, 4, 8, 16, 16), strict=True)] == [
        True
    ] * 6
    told = {judged(429, ("retry-after", "7")) for _ in range(20)}
    assert len(told) > 1
    assert all(isinstance(each, RetryAfter) and 7 <= each.seconds <= 9 for each in told)


def test_a_wall_without_end_is_one_of_a_week() -> None:
    walls = ProviderRateLimits(FakeClock())
    account = ("u", "s")
    walls.block(account, NOON + timedelta(days=3650))
    assert walls.blocked_until(account) == NOON + MAX_BLOCK
    walls.block(account, NOON + timedelta(seconds=1))  # an earlier word does not bring it down
    assert walls.blocked_until(account) == NOON + MAX_BLOCK
    assert walls.blocked_until(("u", "another")) is None
