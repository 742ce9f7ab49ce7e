"""A ledger in memory, for tests of what writes to one; it passes the contract of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC

from steadyhand.ports import Call, Spent, UsageBy, UsageQuery, UsageRow


class MemoryLedger:
    """`ports.Ledger` in a dictionary; `calls` are all that were kept, by their ids."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}

    @property
    def settled(self) -> list[Call]:
        """The settled calls, in the order in which they were first kept."""
        return [call for call in self.calls.values() if call.settled]

    async def keep_call(self, call: Call) -> None:
        """Keep a call; one with the same id is replaced."""
        self.calls[call.id] = call

    async def settle_open(self) -> int:
        """Settle what was left open at what it had reserved."""
        left = [call for call in self.calls.values() if not call.settled]
        for call in left:
            self.calls[call.id] = replace(call, settled=True, complete=False, micros=call.reserved_micros)
        return len(left)

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Add up settled calls, a row for each group."""
        sums: dict[tuple[str, ...], Spent] = {} if query.by else {(): Spent()}
        for call in self.settled:
            if _asked_for(call, query):
                group = tuple(_value(call, by) for by in query.by)
                one = Spent(1, call.tokens, call.micros, call.priced, call.complete)
                sums[group] = sums[group].plus(one) if group in sums else one
        return [UsageRow(dict(zip(query.by, group, strict=True)), sums[group]) for group in sorted(sums)]


def _value(call: Call, by: UsageBy) -> str:
    if by == "day":
        return call.at.astimezone(UTC).date().isoformat()
    return str(getattr(call, "api_key_id" if by == "api_key" else by))


def _asked_for(call: Call, query: UsageQuery) -> bool:
    wanted = (
        (call.api_key_id, query.api_key_id),
        (call.agent, query.agent),
        (call.model, query.model),
        (call.job_id, query.job_id),
    )
    return (
        all(value is None or found == value for found, value in wanted)
        and (query.since is None or call.at >= query.since)
        and (query.until is None or call.at < query.until)
        and (query.since_run is None or call.run >= query.since_run)
    )
