"""What calls cost, as they pass: counted to the token, kept in the ledger, and ended by the budget."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import (
    FLAT_PRICES,
    SOCKET_INSIDE,
    GatewayHarness,
    SkippingClock,
    make_checkout,
    make_run_context,
    ok_response,
    open_gateway,
    serve_host,
    wait_until,
)

from steadyhand.admission import spending_from_ledger
from steadyhand.events import BudgetNear
from steadyhand.gateway import BillingDeps, ModelGateway, Provider, job_limits
from steadyhand.ports import BudgetLimit, TokenCounts, UsageQuery, UsageTotal
from steadyhand.testing.contracts.samples import NOON, make_call
from steadyhand.testing.memory_ledger import MemoryLedger

ASK: dict[str, Any] = {"model": "claude-haiku-4-5", "max_tokens": 128_000, "messages": []}


def message(model: str = "claude-haiku-4-5", **usage: int) -> bytes:
    figures = {"input_tokens": 10, "output_tokens": 90, **usage}
    return json.dumps(
        {"type": "message", "model": model, "content": [], "stop_reason": "end_turn", "usage": figures}
    ).encode()


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields})
    return f"event: {kind}\ndata: {data}\n\n".encode()


STARTED = event(
    "message_start",
    message={
        "model": "claude-haiku-4-5",
        "usage": {
            "input_tokens": 7,
            "output_tokens": 1,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
        },
    },
)
SAID = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 400})
ENDED = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 200}) + event(
    "message_stop"
)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def answering(answer: bytes, world_dir: Path, **options: Any) -> AsyncIterator[GatewayHarness]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0))
            writer.write(answer)
            await writer.drain()
            if answer.startswith(STREAM):
                return

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except asyncio.IncompleteReadError:
            pass

    async with serve_host(quietly) as upstream, open_gateway(world_dir, upstream.url, **options) as way:
        yield way


async def call(way: GatewayHarness, **fields: Any) -> httpx2.Response:
    async with way.client() as client:
        return await client.post("/v1/messages", json=ASK | fields)


# --- what is counted ---------------------------------------------------------------------------


def test_a_call_is_kept_with_whose_it_is_and_every_kind_of_token(world_dir: Path) -> None:
    async def main() -> None:
        async with answering(
            STREAM + STARTED + SAID + ENDED, world_dir, id="j" * 12, api_key_id="k_9"
        ) as way:
            assert (await call(way)).content == STARTED + SAID + ENDED
            spent = await way.open_access.final_usage()
            (kept,) = way.ledger.settled_calls
        tokens = TokenCounts(7, 200, 30, 20, 30)
        assert spent == UsageTotal(1, tokens, 287)
        assert kept == make_call(
            id=kept.id,
            job_id="j" * 12,
            run=0,
            api_key_id="k_9",
            model="claude-haiku-4-5",
            at=NOON,
            reserved_micros=kept.reserved_micros,
            tokens=tokens,
            micros=287,
            status=200,
        )

    asyncio.run(main())


def test_a_call_reserves_its_input_and_4096_tokens_and_later_what_the_run_has_shown(world_dir: Path) -> None:
    async def main() -> None:
        async with answering(ok_response(message(input_tokens=1000, output_tokens=70)), world_dir) as way:
            await call(way, messages=["x" * 4000])
            await call(way, messages=["x" * 4000])
            first, second = way.ledger.settled_calls
            size = len(json.dumps(ASK | {"messages": ["x" * 4000]}, separators=(",", ":")))
            assert first.reserved_micros == -(-size // 4) + 4096
            assert (
                second.reserved_micros == 1000 + 70
            )  # as many tokens a byte as before, and the largest output

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_line", ["GET /v1/models", "POST /v1/messages/count_tokens", "GET /v1/messages"]
)
def test_what_costs_nothing_is_not_in_the_ledger(world_dir: Path, request_line: str) -> None:
    async def main() -> None:
        async with (
            answering(ok_response(b'{"input_tokens": 5}'), world_dir, budget_micros=1) as way,
            way.client() as client,
        ):
            method, path = request_line.split()
            body = {} if method == "GET" else {"json": ASK}
            assert (await client.request(method, path, **body)).status_code == 200  # type: ignore[arg-type]
        assert way.ledger.calls == {}

    asyncio.run(main())


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_an_error_of_the_service_costs_nothing(world_dir: Path, status: int) -> None:
    async def main() -> None:
        body = b'{"type":"error","error":{"type":"x","message":"no"}}'
        answer = b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
        async with answering(answer, world_dir) as way:
            assert (await call(way)).status_code == status
            assert await way.open_access.final_usage() == UsageTotal(1)
            assert way.ledger.settled_calls[0].status == status

    asyncio.run(main())


def test_a_service_that_is_not_there_costs_nothing(world_dir: Path) -> None:
    async def main() -> None:
        async with open_gateway(world_dir) as way:
            assert (await call(way)).status_code == 502
            assert await way.open_access.final_usage() == UsageTotal(1)
            assert way.ledger.settled_calls[0].status is None

    asyncio.run(main())


def test_a_stream_that_is_cut_counts_what_was_told_costs_what_was_said_and_is_marked(world_dir: Path) -> None:
    async def main() -> None:
        chunk = STARTED + SAID
        cut = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            b"%x\r\n%b\r\n" % (len(chunk), chunk)
        )

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(cut)
            await writer.drain()

        async with serve_host(serve) as upstream, open_gateway(world_dir, upstream.url) as way:
            with pytest.raises(httpx2.TransportError):
                await call(way)
            spent = await way.open_access.final_usage()
        assert spent.tokens == TokenCounts(7, 1, 30, 20, 30)  # what was told
        assert spent.complete is False
        assert 187 <= spent.micros <= 190  # 87 went in; 400 characters were said, and only one token was told

    asyncio.run(main())


def test_an_answer_that_tells_nothing_costs_what_was_reserved_and_is_marked(world_dir: Path) -> None:
    async def main() -> None:
        for body in (b"", b"{}", b"not json", b'{"type": "message"}'):
            async with answering(ok_response(body), world_dir) as way:
                assert (await call(way)).status_code == 200
                spent = await way.open_access.final_usage()
                (kept,) = way.ledger.settled_calls
            assert spent.complete is False, body
            assert spent.micros == kept.reserved_micros > 4096, body

    asyncio.run(main())


def test_an_agent_that_goes_away_before_the_answer_has_spent_what_was_reserved(world_dir: Path) -> None:
    async def main() -> None:
        async with serve_host() as upstream, open_gateway(world_dir, upstream.url) as way:
            going = asyncio.ensure_future(call(way))
            await wait_until(lambda: b"claude-haiku" in upstream.received)
            going.cancel()
            spent = await way.open_access.final_usage()
            (kept,) = way.ledger.settled_calls
        assert (spent.calls, spent.complete) == (1, False)
        assert spent.micros == kept.reserved_micros > 4096

    asyncio.run(main())


def test_a_model_without_a_price_costs_the_dearest_one_and_the_job_is_told_once(world_dir: Path) -> None:
    async def main() -> None:
        async with answering(ok_response(message("house-model-7")), world_dir, budget_micros=10**9) as way:
            await call(way, model="house-model-7")
            await call(way, model="house-model-7")
            spent = await way.open_access.final_usage()
            dearest = FLAT_PRICES.highest.cost_micros(TokenCounts(10, 90))
            assert (spent.priced, spent.micros) == (False, 2 * dearest)
            assert dearest > 100
            assert way.ledger.settled_calls[0].model == "house-model-7"
            (text,) = way.warnings("unpriced_model")
            assert "house-model-7" in text

    asyncio.run(main())


def test_what_the_answer_names_is_paid_for_whatever_the_request_named(world_dir: Path) -> None:
    async def main() -> None:
        async with answering(ok_response(message("claude-opus-4-8")), world_dir) as way:
            await call(way, model="claude-haiku-4-5")
            assert way.ledger.settled_calls[0].model == "claude-opus-4-8"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"claude-a","messages":[]}', "claude-a"),
        (b' { "model" : "claude-a" , "x": {"model": "claude-b"}}', "claude-a"),
        (b'{"tools":[{"model":"claude-b"}],"model":"claude-a"}', "claude-a"),
        (b'{"max_tokens":1,"mod\\u0065l":"claude-a"}', "claude-a"),
        (b'{"model":7}', "unknown"),
        (b"[]", "unknown"),
        (b"nothing", "unknown"),
    ],
)
def test_the_model_of_a_request_is_found_where_it_stands(world_dir: Path, body: bytes, model: str) -> None:
    async def main() -> None:
        async with (
            serve_host() as upstream,
            open_gateway(world_dir, upstream.url, budget_micros=10**9) as way,
            way.client() as client,
        ):
            going = asyncio.ensure_future(client.post("/v1/messages", content=body))
            await wait_until(lambda: body in upstream.received and bool(way.ledger.calls))
            (opened,) = way.ledger.calls.values()
            assert (opened.settled, opened.model) == (False, model)
            going.cancel()

    asyncio.run(main())


def test_a_call_is_in_the_ledger_before_its_answer_and_holds_up_nothing(world_dir: Path) -> None:
    class Stuck(MemoryLedger):
        async def save_call(self, call: Any) -> None:
            await go_on.wait()
            await super().save_call(call)

    go_on = asyncio.Event()

    async def main() -> None:
        async with answering(ok_response(message()), world_dir, ledger=Stuck()) as way:
            assert (await call(way)).status_code == 200  # though nothing could be written
            assert way.ledger.calls == {}
            waiting = asyncio.ensure_future(way.open_access.final_usage())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            go_on.set()
            assert (await waiting).micros == 100
            assert [each.settled for each in way.ledger.calls.values()] == [True]

    asyncio.run(main())


# --- what ends it ------------------------------------------------------------------------------


def test_a_spent_budget_answers_402_in_the_words_of_the_api_and_the_run_is_told(world_dir: Path) -> None:
    async def main() -> None:
        async with answering(ok_response(message()), world_dir, budget_micros=150) as way:
            assert (await call(way)).status_code == 200
            assert way.open_access.exhausted_budget is None
            assert (await call(way)).status_code == 200  # one call over
            answer = await call(way)
            assert answer.status_code == 402
            text = "The budget of this job (0.00015 USD) is spent."
            assert answer.json()["error"] == {"type": "billing_error", "message": text}
            assert answer.headers["x-should-retry"] == "false"
            assert way.open_access.exhausted_budget == text
            assert (await way.open_access.final_usage()).micros == 200

    asyncio.run(main())


def test_100_parallel_calls_against_a_budget_with_room_for_one_more_are_at_most_one_over(
    world_dir: Path,
) -> None:
    async def main() -> None:
        arrived = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal arrived
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
                arrived += 1
                await asyncio.sleep(0.005)
                writer.write(ok_response(message()))

        async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                await slow(reader, writer)

        ledger = MemoryLedger()
        # Ten were paid for; there is room for one more of a hundred micro-dollars, and a little.
        await ledger.save_call(make_call(job_id="j" * 12, run=1, micros=1_000))
        async with (
            serve_host(quietly) as upstream,
            open_gateway(world_dir, upstream.url, ledger=ledger, id="j" * 12, budget_micros=1_110) as way,
            httpx2.AsyncClient(
                transport=httpx2.AsyncHTTPTransport(
                    uds=str(way.socket), limits=httpx2.Limits(max_connections=50)
                ),
                base_url="http://model.invalid",
                timeout=60,
            ) as client,
        ):
            answers = await asyncio.gather(*(client.post("/v1/messages", json=ASK) for _ in range(100)))
            spent = await way.open_access.final_usage()
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 402}
        assert arrived == statuses.count(200)
        assert spent.micros == 100 * arrived
        assert 1_000 + spent.micros <= 1_110 + 100
        assert arrived in (1, 2)  # the one that there was room for, and at most one over

    asyncio.run(main())


def test_what_earlier_runs_of_a_job_spent_counts_and_what_it_did_before_it_began_anew_does_not(
    world_dir: Path,
) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.save_call(make_call(job_id="j" * 12, run=1, micros=10**6))
        await ledger.save_call(make_call(job_id="j" * 12, run=2, micros=60))
        await ledger.save_call(make_call(job_id="another", run=2, micros=10**6))
        options = {"ledger": ledger, "id": "j" * 12, "since_run": 2, "budget_micros": 160}
        async with answering(ok_response(message()), world_dir, **options) as way:
            assert (await call(way)).status_code == 200
            assert (await call(way)).status_code == 402

    asyncio.run(main())


def test_the_budgets_of_agent_key_and_service_hold_over_all_jobs_and_a_new_day_begins_anew(
    world_dir: Path,
) -> None:
    limits = [
        (BudgetLimit("agent", "claude", "day", 250), "The budget of the agent claude for this day"),
        (BudgetLimit("key", "k_one", "day", 250), "The budget of this key for this day"),
        (BudgetLimit("service", "", "day", 250), "The budget of this service for this day"),
    ]

    async def main() -> None:
        for allowance, text in limits:
            ledger, clock = MemoryLedger(), SkippingClock()
            await ledger.save_call(make_call(micros=100, job_id="of yesterday", at=NOON - timedelta(days=1)))
            await ledger.save_call(make_call(micros=100, job_id="of this morning"))
            async with answering(
                ok_response(message()),
                world_dir,
                ledger=ledger,
                clock=clock,
                get_limits=lambda _job, _agent, limit=allowance: [limit],
            ) as way:
                assert (await call(way)).status_code == 200
                assert (await call(way)).status_code == 200
                refused = await call(way)
                assert refused.status_code == 402
                assert text in refused.text
                assert way.open_access.exhausted_budget is not None
                clock.advance(timedelta(hours=12))
                assert (await call(way)).status_code == 200

    asyncio.run(main())


def test_what_a_key_has_spent_is_one_figure_at_the_gateway_and_in_the_ledger(world_dir: Path) -> None:
    async def main() -> None:
        ledger, clock = MemoryLedger(), SkippingClock()
        await ledger.save_call(make_call(micros=100, job_id="of yesterday", at=NOON - timedelta(days=1)))
        await ledger.save_call(make_call(micros=10, job_id="of this morning"))
        await ledger.save_call(make_call(micros=1_000, job_id="of another", api_key_id="k_other"))
        in_ledger = spending_from_ledger(ledger, clock)
        async with answering(ok_response(message()), world_dir, ledger=ledger, clock=clock) as way:
            assert way.gateway is not None
            assert await way.gateway.spent_by_key("k_one", "day") == 10
            assert (await call(way)).status_code == 200
            await way.open_access.final_usage()
            for period in ("day", "month"):
                spent = await way.gateway.spent_by_key("k_one", period)
                assert spent == await in_ledger("k_one", period) > 10
            clock.advance(timedelta(hours=12))
            assert await way.gateway.spent_by_key("k_one", "day") == await in_ledger("k_one", "day") == 0

    asyncio.run(main())


def test_a_body_in_chunks_reserves_what_it_turned_out_to_be(world_dir: Path) -> None:
    async def main() -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"model":"claude-haiku-4-5","messages":["'
            yield b"x" * 400_000
            yield b'"]}'

        async with (
            serve_host() as upstream,
            open_gateway(world_dir, upstream.url) as way,
            way.client() as client,
        ):
            going = asyncio.ensure_future(client.post("/v1/messages", content=pieces()))
            await wait_until(lambda: upstream.received.endswith(b"0\r\n\r\n"))
            going.cancel()
            spent = await way.open_access.final_usage()
        assert spent.micros > 100_000

    asyncio.run(main())


# --- what is left ------------------------------------------------------------------------------


def test_what_an_earlier_life_left_open_is_settled_at_the_start_and_counts(world_dir: Path) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        left = make_call(job_id="j" * 12, settled=False, reserved_micros=5_000)
        await ledger.save_call(left)
        gateway = ModelGateway(
            world_dir,
            slots=1,
            sandbox_socket=SOCKET_INSIDE,
            billing=BillingDeps(ledger, FLAT_PRICES, job_limits),
            providers=[Provider(base_url="http://127.0.0.1:9")],
        )
        async with gateway.serving():
            (row,) = await ledger.usage(UsageQuery())
            assert row.total == UsageTotal(1, micros=5_000, complete=False)
            assert ledger.calls[left.id] == replace(left, settled=True, micros=5_000, complete=False)
            work = make_run_context(make_checkout(world_dir), id="j" * 12, budget_micros=5_000)

            async def emit(body: object) -> None:
                pass

            async with gateway.open_run(work, emit) as attendance:
                way = GatewayHarness(world_dir / "run" / "slot-0" / "model.sock")
                assert (await call(way)).status_code == 402
                assert await attendance.final_usage() == UsageTotal()

    asyncio.run(main())


def test_a_budget_that_is_nearly_spent_is_an_event_of_the_job_once(world_dir: Path) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        await ledger.save_call(make_call(micros=100, job_id="of this morning"))
        limits = [BudgetLimit("key", "k_one", "day", 250), BudgetLimit("service", "", "day", 100_000)]
        async with answering(
            ok_response(message()), world_dir, ledger=ledger, get_limits=lambda _job, _agent: limits
        ) as way:
            assert (await call(way)).status_code == 200
            assert (await call(way)).status_code == 200
            assert (await call(way)).status_code == 402
            await way.open_access.final_usage()
            near = [body for body in way.events if isinstance(body, BudgetNear)]
            assert [(each.scope, each.name, each.period, each.limit_usd) for each in near] == [
                ("key", "k_one", "day", "0.00025")
            ]

    asyncio.run(main())
