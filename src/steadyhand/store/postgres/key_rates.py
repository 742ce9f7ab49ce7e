"""`ports.KeyRates` on Postgres: the requests of the last minute, counted by tenths of a second.

So a key has at most 601 rows, whatever its limit is. A request leaves the window up to a tenth of a second late.
"""

import asyncio
from collections import deque
from typing import Final

import structlog

from steadyhand.errors import StoreError
from steadyhand.store.postgres.limits_connection import LimitsConnection

SLICES_PER_SECOND: Final = 10
_WINDOW: Final = 60 * SLICES_PER_SECOND
_NOW: Final = f"floor(extract(epoch FROM clock_timestamp()) * {SLICES_PER_SECOND})::bigint"
_CLEAN_SLICES: Final = 2 * _WINDOW
_MAX_REMEMBERED: Final = 1_000
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 16)) IS NULL"
_CHARGE: Final = f"""WITH moment AS (SELECT {_NOW} AS slice)
    INSERT INTO key_rates (api_key_id, slice, requests)
    SELECT %s, slice, 1 FROM moment WHERE (SELECT coalesce(sum(requests), 0) FROM key_rates
        WHERE api_key_id = %s AND key_rates.slice >= moment.slice - {_WINDOW}) < %s
    ON CONFLICT (api_key_id, slice) DO UPDATE SET requests = key_rates.requests + 1
    RETURNING slice"""  # noqa: S608  # our own words
_FORGET: Final = f"DELETE FROM key_rates WHERE api_key_id = %s AND slice < {_NOW} - {_WINDOW}"  # noqa: S608
_ROOM: Final = f"""SELECT max(slice) - {_NOW} + {_WINDOW} + 1 FROM (
    SELECT slice, sum(requests) OVER (ORDER BY slice DESC) AS newer FROM key_rates
    WHERE api_key_id = %s AND slice >= {_NOW} - {_WINDOW}) AS counted WHERE newer >= %s"""  # noqa: S608
_UNDO: Final = (
    "UPDATE key_rates SET requests = requests - 1 WHERE api_key_id = %s AND slice = %s AND requests > 0"
)
_CLEAN: Final = f"DELETE FROM key_rates WHERE slice < {_NOW} - {_CLEAN_SLICES}"  # noqa: S608


class PostgresKeyRates:
    """The rates of keys, as this node counts them."""

    def __init__(self, connection: LimitsConnection) -> None:
        self._connection = connection
        self._charged: dict[str, deque[int]] = {}
        """The newest requests that this node has counted, by key."""
        self._undone: deque[tuple[str, int]] = deque()
        self._changed = asyncio.Event()
        self._log = structlog.get_logger("steadyhand.admission")

    async def charge(self, key_id: str, limit: int) -> int | None:
        """Count a request and return None, or the seconds until there is room if the minute has `limit` of them."""
        answers = await self._connection.run(
            [_LOCK, _FORGET, _CHARGE], (key_id, key_id, key_id, key_id, limit)
        )
        if answers[-1]:
            charged = self._charged.setdefault(key_id, deque(maxlen=_MAX_REMEMBERED))
            charged.append(int(answers[-1][0][0]))
            return None
        ((slices,),) = (await self._connection.run([_ROOM], (key_id, limit)))[0]
        return 1 if slices is None else max(1, -(-int(slices) // SLICES_PER_SECOND))

    def undo(self, key_id: str) -> None:
        """Undo the newest request of a key that this node has counted, soon."""
        charged = self._charged.get(key_id)
        if charged:
            self._undone.append((key_id, charged.pop()))
            self._changed.set()

    async def run(self) -> None:
        """Remove the undone requests, until cancelled."""
        await self._try([_CLEAN], ())
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._undone:
                await self._try([_UNDO], self._undone.popleft())

    async def _try(self, statements: list[str], values: tuple[object, ...]) -> None:
        try:
            await self._connection.run(statements, values)
        except StoreError as error:  # the request stays counted for its minute
            self._log.warning("rates.failed", error=error.detail)
