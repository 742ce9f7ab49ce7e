"""The sessions of browsers and the sign-in links that several nodes share."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session of a browser, by digests: of the token in its cookie, and of the secret of its key."""

    digest: str
    key_digest: str
    begun_at: datetime
    seen_at: datetime


class PageSessions(Protocol):
    """The sessions and links of all nodes. A token or the secret of a link never reaches it."""

    async def add(self, session: StoredSession, *, unused_since: datetime, most: int) -> None:
        """Store a session. Delete those that nobody has used since then, and the oldest ones above so many."""
        ...

    async def find(self, digest: str) -> StoredSession | None:
        """Return a session, or None."""
        ...

    async def touch(self, digest: str, seen_at: datetime) -> None:
        """Store the time of the last use of a session."""
        ...

    async def end(self, digest: str) -> None:
        """Delete a session; every node hears of it."""
        ...

    async def find_ended(self, digests: Collection[str]) -> Collection[str]:
        """Return those of these sessions that do not exist any more."""
        ...

    async def add_link(self, digest: str, key_digest: str, *, now: datetime, until: datetime) -> None:
        """Store a sign-in link, and delete those that are too old."""
        ...

    async def redeem_link(self, digest: str, now: datetime) -> str | None:
        """Delete a link and return the digest of its key's secret; None if it was used or is too old."""
        ...

    def watch(self, check: Callable[[], Awaitable[None]]) -> None:
        """Call `check` whenever sessions may have ended on another node."""
        ...
