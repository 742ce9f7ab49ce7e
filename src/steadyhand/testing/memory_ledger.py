"""A ledger in memory, for tests of what writes to one; it passes the contract of the real one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC

from steadyhand.ports import ModelCall, UsageGroup, UsageQuery, UsageRow, UsageTotal


class MemoryLedger:
    """`ports.Ledger` in a dictionary; `calls` are all that were kept, by their ids."""

    def __init__(self) -> None:
        self.calls: dict[str, ModelCall] = {}

    @property
    def settled_calls(self) -> list[ModelCall]:
        """The settled calls, in the order in which they were first kept."""
        return [call for call in self.calls.values() if call.settled]

    async def save_call(self, call: ModelCall) -> None:
        """Keep a call; one with the same id is replaced."""
        self.calls[call.id] = call

    def hasten(self) -> None:
        """Return: nothing waits here."""

    async def settle_open_calls(self) -> int:
        """Settle what was left open at what it had reserved."""
        return self._settle([call for call in self.calls.values() if not call.settled])

    async def settle_calls_of_run(self, job_id: str, run: int) -> int:
        """Settle what a run left open."""
        of_run = [call for call in self.calls.values() if (call.job_id, call.run) == (job_id, run)]
        return self._settle([call for call in of_run if not call.settled])

    def _settle(self, open_calls: Sequence[ModelCall]) -> int:
        for call in open_calls:
            self.calls[call.id] = replace(call, settled=True, complete=False, micros=call.reserved_micros)
        return len(open_calls)

    async def settle_repeated_calls(self, runs: Collection[tuple[str, int]]) -> int:
        """Settle what these runs left open at nothing."""
        open_calls = [c for c in self.calls.values() if not c.settled and (c.job_id, c.run) in runs]
        for call in open_calls:
            self.calls[call.id] = replace(call, settled=True, complete=False, micros=0)
        return len(open_calls)

    async def list_calls(self, job_id: str, limit: int) -> Sequence[ModelCall]:
        """Return the newest calls of a job, the oldest of them first."""
        calls = sorted(
            (call for call in self.calls.values() if call.job_id == job_id),
            key=lambda call: (call.at, call.id),
        )
        return calls[-limit:]

    async def usage(self, query: UsageQuery) -> Sequence[UsageRow]:
        """Add up settled calls, a row for each group."""
        totals: dict[tuple[str, ...], UsageTotal] = {} if query.by else {(): UsageTotal()}
        for call in self.settled_calls:
            if _matches(call, query):
                group = tuple(_group_value(call, by) for by in query.by)
                total = UsageTotal(1, call.tokens, call.micros, call.priced, call.complete)
                totals[group] = totals[group].plus(total) if group in totals else total
        groups = sorted(group for group in totals if not query.after or group > query.after)[: query.limit]
        return [UsageRow(dict(zip(query.by, group, strict=True)), totals[group]) for group in groups]


def _group_value(call: ModelCall, by: UsageGroup) -> str:
    if by == "day":
        return call.at.astimezone(UTC).date().isoformat()
    return str(getattr(call, "api_key_id" if by == "api_key" else by))


def _matches(call: ModelCall, query: UsageQuery) -> bool:
    pairs = (
        (call.api_key_id, query.api_key_id),
        (call.agent, query.agent),
        (call.model, query.model),
        (call.workspace, query.workspace),
        (call.job_id, query.job_id),
    )
    return (
        all(value is None or actual == value for actual, value in pairs)
        and (query.since is None or call.at >= query.since)
        and (query.until is None or call.at < query.until)
        and (query.since_run is None or call.run >= query.since_run)
    )
