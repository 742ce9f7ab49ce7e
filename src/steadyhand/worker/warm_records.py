"""Records of the waiting processes of each agent: how many jobs had one, and why one could not be started."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.events import format_rfc3339
from steadyhand.worker.warm_demand import SlotKey

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 300.0


class WarmShortage(StrEnum):
    """The reasons why fewer processes wait than are configured."""

    MEMORY = "memory"
    WARM_MEMORY = "warm_memory"
    TRUST = "trust"
    IN_PLACE = "in_place"
    PROCESS = "process"
    CHECKOUT = "checkout"


_SENTENCES = {
    WarmShortage.MEMORY: "The machine has too little memory for processes that wait.",
    WarmShortage.WARM_MEMORY: "`service.warm_memory` has no room for it.",
    WarmShortage.IN_PLACE: "Its jobs work in a directory in place, and there no process waits.",
}


class FullTrustError(SpawnError):
    """A checkout that may run something before its job, so no process waits in it."""


@dataclass(frozen=True, slots=True)
class WarmFailure:
    """The reason why the last process of an agent could not be started."""

    at: datetime
    shortage: WarmShortage
    detail: str


@dataclass(slots=True)
class _Record:
    hits: int = 0
    misses: int = 0
    failure: WarmFailure | None = None


class WarmRecords:
    """Records of the waiting processes of each agent since the start, and when a failed start is tried again."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._retry_at: dict[SlotKey, tuple[float, float]] = {}

    def add_hit(self, agent: str) -> None:
        """Count a job that had a process that waited."""
        self._record(agent).hits += 1

    def add_miss(self, agent: str) -> None:
        """Count a job that could have had one and started its own."""
        self._record(agent).misses += 1

    def add_failure(self, key: SlotKey, error: Exception, now: float) -> float:
        """Record that a start failed; return the seconds until the next one. `now` is of a monotonic clock."""
        shortage = _shortage_of(error)
        _, pause = self._retry_at.get(key, (0.0, 0.0))
        pause = min(max(pause * 2, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)
        if shortage is WarmShortage.TRUST:
            pause = LAST_RETRY_SECONDS  # only another commit changes it
        self._forget_old(now)
        self._retry_at[key] = (now + pause, pause)
        self._record(key.agent).failure = WarmFailure(self._clock(), shortage, str(error))
        return pause

    def add_start(self, key: SlotKey) -> None:
        """Record that a process is ready."""
        self._retry_at.pop(key, None)
        self._record(key.agent).failure = None

    def may_start(self, key: SlotKey, now: float) -> bool:
        """Return True unless the pause after a failed start goes on."""
        return self._retry_at.get(key, (0.0, 0.0))[0] <= now

    def shortage_of(self, agent: str) -> WarmShortage | None:
        """Return the reason of the last failure, if no process was ready since."""
        failure = self._record(agent).failure
        return None if failure is None else failure.shortage

    def report(self, agent: str, shortage: WarmShortage | None) -> Mapping[str, Any]:
        """Return the counts of an agent, and why fewer processes wait; `shortage` is a reason that holds now."""
        record, why = self._record(agent), None
        if shortage in _SENTENCES:
            why = {
                "reason": shortage.value,
                "detail": _SENTENCES[shortage],
                "at": format_rfc3339(self._clock()),
            }
        elif record.failure is not None:
            failure = record.failure
            why = {
                "reason": failure.shortage.value, "detail": failure.detail, "at": format_rfc3339(failure.at)
            }  # fmt: skip
        return {"hits": record.hits, "misses": record.misses, "shortage": why}

    def _record(self, agent: str) -> _Record:
        return self._records.setdefault(agent, _Record())

    def _forget_old(self, now: float) -> None:
        for key in [key for key, (at, _) in self._retry_at.items() if now - at > LAST_RETRY_SECONDS]:
            del self._retry_at[key]


def _shortage_of(error: Exception) -> WarmShortage:
    if isinstance(error, FullTrustError):
        return WarmShortage.TRUST
    return WarmShortage.CHECKOUT if isinstance(error, WorkspaceError) else WarmShortage.PROCESS
