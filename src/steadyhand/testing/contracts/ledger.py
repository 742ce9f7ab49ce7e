"""Tests of every ledger."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations

from steadyhand.ports import Ledger, ModelCall, TokenCounts, UsageGroup, UsageQuery, UsageRow, UsageTotal
from steadyhand.testing.contracts.samples import NOON, async_test, long_text, make_call

DAY = timedelta(days=1)
MIDNIGHT = NOON.replace(hour=0, minute=0, second=0, microsecond=0)


class LedgerContract:
    """Keeping calls, settling what was left, and adding up."""

    questions = 250
    """The random questions that are asked, each with its own sums."""

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
    async def test_a_period_may_begin_and_end_anywhere_in_the_calendar(self) -> None:
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        moments = (first, first + DAY / 2, NOON, last - DAY, last - DAY / 2, last)
        async with self.open() as ledger:
            await ledger.save_call(make_call(micros=70))
            for since, until in combinations((*moments, None), 2):
                assert since is not None
                (row,) = await ledger.usage(UsageQuery(since=since, until=until))
                assert row.total.calls == int(since <= NOON and (until is None or until > NOON)), (
                    since,
                    until,
                )

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
    async def test_the_newest_calls_of_a_job_are_listed_in_order_open_ones_too(self) -> None:
        calls = [
            make_call(
                id=f"call_{number}",
                job_id="0123456789ab",
                at=NOON + timedelta(seconds=number),
                tokens=TokenCounts(number, 2, 3, 4, 5),
                settled=number != 2,
                priced=number != 1,
                complete=number != 0,
                status=None if number == 2 else 200,
            )
            for number in (2, 0, 1)
        ]
        async with self.open() as ledger:
            for call in (*calls, make_call(job_id="ba9876543210")):
                await ledger.save_call(call)
            in_order = sorted(calls, key=lambda call: call.at)
            assert list(await ledger.list_calls("0123456789ab", 5)) == in_order
            assert list(await ledger.list_calls("0123456789ab", 2)) == in_order[1:]
            assert list(await ledger.list_calls("000000000000", 5)) == []

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
    async def test_a_call_that_its_agent_makes_again_costs_nothing_the_first_time(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(settled=False, run=2, reserved_micros=900))
            await ledger.save_call(make_call(settled=False, run=1, reserved_micros=90))
            await ledger.save_call(make_call(run=2, micros=5, reserved_micros=100))
            assert await ledger.settle_repeated_calls([]) == 0
            assert await ledger.settle_repeated_calls([("0" * 12, 2), ("1" * 12, 1)]) == 1
            assert await _sum(ledger) == UsageTotal(2, TokenCounts(), 5, complete=False)
            assert await ledger.settle_open_calls() == 1
            assert await _sum(ledger) == UsageTotal(3, TokenCounts(), 95, complete=False)

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
            make_call(
                api_key_id="k_a",
                agent="y",
                model="m2",
                provider="p",
                micros=2,
                workspace="shop",
                at=NOON + DAY,
            ),
            make_call(api_key_id="k_a", agent="x", model="m2", provider="q", micros=4, workspace="shop"),
            make_call(api_key_id="k_a", agent="x", model="m1", provider="p", micros=8, workspace="shop"),
        ]
        async with self.open() as ledger:
            await asyncio.gather(*(ledger.save_call(call) for call in calls))

            async def sums(*by: UsageGroup) -> list[tuple[tuple[str, ...], int]]:
                rows = await ledger.usage(UsageQuery(by=by))
                return [(tuple(row.group[each] for each in by), row.total.micros) for row in rows]

            assert await sums("api_key") == [(("k_a",), 14), (("k_b",), 1)]
            assert await sums("agent") == [(("x",), 13), (("y",), 2)]
            assert await sums("model") == [(("m1",), 9), (("m2",), 6)]
            assert await sums("workspace") == [(("",), 1), (("shop",), 14)]
            assert (await sums("workspace", "day"))[1:] == [
                (("shop", "2026-03-01"), 12),
                (("shop", "2026-03-02"), 2),
            ]
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
    async def test_any_question_has_the_sums_of_the_calls_that_it_is_about(self) -> None:
        chance = random.Random(3)  # noqa: S311  # the same calls in each run
        calls = [_random_call(chance) for _ in range(150)]
        async with self.open() as ledger:
            await asyncio.gather(*(ledger.save_call(call) for call in calls))
            for number in range(0, 150, 5):  # calls that are stored again, settled ones too
                calls[number] = replace(_random_call(chance), id=calls[number].id)
                await ledger.save_call(calls[number])
            await ledger.settle_open_calls()
            calls = [
                call
                if call.settled
                else replace(call, settled=True, complete=False, micros=call.reserved_micros)
                for call in calls
            ]
            for _ in range(self.questions):
                query = _random_query(chance)
                found = [(tuple(row.group.values()), row.total) for row in await ledger.usage(query)]
                assert found == _expected_sums(calls, query), query

    @async_test
    async def test_pages_of_sums_follow_each_other(self) -> None:
        chance = random.Random(4)  # noqa: S311
        async with self.open() as ledger:
            await asyncio.gather(*(ledger.save_call(_random_call(chance)) for _ in range(60)))
            await ledger.settle_open_calls()
            groupings: tuple[tuple[UsageGroup, ...], ...] = (
                ("api_key", "agent", "day"),
                ("agent", "day"),
                ("api_key", "workspace", "day"),
                ("workspace", "day"),
                ("day",),
            )
            for by in groupings:
                whole = await ledger.usage(UsageQuery(by=by))
                found: list[UsageRow] = []
                while page := await ledger.usage(
                    UsageQuery(by=by, limit=4, after=tuple(found[-1].group.values()) if found else ())
                ):
                    assert len(page) <= 4
                    found += page
                assert found == whole, by

    @async_test
    async def test_amounts_beyond_any_double_are_kept_to_the_last_micro_dollar(self) -> None:
        large = 2**60 + 1
        async with self.open() as ledger:
            await ledger.save_call(make_call(micros=large, tokens=TokenCounts(input=large)))
            await ledger.save_call(make_call(micros=1))
            total = await _sum(ledger)
            assert (total.micros, total.tokens.input) == (large + 1, large)

    @async_test
    async def test_sums_beyond_what_a_database_can_count_are_still_answered(self) -> None:
        greatest = 2**63 - 1
        async with self.open() as ledger:
            for days in (0, 0, 1, 40):
                tokens = TokenCounts(output=greatest)
                await ledger.save_call(make_call(micros=greatest, tokens=tokens, at=NOON + days * DAY))
            for query in (
                UsageQuery(),
                UsageQuery(since=NOON),
                UsageQuery(since=NOON - DAY, until=NOON + 9 * DAY),
                UsageQuery(agent="claude", since=NOON + DAY / 2),
                UsageQuery(by=("day",), until=NOON + DAY / 2),
                UsageQuery(by=("agent", "model"), agent="claude"),
            ):
                (row,) = await ledger.usage(query)
                assert row.total.micros >= greatest, query
                assert row.total.tokens.output >= greatest, query

    @async_test
    async def test_calls_are_added_up_by_the_longest_paths_of_their_workspaces(self) -> None:
        path = long_text(2047, "/srv/")
        paths = (f"{path}1", f"{path}2", "/srv/" + "\ue000" * 700, "/srv/" + "a" * 2043, "/srv/ä")
        names = {"api_key_id": "k" * 64, "agent": "a" * 64, "provider": "p" * 64, "model": "m" * 255}
        async with self.open() as ledger:
            for number, workspace in enumerate(paths):
                for at in (NOON, NOON + DAY):
                    await ledger.save_call(
                        make_call(workspace=workspace, at=at, micros=10**number, run=1, **names)
                    )
            for number, workspace in enumerate(paths):
                by_path = UsageQuery(workspace=workspace, api_key_id=names["api_key_id"])
                (row,) = await ledger.usage(by_path)
                assert row.total.micros == 2 * 10**number
                (row,) = await ledger.usage(replace(by_path, since=NOON + DAY / 2, until=NOON + 3 * DAY / 2))
                assert row.total.micros == 10**number, (
                    "a part of a day, which comes from the calls themselves"
                )
            rows = await ledger.usage(UsageQuery(by=("workspace",), since=NOON - DAY / 2))
            by_name = {row.group["workspace"]: row.total.micros for row in rows}
            assert sorted(by_name.values()) == [2 * 10**number for number in range(len(paths))]
            for name, micros in by_name.items():
                (row,) = await ledger.usage(UsageQuery(workspace=name))
                assert row.total.micros == micros, "a name that was listed is the name of a filter"

    @async_test
    async def test_a_call_outlives_a_job_that_nobody_ever_stored(self) -> None:
        async with self.open() as ledger:
            await ledger.save_call(make_call(job_id="forgotten", micros=3))
            assert (await _sum(ledger, job_id="forgotten")).micros == 3


def _random_call(chance: random.Random) -> ModelCall:
    """Return a call of one of some days around the ends of months, at its begin, in it or at its end."""
    days = chance.choice((-400, -60, -31, -29, -28, -1, 0, 1, 30, 31, 32, 61))
    hours = chance.choice((0.0, 0.0, 12.0, 24 - 1e-9, chance.random() * 24))
    return make_call(
        api_key_id=chance.choice(("k_a", "k_b", "k_c")),
        agent=chance.choice("xy"),
        model=chance.choice(("m1", "m2", "")),
        provider=chance.choice("pq"),
        workspace=chance.choice(("", "shop", "https://git.example.org/a.git")),
        at=MIDNIGHT + timedelta(days=days, hours=hours),
        micros=chance.randrange(1000),
        reserved_micros=chance.randrange(1000),
        tokens=TokenCounts(*(chance.randrange(100) for _ in range(5))),
        settled=chance.random() < 0.9,
        priced=chance.random() < 0.95,
        complete=chance.random() < 0.95,
        run=chance.randrange(3),
        job_id=chance.choice(("one", "two")),
    )


def _random_query(chance: random.Random) -> UsageQuery:
    since, until = sorted(_random_call(chance).at for _ in range(2))
    names: tuple[UsageGroup, ...] = ("api_key", "agent", "model", "provider", "workspace", "day")
    return UsageQuery(
        by=tuple(name for name in names if chance.random() < 0.35),
        since=chance.choice((None, since)),
        until=chance.choice((None, until, until + timedelta(hours=chance.randrange(48)))),
        api_key_id=chance.choice((None, None, "k_a", "k_none")),
        agent=chance.choice((None, None, "x")),
        model=chance.choice((None, None, "m1", "")),
        workspace=chance.choice((None, None, None, "shop", "")),
        job_id=chance.choice((None, None, None, "one")),
        since_run=chance.choice((None, None, None, 2)),
        limit=chance.choice((None, 1000)),
    )


def _expected_sums(calls: Sequence[ModelCall], query: UsageQuery) -> list[tuple[tuple[str, ...], UsageTotal]]:
    """Add up call by call."""
    totals: dict[tuple[str, ...], UsageTotal] = {} if query.by else {(): UsageTotal()}
    for call in calls:
        if (
            (query.since is None or call.at >= query.since)
            and (query.until is None or call.at < query.until)
            and all(
                getattr(query, name) in (None, getattr(call, name))
                for name in ("api_key_id", "agent", "model", "workspace", "job_id")
            )
            and (query.since_run is None or call.run >= query.since_run)
        ):
            values = {"api_key": call.api_key_id, "day": call.at.date().isoformat()}
            group = tuple(values.get(by) or str(getattr(call, by, "")) for by in query.by)
            total = UsageTotal(1, call.tokens, call.micros, call.priced, call.complete)
            totals[group] = totals.get(group, UsageTotal()).plus(total)
    return sorted(totals.items(), key=lambda each: each[0])


async def _sum(ledger: Ledger, *, agent: str | None = None, job_id: str | None = None) -> UsageTotal:
    (row,) = await ledger.usage(UsageQuery(agent=agent, job_id=job_id))
    return row.total
