"""`ports.ScheduleStore` over the writer and the readers of a store."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from steadyhand.ports.outbox import PlanPauseDeliveries
from steadyhand.ports.schedules import (
    CheckCaps,
    JobEnd,
    Schedule,
    SchedulePause,
    ScheduleTick,
    TickDraft,
    TickPage,
)
from steadyhand.store import schedules
from steadyhand.store.outbox import PauseHook

T = TypeVar("T")


class _Run(Protocol):
    """Runs a function of a connection: the writer in a transaction, a reader without."""

    def __call__(self, work: Callable[[Connection], T], /) -> Awaitable[T]: ...


class SqlScheduleStore:
    """The stored schedules; each write is one operation of the store's writer."""

    def __init__(self, write: _Run, read: _Run, read_alone: _Run, clock: Callable[[], datetime]) -> None:
        """Keep the parameters. `read_alone` is for what an idle loop reads: on Postgres it costs one statement."""
        self._write = write
        self._read = read
        self._read_alone = read_alone
        self._clock = clock
        self._plan: PlanPauseDeliveries = lambda _schedule: ()
        self._on_deliveries: Callable[[frozenset[str]], None] = lambda _circuits: None

    def use_pause_plan(self, plan: PlanPauseDeliveries, on_added: Callable[[frozenset[str]], None]) -> None:
        """Store the deliveries of `plan` with each schedule that pauses itself; report their circuits."""
        self._plan, self._on_deliveries = plan, on_added

    async def _write_with_hook(self, work: Callable[[Connection, PauseHook], T]) -> T:
        hooks: list[PauseHook] = []

        def run(connection: Connection) -> T:
            hooks.append(PauseHook(self._plan, self._clock))  # an earlier run may have been rolled back
            return work(connection, hooks[-1])

        result = await self._write(run)
        if hooks and hooks[-1].circuits:
            self._on_deliveries(hooks[-1].circuits)
        return result

    async def list_schedules(self, api_key_id: str | None = None) -> Sequence[Schedule]:
        """Return the schedules, or those of a key, in the order of their names."""
        return await self._read(lambda at: schedules.list_schedules(at, api_key_id))

    async def get_schedule(self, name: str) -> Schedule | None:
        """Return a schedule, or None."""
        return await self._read(lambda at: schedules.get_schedule(at, name))

    async def list_due_schedules(self, now: datetime) -> Sequence[Schedule]:
        """Return the schedules whose next tick is due, the earliest first."""
        return await self._read_alone(lambda at: schedules.list_due_schedules(at, now))

    async def next_tick_at(self) -> datetime | None:
        """Return the time of the next tick of all schedules."""
        return await self._read_alone(schedules.next_tick_at)

    async def add_schedule(self, schedule: Schedule, most: int) -> bool:
        """Store a new schedule; return False if its key has `most` already."""
        return await self._write(lambda at: schedules.add_schedule(at, schedule, most))

    async def save_schedule(self, schedule: Schedule, revision: int, *, reset_failures: bool = False) -> bool:
        """Replace what the owner of a schedule sets, if it has this revision still."""
        return await self._write(
            lambda at: schedules.save_schedule(at, schedule, revision, reset_failures=reset_failures)
        )

    async def delete_schedule(self, schedule_id: str) -> bool:
        """Delete a schedule with its history."""
        return await self._write(lambda at: schedules.delete_schedule(at, schedule_id))

    async def pause_schedule(self, schedule_id: str, pause: SchedulePause) -> Schedule | None:
        """Pause a schedule that is not paused and return it."""
        return await self._write_with_hook(
            lambda at, hook: schedules.pause_schedule(at, schedule_id, pause, hook)
        )

    async def skip_ticks(
        self, schedule: Schedule, ticks: Sequence[TickDraft], next_at: datetime | None, check: CheckCaps
    ) -> Schedule | None:
        """Store ticks that do not fire, and the next tick; return the schedule if it was paused."""
        return await self._write_with_hook(
            lambda at, hook: schedules.skip_ticks(at, schedule, ticks, next_at, check=check, hook=hook)
        )

    async def drop_waiting(self, sequence: int, draft: TickDraft, check: CheckCaps) -> Schedule | None:
        """Make a waiting tick a skipped one; return the schedule if it was paused."""
        return await self._write_with_hook(
            lambda at, hook: schedules.drop_waiting(at, sequence, draft, check, hook)
        )

    async def list_open_ticks(self, schedule_id: str | None = None) -> Sequence[ScheduleTick]:
        """Return the ticks that are not settled, oldest first."""
        return await self._read_alone(lambda at: schedules.list_open_ticks(at, schedule_id))

    async def settle_ticks(self, ends: Sequence[JobEnd], check: CheckCaps) -> Sequence[Schedule]:
        """Store the ends of jobs with their ticks; return the schedules that were paused."""
        return await self._write_with_hook(lambda at, hook: schedules.settle_ticks(at, ends, check, hook))

    async def list_ticks(self, schedule_id: str, limit: int, cursor: str | None = None) -> TickPage:
        """Return a page of a history, newest first."""
        return await self._read(lambda at: schedules.list_ticks(at, schedule_id, limit, cursor))

    async def newest_fired(self, schedule_ids: Sequence[str]) -> Sequence[ScheduleTick]:
        """Return the newest fired tick of each of these schedules that has one."""
        return await self._read(lambda at: schedules.newest_fired(at, schedule_ids))
