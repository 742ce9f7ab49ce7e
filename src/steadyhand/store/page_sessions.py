"""Sessions of browsers, sign-in links and secrets of the service in SQL, for nodes that share a database.

One process keeps its sessions in memory: a database of SQLite has these tables, and nothing in them.
"""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from steadyhand.ports import StoredSession
from steadyhand.store.announcements import SESSIONS_CHANNEL, announce
from steadyhand.store.driver import execute
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.schema import page_sessions, shared_secrets, sign_in_links

_Run = Callable[[Callable[[Connection], Any]], Awaitable[Any]]
_SHARE = "INSERT INTO shared_secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"


class SqlPageSessions:
    """`ports.PageSessions` over the store's writer and readers."""

    def __init__(self, write: _Run, read: _Run) -> None:
        self._write = write
        self._read = read
        self._checks: list[Callable[[], Awaitable[None]]] = []

    async def add(self, session: StoredSession, *, unused_since: datetime, most: int) -> None:
        """Store a session; see `PageSessions.add`."""
        await self._write(lambda at: _add(at, session, unused_since, most))

    async def find(self, digest: str) -> StoredSession | None:
        """Return a session, or None."""
        session: StoredSession | None = await self._read(lambda at: _find(at, digest))
        return session

    async def touch(self, digest: str, seen_at: datetime) -> None:
        """Store the time of the last use of a session."""
        values = {"seen_at": to_microseconds(seen_at)}
        await self._write(
            lambda at: (
                at.execute(
                    update(page_sessions).where(page_sessions.c.digest == digest).values(values)
                ).rowcount
            )
        )

    async def end(self, digest: str) -> None:
        """Delete a session; every node hears of it."""
        await self._write(lambda at: _end(at, digest))

    async def find_ended(self, digests: Collection[str]) -> Collection[str]:
        """Return those of these sessions that do not exist any more."""
        query = select(page_sessions.c.digest).where(page_sessions.c.digest.in_(list(digests)))
        existing = await self._read(lambda at: set(at.execute(query).scalars()))
        return [each for each in digests if each not in existing]

    async def add_link(self, digest: str, key_digest: str, *, now: datetime, until: datetime) -> None:
        """Store a sign-in link; see `PageSessions.add_link`."""
        await self._write(lambda at: _add_link(at, digest, key_digest, now, until))

    async def redeem_link(self, digest: str, now: datetime) -> str | None:
        """Delete a link and return the digest of its key's secret; see `PageSessions.redeem_link`."""
        key_digest: str | None = await self._write(lambda at: _redeem_link(at, digest, now))
        return key_digest

    def watch(self, check: Callable[[], Awaitable[None]]) -> None:
        """Call `check` whenever sessions may have ended on another node."""
        self._checks.append(check)

    async def check(self) -> None:
        """Call all that watch."""
        for check in self._checks:
            await check()

    async def share_secret(self, name: str, value: str) -> str:
        """Store a secret of the service unless there is one of this name; return the one that all nodes have."""
        secret: str = await self._write(lambda at: _share_secret(at, name, value))
        return secret


def _add(connection: Connection, session: StoredSession, unused_since: datetime, most: int) -> None:
    connection.execute(delete(page_sessions).where(page_sessions.c.seen_at < to_microseconds(unused_since)))
    newest = select(page_sessions.c.digest).order_by(page_sessions.c.seen_at.desc()).limit(most - 1)
    connection.execute(delete(page_sessions).where(page_sessions.c.digest.not_in(newest)))
    row = {
        "digest": session.digest,
        "key_digest": session.key_digest,
        "begun_at": to_microseconds(session.begun_at),
        "seen_at": to_microseconds(session.seen_at),
    }
    connection.execute(insert(page_sessions), row)


def _find(connection: Connection, digest: str) -> StoredSession | None:
    query = select(page_sessions).where(page_sessions.c.digest == digest)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    begun_at, seen_at = from_microseconds(row["begun_at"]), from_microseconds(row["seen_at"])
    return StoredSession(digest, row["key_digest"], begun_at, seen_at)


def _end(connection: Connection, digest: str) -> None:
    connection.execute(delete(page_sessions).where(page_sessions.c.digest == digest))
    announce(connection, SESSIONS_CHANNEL)


def _add_link(connection: Connection, digest: str, key_digest: str, now: datetime, until: datetime) -> None:
    connection.execute(delete(sign_in_links).where(sign_in_links.c.until <= to_microseconds(now)))
    row = {"digest": digest, "key_digest": key_digest, "until": to_microseconds(until)}
    connection.execute(insert(sign_in_links), row)


def _redeem_link(connection: Connection, digest: str, now: datetime) -> str | None:
    # Deleted first: of two nodes that redeem it at the same time one waits for the other, and finds nothing.
    query = (
        delete(sign_in_links)
        .where(sign_in_links.c.digest == digest)
        .returning(sign_in_links.c.key_digest, sign_in_links.c.until)
    )
    row = connection.execute(query).first()
    return None if row is None or row.until <= to_microseconds(now) else str(row.key_digest)


def _share_secret(connection: Connection, name: str, value: str) -> str:
    execute(connection, _SHARE, (name, value))
    query = select(shared_secrets.c.value).where(shared_secrets.c.name == name)
    return str(connection.execute(query).scalar_one())
