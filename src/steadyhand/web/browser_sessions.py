"""The sessions of browsers, the links that open one, and the count of failed sign-ins. All in memory and bounded.

A session belongs to one secret of a key: it ends when the secret is revoked, rotated or expired, when its browser signs
out, after `IDLE_SECONDS` without a request, and when the service stops.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from steadyhand.errors import RetryLater

IDLE_SECONDS = 7 * 24 * 3600.0
LONGEST_SECONDS = 30 * 24 * 3600.0
LINK_SECONDS = 60.0
"""The time in which a sign-in link has to be used."""
MAX_SESSIONS = 2_000
MAX_LINKS = 200
MAX_FAILURES = 10
FAILURE_SECONDS = 300.0
"""An address may fail `MAX_FAILURES` times within this time."""
_MAX_ADDRESSES = 10_000
_TOKEN_BYTES = 32


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


@dataclass(slots=True)
class BrowserSession:
    """One browser that is signed in; `key_digest` is that of the secret it belongs to."""

    key_digest: str
    begun_at: float
    seen_at: float
    csrf_token: str = field(default_factory=lambda: secrets.token_urlsafe(_TOKEN_BYTES), repr=False)
    is_open: bool = True

    def has_csrf_token(self, token: str) -> bool:
        """Return True for the token of this session, which every form holds."""
        return hmac.compare_digest(self.csrf_token.encode(), token.encode("utf-8", "replace"))


class BrowserSessions:
    """The sessions, by the digest of the token in their cookie. The one that was used longest ago goes first."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[str, BrowserSession] = OrderedDict()

    def begin(self, key_digest: str) -> str:
        """Begin a session and return the token for its cookie."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock()
        self._sessions[_digest(token)] = BrowserSession(key_digest, now, now)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1].is_open = False
        return token

    def find(self, token: str) -> BrowserSession | None:
        """Return the session of a token, or None if it has ended."""
        digest, now = _digest(token), self._clock()
        session = self._sessions.get(digest)
        if session is None:
            return None
        if now - session.seen_at > IDLE_SECONDS or now - session.begun_at > LONGEST_SECONDS:
            self.end(token)
            return None
        session.seen_at = now
        self._sessions.move_to_end(digest)
        return session

    def end(self, token: str) -> None:
        """End a session, and the streams of its browser."""
        session = self._sessions.pop(_digest(token), None)
        if session is not None:
            session.is_open = False


class SignInLinks:
    """Secrets that begin a session once, within `LINK_SECONDS`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def create(self, key_digest: str) -> str:
        """Return the secret of a new link for a key's secret. The oldest link ends if there are too many."""
        secret = secrets.token_urlsafe(_TOKEN_BYTES)
        self._links[_digest(secret)] = (key_digest, self._clock() + LINK_SECONDS)
        while len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        return secret

    def redeem(self, secret: str) -> str | None:
        """Return the digest of the key's secret, and end the link; None if it was used, is too old or unknown."""
        key_digest, until = self._links.pop(_digest(secret), ("", 0.0))
        return key_digest if key_digest and self._clock() < until else None


class SignInFailures:
    """The failed sign-ins of each address; an address of IPv6 stands for its /64."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise `RetryLater` (`rate_limited`) for an address that has failed too often."""
        recent = self._recent(_network_of(address))
        if len(recent) >= MAX_FAILURES:
            wait = int(recent[0] + FAILURE_SECONDS - self._clock()) + 1
            raise RetryLater(
                "Too many sign-ins from this address have failed.", code="rate_limited", retry_after=wait
            )

    def add(self, address: str) -> None:
        """Count a failure."""
        network = _network_of(address)
        self._failures[network] = [*self._recent(network), self._clock()][-MAX_FAILURES:]
        self._failures.move_to_end(network)
        while len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        since = self._clock() - FAILURE_SECONDS
        return [at for at in self._failures.get(network, ()) if at > since]


def _network_of(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
