"""The ledger beside the model's own count, over many runs of every kind; and streams that nobody could read."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import (
    FLAT_PRICES,
    SkippingClock,
    make_checkout,
    make_run_context,
    open_gateway,
)
from tests.gateway.model.test_tcp_listener import run_cli

from steadyhand.gateway import BillingDeps, ModelGateway, Provider, job_limits
from steadyhand.ports import TokenCounts, UsageQuery, UsageTotal
from steadyhand.runner.claude.environment import model_environment
from steadyhand.store import open_store
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import PLAIN_HTTP

WITH_THE_CLI = ("subagents", "cached", "cut-once", "overloaded-midway")
"""The scenarios of the last runs, which the real CLI makes."""
FEW_RUNS, FEW_WITH_THE_CLI = 60, ("subagents", "cut-once")
"""The same for `make test`."""
SLOTS = 4
WHOLE, STREAMED, CUT, RETRIED, OVERLOADED, CACHED, PARALLEL = range(7)


def body(scenario: str, number: int, *, stream: bool = True, turns: int = 0) -> dict[str, Any]:
    """A call of a run; with earlier turns the model says that it read them from its cache."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"[[scenario:{scenario}]] {number}"}]
    for turn in range(turns):
        call = {"type": "tool_use", "id": f"t{turn}", "name": "Bash", "input": {}}
        messages.append({"role": "assistant", "content": [call]})
        answer = {"type": "tool_result", "tool_use_id": f"t{turn}", "content": "done"}
        messages.append({"role": "user", "content": [answer]})
    return {
        "model": "claude-haiku-4-5",
        "max_tokens": 128_000,
        "stream": stream,
        "tools": [{"name": "Bash", "input_schema": {"type": "object"}}],
        "messages": messages,
        "metadata": {"user_id": str(number)},
    }


def calls_of(number: int) -> list[list[dict[str, Any]]]:
    """What a run asks, in rounds; the calls of a round are made at once."""
    kind = number % 7
    if kind == WHOLE:
        return [[body("echo", number, stream=False)]]
    if kind == STREAMED:
        return [[body("thinking", number)], [body("echo", number)]]
    if kind == CUT:
        return [[body("cut", number)], [body("cut", number, stream=False)], [body("echo", number)]]
    if kind == RETRIED:
        return [[body("rate-limited-once", number)], [body("echo", number)]]
    if kind == OVERLOADED:
        return [[body("overloaded", number)]]
    if kind == CACHED:
        return [[body("cached", number, turns=turn)] for turn in range(3)]
    return [[body("echo", number)], [body("ok", number, turns=n) for n in range(4)], [body("echo", number)]]


async def make(run: int, address: str, token: str) -> int:
    """Make a run's calls as its agent would; gives how many."""
    made = 0
    headers = {"x-api-key": token}
    async with httpx2.AsyncClient(timeout=60, trust_env=False, verify=PLAIN_HTTP, headers=headers) as client:

        async def one(asked: dict[str, Any]) -> None:
            try:
                answer = await client.post(f"{address}/v1/messages", json=asked)
                assert answer.status_code == 200, answer.text
            except httpx2.TransportError:
                assert run % 7 == CUT

        for calls in calls_of(run):
            made += len(calls)
            await asyncio.gather(*(one(each) for each in calls))
    return made


