"""Tests of every ledger."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta

from steadyhand.ports import Ledger, TokenCounts, UsageGroup, UsageQuery, UsageTotal
from steadyhand.testing.contracts.samples import NOON, async_test, make_call

DAY = timedelta(days=1)


class LedgerContract:
    """Keeping calls, settling what was left, and adding up."""

    def open(self) -> AbstractAsyncContextManager[Ledger]:
        """Open an empty ledger for one test, closed at its end."""
        raise NotImplementedError

    @async_test
    async def test_settled_calls_are_added_up_with_every_kind_of_token_apart(self) -> None:
        first = make_call(tokens=TokenCounts(1, 2, 3, 4, 5), micros=70)
        second = make_call(tokens=TokenCounts(10, 20, 30, 40, 50), micros=700)
        async with self.open() as ledger:
            await ledger.save_call(first)
            await ledger.save_call(second)
            (row,) = await ledger.usage(UsageQuery())
            assert row.group == {}
            assert row.total == UsageTotal(2, TokenCounts(11, 22, 33, 44, 55), 770)

    @async_test
    async def test_nothing_spent_is_one_row_of_nothing_and_no_row_of_any_group(self) -> None:
        async with self.open() as ledger:
            assert [row.total for row in await ledger.usage(UsageQuery())] == [UsageTotal()]
            assert list(await ledger.usage(UsageQuery(by=("agent",)))) == []

    @async_test
    async def test_a_call_that_is_kept_again_takes_its_own_place(self) -> None:
        opened = make_call(settled=False, reserved_micros=900)
        async with self.open() as ledger:
            await ledger.save_call(opened)
            assert await _sum(ledger) == UsageTotal()
            await ledger.save_call(replace(opened, settled=True, micros=40, tokens=TokenCounts(output=4)))
            assert await _sum(ledger) == UsageTotal(1, TokenCounts(output=4), 40)

    @async_test
    async def test_calls_that_are_kept_at_once_each_have_their_last_word(self) -> None:
        opened = [make_call(settled=False, reserved_micros=1) for _ in range(40)]
        async with self.open() as ledger:
            both = [each for call in opened for each in (call, replace(call, settled=True, micros=2))]
            await asyncio.gather(*(ledger.save_call(call) for call in both))
            assert await _sum(ledger) == UsageTotal(40, micros=80)

    @async_test
    async def test_what_was_left_open_is_settled_at_its_reservation_and_marked(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(settled=False, reserved_micros=900))
            await ledger.save_call(make_call(settled=False, reserved_micros=90, agent="other"))
            await ledger.save_call(make_call(micros=5, reserved_micros=100))
            assert await ledger.settle_open_calls() == 2
            assert await _sum(ledger) == UsageTotal(3, TokenCounts(), 995, complete=False)
            assert await _sum(ledger, agent="other") == UsageTotal(1, TokenCounts(), 90, complete=False)
            assert await ledger.settle_open_calls() == 0

    @async_test
    async def test_one_call_without_a_price_or_a_whole_answer_marks_the_sum(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(model="known"))
            await ledger.save_call(make_call(model="odd", priced=False))
            await ledger.save_call(make_call(model="cut", complete=False))
            total = await _sum(ledger)
            assert (total.priced, total.complete) == (False, False)
            by_model = {
                row.group["model"]: row.total for row in await ledger.usage(UsageQuery(by=("model",)))
            }
            assert (by_model["known"].priced, by_model["known"].complete) == (True, True)
            assert (by_model["odd"].priced, by_model["odd"].complete) == (False, True)
            assert (by_model["cut"].priced, by_model["cut"].complete) == (True, False)

    @async_test
    async def test_sums_come_by_each_thing_and_by_several_in_their_order(self) -> None:
        calls = [
            make_call(api_key_id="k_b", agent="x", model="m1", provider="p", micros=1),
            make_call(api_key_id="k_a", agent="y", model="m2", provider="p", micros=2, at=NOON + DAY),
            make_call(api_key_id="k_a", agent="x", model="m2", provider="q", micros=4),
            make_call(api_key_id="k_a", agent="x", model="m1", provider="p", micros=8),
        ]
        async with self.open() as ledger:
            await asyncio.gather(*(ledger.save_call(call) for call in calls))

            async def sums(*by: UsageGroup) -> list[tuple[tuple[str, ...], int]]:
                rows = await ledger.usage(UsageQuery(by=by))
                return [(tuple(row.group[each] for each in by), row.total.micros) for row in rows]

            assert await sums("api_key") == [(("k_a",), 14), (("k_b",), 1)]
            assert await sums("agent") == [(("x",), 13), (("y",), 2)]
            assert await sums("model") == [(("m1",), 9), (("m2",), 6)]
            assert await sums("provider") == [(("p",), 11), (("q",), 4)]
            assert await sums("day") == [(("2026-03-01",), 13), (("2026-03-02",), 2)]
            assert await sums("api_key", "agent") == [
                (("k_a", "x"), 12),
                (("k_a", "y"), 2),
                (("k_b", "x"), 1),
            ]

    @async_test
    async def test_only_what_was_asked_for_is_added(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(job_id="one", micros=1, at=NOON))
            await ledger.save_call(make_call(job_id="two", micros=2, at=NOON + DAY, api_key_id="k_two"))
            await ledger.save_call(
                make_call(job_id="two", micros=4, at=NOON + 2 * DAY, agent="b", model="m", run=3)
            )
            for query, expected in (
                (UsageQuery(job_id="two"), 6),
                (UsageQuery(api_key_id="k_two"), 2),
                (UsageQuery(agent="b"), 4),
                (UsageQuery(model="m"), 4),
                (UsageQuery(model="m", job_id="one"), 0),
                (UsageQuery(job_id="two", since_run=3), 4),
                (UsageQuery(since_run=4), 0),
                (UsageQuery(since=NOON), 7),
                (UsageQuery(since=NOON + timedelta(microseconds=1)), 6),
                (UsageQuery(until=NOON + DAY), 1),
                (UsageQuery(until=NOON + DAY + timedelta(microseconds=1)), 3),
                (UsageQuery(since=NOON + DAY, until=NOON + 2 * DAY), 2),
            ):
                (row,) = await ledger.usage(query)
                assert row.total.micros == expected, query

    @async_test
    async def test_amounts_beyond_any_double_are_kept_to_the_last_micro_dollar(self) -> None:
        large = 2**60 + 1
        async with self.open() as ledger:
            await ledger.save_call(make_call(micros=large, tokens=TokenCounts(input=large)))
            await ledger.save_call(make_call(micros=1))
            total = await _sum(ledger)
            assert (total.micros, total.tokens.input) == (large + 1, large)

    @async_test
    async def test_a_call_outlives_a_job_that_nobody_ever_stored(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(job_id="forgotten", micros=3))
            assert (await _sum(ledger, job_id="forgotten")).micros == 3


async def _sum(ledger: Ledger, *, agent: str | None = None, job_id: str | None = None) -> UsageTotal:
    (row,) = await ledger.usage(UsageQuery(agent=agent, job_id=job_id))
    return row.total
