"""The sessions of browsers on many nodes: each node keeps those that it has seen, and a table has them all."""

from collections.abc import Callable
from datetime import datetime, timedelta

from steadyhand.clock import utc_now
from steadyhand.ports import PageSessions, StoredSession
from steadyhand.web.browser_sessions import (
    IDLE_SECONDS,
    LINK_SECONDS,
    LONGEST_SECONDS,
    MAX_SESSIONS,
    BrowserSessions,
    new_token,
    token_digest,
)

TOUCH_SECONDS = 3600.0
"""The time after which the last use of a session is stored again."""


class SharedSessions:
    """Keeps the sessions in memory of one node as the table has them."""

    def __init__(
        self, local: BrowserSessions, table: PageSessions, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._local = local
        self._table = table
        self._clock = clock
        self._touched: dict[str, datetime] = {}
        self._checks = 0
        table.watch(self.check)

    async def begin(self, token: str, key_digest: str) -> None:
        """Begin a session with this token."""
        now = self._clock()
        digest = token_digest(token)
        unused_since = now - timedelta(seconds=IDLE_SECONDS)
        session = StoredSession(digest, key_digest, now, now)
        await self._table.add(session, unused_since=unused_since, most=MAX_SESSIONS)
        self._local.adopt(token, key_digest, 0.0, 0.0)
        self._touched[digest] = now

    async def learn(self, token: str) -> bool:
        """Look for a session that is not known here; return True if there is one."""
        digest, now, checks = token_digest(token), self._clock(), self._checks
        stored = await self._table.find(digest)
        if stored is None:
            return False
        age, idle = (now - stored.begun_at).total_seconds(), (now - stored.seen_at).total_seconds()
        if idle > IDLE_SECONDS or age > LONGEST_SECONDS:
            return False
        self._local.adopt(token, stored.key_digest, max(age, 0.0), max(idle, 0.0))
        self._touched[digest] = stored.seen_at
        if self._checks != checks:  # it may have ended between the read and now
            await self.check()
        return True

    async def touch(self, token: str) -> None:
        """Store the use of a session, if the last one was stored long ago."""
        digest, now = token_digest(token), self._clock()
        if (now - self._touched.get(digest, now)).total_seconds() >= TOUCH_SECONDS:
            self._touched[digest] = now
            await self._table.touch(digest, now)

    async def end(self, token: str) -> None:
        """End a session on all nodes."""
        digest = token_digest(token)
        self._touched.pop(digest, None)
        await self._table.end(digest)

    async def check(self) -> None:
        """End the sessions here that have ended elsewhere."""
        self._checks += 1
        digests = self._local.digests()
        self._touched = {digest: at for digest, at in self._touched.items() if digest in digests}
        if digests:
            for digest in await self._table.find_ended(digests):
                self._local.end_digest(digest)

    async def create_link(self, key_digest: str) -> str:
        """Return the secret of a new sign-in link, which opens a session on any node."""
        secret, now = new_token(), self._clock()
        until = now + timedelta(seconds=LINK_SECONDS)
        await self._table.add_link(token_digest(secret), key_digest, now=now, until=until)
        return secret

    async def redeem_link(self, secret: str) -> str | None:
        """Return the digest of the key's secret, and end the link; None if it was used, is too old or unknown."""
        return await self._table.redeem_link(token_digest(secret), self._clock())
