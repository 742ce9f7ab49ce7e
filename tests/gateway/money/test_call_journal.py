"""Calls that had ended and were not in the ledger when the service was killed: the next start stores them."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.gateway.money.test_ledger_writer import HoldingLedger

from steadyhand.gateway.money import call_journal
from steadyhand.gateway.money.call_journal import FILE_NAME, CallJournal
from steadyhand.gateway.money.ledger_writer import LedgerWriter
from steadyhand.ports import ModelCall, TokenCounts
from steadyhand.testing.contracts.samples import make_call
from steadyhand.testing.memory_ledger import MemoryLedger

CALL = make_call(
    tokens=TokenCounts(3, 20, cache_read=7), micros=1234, reserved_micros=9_999, priced=False, status=200
)


def kill_in_an_outage(directory: Path, *calls: ModelCall) -> Path:
    """Settle calls that the ledger does not take; return the data directory as a kill leaves it."""
    living, left = directory / "living", directory / "left"

    async def play() -> None:
        ledger = HoldingLedger()
        writer = LedgerWriter(ledger, journal=CallJournal(living))
        async with asyncio.timeout(30), writer.open():
            for call in calls:
                writer.write(replace(call, settled=False, micros=0, tokens=TokenCounts()))
                writer.write(call)
            shutil.copytree(living, left)
            ledger.answers.set()
        assert set(ledger.calls.values()) == set(calls)

    living.mkdir()
    asyncio.run(play())
    assert (living / FILE_NAME).read_bytes() == b"", "what the ledger has is not kept"
    return left


def recover(ledger: MemoryLedger, data_dir: Path) -> int:
    return asyncio.run(LedgerWriter(ledger, journal=CallJournal(data_dir)).recover())


def test_a_call_that_ended_before_a_kill_has_its_own_cost_at_the_next_start(tmp_path: Path) -> None:
    never_stored = make_call(micros=5)
    left = kill_in_an_outage(tmp_path, CALL, never_stored)
    ledger = MemoryLedger()
    ledger.calls[CALL.id] = replace(CALL, settled=False, micros=0, tokens=TokenCounts())
    assert recover(ledger, left) == 2
    assert ledger.calls == {CALL.id: CALL, never_stored.id: never_stored}
    assert recover(ledger, left) == 0


def test_what_is_settled_in_the_ledger_stays_as_it_is(tmp_path: Path) -> None:
    left = kill_in_an_outage(tmp_path, CALL)
    ledger = MemoryLedger()
    ledger.calls[CALL.id] = replace(CALL, micros=CALL.reserved_micros, complete=False)  # by another node
    assert recover(ledger, left) == 0
    assert ledger.calls[CALL.id].micros == CALL.reserved_micros


def test_a_line_that_a_kill_cut_is_left_out(tmp_path: Path) -> None:
    other = make_call()
    left = kill_in_an_outage(tmp_path, CALL, other)
    path = left / FILE_NAME
    path.write_bytes(path.read_bytes()[:-20])
    ledger = MemoryLedger()
    assert recover(ledger, left) == 1
    assert list(ledger.calls.values()) == [CALL]


def test_without_room_for_the_journal_calls_are_counted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_journal, "MAX_BYTES", 10)
    left = kill_in_an_outage(tmp_path, CALL, make_call())
    assert len(CallJournal(left).read()) == 1

    async def play(missing: Path) -> None:
        ledger = MemoryLedger()
        writer = LedgerWriter(ledger, journal=CallJournal(missing))
        async with writer.open():
            writer.write(CALL)
        assert ledger.settled_calls == [CALL]

    asyncio.run(play(tmp_path / "missing"))
