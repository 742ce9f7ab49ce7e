"""The sessions of browsers, the links that open one, and the count of failed sign-ins. All in memory and bounded.

A session belongs to one secret of a key: it ends when the secret is revoked, rotated or expired, when its browser signs
out, after `IDLE_SECONDS` without a request, and when the service stops. On many nodes `shared_sessions` has those of
all; the failures are counted on each node.
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


def token_digest(token: str) -> str:
    """Return the digest of a token or of the secret of a link: the only part that is kept."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def new_token() -> str:
    """Return a new token for a cookie, or a new secret for a link."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def _csrf_token(token: str) -> str:
    """Return the token of a session's forms: that of its cookie makes it, so that every node knows it."""
    return hmac.new(token.encode(), b"forms of this session", hashlib.sha256).hexdigest()


@dataclass(slots=True)
class BrowserSession:
    """One browser that is signed in; `key_digest` is that of the secret it belongs to."""

    key_digest: str
    begun_at: float
    seen_at: float
    csrf_token: str = field(repr=False)
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
        token = new_token()
        self.adopt(token, key_digest, 0.0, 0.0)
        return token

    def adopt(self, token: str, key_digest: str, age: float, idle: float) -> None:
        """Keep a session that began and was used so many seconds ago, also on another node."""
        now = self._clock()
        session = BrowserSession(key_digest, now - age, now - idle, _csrf_token(token))
        self._sessions[token_digest(token)] = session
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1].is_open = False

    def find(self, token: str) -> BrowserSession | None:
        """Return the session of a token, or None if it has ended."""
        digest, now = token_digest(token), self._clock()
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
        self.end_digest(token_digest(token))

    def end_digest(self, digest: str) -> None:
        """End the session whose token has this digest."""
        session = self._sessions.pop(digest, None)
        if session is not None:
            session.is_open = False

    def digests(self) -> frozenset[str]:
        """Return the digests of the tokens of all sessions that are kept here."""
        return frozenset(self._sessions)


class SignInLinks:
    """Secrets that begin a session once, within `LINK_SECONDS`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def create(self, key_digest: str) -> str:
        """Return the secret of a new link for a key's secret. The oldest link ends if there are too many."""
        secret = new_token()
        self._links[token_digest(secret)] = (key_digest, self._clock() + LINK_SECONDS)
        while len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        return secret

    def redeem(self, secret: str) -> str | None:
        """Return the digest of the key's secret, and end the link; None if it was used, is too old or unknown."""
        key_digest, until = self._links.pop(token_digest(secret), ("", 0.0))
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
