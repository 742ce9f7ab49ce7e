"""Calls that the ledger does not take yet: they are held, they count against budgets, and at a bound new ones wait."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.gateway.gateway_harness import FLAT_PRICES, make_checkout, make_run_context

from steadyhand.events import EventBody, TextDelta
from steadyhand.gateway import Provider, job_limits
from steadyhand.gateway.model.metered_run import BillingContext, MeteredRun
from steadyhand.gateway.model.usage_meter import MeasuredUsage
from steadyhand.gateway.money.budgets import BudgetExhausted, Budgets
from steadyhand.gateway.money.ledger_writer import LedgerWriter
from steadyhand.gateway.run_events import RunEvents
from steadyhand.ports import ModelCall, TokenCounts, UsageQuery
from steadyhand.testing.contracts.samples import FakeClock, expect_error
from steadyhand.testing.memory_ledger import MemoryLedger

MODEL = "claude-haiku-4-5"
MAX_HELD = 3


class HoldingLedger(MemoryLedger):
    """A ledger that takes a call only after `answers` is set, as the store does in an outage."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def save_call(self, call: ModelCall) -> None:
        await self.answers.wait()
        await super().save_call(call)


@dataclass
class Metering:
    ledger: HoldingLedger
    writer: LedgerWriter
    run: MeteredRun

    async def call(self, tokens: int) -> None:
        usage = MeasuredUsage(TokenCounts(output=tokens), MODEL, complete=True, has_usage=True)
        (await self.run.begin_call(MODEL, 4)).settle(usage, 200)


async def _ignore(_body: EventBody | TextDelta) -> None:
    pass


def in_outage(root: Path, scene: Callable[[Metering], Awaitable[None]], budget: int = 1_000_000) -> None:
    """Play a scene in which the ledger does not answer before the scene says so."""

    async def play() -> None:
        ledger, clock = HoldingLedger(), FakeClock()
        writer = LedgerWriter(ledger, max_held=MAX_HELD)
        billing = BillingContext(Budgets(ledger, clock), writer, FLAT_PRICES, clock, job_limits)
        work = make_run_context(make_checkout(root), budget_micros=budget)
        async with asyncio.timeout(30), writer.open():
            await scene(Metering(ledger, writer, MeteredRun(work, Provider(), billing, RunEvents(_ignore))))
            ledger.answers.set()

    asyncio.run(play())


def test_calls_are_held_and_are_in_the_ledger_once_it_answers(tmp_path: Path) -> None:
    async def scene(metering: Metering) -> None:
        await metering.call(10)
        await metering.call(20)
        assert metering.ledger.calls == {}
        metering.ledger.answers.set()
        total = await metering.run.final_usage()
        assert total.micros == 30
        (row,) = await metering.ledger.usage(UsageQuery())
        assert row.total.micros == 30

    in_outage(tmp_path, scene)


def test_calls_that_are_under_way_are_stored_together_with_one_that_ends(tmp_path: Path) -> None:
    async def scene(metering: Metering) -> None:
        metering.ledger.answers.set()
        first = await metering.run.begin_call(MODEL, 4)
        assert metering.writer._delayed.keys() == {first.call.id}
        await metering.call(10)
        assert metering.writer._delayed == {}  # it does not wait for a commit of its own
        await metering.writer.flush({first.call.id})
        assert not metering.ledger.calls[first.call.id].settled
        first.settle(None, 200)
        assert (await metering.run.final_usage()).calls == 2
        assert all(call.settled for call in metering.ledger.calls.values())

    in_outage(tmp_path, scene)


def test_a_call_that_is_held_counts_against_the_budget(tmp_path: Path) -> None:
    async def scene(metering: Metering) -> None:
        await metering.call(100)
        await expect_error(BudgetExhausted, metering.call(1))
        assert metering.ledger.calls == {}

    in_outage(tmp_path, scene, budget=100)


def test_at_the_bound_a_new_call_waits_until_the_ledger_takes_the_others(tmp_path: Path) -> None:
    async def scene(metering: Metering) -> None:
        for _ in range(MAX_HELD):
            await metering.call(1)
        waiting = asyncio.ensure_future(metering.call(1))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        metering.ledger.answers.set()
        await waiting
        assert (await metering.run.final_usage()).calls == MAX_HELD + 1

    in_outage(tmp_path, scene)


def test_the_calls_of_a_job_are_in_the_ledger_before_its_next_run_reads_its_budget(tmp_path: Path) -> None:
    async def scene(metering: Metering) -> None:
        await metering.call(10)
        (held, *_) = [call for _, call in metering.writer._last_write.values()]
        flush = asyncio.ensure_future(metering.writer.flush_job(held.job_id))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not flush.done()
        metering.ledger.answers.set()
        await flush
        assert [call.micros for call in metering.ledger.settled_calls] == [10]

    in_outage(tmp_path, scene)


def test_a_stop_in_an_outage_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyhand.gateway.money.ledger_writer.CLOSE_SECONDS", 0.01)

    async def play() -> None:
        ledger = HoldingLedger()
        writer = LedgerWriter(ledger)
        async with asyncio.timeout(30):
            async with writer.open():
                call = make_run_context(make_checkout(tmp_path)).job
                writer.write(
                    ModelCall("c", call.id, 1, "k", "claude", "default", MODEL, call.created_at, settled=True)
                )
            assert ledger.calls == {}

    asyncio.run(play())


def test_who_waits_for_the_usage_of_a_run_does_not_wait_for_calls_of_others(tmp_path: Path) -> None:
    class SharingLedger(HoldingLedger):
        """A ledger in which a call waits for others, or for who waits for it."""

        def hasten(self) -> None:
            self.answers.set()

    async def scene() -> None:
        ledger, clock = SharingLedger(), FakeClock()
        writer = LedgerWriter(ledger)
        billing = BillingContext(Budgets(ledger, clock), writer, FLAT_PRICES, clock, job_limits)
        work = make_run_context(make_checkout(tmp_path))
        async with asyncio.timeout(30), writer.open():
            run = MeteredRun(work, Provider(), billing, RunEvents(_ignore))
            await Metering(ledger, writer, run).call(10)
            assert (await run.final_usage()).micros == 10
            assert len(ledger.settled_calls) == 1

    asyncio.run(scene())
