"""The one connection of a process on which Postgres notifies it: a hint that a table has changed, never the change.

A notification that comes while the connection is away is lost. So after each connection, and each second without one,
every callback is called with None: look at everything again. That makes a lost notification a short delay.

`LISTEN` belongs to a connection of the server. Behind PgBouncer in transaction mode the listener needs an address of
its own, `database_listen_url`. A pooler in its way is noticed by the number of the server's process: the callbacks are
then called each second all the same.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from psycopg import AsyncConnection, Notify, sql

from steadyhand.store.postgres.connections import CONNECT_SECONDS, name_of_connection, parse_postgres_url

MAX_PAYLOAD_BYTES: Final = 7_900
"""The length of a payload: the server refuses one of 8,000 bytes."""
MAX_UNSENT: Final = 2_000
"""The notifications that wait to be sent; beyond it the oldest are dropped, as they are hints."""
POLL_SECONDS: Final = 1.0
"""The time between two looks at everything while nothing can be heard."""
CHECK_SECONDS: Final = 10.0
"""The time without a word after which the server is asked for one."""
_ANSWER_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.05
_CHANNEL: Final = re.compile(r"[a-z][a-z0-9_#]{0,62}")
_SEND: Final = (
    "SELECT pg_notify(channel, payload) FROM unnest(%s::text[], %s::text[]) AS unsent (channel, payload)"
)

Callback = Callable[[str | None], None]


class Listener:
    """Calls back for notifications. It belongs to one event loop; `run` is its only task.

    A callback returns at once and does not block. It is called with the payload of a notification, or with None if any
    may have been lost, also at the first connection.
    """

    def __init__(
        self, url: str, *, poll_seconds: float = POLL_SECONDS, check_seconds: float = CHECK_SECONDS
    ) -> None:
        """Create it for the address of a database; nothing is connected before `run`."""
        self._parameters = parse_postgres_url(url)
        self._poll_seconds = poll_seconds
        self._check_seconds = check_seconds
        self._callbacks: dict[str, list[Callback]] = {}
        self._new: list[tuple[str, Callback]] = []
        self._unsent: deque[tuple[str, str]] = deque(maxlen=MAX_UNSENT)
        self._woken = asyncio.Event()
        self._looked_at = -poll_seconds
        self._log = structlog.get_logger("steadyhand.store")
        self.is_connected = False
        """True while notifications are heard."""
        self.is_pooled = False
        """True if a pooler stands before the server, so that they may not be."""
        self.connections = 0
        """The number of connections so far."""

    def on(self, channel: str, callback: Callback) -> None:
        """Call back for each notification on a channel: a name of small letters, digits, `_` and `#`."""
        if not _CHANNEL.fullmatch(channel):
            raise ValueError(f"{channel!r} is no name of a channel")
        self._callbacks.setdefault(channel, []).append(callback)
        self._new.append((channel, callback))
        self._woken.set()

    def send(self, channel: str, payload: str) -> None:
        """Send a notification that belongs to no transaction, soon; none is sent while there is no connection.

        A change of a table is announced in the transaction that makes it, and not here.
        """
        if len(payload.encode()) > MAX_PAYLOAD_BYTES:
            raise ValueError("the payload of a notification is too long")
        if self.is_connected:
            self._unsent.append((channel, payload))
            self._woken.set()

    async def run(self) -> None:
        """Listen until cancelled, and connect again whenever the connection has ended."""
        pause, is_out = _FIRST_PAUSE, False
        while True:
            try:
                async with self._connection() as connection:
                    if is_out:
                        self._log.info("store.listening")
                    pause, is_out = _FIRST_PAUSE, False
                    await self._listen(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                if not is_out:
                    self._log.warning("store.not_listening", reason=_reason(error))
                is_out = True
            self._look_at_everything()
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._poll_seconds)

    # --- one connection --------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connection(self) -> Any:
        async with asyncio.timeout(2 * CONNECT_SECONDS):
            parameters = {"application_name": name_of_connection("listener"), **self._parameters}
            connection: AsyncConnection[Any] = await AsyncConnection.connect(
                **parameters, autocommit=True, prepare_threshold=None
            )
        try:
            connection.add_notify_handler(self._hear)
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._new.clear()  # those that come from here on are for `_listen`
                for channel in list(self._callbacks):
                    await _listen_on(connection, channel)
                await self._notice_pooler(connection)
            self._unsent.clear()
            self.is_connected = True
            self.connections += 1
            self._look_at_everything(at_once=True)
            yield connection
        finally:
            self.is_connected = False
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.close()

    async def _notice_pooler(self, connection: AsyncConnection[Any]) -> None:
        found: Any = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
        self.is_pooled = found[0] != connection.info.backend_pid
        if self.is_pooled and not self.connections:
            remedy = "Set database_listen_url to the address of the server itself."
            self._log.warning("store.listens_to_pooler", remedy=remedy)

    async def _listen(self, connection: AsyncConnection[Any]) -> None:
        seconds = self._poll_seconds if self.is_pooled else self._check_seconds
        while True:
            self._woken.clear()
            self._receive(connection)  # first: what a statement has read is not in the socket any more
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._send_and_subscribe(connection)
            is_silent = not await self._wait(connection, seconds)
            if is_silent and self.is_pooled:
                self._look_at_everything()
            elif is_silent:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await connection.execute("SELECT 1")

    async def _wait(self, connection: AsyncConnection[Any], seconds: float) -> bool:
        """Wait until there is something to read or to send; return False if there was not for that time."""
        loop, fileno = asyncio.get_running_loop(), connection.fileno()
        # Only for this wait: psycopg takes the place of the reader for itself whenever it runs a statement.
        loop.add_reader(fileno, self._woken.set)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fileno)
        return True

    def _receive(self, connection: AsyncConnection[Any]) -> None:
        connection.pgconn.consume_input()
        while (found := connection.pgconn.notifies()) is not None:
            self._deliver(found.relname.decode("utf-8", "replace"), found.extra.decode("utf-8", "replace"))

    async def _send_and_subscribe(self, connection: AsyncConnection[Any]) -> None:
        while self._new:
            channel, callback = self._new.pop(0)
            await _listen_on(connection, channel)
            self._call(channel, callback, None)
        if self._unsent:
            unsent = list(self._unsent)
            self._unsent.clear()
            channels, payloads = [channel for channel, _ in unsent], [payload for _, payload in unsent]
            await connection.execute(_SEND, (channels, payloads))

    # --- callbacks -------------------------------------------------------------------------

    def _hear(self, notification: Notify) -> None:
        self._deliver(notification.channel, notification.payload)

    def _deliver(self, channel: str, payload: str) -> None:
        for callback in self._callbacks.get(channel, ()):
            self._call(channel, callback, payload)

    def _look_at_everything(self, *, at_once: bool = False) -> None:
        """Call each callback with None, at most once in `poll_seconds` unless `at_once`."""
        now = asyncio.get_running_loop().time()
        if not at_once and now - self._looked_at < self._poll_seconds:
            return
        self._looked_at = now
        for channel, callbacks in self._callbacks.items():
            for callback in callbacks:
                self._call(channel, callback, None)

    def _call(self, channel: str, callback: Callback, payload: str | None) -> None:
        try:
            callback(payload)
        except Exception:  # noqa: BLE001  # the boundary of one callback: the others must hear as well
            self._log.exception("store.notification_failed", channel=channel)


async def _listen_on(connection: AsyncConnection[Any], channel: str) -> None:
    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