@pytest.mark.parametrize("runs", [FEW_RUNS, pytest.param(200, marks=pytest.mark.long)])
def test_the_ledger_equals_the_models_own_count_to_the_token_over_many_mixed_runs(
    world_dir: Path, real_cli: Path, runs: int
) -> None:
    scenarios = WITH_THE_CLI if runs > FEW_RUNS else FEW_WITH_THE_CLI
    with_the_cli = dict(enumerate(scenarios, runs - len(scenarios)))

    async def main() -> None:
        clock = SkippingClock()
        store = await open_store(f"sqlite:///{world_dir}/ledger.db")
        with ScriptedModel() as model:
            gateway = ModelGateway(
                world_dir,
                slots=SLOTS,
                sandbox_socket=None,
                billing=BillingDeps(store, FLAT_PRICES, job_limits),
                providers=[Provider(base_url=model.url)],
                clock=clock,
                sleep=clock.sleep,
            )
            made: dict[str, int] = {}
            total = UsageTotal()
            free = asyncio.Semaphore(SLOTS)

            async def emit(told: object) -> None:
                raise AssertionError(told)

            async def run(number: int) -> None:
                nonlocal total
                work = make_run_context(
                    make_checkout(world_dir),
                    budget_micros=10**12,
                    workspace="https://user:secret@git.example.org/shop.git" if number % 2 else None,
                )
                async with free, gateway.open_run(work, emit) as attendance:
                    told = model_environment(attendance.model_access)
                    if number in with_the_cli:
                        folder = world_dir / f"cli-{number}"
                        folder.mkdir(mode=0o755)
                        code, result = await asyncio.to_thread(
                            run_cli, real_cli, folder, told, f"[[scenario:{with_the_cli[number]}]] go"
                        )
                        assert (code, result["is_error"]) == (0, False)
                    else:
                        made[work.job.id] = await make(
                            number, told["ANTHROPIC_BASE_URL"], told["ANTHROPIC_API_KEY"]
                        )
                    spent = await attendance.final_usage()
                    total = total.plus(spent)
                    (row,) = await store.usage(UsageQuery(job_id=work.job.id))
                    assert row.total == spent
                    cut = with_the_cli.get(number) == "cut-once" or (
                        number % 7 == CUT and number not in with_the_cli
                    )
                    assert spent.complete == (not cut)
                    assert spent.calls == made.get(work.job.id, spent.calls)

            async with gateway.serving(), asyncio.TaskGroup() as group:
                for number in range(runs):
                    group.create_task(run(number))
            counted = model.all_totals
            (row,) = await store.usage(UsageQuery())
            by_workspace = {
                each.group["workspace"]: each.total
                for each in await store.usage(UsageQuery(by=("workspace",)))
            }
            await store.close()
        assert row.total == total
        assert sorted(by_workspace) == ["", "https://git.example.org/shop.git"]
        assert by_workspace[""].plus(by_workspace["https://git.example.org/shop.git"]) == total
        assert row.total.tokens == TokenCounts(
            input=counted["input_tokens"],
            output=counted["output_tokens"],
            cache_read=counted["cache_read_input_tokens"],
            cache_write_5m=counted["ephemeral_5m_input_tokens"],
            cache_write_1h=counted["ephemeral_1h_input_tokens"],
        )
        assert row.total.calls > 2 * runs
        assert min(counted.values()) > 0

    asyncio.run(main())


# --- streams that nobody could read --------------------------------------------------------------

EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"model": "claude-haiku-4-5", "usage": {"input_tokens": 500, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"piece {n} é"}}
        for n in range(8)
    ),
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 77}},
    {"type": "message_stop"},
]
GOOD = b"".join(
    b"event: %b\ndata: %b\n\n" % (str(each["type"]).encode(), json.dumps(each).encode()) for each in EVENTS
)


def spoiled(chance: random.Random) -> bytes:
    """The good stream after something has happened to it."""
    data = bytearray(GOOD)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        what = chance.randrange(6)
        if what == 0:
            del data[at:]  # cut
        elif what == 1:
            del data[at : at + chance.randint(1, 60)]  # bytes dropped
        elif what == 2:
            data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 30)))
        elif what == 3:
            data[at] = chance.randrange(256)
        elif what == 4:
            data[at:at] = (
                b'data: {"type": "message_delta", "usage": {"output_tokens": %b}}\n\n'
                % chance.choice(
                    [b"-5", b"1e9", b'"77"', b"null", b"[]", b"99999999999999999999", b"{", b"true"]
                )
            )
        else:
            data = data[at:] + data[:at]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_no_spoiled_stream_stops_the_gateway_or_counts_as_nothing_without_a_mark(
    world_dir: Path, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  # any will do, and the same again
    streams = [spoiled(chance) for _ in range(50)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the stream of the number that is asked for, in pieces, and break off when it is over."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            asked = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            number = json.loads(asked)["number"]
            data = GOOD if number is None else streams[number]
            chunked = number is not None and number % 2 == 0
            framing = b"transfer-encoding: chunked" if chunked else b"connection: close"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%b\r\n\r\n" % framing)
            while data:
                size = chance.randint(1, 200)
                piece, data = data[:size], data[size:]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
            if chunked and number % 4 == 0:
                writer.write(b"0\r\n\r\n")  # else it breaks off
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_gateway(world_dir, url, budget_micros=10**12) as way, way.client() as client:
            for number in range(len(streams)):
                asked = {"model": "claude-haiku-4-5", "messages": [], "number": number}
                try:
                    answer = await client.post("/v1/messages", json=asked)
                    assert answer.status_code == 200
                    assert answer.content == streams[number]
                except httpx2.TransportError:
                    assert number % 4 == 2
            good = await client.post("/v1/messages", json={"model": "claude-haiku-4-5", "number": None})
            assert good.content == GOOD
            spent = await way.open_access.final_usage()
        server.close()
        *spoilt, last = way.ledger.settled_calls
        assert (spent.calls, len(spoilt)) == (len(streams) + 1, len(streams))
        assert (last.complete, last.tokens.input, last.tokens.output) == (True, 500, 77)
        for call in spoilt:
            assert call.micros > 0
            assert not call.complete or call.tokens.input + call.tokens.output > 0
        assert not all(call.complete for call in spoilt)

    asyncio.run(main())
